//! SentencePiece's BPE: pieces with scores, merged best first, with bytes for the rest.
//!
//! Follows Kudo and Richardson, "SentencePiece" (2018), as Llama, Phi-3, Mistral and Gemma use it:
//! any two neighbours whose joined text is a piece may merge; the highest score wins, then the
//! leftmost pair.

use std::cmp::Ordering;
use std::collections::{BinaryHeap, HashMap};

/// What stands for a space within pieces.
pub(crate) const SPACE: &str = "▁";

/// The pieces that text can become.
#[derive(Debug)]
pub(crate) struct Spm {
    pieces: HashMap<Box<str>, (u32, f32)>,
    /// Bytes of the longest piece.
    longest: usize,
    /// No piece has a space after another character, so nothing merges across one and words can be
    /// merged one by one.
    by_words: bool,
    /// Token of each byte value.
    bytes: Vec<Option<u32>>,
    unk: Option<u32>,
    /// A space is put before a text that starts or follows an added token.
    pub(crate) add_space: bool,
}

/// A run of text that is one token so far; `len` 0 once it was merged into its left neighbour.
#[derive(Clone, Copy)]
struct Symbol {
    start: usize,
    len: usize,
    prev: Option<usize>,
    next: Option<usize>,
}

/// Buffers that are used for one word after the other.
#[derive(Default)]
struct Work {
    symbols: Vec<Symbol>,
    queue: BinaryHeap<Pair>,
}

/// Two neighbours that may merge.
struct Pair {
    score: f32,
    left: usize,
    right: usize,
    /// Bytes of both when the pair was found: tells whether it is still true.
    len: usize,
}

impl Ord for Pair {
    fn cmp(&self, other: &Self) -> Ordering {
        self.score.total_cmp(&other.score).then(other.left.cmp(&self.left))
    }
}

impl PartialOrd for Pair {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Pair {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Pair {}

impl Spm {
    /// `pieces` are what text can become: control tokens must not be among them. `bytes` has 256
    /// entries, or fewer where byte tokens are missing.
    pub(crate) fn new(
        pieces: HashMap<Box<str>, (u32, f32)>,
        bytes: Vec<Option<u32>>,
        unk: Option<u32>,
        add_space: bool,
    ) -> Self {
        let longest = pieces.keys().map(|p| p.len()).max().unwrap_or(0);
        let by_words = pieces.keys().all(|p| !p.trim_start_matches(SPACE).contains(SPACE));
        Self { pieces, longest, by_words, bytes, unk, add_space }
    }

    /// Appends the tokens of a text without added tokens. `at_boundary`: it starts the whole text
    /// or follows an added token.
    pub(crate) fn encode(&self, text: &str, at_boundary: bool, out: &mut Vec<u32>) {
        let mut escaped = String::with_capacity(text.len() + text.len() / 4 + SPACE.len());
        if self.add_space && at_boundary && !text.is_empty() {
            escaped.push_str(SPACE);
        }
        for c in text.chars() {
            if c == ' ' { escaped.push_str(SPACE) } else { escaped.push(c) }
        }
        let mut work = Work::default();
        let mut rest = escaped.as_str();
        while !rest.is_empty() {
            let end = if self.by_words { word_end(rest) } else { rest.len() };
            let (word, tail) = rest.split_at(end);
            self.merge(word, &mut work, out);
            rest = tail;
        }
    }

    fn merge(&self, text: &str, work: &mut Work, out: &mut Vec<u32>) {
        let Work { symbols, queue } = work;
        split_chars(text, symbols);
        for right in 1..symbols.len() {
            self.offer(text, symbols, Some(right - 1), Some(right), queue);
        }
        while let Some(pair) = queue.pop() {
            let (Some(&left), Some(&right)) = (symbols.get(pair.left), symbols.get(pair.right))
            else {
                continue;
            };
            if left.len == 0 || right.len == 0 || left.len + right.len != pair.len {
                continue;
            }
            if let Some(symbol) = symbols.get_mut(pair.left) {
                symbol.len = pair.len;
                symbol.next = right.next;
            }
            if let Some(symbol) = symbols.get_mut(pair.right) {
                symbol.len = 0;
            }
            if let Some(after) = right.next.and_then(|next| symbols.get_mut(next)) {
                after.prev = Some(pair.left);
            }
            self.offer(text, symbols, left.prev, Some(pair.left), queue);
            self.offer(text, symbols, Some(pair.left), right.next, queue);
        }
        for symbol in symbols.iter().filter(|s| s.len > 0) {
            let piece = text.get(symbol.start..symbol.start + symbol.len).unwrap_or_default();
            self.emit(piece, out);
        }
    }

    /// Queues a pair if it joins to a piece.
    fn offer(
        &self,
        text: &str,
        symbols: &[Symbol],
        left: Option<usize>,
        right: Option<usize>,
        queue: &mut BinaryHeap<Pair>,
    ) {
        let (Some(left), Some(right)) = (left, right) else { return };
        let (Some(a), Some(b)) = (symbols.get(left), symbols.get(right)) else { return };
        let len = a.len + b.len;
        if len > self.longest {
            return;
        }
        let joined = text.get(a.start..a.start + len).and_then(|t| self.pieces.get(t));
        if let Some(&(_, score)) = joined {
            queue.push(Pair { score, left, right, len });
        }
    }

    /// The token of a piece, or the tokens of its bytes.
    fn emit(&self, piece: &str, out: &mut Vec<u32>) {
        if let Some(&(id, _)) = self.pieces.get(piece) {
            out.push(id);
            return;
        }
        let byte_id = |b: u8| self.bytes.get(usize::from(b)).copied().flatten();
        let bytes: Option<Vec<u32>> = piece.bytes().map(byte_id).collect();
        match bytes {
            Some(ids) => out.extend(ids),
            None => out.extend(self.unk),
        }
    }
}

/// Where a word ends: before a space that follows another character.
fn word_end(text: &str) -> usize {
    let spaces = text.len() - text.trim_start_matches(SPACE).len();
    let word = text.get(spaces..).unwrap_or_default();
    word.find(SPACE).map_or(text.len(), |end| spaces + end)
}

/// Makes every character a symbol of its own.
fn split_chars(text: &str, symbols: &mut Vec<Symbol>) {
    symbols.clear();
    for (start, c) in text.char_indices() {
        let index = symbols.len();
        let prev = index.checked_sub(1);
        symbols.push(Symbol { start, len: c.len_utf8(), prev, next: Some(index + 1) });
    }
    if let Some(last) = symbols.last_mut() {
        last.next = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spm(pieces: &[(&str, f32)]) -> Spm {
        let pieces = (0u32..).zip(pieces).map(|(id, (p, s))| (Box::from(*p), (id, *s))).collect();
        let bytes = (0..256).map(|b| Some(1000 + b)).collect();
        Spm::new(pieces, bytes, None, true)
    }

    fn encode(spm: &Spm, text: &str) -> Vec<u32> {
        let mut out = Vec::new();
        spm.encode(text, true, &mut out);
        out
    }

    #[test]
    fn the_highest_score_merges_first_then_the_leftmost() {
        let spm =
            spm(&[("a", 0.0), ("b", 0.0), ("▁", 0.0), ("ab", -2.0), ("ba", -1.0), ("aa", -3.0)]);
        assert_eq!(encode(&spm, "aba"), [2, 0, 4]);
        assert_eq!(encode(&spm, "aaa"), [2, 5, 0]);
    }

    #[test]
    fn words_are_merged_alone_only_where_no_piece_spans_them() {
        let pieces = [("a", 0.0), ("▁", 0.0), ("▁a", -2.0), ("▁▁", -3.0)];
        let apart = spm(&pieces);
        assert!(apart.by_words);
        assert_eq!(encode(&apart, "a  a"), [2, 1, 2]);
        let spanning = spm(&[&pieces[..], &[("a▁", -1.0)]].concat());
        assert!(!spanning.by_words);
        assert_eq!(encode(&spanning, "a a"), [1, 4, 0]);
    }

    #[test]
    fn characters_without_a_piece_become_bytes() {
        let spm = spm(&[("▁", 0.0)]);
        assert_eq!(encode(&spm, "é"), [0, 1000 + 0xc3, 1000 + 0xa9]);
        assert_eq!(encode(&spm, ""), [0u32; 0]);
    }

    #[test]
    fn a_million_equal_characters_take_no_quadratic_time() {
        let spm = spm(&[("a", 0.0), ("▁", 0.0), ("aa", -1.0), ("aaaa", -2.0), ("aaaaaaaa", -3.0)]);
        let ids = encode(&spm, &"a".repeat(1 << 20));
        assert_eq!(ids.len(), (1 << 17) + 1);
    }
}
