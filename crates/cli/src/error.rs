//! How a command ends when it does not end well: one `error:` line, a `hint:` line where there is
//! something to do about it, and the exit code.

use crate::terminal;
use std::error::Error;
use std::fmt;
use std::io;
use std::path::Path;
use std::process::ExitCode;
use tangor_engine::plan::model::formats::FormatError;
use tangor_eval::EvalError;
use tangor_server::LoadError;
use tangor_store::StoreError;

/// What a command hands back to `main`.
pub(crate) type Outcome<T = ()> = Result<T, Failure>;

/// Why a command stopped early.
#[derive(Debug)]
pub(crate) enum Failure {
    /// Something is wrong that the user should know: exit code 1.
    Error {
        /// One line: the subject, the limit, what happened.
        message: String,
        /// What to do about it.
        hint: Option<String>,
    },
    /// The arguments contradict each other in a way that the parser cannot see: exit code 2.
    Usage(String),
    /// Ctrl-C: exit code 130.
    Interrupted,
    /// Whoever read our standard output has gone away: quiet, exit code 0.
    PipeClosed,
}

impl Failure {
    /// An error in our own words.
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self::Error { message: message.into(), hint: None }
    }

    /// The same error with something to do about it, unless it says so already.
    #[must_use]
    pub(crate) fn hint(self, advice: impl Into<String>) -> Self {
        match self {
            Self::Error { message, hint: None } => {
                Self::Error { message, hint: Some(advice.into()) }
            }
            other => other,
        }
    }

    /// The same error with its subject in front: `FILE: cannot be read`.
    #[must_use]
    pub(crate) fn about(self, subject: impl fmt::Display) -> Self {
        match self {
            Self::Error { message, hint } => {
                Self::Error { message: format!("{subject}: {message}"), hint }
            }
            other => other,
        }
    }

    /// What happened, on one line.
    pub(crate) fn message(&self) -> String {
        match self {
            Self::Error { message, .. } | Self::Usage(message) => one_line(message),
            Self::Interrupted => "interrupted".to_owned(),
            Self::PipeClosed => String::new(),
        }
    }

    /// Says what happened on stderr and returns the exit code.
    pub(crate) fn report(&self) -> ExitCode {
        match self {
            Self::Error { message, hint } => {
                terminal::note_plain(&format!("{} {}", terminal::red("error:"), one_line(message)));
                if let Some(hint) = hint {
                    terminal::note_plain(&format!(
                        "{} {}",
                        terminal::bold("hint:"),
                        one_line(hint)
                    ));
                }
                ExitCode::from(1)
            }
            Self::Usage(message) => {
                terminal::note_plain(&format!("{} {}", terminal::red("error:"), one_line(message)));
                terminal::note_plain("For more information, try '--help'.");
                ExitCode::from(2)
            }
            Self::Interrupted => {
                terminal::note_plain("interrupted");
                ExitCode::from(crate::interrupt::EXIT_CODE)
            }
            Self::PipeClosed => ExitCode::SUCCESS,
        }
    }
}

/// Every error of the crates below, with the errors that caused it, on one line.
impl<E: Error + 'static> From<E> for Failure {
    fn from(error: E) -> Self {
        if is_interruption(&error) {
            return Self::Interrupted;
        }
        let advice = advice(&error);
        let mut message = error.to_string();
        let mut source = error.source();
        while let Some(cause) = source {
            let text = cause.to_string();
            if !message.contains(&text) {
                message.push_str(": ");
                message.push_str(&text);
            }
            source = cause.source();
        }
        Self::Error { message, hint: advice }
    }
}

/// What the server's clients hear of it.
impl From<Failure> for LoadError {
    fn from(failure: Failure) -> Self {
        Self::Other(failure.message())
    }
}

/// Whether an error only says that the user wanted no more.
fn is_interruption(error: &(dyn Error + 'static)) -> bool {
    matches!(error.downcast_ref(), Some(StoreError::Cancelled))
        || matches!(error.downcast_ref(), Some(EvalError::Stopped))
}

/// What the crates below advise, and what is near.
fn advice(error: &(dyn Error + 'static)) -> Option<String> {
    if let Some(StoreError::UnknownName(name)) = error.downcast_ref()
        && Path::new(name).exists()
    {
        return Some(format!("./{name} is the one in this folder"));
    }
    let of_store = error.downcast_ref().and_then(StoreError::hint);
    let of_format = || error.downcast_ref().and_then(FormatError::hint).map(Into::into);
    of_store.or_else(of_format)
}

/// What writing to standard output failed with.
pub(crate) fn stdout_failure(error: &io::Error) -> Failure {
    match error.kind() {
        io::ErrorKind::BrokenPipe => Failure::PipeClosed,
        _ => Failure::new(format!("cannot write to standard output: {error}")),
    }
}

/// A message on one line, without the numbers that the system has for its errors.
fn one_line(message: &str) -> String {
    let mut text = message.split_whitespace().collect::<Vec<_>>().join(" ");
    while let Some(start) = text.find(" (os error ") {
        let end = text[start..].find(')').map_or(text.len(), |end| start + end + 1);
        text.replace_range(start..end, "");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("the model cannot be read")]
    struct Outer(#[source] io::Error);

    #[test]
    fn an_error_tells_its_causes_on_one_line() {
        let cause = io::Error::other("disk on\nfire");
        let Failure::Error { message, hint } = Failure::from(Outer(cause)) else {
            panic!("an error stays an error");
        };
        assert_eq!(one_line(&message), "the model cannot be read: disk on fire");
        assert_eq!(hint, None);
        assert_eq!(one_line("f: No such file (os error 2): cut"), "f: No such file: cut");
        assert_eq!(one_line("open-ended (os error 2"), "open-ended");
    }

    #[test]
    fn the_first_hint_wins() {
        let failure = Failure::new("no").hint("first").hint("second").about("file");
        let Failure::Error { message, hint } = failure else { panic!("an error") };
        assert_eq!((message.as_str(), hint.as_deref()), ("file: no", Some("first")));
    }

    #[test]
    fn a_closed_pipe_is_not_an_error() {
        let closed = io::Error::from(io::ErrorKind::BrokenPipe);
        assert!(matches!(stdout_failure(&closed), Failure::PipeClosed));
    }
}
