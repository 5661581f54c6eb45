//! Tokenizers from the files of a Hugging Face folder.
//!
//! `tokenizer.json` holds the stages; the small files beside it say which tokens begin and end a
//! text. Only stages that language models use are accepted, and everything that the `tokenizers`
//! crate takes on trust is checked here first: a crafted file is an error, not a panic.

use crate::added::{AddedToken, AddedTokens};
use crate::components::{self, Built, Decoding};
use crate::error::{Error, Result, check_limit};
use crate::limits;
use crate::tokenizer::{Frame, Model, Parts, Pipeline};
use crate::vocab::{Entry, Kind, Vocab, byte_level_bytes, byte_token};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use std::collections::{HashMap, HashSet};
use tokenizers::{NormalizedString, Normalizer as _};

/// The files of a Hugging Face folder that concern text, as far as the folder has them.
#[derive(Clone, Copy, Debug, Default)]
pub struct HfFiles<'a> {
    /// `tokenizer.json`.
    pub tokenizer: &'a [u8],
    /// `tokenizer_config.json`.
    pub tokenizer_config: Option<&'a [u8]>,
    /// `special_tokens_map.json`.
    pub special_tokens_map: Option<&'a [u8]>,
    /// `generation_config.json`.
    pub generation_config: Option<&'a [u8]>,
    /// `chat_template.jinja`, which goes before a template in `tokenizer_config.json`.
    pub chat_template: Option<&'a str>,
    /// End tokens that another file names, as `genai_config.json` or `config.json` do.
    pub eos: &'a [u32],
}

const FILE: &str = "tokenizer.json";

/// One entry of `added_tokens`.
#[derive(Deserialize)]
struct Added {
    id: u32,
    content: String,
    #[serde(default)]
    single_word: bool,
    #[serde(default)]
    lstrip: bool,
    #[serde(default)]
    rstrip: bool,
    #[serde(default)]
    normalized: Option<bool>,
    #[serde(default)]
    special: bool,
}

/// What the small files say about special tokens, by the tokens' texts.
#[derive(Default)]
struct Roles {
    bos: Option<String>,
    eos: Option<String>,
    unk: Option<String>,
    pad: Option<String>,
    /// All texts that a file calls special.
    special: HashSet<String>,
    add_bos: Option<bool>,
    add_eos: Option<bool>,
    /// `eos_token_id` of the generation config.
    eos_ids: Vec<u32>,
    templates: Vec<(String, String)>,
}

pub(crate) fn parts(files: &HfFiles<'_>) -> Result<Parts> {
    check_limit("size of tokenizer.json in bytes", files.tokenizer.len(), limits::TOKENIZER_BYTES)?;
    let mut root: Map<String, Value> = parse(FILE, files.tokenizer)?;
    let mut roles = read_roles(files)?;
    let model = root.remove("model").ok_or_else(|| Error::invalid(FILE, "has no `model`"))?;
    let Built { model, texts, unk } = components::model(model)?;
    let mut take = |key: &str| root.remove(key).filter(|v| !v.is_null());
    let normalizer = take("normalizer").map(components::normalizer).transpose()?;
    let pre = take("pre_tokenizer").map(components::pre_tokenizer).transpose()?;
    let decoding = components::decoding(take("decoder").as_ref())?;
    let mut frame = components::frame(take("post_processor").as_ref())?;
    let added = read_added(take("added_tokens"), &texts, &roles)?;

    let entries = entries(&texts, &added, &decoding)?;
    let vocab = Vocab::new(&entries, decoding.strip_space, decoding.spaced)?;
    let id = |text: &Option<String>| text.as_ref().and_then(|t| vocab.id(t));
    let (bos, eos) = (id(&roles.bos), id(&roles.eos));
    apply_switches(&mut frame, &roles, bos, eos);
    let unk = unk.or_else(|| id(&roles.unk));
    let pad = id(&roles.pad);
    let mut ends: Vec<u32> = roles.eos_ids.iter().chain(files.eos).copied().chain(eos).collect();
    ends.sort_unstable();
    ends.dedup();
    let (raw, normalized) = split_by_form(added, normalizer.as_ref())?;
    if let Some(template) = files.chat_template {
        roles.templates.retain(|(name, _)| name != "default");
        roles.templates.push(("default".to_owned(), template.to_owned()));
    }
    Ok(Parts {
        vocab,
        added: AddedTokens::new(raw)?,
        normalized: AddedTokens::new(normalized)?,
        model: Model::Pipeline(Box::new(Pipeline { normalizer, pre, model })),
        frame,
        bos,
        main_eos: eos,
        eos: ends,
        unk,
        pad,
        templates: roles.templates,
    })
}

fn parse<T: DeserializeOwned>(file: &str, bytes: &[u8]) -> Result<T> {
    serde_json::from_slice(bytes).map_err(|e| Error::invalid(file, e))
}

/// Added tokens of the file, and those that only the small files call special.
fn read_added(
    list: Option<Value>,
    texts: &HashMap<String, u32>,
    roles: &Roles,
) -> Result<Vec<(AddedToken, bool)>> {
    let list: Vec<Added> = match list {
        Some(list) => serde_json::from_value(list)
            .map_err(|e| Error::invalid("tokenizer.json, added_tokens", e))?,
        None => Vec::new(),
    };
    check_limit("number of added tokens", list.len(), limits::VOCAB)?;
    let listed: HashSet<&str> = list.iter().map(|a| a.content.as_str()).collect();
    let mut unlisted: Vec<&String> =
        roles.special.iter().filter(|text| !listed.contains(text.as_str())).collect();
    unlisted.sort();
    let from_roles = unlisted.into_iter().filter_map(|text| {
        let id = *texts.get(text)?;
        let token = AddedToken {
            id,
            text: text.clone(),
            special: true,
            lstrip: false,
            rstrip: false,
            single_word: false,
        };
        Some((token, false))
    });
    let from_roles: Vec<(AddedToken, bool)> = from_roles.collect();
    let from_file = list.into_iter().map(|added| {
        // The model's own id for the same text goes first, as in the `tokenizers` crate.
        let id = texts.get(&added.content).copied().unwrap_or(added.id);
        let special = added.special || roles.special.contains(&added.content);
        let normalized = added.normalized.unwrap_or(!added.special);
        let token = AddedToken {
            id,
            text: added.content,
            special,
            lstrip: added.lstrip,
            rstrip: added.rstrip,
            single_word: added.single_word,
        };
        (token, normalized)
    });
    Ok(from_file.chain(from_roles).collect())
}

/// The token table.
fn entries(
    texts: &HashMap<String, u32>,
    added: &[(AddedToken, bool)],
    decoding: &Decoding,
) -> Result<Vec<Entry>> {
    let ids = texts.values().chain(added.iter().map(|(token, _)| &token.id));
    let highest = ids.max().copied().unwrap_or(0);
    let len = usize::try_from(highest).unwrap_or(usize::MAX).saturating_add(1);
    check_limit("the highest token id", len, limits::TOKEN_ID)?;
    let mut entries = vec![Entry::hole(); len];
    let mut set = |id: u32, entry: Entry| {
        if let Some(slot) = usize::try_from(id).ok().and_then(|id| entries.get_mut(id)) {
            *slot = entry;
        }
    };
    for (text, id) in texts {
        let bytes = match decoding {
            Decoding { byte_level: true, .. } => byte_level_bytes(text),
            Decoding { byte_fallback: true, .. } if byte_token(text).is_some() => {
                byte_token(text).into_iter().collect()
            }
            Decoding { space: Some(space), .. } => text.replace(space.as_str(), " ").into_bytes(),
            _ => text.as_bytes().to_vec(),
        };
        set(*id, Entry { text: text.clone(), bytes, kind: Kind::Text });
    }
    for (token, _) in added {
        let kind = if token.special { Kind::Special } else { Kind::Text };
        let text = token.text.clone();
        set(token.id, Entry { bytes: text.as_bytes().to_vec(), text, kind });
    }
    Ok(entries)
}

/// Separates tokens that are found in the text as it is from those found once it is normalized,
/// which are normalized themselves.
fn split_by_form(
    added: Vec<(AddedToken, bool)>,
    normalizer: Option<&tokenizers::NormalizerWrapper>,
) -> Result<(Vec<AddedToken>, Vec<AddedToken>)> {
    let mut raw = Vec::new();
    let mut normalized = Vec::new();
    for (mut token, in_normalized) in added {
        if !in_normalized {
            raw.push(token);
            continue;
        }
        if let Some(normalizer) = normalizer {
            let mut text = NormalizedString::from(token.text.as_str());
            normalizer
                .normalize(&mut text)
                .map_err(|e| Error::invalid("tokenizer.json, normalizer", e))?;
            token.text = text.get().to_owned();
        }
        normalized.push(token);
    }
    Ok((raw, normalized))
}

/// `add_bos_token` and `add_eos_token` go before what the post-processor says.
fn apply_switches(frame: &mut Frame, roles: &Roles, bos: Option<u32>, eos: Option<u32>) {
    let switch = |side: &mut Vec<u32>, on: Option<bool>, token: Option<u32>| {
        let (Some(on), Some(token)) = (on, token) else { return };
        if !on {
            side.retain(|id| *id != token);
        } else if !side.contains(&token) {
            side.push(token);
        }
    };
    switch(&mut frame.prefix, roles.add_bos, bos);
    switch(&mut frame.suffix, roles.add_eos, eos);
}

/// Reads the small files. What they say of one token is the same in all; later ones fill gaps.
fn read_roles(files: &HfFiles<'_>) -> Result<Roles> {
    let mut roles = Roles::default();
    let small = [
        ("tokenizer_config.json", files.tokenizer_config),
        ("special_tokens_map.json", files.special_tokens_map),
    ];
    for (name, bytes) in small {
        let Some(bytes) = bytes else { continue };
        check_limit(&format!("size of {name} in bytes"), bytes.len(), limits::TOKENIZER_BYTES)?;
        roles.read(&parse(name, bytes)?)?;
    }
    if let Some(bytes) = files.generation_config {
        let config: Map<String, Value> = parse("generation_config.json", bytes)?;
        roles.eos_ids = match config.get("eos_token_id") {
            None | Some(Value::Null) => Vec::new(),
            Some(ids) => ids_of(ids).ok_or_else(|| {
                Error::invalid("generation_config.json, eos_token_id", "is no id or list of ids")
            })?,
        };
    }
    Ok(roles)
}

/// A token id, or several.
fn ids_of(value: &Value) -> Option<Vec<u32>> {
    let id = |v: &Value| v.as_u64().and_then(|id| u32::try_from(id).ok());
    match value {
        Value::Array(ids) => ids.iter().map(id).collect(),
        one => id(one).map(|id| vec![id]),
    }
}

impl Roles {
    fn read(&mut self, config: &Map<String, Value>) -> Result<()> {
        for (key, slot) in [
            ("bos_token", &mut self.bos),
            ("eos_token", &mut self.eos),
            ("unk_token", &mut self.unk),
            ("pad_token", &mut self.pad),
        ] {
            if let Some(text) = config.get(key).and_then(token_text) {
                self.special.insert(text.to_owned());
                slot.get_or_insert_with(|| text.to_owned());
            }
        }
        let more = ["additional_special_tokens", "extra_special_tokens"];
        for list in more.into_iter().filter_map(|key| config.get(key)) {
            let texts: Vec<&Value> = match list {
                Value::Array(items) => items.iter().collect(),
                Value::Object(named) => named.values().collect(),
                _ => Vec::new(),
            };
            self.special.extend(texts.into_iter().filter_map(token_text).map(str::to_owned));
        }
        if let Some(Value::Object(added)) = config.get("added_tokens_decoder") {
            let special = added.values().filter(|t| t.get("special") == Some(&Value::Bool(true)));
            self.special.extend(special.filter_map(token_text).map(str::to_owned));
        }
        let switch = |key: &str| config.get(key).and_then(Value::as_bool);
        self.add_bos = self.add_bos.or(switch("add_bos_token"));
        self.add_eos = self.add_eos.or(switch("add_eos_token"));
        self.read_templates(config.get("chat_template"))
    }

    fn read_templates(&mut self, value: Option<&Value>) -> Result<()> {
        #[derive(Deserialize)]
        struct Named {
            name: String,
            template: String,
        }
        match value {
            None | Some(Value::Null) => {}
            Some(Value::String(template)) => {
                self.templates.push(("default".to_owned(), template.clone()));
            }
            Some(list) => {
                let named: Vec<Named> = Deserialize::deserialize(list)
                    .map_err(|e| Error::invalid("tokenizer_config.json, chat_template", e))?;
                self.templates.extend(named.into_iter().map(|t| (t.name, t.template)));
            }
        }
        Ok(())
    }
}

/// A token is given as its text, or as an object with it.
fn token_text(value: &Value) -> Option<&str> {
    let text = value.as_str().or_else(|| value.get("content")?.as_str())?;
    (!text.is_empty() && text.len() <= limits::ADDED_TOKEN_BYTES).then_some(text)
}
