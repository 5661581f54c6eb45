//! ONNX Runtime GenAI folders that must be refused.

use super::Attack;
use crate::proto::{CONFIG, bytes, external, int, model, node, small, tensor, varint};
use tangor_formats::ErrorKind::{self, Limit, Malformed, Missing, Truncated, Unsupported};

struct List(Vec<Attack>);

impl List {
    fn add(
        &mut self,
        class: &'static str,
        name: &str,
        config: &str,
        model: Vec<u8>,
        kind: ErrorKind,
    ) {
        let files = [
            ("genai_config.json", config.as_bytes().to_vec()),
            ("model.onnx", model),
            ("w.data", vec![0; 12]),
        ];
        let files = files.map(|(name, bytes)| (name.to_owned(), bytes)).into();
        self.0.push(Attack { class, name: format!("oga: {name}"), files, kind });
    }

    /// A good configuration with this message.
    fn message(&mut self, class: &'static str, name: &str, message: Vec<u8>, kind: ErrorKind) {
        self.add(class, name, CONFIG, message, kind);
    }

    /// A good configuration with this graph.
    fn graph(&mut self, class: &'static str, name: &str, graph: &[u8], kind: ErrorKind) {
        self.message(class, name, model(graph), kind);
    }

    /// A graph with this tensor.
    fn tensor(&mut self, class: &'static str, name: &str, tensor: &[u8], kind: ErrorKind) {
        self.graph(class, name, &bytes(5, tensor), kind);
    }

    /// A tensor of eight bytes at this place.
    fn external(&mut self, name: &str, entries: &[(&str, &str)], kind: ErrorKind) {
        self.tensor("F08", name, &tensor("w", 1, &[2], &external(entries)), kind);
    }

    /// A good graph with a configuration that has `to` for `from`.
    fn config(&mut self, class: &'static str, from: &str, to: &str, kind: ErrorKind) {
        assert!(CONFIG.contains(from), "{from}");
        let name = format!("config {to:.80}");
        self.add(class, &name, &CONFIG.replace(from, to), model(&small()), kind);
    }
}

pub(crate) fn attacks() -> Vec<Attack> {
    let mut list = List(Vec::new());
    messages(&mut list);
    tensors(&mut list);
    places(&mut list);
    graphs(&mut list);
    json(&mut list);
    configs(&mut list);
    list.0
}

fn messages(list: &mut List) {
    list.message("F01", "empty file", vec![], Malformed);
    list.message("F01", "one byte", vec![0x3a], Malformed);
    list.message("F01", "not protobuf", b"\x80PK\x03\x04 not a model".to_vec(), Malformed);
    list.message("F01", "a graph cut short", model(&small())[..40].to_vec(), Malformed);
    list.message("F01", "groups", [vec![0x3b], model(&small())].concat(), Malformed);
    list.message("F01", "two graphs", [model(&small()), model(&small())].concat(), Malformed);
    list.message("F02", "a field of 2^63 bytes", [vec![0x3a], varint(1 << 63)].concat(), Malformed);
    list.message("F02", "a field of 2^31 bytes", [vec![0x3a], varint(1 << 31)].concat(), Malformed);
    list.message("F02", "an endless number", vec![0xff; 64], Malformed);
    let name = [bytes(4, [0xff, 0xfe]), bytes(2, "y")].concat();
    list.graph("F01", "names that are not UTF-8", &bytes(1, name), Malformed);
}

fn tensors(list: &mut List) {
    let raw = |dims: &[i64], len: usize| tensor("w", 1, dims, &bytes(9, vec![0; len]));
    list.tensor("F02", "a dimension of -1", &raw(&[-1], 4), Malformed);
    list.tensor("F02", "a dimension of 2^62", &raw(&[1 << 62], 4), Malformed);
    list.tensor("F02", "nine dimensions", &raw(&[1; 9], 4), Limit);
    list.tensor("F03", "dimensions that wrap to 0", &raw(&[1 << 32, 1 << 32], 0), Malformed);
    list.tensor("F03", "dimensions that wrap to 4", &raw(&[1 << 62, 4, 1], 4), Malformed);
    list.tensor("F03", "a wrap behind a 0", &raw(&[0, 1 << 40, 1 << 40], 0), Malformed);
    list.tensor("F04", "too few bytes", &raw(&[2], 7), Malformed);
    list.tensor("F04", "too many bytes", &raw(&[2], 9), Malformed);
    list.tensor("F04", "no data", &tensor("w", 1, &[2], &[]), Malformed);
    list.tensor("F04", "no name", &tensor("", 1, &[1], &bytes(9, [0; 4])), Malformed);
    let twice = bytes(5, raw(&[1], 4)).repeat(2);
    list.graph("F04", "one initializer twice", &twice, Malformed);
    let pieces = [bytes(4, [0; 4]), bytes(4, [0; 4])].concat();
    list.tensor("F05", "floats in pieces", &tensor("w", 1, &[2], &pieces), Malformed);
    let segment = bytes(3, int(1, 0));
    list.tensor("F05", "segments", &tensor("w", 1, &[1], &segment), Malformed);
    list.graph("F05", "sparse initializers", &bytes(15, []), Malformed);
    let endless = bytes(7, [0x80; 9]);
    list.tensor("F05", "packed numbers without an end", &tensor("w", 7, &[1], &endless), Malformed);
}

fn places(list: &mut List) {
    for location in [
        "../w.data",
        "../../etc/passwd",
        "/etc/passwd",
        "/dev/zero",
        "C:\\w.data",
        "C:w.data",
        "\\\\server\\share\\w.data",
        "\\\\?\\C:\\w.data",
        "w.data:stream",
        "sub/w.data",
        "NUL",
        "w.data\0",
        "..",
        "",
    ] {
        list.external(&format!("location {location:?}"), &[("location", location)], Malformed);
    }
    list.external("no location", &[("offset", "0")], Malformed);
    list.external("a file that is not there", &[("location", "x.data")], Missing);
    for offset in ["-1", "18446744073709551616", "0x10", "1e3", ""] {
        let entries = [("location", "w.data"), ("offset", offset)];
        list.external(&format!("offset {offset:?}"), &entries, Malformed);
    }
    for offset in ["5", "12", "18446744073709551615", "9223372036854775807"] {
        let entries = [("location", "w.data"), ("offset", offset)];
        list.external(&format!("offset {offset}"), &entries, Truncated);
    }
    for length in ["1152921504606846976", "7", "-8"] {
        let entries = [("location", "w.data"), ("length", length)];
        list.external(&format!("length {length}"), &entries, Malformed);
    }
}

fn graphs(list: &mut List) {
    let nested = |depth: usize| {
        let mut graph = small();
        for _ in 0..depth {
            let branch = [bytes(1, "then_branch"), bytes(6, graph)].concat();
            graph = bytes(1, node("If", &[], &[], &[branch]));
        }
        graph
    };
    list.graph("F08", "subgraphs 9 deep", &nested(9), Limit);
    list.graph("F08", "subgraphs 2000 deep", &nested(2000), Limit);
    list.graph("F08", "a million nodes", &bytes(1, []).repeat(1_000_000), Limit);
    list.graph("F08", "nodes that unfold", &bytes(1, []).repeat(190_000), Limit);
    list.graph("F08", "a node of a million inputs", &bytes(1, bytes(1, []).repeat(1 << 20)), Limit);
    list.graph("F08", "a million outputs", &bytes(12, []).repeat(1 << 20), Limit);
    let attributes = bytes(5, []).repeat(1 << 20);
    list.graph("F08", "a node of a million attributes", &bytes(1, attributes), Limit);
    let numbers = [bytes(1, "v"), bytes(8, vec![0; 4 << 20])].concat();
    list.graph("F08", "numbers that unfold", &bytes(1, bytes(5, numbers)), Limit);
    list.graph("F08", "70000 tensors", &bytes(5, tensor("w", 2, &[0], &[])).repeat(70_000), Limit);
    let input = bytes(11, bytes(1, "x")).repeat(2);
    list.graph("F08", "one input twice", &input, Malformed);
    let value = bytes(1, node("Shape", &["x"], &["y"], &[])).repeat(2);
    list.graph("F08", "one value written twice", &value, Malformed);
    let shadow = [bytes(1, node("Shape", &["x"], &["w"], &[])), small()].concat();
    list.graph("F08", "a node that writes an initializer", &shadow, Malformed);
}

fn json(list: &mut List) {
    let ok = model(&small());
    let deep = "[".repeat(100_000);
    for (name, text, kind) in [
        ("nested 10^5 deep", deep.as_str(), Malformed),
        ("a list", "[]", Malformed),
        ("NUL", "\0", Malformed),
        ("a byte order mark", "\u{feff}{}", Malformed),
        ("a lone surrogate", r#"{"model":"\ud800"}"#, Malformed),
        ("a key twice", r#"{"model":{},"model":{}}"#, Malformed),
        ("nothing", "", Malformed),
    ] {
        list.add("F07", &format!("config: {name}"), text, ok.clone(), kind);
    }
    let spaces = format!("{}{CONFIG}", " ".repeat(9 << 20));
    list.add("F07", "config: nine megabytes of spaces", &spaces, ok, Limit);
}

fn configs(list: &mut List) {
    let file = r#""filename":"model.onnx""#;
    for (from, to, kind) in [
        (file, r#""filename":"../model.onnx""#, Malformed),
        (file, r#""filename":"/model.onnx""#, Malformed),
        (file, r#""filename":"C:\\model.onnx""#, Malformed),
        (file, r#""filename":"a/../../model.onnx""#, Malformed),
        (file, r#""filename":"other.onnx""#, Missing),
        (file, r#""filename":7"#, Malformed),
        (file, r#""hidden_size":1"#, Missing),
        (file, r#""filename":"model.onnx","num_hidden_layers":1000000"#, Limit),
        (file, r#""filename":"model.onnx","num_attention_heads":0"#, Malformed),
        (file, r#""filename":"model.onnx","pipeline":[]"#, Unsupported),
        (file, r#""filename":"model.onnx","session_options":[]"#, Malformed),
        (r#""context_length":8"#, r#""context_length":1000000000"#, Limit),
        (r#""context_length":8"#, r#""context_length":0"#, Malformed),
        (r#""context_length":8"#, r#""context_length":-1"#, Malformed),
        (r#""context_length":8"#, r#""context_length":8.5"#, Malformed),
        (r#""vocab_size":2"#, r#""vocab_size":1e18"#, Malformed),
        (r#""vocab_size":2"#, r#""vocab_size":4294967296"#, Limit),
        (r#""vocab_size":2"#, r#""vocab_size":null"#, Missing),
        (r#""eos_token_id":1"#, r#""eos_token_id":-5"#, Malformed),
        (r#""eos_token_id":1"#, r#""eos_token_id":[1,-1]"#, Malformed),
        (r#""eos_token_id":1"#, r#""eos_token_id":"1""#, Malformed),
        (r#""eos_token_id":1"#, r#""eos_token_id":4294967297"#, Malformed),
        (r#""type":"llama""#, r#""type":["llama"]"#, Malformed),
        (r#""type":"llama""#, r#""type":"llama","tokenizer_dir":"../other""#, Malformed),
        (r#""type":"llama""#, r#""type":"llama","tokenizer_dir":"/etc""#, Malformed),
    ] {
        list.config("F12", from, to, kind);
    }
}
