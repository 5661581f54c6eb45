//! What a device is.
//!
//! A device takes a [`Segment`] of the graph, packs its weights once ([`Device::prepare`]) and then
//! runs it over batches of any mix of sequences ([`Runnable::run`]). Keys and values live in a
//! paged cache that the device owns ([`KvCache`]); which page belongs to which sequence is the
//! engine's business and comes with every batch.
//!
//! Whatever a device computes for a row depends on that row's token, position and the cached rows
//! before it, and on nothing else: not on the other rows of the batch, the number of threads, or
//! how a prompt was cut into chunks. Tests assert equal bits.

use crate::PackedCache;
use std::any::Any;
use std::fmt;
use std::ops::Range;
use tangor_model::rope::Variant;
use tangor_model::{Graph, ValueId, WeightId};
use tangor_tensor::Weight;

/// Kinds of processors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DeviceKind {
    /// Central processor.
    Cpu,
    /// Graphics processor, integrated or not.
    Gpu,
    /// Neural processor.
    Npu,
}

/// Where a device keeps weights, keys and values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MemoryKind {
    /// In the host's memory, which devices that do so read and write without a copy.
    Host,
    /// In buffers of its own that take the host's memory, as an integrated GPU.
    HostBuffers,
    /// In memory of its own.
    Own,
}

/// Plain facts about a device.
#[derive(Clone, Debug, PartialEq)]
pub struct Descriptor {
    /// Short and unique, as `cpu`.
    pub name: String,
    /// Kind of processor.
    pub kind: DeviceKind,
    /// What a person would call it: `AMD EPYC 9554, AVX-512 VNNI, 2 threads`.
    pub description: String,
    /// Bytes of memory that weights and KV may take.
    pub memory_bytes: u64,
    /// Whose memory that is.
    pub memory: MemoryKind,
}

/// How activations enter linear operations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Activations {
    /// Rounded to 8 bits per row and group: the default.
    Int8,
    /// As they are: the exact mode.
    F32,
}

/// Element type of the KV cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum KvType {
    /// 4 bytes, for the exact mode.
    F32,
    /// 2 bytes, an IEEE half; attention computes in `f32`.
    F16,
    /// 2 bytes, the upper half of an `f32`: what attention multiplies here and in 8 bits is rounded
    /// to that, and added in `f32`.
    Bf16,
    /// 1 byte, and 2 for every 16 elements of a key and every 32 of a value.
    Int8,
}

/// Shape of a KV cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvSpec {
    /// Layers.
    pub layers: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Elements per head.
    pub head_dim: usize,
    /// Tokens per page: attention reduces over pages in order.
    pub page_tokens: usize,
    /// Pages in the pool.
    pub pages: usize,
    /// Element type.
    pub dtype: KvType,
}

impl KvSpec {
    /// Bytes of one page: keys and values of `page_tokens` tokens in all layers.
    #[must_use]
    pub fn page_bytes(&self) -> usize {
        let elements = 2 * self.layers * self.page_tokens * self.kv_heads * self.head_dim;
        match self.dtype {
            KvType::F32 => elements * 4,
            KvType::F16 | KvType::Bf16 => elements * 2,
            // Keys and values are half of the elements each.
            KvType::Int8 => {
                elements + (elements / 2).div_ceil(16) * 2 + (elements / 2).div_ceil(32) * 2
            }
        }
    }
}

/// Index of a page in a [`KvCache`].
pub type PageId = u32;

/// Keys and values of many sequences, in pages, in the device's memory.
pub trait KvCache: Send + Any + fmt::Debug {
    /// The shape it was made with.
    fn spec(&self) -> &KvSpec;
    /// Copies the first `tokens` tokens of a page, in all layers: what copy-on-write needs.
    fn copy_page(&mut self, from: PageId, to: PageId, tokens: usize);
    /// Says which pages [`KvCache::read_page`] is about to read, in which layers: a device whose
    /// memory is far away gets them in one go. Changes nothing that is read.
    fn prefetch(&self, _pages: &[PageId], _layers: &[usize]) {}
    /// Reads keys and values of the first `tokens` tokens of a page and one layer, each
    /// `(tokens, kv_heads, head_dim)`: for hand-over to another device, and for tests.
    fn read_page(
        &self,
        page: PageId,
        layer: usize,
        tokens: usize,
        keys: &mut [f32],
        values: &mut [f32],
    );
    /// The other direction of [`KvCache::read_page`].
    fn write_page(
        &mut self,
        page: PageId,
        layer: usize,
        tokens: usize,
        keys: &[f32],
        values: &[f32],
    );
    /// For the device that made it.
    fn as_any(&self) -> &dyn Any;
    /// For the device that made it.
    fn as_any_mut(&mut self) -> &mut dyn Any;
}

/// A run of nodes that one device runs.
#[derive(Clone, Debug)]
pub struct Segment<'a> {
    /// The whole graph.
    pub graph: &'a Graph,
    /// Its nodes, by index.
    pub nodes: Range<usize>,
    /// Values that come from outside, in the order in which they are handed over.
    pub inputs: Vec<ValueId>,
    /// Values that go outside, in the order in which they are handed back.
    pub outputs: Vec<ValueId>,
    /// Where packed weights are kept.
    pub packed: Option<&'a dyn PackedCache>,
}

impl<'a> Segment<'a> {
    /// The whole graph as one segment: nothing in, the logits out.
    #[must_use]
    pub fn whole(graph: &'a Graph) -> Self {
        Self {
            graph,
            nodes: 0..graph.nodes.len(),
            inputs: Vec::new(),
            outputs: vec![graph.logits],
            packed: None,
        }
    }

    /// Whether all that was read of the graph's weights was there. A device asks when it has packed
    /// them, before it hands them to a cache and before it says that it is prepared: what a mapped
    /// file lost meanwhile was read as zeros.
    ///
    /// # Errors
    /// [`DeviceError::WeightsChanged`].
    pub fn check_weights(&self) -> Result<(), DeviceError> {
        let mut weights = self.graph.weights.iter().map(|named| &named.weight);
        let checked = weights.try_for_each(Weight::check_unchanged);
        checked.map_err(|_| DeviceError::WeightsChanged)
    }
}

/// How a segment is to be prepared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prepare {
    /// How activations enter linear operations.
    pub activations: Activations,
    /// Longest sequence that will come (bounds tables of angles).
    pub context: usize,
    /// Most rows that one batch will have.
    pub max_rows: usize,
}

/// The rows of one sequence in a batch.
#[derive(Clone, Debug)]
pub struct Span<'a> {
    /// Its rows of the batch, in order of position.
    pub rows: Range<usize>,
    /// Position of the first of them: as many tokens are cached already.
    pub start: usize,
    /// The sequence's pages, enough for `start + rows.len()` tokens.
    pub pages: &'a [PageId],
    /// Rotary variant of the whole sequence.
    pub rope: Variant,
}

/// One run: rows of any number of sequences.
#[derive(Clone, Debug)]
pub struct Batch<'a> {
    /// Token ids, one per row, each below the vocabulary's size.
    pub tokens: &'a [u32],
    /// The sequences; their rows cover the batch in order.
    pub spans: &'a [Span<'a>],
    /// Rows whose logits are wanted, ascending.
    pub logit_rows: &'a [usize],
}

impl Batch<'_> {
    /// Whether the batch fits a vocabulary and a cache: what every device asks before it runs.
    ///
    /// # Errors
    /// [`DeviceError::Batch`] with the first thing that does not fit.
    pub fn check(&self, vocab: usize, kv: &KvSpec) -> Result<(), DeviceError> {
        let fail = |why: String| Err(DeviceError::Batch { why });
        let rows = self.tokens.len();
        if let Some(token) = self.tokens.iter().find(|&&token| token as usize >= vocab) {
            return fail(format!("token {token} is not in the vocabulary of {vocab}"));
        }
        let mut next = 0;
        for span in self.spans {
            if span.rows.start != next || span.rows.end < next {
                return fail(format!(
                    "rows {:?} of a sequence do not follow row {next}",
                    span.rows
                ));
            }
            next = span.rows.end;
            let tokens = span.start + span.rows.len();
            if tokens > span.pages.len() * kv.page_tokens {
                let pages = span.pages.len();
                return fail(format!("{tokens} tokens in {pages} pages of {}", kv.page_tokens));
            }
            if let Some(page) = span.pages.iter().find(|&&page| page as usize >= kv.pages) {
                return fail(format!("page {page} of a cache of {}", kv.pages));
            }
        }
        if next != rows {
            return fail(format!("sequences cover {next} of {rows} rows"));
        }
        let ascending = self.logit_rows.windows(2).all(|pair| pair[0] < pair[1]);
        if !ascending || self.logit_rows.last().is_some_and(|&row| row >= rows) {
            return fail(format!("logits wanted of rows {:?} of {rows}", self.logit_rows));
        }
        Ok(())
    }
}

/// Logits of a run: `(logit_rows.len(), vocab)`.
pub type Logits = Vec<f32>;

/// What can go wrong on a device.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DeviceError {
    /// The device does not implement this operation or weight layout.
    #[error("{device} cannot run {node}: {why}")]
    Refused {
        /// The device's name.
        device: String,
        /// The node's name.
        node: String,
        /// What it lacks.
        why: String,
    },
    /// Weights or KV do not fit.
    #[error("{device} has no room for {bytes} more bytes of {what}")]
    OutOfMemory {
        /// The device's name.
        device: String,
        /// Weights, KV cache or activations.
        what: &'static str,
        /// Bytes asked for.
        bytes: u64,
    },
    /// The device went away.
    #[error("{device} was lost: {why}")]
    Lost {
        /// The device's name.
        device: String,
        /// What its driver said.
        why: String,
    },
    /// Work took longer than it may.
    #[error("{device} did not answer within its time limit")]
    Timeout {
        /// The device's name.
        device: String,
    },
    /// A batch that does not fit the graph or the cache.
    #[error("this batch cannot run: {why}")]
    Batch {
        /// What does not fit, and the limit.
        why: String,
    },
    /// The file behind the weights changed while they were in use.
    #[error("the model's files changed while it was in use: load it again")]
    WeightsChanged,
}

/// Whether a device can be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Health {
    /// Yes.
    Ready,
    /// No, and why.
    Lost(String),
}

/// How activations are rounded under [`Activations::Int8`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Rounding {
    /// As [`crate::rounding`] says, to the bit.
    #[default]
    Defined,
    /// Not at all: they enter linears as they are, which is finer.
    None,
}

/// In what linears multiply and operations hand values on, under [`Activations::F32`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Products {
    /// `f32` throughout.
    #[default]
    F32,
    /// As coarse as bf16, sums being finer: what neural processors have.
    Bf16,
}

/// How a device computes, where the contract leaves it a choice. What a row's bits depend on is no
/// such choice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Arithmetic {
    /// Of activations in 8 bits.
    pub rounding: Rounding,
    /// Of everything else.
    pub products: Products,
}

/// A processor that runs segments of a graph.
pub trait Device: Send + Sync + fmt::Debug {
    /// Plain facts.
    fn descriptor(&self) -> &Descriptor;
    /// How it computes: what the conformance suite's tolerances go by.
    fn arithmetic(&self) -> Arithmetic {
        Arithmetic::default()
    }
    /// Why a node cannot run here, if it cannot: what a planner asks before it places anything.
    /// [`Device::prepare`] refuses the same nodes with [`DeviceError::Refused`].
    fn refuses(&self, _graph: &Graph, _node: usize) -> Option<String> {
        None
    }
    /// Bytes that a weight of the graph takes here once the nodes that read it are prepared: what a
    /// planner counts on. What a few of its rows look like may have to do for all of them; a weight
    /// that is not packed takes what it is stored in.
    fn packed_bytes(&self, graph: &Graph, weight: WeightId) -> u64 {
        graph.weight(weight).stored_bytes() as u64
    }
    /// Makes an empty KV cache.
    ///
    /// # Errors
    /// [`DeviceError::OutOfMemory`].
    fn kv_cache(&self, spec: &KvSpec) -> Result<Box<dyn KvCache>, DeviceError>;
    /// Packs a segment's weights. Takes long; `progress` hears the share done, 0 to 1.
    ///
    /// # Errors
    /// [`DeviceError::Refused`] for an operation or layout that it lacks: a device never
    /// approximates silently. [`DeviceError::OutOfMemory`]. [`DeviceError::WeightsChanged`] if a
    /// file lost part of them meanwhile.
    fn prepare(
        &self,
        segment: &Segment<'_>,
        options: Prepare,
        progress: &mut dyn FnMut(f32),
    ) -> Result<Box<dyn Runnable>, DeviceError>;
    /// Packs several segments of one graph. A device that can holds a weight once that several of
    /// them read, and scratch memory once for all of them, since their runs take turns;
    /// [`Runnable::memory_bytes`] of the first of these counts it.
    ///
    /// # Errors
    /// As [`Device::prepare`].
    fn prepare_all(
        &self,
        segments: &[Segment<'_>],
        options: Prepare,
        progress: &mut dyn FnMut(f32),
    ) -> Result<Vec<Box<dyn Runnable>>, DeviceError> {
        let count = segments.len() as f32;
        let prepare = |(index, segment)| {
            let mut report = |share: f32| progress((index as f32 + share) / count);
            self.prepare(segment, options, &mut report)
        };
        segments.iter().enumerate().map(prepare).collect()
    }
    /// Whether it can be used now.
    fn health(&self) -> Health {
        Health::Ready
    }
}

/// A prepared segment.
pub trait Runnable: Send + fmt::Debug {
    /// Runs the segment over a batch.
    ///
    /// `inputs`: one slice per [`Segment::inputs`], `(rows, width)`. `outputs`: one vector per
    /// [`Segment::outputs`], resized to `(rows, width)`; values behind a
    /// [`SelectRows`](tangor_model::Op::SelectRows) have `logit_rows.len()` rows.
    ///
    /// # Errors
    /// Any [`DeviceError`] of running; the cache rows of the batch are then undefined, all others
    /// are as they were.
    fn run(
        &mut self,
        batch: &Batch<'_>,
        kv: &mut dyn KvCache,
        inputs: &[&[f32]],
        outputs: &mut [Vec<f32>],
    ) -> Result<(), DeviceError>;
    /// Bytes that packed weights and scratch memory take.
    fn memory_bytes(&self) -> u64;
}
