//! Text in, tokens out, and back.
//!
//! * [`Tokenizer`]: one type for every vocabulary, built from a Hugging Face `tokenizer.json`
//!   ([`HfFiles`]), from the arrays of a GGUF file ([`GgufVocab`]) or from a SentencePiece model.
//! * [`ChatTemplate`]: renders messages with the model's own Jinja template.
//! * [`DecodeStream`]: turns generated tokens into text, piece by piece, never splitting a
//!   character.
//! * [`Grammars`]: which tokens may come next where an answer follows a JSON schema or a grammar.
//! * [`ToolFormat`]: how a family of models calls tools.
//! * [`Reasoning`]: what a model thinks before it answers, apart from the answer.
//!
//! The promise of this crate: **text that comes from a user never becomes a special token.**
//! [`ChatTemplate::render`] returns [`Span`]s that say which text the template wrote and which
//! came from a message; [`Tokenizer::encode_spans`] recognises special tokens only in the former.
//! Everything else is tokenised exactly as if the text were plain.
//!
//! ```
//! use serde_json::Map;
//! use tangor_text::{ChatTemplate, GgufVocab, Message, Tokenizer};
//!
//! # fn main() -> tangor_text::Result<()> {
//! let mut vocab = GgufVocab { model: "llama".into(), ..GgufVocab::default() };
//! vocab.tokens = ["<unk>", "<s>", "</s>", "▁", "h", "i"].map(String::from).to_vec();
//! vocab.chat_template = Some("<s>{{ messages[0].content }}</s>".into());
//! let tokenizer = Tokenizer::from_gguf(vocab)?;
//! let template = ChatTemplate::of(&tokenizer)?;
//! let prompt = template.render(&[Message::new("user", "hi")], None, true, &Map::new())?;
//! assert_eq!(tokenizer.encode_spans(&prompt.spans)?, [1, 3, 4, 5, 2]);
//! # Ok(())
//! # }
//! ```
//!
//! Files are untrusted: sizes are bounded by [`limits`], templates run with fuel, and whatever is
//! malformed is an [`Error`] that names it.
#![forbid(unsafe_code)]

mod added;
mod clock;
mod components;
mod error;
mod gguf;
mod grammar;
mod guard;
mod hf;
mod infill;
pub mod limits;
mod message;
mod numbers;
mod pretokenize;
mod python;
mod reasoning;
mod regex_guard;
mod sentencepiece;
mod shims;
mod spm;
mod stream;
mod template;
mod tokenizer;
mod tools;
mod vocab;

pub use clock::strftime;
pub use error::{Error, Result};
pub use gguf::GgufVocab;
pub use grammar::{Grammar, Grammars};
pub use guard::{Rendered, Span};
pub use hf::HfFiles;
pub use message::{Content, FunctionCall, Message, ToolCall};
pub use reasoning::{Reasoning, Thought};
pub use stream::DecodeStream;
pub use template::ChatTemplate;
pub use tokenizer::{Specials, Tokenizer};
pub use tools::{ToolDelta, ToolFormat, ToolParser};
