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

/// How fast a device is. Every time is in seconds, every rate per second.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Rates {
    /// Multiplications and additions of 8-bit integers per second that its matrix products reach.
    pub int8_ops_per_s: f64,
    /// Of that rate, the shares that weights in groups of 32, of 64, and of 128 and more reach.
    pub group_share: [f64; 3],
    /// Multiplications and additions per second that attention of many rows reaches.
    pub attention_ops_per_s: f64,
    /// The same of attention of fewer rows than [`Rates::FEW_ROWS`].
    pub attention_row_ops_per_s: f64,
    /// Bytes per second at which it streams weights.
    pub read_bytes_per_s: f64,
    /// Seconds per activation that a node reads or writes, beside its arithmetic.
    pub element_s: f64,
    /// Seconds that every run of a segment costs, whatever it computes.
    pub run_s: f64,
    /// Seconds that every node costs, whatever it computes.
    pub node_s: f64,
    /// The same in a batch of fewer rows than [`Rates::FEW_ROWS`], where devices have other kernels
    /// and other ways to launch them.
    pub node_row_s: f64,
    /// Seconds until another device sees what this one has written: a fence and who waits for it.
    pub sync_s: f64,
    /// Bytes per second between its memory and the host's, where these are not the same.
    pub link_bytes_per_s: f64,
    /// Rows of a batch are padded to a multiple of this.
    pub row_tile: usize,
    /// Inputs and outputs of a matrix are padded to multiples of these.
    pub matrix_tile: [usize; 2],
    /// Bytes per second that the host's memory delivers to all devices together that share it, if
    /// that is less than the sum of what they read alone.
    pub shared_read_bytes_per_s: Option<f64>,
    /// Share of its own arithmetic that it keeps while another device computes too: both draw on
    /// one budget of power.
    pub together: f64,
    /// Whether the numbers were measured on this machine or are typical of the kind.
    pub measured: bool,
}

impl Rates {
    /// Rows from which on a batch counts as many.
    pub const FEW_ROWS: usize = 16;

    /// Cautious numbers for a device that nobody has measured: right to within a factor of a few,
    /// which is enough to tell the kinds apart.
    #[must_use]
    pub fn typical(kind: Kind) -> Self {
        let (ops, read, element_s, run_s, node_s, sync_s, row_tile) = match kind {
            Kind::Cpu => (5e11, 2e10, 1e-10, 5e-6, 2e-6, 5e-6, 1),
            Kind::Gpu => (8e12, 8e10, 1e-11, 1e-4, 1e-5, 5e-5, 1),
            Kind::Npu => (2e13, 6e10, 1e-11, 1e-3, 5e-5, 1e-4, 64),
        };
        Self {
            int8_ops_per_s: ops,
            group_share: [1.0; 3],
            attention_ops_per_s: ops,
            attention_row_ops_per_s: ops,
            read_bytes_per_s: read,
            element_s,
            run_s,
            node_s,
            node_row_s: node_s,
            sync_s,
            // PCIe 4.0 x8, as it is reached.
            link_bytes_per_s: 12e9,
            row_tile,
            matrix_tile: [1, 1],
            shared_read_bytes_per_s: None,
            together: 0.85,
            measured: false,
        }
    }

    /// The rates of a device while another one works beside it, on the same memory or not.
    pub(crate) fn beside(&self, other: &Self, same_memory: bool) -> Self {
        let mut rates = *self;
        for rate in [
            &mut rates.int8_ops_per_s,
            &mut rates.attention_ops_per_s,
            &mut rates.attention_row_ops_per_s,
        ] {
            *rate *= self.together;
        }
        let both = self.read_bytes_per_s + other.read_bytes_per_s;
        let caps = [self.shared_read_bytes_per_s, other.shared_read_bytes_per_s];
        let cap = caps.into_iter().flatten().fold(f64::INFINITY, f64::min);
        if same_memory && both > cap {
            rates.read_bytes_per_s *= cap / both;
        }
        rates
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
    /// Whether it shares the host's memory: what one device writes there, others read without a
    /// copy.
    pub host_memory: bool,
    /// Names the form in which it packs weights: devices that share memory and form hold one copy
    /// between them, all others one each.
    pub layout: String,
    /// Bytes of packed weights over bytes of the weights as they are stored.
    pub layout_bytes: f64,
    /// How fast it is.
    pub rates: Rates,
    /// Numbers of rows that it is compiled for, ascending: a batch is padded to the next one, and
    /// to a multiple of the last. Empty: any.
    pub row_counts: Vec<usize>,
    /// Nodes of the graph that it cannot run, by index.
    pub refused: BTreeSet<usize>,
}

impl DeviceProfile {
    /// A device with typical rates, a packed form of its own, and nothing that it refuses.
    #[must_use]
    pub fn new(name: &str, kind: Kind, memory_bytes: u64, host_memory: bool) -> Self {
        Self {
            name: name.to_owned(),
            kind,
            description: name.to_owned(),
            memory_bytes,
            host_memory,
            layout: name.to_owned(),
            layout_bytes: 1.0,
            rates: Rates::typical(kind),
            row_counts: Vec::new(),
            refused: BTreeSet::new(),
        }
    }

    /// Rows that it computes for a batch of `rows`.
    #[must_use]
    pub fn padded_rows(&self, rows: usize) -> usize {
        let tiled = rows.next_multiple_of(self.rates.row_tile.max(1));
        match (self.row_counts.iter().find(|&&count| count >= rows), self.row_counts.last()) {
            (Some(&count), _) => count,
            (None, Some(&last)) => rows.next_multiple_of(last.max(1)),
            (None, None) => tiled,
        }
    }
}
