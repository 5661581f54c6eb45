//! An encoder of protobuf messages, and a small ONNX Runtime GenAI folder made with it.

use tangor_formats::MemorySource;

/// A number of protobuf.
pub(crate) fn varint(mut value: u64) -> Vec<u8> {
    let mut out = Vec::new();
    while value >= 0x80 {
        out.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
    out
}

/// A field that holds a number.
pub(crate) fn int(field: u64, value: i64) -> Vec<u8> {
    [varint(field << 3), varint(value as u64)].concat()
}

/// A field that holds bytes: a string or a message.
pub(crate) fn bytes(field: u64, value: impl AsRef<[u8]>) -> Vec<u8> {
    let value = value.as_ref();
    [varint(field << 3 | 2), varint(value.len() as u64), value.to_vec()].concat()
}

/// `ModelProto` with one graph.
pub(crate) fn model(graph: &[u8]) -> Vec<u8> {
    let opset = [bytes(1, "com.microsoft"), int(2, 1)].concat();
    [int(1, 10), bytes(7, graph), bytes(8, opset)].concat()
}

/// `TensorProto` of a type and a shape; `rest` holds its data.
pub(crate) fn tensor(name: &str, element: i64, dims: &[i64], rest: &[u8]) -> Vec<u8> {
    let dims: Vec<u8> = dims.iter().flat_map(|&dim| int(1, dim)).collect();
    [dims, int(2, element), bytes(8, name), rest.to_vec()].concat()
}

/// The fields of external data.
pub(crate) fn external(entries: &[(&str, &str)]) -> Vec<u8> {
    let entry = |(key, value): &(&str, &str)| bytes(13, [bytes(1, key), bytes(2, value)].concat());
    [entries.iter().flat_map(entry).collect(), int(14, 1)].concat()
}

/// `NodeProto`.
pub(crate) fn node(op: &str, inputs: &[&str], outputs: &[&str], attributes: &[Vec<u8>]) -> Vec<u8> {
    let inputs: Vec<u8> = inputs.iter().flat_map(|name| bytes(1, name)).collect();
    let outputs: Vec<u8> = outputs.iter().flat_map(|name| bytes(2, name)).collect();
    let attributes: Vec<u8> = attributes.iter().flat_map(|a| bytes(5, a)).collect();
    [inputs, outputs, bytes(3, format!("/{op}")), bytes(4, op), attributes].concat()
}

/// A graph with a node, an input, an output and one initializer in `w.data`.
pub(crate) fn small() -> Vec<u8> {
    let place = external(&[("location", "w.data"), ("offset", "4"), ("length", "8")]);
    [
        bytes(1, node("Gather", &["w", "input_ids"], &["logits"], &[])),
        bytes(5, tensor("w", 1, &[2, 1], &place)),
        bytes(11, bytes(1, "input_ids")),
        bytes(12, bytes(1, "logits")),
    ]
    .concat()
}

/// A configuration for [`small`].
pub(crate) const CONFIG: &str = r#"{"model":{"type":"llama","context_length":8,"vocab_size":2,
    "eos_token_id":1,"decoder":{"filename":"model.onnx"}}}"#;

/// A folder with this graph, whose weights are in a file of 12 bytes.
pub(crate) fn folder(config: &str, model: Vec<u8>) -> MemorySource {
    MemorySource::new("m")
        .with("genai_config.json", config.as_bytes().to_vec())
        .with("model.onnx", model)
        .with("w.data", (0..12).collect::<Vec<u8>>())
}

/// A whole decoder of one layer and two words, as the model builder writes it for the CPU: every
/// tensor in the message, 8 wide, in blocks of 8.
pub(crate) fn decoder() -> Vec<u8> {
    let attribute = |name: &str, value: i64| [bytes(1, name), int(3, value)].concat();
    let linear = |x: &str, name: &str, outputs: usize| {
        let (weight, scales, y) = (format!("{name}.w"), format!("{name}.s"), format!("{name}.y"));
        let form = [("K", 8), ("N", outputs as i64), ("bits", 4), ("block_size", 8)];
        let form: Vec<Vec<u8>> = form.iter().map(|(name, value)| attribute(name, *value)).collect();
        let codes = tensor(&weight, 2, &[outputs as i64, 1, 4], &bytes(9, vec![0x5a; outputs * 4]));
        let steps = tensor(&scales, 10, &[outputs as i64], &bytes(9, [0, 0x3c].repeat(outputs)));
        [
            bytes(5, codes),
            bytes(5, steps),
            microsoft(node("MatMulNBits", &[x, &weight, &scales], &[&y], &form)),
        ]
        .concat()
    };
    let floats = |name: &str, dims: &[i64]| {
        let count: i64 = dims.iter().product();
        bytes(5, tensor(name, 10, dims, &bytes(9, [0, 0x3c].repeat(count as usize))))
    };
    let heads = ["num_heads", "kv_num_heads", "do_rotary"].map(|name| attribute(name, 1));
    let skip = "SkipSimplifiedLayerNormalization";
    let qkv = ["qkv.y", "", "", "pk", "pv", "len", "len", "cos", "sin"];
    [
        ["input_ids", "attention_mask", "pk", "pv"].map(|name| bytes(11, bytes(1, name))).concat(),
        floats("embed", &[2, 8]),
        floats("gain", &[8]),
        floats("cos", &[8, 4]),
        floats("sin", &[8, 4]),
        bytes(1, node("Shape", &["attention_mask"], &["shape"], &[])),
        bytes(5, tensor("one", 7, &[], &int(7, 1))),
        bytes(1, node("Gather", &["shape", "one"], &["len"], &[])),
        bytes(1, node("Gather", &["embed", "input_ids"], &["x"], &[])),
        bytes(1, node("SimplifiedLayerNormalization", &["x", "gain"], &["n"], &[])),
        linear("n", "qkv", 24),
        microsoft(node("GroupQueryAttention", &qkv, &["a", "k", "v"], &heads)),
        linear("a", "o", 8),
        microsoft(node(skip, &["x", "o.y", "gain"], &["m", "", "", "r"], &[])),
        linear("m", "gate", 8),
        linear("m", "up", 8),
        bytes(1, node("Sigmoid", &["gate.y"], &["g"], &[])),
        bytes(1, node("Mul", &["gate.y", "g"], &["silu"], &[])),
        bytes(1, node("Mul", &["silu", "up.y"], &["h"], &[])),
        linear("h", "down", 8),
        microsoft(node(skip, &["r", "down.y", "gain"], &["f"], &[])),
        linear("f", "head", 2),
        bytes(1, node("Cast", &["head.y"], &["logits"], &[attribute("to", 1)])),
        bytes(12, bytes(1, "logits")),
    ]
    .concat()
}

/// A node of Microsoft's domain.
fn microsoft(node: Vec<u8>) -> Vec<u8> {
    bytes(1, [node, bytes(7, "com.microsoft")].concat())
}
