//! The errors of this crate: each names its subject, and what to do where something can be done.

/// What this crate's functions return.
pub type Result<T> = std::result::Result<T, Error>;

/// Why a tokenizer or a template could not be loaded or used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A size is over its limit (see [`crate::limits`]).
    #[error("{what} is {found}, but at most {limit} is accepted")]
    Limit {
        /// What was measured, with its unit.
        what: String,
        /// The limit.
        limit: u64,
        /// What the input has.
        found: u64,
    },
    /// A file is malformed or contradicts itself.
    #[error("{what}: {why}")]
    Invalid {
        /// The file, and the field in it.
        what: String,
        /// What is wrong with it.
        why: String,
    },
    /// A file is well-formed but needs something that this crate does not have.
    #[error("{what} is not supported; {hint}")]
    Unsupported {
        /// The component, by the name the file gives it.
        what: String,
        /// What to do instead.
        hint: String,
    },
    /// Text that the vocabulary cannot express.
    #[error("the text cannot be tokenized: {why}")]
    Encode {
        /// What the tokenizer said.
        why: String,
    },
    /// The model has no chat template.
    #[error("the model has no chat template; use --raw to send the prompt as it is")]
    NoTemplate,
    /// The chat template does not parse, refuses the messages, or runs over its limits.
    #[error("chat template, line {line}: {why}")]
    Template {
        /// Line of the template, from 1; 0 where none is known.
        line: usize,
        /// What the template engine, or the template itself, said.
        why: String,
    },
    /// A grammar or a schema that cannot be followed.
    #[error("the grammar cannot be used: {why}")]
    Grammar {
        /// What the parser said.
        why: String,
    },
    /// A message that no template can be given.
    #[error("message {index}: {why}")]
    Message {
        /// Index of the message, from 0.
        index: usize,
        /// What is wrong with it.
        why: String,
    },
}

impl Error {
    pub(crate) fn invalid(what: impl Into<String>, why: impl ToString) -> Self {
        Self::Invalid { what: what.into(), why: why.to_string() }
    }

    pub(crate) fn unsupported(what: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::Unsupported { what: what.into(), hint: hint.into() }
    }
}

/// Fails with [`Error::Limit`] if `found` is over `limit`.
pub(crate) fn check_limit(what: &str, found: usize, limit: usize) -> Result<()> {
    if found <= limit {
        return Ok(());
    }
    let wide = |n: usize| u64::try_from(n).unwrap_or(u64::MAX);
    Err(Error::Limit { what: what.to_owned(), limit: wide(limit), found: wide(found) })
}
