//! A cache of packed weights in memory, which counts what is asked of it.
#![allow(clippy::expect_used, reason = "a test that failed ends the others, too")]

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};
use tangor_device::tensor::{Bytes, MapGuard};
use tangor_device::{PackedBytes, PackedCache, PackedKey, PackedWriter};

/// How often something was found, asked for in vain, kept, and discarded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Entries that were found.
    pub found: usize,
    /// Entries that were asked for in vain.
    pub missed: usize,
    /// Entries that were kept.
    pub written: usize,
    /// Entries that were discarded.
    pub discarded: usize,
}

#[derive(Debug, Default)]
struct Kept {
    /// Index and data by key.
    entries: HashMap<String, (String, Vec<u8>)>,
    counts: Counts,
}

/// A cache in memory; clones share it.
#[derive(Clone, Debug, Default)]
pub struct Memory {
    kept: Arc<Mutex<Kept>>,
    /// Bytes that an entry may have, if not any number.
    room: Option<usize>,
}

#[derive(Debug)]
struct Writer {
    to: Memory,
    key: String,
    data: Vec<u8>,
}

fn text(key: &PackedKey) -> String {
    format!("{}\n{}", key.model, key.form)
}

/// Bytes from a cache line on, and `shift` bytes further.
///
/// # Panics
/// If `shift` is more than 64.
#[must_use]
pub fn aligned(bytes: &[u8], shift: usize) -> Bytes {
    let mut longer = vec![0; bytes.len() + 128];
    let start = longer.as_ptr().align_offset(64) + shift;
    longer[start..start + bytes.len()].copy_from_slice(bytes);
    Bytes::from(longer).slice(start..start + bytes.len())
}

impl Memory {
    /// A cache whose entries may have so many bytes, and fail beyond.
    #[must_use]
    pub fn with_room(bytes: usize) -> Self {
        Self { room: Some(bytes), ..Self::default() }
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().expect("no test failed with it")
    }

    /// What was asked of it so far.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.kept().counts
    }

    /// Changes index and data of every entry.
    pub fn change(&self, mut change: impl FnMut(&mut String, &mut Vec<u8>)) {
        self.kept().entries.values_mut().for_each(|(index, data)| change(index, data));
    }

    /// The indices of all entries.
    #[must_use]
    pub fn indices(&self) -> Vec<String> {
        self.kept().entries.values().map(|(index, _)| index.clone()).collect()
    }
}

impl PackedCache for Memory {
    fn find(&self, key: &PackedKey) -> Option<PackedBytes> {
        let mut kept = self.kept();
        let found = kept.entries.get(&text(key)).cloned();
        kept.counts.found += usize::from(found.is_some());
        kept.counts.missed += usize::from(found.is_none());
        let (index, data) = found?;
        Some(PackedBytes { index, data: aligned(&data, 0), guard: MapGuard::default() })
    }

    fn create(&self, key: &PackedKey, _: u64) -> Option<Box<dyn PackedWriter>> {
        Some(Box::new(Writer { to: self.clone(), key: text(key), data: Vec::new() }))
    }

    fn discard(&self, key: &PackedKey) {
        let mut kept = self.kept();
        kept.entries.remove(&text(key));
        kept.counts.discarded += 1;
    }
}

impl PackedWriter for Writer {
    fn write(&mut self, bytes: &[u8]) -> bool {
        self.data.extend_from_slice(bytes);
        self.to.room.is_none_or(|room| self.data.len() <= room)
    }

    fn finish(self: Box<Self>, index: String) {
        let mut kept = self.to.kept();
        kept.entries.insert(self.key, (index, self.data));
        kept.counts.written += 1;
    }
}
