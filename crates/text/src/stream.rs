//! Incremental decoding: tokens in, whole characters out.

use crate::vocab::Vocab;
use std::sync::Arc;

/// Turns tokens into text as they come.
///
/// A piece never ends within a character: bytes that may still become one are held back. All
/// pieces together, with the one of [`finish`](Self::finish), are what
/// [`Tokenizer::decode`](crate::Tokenizer::decode) gives for the same tokens; of a
/// [`continuing`](Self::continuing) stream, for tokens that others stand before. Bytes that are no
/// UTF-8 become U+FFFD, as in [`String::from_utf8_lossy`].
#[derive(Clone, Debug)]
pub struct DecodeStream {
    vocab: Arc<Vocab>,
    skip_special: bool,
    /// Nothing stands before what comes next.
    at_start: bool,
    /// An unfinished character: at most three bytes between calls.
    held: Vec<u8>,
}

impl DecodeStream {
    pub(crate) fn new(vocab: Arc<Vocab>, skip_special: bool) -> Self {
        Self { vocab, skip_special, at_start: true, held: Vec::new() }
    }

    /// Text stands before this one, and the space in front of its first word is not left out, as it
    /// is where a text begins.
    #[must_use]
    pub fn continuing(mut self) -> Self {
        self.at_start = false;
        self
    }

    /// Takes the next token; gives the text that is certain now, `None` if there is none.
    ///
    /// An id that is not in the vocabulary decodes to nothing.
    pub fn push(&mut self, id: u32) -> Option<String> {
        if self.skip_special && self.vocab.is_special(id) {
            return None;
        }
        let mut bytes = self.vocab.bytes(id)?;
        if bytes.is_empty() {
            return None;
        }
        if self.at_start {
            self.at_start = false;
            if self.vocab.strip_space {
                bytes = bytes.strip_prefix(b" ").unwrap_or(bytes);
            }
        } else if self.vocab.spaced {
            self.held.push(b' ');
        }
        self.held.extend_from_slice(bytes);
        let text = self.take_certain();
        (!text.is_empty()).then_some(text)
    }

    /// Ends the stream: gives U+FFFD if it stopped within a character.
    pub fn finish(self) -> Option<String> {
        (!self.held.is_empty()).then(|| String::from_utf8_lossy(&self.held).into_owned())
    }

    /// Takes everything but an unfinished character from what is held.
    fn take_certain(&mut self) -> String {
        let mut text = String::new();
        let mut rest = self.held.as_slice();
        loop {
            match std::str::from_utf8(rest) {
                Ok(valid) => {
                    text.push_str(valid);
                    rest = &[];
                    break;
                }
                Err(error) => {
                    let (valid, tail) = rest.split_at(error.valid_up_to());
                    text.push_str(&String::from_utf8_lossy(valid));
                    let Some(bad) = error.error_len() else {
                        rest = tail;
                        break;
                    };
                    text.push(char::REPLACEMENT_CHARACTER);
                    rest = tail.get(bad..).unwrap_or_default();
                }
            }
        }
        self.held = rest.to_vec();
        text
    }
}
