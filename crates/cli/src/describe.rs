//! What is in a checkpoint, whatever its format: for `show` and `inspect`.

use serde::Serialize;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use tangor_engine::plan::model::formats::gguf::{Elements, Kind, Scalar};
use tangor_engine::plan::model::formats::onnx::Element;
use tangor_engine::plan::model::formats::{Checkpoint, Gguf, HfCheckpoint, OgaCheckpoint};

/// Arrays of metadata up to this length are shown whole.
const SHORT: usize = 16;

/// A stored tensor.
#[derive(Debug, Serialize)]
pub(crate) struct Tensor {
    /// As the file calls it.
    pub(crate) name: String,
    /// Sizes, outermost first.
    pub(crate) shape: Vec<usize>,
    /// Element type or block format.
    #[serde(rename = "type")]
    pub(crate) kind: String,
    /// Bytes in the file.
    pub(crate) bytes: u64,
}

/// The format's name.
pub(crate) fn format(checkpoint: &Checkpoint) -> &'static str {
    match checkpoint {
        Checkpoint::Gguf(_) => "GGUF",
        Checkpoint::Hf(_) => "Hugging Face safetensors",
        Checkpoint::Oga(_) => "ONNX Runtime GenAI",
    }
}

/// The file's own keys and values; long arrays are `{"array_of", "length"}`.
pub(crate) fn metadata(checkpoint: &Checkpoint) -> Map<String, Value> {
    match checkpoint {
        Checkpoint::Gguf(gguf) => {
            let pairs = gguf.metadata().iter();
            pairs.map(|(key, value)| (key.to_owned(), gguf_value(value))).collect()
        }
        Checkpoint::Hf(hf) => object(&hf.config().raw),
        Checkpoint::Oga(oga) => object(&oga.genai.raw),
    }
}

/// Every stored tensor, in the order of the file.
pub(crate) fn tensors(checkpoint: &Checkpoint) -> Vec<Tensor> {
    match checkpoint {
        Checkpoint::Gguf(gguf) => gguf_tensors(gguf),
        Checkpoint::Hf(hf) => hf_tensors(hf),
        Checkpoint::Oga(oga) => oga_tensors(oga),
    }
}

fn gguf_tensors(gguf: &Gguf) -> Vec<Tensor> {
    let tensor = |info: &tangor_engine::plan::model::formats::gguf::TensorInfo| Tensor {
        name: info.name().to_owned(),
        // The file counts from the innermost size.
        shape: info.dims().iter().rev().copied().collect(),
        kind: info.encoding().name().to_owned(),
        bytes: info.byte_len() as u64,
    };
    gguf.tensors().map(tensor).collect()
}

fn hf_tensors(hf: &HfCheckpoint) -> Vec<Tensor> {
    let tensor = |array: &tangor_engine::plan::model::formats::safetensors::ArrayInfo| Tensor {
        name: array.name().to_owned(),
        shape: array.shape().to_vec(),
        kind: format!("{:?}", array.element()),
        bytes: array.byte_len() as u64,
    };
    hf.arrays().arrays().map(tensor).collect()
}

fn oga_tensors(oga: &OgaCheckpoint) -> Vec<Tensor> {
    let tensor = |tensor: &tangor_engine::plan::model::formats::onnx::Tensor| Tensor {
        name: tensor.name.clone(),
        shape: tensor.dims.clone(),
        kind: match tensor.element {
            Element::Float(dtype) => dtype.name().to_uppercase(),
            other => format!("{other:?}").to_uppercase(),
        },
        bytes: tensor.data.len() as u64,
    };
    oga.model.graph.initializers.iter().map(tensor).collect()
}

/// Types of the tensors with the bytes that each takes, most bytes first.
pub(crate) fn kinds(tensors: &[Tensor]) -> Vec<(String, u64)> {
    let mut sums: BTreeMap<&str, u64> = BTreeMap::new();
    for tensor in tensors {
        *sums.entry(&tensor.kind).or_default() += tensor.bytes;
    }
    let mut sums: Vec<(String, u64)> =
        sums.into_iter().map(|(kind, bytes)| (kind.to_owned(), bytes)).collect();
    sums.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
    sums
}

/// The licence that the file states.
pub(crate) fn license(checkpoint: &Checkpoint) -> Option<String> {
    match checkpoint {
        Checkpoint::Gguf(gguf) => {
            let text = |key| gguf.metadata().opt_str(key).ok().flatten().map(str::to_owned);
            text("general.license").or_else(|| text("general.license.name"))
        }
        Checkpoint::Hf(hf) => hf.config().raw.get("license")?.as_str().map(str::to_owned),
        Checkpoint::Oga(_) => None,
    }
}

/// The chat template that the files bring along.
pub(crate) fn template(checkpoint: &Checkpoint) -> Option<String> {
    match checkpoint {
        Checkpoint::Gguf(gguf) => {
            let text = gguf.metadata().opt_str("tokenizer.chat_template").ok().flatten();
            text.map(str::to_owned)
        }
        Checkpoint::Hf(hf) => hf.sidecars().chat_template.clone(),
        Checkpoint::Oga(oga) => oga.sidecars.chat_template.clone(),
    }
}

fn object(value: &Value) -> Map<String, Value> {
    value.as_object().cloned().unwrap_or_default()
}

fn gguf_value(value: &tangor_engine::plan::model::formats::gguf::Value) -> Value {
    match (value.scalar(), value.elements()) {
        (Some(scalar), _) => scalar_value(scalar),
        (None, Some((kind, length))) if length > SHORT || kind == Kind::Array => {
            json!({ "array_of": format!("{kind:?}").to_lowercase(), "length": length })
        }
        _ => elements(value.iter()),
    }
}

fn elements(elements: Elements<'_>) -> Value {
    Value::Array(elements.map(scalar_value).collect())
}

fn scalar_value(scalar: Scalar<'_>) -> Value {
    match scalar {
        // Numbers that JSON readers would round are text.
        Scalar::Int(value) => i64::try_from(value)
            .map(Value::from)
            .or_else(|_| u64::try_from(value).map(Value::from))
            .unwrap_or_else(|_| Value::from(value.to_string())),
        Scalar::Float(value) => {
            serde_json::Number::from_f64(value).map_or(Value::Null, Value::Number)
        }
        Scalar::Bool(value) => Value::from(value),
        Scalar::Str(text) => Value::from(text),
    }
}
