//! The files beside the weights: tokenizer, chat template, generation defaults.

use crate::{FormatError, Limits, Result, Source, json};
use serde_json::Value;
use tangor_tensor::Bytes;

/// What a Hugging Face or ONNX Runtime GenAI folder says about text. Nothing here is interpreted;
/// JSON files that are missing are `Value::Null`.
#[derive(Clone, Debug, Default)]
pub struct Sidecars {
    /// `tokenizer.json`, unparsed.
    pub tokenizer_json: Option<Bytes>,
    /// `tokenizer.model` (SentencePiece), unparsed.
    pub tokenizer_model: Option<Bytes>,
    /// `tokenizer_config.json`.
    pub tokenizer_config: Value,
    /// `generation_config.json`.
    pub generation_config: Value,
    /// `special_tokens_map.json`.
    pub special_tokens_map: Value,
    /// `chat_template.jinja`, or else the (default) `chat_template` of `tokenizer_config.json`.
    pub chat_template: Option<String>,
}

impl Sidecars {
    /// Reads those that are there.
    ///
    /// # Errors
    /// If one is over a limit, is not valid JSON, or is not UTF-8.
    pub fn read(source: &dyn Source, limits: &Limits) -> Result<Self> {
        let json_file = |file: &str| match source.read(file, limits.json_bytes)? {
            Some(bytes) => json::parse(file, &bytes, limits),
            None => Ok(Value::Null),
        };
        let tokenizer_config = json_file("tokenizer_config.json")?;
        Ok(Self {
            tokenizer_json: source.read("tokenizer.json", limits.tokenizer_bytes)?,
            tokenizer_model: source.read("tokenizer.model", limits.tokenizer_bytes)?,
            generation_config: json_file("generation_config.json")?,
            special_tokens_map: json_file("special_tokens_map.json")?,
            chat_template: read_template(source, &tokenizer_config, limits)?,
            tokenizer_config,
        })
    }
}

fn read_template(source: &dyn Source, config: &Value, limits: &Limits) -> Result<Option<String>> {
    const FILE: &str = "chat_template.jinja";
    if let Some(bytes) = source.read(FILE, limits.template_bytes)? {
        return match std::str::from_utf8(&bytes) {
            Ok(text) => Ok(Some(text.to_owned())),
            Err(_) => Err(FormatError::malformed(FILE, "is not UTF-8")),
        };
    }
    // One template, or a list of named ones.
    let template = match config.get("chat_template") {
        Some(Value::String(text)) => Some(text),
        Some(Value::Array(list)) => list
            .iter()
            .find(|entry| entry.get("name").and_then(Value::as_str) == Some("default"))
            .or(list.first())
            .and_then(|entry| match entry.get("template") {
                Some(Value::String(text)) => Some(text),
                _ => None,
            }),
        _ => None,
    };
    if let Some(text) = template.filter(|text| text.len() as u64 > limits.template_bytes) {
        let subject = "tokenizer_config.json";
        let limit = limits.template_bytes;
        return Err(FormatError::limit(subject, "bytes of the chat template", text.len(), limit));
    }
    Ok(template.cloned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::MemorySource;

    fn read(files: &[(&str, &'static str)]) -> Result<Sidecars> {
        let source = files.iter().fold(MemorySource::new("m"), |source, &(name, text)| {
            source.with(name, text.as_bytes())
        });
        Sidecars::read(&source, &Limits::default())
    }

    #[test]
    fn takes_the_template_from_its_own_file_first() {
        let config = ("tokenizer_config.json", r#"{"chat_template":"b"}"#);
        let template = |files: &[_]| read(files).unwrap().chat_template;
        assert_eq!(template(&[config]).as_deref(), Some("b"));
        assert_eq!(template(&[config, ("chat_template.jinja", "a")]).as_deref(), Some("a"));
        assert_eq!(template(&[]), None);
    }

    #[test]
    fn takes_the_default_of_several_templates() {
        let list = r#"{"chat_template":[{"name":"tool_use","template":"t"},
            {"name":"default","template":"d"}]}"#;
        let sidecars = read(&[("tokenizer_config.json", list)]).unwrap();
        assert_eq!(sidecars.chat_template.as_deref(), Some("d"));
    }

    #[test]
    fn files_that_are_missing_are_null_and_broken_ones_are_errors() {
        assert!(read(&[]).unwrap().generation_config.is_null());
        assert!(read(&[("generation_config.json", "{")]).is_err());
    }

    #[test]
    fn bounds_the_template() {
        let source =
            MemorySource::new("m").with("chat_template.jinja", vec![b'a'; (256 << 10) + 1]);
        assert!(Sidecars::read(&source, &Limits::default()).is_err());
    }
}
