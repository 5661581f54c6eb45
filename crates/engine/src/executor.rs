//! Runs batches on devices as the plan says.

use crate::handover::Handover;
use crate::step::Work;
use crate::{EngineError, Memory, Progress};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;
use tangor_device::{
    Batch, Device, KvCache, KvSpec, KvType, PackedCache, Prepare, Runnable, Segment, Span,
};
use tangor_plan::model::{Graph, Op, ValueId};
use tangor_plan::{Plan, Stage};

/// Prepared segments and KV caches of every device that takes part.
#[derive(Debug)]
pub(crate) struct Executor {
    /// One per device that takes part.
    caches: Vec<Box<dyn KvCache>>,
    segments: Vec<Piece>,
    /// One per stage of the plan, in its order.
    routes: Vec<Route>,
    /// What the last batch took.
    took: Took,
    handover: Handover,
    /// Values between segments, by id.
    values: BTreeMap<ValueId, Vec<f32>>,
    logits: ValueId,
}

/// The segments that a stage runs, for batches of up to so many rows.
#[derive(Debug)]
struct Route {
    stage: Stage,
    m: usize,
    segments: Vec<usize>,
}

/// Seconds that the segments of a stage took for one batch.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Took {
    /// Index of the stage in [`Plan::stages`].
    pub(crate) stage: usize,
    /// Rows of the batch.
    pub(crate) rows: usize,
    /// One per segment of the stage.
    pub(crate) seconds: Vec<f64>,
}

#[derive(Debug)]
struct Piece {
    /// Index of its cache.
    cache: usize,
    runnable: Box<dyn Runnable>,
    inputs: Vec<ValueId>,
    outputs: Vec<ValueId>,
    /// Attention layers that it runs.
    layers: Vec<usize>,
}

impl Executor {
    /// Prepares every segment of the plan once, and makes the caches.
    ///
    /// # Errors
    /// Whatever a device says.
    pub(crate) fn new(
        graph: &Graph,
        plan: &Plan,
        devices: &[Arc<dyn Device>],
        (prepare, packed): (Prepare, Option<&dyn PackedCache>),
        kv: KvType,
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<Self, EngineError> {
        let planned = || plan.stages.iter().flat_map(|stage| &stage.segments);
        let used: BTreeSet<usize> = planned().map(|segment| segment.device).collect();
        let used: Vec<usize> = used.into_iter().collect();
        let hyper = &graph.hyper;
        let spec = KvSpec {
            layers: hyper.layers,
            kv_heads: hyper.kv_heads,
            head_dim: hyper.head_dim,
            page_tokens: plan.kv.page_tokens,
            pages: plan.kv.pages,
            dtype: kv,
        };
        let caches = used
            .iter()
            .map(|&device| devices[device].kv_cache(&spec))
            .collect::<Result<Vec<_>, _>>()?;
        let mut keys: Vec<(usize, Range<usize>)> = Vec::new();
        let mut routes = Vec::new();
        for stage in &plan.stages {
            let mut segments = Vec::new();
            for segment in &stage.segments {
                let key = (segment.device, segment.range.clone());
                segments.push(keys.iter().position(|other| *other == key).unwrap_or_else(|| {
                    keys.push(key);
                    keys.len() - 1
                }));
            }
            routes.push(Route { stage: stage.stage, m: stage.m, segments });
        }
        let count = keys.len();
        let mut segments = Vec::with_capacity(count);
        for (index, (device, range)) in keys.into_iter().enumerate() {
            let cache = used.iter().position(|&d| d == device).unwrap_or(0);
            let device = &devices[device];
            let mut report = |share: f32| {
                let share = (index as f32 + share.clamp(0.0, 1.0)) / count as f32;
                progress(Progress { device: &device.descriptor().name, share });
            };
            let prepare = (prepare, packed);
            segments.push(Piece::new(graph, range, (&**device, cache), prepare, &mut report)?);
        }
        let handover = Handover::new(&caches);
        let (values, logits) = (BTreeMap::new(), graph.logits);
        let took = Took::default();
        Ok(Self { caches, segments, routes, took, handover, values, logits })
    }

    /// Bytes that weights and caches take.
    pub(crate) fn memory(&self) -> Memory {
        let kv = self.caches.iter().map(|cache| cache.spec());
        Memory {
            weights: self.segments.iter().map(|segment| segment.runnable.memory_bytes()).sum(),
            kv: kv.map(|spec| spec.page_bytes() as u64 * spec.pages as u64).sum(),
        }
    }

    /// Runs a batch.
    ///
    /// # Errors
    /// Whatever a device says; the batch's rows of the cache are then undefined.
    pub(crate) fn run(&mut self, work: &Work) -> Result<(), EngineError> {
        for copy in &work.copies {
            self.handover.copy_page(&mut self.caches, (copy.from, copy.to), copy.tokens);
        }
        let spans: Vec<Span<'_>> = work
            .spans
            .iter()
            .map(|span| Span {
                rows: span.rows.clone(),
                start: span.start,
                pages: &span.pages,
                rope: span.rope,
            })
            .collect();
        let batch = Batch { tokens: &work.tokens, spans: &spans, logit_rows: &work.logit_rows };
        let Some(route) = self.route(work.stage, work.tokens.len()) else { return Ok(()) };
        (self.took.stage, self.took.rows) = (route, work.tokens.len());
        self.took.seconds.clear();
        for index in self.routes[route].segments.clone() {
            let begin = Instant::now();
            self.run_segment(index, &batch)?;
            self.took.seconds.push(begin.elapsed().as_secs_f64());
        }
        Ok(())
    }

    /// What the last batch took, if it ran to its end.
    pub(crate) fn took(&self) -> &Took {
        &self.took
    }

    /// Logits of the last batch, `(logit rows, vocab)`.
    pub(crate) fn logits(&self) -> &[f32] {
        self.values.get(&self.logits).map(Vec::as_slice).unwrap_or_default()
    }

    /// Index of the stage for a batch: the smallest planned one that is large enough, or the
    /// largest.
    fn route(&self, stage: Stage, rows: usize) -> Option<usize> {
        let mut of_stage = (0..self.routes.len()).filter(|&i| self.routes[i].stage == stage);
        let last = of_stage.clone().next_back();
        of_stage.find(|&i| self.routes[i].m >= rows).or(last)
    }

    fn run_segment(&mut self, index: usize, batch: &Batch<'_>) -> Result<(), EngineError> {
        let segment = &mut self.segments[index];
        for span in batch.spans {
            let (layers, cache) = (&segment.layers, segment.cache);
            self.handover.bring(&mut self.caches, cache, layers, span.pages, span.start);
        }
        let mut outputs: Vec<Vec<f32>> =
            segment.outputs.iter().map(|id| self.values.remove(id).unwrap_or_default()).collect();
        let inputs: Vec<&[f32]> = segment
            .inputs
            .iter()
            .map(|id| self.values.get(id).map(Vec::as_slice).unwrap_or_default())
            .collect();
        let cache = self.caches[segment.cache].as_mut();
        let result = segment.runnable.run(batch, cache, &inputs, &mut outputs);
        self.values.extend(segment.outputs.iter().copied().zip(outputs));
        result?;
        for span in batch.spans {
            let written = (span.start, span.start + span.rows.len());
            self.handover.wrote(segment.cache, &segment.layers, span.pages, written);
        }
        Ok(())
    }
}

impl Piece {
    fn new(
        graph: &Graph,
        range: Range<usize>,
        (device, cache): (&dyn Device, usize),
        (prepare, packed): (Prepare, Option<&dyn PackedCache>),
        progress: &mut dyn FnMut(f32),
    ) -> Result<Self, EngineError> {
        let nodes = &graph.nodes[range.clone()];
        let written: BTreeSet<ValueId> = nodes.iter().flat_map(|n| n.outputs.clone()).collect();
        let read: BTreeSet<ValueId> = nodes.iter().flat_map(|n| n.inputs.clone()).collect();
        let later = graph.nodes[range.end..].iter().flat_map(|n| n.inputs.clone());
        let wanted: BTreeSet<ValueId> = later.chain([graph.logits]).collect();
        let inputs: Vec<ValueId> = read.difference(&written).copied().collect();
        let outputs: Vec<ValueId> = written.intersection(&wanted).copied().collect();
        let layers = nodes
            .iter()
            .filter_map(|node| match &node.op {
                Op::Attention(attention) => Some(attention.layer),
                _ => None,
            })
            .collect();
        let segment = Segment {
            graph,
            nodes: range,
            inputs: inputs.clone(),
            outputs: outputs.clone(),
            packed,
        };
        let runnable = device.prepare(&segment, prepare, progress)?;
        Ok(Self { cache, runnable, inputs, outputs, layers })
    }
}
