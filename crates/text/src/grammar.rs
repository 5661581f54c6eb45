//! Answers that follow a grammar: which tokens may come next.
//!
//! [`Grammars`] knows a vocabulary; a [`Grammar`] follows one answer. Grammars come from clients
//! and are not trusted: their size, the work of compiling them and that of each step are bounded.

use crate::error::{Error, Result, check_limit};
use crate::limits;
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
        let encode = |text: &str| self.tokenizer.encode(text, Specials::AsText).unwrap_or_default();
        self.trie.tokenize_with_greedy_fallback(bytes, encode)
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
        self.grammar(GrammarWithLexer::from_json_schema(compact(schema)))
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
            None => Ok(Grammar { matcher }),
        }
    }
}

impl Grammar {
    /// Sets the logits of tokens that cannot come next to minus infinity; `(vocab)`.
    ///
    /// # Errors
    /// [`Error::Grammar`] where that takes more work than a step may take.
    pub fn restrict(&mut self, logits: &mut [f32]) -> Result<()> {
        let mask = self.matcher.compute_mask_or_eos().map_err(bad)?;
        for (id, logit) in logits.iter_mut().enumerate() {
            if !u32::try_from(id).is_ok_and(|id| mask.is_allowed(id)) {
                *logit = f32::NEG_INFINITY;
            }
        }
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
        self.matcher.consume_token(token).map_err(bad)
    }

    /// The same grammar in the same state, for another answer.
    #[must_use]
    pub fn duplicate(&self) -> Self {
        Self { matcher: self.matcher.deep_clone() }
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
