//! The packed weights of the segments of one graph: each once, however many segments read it.

use crate::context::Context;
use crate::kept;
use crate::pack::Packed;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use tangor_device::kept::Keeper;
use tangor_device::model::{Graph, Node, Op, WeightId};
use tangor_device::{DeviceError, Segment};

/// The matrices that linears and tables read.
#[derive(Debug, Default)]
pub(crate) struct Weights {
    packed: HashMap<WeightId, Arc<Packed>>,
    /// Those that a segment counts as its memory already.
    counted: HashSet<WeightId>,
}

impl Weights {
    /// Packs what the segments read, or finds it packed.
    ///
    /// # Errors
    /// [`DeviceError::OutOfMemory`], [`DeviceError::WeightsChanged`], or if the device is lost.
    pub(crate) fn load(
        segments: &[Segment<'_>],
        context: &Arc<Context>,
        progress: &mut dyn FnMut(f32),
    ) -> Result<Self, DeviceError> {
        let Some(first) = segments.first() else { return Ok(Self::default()) };
        let ids = matrices(segments, first.graph);
        let key = kept::key(first, &ids, context.max_weights);
        let found = match &key {
            Some(key) => kept::find(first, &ids, (key, context), progress)?,
            None => None,
        };
        let all = match found {
            Some(found) => found,
            None => {
                let keeper = Keeper::new(first, &ids, (key.as_ref(), kept::head()));
                pack(first, &ids, (keeper, context), progress)?
            }
        };
        let packed = ids.into_iter().zip(all.into_iter().map(Arc::new)).collect();
        Ok(Self { packed, counted: HashSet::new() })
    }

    pub(crate) fn get(&self, id: WeightId) -> Option<Arc<Packed>> {
        self.packed.get(&id).map(Arc::clone)
    }

    /// Bytes of a weight, the first time that it is asked for.
    pub(crate) fn count(&mut self, id: WeightId) -> u64 {
        match self.packed.get(&id) {
            Some(packed) if self.counted.insert(id) => packed.bytes(),
            _ => 0,
        }
    }
}

/// Packs weights in order.
fn pack(
    segment: &Segment<'_>,
    ids: &[WeightId],
    (mut keeper, context): (Keeper, &Arc<Context>),
    progress: &mut dyn FnMut(f32),
) -> Result<Vec<Packed>, DeviceError> {
    let graph = segment.graph;
    let size = |id: WeightId| graph.weight(id).rows() * graph.weight(id).cols();
    let total: usize = ids.iter().map(|&id| size(id)).sum();
    let (mut all, mut done) = (Vec::with_capacity(ids.len()), 0);
    for &id in ids {
        let packed = Packed::new(graph.weight(id), context, &mut |bytes| keeper.write(bytes))?;
        keeper.end_weight(&packed.form());
        all.push(packed);
        done += size(id);
        #[allow(clippy::cast_precision_loss)]
        progress(done as f32 / total as f32);
    }
    segment.check_weights()?;
    keeper.finish();
    Ok(all)
}

/// Bytes that a weight of a graph takes: packed if it is a matrix that nodes read, else as it is
/// stored.
pub(crate) fn packed_bytes(graph: &Graph, id: WeightId, max_weights: u64) -> u64 {
    let weight = graph.weight(id);
    match graph.nodes.iter().any(|node| matrix(node) == Some(id)) {
        true => Packed::bytes_of(weight, max_weights),
        false => weight.stored_bytes() as u64,
    }
}

/// The matrix that a node reads.
fn matrix(node: &Node) -> Option<WeightId> {
    match node.op {
        Op::Linear { weight: id, .. } | Op::Embed { table: id } => Some(id),
        _ => None,
    }
}

/// The matrices that segments read, in the order in which they are used first.
fn matrices(segments: &[Segment<'_>], graph: &Graph) -> Vec<WeightId> {
    let indices: BTreeSet<usize> = segments.iter().flat_map(|s| s.nodes.clone()).collect();
    let mut seen = HashSet::new();
    let read = |index: usize| graph.nodes.get(index).and_then(matrix);
    indices.into_iter().filter_map(read).filter(|id| seen.insert(*id)).collect()
}
