//! How a server is to run.

use crate::limits::Limits;
use crate::loader::Loader;
use crate::log::Log;
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use tangor_store::ModelName;

/// How a server is to run.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where it listens.
    pub address: SocketAddr,
    /// Models that are loaded first; the first one answers requests that name none.
    pub models: Vec<ModelName>,
    /// What loads models.
    pub loader: Arc<dyn Loader>,
    /// What clients must show: needed on any address that other machines reach.
    pub key: Option<Key>,
    /// What clients must show to change which models there are; `None`: the same.
    pub admin_key: Option<Key>,
    /// Web pages that may ask, as `https://chat.example`; `*` is any.
    pub origins: Vec<String>,
    /// Names of this machine that clients may use, beside `localhost` and its addresses.
    pub hosts: Vec<String>,
    /// Whether every name that a client gives means the first of the models: for programs that
    /// start the server for a model which they know by a name of their own.
    pub one_model: bool,
    /// Where a line about every request goes.
    pub log: Option<Log>,
    /// Bounds.
    pub limits: Limits,
}

impl Options {
    /// For this machine alone, on a port that is free: without keys and lines about requests, and
    /// within the usual bounds.
    #[must_use]
    pub fn new(models: Vec<ModelName>, loader: Arc<dyn Loader>) -> Self {
        Self {
            address: ([127, 0, 0, 1], 0).into(),
            models,
            loader,
            key: None,
            admin_key: None,
            origins: Vec::new(),
            hosts: Vec::new(),
            one_model: false,
            log: None,
            limits: Limits::default(),
        }
    }
}

/// A secret. Nothing shows it.
#[derive(Clone, PartialEq, Eq)]
pub struct Key(String);

impl Key {
    /// A secret; `None` if it is empty.
    #[must_use]
    pub fn new(secret: impl Into<String>) -> Option<Self> {
        let secret = secret.into().trim().to_owned();
        (!secret.is_empty()).then_some(Self(secret))
    }

    /// Whether this is it; takes as long for every guess of a length.
    pub(crate) fn is(&self, guess: &[u8]) -> bool {
        use sha2::{Digest as _, Sha256};
        use subtle::ConstantTimeEq as _;
        let digest = |bytes: &[u8]| Sha256::digest(bytes);
        digest(self.0.as_bytes()).ct_eq(&digest(guess)).into()
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::Key;

    #[test]
    fn a_key_shows_itself_to_nobody_and_knows_itself() {
        let key = Key::new(" s3cret\n").unwrap();
        assert_eq!(format!("{key:?}"), "Key(…)");
        assert!(key.is(b"s3cret"));
        for guess in [&b""[..], b"s3cre", b"s3cret ", b"S3cret"] {
            assert!(!key.is(guess));
        }
        assert_eq!(Key::new("  "), None);
    }
}
