//! Matching of added tokens (special ones and others) in text, before the model sees it.

use crate::error::{Result, check_limit};
use crate::limits;
use std::ops::Range;

/// A token that is found in the text itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct AddedToken {
    pub(crate) id: u32,
    /// What is looked for.
    pub(crate) text: String,
    pub(crate) special: bool,
    /// Takes the white space before it.
    pub(crate) lstrip: bool,
    /// Takes the white space after it.
    pub(crate) rstrip: bool,
    /// Is found only between characters that belong to no word.
    pub(crate) single_word: bool,
}

/// Added tokens, ready to be searched for.
#[derive(Debug, Default)]
pub(crate) struct AddedTokens {
    /// In the order of their texts, without duplicates.
    sorted: Vec<AddedToken>,
    /// First bytes there are.
    first: Vec<bool>,
}

/// A part of a text.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Piece {
    /// Text for the model.
    Text(Range<usize>),
    /// An added token, with the text that it takes.
    Token(u32, Range<usize>),
}

impl AddedTokens {
    pub(crate) fn new(mut tokens: Vec<AddedToken>) -> Result<Self> {
        tokens.retain(|t| !t.text.is_empty());
        let longest = tokens.iter().map(|t| t.text.len()).max().unwrap_or(0);
        check_limit("length of an added token in bytes", longest, limits::ADDED_TOKEN_BYTES)?;
        // Of two tokens with one text, the later definition counts.
        tokens.reverse();
        tokens.sort_by(|a, b| a.text.cmp(&b.text));
        tokens.dedup_by(|later, first| later.text == first.text);
        let mut first = vec![false; 256];
        for byte in tokens.iter().filter_map(|t| t.text.as_bytes().first()) {
            if let Some(slot) = first.get_mut(usize::from(*byte)) {
                *slot = true;
            }
        }
        Ok(Self { sorted: tokens, first })
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.sorted.is_empty()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &AddedToken> {
        self.sorted.iter()
    }

    /// The tokens that stand at the start of `text`, the shortest first.
    pub(crate) fn at(&self, text: &[u8]) -> impl DoubleEndedIterator<Item = &AddedToken> {
        self.prefixes(text).into_iter()
    }

    fn prefixes(&self, text: &[u8]) -> Vec<&AddedToken> {
        let mut found = Vec::new();
        let head = text.first().map_or(0, |byte| usize::from(*byte));
        if !self.first.get(head).copied().unwrap_or(false) {
            return found;
        }
        let mut candidates = self.sorted.as_slice();
        for (at, byte) in text.iter().enumerate() {
            let byte_of = |t: &AddedToken| t.text.as_bytes().get(at).copied();
            let from = candidates.partition_point(|t| byte_of(t) < Some(*byte));
            let to = candidates.partition_point(|t| byte_of(t) <= Some(*byte));
            candidates = candidates.get(from..to).unwrap_or_default();
            let Some(shortest) = candidates.first() else { break };
            if shortest.text.len() == at + 1 {
                found.push(shortest);
            }
        }
        found
    }

    /// Splits `text` at the tokens it contains: leftmost first, the longest of those, as Hugging
    /// Face does. `accept` says whether a token may stand where it was found; if not, shorter ones
    /// and later ones get their turn.
    pub(crate) fn split(
        &self,
        text: &str,
        accept: impl Fn(&AddedToken, &Range<usize>) -> bool,
    ) -> Vec<Piece> {
        let mut pieces = Vec::new();
        let mut done = 0;
        let mut at = 0;
        while let Some(rest) = text.get(at..) {
            let Some(step) = rest.chars().next().map(char::len_utf8) else { break };
            let Some(token) = self.at(rest.as_bytes()).rev().find(|t| {
                let range = at..at + t.text.len();
                accept(t, &range) && (!t.single_word || stands_alone(text, &range))
            }) else {
                at += step;
                continue;
            };
            let mut range = at..at + token.text.len();
            if token.lstrip {
                let before = text.get(done..at).unwrap_or_default();
                range.start = done + before.trim_end().len();
            }
            if token.rstrip {
                let after = text.get(range.end..).unwrap_or_default();
                range.end += after.len() - after.trim_start().len();
            }
            if done < range.start {
                pieces.push(Piece::Text(done..range.start));
            }
            done = range.end;
            at = range.end;
            pieces.push(Piece::Token(token.id, range));
        }
        if done < text.len() {
            pieces.push(Piece::Text(done..text.len()));
        }
        pieces
    }
}

/// Whether no word reaches into the range from outside.
fn stands_alone(text: &str, range: &Range<usize>) -> bool {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let before = text.get(..range.start).and_then(|t| t.chars().next_back());
    let after = text.get(range.end..).and_then(|t| t.chars().next());
    !before.is_some_and(is_word) && !after.is_some_and(is_word)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(id: u32, text: &str) -> AddedToken {
        AddedToken {
            id,
            text: text.into(),
            special: false,
            lstrip: false,
            rstrip: false,
            single_word: false,
        }
    }

    fn shown(added: &AddedTokens, text: &str) -> String {
        let show = |piece: &Piece| match piece {
            Piece::Text(range) => text[range.clone()].to_owned(),
            Piece::Token(id, range) => format!("{id}:{}", &text[range.clone()]),
        };
        added.split(text, |_, _| true).iter().map(show).collect::<Vec<_>>().join("|")
    }

    #[test]
    fn the_leftmost_longest_token_wins() {
        let added =
            AddedTokens::new(vec![token(1, "<a>"), token(2, "<a><b>"), token(3, "  ")]).unwrap();
        let cases = [
            ("x<a>y", "x|1:<a>|y"),
            ("<a><b><a>", "2:<a><b>|1:<a>"),
            ("<a><c>", "1:<a>|<c>"),
            ("<<a>", "<|1:<a>"),
            ("     é", "3:  |3:  | é"),
            ("", ""),
            ("<a", "<a"),
        ];
        for (text, expected) in cases {
            assert_eq!(shown(&added, text), expected, "{text:?}");
        }
    }

    #[test]
    fn stripping_takes_the_white_space_but_no_earlier_token() {
        let strip = AddedToken { lstrip: true, rstrip: true, ..token(1, "<m>") };
        let added = AddedTokens::new(vec![strip]).unwrap();
        assert_eq!(shown(&added, "a  <m> \n<m> b"), "a|1:  <m> \n|1:<m> |b");
    }

    #[test]
    fn a_single_word_token_is_not_found_within_a_word() {
        let word = AddedToken { single_word: true, ..token(1, "day") };
        let added = AddedTokens::new(vec![word]).unwrap();
        assert_eq!(shown(&added, "day monday day!"), "1:day| monday |1:day|!");
    }

    #[test]
    fn a_refused_token_is_text_and_the_search_goes_on_within_it() {
        let added = AddedTokens::new(vec![token(1, "<a<"), token(2, "<b>")]).unwrap();
        let pieces = added.split("<a<b>", |t, _| t.id != 1);
        assert_eq!(pieces, [Piece::Text(0..2), Piece::Token(2, 2..5)]);
    }
}
