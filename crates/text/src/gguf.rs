//! Tokenizers from the arrays that a GGUF file carries (`tokenizer.ggml.*`).

use crate::added::{AddedToken, AddedTokens};
use crate::error::{Error, Result, check_limit};
use crate::limits;
use crate::pretokenize;
use crate::spm::Spm;
use crate::tokenizer::{Frame, Model, Parts, Pipeline};
use crate::vocab::{Entry, Kind, Vocab, byte_level_bytes, byte_token};
use std::collections::HashMap;
use tokenizers::models::ModelWrapper;
use tokenizers::models::bpe::BPE;

/// The vocabulary of a GGUF file, as plain data.
///
/// Fields are the metadata keys of the same names under `tokenizer.ggml.`; a key that the file
/// does not have is `None` or empty.
#[derive(Clone, Debug, Default)]
pub struct GgufVocab {
    /// `general.name`: some models' added tokens behave differently, and only this tells.
    pub name: Option<String>,
    /// `model`: `llama` (SentencePiece), `gpt2` (byte-level BPE) or `gemma4`.
    pub model: String,
    /// `pre`: name of the pre-tokenizer, for BPE.
    pub pre: Option<String>,
    /// `tokens`: text of each token.
    pub tokens: Vec<String>,
    /// `scores`, for SentencePiece; empty or one for each token.
    pub scores: Vec<f32>,
    /// `token_type`; empty or one for each token (1 normal, 2 unknown, 3 control, 4 user-defined,
    /// 5 unused, 6 byte).
    pub token_types: Vec<i32>,
    /// `merges`, for BPE: pairs separated by one space, best first.
    pub merges: Vec<String>,
    /// `bos_token_id`.
    pub bos: Option<u32>,
    /// `eos_token_id`.
    pub eos: Option<u32>,
    /// `eot_token_id`: ends a turn.
    pub eot: Option<u32>,
    /// `eom_token_id`: ends a message.
    pub eom: Option<u32>,
    /// `unknown_token_id`.
    pub unk: Option<u32>,
    /// `padding_token_id`.
    pub pad: Option<u32>,
    /// `add_bos_token`.
    pub add_bos: Option<bool>,
    /// `add_eos_token`.
    pub add_eos: Option<bool>,
    /// `add_space_prefix`.
    pub add_space_prefix: Option<bool>,
    /// `tokenizer.chat_template`.
    pub chat_template: Option<String>,
}

const UNKNOWN: i32 = 2;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const UNUSED: i32 = 5;
const BYTE: i32 = 6;

/// Tokens that end an answer, by their text: files often name only one of them. The list is
/// llama.cpp's.
const END_TEXTS: &[&str] = &[
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<|flush|>",
    "<|calls|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "</s>",
    "<|eom_id|>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "[EOS]",
    "<|end_of_text|>",
    "<end_of_utterance>",
    "<eos>",
    "<turn|>",
    "<|tool_response>",
    "<｜end▁of▁sentence｜>",
    "[e~[",
];

impl GgufVocab {
    pub(crate) fn into_parts(mut self) -> Result<Parts> {
        self.check()?;
        self.default_ids();
        self.mark_end_tokens();
        let is_spm = self.model == "llama";
        let pre = if is_spm {
            None
        } else {
            let named = if self.model == "gemma4" { Some("gemma4") } else { self.pre.as_deref() };
            Some(pretokenize::named(named.unwrap_or_default())?)
        };
        let byte_level = pre.is_some_and(|p| p.byte_level);
        let add_space = is_spm && self.add_space_prefix.unwrap_or(true);
        // Half of the time each, for a vocabulary of hundreds of thousands.
        let this = &self;
        let (vocab, pipeline) = std::thread::scope(|scope| {
            let vocab = scope.spawn(|| Vocab::new(&this.entries(byte_level), add_space, false));
            let pipeline = pre.as_ref().map(|pre| this.pipeline(pre)).transpose();
            (vocab.join(), pipeline)
        });
        let vocab = vocab.unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        let pipeline = pipeline?;
        let added = AddedTokens::new(self.added_tokens())?;
        let eos = self.end_ids();
        let default_bos = pre.is_none_or(|p| p.add_bos);
        let frame = Frame {
            prefix: self.bos.filter(|_| self.add_bos.unwrap_or(default_bos)).into_iter().collect(),
            suffix: self.eos.filter(|_| self.add_eos.unwrap_or(false)).into_iter().collect(),
        };
        let templates = self.chat_template.take().map(|t| ("default".to_owned(), t));
        let (bos, main_eos, unk, pad) = (self.bos, self.eos, self.unk, self.pad);
        let model = match pipeline {
            None => Model::Spm(self.into_spm(add_space)),
            Some(pipeline) => Model::Pipeline(Box::new(pipeline)),
        };
        Ok(Parts {
            vocab,
            added,
            normalized: AddedTokens::default(),
            model,
            frame,
            bos,
            main_eos,
            eos,
            unk,
            pad,
            templates: templates.into_iter().collect(),
        })
    }

    fn check(&self) -> Result<()> {
        check_limit("number of tokens", self.tokens.len(), limits::VOCAB)?;
        check_limit("number of merges", self.merges.len(), limits::VOCAB)?;
        let same = |what: &str, len: usize| {
            if len == 0 || len == self.tokens.len() {
                return Ok(());
            }
            let why = format!("{len} entries for {} tokens", self.tokens.len());
            Err(Error::invalid(format!("tokenizer.ggml.{what}"), why))
        };
        same("scores", self.scores.len())?;
        same("token_type", self.token_types.len())?;
        if self.tokens.is_empty() {
            return Err(Error::invalid("tokenizer.ggml.tokens", "is missing or empty"));
        }
        match self.model.as_str() {
            "llama" | "gemma4" => Ok(()),
            "gpt2" if self.merges.is_empty() => {
                Err(Error::invalid("tokenizer.ggml.merges", "is missing or empty"))
            }
            "gpt2" => Ok(()),
            other => Err(Error::unsupported(
                format!("tokenizer model `{other}` (tokenizer.ggml.model)"),
                "supported are llama, gpt2 and gemma4",
            )),
        }
    }

    /// Ids that files of SentencePiece models may leave out; ids past the end count as absent.
    fn default_ids(&mut self) {
        if self.model == "llama" {
            self.bos = self.bos.or(Some(1));
            self.eos = self.eos.or(Some(2));
            self.unk = self.unk.or(Some(0));
        }
        let len = self.tokens.len();
        let valid = |id: &u32| usize::try_from(*id).is_ok_and(|id| id < len);
        for id in [
            &mut self.bos,
            &mut self.eos,
            &mut self.eot,
            &mut self.eom,
            &mut self.unk,
            &mut self.pad,
        ] {
            *id = id.filter(valid);
        }
        if self.token_types.is_empty() {
            self.token_types = vec![1; len];
            for id in [self.bos, self.eos, self.eot, self.eom].into_iter().flatten() {
                self.set_type(id, CONTROL);
            }
            if let Some(unk) = self.unk {
                self.set_type(unk, UNKNOWN);
            }
        }
    }

    fn set_type(&mut self, id: u32, kind: i32) {
        if let Some(slot) = usize::try_from(id).ok().and_then(|i| self.token_types.get_mut(i)) {
            *slot = kind;
        }
    }

    fn type_of(&self, id: usize) -> i32 {
        self.token_types.get(id).copied().unwrap_or(1)
    }

    /// Files sometimes mark end tokens as ordinary ones; they control the model nevertheless.
    fn mark_end_tokens(&mut self) {
        let gemma4 = self.has("<|tool_response>");
        for id in 0..self.tokens.len() {
            let Some(text) = self.tokens.get(id).map(String::as_str) else { continue };
            let ordinary_here = gemma4 && text == "</s>";
            if END_TEXTS.contains(&text)
                && !ordinary_here
                && let Some(slot) = self.token_types.get_mut(id)
            {
                *slot = CONTROL;
            }
        }
    }

    fn has(&self, text: &str) -> bool {
        self.tokens.iter().any(|t| t == text)
    }

    /// Ids that end an answer, in ascending order.
    fn end_ids(&self) -> Vec<u32> {
        // In these two formats `<|end|>` ends a message within an answer, and `</s>` is text.
        let harmony = self.has("<|call|>") && self.has("<|return|>")
            || (self.has("<|call|>") || self.has("<|calls|>")) && self.has("<|flush|>");
        let gemma4 = self.has("<|tool_response>");
        let ends = |text: &str| {
            END_TEXTS.contains(&text)
                && !(harmony && text == "<|end|>")
                && !(gemma4 && text == "</s>")
        };
        let by_text = (0u32..).zip(&self.tokens).filter(|(_, text)| ends(text)).map(|(id, _)| id);
        let mut ids: Vec<u32> = by_text.collect();
        ids.extend([self.eos, self.eot, self.eom].into_iter().flatten());
        ids.sort_unstable();
        ids.dedup();
        ids
    }

    /// The token table. `byte_level`: texts spell bytes as GPT-2 does.
    fn entries(&self, byte_level: bool) -> Vec<Entry> {
        let entry = |(id, text): (usize, &String)| {
            let kind = match self.type_of(id) {
                UNKNOWN | CONTROL => Kind::Special,
                _ => Kind::Text,
            };
            let bytes = match self.type_of(id) {
                UNKNOWN | CONTROL | USER_DEFINED => text.as_bytes().to_vec(),
                BYTE => byte_token(text).map_or_else(|| text.as_bytes().to_vec(), |b| vec![b]),
                _ if byte_level => byte_level_bytes(text),
                _ => text.replace(crate::spm::SPACE, " ").into_bytes(),
            };
            Entry { text: text.clone(), bytes, kind }
        };
        self.tokens.iter().enumerate().map(entry).collect()
    }

    fn added_tokens(&self) -> Vec<AddedToken> {
        let name = self.name.as_deref().unwrap_or_default().to_lowercase();
        // Phi-3's added tokens swallow white space after them, which no key of the file says.
        let phi3 = name.contains("phi-3") || name.contains("phi3");
        let added = (0u32..).zip(&self.tokens).filter_map(|(id, text)| {
            let kind = self.type_of(usize::try_from(id).ok()?);
            let special = matches!(kind, UNKNOWN | CONTROL);
            let rstrip = phi3 && !matches!(text.as_str(), "<unk>" | "<s>" | "<|endoftext|>");
            (special || kind == USER_DEFINED).then(|| AddedToken {
                id,
                text: text.clone(),
                special,
                lstrip: false,
                rstrip,
                single_word: false,
            })
        });
        added.collect()
    }

    fn into_spm(self, add_space: bool) -> Spm {
        let mut pieces = HashMap::new();
        let mut bytes = vec![None; 256];
        let (types, scores, unk) = (self.token_types, self.scores, self.unk);
        for (at, (id, text)) in (0u32..).zip(self.tokens).enumerate() {
            let score = scores.get(at).copied().unwrap_or(0.0);
            match types.get(at).copied().unwrap_or(1) {
                BYTE => {
                    let slot = byte_token(&text).and_then(|b| bytes.get_mut(usize::from(b)));
                    if let Some(slot) = slot {
                        *slot = Some(id);
                    }
                }
                // What user text may not become is no piece.
                UNKNOWN | CONTROL | UNUSED => {}
                _ if text.is_empty() => {}
                _ => {
                    pieces.insert(text.into_boxed_str(), (id, score));
                }
            }
        }
        Spm::new(pieces, bytes, unk, add_space)
    }

    fn pipeline(&self, pre: &pretokenize::Pre) -> Result<Pipeline> {
        let mut ids = tokenizers::models::bpe::Vocab::with_capacity(self.tokens.len());
        for (id, text) in (0u32..).zip(&self.tokens) {
            if !text.is_empty() {
                ids.entry(text.clone()).or_insert(id);
            }
        }
        // A merge whose parts or result are no tokens cannot apply; llama.cpp skips it as well.
        let mut joined = String::new();
        let usable = |(a, b): &(&str, &str)| {
            joined.clear();
            joined.push_str(a);
            joined.push_str(b);
            ids.contains_key(*a) && ids.contains_key(*b) && ids.contains_key(joined.as_str())
        };
        let merges: Vec<(String, String)> = self
            .merges
            .iter()
            .filter_map(|merge| split_merge(merge))
            .filter(usable)
            .map(|(a, b)| (a.to_owned(), b.to_owned()))
            .collect();
        let bpe = BPE::builder()
            .vocab_and_merges(ids, merges)
            // Its cache is one for each thread, is never freed, and saves a tenth of the time.
            .cache_capacity(0)
            .ignore_merges(pre.ignore_merges)
            .byte_fallback(!pre.byte_level)
            .build()
            .map_err(|e| Error::invalid("tokenizer.ggml.merges", e))?;
        Ok(Pipeline {
            normalizer: pre.normalizer()?,
            pre: Some(pre.build()?),
            model: ModelWrapper::BPE(bpe),
        })
    }
}

/// The two parts of a merge: separated by the first space after the first character.
fn split_merge(merge: &str) -> Option<(&str, &str)> {
    let head = merge.chars().next()?.len_utf8();
    let at = head + merge.get(head..)?.find(' ')?;
    Some((merge.get(..at)?, merge.get(at + 1..)?))
}
