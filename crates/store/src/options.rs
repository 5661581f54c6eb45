//! What a store may be told, and what it tells while it works.

use crate::sys::{Disk, RealDisk};
use crate::{Result, StoreError};
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// How a store works. [`StoreOptions::from_env`] is what programs want.
#[derive(Clone, Debug)]
pub struct StoreOptions {
    /// Where models are kept; the user's data folder if absent.
    pub root: Option<PathBuf>,
    /// Never dial out.
    pub offline: bool,
    /// Address of the model hub.
    pub endpoint: String,
    /// Shown to the hub, and to no other host.
    pub token: Option<Token>,
    /// Certificates (PEM) to trust instead of the built-in ones.
    pub ca_file: Option<PathBuf>,
    /// Commands that may be pip, the first that works is taken.
    pub pip: Vec<Vec<String>>,
    /// How long to put up with servers.
    pub patience: Patience,
    /// Bytes that packed weights may take on the disk; 0: none are kept.
    pub packed_bytes: u64,
    /// What is written to.
    pub disk: Arc<dyn Disk>,
}

/// How long to put up with servers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// Time to connect, and the longest time with (almost) no bytes.
    pub stall: Duration,
    /// Attempts in a row that bring (almost) no bytes before giving up.
    pub attempts: u32,
    /// Pause before the second attempt; each further one is twice as long.
    pub pause: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self { stall: Duration::from_secs(30), attempts: 4, pause: Duration::from_millis(500) }
    }
}

impl Default for StoreOptions {
    fn default() -> Self {
        let pip = [
            &["python3", "-m", "pip"][..],
            &["python", "-m", "pip"],
            &["py", "-3", "-m", "pip"],
            &["pip3"],
            &["pip"],
        ];
        let words = |command: &[&str]| command.iter().map(|&word| word.to_owned()).collect();
        Self {
            root: None,
            offline: false,
            endpoint: "https://huggingface.co".to_owned(),
            token: None,
            ca_file: None,
            pip: pip.into_iter().map(words).collect(),
            patience: Patience::default(),
            packed_bytes: PACKED_BYTES,
            disk: Arc::new(RealDisk),
        }
    }
}

impl StoreOptions {
    /// The options that the environment asks for: `TANGOR_HOME`, `TANGOR_OFFLINE` or
    /// `HF_HUB_OFFLINE`, `HF_ENDPOINT`, `HF_TOKEN` (or the file in which the hub's own client keeps
    /// it), `SSL_CERT_FILE`, `TANGOR_PACKED` (bytes, as `20G`; `off`). Proxies are taken from the
    /// usual variables.
    #[must_use]
    pub fn from_env() -> Self {
        let mut options = Self::from_vars(|name| std::env::var(name).ok());
        if options.token.is_none() {
            options.token = stored_token();
        }
        options
    }

    /// As [`StoreOptions::from_env`], with the variables from elsewhere and no token file.
    #[must_use]
    pub fn from_vars(var: impl Fn(&str) -> Option<String>) -> Self {
        let set = |name: &str| var(name).filter(|value| !value.trim().is_empty());
        let on = |name: &str| {
            set(name).is_some_and(|value| {
                !matches!(value.to_ascii_lowercase().as_str(), "0" | "false" | "no" | "off")
            })
        };
        let default = Self::default();
        Self {
            root: set("TANGOR_HOME").map(PathBuf::from),
            offline: on("TANGOR_OFFLINE") || on("HF_HUB_OFFLINE"),
            endpoint: set("HF_ENDPOINT").unwrap_or(default.endpoint),
            token: set("HF_TOKEN").map(Token::new),
            ca_file: set("SSL_CERT_FILE").map(PathBuf::from),
            packed_bytes: set("TANGOR_PACKED")
                .and_then(|text| parse_bytes(&text))
                .unwrap_or(default.packed_bytes),
            ..default
        }
    }
}

/// Bytes that packed weights may take unless told otherwise.
const PACKED_BYTES: u64 = 20_000_000_000;

/// `20G`, `500M`, `off`.
fn parse_bytes(text: &str) -> Option<u64> {
    let text = text.trim().to_ascii_uppercase();
    if matches!(text.as_str(), "OFF" | "NO" | "FALSE") {
        return Some(0);
    }
    let text = text.trim_end_matches('B');
    let units = [("K", 1_000), ("M", 1_000_000), ("G", 1_000_000_000), ("T", 1_000_000_000_000)];
    let unit = units.into_iter().find_map(|(unit, size)| Some((text.strip_suffix(unit)?, size)));
    let (count, size) = unit.unwrap_or((text, 1));
    count.trim().parse::<u64>().ok()?.checked_mul(size)
}

/// The token that the hub's own client has stored for this user.
fn stored_token() -> Option<Token> {
    let path = |name: &str| std::env::var_os(name).map(PathBuf::from);
    let home = || Some(etcetera::home_dir().ok()?.join(".cache/huggingface"));
    let file = path("HF_TOKEN_PATH").or_else(|| Some(path("HF_HOME").or_else(home)?.join("token")));
    let text = std::fs::read_to_string(file?).ok()?;
    let text = text.trim();
    (!text.is_empty() && text.len() < 1024).then(|| Token::new(text))
}

/// A secret that does not show in logs.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

impl Token {
    /// Wraps a secret.
    #[must_use]
    pub fn new(secret: impl Into<String>) -> Self {
        Self(secret.into().trim().to_owned())
    }

    pub(crate) fn secret(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

/// What a pull is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Phase {
    /// Finding out what there is to fetch.
    Resolving,
    /// Waiting for another process that changes the same model.
    Waiting,
    /// Bytes arrive.
    Downloading,
    /// Bytes that are on disk are hashed.
    Verifying,
    /// A file is taken out of an archive.
    Unpacking,
}

/// A step of a pull. Comes at least at the beginning of each phase of each file, and for every
/// piece of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress<'a> {
    /// What is being done.
    pub phase: Phase,
    /// To which file, relative to the model; the model's name where it is no particular file.
    pub file: &'a str,
    /// Bytes done, those of earlier pulls included.
    pub done: u64,
    /// Bytes in all, if that is known.
    pub total: Option<u64>,
}

/// Both ends of the line to whoever asked for a pull.
pub(crate) struct Watch<'a> {
    progress: &'a mut dyn FnMut(&Progress<'_>),
    cancel: &'a AtomicBool,
}

impl<'a> Watch<'a> {
    pub(crate) fn new(progress: &'a mut dyn FnMut(&Progress<'_>), cancel: &'a AtomicBool) -> Self {
        Self { progress, cancel }
    }

    /// Fails once the caller wants to stop.
    pub(crate) fn alive(&self) -> Result<()> {
        if self.cancel.load(Ordering::Relaxed) { Err(StoreError::Cancelled) } else { Ok(()) }
    }

    /// Says what is going on; fails once the caller wants to stop.
    pub(crate) fn tick(
        &mut self,
        phase: Phase,
        file: &str,
        done: u64,
        total: Option<u64>,
    ) -> Result<()> {
        (self.progress)(&Progress { phase, file, done, total });
        self.alive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_environment() {
        let vars = |name: &str| {
            Some(str::to_owned(match name {
                "TANGOR_HOME" => "/models",
                "HF_HUB_OFFLINE" => "1",
                "TANGOR_OFFLINE" => "0",
                "HF_ENDPOINT" => " ",
                "HF_TOKEN" => " hf_secret\n",
                _ => return None,
            }))
        };
        let options = StoreOptions::from_vars(vars);
        assert_eq!(options.root, Some(PathBuf::from("/models")));
        assert!(options.offline);
        assert_eq!(options.endpoint, StoreOptions::default().endpoint);
        assert_eq!(options.token, Some(Token::new("hf_secret")));
        assert!(!format!("{options:?}").contains("secret"));
        assert!(!StoreOptions::from_vars(|_| None).offline);
        for (text, bytes) in [
            ("0", 0),
            ("off", 0),
            ("1000", 1000),
            ("20G", 20_000_000_000),
            (" 5 mb ", 5_000_000),
            ("much", PACKED_BYTES),
            ("99999999999999999999", PACKED_BYTES),
        ] {
            let vars = |name: &str| (name == "TANGOR_PACKED").then(|| text.to_owned());
            assert_eq!(StoreOptions::from_vars(vars).packed_bytes, bytes, "{text:?}");
        }
    }
}
