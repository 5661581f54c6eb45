//! Packed weights from one load to the next: what names them, and how they are found again.

use crate::context::Context;
use crate::pack::kept::{Kept, VERSION};
use crate::pack::{Packed, cuts};
use std::fmt::Write;
use tangor_device::model::WeightId;
use tangor_device::{DeviceError, PackedBytes, PackedKey, Segment, kept};

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

/// The weights of a segment, as an entry has them.
fn read(
    segment: &Segment<'_>,
    weights: &[WeightId],
    max_weights: u64,
    entry: &PackedBytes,
) -> Option<Vec<Kept>> {
    let all = kept::weights(entry, &head(), weights.len())?;
    let kept = |(&id, (form, data))| Kept::new(segment.graph.weight(id), max_weights, form, data);
    weights.iter().zip(all).map(kept).collect()
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

/// The first line of an entry's index.
pub(crate) fn head() -> String {
    format!("tangor gpu {VERSION}")
}
