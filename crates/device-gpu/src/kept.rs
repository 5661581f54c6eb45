//! Packed weights from one load to the next: found in a cache, or packed and handed to it.
//!
//! The index is text: a line that says what it is, then a line per weight, in the order in which
//! the segments use them: `START BYTES FORM`.

use crate::context::Context;
use crate::pack::kept::{Kept, VERSION};
use crate::pack::{Packed, cuts};
use std::fmt::Write;
use tangor_device::model::WeightId;
use tangor_device::{DeviceError, PackedBytes, PackedKey, PackedWriter, Segment};

/// Every weight starts on a cache line.
const ALIGN: usize = 64;

/// What names a segment's packed weights, on an adapter with buffers of so many bytes.
pub(crate) fn key(
    segment: &Segment<'_>,
    weights: &[WeightId],
    max_weights: u64,
) -> Option<PackedKey> {
    segment.packed?;
    let model = segment.graph.identity.clone()?;
    let mut form = head();
    for id in weights {
        let named = &segment.graph.weights[id.0];
        let (name, weight) = (&named.name, &named.weight);
        // Writing to a string does not fail.
        let _ = write!(form, "\n{name} {}", weight.cols());
        for rows in cuts(weight, max_weights) {
            let layout = weight.slice_rows(rows.clone()).ok()?.layout();
            let _ = write!(form, " to {} {layout:?}", rows.end);
        }
    }
    Some(PackedKey { model, form })
}

/// Finds a segment's weights in its cache and puts them into the adapter's memory: all of them, or
/// none.
///
/// # Errors
/// If they do not fit there.
pub(crate) fn find(
    segment: &Segment<'_>,
    weights: &[WeightId],
    (key, context): (&PackedKey, &std::sync::Arc<Context>),
    progress: &mut dyn FnMut(f32),
) -> Result<Option<Vec<Packed>>, DeviceError> {
    let Some(cache) = segment.packed else { return Ok(None) };
    let Some(bytes) = cache.find(key) else { return Ok(None) };
    let found = read(segment, weights, context.max_weights, &bytes);
    if let Some(found) = found.filter(|found| spot_check(segment, weights, found)) {
        let mut packed = Vec::with_capacity(found.len());
        for kept in &found {
            packed.push(kept.upload(context)?);
            #[allow(clippy::cast_precision_loss)]
            progress(packed.len() as f32 / found.len() as f32);
        }
        // The adapter has a copy: the data has to be there until now, and no longer.
        if bytes.guard.check().is_ok() {
            return Ok(Some(packed));
        }
    }
    cache.discard(key);
    Ok(None)
}

/// The weights of a segment, as an index says where they are in the data.
fn read(
    segment: &Segment<'_>,
    weights: &[WeightId],
    max_weights: u64,
    bytes: &PackedBytes,
) -> Option<Vec<Kept>> {
    let mut lines = bytes.index.lines();
    if lines.next()? != head() {
        return None;
    }
    let kept = |&id: &WeightId| {
        let mut words = lines.next()?.splitn(3, ' ');
        let (start, len) = (words.next()?.parse::<usize>().ok()?, words.next()?.parse().ok()?);
        let end = start.checked_add(len).filter(|&end| end <= bytes.data.len())?;
        let data = bytes.data.slice(start..end);
        Kept::new(segment.graph.weight(id), max_weights, words.next()?, data)
    };
    let all: Option<Vec<Kept>> = weights.iter().map(kept).collect();
    if lines.next().is_none() { all } else { None }
}

/// Packs a few tiles again. Whoever changes a layout and forgets its version, or a file and keeps
/// its times, is found out here.
fn spot_check(segment: &Segment<'_>, weights: &[WeightId], found: &[Kept]) -> bool {
    let last = weights.len().saturating_sub(1);
    [(0, 0), (weights.len() / 2, 1), (last, 2)].into_iter().all(|(index, place)| {
        match (weights.get(index), found.get(index)) {
            (Some(&id), Some(kept)) => kept.holds(segment.graph.weight(id), place),
            _ => weights.is_empty(),
        }
    })
}

/// Hands the weights of a segment to its cache as they are packed.
#[derive(Debug)]
pub(crate) struct Keeper {
    /// Gone once it has failed.
    writer: Option<Box<dyn PackedWriter>>,
    index: String,
    /// Where the weight begins that is being written, and where its bytes end so far.
    start: usize,
    end: usize,
}

impl Keeper {
    pub(crate) fn new(
        segment: &Segment<'_>,
        weights: &[WeightId],
        key: Option<&PackedKey>,
    ) -> Self {
        let size = |&id: &WeightId| segment.graph.weight(id).stored_bytes() as u64;
        let writer = || segment.packed?.create(key?, weights.iter().map(size).sum());
        Self { writer: writer(), index: head(), start: 0, end: 0 }
    }

    /// The next bytes of a weight.
    pub(crate) fn write(&mut self, bytes: &[u8]) {
        if self.writer.as_mut().is_some_and(|writer| !writer.write(bytes)) {
            self.writer = None;
        }
        self.end += bytes.len();
    }

    /// All bytes of a weight were written.
    pub(crate) fn end_weight(&mut self, packed: &Packed) {
        let (start, len) = (self.start, self.end - self.start);
        // Writing to a string does not fail.
        let _ = write!(self.index, "\n{start} {len} {}", packed.form());
        let padding = self.end.next_multiple_of(ALIGN) - self.end;
        self.write(&[0; ALIGN][..padding]);
        self.start = self.end;
    }

    /// All weights were packed.
    pub(crate) fn finish(self) {
        if let Some(writer) = self.writer {
            writer.finish(self.index);
        }
    }
}

fn head() -> String {
    format!("tangor gpu {VERSION}")
}
