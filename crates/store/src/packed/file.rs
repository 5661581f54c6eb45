//! The file of an entry: the data from the beginning, then the tail (JSON), then the foot:
//!
//! | part of the foot | bytes |
//! |---|---|
//! | `TANGORPK` | 8 |
//! | version of the format | 4 |
//! | CRC-32 of the tail | 4 |
//! | length of the tail | 8 |
//! | CRC-32 of the foot up to here | 4 |
//! | zeros | 4 |
//!
//! Numbers are little-endian. The data comes first so that it begins on a large page.

use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};

/// Bytes that are written at once and have a checksum of their own: a large page.
pub(super) const CHUNK: usize = 2 << 20;

const MAGIC: [u8; 8] = *b"TANGORPK";
/// Raised whenever an older program would misread a file.
const VERSION: u32 = 1;
const FOOT: usize = 32;
/// A longer tail is none of ours.
const MAX_TAIL: u64 = 64 << 20;

/// What an entry says about itself.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Tail {
    /// Identity of the weights.
    pub(super) model: String,
    /// What was made of them.
    pub(super) form: String,
    /// What the device says about the data.
    pub(super) index: String,
    /// Bytes of the data.
    pub(super) data: u64,
    /// CRC-32 of each chunk of the data.
    checks: Vec<u32>,
}

impl Tail {
    /// Of an entry without data yet.
    pub(super) fn new(model: &str, form: &str) -> Self {
        let (model, form) = (model.to_owned(), form.to_owned());
        Self { model, form, index: String::new(), data: 0, checks: Vec::new() }
    }

    /// Notes the next chunk.
    pub(super) fn add(&mut self, chunk: &[u8]) {
        self.data += chunk.len() as u64;
        self.checks.push(crc32fast::hash(chunk));
    }

    /// Whether the data is what was written.
    pub(super) fn is_of(&self, data: &[u8]) -> bool {
        let checks = data.chunks(CHUNK).map(crc32fast::hash);
        data.len() as u64 == self.data && checks.eq(self.checks.iter().copied())
    }

    /// The tail and the foot.
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        // A structure of strings and numbers always has a JSON form.
        let mut bytes = serde_json::to_vec(self).unwrap_or_default();
        let (check, len) = (crc32fast::hash(&bytes), bytes.len() as u64);
        let start = bytes.len();
        bytes.extend_from_slice(&MAGIC);
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        bytes.extend_from_slice(&check.to_le_bytes());
        bytes.extend_from_slice(&len.to_le_bytes());
        let check = crc32fast::hash(bytes.get(start..).unwrap_or_default());
        bytes.extend_from_slice(&check.to_le_bytes());
        bytes.extend_from_slice(&[0; 4]);
        bytes
    }

    /// Reads the tail of a file; `None` if the file is not an entry of this version, complete and
    /// as long as it says.
    pub(super) fn read(mut file: &File) -> Option<Self> {
        let len = file.metadata().ok()?.len();
        let mut foot = [0; FOOT];
        file.seek(SeekFrom::Start(len.checked_sub(FOOT as u64)?)).ok()?;
        file.read_exact(&mut foot).ok()?;
        let number = |at: usize| Some(u32::from_le_bytes(*foot.get(at..)?.first_chunk()?));
        let tail = u64::from_le_bytes(*foot.get(16..)?.first_chunk()?);
        let sound = foot.starts_with(&MAGIC)
            && number(8)? == VERSION
            && number(24)? == crc32fast::hash(foot.get(..24)?)
            && number(28)? == 0
            && tail <= MAX_TAIL;
        let data = len.checked_sub(FOOT as u64)?.checked_sub(tail)?;
        if !sound {
            return None;
        }
        let mut bytes = vec![0; usize::try_from(tail).ok()?];
        file.seek(SeekFrom::Start(data)).ok()?;
        file.read_exact(&mut bytes).ok()?;
        if crc32fast::hash(&bytes) != number(12)? {
            return None;
        }
        let tail: Self = serde_json::from_slice(&bytes).ok()?;
        let chunks = data.div_ceil(CHUNK as u64);
        (tail.data == data && tail.checks.len() as u64 == chunks).then_some(tail)
    }
}
