//! The tokenizer: text to ids and back, whatever file it came from.

use crate::added::{AddedToken, AddedTokens, Piece};
use crate::error::{Error, Result, check_limit};
use crate::gguf::GgufVocab;
use crate::guard::Span;
use crate::hf::{self, HfFiles};
use crate::limits;
use crate::sentencepiece;
use crate::spm::Spm;
use crate::stream::DecodeStream;
use crate::vocab::Vocab;
use std::ops::Range;
use std::sync::Arc;
use tokenizers::models::ModelWrapper;
use tokenizers::normalizers::NormalizerWrapper;
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::tokenizer::normalizer::Range as TextRange;
use tokenizers::{
    Model as _, NormalizedString, Normalizer as _, OffsetReferential, OffsetType,
    PreTokenizedString, PreTokenizer as _, Token,
};

/// Whether the names of special tokens in a text mean the tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Specials {
    /// They are text like any other: for whatever a user wrote.
    AsText,
    /// They are the tokens: for text that a template or the program wrote.
    Recognised,
}

/// Text to token ids and back.
///
/// Immutable; share it between threads by reference or in an [`Arc`].
#[derive(Debug)]
pub struct Tokenizer {
    vocab: Arc<Vocab>,
    /// Found in the text as it is.
    added: AddedTokens,
    /// Found in the normalized text.
    normalized: AddedTokens,
    model: Model,
    frame: Frame,
    bos: Option<u32>,
    main_eos: Option<u32>,
    eos: Vec<u32>,
    unk: Option<u32>,
    pad: Option<u32>,
    templates: Vec<(String, String)>,
}

/// What the readers of the file formats produce.
#[derive(Debug)]
pub(crate) struct Parts {
    pub(crate) vocab: Vocab,
    pub(crate) added: AddedTokens,
    pub(crate) normalized: AddedTokens,
    pub(crate) model: Model,
    pub(crate) frame: Frame,
    pub(crate) bos: Option<u32>,
    /// The one that templates know as `eos_token`.
    pub(crate) main_eos: Option<u32>,
    /// All that end an answer.
    pub(crate) eos: Vec<u32>,
    pub(crate) unk: Option<u32>,
    pub(crate) pad: Option<u32>,
    /// Chat templates by name.
    pub(crate) templates: Vec<(String, String)>,
}

/// Tokens that stand before and after a plain prompt.
#[derive(Debug, Default)]
pub(crate) struct Frame {
    pub(crate) prefix: Vec<u32>,
    pub(crate) suffix: Vec<u32>,
}

/// What turns a text without added tokens into ids.
#[derive(Debug)]
pub(crate) enum Model {
    /// Hugging Face's stages.
    Pipeline(Box<Pipeline>),
    /// Exact SentencePiece BPE.
    Spm(Spm),
}

/// The stages of a Hugging Face tokenizer.
#[derive(Debug)]
pub(crate) struct Pipeline {
    pub(crate) normalizer: Option<NormalizerWrapper>,
    pub(crate) pre: Option<PreTokenizerWrapper>,
    pub(crate) model: ModelWrapper,
}

impl Tokenizer {
    /// Builds a tokenizer from a GGUF file's vocabulary.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for a tokenizer model or pre-tokenizer that is not known,
    /// [`Error::Invalid`] where the arrays contradict each other.
    pub fn from_gguf(vocab: GgufVocab) -> Result<Self> {
        Ok(Self::from_parts(vocab.into_parts()?))
    }

    /// Builds a tokenizer from the files of a Hugging Face folder.
    ///
    /// # Errors
    /// [`Error::Invalid`] for files that do not parse or contradict each other,
    /// [`Error::Unsupported`] for components that no language model uses.
    pub fn from_hf(files: &HfFiles<'_>) -> Result<Self> {
        Ok(Self::from_parts(hf::parts(files)?))
    }

    /// Builds a tokenizer from a SentencePiece `tokenizer.model` alone.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for other kinds than BPE, which need their `tokenizer.json`.
    pub fn from_sentencepiece(model: &[u8]) -> Result<Self> {
        Self::from_gguf(sentencepiece::read(model)?)
    }

    fn from_parts(parts: Parts) -> Self {
        Self {
            vocab: Arc::new(parts.vocab),
            added: parts.added,
            normalized: parts.normalized,
            model: parts.model,
            frame: parts.frame,
            bos: parts.bos,
            main_eos: parts.main_eos,
            eos: parts.eos,
            unk: parts.unk,
            pad: parts.pad,
            templates: parts.templates,
        }
    }

    /// Ids of a text, without BOS or EOS (see [`frame`](Self::frame)).
    ///
    /// Some vocabularies have no token for rare bytes (control characters, mostly) and none for
    /// the unknown; such bytes are left out, as the models' own tokenizers do.
    ///
    /// # Errors
    /// [`Error::Limit`] for a text over [`limits::TEXT_BYTES`]; [`Error::Encode`] where the model
    /// cannot express it.
    pub fn encode(&self, text: &str, specials: Specials) -> Result<Vec<u32>> {
        self.tokenize(text, |token, _| !token.special || specials == Specials::Recognised)
    }

    /// Ids of the spans' joined text.
    ///
    /// A special token is recognised only where all its text is trusted. Any other added token
    /// is recognised where all its text has the same trust. The joints between spans cut nothing
    /// else: text without forged tokens gives the same ids as in one piece.
    ///
    /// # Errors
    /// As [`encode`](Self::encode).
    pub fn encode_spans(&self, spans: &[Span]) -> Result<Vec<u32>> {
        let mut text = String::new();
        let mut untrusted: Vec<Range<usize>> = Vec::new();
        for span in spans.iter().filter(|span| !span.text.is_empty()) {
            let start = text.len();
            text.push_str(&span.text);
            if span.trusted {
                continue;
            }
            match untrusted.last_mut() {
                Some(last) if last.end == start => last.end = text.len(),
                _ => untrusted.push(start..text.len()),
            }
        }
        self.tokenize(&text, |token, range| {
            let at = untrusted.partition_point(|u| u.end <= range.start);
            let Some(next) = untrusted.get(at).filter(|u| u.start < range.end) else {
                return true;
            };
            !token.special && next.start <= range.start && range.end <= next.end
        })
    }

    /// Puts around the ids of a plain prompt what the model expects there: BOS for most, EOS for
    /// some, nothing for others. Rendered chat templates bring their own.
    pub fn frame(&self, ids: Vec<u32>) -> Vec<u32> {
        if self.frame.prefix.is_empty() && self.frame.suffix.is_empty() {
            return ids;
        }
        [self.frame.prefix.as_slice(), &ids, &self.frame.suffix].concat()
    }

    /// Ids of a plain prompt as whoever writes all of it means it: special tokens are written by
    /// name, and one that begins with what [`Tokenizer::frame`] puts in front stays as it is.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn prompt(&self, text: &str) -> Result<Vec<u32>> {
        let ids = self.encode(text, Specials::Recognised)?;
        let prefix = &self.frame.prefix;
        let framed = !prefix.is_empty() && ids.starts_with(prefix);
        Ok(if framed { ids } else { self.frame(ids) })
    }

    fn tokenize(
        &self,
        text: &str,
        accept: impl Fn(&AddedToken, &Range<usize>) -> bool,
    ) -> Result<Vec<u32>> {
        check_limit("length of the text in bytes", text.len(), limits::TEXT_BYTES)?;
        if text.is_empty() {
            return Ok(Vec::new());
        }
        match &self.model {
            Model::Spm(spm) => {
                let mut ids = Vec::with_capacity(text.len() / 3);
                let mut at_boundary = true;
                for piece in self.added.split(text, accept) {
                    match piece {
                        Piece::Text(range) => {
                            let part = text.get(range).unwrap_or_default();
                            spm.encode(part, at_boundary, &mut ids);
                            at_boundary = false;
                        }
                        Piece::Token(id, _) => {
                            ids.push(id);
                            at_boundary = true;
                        }
                    }
                }
                Ok(ids)
            }
            Model::Pipeline(pipeline) => self
                .run_pipeline(pipeline, text, &accept)
                .map_err(|e| Error::Encode { why: e.to_string() }),
        }
    }

    fn run_pipeline(
        &self,
        pipeline: &Pipeline,
        text: &str,
        accept: &impl Fn(&AddedToken, &Range<usize>) -> bool,
    ) -> tokenizers::Result<Vec<u32>> {
        let mut parts = PreTokenizedString::from(text);
        if !self.added.is_empty() {
            parts.split(|_, part| split_added(&part, &self.added, accept))?;
        }
        parts.split(|_, mut part| {
            if let Some(normalizer) = &pipeline.normalizer {
                normalizer.normalize(&mut part)?;
            }
            // Characters that only became a special token's name by normalization are text.
            split_added(&part, &self.normalized, |token, range| {
                let spelled = || text.get(range.clone()).is_some_and(|t| self.spells(token.id, t));
                accept(token, range) && (!token.special || spelled())
            })
        })?;
        if let Some(pre) = &pipeline.pre {
            pre.pre_tokenize(&mut parts)?;
        }
        let mut ids = Vec::with_capacity(text.len() / 3);
        for (word, _, tokens) in parts.get_splits(OffsetReferential::Normalized, OffsetType::Byte) {
            match tokens {
                Some(tokens) => ids.extend(tokens.iter().map(|t| t.id)),
                None => {
                    for token in pipeline.model.tokenize(word)? {
                        self.push_text_token(pipeline, token, &mut ids)?;
                    }
                }
            }
        }
        Ok(ids)
    }

    /// Whether a text is the name of the token, white space around it aside.
    fn spells(&self, id: u32, text: &str) -> bool {
        self.vocab.text(id).is_some_and(|name| name.trim() == text.trim())
    }

    /// Takes a token that the model made of text. If that is a special token, which some
    /// vocabularies allow, the text is spelled out by characters instead.
    fn push_text_token(
        &self,
        pipeline: &Pipeline,
        token: Token,
        ids: &mut Vec<u32>,
    ) -> tokenizers::Result<()> {
        let is_text = |id: u32| !self.vocab.is_special(id) || Some(id) == self.unk;
        if is_text(token.id) {
            ids.push(token.id);
            return Ok(());
        }
        for c in token.value.chars() {
            let spelled = pipeline.model.tokenize(c.encode_utf8(&mut [0; 4]))?;
            ids.extend(spelled.iter().map(|t| t.id).filter(|id| is_text(*id)));
        }
        Ok(())
    }

    /// Text of the tokens. Ids that are not in the vocabulary are left out, as are special tokens
    /// if `skip_special`; bytes that are no UTF-8 become U+FFFD.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> String {
        let mut stream = self.stream(skip_special);
        let mut text = String::new();
        for id in ids {
            text.extend(stream.push(*id));
        }
        text.extend(stream.finish());
        text
    }

    /// Decodes tokens as they come. The stream lives on its own.
    pub fn stream(&self, skip_special: bool) -> DecodeStream {
        DecodeStream::new(Arc::clone(&self.vocab), skip_special)
    }

    /// Bytes that the token stands for: often no complete character. `None` for an id that is not
    /// in the vocabulary.
    pub fn token_bytes(&self, id: u32) -> Option<&[u8]> {
        self.vocab.bytes(id)
    }

    /// The token as its file spells it, as `Ġthe` or `<|im_end|>`.
    pub fn token_text(&self, id: u32) -> Option<&str> {
        self.vocab.text(id)
    }

    /// Id of the token that the file spells so.
    pub fn token_id(&self, text: &str) -> Option<u32> {
        self.vocab.id(text)
    }

    /// One more than the highest id; the model's output may be wider.
    pub fn vocab_size(&self) -> usize {
        self.vocab.len()
    }

    /// The token that begins a text, if the model has one.
    pub fn bos(&self) -> Option<u32> {
        self.bos
    }

    /// The tokens that end an answer, ascending: end of sequence, of turn and of message.
    pub fn eos(&self) -> &[u32] {
        &self.eos
    }

    /// Whether the token ends an answer.
    pub fn is_eos(&self, id: u32) -> bool {
        self.eos.binary_search(&id).is_ok()
    }

    /// The token that templates call `eos_token`.
    pub(crate) fn main_eos(&self) -> Option<u32> {
        self.main_eos
    }

    /// The token for text that the vocabulary cannot express.
    pub fn unk(&self) -> Option<u32> {
        self.unk
    }

    /// The token that fills batches.
    pub fn pad(&self) -> Option<u32> {
        self.pad
    }

    /// Whether the token controls the model rather than standing for text.
    pub fn is_special(&self, id: u32) -> bool {
        self.vocab.is_special(id)
    }

    /// Whether [`frame`](Self::frame) puts BOS before a prompt.
    pub fn adds_bos(&self) -> bool {
        self.bos.is_some_and(|bos| self.frame.prefix.contains(&bos))
    }

    /// Whether [`frame`](Self::frame) puts tokens after a prompt.
    pub fn adds_eos(&self) -> bool {
        !self.frame.suffix.is_empty()
    }

    /// Chat templates that came with the tokenizer, by name; the usual one is `default`.
    pub fn chat_templates(&self) -> &[(String, String)] {
        &self.templates
    }

    /// Every added token: what it is looked for by, and whether it is special.
    pub(crate) fn added_tokens(&self) -> impl Iterator<Item = (&str, bool)> {
        let all = self.added.iter().chain(self.normalized.iter());
        all.map(|t| (self.vocab.text(t.id).unwrap_or(&t.text), t.special))
    }
}

/// Splits a part of the text at the added tokens in it, which get their ids.
fn split_added(
    part: &NormalizedString,
    added: &AddedTokens,
    accept: impl Fn(&AddedToken, &Range<usize>) -> bool,
) -> tokenizers::Result<Vec<(NormalizedString, Option<Vec<Token>>)>> {
    let slice = |range: &Range<usize>| part.slice(TextRange::Normalized(range.clone()));
    let accept = |token: &AddedToken, range: &Range<usize>| {
        let original = slice(range).map(|s| s.offsets_original());
        original.is_some_and(|(start, end)| accept(token, &(start..end)))
    };
    let mut out = Vec::new();
    for piece in added.split(part.get(), accept) {
        let (range, id) = match piece {
            Piece::Text(range) => (range, None),
            Piece::Token(id, range) => (range, Some(id)),
        };
        let text = slice(&range).ok_or("an added token cuts a character")?;
        let tokens = id.map(|id| vec![Token::new(id, text.get().to_owned(), (0, text.len()))]);
        out.push((text, tokens));
    }
    Ok(out)
}
