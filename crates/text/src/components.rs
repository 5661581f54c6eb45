//! The stages of a `tokenizer.json`: what is accepted of them, and what must hold.
//!
//! The `tokenizers` crate believes its input. This module lets through only stages that are known
//! to end, for every text, in a result or an error.

use crate::error::{Error, Result, check_limit};
use crate::limits;
use crate::tokenizer::Frame;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use std::collections::HashMap;
use tokenizers::models::ModelWrapper;
use tokenizers::models::bpe::BPE;
use tokenizers::models::unigram::Unigram;
use tokenizers::models::wordlevel::WordLevel;
use tokenizers::normalizers::NormalizerWrapper;
use tokenizers::pre_tokenizers::PreTokenizerWrapper;

const HINT: &str = "convert the model with a current version of transformers";

/// The value's `type`.
fn kind(value: &Value) -> &str {
    value.get("type").and_then(Value::as_str).unwrap_or_default()
}

fn from_value<T: DeserializeOwned>(what: &str, value: Value) -> Result<T> {
    serde_json::from_value(value).map_err(|e| Error::invalid(format!("tokenizer.json, {what}"), e))
}

/// A model, the texts of its tokens, and the token for what it cannot express.
pub(crate) struct Built {
    pub(crate) model: ModelWrapper,
    pub(crate) texts: HashMap<String, u32>,
    pub(crate) unk: Option<u32>,
}

/// Builds the model.
pub(crate) fn model(value: Value) -> Result<Built> {
    let Value::Object(mut fields) = value else {
        return Err(Error::invalid("tokenizer.json, model", "is no object"));
    };
    let kind = fields.get("type").and_then(Value::as_str).unwrap_or("BPE").to_owned();
    let vocab = fields.remove("vocab").unwrap_or_default();
    match kind.as_str() {
        "BPE" => bpe(fields, vocab),
        "Unigram" => unigram(&fields, vocab),
        "WordLevel" => word_level(&fields, vocab),
        other => Err(Error::unsupported(format!("tokenizer model `{other}`"), HINT)),
    }
}

fn check_vocab(texts: &HashMap<String, u32>) -> Result<()> {
    if texts.is_empty() {
        return Err(Error::invalid("tokenizer.json, model.vocab", "is empty"));
    }
    check_limit("number of tokens", texts.len(), limits::VOCAB)
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Merges {
    Pairs(Vec<(String, String)>),
    Lines(Vec<String>),
}

fn bpe(mut fields: Map<String, Value>, vocab: Value) -> Result<Built> {
    let what = "model.merges";
    let texts: HashMap<String, u32> = from_value("model.vocab", vocab)?;
    check_vocab(&texts)?;
    for option in ["continuing_subword_prefix", "end_of_word_suffix"] {
        if fields.get(option).and_then(Value::as_str).is_some_and(|s| !s.is_empty()) {
            return Err(Error::unsupported(format!("BPE with `{option}`"), HINT));
        }
    }
    if fields.get("dropout").and_then(Value::as_f64).is_some_and(|p| p != 0.0) {
        return Err(Error::unsupported("BPE with `dropout`, which is random,", "remove it"));
    }
    let merges = fields.remove("merges").ok_or_else(|| Error::invalid(what, "is missing"))?;
    let merges = match from_value(what, merges)? {
        Merges::Pairs(pairs) => pairs,
        Merges::Lines(lines) => lines
            .into_iter()
            .filter(|line| !line.starts_with("#version"))
            .map(|line| match line.split_once(' ') {
                Some((a, b)) if !b.contains(' ') => Ok((a.to_owned(), b.to_owned())),
                _ => Err(Error::invalid(what, format!("`{}` is no pair", shown(&line)))),
            })
            .collect::<Result<_>>()?,
    };
    check_limit("number of merges", merges.len(), 2 * limits::VOCAB)?;
    let mut joined = String::new();
    for (a, b) in &merges {
        joined.clear();
        joined.push_str(a);
        joined.push_str(b);
        if let Some(missing) = [a, b, &joined].into_iter().find(|t| !texts.contains_key(*t)) {
            let why = format!("`{}` is used but is no token", shown(missing));
            return Err(Error::invalid(format!("tokenizer.json, {what}"), why));
        }
    }
    let flag = |key: &str| fields.get(key).and_then(Value::as_bool).unwrap_or(false);
    let ids = texts.iter().map(|(text, id)| (text.clone(), *id));
    let mut builder = BPE::builder()
        .vocab_and_merges(ids.collect::<tokenizers::models::bpe::Vocab>(), merges)
        // Its cache is one for each thread, is never freed, and saves a tenth of the time.
        .cache_capacity(0)
        .fuse_unk(flag("fuse_unk"))
        .byte_fallback(flag("byte_fallback"))
        .ignore_merges(flag("ignore_merges"));
    if let Some(unk) = fields.get("unk_token").and_then(Value::as_str) {
        if !texts.contains_key(unk) {
            let why = format!("`{}` is no token", shown(unk));
            return Err(Error::invalid("tokenizer.json, model.unk_token", why));
        }
        builder = builder.unk_token(unk.to_owned());
    }
    let bpe = builder.build().map_err(|e| Error::invalid("tokenizer.json, model", e))?;
    let unk = bpe.get_unk_token().as_ref().and_then(|t| texts.get(t)).copied();
    Ok(Built { model: ModelWrapper::BPE(bpe), texts, unk })
}

fn unigram(fields: &Map<String, Value>, vocab: Value) -> Result<Built> {
    let pieces: Vec<(String, f64)> = from_value("model.vocab", vocab)?;
    check_limit("number of tokens", pieces.len(), limits::VOCAB)?;
    if pieces.iter().any(|(piece, _)| piece.is_empty()) {
        return Err(Error::invalid("tokenizer.json, model.vocab", "has an empty piece"));
    }
    let texts: HashMap<String, u32> =
        (0u32..).zip(&pieces).map(|(id, (piece, _))| (piece.clone(), id)).collect();
    check_vocab(&texts)?;
    let unk = fields.get("unk_id").and_then(Value::as_u64).and_then(|id| u32::try_from(id).ok());
    let fallback = fields.get("byte_fallback").and_then(Value::as_bool).unwrap_or(false);
    let unk_id = unk.and_then(|id| usize::try_from(id).ok());
    let unigram = Unigram::from(pieces, unk_id, fallback)
        .map_err(|e| Error::invalid("tokenizer.json, model", e))?;
    Ok(Built { model: ModelWrapper::Unigram(unigram), texts, unk })
}

fn word_level(fields: &Map<String, Value>, vocab: Value) -> Result<Built> {
    let texts: HashMap<String, u32> = from_value("model.vocab", vocab)?;
    check_vocab(&texts)?;
    let unk = fields.get("unk_token").and_then(Value::as_str).unwrap_or_default();
    let words = WordLevel::builder()
        .vocab(texts.iter().map(|(text, id)| (text.clone(), *id)).collect())
        .unk_token(unk.to_owned())
        .build()
        .map_err(|e| Error::invalid("tokenizer.json, model", e))?;
    let unk = texts.get(unk).copied();
    Ok(Built { model: ModelWrapper::WordLevel(words), texts, unk })
}

/// The parts of a component: itself, or those of a sequence, to any depth.
fn flatten<'a>(value: &'a Value, list: &str, out: &mut Vec<&'a Value>) -> Result<()> {
    let mut open = vec![value];
    while let Some(next) = open.pop() {
        check_limit("number of components of one stage", out.len(), limits::COMPONENTS)?;
        match next.get(list).and_then(Value::as_array) {
            Some(items) if kind(next) == "Sequence" => {
                check_limit("number of components of one stage", items.len(), limits::COMPONENTS)?;
                open.extend(items.iter().rev());
            }
            _ => out.push(next),
        }
    }
    Ok(())
}

/// Builds the normalizer.
pub(crate) fn normalizer(value: Value) -> Result<NormalizerWrapper> {
    let mut parts = Vec::new();
    flatten(&value, "normalizers", &mut parts)?;
    for part in parts {
        match kind(part) {
            "Replace" => check_pattern(part)?,
            "NFC" | "NFD" | "NFKC" | "NFKD" | "Lowercase" | "StripAccents" | "Prepend"
            | "Strip" | "ByteLevel" | "Sequence" => {}
            other => {
                return Err(Error::unsupported(format!("normalizer `{}`", shown(other)), HINT));
            }
        }
    }
    from_value("normalizer", value)
}

/// Builds the pre-tokenizer.
pub(crate) fn pre_tokenizer(value: Value) -> Result<PreTokenizerWrapper> {
    let mut parts = Vec::new();
    flatten(&value, "pretokenizers", &mut parts)?;
    for part in parts {
        match kind(part) {
            "Split" => check_pattern(part)?,
            "ByteLevel" | "Metaspace" | "Digits" | "Punctuation" | "Whitespace"
            | "WhitespaceSplit" | "UnicodeScripts" | "BertPreTokenizer" | "CharDelimiterSplit"
            | "Sequence" => {}
            "FixedLength" if part.get("length").and_then(Value::as_u64) != Some(0) => {}
            "FixedLength" => {
                let what = "tokenizer.json, pre_tokenizer FixedLength";
                return Err(Error::invalid(what, "a length of 0 cuts nothing"));
            }
            other => {
                return Err(Error::unsupported(format!("pre-tokenizer `{}`", shown(other)), HINT));
            }
        }
    }
    from_value("pre_tokenizer", value)
}

/// Checks the regex of a `Split` or `Replace`.
fn check_pattern(part: &Value) -> Result<()> {
    let Some(regex) = part.get("pattern").and_then(|p| p.get("Regex")).and_then(Value::as_str)
    else {
        return Ok(());
    };
    check_limit("length of a regex in bytes", regex.len(), limits::REGEX_BYTES)?;
    if crate::regex_guard::may_explode(regex) {
        let what = format!("tokenizer.json, regex `{}`", shown(regex));
        return Err(Error::invalid(
            what,
            "repeats a repetition beside a look-around, which can take exponential time",
        ));
    }
    Ok(())
}

/// How tokens become text.
#[derive(Debug, Default)]
pub(crate) struct Decoding {
    /// Characters stand for bytes, as in GPT-2.
    pub(crate) byte_level: bool,
    /// Tokens like `<0x0A>` stand for a byte.
    pub(crate) byte_fallback: bool,
    /// What stands for a space.
    pub(crate) space: Option<String>,
    /// A space at the start of the text is dropped.
    pub(crate) strip_space: bool,
    /// Tokens are joined by spaces.
    pub(crate) spaced: bool,
}

/// Reads the decoder.
pub(crate) fn decoding(value: Option<&Value>) -> Result<Decoding> {
    let mut decoding = Decoding::default();
    let Some(value) = value else {
        decoding.spaced = true;
        return Ok(decoding);
    };
    let mut parts = Vec::new();
    flatten(value, "decoders", &mut parts)?;
    for part in parts {
        match kind(part) {
            "ByteLevel" => decoding.byte_level = true,
            "ByteFallback" => decoding.byte_fallback = true,
            "Fuse" => {}
            "Metaspace" => {
                let mark = part.get("replacement").and_then(Value::as_str).unwrap_or("▁");
                decoding.space = Some(mark.to_owned());
                let scheme = part.get("prepend_scheme").and_then(Value::as_str);
                let prefix = part.get("add_prefix_space").and_then(Value::as_bool);
                decoding.strip_space = scheme != Some("never") && prefix != Some(false);
            }
            "Replace" => {
                let from = part.get("pattern").and_then(|p| p.get("String")?.as_str());
                let to = part.get("content").and_then(Value::as_str);
                let (Some(mark), Some(" ")) = (from, to) else {
                    return Err(unsupported_decoder("Replace of anything by anything but a space"));
                };
                if mark.is_empty() {
                    return Err(unsupported_decoder("Replace of nothing"));
                }
                decoding.space = Some(mark.to_owned());
            }
            "Strip" => {
                let is_space = part.get("content").and_then(Value::as_str) == Some(" ");
                let count = |key: &str| part.get(key).and_then(Value::as_u64);
                match (is_space, count("start"), count("stop")) {
                    (true, Some(1), Some(0)) => decoding.strip_space = true,
                    (true, Some(0), Some(0)) => {}
                    _ => return Err(unsupported_decoder("Strip of more than one space in front")),
                }
            }
            other => return Err(unsupported_decoder(other)),
        }
    }
    Ok(decoding)
}

fn unsupported_decoder(what: &str) -> Error {
    Error::unsupported(format!("decoder `{}` of tokenizer.json", shown(what)), HINT)
}

/// Reads which tokens the post-processor puts around a single text.
pub(crate) fn frame(value: Option<&Value>) -> Result<Frame> {
    let mut frame = Frame::default();
    let mut parts = Vec::new();
    if let Some(value) = value {
        flatten(value, "processors", &mut parts)?;
    }
    for part in parts {
        match kind(part) {
            "TemplateProcessing" => read_template(part, &mut frame)?,
            "RobertaProcessing" | "BertProcessing" => {
                let id = |key: &str| part.get(key)?.get(1)?.as_u64();
                let id = |key: &str| id(key).and_then(|id| u32::try_from(id).ok());
                frame.prefix.extend(id("cls"));
                frame.suffix.extend(id("sep"));
            }
            "ByteLevel" | "Sequence" => {}
            other => {
                let what = format!("post-processor `{}`", shown(other));
                return Err(Error::unsupported(what, HINT));
            }
        }
    }
    Ok(frame)
}

/// Adds the special tokens before and after sequence A of a template.
fn read_template(part: &Value, frame: &mut Frame) -> Result<()> {
    let what = "tokenizer.json, post_processor";
    let invalid = |why: String| Error::invalid(what, why);
    let steps = part.get("single").and_then(Value::as_array);
    let steps = steps.ok_or_else(|| invalid("`single` is no list".to_owned()))?;
    check_limit("steps of a post-processor", steps.len(), limits::COMPONENTS)?;
    let mut before = true;
    for step in steps {
        if step.get("Sequence").is_some() {
            before = false;
            continue;
        }
        let name = step.get("SpecialToken").and_then(|t| t.get("id")?.as_str());
        let name = name.ok_or_else(|| invalid("a step names no token".to_owned()))?;
        let ids = part.get("special_tokens").and_then(|t| t.get(name)?.get("ids")?.as_array());
        let ids = ids.ok_or_else(|| {
            invalid(format!("the template uses `{}`, which it does not define", shown(name)))
        })?;
        check_limit("ids of a special token", ids.len(), limits::COMPONENTS)?;
        for id in ids {
            let id = id.as_u64().and_then(|id| u32::try_from(id).ok());
            let id = id.ok_or_else(|| invalid(format!("`{}` has a bad id", shown(name))))?;
            if before { frame.prefix.push(id) } else { frame.suffix.push(id) }
        }
    }
    Ok(())
}

/// The start of a text from a file, for an error message.
fn shown(text: &str) -> String {
    let mut chars = text.chars();
    let head: String = chars.by_ref().take(80).flat_map(char::escape_debug).collect();
    if chars.next().is_some() { head + "…" } else { head }
}
