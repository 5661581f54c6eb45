//! What a plan takes of each memory: one copy of the weights per form in which devices pack them,
//! and keys and values once.

use crate::case::Case;
use crate::{DeviceProfile, PlanOptions};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What lies in one memory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryUse {
    /// `host`, or the name of the device whose own memory it is.
    pub memory: String,
    /// The copies of the weights: the form that devices call it by, and its bytes.
    pub copies: Vec<(String, u64)>,
    /// Bytes of keys and values of the prompt and the answer that a prediction is for.
    pub kv_bytes: u64,
    /// Bytes that weights and KV may take there.
    pub limit_bytes: u64,
}

impl MemoryUse {
    /// Bytes of all copies of the weights.
    #[must_use]
    pub fn weights_bytes(&self) -> u64 {
        self.copies.iter().map(|(_, bytes)| bytes).sum()
    }

    /// Bytes that are left for keys and values.
    #[must_use]
    pub fn room(&self) -> u64 {
        self.limit_bytes.saturating_sub(self.weights_bytes())
    }
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
    let mut of: BTreeMap<&str, (BTreeMap<&str, u64>, u64)> = BTreeMap::new();
    for device in used.iter().map(|&index| &case.devices[index]) {
        let memory = if device.host_memory { "host" } else { &device.name };
        let (copies, most) = of.entry(memory).or_default();
        let bytes = copies.entry(&device.layout).or_default();
        *bytes = (*bytes).max(packed_bytes(case.weights_bytes, device));
        *most = (*most).max(limit(device, case.options));
    }
    let used = |(memory, (copies, limit_bytes)): (&str, (BTreeMap<&str, u64>, u64))| MemoryUse {
        memory: memory.to_owned(),
        copies: copies.into_iter().map(|(name, bytes)| (name.to_owned(), bytes)).collect(),
        kv_bytes: 0,
        limit_bytes,
    };
    of.into_iter().map(used).collect()
}
