//! The table of tokens: id to text, to bytes, and to kind, whatever file they came from.

use crate::error::{Result, check_limit};
use crate::limits;
use std::sync::OnceLock;

/// What a token is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A piece of text.
    Text,
    /// Controls the model, as `<|im_end|>`; never spelled by user text.
    Special,
}

/// All tokens by id, with how they decode.
#[derive(Debug)]
pub(crate) struct Vocab {
    texts: Packed,
    bytes: Packed,
    kinds: Vec<Kind>,
    /// Ids in the order of their texts, for lookup; made when something is looked up.
    by_text: OnceLock<Vec<u32>>,
    /// A space that encoding put before the text is taken off when decoding.
    pub(crate) strip_space: bool,
    /// Tokens are words without their spaces, which decoding puts between them.
    pub(crate) spaced: bool,
}

/// One token as a reader hands it over.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) text: String,
    pub(crate) bytes: Vec<u8>,
    pub(crate) kind: Kind,
}

impl Entry {
    /// An id that no token has.
    pub(crate) fn hole() -> Self {
        Self { text: String::new(), bytes: Vec::new(), kind: Kind::Text }
    }
}

impl Vocab {
    pub(crate) fn new(entries: &[Entry], strip_space: bool, spaced: bool) -> Result<Self> {
        check_limit("the highest token id", entries.len(), limits::TOKEN_ID)?;
        Ok(Self {
            bytes: Packed::new(entries.iter().map(|e| e.bytes.as_slice())),
            kinds: entries.iter().map(|e| e.kind).collect(),
            texts: Packed::new(entries.iter().map(|e| e.text.as_bytes())),
            by_text: OnceLock::new(),
            strip_space,
            spaced,
        })
    }

    pub(crate) fn len(&self) -> usize {
        self.kinds.len()
    }

    pub(crate) fn text(&self, id: u32) -> Option<&str> {
        std::str::from_utf8(self.texts.get(id)?).ok()
    }

    pub(crate) fn bytes(&self, id: u32) -> Option<&[u8]> {
        self.bytes.get(id)
    }

    pub(crate) fn kind(&self, id: u32) -> Option<Kind> {
        self.kinds.get(usize::try_from(id).ok()?).copied()
    }

    pub(crate) fn is_special(&self, id: u32) -> bool {
        self.kind(id) == Some(Kind::Special)
    }

    /// Id of the token with exactly this text; the lowest where several have it.
    pub(crate) fn id(&self, text: &str) -> Option<u32> {
        let by_text = self.by_text.get_or_init(|| self.sorted());
        let own = |id: u32| self.texts.get(id).unwrap_or_default();
        let at = by_text.binary_search_by(|&id| own(id).cmp(text.as_bytes()));
        at.ok().and_then(|at| by_text.get(at)).copied()
    }

    fn sorted(&self) -> Vec<u32> {
        let texts = &self.texts;
        let named = |id: &u32| texts.get(*id).is_some_and(|text| !text.is_empty());
        let mut ids: Vec<u32> = (0u32..).take(self.len()).filter(named).collect();
        ids.sort_by(|&a, &b| texts.get(a).cmp(&texts.get(b)).then(a.cmp(&b)));
        ids.dedup_by(|later, first| texts.get(*later) == texts.get(*first));
        ids
    }
}

/// Many byte strings in one allocation.
#[derive(Debug)]
struct Packed {
    data: Vec<u8>,
    ends: Vec<usize>,
}

impl Packed {
    fn new<'a>(items: impl Iterator<Item = &'a [u8]> + Clone) -> Self {
        let mut data = Vec::with_capacity(items.clone().map(<[u8]>::len).sum());
        let mut ends = Vec::with_capacity(items.size_hint().0);
        for item in items {
            data.extend_from_slice(item);
            ends.push(data.len());
        }
        Self { data, ends }
    }

    fn get(&self, id: u32) -> Option<&[u8]> {
        let at = usize::try_from(id).ok()?;
        let end = *self.ends.get(at)?;
        let start = if at == 0 { 0 } else { *self.ends.get(at - 1)? };
        self.data.get(start..end)
    }
}

/// The byte that a character of a byte-level vocabulary stands for.
///
/// GPT-2's table: printable Latin-1 stands for itself, the other 68 bytes are moved to U+0100 on
/// in the order of their values.
pub(crate) fn byte_of_char(c: char) -> Option<u8> {
    let code = u32::from(c);
    if let Ok(byte) = u8::try_from(code) {
        return is_printable(byte).then_some(byte);
    }
    let moved = usize::try_from(code.checked_sub(0x100)?).ok()?;
    (0..=255u8).filter(|&b| !is_printable(b)).nth(moved)
}

/// The character that stands for a byte in a byte-level vocabulary.
#[cfg(test)]
pub(crate) fn char_of_byte(byte: u8) -> char {
    if is_printable(byte) {
        return char::from(byte);
    }
    let moved = (0..byte).filter(|&b| !is_printable(b)).count();
    u32::try_from(moved).ok().and_then(|m| char::from_u32(0x100 + m)).unwrap_or('\u{fffd}')
}

fn is_printable(byte: u8) -> bool {
    matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff)
}

/// Bytes of a token of a byte-level vocabulary; a token with a character outside the table stands
/// for itself.
pub(crate) fn byte_level_bytes(text: &str) -> Vec<u8> {
    let bytes: Option<Vec<u8>> = text.chars().map(byte_of_char).collect();
    bytes.unwrap_or_else(|| text.as_bytes().to_vec())
}

/// The byte that a byte token, as `<0x0A>`, stands for.
pub(crate) fn byte_token(text: &str) -> Option<u8> {
    let hex = text.strip_prefix("<0x")?.strip_suffix('>')?;
    if hex.len() != 2 {
        return None;
    }
    u8::from_str_radix(hex, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_byte_table_is_a_bijection_with_gpt2s_corner_values() {
        for byte in 0..=255u8 {
            assert_eq!(byte_of_char(char_of_byte(byte)), Some(byte));
        }
        assert_eq!(char_of_byte(b' '), 'Ġ');
        assert_eq!(char_of_byte(b'\n'), 'Ċ');
        assert_eq!(char_of_byte(0xad), 'Ń');
        assert_eq!(byte_of_char('▁'), None);
    }

    #[test]
    fn finds_tokens_by_text_and_prefers_the_lowest_id() {
        let entry = |text: &str| Entry {
            text: text.into(),
            bytes: text.as_bytes().to_vec(),
            kind: Kind::Text,
        };
        let entries = [entry("b"), entry("a"), Entry::hole(), entry("b")];
        let vocab = Vocab::new(&entries, false, false).unwrap();
        assert_eq!(vocab.id("b"), Some(0));
        assert_eq!(vocab.id("a"), Some(1));
        assert_eq!(vocab.id(""), None);
        assert_eq!(vocab.id("c"), None);
        assert_eq!(vocab.text(3), Some("b"));
        assert_eq!(vocab.bytes(4), None);
    }
}
