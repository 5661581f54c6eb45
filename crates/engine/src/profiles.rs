//! What the planner is told: devices as they describe themselves, and what was asked for.

use crate::LoadOptions;
use std::sync::Arc;
use tangor_device::{Device, DeviceKind, KvType, MemoryKind};
use tangor_plan::model::{Graph, WeightId};
use tangor_plan::{DeviceProfile, Kind, PackedWeights, PlanOptions, Rates};

/// Devices as the planner sees them, for a graph. `rates` are what was measured, by the names of
/// devices; others are typical of their kinds. `taken` is what other models take of their memory,
/// likewise.
#[must_use]
pub fn profiles(
    graph: &Graph,
    devices: &[Arc<dyn Device>],
    rates: &[(String, Rates)],
    taken: &[(String, u64)],
) -> Vec<DeviceProfile> {
    let profile = |device: &Arc<dyn Device>| {
        let facts = device.descriptor();
        let kind = match facts.kind {
            DeviceKind::Cpu => Kind::Cpu,
            DeviceKind::Gpu => Kind::Gpu,
            DeviceKind::Npu => Kind::Npu,
        };
        let memory = match facts.memory {
            MemoryKind::Host => tangor_plan::MemoryKind::Host,
            MemoryKind::HostBuffers => tangor_plan::MemoryKind::HostBuffers,
            MemoryKind::Own => tangor_plan::MemoryKind::Own,
        };
        let measured = rates.iter().find(|(name, _)| *name == facts.name);
        let taken = taken.iter().filter(|(name, _)| *name == facts.name);
        let weights = (0..graph.weights.len()).map(WeightId);
        DeviceProfile {
            description: facts.description.clone(),
            rates: measured.map_or_else(|| Rates::typical(kind), |(_, rates)| *rates),
            taken_bytes: taken.map(|(_, bytes)| bytes).sum(),
            packed: PackedWeights::Each(weights.map(|id| device.packed_bytes(graph, id)).collect()),
            refused: (0..graph.nodes.len())
                .filter(|&node| device.refuses(graph, node).is_some())
                .collect(),
            ..DeviceProfile::new(&facts.name, kind, facts.memory_bytes, memory)
        }
    };
    devices.iter().map(profile).collect()
}

pub(crate) fn plan_options(options: &LoadOptions, kv: KvType) -> PlanOptions {
    PlanOptions {
        device: options.device,
        prefill_device: options.prefill_device.clone(),
        decode_device: options.decode_device.clone(),
        prefill_rows: options.prefill_chunk,
        max_sequences: options.max_sequences,
        context: options.context,
        kv: match kv {
            KvType::F32 => tangor_plan::KvType::F32,
            KvType::F16 => tangor_plan::KvType::F16,
            KvType::Bf16 => tangor_plan::KvType::Bf16,
            KvType::Int8 => tangor_plan::KvType::Int8,
        },
        kv_bytes: options.kv_bytes,
        memory_limit: options.memory_limit,
        ..PlanOptions::default()
    }
}
