//! Weights one by one in an entry of a [`PackedCache`](crate::PackedCache): the index that devices
//! which pack weights for themselves have in common.
//!
//! The index is text: a line of the device's own that says what it is, then a line per weight, in
//! the order in which they were written: `START BYTES FORM`. Every weight starts on a cache line.

use crate::{PackedBytes, PackedKey, PackedWriter, Segment};
use std::fmt::Write;
use tangor_model::WeightId;
use tangor_tensor::Bytes;

/// Where weights start: at multiples of so many bytes.
const ALIGN: usize = 64;

/// The form and the bytes of each of `count` weights, in order; `None` if the index does not begin
/// with `head`, has another number of them, or names bytes that the data does not have. What a form
/// says, and whether the bytes fit it, is the device's to check: both are foreign.
#[must_use]
pub fn weights<'a>(
    entry: &'a PackedBytes,
    head: &str,
    count: usize,
) -> Option<Vec<(&'a str, Bytes)>> {
    let mut lines = entry.index.lines();
    if lines.next()? != head {
        return None;
    }
    let weight = |line: &'a str| {
        let mut words = line.splitn(3, ' ');
        let (start, len) = (words.next()?.parse::<usize>().ok()?, words.next()?.parse().ok()?);
        let end = start.checked_add(len).filter(|&end| end <= entry.data.len())?;
        Some((words.next()?, entry.data.slice(start..end)))
    };
    let all: Vec<_> = lines.map(weight).collect::<Option<_>>()?;
    (all.len() == count).then_some(all)
}

/// Hands weights to a segment's cache as they are packed.
#[derive(Debug)]
pub struct Keeper {
    /// Gone once it has failed.
    writer: Option<Box<dyn PackedWriter>>,
    index: String,
    /// Where the weight begins that is being written, and where its bytes end so far.
    start: usize,
    end: usize,
}

impl Keeper {
    /// Begins an entry for these weights, with `head` as the first line of its index; without a key
    /// or a cache nothing is kept.
    #[must_use]
    pub fn new(
        segment: &Segment<'_>,
        weights: &[WeightId],
        (key, head): (Option<&PackedKey>, String),
    ) -> Self {
        let size = |&id: &WeightId| segment.graph.weight(id).stored_bytes() as u64;
        let writer = || segment.packed?.create(key?, weights.iter().map(size).sum());
        Self { writer: writer(), index: head, start: 0, end: 0 }
    }

    /// The next bytes of a weight.
    pub fn write(&mut self, bytes: &[u8]) {
        if self.writer.as_mut().is_some_and(|writer| !writer.write(bytes)) {
            self.writer = None;
        }
        self.end += bytes.len();
    }

    /// All bytes of a weight were written; `form` is one line that tells what they are.
    pub fn end_weight(&mut self, form: &str) {
        let (start, len) = (self.start, self.end - self.start);
        // Writing to a string does not fail.
        let _ = write!(self.index, "\n{start} {len} {form}");
        let padding = self.end.next_multiple_of(ALIGN) - self.end;
        self.write(&[0; ALIGN][..padding]);
        self.start = self.end;
    }

    /// All weights were packed.
    pub fn finish(self) {
        if let Some(writer) = self.writer {
            writer.finish(self.index);
        }
    }
}
