//! Answers that follow a grammar: which tokens may come next.
//!
//! [`Grammars`] knows a vocabulary; a [`Grammar`] follows one answer. Grammars come from clients
//! and are not trusted: their size, the work of compiling them and that of each step are bounded.

use crate::error::{Error, Result, check_limit};
use crate::limits;
use crate::numbers::{Numbers, goes_on};
use crate::tokenizer::{Specials, Tokenizer};
use llguidance::api::{GrammarWithLexer, ParserLimits, TopLevelGrammar};
use llguidance::toktrie::{InferenceCapabilities, TokEnv, TokRxInfo, TokTrie, TokenizerEnv};
use llguidance::{Matcher, ParserFactory};
use serde_json::{Value, json};
use std::fmt;
use std::sync::Arc;

/// Makes grammars for one vocabulary. Building it takes a moment; share it.
pub struct Grammars {
    factory: ParserFactory,
}

/// A grammar, and how far an answer has followed it.
#[derive(Clone)]
pub struct Grammar {
    matcher: Matcher,
    /// Of an answer whose numbers are to end.
    numbers: Option<Numbers>,
}

/// The vocabulary as the parser wants it.
struct Vocabulary {
    trie: TokTrie,
    tokenizer: Arc<Tokenizer>,
}

impl TokenizerEnv for Vocabulary {
    fn tok_trie(&self) -> &TokTrie {
        &self.trie
    }

    fn tokenize_bytes(&self, bytes: &[u8]) -> Vec<u32> {
        self.trie.tokenize_with_greedy_fallback(bytes, |text| self.in_the_midst(text))
    }
}

/// What stands in front of a text that is not to be its beginning: hardly a token goes beyond it.
const BEFORE: &str = "\u{2}";

impl Vocabulary {
    /// Tokens of a text that others stand before: many vocabularies put a space in front of what
    /// begins.
    fn in_the_midst(&self, text: &str) -> Vec<u32> {
        let encode = |text: &str| self.tokenizer.encode(text, Specials::AsText).unwrap_or_default();
        let ids = encode(text);
        if self.spells(&ids, text) {
            return ids;
        }
        let ids = encode(&format!("{BEFORE}{text}"));
        let mut ends = (1..=ids.len()).map(|end| ids.split_at(end));
        let rest = ends.find_map(|(_, rest)| self.spells(rest, text).then(|| rest.to_vec()));
        rest.unwrap_or_else(|| self.trie.greedy_tokenize(text.as_bytes()))
    }

    /// Whether tokens are this text, to the byte.
    fn spells(&self, ids: &[u32], text: &str) -> bool {
        let bytes = ids.iter().filter_map(|id| self.tokenizer.token_bytes(*id));
        bytes.flatten().eq(text.as_bytes())
    }
}

impl Grammars {
    /// For a tokenizer, and a model that has logits for `vocab` tokens.
    ///
    /// # Errors
    /// [`Error::Grammar`] if the vocabulary cannot be used.
    pub fn new(tokenizer: Arc<Tokenizer>, vocab: usize) -> Result<Self> {
        let id = |index: usize| u32::try_from(index).unwrap_or(u32::MAX);
        let word = |index: usize| {
            let bytes = tokenizer.token_bytes(id(index)).unwrap_or_default();
            match tokenizer.is_special(id(index)) {
                // Marked so that text never matches it.
                true => [&[TokTrie::SPECIAL_TOKEN_MARKER], bytes].concat(),
                false => bytes.to_vec(),
            }
        };
        let words: Vec<Vec<u8>> = (0..vocab).map(word).collect();
        let ends = tokenizer.eos();
        let first =
            ends.first().copied().ok_or_else(|| bad("the model has no end-of-text token"))?;
        let trie = TokTrie::from(&TokRxInfo::new(id(vocab), first), &words).with_eos_tokens(ends);
        let env: TokEnv = Arc::new(Vocabulary { trie, tokenizer });
        let mut factory = ParserFactory::new_simple(&env).map_err(bad)?;
        factory.quiet();
        *factory.limits_mut() = ParserLimits { verbose_errors: false, ..ParserLimits::default() };
        Ok(Self { factory })
    }

    /// JSON texts that a schema accepts.
    ///
    /// # Errors
    /// [`Error::Limit`], or [`Error::Grammar`] with what the schema cannot be.
    pub fn json_schema(&self, schema: &Value) -> Result<Grammar> {
        check_schema(schema)?;
        Ok(self.grammar(GrammarWithLexer::from_json_schema(compact(schema)))?.with_short_numbers())
    }

    /// A schema as it stands behind `%json` in a grammar.
    ///
    /// # Errors
    /// [`Error::Limit`].
    pub fn embedded(schema: &Value) -> Result<String> {
        check_schema(schema)?;
        Ok(compact(schema).to_string())
    }

    /// Texts of a grammar in Lark's notation, as `llguidance` extends it.
    ///
    /// # Errors
    /// As [`Grammars::json_schema`].
    pub fn lark(&self, grammar: &str) -> Result<Grammar> {
        check_limit("size of the grammar in bytes", grammar.len(), limits::GRAMMAR_BYTES)?;
        self.grammar(GrammarWithLexer::from_lark(grammar.to_owned()))
    }

    fn grammar(&self, grammar: GrammarWithLexer) -> Result<Grammar> {
        let grammar = TopLevelGrammar::from_grammar(grammar);
        let parser = llguidance::panic_utils::catch_unwind(std::panic::AssertUnwindSafe(|| {
            self.factory.create_parser(grammar)
        }));
        let mut parser = parser.map_err(bad)?;
        parser.inference_caps =
            InferenceCapabilities { ff_tokens: false, ..InferenceCapabilities::default() };
        let matcher = Matcher::new(Ok(parser));
        match matcher.get_error() {
            Some(error) => Err(bad(error)),
            None => Ok(Grammar { matcher, numbers: None }),
        }
    }
}

impl Grammar {
    /// Has numbers end where they are as long as any has to be, and may end: for grammars whose
    /// answers are in JSON, or hold it.
    #[must_use]
    pub fn with_short_numbers(self) -> Self {
        Self { numbers: Some(Numbers::default()), ..self }
    }

    /// Sets the logits of tokens that cannot come next to minus infinity; `(vocab)`.
    ///
    /// # Errors
    /// [`Error::Grammar`] where that takes more work than a step may take.
    pub fn restrict(&mut self, logits: &mut [f32]) -> Result<()> {
        let mask = self.matcher.compute_mask_or_eos().map_err(bad)?;
        let mut allow = |wanted: &dyn Fn(u32) -> bool| {
            for (id, logit) in logits.iter_mut().enumerate() {
                if !u32::try_from(id).is_ok_and(|id| mask.is_allowed(id) && wanted(id)) {
                    *logit = f32::NEG_INFINITY;
                }
            }
        };
        if !self.numbers.as_ref().is_some_and(Numbers::is_long) {
            allow(&|_| true);
            return Ok(());
        }
        let vocabulary = self.matcher.tok_env().map_err(bad)?;
        let ends = |id: u32| !goes_on(vocabulary.tok_trie().token(id));
        let may_end = mask.iter().any(ends);
        allow(&|id| !may_end || ends(id));
        Ok(())
    }

    /// This token came next.
    ///
    /// # Errors
    /// [`Error::Grammar`] if it must not, or was too much work.
    pub fn accept(&mut self, token: u32) -> Result<()> {
        if self.matcher.is_stopped() && !self.matcher.is_error() {
            return Ok(());
        }
        if let Some(numbers) = &mut self.numbers {
            let vocabulary = self.matcher.tok_env().map_err(bad)?;
            numbers.push(vocabulary.tok_trie().token(token));
        }
        self.matcher.consume_token(token).map_err(bad)
    }

    /// The same grammar in the same state, for another answer.
    #[must_use]
    pub fn duplicate(&self) -> Self {
        Self { matcher: self.matcher.deep_clone(), numbers: self.numbers.clone() }
    }
}

/// The schema, with white space as most programs write it and nowhere else: a model could fill an
/// answer with it otherwise.
pub(crate) fn compact(schema: &Value) -> Value {
    let spaces = json!({
        "whitespace_flexible": false, "item_separator": ", ", "key_separator": ": ",
    });
    match schema {
        Value::Object(members) => {
            let mut members = members.clone();
            members.insert("x-guidance".to_owned(), spaces);
            Value::Object(members)
        }
        other => json!({"allOf": [other], "x-guidance": spaces}),
    }
}

/// Whether a schema is small and flat enough to be compiled.
fn check_schema(schema: &Value) -> Result<()> {
    check_limit("depth of the schema", depth(schema, 0), limits::SCHEMA_DEPTH)?;
    check_limit("size of the schema in bytes", schema.to_string().len(), limits::GRAMMAR_BYTES)
}

/// Depth of a value, as far as it matters.
fn depth(value: &Value, above: usize) -> usize {
    if above > limits::SCHEMA_DEPTH {
        return above;
    }
    let below = |inner: &Value| depth(inner, above + 1);
    match value {
        Value::Array(items) => items.iter().map(below).max().unwrap_or(above + 1),
        Value::Object(fields) => fields.values().map(below).max().unwrap_or(above + 1),
        _ => above,
    }
}

fn bad(why: impl fmt::Display) -> Error {
    Error::Grammar { why: why.to_string() }
}

impl fmt::Debug for Grammars {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Grammars").finish_non_exhaustive()
    }
}

impl fmt::Debug for Grammar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Grammar").field("stopped", &self.matcher.is_stopped()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::GgufVocab;

    /// Visible characters of ASCII, one token each; what is behind them are `ab` and the end.
    const VISIBLE: std::ops::Range<u8> = 33..127;
    const VOCAB: usize = VISIBLE.end as usize - VISIBLE.start as usize + 2;

    /// For vocabularies of this kind.
    fn grammars(model: &str) -> Grammars {
        let mut vocab = GgufVocab { model: model.into(), ..GgufVocab::default() };
        vocab.tokens = VISIBLE.map(|byte| char::from(byte).to_string()).collect();
        vocab.tokens.extend(["ab", "<|endoftext|>"].map(String::from));
        vocab.merges = vec!["a b".into()];
        vocab.token_types = [vec![1; VOCAB - 1], vec![3]].concat();
        vocab.eos = Some(VOCAB as u32 - 1);
        Grammars::new(Arc::new(Tokenizer::from_gguf(vocab).unwrap()), VOCAB).unwrap()
    }

    /// Follows an answer that always takes the first of these characters that may come, until none
    /// may.
    fn followed(mut grammar: Grammar, preferred: &str, most: usize) -> String {
        let mut text = String::new();
        for _ in 0..most {
            let mut logits = [0.0; VOCAB];
            grammar.restrict(&mut logits).unwrap();
            let allowed = |byte: &u8| logits[usize::from(byte - VISIBLE.start)] == 0.0;
            let Some(byte) = preferred.bytes().find(allowed) else { return text };
            grammar.accept((byte - VISIBLE.start).into()).unwrap();
            text.push(byte.into());
        }
        panic!("it does not end: {text}");
    }

    #[test]
    fn numbers_end_where_a_model_would_go_on_with_digits() {
        let grammars = grammars("gpt2");
        for (schema, preferred) in [
            (json!({"type": "array", "items": {"type": "number"}, "maxItems": 1}), "[.73]"),
            (json!({"type": "array", "items": {"type": "integer"}, "maxItems": 1}), "[73]"),
            (
                json!({"type": "array", "items": {"type": "number", "minimum": 1, "maximum": 2},
                       "maxItems": 1}),
                "[.51]",
            ),
        ] {
            let text = followed(grammars.json_schema(&schema).unwrap(), preferred, 40);
            let value: Vec<f64> = serde_json::from_str(&text).unwrap();
            assert_eq!(value.len(), 1, "{text}");
        }
        // A text may have as many digits as it likes.
        let schema = json!({"type": "string", "pattern": "^[0-9]{40}$"});
        let text = followed(grammars.json_schema(&schema).unwrap(), "\"7", 50);
        assert_eq!(text, format!("\"{}\"", "7".repeat(40)));
    }

    #[test]
    fn a_vocabulary_that_puts_a_space_before_what_begins_has_none_in_an_answer() {
        for model in ["gpt2", "llama"] {
            let schema = json!({"type": "array", "items": {"const": "ba"}, "minItems": 1});
            let grammar = grammars(model).json_schema(&schema).unwrap();
            assert_eq!(followed(grammar, "[\"ba]", 20), "[\"ba\"]", "{model}");
        }
    }
}
