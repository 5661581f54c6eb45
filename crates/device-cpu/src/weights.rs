//! The packed weights of the segments of one graph: each once, however many segments read it.

use crate::kept;
use crate::pack::{PackError, Packed};
use crate::pool::Pool;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use tangor_device::kept::Keeper;
use tangor_device::model::ir::Node;
use tangor_device::model::{Graph, Op, WeightId};
use tangor_device::tensor::MapGuard;
use tangor_device::{DeviceError, Segment};

/// The weights of all linears.
#[derive(Debug, Default)]
pub(crate) struct Weights {
    packed: HashMap<WeightId, Arc<Packed>>,
    /// Fails once packed weights are lost.
    pub(crate) guard: MapGuard,
    /// Those that a segment counts as its memory already.
    counted: HashSet<WeightId>,
}

impl Weights {
    /// Packs what the segments read, or finds it packed.
    ///
    /// # Errors
    /// [`DeviceError::Refused`] for a layout without a kernel, [`DeviceError::OutOfMemory`],
    /// [`DeviceError::WeightsChanged`].
    pub(crate) fn pack(
        segments: &[Segment<'_>],
        pool: &Pool,
        device: &str,
        progress: &mut dyn FnMut(f32),
    ) -> Result<Self, DeviceError> {
        let Some(first) = segments.first() else { return Ok(Self::default()) };
        let indices: BTreeSet<usize> = segments.iter().flat_map(|s| s.nodes.clone()).collect();
        let linears = linears(first.graph, &indices);
        let ids: Vec<WeightId> = linears.iter().map(|(_, id)| *id).collect();
        let key = kept::key(first, &ids);
        if let Some((packed, guard)) = kept::find(first, &ids, key.as_ref()) {
            return Ok(Self { packed, guard, ..Self::default() });
        }
        let mut keeper = Keeper::new(first, &ids, (key.as_ref(), kept::head()));
        let mut weights = Self::default();
        let size = |id: &WeightId| {
            let weight = first.graph.weight(*id);
            weight.rows() * weight.cols()
        };
        let total: usize = ids.iter().map(size).sum();
        let mut done = 0;
        for (node, id) in linears {
            let packed = Packed::new(first.graph.weight(id), pool);
            let packed = Arc::new(packed.map_err(|error| failure(error, device, node))?);
            keeper.write(packed.data());
            keeper.end_weight(&packed.form());
            weights.packed.insert(id, packed);
            done += size(&id);
            #[allow(clippy::cast_precision_loss)]
            progress(done as f32 / total as f32);
        }
        first.check_weights()?;
        keeper.finish();
        Ok(weights)
    }

    pub(crate) fn get(&self, id: WeightId) -> Option<Arc<Packed>> {
        self.packed.get(&id).map(Arc::clone)
    }

    /// Bytes of the weight that an operation multiplies by, the first time that it is asked for.
    pub(crate) fn count(&mut self, op: &Op) -> u64 {
        let Op::Linear { weight, .. } = op else { return 0 };
        match self.packed.get(weight) {
            Some(packed) if self.counted.insert(*weight) => packed.bytes() as u64,
            _ => 0,
        }
    }
}

/// Bytes that a weight of a graph takes: packed if linears read it, else where it is stored.
pub(crate) fn packed_bytes(graph: &Graph, id: WeightId) -> u64 {
    let weight = graph.weight(id);
    let reads = |node: &Node| matches!(node.op, Op::Linear { weight, .. } if weight == id);
    let packed = graph.nodes.iter().any(reads).then(|| Packed::bytes_of(weight).ok());
    packed.flatten().unwrap_or_else(|| weight.stored_bytes()) as u64
}

/// The weights of all linears among some nodes, in the order in which they are used first, each
/// with the node that uses it.
fn linears<'a>(graph: &'a Graph, indices: &BTreeSet<usize>) -> Vec<(&'a str, WeightId)> {
    let mut seen = HashSet::new();
    let weight = |node: &'a Node| match node.op {
        Op::Linear { weight, .. } => Some((&*node.name, weight)),
        _ => None,
    };
    let nodes = indices.iter().filter_map(|&index| graph.nodes.get(index));
    nodes.filter_map(weight).filter(|(_, id)| seen.insert(*id)).collect()
}

fn failure(error: PackError, device: &str, node: &str) -> DeviceError {
    match error {
        PackError::Layout(what) => DeviceError::Refused {
            device: device.to_owned(),
            node: node.to_owned(),
            why: format!("no kernel for {what}"),
        },
        PackError::Memory(bytes) => DeviceError::OutOfMemory {
            device: device.to_owned(),
            what: "weights",
            bytes: bytes as u64,
        },
    }
}
