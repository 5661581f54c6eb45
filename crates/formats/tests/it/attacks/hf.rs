//! Hugging Face folders that must be refused.

use super::Attack;
use crate::build::{arrays, config, f32s, llama_arrays, safetensors};
use tangor_formats::ErrorKind::{
    self, Ambiguous, Limit, Malformed, Missing, Truncated, Unsupported,
};

struct List(Vec<Attack>);

impl List {
    fn add(
        &mut self,
        class: &'static str,
        name: impl Into<String>,
        files: Vec<(&str, Vec<u8>)>,
        kind: ErrorKind,
    ) {
        let files = files.into_iter().map(|(name, bytes)| (name.to_owned(), bytes)).collect();
        self.0.push(Attack { class, name: format!("hf: {}", name.into()), files, kind });
    }

    /// A good configuration with these weights.
    fn weights(
        &mut self,
        class: &'static str,
        name: impl Into<String>,
        bytes: Vec<u8>,
        kind: ErrorKind,
    ) {
        let files = vec![("config.json", config("")), ("model.safetensors", bytes)];
        self.add(class, name, files, kind);
    }

    /// Good weights with this header, of 8 bytes of data.
    fn header(&mut self, class: &'static str, header: &str, kind: ErrorKind) {
        let name = format!("header {header}").chars().take(120).collect::<String>();
        self.weights(class, name, safetensors(header, &[0; 8]), kind);
    }

    /// Good weights with this configuration.
    fn config(&mut self, class: &'static str, changes: &str, kind: ErrorKind) {
        self.raw_config(class, config(changes), kind);
    }

    fn raw_config(&mut self, class: &'static str, config: Vec<u8>, kind: ErrorKind) {
        let name = format!("config {:.100}", String::from_utf8_lossy(&config));
        let files = vec![("config.json", config), ("model.safetensors", llama_arrays())];
        self.add(class, name, files, kind);
    }

    fn index(&mut self, class: &'static str, index: &str, kind: ErrorKind) {
        let name = format!("index {index}").chars().take(120).collect::<String>();
        let files = vec![
            ("config.json", config("")),
            ("model.safetensors.index.json", index.as_bytes().to_vec()),
            ("a.safetensors", llama_arrays()),
        ];
        self.add(class, name, files, kind);
    }
}

pub(crate) fn attacks() -> Vec<Attack> {
    let mut list = List(Vec::new());
    heads_and_tails(&mut list);
    counts(&mut list);
    wraps(&mut list);
    arrangement(&mut list);
    types(&mut list);
    values(&mut list);
    json(&mut list);
    safetensors_only(&mut list);
    indexes(&mut list);
    quantised(&mut list);
    folders(&mut list);
    list.0
}

fn heads_and_tails(list: &mut List) {
    let good = llama_arrays();
    list.weights("F01", "empty", vec![], Truncated);
    list.weights("F01", "one byte", vec![9], Truncated);
    list.weights("F01", "a header of no bytes", vec![0; 8], Malformed);
    list.weights("F01", "a header length and no header", good[..8].to_vec(), Truncated);
    list.weights("F01", "half a header", good[..40].to_vec(), Truncated);
    list.weights("F01", "no data", good[..good.len() - 512].to_vec(), Truncated);
    list.weights("F01", "one byte short", good[..good.len() - 1].to_vec(), Truncated);
    list.weights("F01", "one byte more", [good, vec![0]].concat(), Malformed);
    list.weights("F01", "another format", b"PK\x03\x04 not a model at all".to_vec(), Limit);
}

fn counts(list: &mut List) {
    for len in [(64u64 << 20) + 1, 1 << 31, (1 << 32) - 1, 1 << 63, u64::MAX] {
        let bytes = [&len.to_le_bytes()[..], b"{}"].concat();
        list.weights("F02", format!("a header of {len} bytes"), bytes, Limit);
    }
    let many: Vec<String> = (0..65_537)
        .map(|i| format!("\"{i}\":{{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0]}}"))
        .collect();
    let many = safetensors(&format!("{{{}}}", many.join(",")), &[]);
    list.weights("F02", "65537 tensors", many, Limit);
    let entry =
        |shape: &str| format!(r#"{{"a":{{"dtype":"U8","shape":{shape},"data_offsets":[0,8]}}}}"#);
    list.header("F02", &entry("[8,1,1,1,1,1,1,1,1]"), Limit);
    list.header("F02", &entry(&format!("[8{}]", ",1".repeat(64))), Malformed);
    list.header("F02", &entry(&format!("[8{}]", ",1".repeat(100_000))), Malformed);
}

fn wraps(list: &mut List) {
    let entry = |dtype: &str, shape: &str, offsets: &str| {
        format!(r#"{{"a":{{"dtype":"{dtype}","shape":{shape},"data_offsets":{offsets}}}}}"#)
    };
    for (dtype, shape) in [
        ("U8", "[4294967296,4294967296]"),
        ("F64", "[2305843009213693953]"),
        ("U8", "[18446744073709551615,8]"),
        ("F32", "[4611686018427387904,1]"),
    ] {
        list.header("F03", &entry(dtype, shape, "[0,8]"), Malformed);
    }
    let max = u64::MAX;
    for offsets in [format!("[{max},{max}]"), "[8,0]".into(), format!("[{max},8]")] {
        list.header("F03", &entry("U8", "[8]", &offsets), Malformed);
    }
    list.header("F03", &entry("U8", "[8]", &format!("[{},{}]", max - 8, max)), Truncated);
    list.header("F03", &entry("U8", "[1152921504606846976]", "[0,1152921504606846976]"), Truncated);
    list.header("F03", &entry("U8", "[18446744073709551616]", "[0,8]"), Malformed);
    list.header("F03", &entry("U8", "[-8]", "[0,8]"), Malformed);
    list.header("F03", &entry("U8", "[8.0]", "[0,8]"), Malformed);
}

fn arrangement(list: &mut List) {
    let two = |a: (u8, u8), b: (u8, u8)| {
        let entry = |(start, end): (u8, u8)| {
            let len = end - start;
            format!(r#"{{"dtype":"U8","shape":[{len}],"data_offsets":[{start},{end}]}}"#)
        };
        format!(r#"{{"a":{},"b":{}}}"#, entry(a), entry(b))
    };
    list.header("F04", &two((0, 5), (4, 8)), Malformed);
    list.header("F04", &two((0, 8), (0, 8)), Malformed);
    list.header("F04", &two((0, 8), (2, 4)), Malformed);
    list.header("F04", &two((0, 3), (4, 8)), Malformed);
    list.header("F04", &two((1, 4), (4, 8)), Malformed);
    list.header("F04", &two((0, 4), (4, 7)), Malformed);
    list.header("F04", &two((0, 4), (4, 9)), Truncated);
    list.header("F04", "{}", Malformed);
    let twice = two((0, 4), (4, 8)).replace("\"b\"", "\"a\"");
    list.header("F04", &twice, Malformed);
    let empty = arrays(&[
        ("model.embed_tokens.weight", "F32", &[4, 32], f32s(&[0.5; 128])),
        ("a", "F32", &[0, 4], vec![]),
    ]);
    list.weights("F04", "a tensor without rows", empty, Malformed);
}

fn types(list: &mut List) {
    for dtype in ["F4", "Q4_0", "f32", "", "F32 "] {
        let header = format!(r#"{{"a":{{"dtype":"{dtype}","shape":[8],"data_offsets":[0,8]}}}}"#);
        list.header("F05", &header, Malformed);
    }
    for dtype in ["F64", "I64", "U64", "C64"] {
        let header = format!(r#"{{"a":{{"dtype":"{dtype}","shape":[1],"data_offsets":[0,8]}}}}"#);
        list.header("F05", &header, Unsupported);
    }
    list.header(
        "F05",
        r#"{"a":{"dtype":"F8_E4M3","shape":[8],"data_offsets":[0,8]}}"#,
        Unsupported,
    );
    list.header("F05", r#"{"a":{"dtype":"F32","shape":[3],"data_offsets":[0,8]}}"#, Malformed);
    list.header("F05", r#"{"a":{"dtype":"F32","shape":[2]}}"#, Malformed);
    list.header("F05", r#"{"a":{"shape":[2],"data_offsets":[0,8]}}"#, Malformed);
    list.header("F05", r#"{"a":{"dtype":"F32","data_offsets":[0,8]}}"#, Malformed);
    list.header(
        "F05",
        r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8],"x":0}}"#,
        Malformed,
    );
    list.header("F05", r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8,8]}}"#, Malformed);
    list.header("F05", r#"{"a":[]}"#, Malformed);
}

fn values(list: &mut List) {
    for changes in [
        r#""num_attention_heads":0,"#,
        r#""num_key_value_heads":0,"#,
        r#""num_key_value_heads":3,"#,
        r#""num_key_value_heads":8,"#,
        r#""num_hidden_layers":0,"#,
        r#""num_hidden_layers":-1,"#,
        r#""num_hidden_layers":1.5,"#,
        r#""num_hidden_layers":"1","#,
        r#""hidden_size":0,"#,
        r#""hidden_size":4611686018427387904,"#,
        r#""head_dim":0,"#,
        r#""head_dim":7,"#,
        r#""vocab_size":5,"#,
        r#""vocab_size":0,"#,
        r#""rope_theta":0,"#,
        r#""rope_theta":-1,"#,
        r#""rope_theta":1e300,"#,
        r#""rope_theta":NaN,"#,
        r#""rope_theta":Infinity,"#,
        r#""rope_theta":1e400,"#,
        r#""rope_theta":"10000","#,
        r#""rms_norm_eps":0,"#,
        r#""rms_norm_eps":-1e-5,"#,
        r#""partial_rotary_factor":0,"#,
        r#""partial_rotary_factor":1.5,"#,
        r#""sliding_window":0,"#,
        r#""max_position_embeddings":0,"#,
        r#""eos_token_id":-1,"#,
        r#""eos_token_id":[1,"a"],"#,
        r#""rope_scaling":{"rope_type":"linear","factor":0},"#,
        r#""rope_scaling":{"rope_type":"llama3","factor":-8.0},"#,
        r#""rope_scaling":{"type":"longrope","short_factor":[1,0]},"#,
        r#""rope_scaling":{"type":"longrope","long_factor":"x"},"#,
        r#""rope_scaling":[],"#,
        r#""tie_word_embeddings":1,"#,
        r#""architectures":"LlamaForCausalLM","#,
    ] {
        list.config("F06", changes, Malformed);
    }
    for changes in [r#""num_hidden_layers":1000000,"#, r#""vocab_size":3000000,"#] {
        list.config("F06", changes, Limit);
    }
    for missing in ["hidden_size", "num_attention_heads", "vocab_size", "intermediate_size"] {
        list.config("F06", &format!("\"{missing}\":null,"), Missing);
    }
    for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut elements = [0.5; 128];
        elements[77] = value;
        let weights = arrays(&[("model.embed_tokens.weight", "F32", &[4, 32], f32s(&elements))]);
        list.weights("F06", format!("an element that is {value}"), weights, Malformed);
    }
}

fn json(list: &mut List) {
    let deep = [&b"{\"a\":"[..], &b"[".repeat(100_000)].concat();
    list.raw_config("F07", deep.clone(), Malformed);
    list.weights(
        "F07",
        "a deep header",
        safetensors(str::from_utf8(&deep).unwrap(), &[]),
        Malformed,
    );
    list.raw_config("F07", b" ".repeat((8 << 20) + 1), Limit);
    list.raw_config("F07", [b"[", &b"0,".repeat(200_000)[..], b"0]"].concat(), Limit);
    list.raw_config("F07", config(r#""x":1,"x":2,"#), Malformed);
    list.raw_config("F07", config(r#""x":"\ud800","#), Malformed);
    list.raw_config("F07", [&b"\xef\xbb\xbf"[..], &config("")].concat(), Malformed);
    list.raw_config("F07", [&config("")[..], b"\0"].concat(), Malformed);
    list.raw_config("F07", config("\"x\":\"\0\","), Malformed);
    list.raw_config("F07", b"\xff".to_vec(), Malformed);
    list.raw_config("F07", vec![], Malformed);
    list.raw_config("F07", b"[]".to_vec(), Malformed);
    for file in ["tokenizer_config.json", "generation_config.json", "special_tokens_map.json"] {
        let files = vec![
            ("config.json", config("")),
            ("model.safetensors", llama_arrays()),
            (file, b"{\"a\":1,\"a\":1}".to_vec()),
        ];
        list.add("F07", format!("{file} with a key twice"), files, Malformed);
    }
}

fn safetensors_only(list: &mut List) {
    let entry = r#""a":{"dtype":"U8","shape":[8],"data_offsets":[0,8]}"#;
    for header in [
        format!(" {{{entry}}}"),
        format!("[{{{entry}}}]"),
        format!("\0{{{entry}}}"),
        format!("{{{entry}}}x"),
        format!("{{{entry},}}"),
        format!(r#"{{"__metadata__":{{"format":1}},{entry}}}"#),
        format!(r#"{{"__metadata__":[],{entry}}}"#),
        format!(r#"{{"__metadata__":null,{entry}}}"#),
        format!(r#"{{"__metadata__":{{}},"__metadata__":{{}},{entry}}}"#),
        r#"{"\ud800":{"dtype":"U8","shape":[8],"data_offsets":[0,8]}}"#.to_owned(),
    ] {
        list.header("F09", &header, Malformed);
    }
    let len = (100u64 << 20) + 1;
    list.weights("F09", "a header of 100 MB and a byte", len.to_le_bytes().to_vec(), Limit);
    let polyglot = [llama_arrays(), b"PK\x03\x04 a second file".to_vec()].concat();
    list.weights("F09", "another file behind the tensors", polyglot, Malformed);
    let inside = safetensors(
        r#"{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},
            "b":{"dtype":"U8","shape":[2],"data_offsets":[6,8]}}"#,
        b"aaPK\x03\x04bb",
    );
    list.weights("F09", "another file between the tensors", inside, Malformed);
}

fn indexes(list: &mut List) {
    let map = |file: &str| format!(r#"{{"weight_map":{{"model.embed_tokens.weight":"{file}"}}}}"#);
    for file in [
        "../a.safetensors",
        "/etc/passwd",
        "x/a.safetensors",
        "a\\\\b",
        "C:a",
        "..",
        ".",
        "",
        "a:b",
        "nul",
        "COM1.safetensors",
        "a.",
        "a\\u0000b",
    ] {
        list.index("F08", &map(file), Malformed);
    }
    list.index("F01", "", Malformed);
    list.index("F01", "{}", Malformed);
    list.index("F01", r#"{"weight_map":{}}"#, Malformed);
    list.index("F01", &map("b.safetensors"), Missing);
    list.index("F04", r#"{"weight_map":{"x":"a.safetensors"}}"#, Malformed);
    list.index("F04", r#"{"weight_map":{"x":"a"},"weight_map":{"x":"a"}}"#, Malformed);
    list.index("F05", r#"{"weight_map":{"x":1}}"#, Malformed);
    list.index("F05", r#"{"weight_map":[]}"#, Malformed);
    let files: Vec<String> = (0..1025).map(|i| format!("\"{i}\":\"{i}\"")).collect();
    list.index("F02", &format!("{{\"weight_map\":{{{}}}}}", files.join(",")), Limit);
    let tensors: Vec<String> = (0..65_537).map(|i| format!("\"{i}\":\"a\"")).collect();
    list.index("F02", &format!("{{\"weight_map\":{{{}}}}}", tensors.join(",")), Limit);
    let twice = vec![
        ("config.json", config("")),
        (
            "model.safetensors.index.json",
            br#"{"weight_map":{"model.embed_tokens.weight":"a.safetensors","x":"b.safetensors"}}"#
                .to_vec(),
        ),
        ("a.safetensors", llama_arrays()),
        ("b.safetensors", llama_arrays()),
    ];
    list.add("F04", "a tensor in two files", twice, Malformed);
}

/// Linears of 32 inputs and 8 outputs, in groups of 16.
fn quantised(list: &mut List) {
    const AWQ: &str = r#""quantization_config":{"quant_method":"awq","bits":4,
        "group_size":16,"version":"gemm"},"#;
    const GPTQ: &str = r#""quantization_config":{"quant_method":"gptq","bits":4,"group_size":16},"#;
    type Part<'a> = (&'a str, &'a str, &'a [usize], Vec<u8>);
    let scales = || vec![0x2c; 32];
    let codes: Part<'_> = ("l.qweight", "I32", &[32, 1], vec![0x93; 128]);
    let good_scales: Part<'_> = ("l.scales", "F16", &[2, 8], scales());
    let zeros: Part<'_> = ("l.qzeros", "I32", &[2, 1], vec![0x77; 8]);
    let mut add = |name: &str, quantization: &str, parts: &[Part<'_>], kind| {
        let files =
            vec![("config.json", config(quantization)), ("model.safetensors", arrays(parts))];
        list.add("F05", name, files, kind);
    };
    add("scales are missing", AWQ, &[codes.clone(), zeros.clone()], Missing);
    add("zero points are missing", AWQ, &[codes.clone(), good_scales.clone()], Missing);
    let cases: [(&str, Part<'_>, ErrorKind); 9] = [
        ("scales of one group", ("l.scales", "F16", &[1, 8], vec![0x2c; 16]), Malformed),
        ("scales of rank 1", ("l.scales", "F16", &[16], scales()), Malformed),
        ("scales of another width", ("l.scales", "F16", &[2, 16], vec![0x2c; 64]), Malformed),
        ("integer scales", ("l.scales", "I16", &[2, 8], scales()), Unsupported),
        ("scales that are NaN", ("l.scales", "F16", &[2, 8], vec![0x7e; 32]), Malformed),
        ("scales without columns", ("l.scales", "F16", &[2, 0], vec![]), Malformed),
        ("zero points of one group", ("l.qzeros", "I32", &[1, 1], vec![0; 4]), Malformed),
        ("zero points of another width", ("l.qzeros", "I32", &[2, 2], vec![0; 16]), Malformed),
        ("zero points of another type", ("l.qzeros", "U8", &[2, 4], vec![0; 8]), Unsupported),
    ];
    for (name, part, kind) in cases {
        let is_zeros = part.0 == "l.qzeros";
        let other = if is_zeros { good_scales.clone() } else { zeros.clone() };
        add(name, AWQ, &[codes.clone(), other, part], kind);
    }
    let wide: Part<'_> = ("l.qweight", "I32", &[32, 2], vec![0; 256]);
    add("codes of another width", AWQ, &[wide, good_scales.clone(), zeros.clone()], Malformed);
    let flat: Part<'_> = ("l.qweight", "I32", &[32], vec![0; 128]);
    add("codes of rank 1", AWQ, &[flat, good_scales.clone(), zeros.clone()], Malformed);
    let gptq_codes: Part<'_> = ("l.qweight", "I32", &[4, 8], vec![0x93; 128]);
    for (name, order, kind) in [
        ("act-order", (0..32).map(|i| i % 2).collect::<Vec<i32>>(), Unsupported),
        ("groups out of range", (0..32).map(|i| i / 16 + 5).collect(), Unsupported),
        ("negative groups", vec![-1; 32], Unsupported),
        ("an order for too few inputs", (0..16).map(|i| i / 16).collect(), Malformed),
    ] {
        let bytes = order.iter().flat_map(|v| v.to_le_bytes()).collect();
        let shape = [order.len()];
        let index: Part<'_> = ("l.g_idx", "I32", &shape, bytes);
        add(name, GPTQ, &[gptq_codes.clone(), good_scales.clone(), zeros.clone(), index], kind);
    }
    for (settings, kind) in [
        (r#""quant_method":"awq","group_size":0"#, Malformed),
        (r#""quant_method":"awq","group_size":7"#, Malformed),
        (r#""quant_method":"awq","group_size":-2"#, Malformed),
        (r#""quant_method":"awq","group_size":1e18"#, Malformed),
        (r#""quant_method":"awq""#, Malformed),
        (r#""quant_method":"awq","bits":3,"group_size":32"#, Unsupported),
        (r#""quant_method":"awq","group_size":32,"version":"gemv""#, Unsupported),
        (r#""quant_method":"gptq","bits":2,"group_size":32"#, Unsupported),
        (r#""quant_method":"gptq","group_size":32,"checkpoint_format":"marlin""#, Unsupported),
        (r#""quant_method":"bitsandbytes""#, Unsupported),
        (r#""bits":4"#, Unsupported),
        (r#""quant_method":"quark""#, Missing),
        (
            r#""quant_method":"quark","global_quant_config":{"weight":{"dtype":"fp8_e4m3"}}"#,
            Unsupported,
        ),
        (
            r#""quant_method":"quark","global_quant_config":
                {"weight":{"dtype":"uint4","qscheme":"per_channel"}}"#,
            Unsupported,
        ),
        (
            r#""quant_method":"quark","global_quant_config":
                {"weight":{"dtype":"uint4"}},"export":{"pack_method":"x"}"#,
            Unsupported,
        ),
    ] {
        list.config("F05", &format!("\"quantization_config\":{{{settings}}},"), kind);
    }
}

fn folders(list: &mut List) {
    list.add("F01", "no files", vec![], Missing);
    list.add("F01", "only a configuration", vec![("config.json", config(""))], Missing);
    list.add("F01", "only weights", vec![("model.safetensors", llama_arrays())], Missing);
    let shards = vec![
        ("config.json", config("")),
        ("a.safetensors", llama_arrays()),
        ("b.safetensors", llama_arrays()),
    ];
    list.add("F01", "several files and no index", shards, Missing);
    let both = vec![
        ("config.json", config("")),
        ("model.safetensors", llama_arrays()),
        ("m.gguf", vec![]),
    ];
    list.add("F01", "two kinds of model", both, Ambiguous);
    let two = vec![("a.gguf", vec![]), ("b.gguf", vec![])];
    list.add("F01", "two GGUF files", two, Ambiguous);
}
