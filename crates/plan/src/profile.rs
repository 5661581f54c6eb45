//! What a planner has to know about a processor: plain numbers.

use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fmt;

/// Kinds of processors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Central processor.
    Cpu,
    /// Graphics processor, integrated or not.
    Gpu,
    /// Neural processor.
    Npu,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Cpu => "cpu",
            Self::Gpu => "gpu",
            Self::Npu => "npu",
        })
    }
}

/// How fast a device is.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Rates {
    /// Multiplications and additions of 8-bit integers per second that its matrix products reach.
    pub int8_ops_per_s: f64,
    /// Bytes per second at which it streams weights.
    pub read_bytes_per_s: f64,
    /// Seconds that every run of a segment costs, whatever it computes.
    pub run_s: f64,
    /// Seconds that every node costs, whatever it computes.
    pub node_s: f64,
    /// Rows of a batch are padded to a multiple of this.
    pub row_tile: usize,
    /// Whether the numbers were measured on this machine or are typical of the kind.
    pub measured: bool,
}

impl Rates {
    /// Cautious numbers for a device that nobody has measured: right to within a factor of a few,
    /// which is enough to tell the kinds apart.
    #[must_use]
    pub fn typical(kind: Kind) -> Self {
        let (int8_ops_per_s, read_bytes_per_s, run_s, node_s, row_tile) = match kind {
            Kind::Cpu => (5e11, 2e10, 5e-6, 2e-6, 1),
            Kind::Gpu => (8e12, 8e10, 1e-4, 1e-5, 1),
            Kind::Npu => (2e13, 6e10, 1e-3, 5e-5, 64),
        };
        Self { int8_ops_per_s, read_bytes_per_s, run_s, node_s, row_tile, measured: false }
    }
}

/// A device as the planner sees it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DeviceProfile {
    /// Short and unique, as `cpu`.
    pub name: String,
    /// Kind of processor.
    pub kind: Kind,
    /// What a person would call it.
    pub description: String,
    /// Bytes of memory that weights and KV may take.
    pub memory_bytes: u64,
    /// Whether it shares the host's memory: all that do hold one copy of weights and KV between
    /// them.
    pub host_memory: bool,
    /// How fast it is.
    pub rates: Rates,
    /// Nodes of the graph that it cannot run, by index.
    pub refused: BTreeSet<usize>,
}
