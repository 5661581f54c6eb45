//! Digests of files: SHA-256 everywhere, and the SHA-1 by which git names small files.

use serde::{Deserialize, Serialize};
use sha1::Sha1;
use sha2::{Digest as _, Sha256};
use std::fmt;
use std::io::{self, Read};

/// SHA-256 of a file. Written as 64 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Sha256Digest([u8; 32]);

impl Sha256Digest {
    /// Reads 64 hexadecimal digits.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        hex(text).map(Self)
    }

    /// Digest of `bytes`.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }

    /// A constant of the program; a digit that is none fails the build.
    pub(crate) const fn literal(text: &str) -> Self {
        let text = text.as_bytes();
        assert!(text.len() == 64, "a SHA-256 has 64 digits");
        let mut bytes = [0; 32];
        let mut at = 0;
        while at < 32 {
            bytes[at] = (nibble(text[2 * at]) << 4) | nibble(text[2 * at + 1]);
            at += 1;
        }
        Self(bytes)
    }
}

const fn nibble(digit: u8) -> u8 {
    match digit {
        b'0'..=b'9' => digit - b'0',
        b'a'..=b'f' => digit - b'a' + 10,
        _ => panic!("not a lower-case hexadecimal digit"),
    }
}

/// `2 * N` hexadecimal digits of either case.
fn hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    if text.len() != 2 * N || !text.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return None;
    }
    let mut bytes = [0; N];
    for (byte, at) in bytes.iter_mut().zip((0..).step_by(2)) {
        *byte = u8::from_str_radix(text.get(at..at + 2)?, 16).ok()?;
    }
    Some(bytes)
}

fn write_hex(bytes: &[u8], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    bytes.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
}

impl fmt::Display for Sha256Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_hex(&self.0, f)
    }
}

impl fmt::Debug for Sha256Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl From<Sha256Digest> for String {
    fn from(digest: Sha256Digest) -> Self {
        digest.to_string()
    }
}

impl TryFrom<String> for Sha256Digest {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        Self::parse(&text).ok_or("a SHA-256 has 64 hexadecimal digits")
    }
}

/// What a publisher announces about a file's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Announced {
    /// SHA-256 of the bytes.
    Sha256(Sha256Digest),
    /// SHA-1 of `blob LENGTH\0` and the bytes: how git names them.
    GitBlob([u8; 20]),
}

impl Announced {
    /// Reads an entity tag: 64 digits are a SHA-256, 40 a git blob, and anything else is nothing
    /// that could be checked.
    pub(crate) fn from_etag(tag: &str) -> Option<Self> {
        let tag = tag.trim().trim_start_matches("W/").trim_matches('"');
        let git = || hex(tag).map(Self::GitBlob);
        Sha256Digest::parse(tag).map(Self::Sha256).or_else(git)
    }
}

impl fmt::Display for Announced {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sha256(digest) => write!(f, "SHA-256 {digest}"),
            Self::GitBlob(bytes) => {
                f.write_str("git blob ")?;
                write_hex(bytes, f)
            }
        }
    }
}

/// Computes what is needed to check a file of `bytes` bytes while it passes by.
#[derive(Clone)]
pub(crate) struct Hasher {
    sha256: Sha256,
    git: Option<Sha1>,
}

impl Hasher {
    /// `bytes` is the length of the whole file, which git puts before it.
    pub(crate) fn new(announced: Option<Announced>, bytes: u64) -> Self {
        let git = matches!(announced, Some(Announced::GitBlob(_)))
            .then(|| Sha1::new_with_prefix(format!("blob {bytes}\0")));
        Self { sha256: Sha256::new(), git }
    }

    pub(crate) fn update(&mut self, bytes: &[u8]) {
        self.sha256.update(bytes);
        if let Some(git) = &mut self.git {
            git.update(bytes);
        }
    }

    /// The SHA-256, and what is to be compared with an announcement of the same kind.
    pub(crate) fn finish(self) -> (Sha256Digest, Announced) {
        let sha256 = Sha256Digest(self.sha256.finalize().into());
        let git = self.git.map(|git| Announced::GitBlob(git.finalize().into()));
        (sha256, git.unwrap_or(Announced::Sha256(sha256)))
    }
}

/// Feeds everything that `reader` has to `each`, in pieces of up to 256 KiB.
pub(crate) fn pump<E: From<io::Error>>(
    mut reader: impl Read,
    mut each: impl FnMut(&[u8]) -> Result<(), E>,
) -> Result<(), E> {
    let mut buffer = vec![0; 256 << 10];
    loop {
        match reader.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(len) => each(buffer.get(..len).unwrap_or_default())?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EMPTY: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn reads_and_writes_hexadecimal() {
        assert_eq!(Sha256Digest::of(b"").to_string(), EMPTY);
        assert_eq!(Sha256Digest::parse(&EMPTY.to_uppercase()), Some(Sha256Digest::of(b"")));
        assert_eq!(Sha256Digest::literal(EMPTY), Sha256Digest::of(b""));
        for bad in ["", "e3", &EMPTY.replace('e', "g"), &EMPTY.replace('e', "+"), &EMPTY[1..]] {
            assert_eq!(Sha256Digest::parse(bad), None);
        }
    }

    #[test]
    fn git_blobs_are_hashed_as_git_does() {
        // printf 'hello\n' | git hash-object --stdin
        let announced = Announced::from_etag("\"ce013625030ba8dba906f756967f9e9ca394464a\"");
        let mut hasher = Hasher::new(announced, 6);
        hasher.update(b"hel");
        hasher.update(b"lo\n");
        let (sha256, git) = hasher.finish();
        assert_eq!(Some(git), announced);
        assert_eq!(sha256, Sha256Digest::of(b"hello\n"));
    }

    #[test]
    fn entity_tags_that_are_no_digest_are_none() {
        let sha256 = Some(Announced::Sha256(Sha256Digest::of(b"")));
        assert_eq!(Announced::from_etag(&format!("W/\"{EMPTY}\"")), sha256);
        assert_eq!(Announced::from_etag("\"abc\""), None);
        assert_eq!(Announced::from_etag(&"é".repeat(20)), None);
    }
}
