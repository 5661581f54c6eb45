//! Compiled pieces that outlive a process: one entry of a [`PackedCache`] per segment.
//!
//! An entry is a list of models as the provider compiled them, with a digest each. What is found is
//! used only if all of it is what this device would make now: the key names the model, the
//! provider, its version and options, and the shape of every weight; digests tell damage; and the
//! provider has to load it. Else the entry is discarded and everything is compiled again.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::ops::Range;
use tangor_device::{PackedBytes, PackedCache, PackedKey, PackedWriter, Segment};

/// Raised whenever the same segment is cut or written differently.
pub(crate) const VERSION: u32 = 1;

/// What an entry's index says.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Index {
    models: Vec<Entry>,
}

/// A compiled model.
#[derive(Debug, Serialize, Deserialize)]
struct Entry {
    /// First node of the piece, and the one after its last.
    nodes: (usize, usize),
    rows: usize,
    bytes: usize,
    /// SHA-256 in hexadecimal.
    digest: String,
}

fn digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A piece's nodes, and its models by row count.
#[derive(Debug)]
pub(crate) struct KeptPiece<'a> {
    pub(crate) nodes: Range<usize>,
    pub(crate) models: Vec<(usize, &'a [u8])>,
}

/// What was found: models by piece and row count.
#[derive(Debug)]
pub(crate) struct Found {
    index: Index,
    data: PackedBytes,
}

impl Found {
    /// Everything that is kept under `key`, if it is whole.
    pub(crate) fn new(cache: &dyn PackedCache, key: &PackedKey) -> Option<Self> {
        let data = cache.find(key)?;
        let found = serde_json::from_str(&data.index).ok().map(|index| Self { index, data });
        let whole = found.filter(Self::is_whole);
        if whole.is_none() {
            cache.discard(key);
        }
        whole
    }

    fn is_whole(&self) -> bool {
        let mut rest = &self.data.data[..];
        let each = self.index.models.iter().all(|entry| {
            let Some((model, after)) = rest.split_at_checked(entry.bytes) else { return false };
            rest = after;
            digest(model) == entry.digest
        });
        each && rest.is_empty() && self.is_there()
    }

    /// Whether nothing of it was lost while it was read.
    pub(crate) fn is_there(&self) -> bool {
        self.data.guard.check().is_ok()
    }

    /// The pieces, in order.
    pub(crate) fn pieces(&self) -> Vec<KeptPiece<'_>> {
        let mut rest = &self.data.data[..];
        let mut out: Vec<KeptPiece<'_>> = Vec::new();
        for entry in &self.index.models {
            let Some((model, after)) = rest.split_at_checked(entry.bytes) else { break };
            rest = after;
            let nodes = entry.nodes.0..entry.nodes.1;
            match out.last_mut().filter(|last| last.nodes == nodes) {
                Some(last) => last.models.push((entry.rows, model)),
                None => out.push(KeptPiece { nodes, models: vec![(entry.rows, model)] }),
            }
        }
        out
    }
}

/// Keeps compiled models while a segment is prepared.
#[derive(Debug)]
pub(crate) struct Keeper {
    writer: Box<dyn PackedWriter>,
    index: Index,
}

impl Keeper {
    /// `None` if nothing will be kept.
    pub(crate) fn new(segment: &Segment<'_>, key: &PackedKey, bytes: u64) -> Option<Self> {
        let writer = segment.packed?.create(key, bytes)?;
        Some(Self { writer, index: Index::default() })
    }

    /// Appends a model. `None` if it is not worth going on.
    pub(crate) fn keep(mut self, nodes: (usize, usize), rows: usize, model: &[u8]) -> Option<Self> {
        self.index.models.push(Entry { nodes, rows, bytes: model.len(), digest: digest(model) });
        self.writer.write(model).then_some(self)
    }

    /// Keeps all of it.
    pub(crate) fn finish(self) {
        if let Ok(index) = serde_json::to_string(&self.index) {
            self.writer.finish(index);
        }
    }
}
