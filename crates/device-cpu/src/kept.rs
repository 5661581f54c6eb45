//! Packed weights from one load to the next: found in a cache, or packed and handed to it.
//!
//! The index is text: a line that says what it is, then a line per weight, in the order in which
//! the segment uses them: `START BYTES FORM`.

use crate::pack::Packed;
use crate::pack::kept::VERSION;
use std::collections::HashMap;
use std::fmt::Write;
use std::sync::Arc;
use tangor_device::model::WeightId;
use tangor_device::tensor::MapGuard;
use tangor_device::{PackedBytes, PackedKey, PackedWriter, Segment};

/// Every weight starts on a cache line.
const ALIGN: usize = 64;

/// The packed weights of a segment, and what tells whether they stay.
pub(crate) type Found = (HashMap<WeightId, Arc<Packed>>, MapGuard);

/// Finds a segment's weights in its cache: all of them, or none.
pub(crate) fn find(segment: &Segment<'_>, weights: &[WeightId]) -> Option<Found> {
    let (cache, key) = (segment.packed?, key(segment, weights)?);
    let bytes = cache.find(&key)?;
    let found = read(segment, weights, &bytes).filter(|found| spot_check(segment, weights, found));
    if found.is_none() {
        cache.discard(&key);
    }
    let packed = weights.iter().copied().zip(found?.into_iter().map(Arc::new));
    Some((packed.collect(), bytes.guard))
}

/// The weights of a segment, as an index says where they are in the data.
fn read(segment: &Segment<'_>, weights: &[WeightId], bytes: &PackedBytes) -> Option<Vec<Packed>> {
    let mut lines = bytes.index.lines();
    if lines.next()? != head() {
        return None;
    }
    let packed = |&id: &WeightId| {
        let mut words = lines.next()?.splitn(3, ' ');
        let (start, len) = (words.next()?.parse::<usize>().ok()?, words.next()?.parse().ok()?);
        let end = start.checked_add(len).filter(|&end| end <= bytes.data.len())?;
        Packed::kept(segment.graph.weight(id), words.next()?, bytes.data.slice(start..end))
    };
    let all: Option<Vec<Packed>> = weights.iter().map(packed).collect();
    if lines.next().is_none() { all } else { None }
}

/// Packs a few panels again. Whoever changes a layout and forgets its version, or a file and keeps
/// its times, is found out here.
fn spot_check(segment: &Segment<'_>, weights: &[WeightId], packed: &[Packed]) -> bool {
    let count = weights.len();
    [(0, 0), (count / 2, 1), (count.saturating_sub(1), 2)].into_iter().all(|(index, place)| {
        let (Some(&id), Some(packed)) = (weights.get(index), packed.get(index)) else {
            return count == 0;
        };
        let last = packed.outputs().div_ceil(crate::pack::PANEL) - 1;
        packed.holds(segment.graph.weight(id), place * last / 2)
    })
}

/// Hands the weights of a segment to its cache as they are packed.
#[derive(Debug)]
pub(crate) struct Keeper {
    /// Gone once it has failed.
    writer: Option<Box<dyn PackedWriter>>,
    index: String,
    written: usize,
}

impl Keeper {
    pub(crate) fn new(segment: &Segment<'_>, weights: &[WeightId]) -> Self {
        let size = |&id: &WeightId| segment.graph.weight(id).stored_bytes() as u64;
        let writer = || {
            let key = key(segment, weights)?;
            segment.packed?.create(&key, weights.iter().map(size).sum())
        };
        Self { writer: writer(), index: head(), written: 0 }
    }

    /// The next weight.
    pub(crate) fn keep(&mut self, packed: &Packed) {
        let Some(writer) = &mut self.writer else { return };
        let data = packed.data();
        // Writing to a string does not fail.
        let _ = write!(self.index, "\n{} {} {}", self.written, data.len(), packed.form());
        let padding = data.len().next_multiple_of(ALIGN) - data.len();
        if writer.write(data) && writer.write(&[0; ALIGN][..padding]) {
            self.written += data.len() + padding;
        } else {
            self.writer = None;
        }
    }

    /// All weights were packed.
    pub(crate) fn finish(self) {
        if let Some(writer) = self.writer {
            writer.finish(self.index);
        }
    }
}

fn head() -> String {
    format!("tangor cpu {VERSION}")
}

fn key(segment: &Segment<'_>, weights: &[WeightId]) -> Option<PackedKey> {
    let model = segment.graph.identity.clone()?;
    let mut form = head();
    for id in weights {
        let named = &segment.graph.weights[id.0];
        let (name, weight) = (&named.name, &named.weight);
        let (rows, cols) = (weight.rows(), weight.cols());
        // Writing to a string does not fail.
        let _ = match weight.layout() {
            Some(layout) => write!(form, "\n{name} {rows} {cols} {layout:?}"),
            None => return None,
        };
    }
    Some(PackedKey { model, form })
}
