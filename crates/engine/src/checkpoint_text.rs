//! What a model's checkpoint says about text: its tokenizer and its chat template.

use crate::sequence::Decode;
use crate::{EngineError, Request};
use serde_json::Value;
use std::sync::Arc;
use tangor_plan::model::formats::gguf::Metadata;
use tangor_plan::model::formats::{Checkpoint, FormatError, Sidecars};
use tangor_text::{ChatTemplate, DecodeStream, GgufVocab, HfFiles, Tokenizer};

/// Tokenizer and chat template, where a model has them.
#[derive(Clone, Debug, Default)]
pub struct Text {
    /// Turns text into tokens and back.
    pub tokenizer: Option<Arc<Tokenizer>>,
    /// Turns a conversation into text.
    pub template: Option<Arc<ChatTemplate>>,
    /// Why there is no template although the model brought one.
    pub template_error: Option<String>,
}

impl Text {
    /// Reads them from a checkpoint. A template that is broken is not an error, as text without a
    /// template still works; a tokenizer that is broken is.
    ///
    /// # Errors
    /// [`EngineError::Text`], naming what is wrong.
    pub fn of(checkpoint: &Checkpoint) -> Result<Self, EngineError> {
        let tokenizer = match checkpoint {
            Checkpoint::Gguf(gguf) => {
                let vocab = gguf_vocab(gguf.metadata()).map_err(|error| refused(&error))?;
                vocab.map(Tokenizer::from_gguf).transpose()
            }
            Checkpoint::Hf(hf) => from_sidecars(hf.sidecars(), &hf.config().eos_token_ids),
            Checkpoint::Oga(oga) => from_sidecars(&oga.sidecars, &oga.genai.eos_token_ids),
        };
        let Some(tokenizer) = tokenizer.map_err(|error| refused(&error))? else {
            return Ok(Self::default());
        };
        let source = checkpoint.sidecars().and_then(|files| files.chat_template.as_deref());
        let template = match (tokenizer.chat_templates(), source) {
            ([], None) => None,
            // A tokenizer of one file knows nothing of the files beside it.
            ([], Some(source)) => Some(ChatTemplate::new(source, &tokenizer)),
            _ => Some(ChatTemplate::of(&tokenizer)),
        };
        let (template, template_error) = match template.transpose() {
            Ok(template) => (template.map(Arc::new), None),
            Err(error) => (None, Some(error.to_string())),
        };
        Ok(Self { tokenizer: Some(Arc::new(tokenizer)), template, template_error })
    }

    /// Tokens that end an answer.
    #[must_use]
    pub fn end_tokens(&self) -> &[u32] {
        self.tokenizer.as_ref().map(|tokenizer| tokenizer.eos()).unwrap_or_default()
    }
}

fn refused(error: &dyn std::fmt::Display) -> EngineError {
    EngineError::Text(error.to_string())
}

/// The vocabulary that a GGUF file carries; `None` if it has none.
fn gguf_vocab(metadata: &Metadata) -> Result<Option<GgufVocab>, FormatError> {
    let key = |name: &str| format!("tokenizer.ggml.{name}");
    let text = |name: &str| metadata.opt_str(&key(name)).map(|text| text.map(str::to_owned));
    let id = |name: &str| metadata.opt_u32(&key(name));
    let flag = |name: &str| metadata.opt_bool(&key(name));
    let texts = |name: &str| -> Result<Vec<String>, FormatError> {
        let key = key(name);
        let strings = metadata.opt_strings(&key)?;
        Ok(strings.into_iter().flatten().map(str::to_owned).collect())
    };
    let Some(model) = text("model")?.filter(|model| model != "no_vocab" && model != "none") else {
        return Ok(None);
    };
    Ok(Some(GgufVocab {
        name: metadata.opt_str("general.name")?.map(str::to_owned),
        model,
        pre: text("pre")?,
        tokens: texts("tokens")?,
        scores: metadata.opt_f32s(&key("scores"))?.into_iter().flatten().collect(),
        token_types: metadata.opt_i32s(&key("token_type"))?.into_iter().flatten().collect(),
        merges: texts("merges")?,
        bos: id("bos_token_id")?,
        eos: id("eos_token_id")?,
        eot: id("eot_token_id")?,
        eom: id("eom_token_id")?,
        unk: id("unknown_token_id")?,
        pad: id("padding_token_id")?,
        add_bos: flag("add_bos_token")?,
        add_eos: flag("add_eos_token")?,
        add_space_prefix: flag("add_space_prefix")?,
        chat_template: metadata.opt_str("tokenizer.chat_template")?.map(str::to_owned),
    }))
}

/// The tokenizer of a Hugging Face or ONNX Runtime GenAI folder; `None` if it has none.
fn from_sidecars(files: &Sidecars, eos: &[u32]) -> tangor_text::Result<Option<Tokenizer>> {
    let json = |value: &Value| (!value.is_null()).then(|| value.to_string().into_bytes());
    let (config, special, generation) = (
        json(&files.tokenizer_config),
        json(&files.special_tokens_map),
        json(&files.generation_config),
    );
    if let Some(tokenizer) = &files.tokenizer_json {
        let files = HfFiles {
            tokenizer,
            tokenizer_config: config.as_deref(),
            special_tokens_map: special.as_deref(),
            generation_config: generation.as_deref(),
            chat_template: files.chat_template.as_deref(),
            eos,
        };
        return Tokenizer::from_hf(&files).map(Some);
    }
    files.tokenizer_model.as_ref().map(|model| Tokenizer::from_sentencepiece(model)).transpose()
}

/// Decodes the tokens of one answer.
pub(crate) struct Decoder(Option<DecodeStream>);

impl Decoder {
    /// At the beginning of the answer to a request.
    pub(crate) fn boxed(tokenizer: &Tokenizer, request: &Request) -> Box<dyn Decode> {
        let stream = tokenizer.stream(!request.special_text);
        Box::new(Self(Some(if request.continues { stream.continuing() } else { stream })))
    }
}

impl Decode for Decoder {
    fn push(&mut self, token: u32) -> String {
        self.0.as_mut().and_then(|stream| stream.push(token)).unwrap_or_default()
    }

    fn finish(&mut self) -> String {
        self.0.take().and_then(DecodeStream::finish).unwrap_or_default()
    }
}
