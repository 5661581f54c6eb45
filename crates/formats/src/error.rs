//! What is wrong with a checkpoint: one error type for every format.

use std::fmt;
use std::io;
use tangor_tensor::{FileChanged, WeightError};

/// Why a checkpoint was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// A file, tensor or field that has to be there is not.
    Missing,
    /// The system could not read a file.
    Io,
    /// A length or an offset points past the end of the file.
    Truncated,
    /// The file contradicts itself or its format.
    Malformed,
    /// More of something than [`crate::Limits`] allows.
    Limit,
    /// Well-formed, but something that this program does not do.
    Unsupported,
    /// Several files could be meant.
    Ambiguous,
    /// The file changed while it was read.
    Changed,
}

/// A checkpoint that cannot be used: what is wrong with which part of it, and what to do.
///
/// Displays as `subject: message`; the hint, where there is one, is separate.
pub struct FormatError(Box<Inner>);

struct Inner {
    kind: ErrorKind,
    subject: String,
    message: String,
    hint: Option<String>,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

/// Result of reading a checkpoint.
pub type Result<T, E = FormatError> = std::result::Result<T, E>;

impl FormatError {
    /// An error of `kind` about `subject` (a file name, or `file: tensor name`).
    #[must_use]
    pub fn new(kind: ErrorKind, subject: impl Into<String>, message: impl Into<String>) -> Self {
        let (subject, message) = (subject.into(), message.into());
        Self(Box::new(Inner { kind, subject, message, hint: None, source: None }))
    }

    /// Something that has to be there is not.
    #[must_use]
    pub fn missing(subject: impl Into<String>, message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Missing, subject, message)
    }

    /// The system could not read `subject`.
    #[must_use]
    pub fn io(subject: impl Into<String>, error: io::Error) -> Self {
        let mut this = Self::new(ErrorKind::Io, subject, format!("cannot be read: {error}"));
        this.0.source = Some(Box::new(error));
        this
    }

    /// `what` needs `needed` bytes from `offset` on, and the file ends at `len`.
    #[must_use]
    pub fn truncated(
        subject: impl Into<String>,
        what: impl fmt::Display,
        (offset, needed): (u64, u64),
        len: u64,
    ) -> Self {
        let message =
            format!("{what} needs {needed} bytes at offset {offset}, but the file has {len}");
        Self::new(ErrorKind::Truncated, subject, message)
            .with_hint("the file is cut short or damaged: fetch it again")
    }

    /// The file contradicts itself or its format.
    #[must_use]
    pub fn malformed(subject: impl Into<String>, message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Malformed, subject, message)
    }

    /// `found` of `what`, where `limit` are allowed.
    #[must_use]
    pub fn limit(
        subject: impl Into<String>,
        what: impl fmt::Display,
        found: impl fmt::Display,
        limit: impl fmt::Display,
    ) -> Self {
        let message = format!("{what}: {found}, and the limit is {limit}");
        Self::new(ErrorKind::Limit, subject, message)
    }

    /// Well-formed, but not something that this program does.
    #[must_use]
    pub fn unsupported(subject: impl Into<String>, message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Unsupported, subject, message)
    }

    /// Adds what the user can do about it.
    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.0.hint = Some(hint.into());
        self
    }

    /// Puts `outer` (a file name, say) before the subject.
    #[must_use]
    pub fn within(mut self, outer: impl fmt::Display) -> Self {
        self.0.subject = format!("{outer}: {}", self.0.subject);
        self
    }

    /// Puts `subject` in the place of the one that there is: for who reads the fields of one file
    /// as those of another.
    #[must_use]
    pub fn of(mut self, subject: impl Into<String>) -> Self {
        self.0.subject = subject.into();
        self
    }

    /// Says which `part` of the subject the message is about.
    #[must_use]
    pub fn about(mut self, part: &str) -> Self {
        self.0.message = format!("{part}: {}", self.0.message);
        self
    }

    /// Why.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// What the error is about.
    #[must_use]
    pub fn subject(&self) -> &str {
        &self.0.subject
    }

    /// What the user can do about it.
    #[must_use]
    pub fn hint(&self) -> Option<&str> {
        self.0.hint.as_deref()
    }

    /// The parts of the weight `subject` do not fit together.
    #[must_use]
    pub fn weight(subject: impl Into<String>, error: WeightError) -> Self {
        let mut this = Self::new(ErrorKind::Malformed, subject, error.to_string());
        this.0.source = Some(Box::new(error));
        this
    }

    /// The file `subject` changed while it was read.
    #[must_use]
    pub fn changed(subject: impl Into<String>, error: FileChanged) -> Self {
        let mut this = Self::new(ErrorKind::Changed, subject, error.to_string());
        this.0.source = Some(Box::new(error));
        this
    }
}

impl fmt::Debug for FormatError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Inner { kind, subject, message, .. } = &*self.0;
        write!(f, "{kind:?}({subject}: {message})")
    }
}

impl fmt::Display for FormatError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.0.subject, self.0.message)
    }
}

impl std::error::Error for FormatError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source.as_deref().map(|source| source as _)
    }
}
