//! Reads a SentencePiece `tokenizer.model`: the few fields of its protobuf that a BPE model needs.
//!
//! Field numbers are those of `sentencepiece_model.proto`; token types are the same numbers as in
//! GGUF, so the result is the same plain vocabulary.

use crate::error::{Error, Result, check_limit};
use crate::gguf::GgufVocab;
use crate::limits;

const FILE: &str = "tokenizer.model";
const HINT: &str = "provide the model's tokenizer.json instead";

/// A field's value; groups, which are obsolete, are refused.
enum Field<'a> {
    Number(u64),
    Float(f32),
    Bytes(&'a [u8]),
}

/// Walks over the fields of one message.
struct Message<'a> {
    rest: &'a [u8],
}

impl<'a> Message<'a> {
    fn varint(&mut self) -> Option<u64> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let (byte, rest) = self.rest.split_first()?;
            self.rest = rest;
            value |= u64::from(byte & 0x7f).checked_shl(shift)?;
            if byte & 0x80 == 0 {
                return Some(value);
            }
        }
        None
    }

    fn take(&mut self, len: u64) -> Option<&'a [u8]> {
        let (head, rest) = self.rest.split_at_checked(usize::try_from(len).ok()?)?;
        self.rest = rest;
        Some(head)
    }

    /// The next field: its number and value. `Ok(None)` at the end.
    fn next(&mut self) -> Result<Option<(u64, Field<'a>)>> {
        if self.rest.is_empty() {
            return Ok(None);
        }
        let field = self.read_field().ok_or_else(|| Error::invalid(FILE, "is cut or damaged"))?;
        Ok(Some(field))
    }

    fn read_field(&mut self) -> Option<(u64, Field<'a>)> {
        let key = self.varint()?;
        let field = match key & 7 {
            0 => Field::Number(self.varint()?),
            1 => Field::Bytes(self.take(8)?),
            2 => {
                let len = self.varint()?;
                Field::Bytes(self.take(len)?)
            }
            5 => Field::Float(f32::from_le_bytes(self.take(4)?.try_into().ok()?)),
            _ => return None,
        };
        Some((key >> 3, field))
    }
}

/// Reads the file into a vocabulary.
pub(crate) fn read(bytes: &[u8]) -> Result<GgufVocab> {
    check_limit("size of tokenizer.model in bytes", bytes.len(), limits::TOKENIZER_BYTES)?;
    let mut vocab =
        GgufVocab { model: "llama".to_owned(), add_bos: Some(true), ..GgufVocab::default() };
    let mut is_bpe = false;
    let mut file = Message { rest: bytes };
    while let Some(field) = file.next()? {
        match field {
            (1, Field::Bytes(piece)) => read_piece(piece, &mut vocab)?,
            (2, Field::Bytes(spec)) => is_bpe = read_trainer(spec, &mut vocab)?,
            (3, Field::Bytes(spec)) => read_normalizer(spec, &mut vocab)?,
            _ => {}
        }
    }
    if !is_bpe {
        return Err(Error::unsupported("tokenizer.model of another kind than BPE", HINT));
    }
    Ok(vocab)
}

fn read_piece(bytes: &[u8], vocab: &mut GgufVocab) -> Result<()> {
    let (mut text, mut score, mut kind) = (String::new(), 0.0, 1);
    let mut message = Message { rest: bytes };
    while let Some(field) = message.next()? {
        match field {
            (1, Field::Bytes(bytes)) => {
                let piece = std::str::from_utf8(bytes).map_err(|e| Error::invalid(FILE, e))?;
                piece.clone_into(&mut text);
            }
            (2, Field::Float(value)) => score = value,
            (3, Field::Number(value)) => kind = i32::try_from(value).unwrap_or(0),
            _ => {}
        }
    }
    check_limit("number of tokens", vocab.tokens.len() + 1, limits::VOCAB)?;
    vocab.tokens.push(text);
    vocab.scores.push(score);
    vocab.token_types.push(kind);
    Ok(())
}

/// Reads the special ids; tells whether the model is BPE.
fn read_trainer(bytes: &[u8], vocab: &mut GgufVocab) -> Result<bool> {
    const BPE: u64 = 2;
    let mut is_bpe = false;
    let mut message = Message { rest: bytes };
    while let Some(field) = message.next()? {
        let (number, Field::Number(value)) = field else { continue };
        // A negative id, which says that there is none, is no u32.
        let id = u32::try_from(value).ok();
        match number {
            3 => is_bpe = value == BPE,
            24 if value != 0 => {
                return Err(Error::unsupported("tokenizer.model with spaces as suffixes", HINT));
            }
            40 => vocab.unk = id,
            41 => vocab.bos = id,
            42 => vocab.eos = id,
            43 => vocab.pad = id,
            _ => {}
        }
    }
    Ok(is_bpe)
}

fn read_normalizer(bytes: &[u8], vocab: &mut GgufVocab) -> Result<()> {
    let mut remove_spaces = true;
    let mut message = Message { rest: bytes };
    while let Some(field) = message.next()? {
        match field {
            (2, Field::Bytes(map)) if !map.is_empty() => {
                return Err(Error::unsupported("tokenizer.model with a character map", HINT));
            }
            (3, Field::Number(value)) => vocab.add_space_prefix = Some(value != 0),
            (4, Field::Number(value)) => remove_spaces = value != 0,
            _ => {}
        }
    }
    if remove_spaces {
        return Err(Error::unsupported("tokenizer.model that removes extra spaces", HINT));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A length-delimited field.
    fn bytes(number: u8, value: &[u8]) -> Vec<u8> {
        [&[number << 3 | 2, u8::try_from(value.len()).unwrap()], value].concat()
    }

    fn piece(text: &str, score: f32, kind: u8) -> Vec<u8> {
        let mut out = bytes(1, text.as_bytes());
        out.extend([2 << 3 | 5]);
        out.extend(score.to_le_bytes());
        out.extend([3 << 3, kind]);
        bytes(1, &out)
    }

    fn file(model_type: u8) -> Vec<u8> {
        [
            piece("<unk>", 0.0, 2),
            piece("<s>", 0.0, 3),
            piece("</s>", 0.0, 3),
            piece("▁", -2.0, 1),
            piece("a", -3.0, 1),
            piece("▁a", -1.0, 1),
            bytes(2, &[3 << 3, model_type]),
            bytes(3, &[3 << 3, 1, 4 << 3, 0]),
        ]
        .concat()
    }

    #[test]
    fn reads_pieces_scores_and_types() {
        let tokenizer = crate::Tokenizer::from_sentencepiece(&file(2)).unwrap();
        let ids = tokenizer.encode("a a", crate::Specials::AsText).unwrap();
        assert_eq!(ids, [5, 5]);
        assert_eq!(tokenizer.frame(ids.clone()), [1, 5, 5]);
        assert_eq!(tokenizer.decode(&ids, true), "a a");
        assert_eq!(tokenizer.eos(), [2]);
    }

    #[test]
    fn a_unigram_model_is_refused_with_a_way_out() {
        let error = read(&file(1)).unwrap_err().to_string();
        assert!(error.contains("tokenizer.json"), "{error}");
    }

    #[test]
    fn every_truncation_is_an_error_or_a_smaller_vocabulary() {
        let whole = file(2);
        for len in 0..whole.len() {
            if let Ok(vocab) = read(&whole[..len]) {
                assert!(vocab.tokens.len() <= 6);
            }
        }
    }
}
