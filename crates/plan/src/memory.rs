//! What a plan takes of each memory: one copy of the weights per form in which devices pack them,
//! and activations, keys and values once per device.

use crate::arena::Arena;
use crate::case::Case;
use crate::{DeviceProfile, PlanOptions};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use tangor_model::Graph;

/// What lies in one memory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryUse {
    /// `host`, or the name of the device whose own memory it is.
    pub memory: String,
    /// The copies of the weights: the form that devices call it by, and its bytes.
    pub copies: Vec<(String, u64)>,
    /// Bytes of activations of the largest batch, of all devices there; see [`scratch_bytes`].
    pub scratch_bytes: u64,
    /// KV caches: each device has one of its own.
    pub caches: u64,
    /// Bytes of keys and values of the prompt and the answer that a prediction is for, in all
    /// caches.
    pub kv_bytes: u64,
    /// Bytes that weights, activations and KV may take there.
    pub limit_bytes: u64,
}

impl MemoryUse {
    /// Bytes of all copies of the weights.
    #[must_use]
    pub fn weights_bytes(&self) -> u64 {
        self.copies.iter().map(|(_, bytes)| bytes).sum()
    }

    /// Bytes that are left for the keys and values of each cache.
    #[must_use]
    pub fn room(&self) -> u64 {
        self.limit_bytes.saturating_sub(self.needed()) / self.caches.max(1)
    }

    /// Every cache holds these bytes.
    pub(crate) fn hold(&mut self, kv_bytes: u64) {
        self.kv_bytes = kv_bytes.saturating_mul(self.caches);
    }

    /// Bytes that cannot be fewer: of weights and activations.
    pub(crate) fn needed(&self) -> u64 {
        self.weights_bytes().saturating_add(self.scratch_bytes)
    }
}

/// Bytes of scratch memory that a device takes for batches of so many rows, at the most: three
/// times what the values that live at the same time take. Devices also keep values in 8 bits,
/// rotated queries and parts of attention, and some give values whole buffers (the CPU takes 1.5
/// times as much, a GPU 2.3 times). Tests compare it with what devices say they take.
#[must_use]
pub fn scratch_bytes(graph: &Graph, rows: usize, logit_rows: usize) -> u64 {
    Arena::new(graph, rows, logit_rows).bytes.saturating_mul(3)
}

/// Bytes that a device may use.
pub(crate) fn limit(device: &DeviceProfile, options: &PlanOptions) -> u64 {
    options.memory_limit.map_or(device.memory_bytes, |limit| limit.min(device.memory_bytes))
}

/// Bytes of `stored` bytes of weights as a device packs them.
pub(crate) fn packed_bytes(stored: u64, device: &DeviceProfile) -> u64 {
    if device.layout_bytes == 1.0 {
        return stored;
    }
    (stored as f64 * device.layout_bytes).ceil() as u64
}

/// The memories that these devices use, each with the weights in it.
///
/// Every device is taken to need all weights: a part of a model is not worth a plan that fits only
/// just.
pub(crate) fn memories(case: &Case<'_>, used: &[usize]) -> Vec<MemoryUse> {
    let mut of: BTreeMap<&str, MemoryUse> = BTreeMap::new();
    for device in used.iter().map(|&index| &case.devices[index]) {
        let memory = if device.host_memory { "host" } else { &device.name };
        let used = of.entry(memory).or_insert_with(|| MemoryUse {
            memory: memory.to_owned(),
            copies: Vec::new(),
            scratch_bytes: 0,
            caches: 0,
            kv_bytes: 0,
            limit_bytes: 0,
        });
        let bytes = packed_bytes(case.weights_bytes, device);
        match used.copies.iter_mut().find(|(layout, _)| *layout == device.layout) {
            Some((_, most)) => *most = (*most).max(bytes),
            None => used.copies.push((device.layout.clone(), bytes)),
        }
        used.scratch_bytes = used.scratch_bytes.saturating_add(case.scratch_bytes);
        used.caches += 1;
        used.limit_bytes = used.limit_bytes.max(limit(device, case.options));
    }
    of.values_mut().for_each(|used| used.copies.sort());
    of.into_values().collect()
}
