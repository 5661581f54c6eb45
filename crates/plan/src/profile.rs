//! What a planner has to know about a processor: plain numbers.

use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fmt;
use tangor_model::{Graph, WeightId};

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

/// Where a device keeps weights, keys and values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MemoryKind {
    /// In the host's memory: what one device writes there, others read without a copy.
    Host,
    /// In buffers of its own that take the host's memory: others get copies.
    HostBuffers,
    /// In memory of its own.
    Own,
}

impl MemoryKind {
    /// Whether it takes what others could have of the host's memory.
    #[must_use]
    pub fn is_host(self) -> bool {
        self != Self::Own
    }
}

/// Bytes of packed weights.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PackedWeights {
    /// So many times the bytes of the weights as they are stored.
    Times(f64),
    /// Of each of the graph's weights, by index.
    Each(Vec<u64>),
}

impl PackedWeights {
    /// Bytes of one weight.
    #[must_use]
    pub fn bytes(&self, graph: &Graph, weight: WeightId) -> f64 {
        let stored = graph.weight(weight).stored_bytes();
        match self {
            Self::Times(times) => stored as f64 * times,
            Self::Each(bytes) => bytes.get(weight.0).map_or(stored as f64, |&bytes| bytes as f64),
        }
    }

    /// Bytes of all weights, each counted once.
    #[must_use]
    pub fn all_bytes(&self, graph: &Graph) -> u64 {
        let each = (0..graph.weights.len()).map(|index| self.bytes(graph, WeightId(index)));
        each.sum::<f64>().ceil() as u64
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
    /// Bytes that other models take of it already.
    pub taken_bytes: u64,
    /// Whose memory that is.
    pub memory: MemoryKind,
    /// Names the form in which it packs weights: devices that share memory and form hold one copy
    /// between them, all others one each.
    pub layout: String,
    /// What weights take in that form.
    pub packed: PackedWeights,
    /// How fast it is.
    pub rates: Rates,
    /// Numbers of rows that it is compiled for, ascending: a batch is padded to the next one, and
    /// to a multiple of the last. Empty: any.
    pub row_counts: Vec<usize>,
    /// Nodes of the graph that it cannot run, by index.
    pub refused: BTreeSet<usize>,
}

impl DeviceProfile {
    /// A device with typical rates, a packed form of its own, as large as what is stored, and
    /// nothing that it refuses.
    #[must_use]
    pub fn new(name: &str, kind: Kind, memory_bytes: u64, memory: MemoryKind) -> Self {
        Self {
            name: name.to_owned(),
            kind,
            description: name.to_owned(),
            memory_bytes,
            taken_bytes: 0,
            memory,
            layout: name.to_owned(),
            packed: PackedWeights::Times(1.0),
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
