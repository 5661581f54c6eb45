//! Packed weights from one load to the next: what names them, and how they are found again.

use crate::pack::Packed;
use crate::pack::kept::VERSION;
use std::collections::HashMap;
use std::fmt::Write;
use std::sync::Arc;
use tangor_device::model::WeightId;
use tangor_device::tensor::MapGuard;
use tangor_device::{PackedBytes, PackedKey, Segment, kept};

/// The packed weights of a segment, and what tells whether they stay.
pub(crate) type Found = (HashMap<WeightId, Arc<Packed>>, MapGuard);

/// Finds a segment's weights in its cache: all of them, or none.
pub(crate) fn find(
    segment: &Segment<'_>,
    weights: &[WeightId],
    key: Option<&PackedKey>,
) -> Option<Found> {
    let (cache, key) = (segment.packed?, key?);
    let bytes = cache.find(key)?;
    let found = read(segment, weights, &bytes).filter(|found| spot_check(segment, weights, found));
    if found.is_none() {
        cache.discard(key);
    }
    let packed = weights.iter().copied().zip(found?.into_iter().map(Arc::new));
    Some((packed.collect(), bytes.guard))
}

/// The weights of a segment, as an entry has them.
fn read(segment: &Segment<'_>, weights: &[WeightId], entry: &PackedBytes) -> Option<Vec<Packed>> {
    let all = kept::weights(entry, &head(), weights.len())?;
    let packed = |(&id, (form, data))| Packed::kept(segment.graph.weight(id), form, data);
    weights.iter().zip(all).map(packed).collect()
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

/// The first line of an entry's index.
pub(crate) fn head() -> String {
    format!("tangor cpu {VERSION}")
}

/// What names a segment's packed weights.
pub(crate) fn key(segment: &Segment<'_>, weights: &[WeightId]) -> Option<PackedKey> {
    segment.packed?;
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
