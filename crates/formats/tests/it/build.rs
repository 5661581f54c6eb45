//! Builders of small checkpoints, right by default and wrong where a test says so.

use std::fmt::Write;

/// Types of GGUF metadata values.
pub(crate) const U32: u32 = 4;
pub(crate) const I32: u32 = 5;
pub(crate) const F32: u32 = 6;
pub(crate) const BOOL: u32 = 7;
pub(crate) const STR: u32 = 8;
pub(crate) const ARRAY: u32 = 9;
pub(crate) const U64: u32 = 10;

/// A value as stored: its type and its bytes.
pub(crate) type Value = (u32, Vec<u8>);

pub(crate) fn u32v(value: u32) -> Value {
    (U32, value.to_le_bytes().to_vec())
}

pub(crate) fn f32v(value: f32) -> Value {
    (F32, value.to_le_bytes().to_vec())
}

pub(crate) fn strv(text: &str) -> Value {
    (STR, string(text.as_bytes()))
}

/// `count` elements of a type, whatever `bytes` holds.
pub(crate) fn array(element: u32, count: u64, bytes: &[u8]) -> Value {
    (ARRAY, [&element.to_le_bytes()[..], &count.to_le_bytes(), bytes].concat())
}

pub(crate) fn strings(texts: &[&str]) -> Value {
    let bytes: Vec<u8> = texts.iter().flat_map(|text| string(text.as_bytes())).collect();
    array(STR, texts.len() as u64, &bytes)
}

/// Text with its length before it.
pub(crate) fn string(text: &[u8]) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes()[..], text].concat()
}

/// A tensor of a GGUF file; `None` for what follows from the rest.
#[derive(Clone, Debug)]
pub(crate) struct GgufTensor {
    pub(crate) name: String,
    pub(crate) dims: Vec<u64>,
    pub(crate) rank: Option<u32>,
    pub(crate) kind: u32,
    pub(crate) offset: Option<u64>,
    pub(crate) data: Vec<u8>,
}

impl GgufTensor {
    pub(crate) fn new(name: &str, kind: u32, dims: &[u64], data: Vec<u8>) -> Self {
        Self { name: name.into(), dims: dims.into(), rank: None, kind, offset: None, data }
    }
}

/// A GGUF file; `None` for what follows from the rest.
#[derive(Clone, Debug)]
pub(crate) struct GgufFile {
    pub(crate) magic: [u8; 4],
    pub(crate) version: u32,
    pub(crate) tensor_count: Option<u64>,
    pub(crate) entry_count: Option<u64>,
    pub(crate) entries: Vec<(String, Value)>,
    pub(crate) tensors: Vec<GgufTensor>,
    pub(crate) tail: Vec<u8>,
}

impl GgufFile {
    /// A tiny llama: a `Q4_0` embedding of four tokens and a norm.
    pub(crate) fn llama() -> Self {
        let entries = [
            ("general.architecture", strv("llama")),
            ("llama.block_count", u32v(1)),
            ("llama.context_length", u32v(128)),
            ("llama.embedding_length", u32v(32)),
            ("llama.feed_forward_length", u32v(64)),
            ("llama.attention.head_count", u32v(4)),
            ("llama.attention.head_count_kv", u32v(2)),
            ("llama.attention.layer_norm_rms_epsilon", f32v(1e-5)),
            ("llama.rope.freq_base", f32v(10_000.0)),
            ("tokenizer.ggml.tokens", strings(&["<s>", "a", "bé", ""])),
            ("tokenizer.ggml.scores", array(F32, 4, &[0; 16])),
            ("tokenizer.ggml.token_type", array(I32, 4, &[1, 0, 0, 0].repeat(4))),
            ("tokenizer.ggml.add_bos_token", (BOOL, vec![1])),
        ];
        let tensors = vec![
            GgufTensor::new("token_embd.weight", 2, &[32, 4], q4_0(4, 0x2c00)),
            GgufTensor::new("output_norm.weight", 0, &[32], f32s(&[0.5; 32])),
        ];
        Self {
            magic: *b"GGUF",
            version: 3,
            tensor_count: None,
            entry_count: None,
            entries: entries.map(|(key, value)| (key.to_owned(), value)).into(),
            tensors,
            tail: Vec::new(),
        }
    }

    /// The same with one entry replaced or added.
    #[must_use]
    pub(crate) fn with(mut self, key: &str, value: Value) -> Self {
        match self.entries.iter_mut().find(|(known, _)| known == key) {
            Some((_, known)) => *known = value,
            None => self.entries.push((key.to_owned(), value)),
        }
        self
    }

    /// The same, changed at will.
    #[must_use]
    pub(crate) fn but(mut self, change: impl FnOnce(&mut Self)) -> Self {
        change(&mut self);
        self
    }

    /// Everything before the data, without the padding.
    pub(crate) fn header(&self) -> Vec<u8> {
        let mut out = self.magic.to_vec();
        out.extend(self.version.to_le_bytes());
        out.extend(self.tensor_count.unwrap_or(self.tensors.len() as u64).to_le_bytes());
        out.extend(self.entry_count.unwrap_or(self.entries.len() as u64).to_le_bytes());
        for (key, (kind, value)) in &self.entries {
            out.extend(string(key.as_bytes()));
            out.extend(kind.to_le_bytes());
            out.extend(value);
        }
        let mut offset = 0;
        for tensor in &self.tensors {
            out.extend(string(tensor.name.as_bytes()));
            out.extend(tensor.rank.unwrap_or(tensor.dims.len() as u32).to_le_bytes());
            out.extend(tensor.dims.iter().flat_map(|dim| dim.to_le_bytes()));
            out.extend(tensor.kind.to_le_bytes());
            out.extend(tensor.offset.unwrap_or(offset).to_le_bytes());
            offset += (tensor.data.len() as u64).next_multiple_of(32);
        }
        out
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut out = self.header();
        for tensor in &self.tensors {
            out.resize(out.len().next_multiple_of(32), 0);
            out.extend(&tensor.data);
        }
        out.resize(out.len().next_multiple_of(32), 0);
        out.extend(&self.tail);
        out
    }
}

/// `rows` blocks of `Q4_0` with the scale whose `f16` bits are `scale`.
pub(crate) fn q4_0(rows: usize, scale: u16) -> Vec<u8> {
    [&scale.to_le_bytes()[..], &[0x93; 16]].concat().repeat(rows)
}

pub(crate) fn f32s(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

/// A safetensors file of a header and data.
pub(crate) fn safetensors(header: &str, data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), data].concat()
}

/// A safetensors file of arrays that follow each other: name, type, shape, data.
pub(crate) fn arrays(arrays: &[(&str, &str, &[usize], Vec<u8>)]) -> Vec<u8> {
    let mut header = String::from("{\"__metadata__\":{\"format\":\"pt\"}");
    let mut data = Vec::new();
    for (name, element, shape, bytes) in arrays {
        let (start, end) = (data.len(), data.len() + bytes.len());
        write!(
            header,
            ",\"{name}\":{{\"dtype\":\"{element}\",\"shape\":{shape:?},\
             \"data_offsets\":[{start},{end}]}}"
        )
        .unwrap();
        data.extend(bytes);
    }
    header.push('}');
    safetensors(&header, &data)
}

/// The configuration of a tiny llama, with `changes` in the form `"key":value,`.
pub(crate) fn config(changes: &str) -> Vec<u8> {
    let mut fields = vec![
        ("model_type", "\"llama\""),
        ("architectures", "[\"LlamaForCausalLM\"]"),
        ("hidden_size", "32"),
        ("intermediate_size", "64"),
        ("num_hidden_layers", "1"),
        ("num_attention_heads", "4"),
        ("num_key_value_heads", "2"),
        ("vocab_size", "4"),
        ("max_position_embeddings", "128"),
        ("rms_norm_eps", "1e-05"),
        ("rope_theta", "10000.0"),
        ("tie_word_embeddings", "true"),
        ("eos_token_id", "[2, 3]"),
    ];
    fields.retain(|(key, _)| !changes.contains(&format!("\"{key}\":")));
    let fields: Vec<String> =
        fields.iter().map(|(key, value)| format!("\"{key}\":{value}")).collect();
    format!("{{{changes}{}}}", fields.join(",")).into_bytes()
}

/// The weights of a tiny llama: only the embedding.
pub(crate) fn llama_arrays() -> Vec<u8> {
    arrays(&[("model.embed_tokens.weight", "F32", &[4, 32], f32s(&[0.5; 128]))])
}
