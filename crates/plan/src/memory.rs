//! What a plan takes of each memory: one copy of the weights per form in which devices pack them,
//! and activations, keys and values once per device.

use crate::arena::Arena;
use crate::case::Case;
use crate::{DeviceProfile, PlanError, PlanOptions};
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

    /// Bytes of weights and activations of a device that packs weights in this form.
    pub(crate) fn needed_with(&self, layout: &str) -> u64 {
        let copy = self.copies.iter().find(|(name, _)| name == layout);
        let weights = copy.map_or(0, |(_, bytes)| *bytes);
        weights.saturating_add(self.scratch_bytes / self.caches.max(1))
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

/// Bytes of `bytes` that may be used.
fn limited(bytes: u64, options: &PlanOptions) -> u64 {
    options.memory_limit.map_or(bytes, |limit| limit.min(bytes))
}

/// Bytes that a device may use, beside what other models take of it.
pub(crate) fn limit(device: &DeviceProfile, options: &PlanOptions) -> u64 {
    limited(device.memory_bytes, options).saturating_sub(device.taken_bytes)
}

/// Bytes that a device needs for weights and activations.
pub(crate) fn needed(case: &Case<'_>, device: usize) -> u64 {
    case.weights_bytes[device].saturating_add(case.scratch_bytes)
}

/// The name of the memory that a device uses.
pub(crate) fn name(device: &DeviceProfile) -> &str {
    if device.memory.is_host() { "host" } else { &device.name }
}

/// Bytes that devices may use of a memory together: what all models leave of it. It is as large as
/// the greatest part of it that a device may have.
fn limit_of(memory: &str, case: &Case<'_>) -> u64 {
    let sharing = || case.devices.iter().filter(|device| name(device) == memory);
    let size = sharing().map(|device| device.memory_bytes).max().unwrap_or(0);
    let taken = sharing().map(|device| device.taken_bytes).fold(0, u64::saturating_add);
    limited(size, case.options).saturating_sub(taken)
}

/// The memories that these devices use, each with the weights in it.
///
/// Every device is taken to need all weights: a part of a model is not worth a plan that fits only
/// just.
pub(crate) fn memories(case: &Case<'_>, used: &[usize]) -> Vec<MemoryUse> {
    let mut of: BTreeMap<&str, MemoryUse> = BTreeMap::new();
    for &index in used {
        let device = &case.devices[index];
        let memory = name(device);
        let used = of.entry(memory).or_insert_with(|| MemoryUse {
            memory: memory.to_owned(),
            copies: Vec::new(),
            scratch_bytes: 0,
            caches: 0,
            kv_bytes: 0,
            limit_bytes: 0,
        });
        let bytes = case.weights_bytes[index];
        match used.copies.iter_mut().find(|(layout, _)| *layout == device.layout) {
            Some((_, most)) => *most = (*most).max(bytes),
            None => used.copies.push((device.layout.clone(), bytes)),
        }
        used.scratch_bytes = used.scratch_bytes.saturating_add(case.scratch_bytes);
        used.caches += 1;
        used.limit_bytes = used.limit_bytes.saturating_add(limit(device, case.options));
    }
    for (memory, used) in &mut of {
        used.copies.sort();
        used.limit_bytes = used.limit_bytes.min(limit_of(memory, case));
    }
    of.into_values().collect()
}

/// Bytes that are left for the keys and values of each of these devices.
///
/// # Errors
/// [`PlanError::WeightsDoNotFit`] for the first memory that has none left.
pub(crate) fn room(
    case: &Case<'_>,
    used: &[usize],
    memories: &[MemoryUse],
) -> Result<u64, PlanError> {
    if let Some(full) = memories.iter().find(|memory| memory.room() == 0) {
        return Err(PlanError::WeightsDoNotFit {
            device: full.memory.clone(),
            needed: full.needed(),
            limit: full.limit_bytes,
        });
    }
    let own = |&device: &usize| {
        limit(&case.devices[device], case.options).saturating_sub(needed(case, device))
    };
    let room = memories.iter().map(MemoryUse::room).chain(used.iter().map(own));
    Ok(room.min().unwrap_or(0))
}
