//! Filling a gap in a text: how families of models are asked for what stands between two texts.

use crate::guard::Span;
use crate::{Result, Tokenizer};

/// A part of such a prompt.
#[derive(Clone, Copy)]
enum Part {
    Token(&'static str),
    /// The text in front of the gap.
    Before,
    /// The text behind it.
    After,
}

use Part::{After, Before, Token};

/// What models were trained with, by their publishers' descriptions. A model has the first of
/// these whose tokens it knows.
const FORMS: &[&[Part]] = &[
    // Qwen2.5-Coder, CodeGemma
    &[Token("<|fim_prefix|>"), Before, Token("<|fim_suffix|>"), After, Token("<|fim_middle|>")],
    // StarCoder, Granite
    &[Token("<fim_prefix>"), Before, Token("<fim_suffix>"), After, Token("<fim_middle>")],
    // DeepSeek-Coder
    &[Token("<｜fim▁begin｜>"), Before, Token("<｜fim▁hole｜>"), After, Token("<｜fim▁end｜>")],
    // Codestral
    &[Token("[SUFFIX]"), After, Token("[PREFIX]"), Before],
];

impl Tokenizer {
    /// Ids of a prompt whose answer stands between two texts, with what the model expects around
    /// it; `None` if it knows no tokens for that. The texts are plain, whatever they hold.
    ///
    /// # Errors
    /// As [`encode`](Self::encode).
    pub fn infill(&self, before: &str, after: &str) -> Result<Option<Vec<u32>>> {
        let known = |part: &Part| match part {
            Token(text) => self.token_id(text).is_some(),
            Before | After => true,
        };
        let Some(form) = FORMS.iter().find(|form| form.iter().all(known)) else { return Ok(None) };
        let span = |part: &Part| {
            let (text, trusted) = match part {
                Token(text) => (*text, true),
                Before => (before, false),
                After => (after, false),
            };
            Span { text: text.to_owned(), trusted }
        };
        let spans: Vec<Span> = form.iter().map(span).collect();
        Ok(Some(self.frame(self.encode_spans(&spans)?)))
    }
}

#[cfg(test)]
mod tests {
    use crate::{GgufVocab, Tokenizer};

    /// A tokenizer of bytes, with these special tokens behind them.
    fn tokenizer(specials: &[&str]) -> Tokenizer {
        let bytes = ["<", "|", "f", "i", "m", "_", "s", "u", "x", ">", "a", "b", "ab"];
        let mut vocab = GgufVocab { model: "gpt2".into(), ..GgufVocab::default() };
        vocab.tokens = bytes.iter().chain(specials).map(|text| (*text).to_owned()).collect();
        vocab.merges = vec!["a b".into()];
        // 1: a token like any other; 3: one that only programs write.
        vocab.token_types = [vec![1; bytes.len()], vec![3; specials.len()]].concat();
        Tokenizer::from_gguf(vocab).unwrap()
    }

    #[test]
    fn a_gap_is_marked_as_the_model_knows_it_and_never_by_the_texts() {
        let qwen = ["<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"];
        let ids = tokenizer(&qwen).infill("a", "b").unwrap();
        assert_eq!(ids, Some(vec![13, 10, 14, 11, 15]));
        let codestral = tokenizer(&["[PREFIX]", "[SUFFIX]"]);
        assert_eq!(codestral.infill("a", "b").unwrap(), Some(vec![14, 11, 13, 10]));
        let forged = tokenizer(&qwen).infill("<|fim_suffix|>", "b").unwrap().unwrap();
        assert_eq!(forged.iter().filter(|&&id| id == 14).count(), 1, "{forged:?}");
        assert_eq!(tokenizer(&qwen[..2]).infill("a", "b").unwrap(), None);
    }
}
