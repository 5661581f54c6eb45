//! Runs batches on devices as the plan says.

use crate::handover::Handover;
use crate::pool::Tail;
use crate::step::Work;
use crate::together::{Lane, Together};
use crate::{EngineError, Memory, Progress};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;
use tangor_device::{
    Batch, Device, KvCache, KvSpec, KvType, PackedCache, Prepare, Runnable, Segment, Span,
};
use tangor_plan::model::{Graph, Node, Op, ValueId};
use tangor_plan::{MemoryKind, Plan, Stage};

/// Prepared segments and KV caches of every device that takes part.
#[derive(Debug)]
pub(crate) struct Executor {
    /// One per device that takes part.
    caches: Vec<Box<dyn KvCache>>,
    segments: Vec<Piece>,
    /// One per stage of the plan, in its order.
    routes: Vec<Route>,
    /// Segments on the way to hidden states, and these, where there is one.
    tail: Option<(Vec<usize>, ValueId)>,
    /// How two devices share prompts, where they do.
    together: Option<Together>,
    /// What the last batch took.
    took: Took,
    handover: Handover,
    values: Values,
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

/// Values between segments, by id: `(rows, width)`.
pub(crate) type Values = BTreeMap<ValueId, Vec<f32>>;

/// Nodes that a device runs in one go.
#[derive(Debug)]
pub(crate) struct Piece {
    /// Index of its cache.
    cache: usize,
    runnable: Box<dyn Runnable>,
    pub(crate) ends: Ends,
}

/// What nodes exchange with others.
#[derive(Debug)]
pub(crate) struct Ends {
    inputs: Vec<ValueId>,
    outputs: Vec<ValueId>,
    /// Attention layers that they run.
    pub(crate) layers: Vec<usize>,
}

/// A device and the nodes that it runs.
type Key = (usize, Range<usize>);

impl Executor {
    /// Prepares every segment of the plan once, and makes the caches.
    ///
    /// # Errors
    /// Whatever a device says.
    pub(crate) fn new(
        graph: &Graph,
        plan: &Plan,
        devices: &[Arc<dyn Device>],
        prepare: (Prepare, Option<&dyn PackedCache>),
        kv: KvType,
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<Self, EngineError> {
        let shared = shared_prefill(graph, plan);
        Self::with_shared(graph, plan, devices, prepare, (kv, shared), progress)
    }

    fn with_shared(
        graph: &Graph,
        plan: &Plan,
        devices: &[Arc<dyn Device>],
        prepare: (Prepare, Option<&dyn PackedCache>),
        (kv, shared): (KvType, Option<Shared>),
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<Self, EngineError> {
        let planned = plan.stages.iter().flat_map(|stage| &stage.segments);
        let planned = planned.map(|segment| segment.device);
        let used: BTreeSet<usize> =
            planned.chain(shared.iter().flat_map(|shared| shared.devices)).collect();
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
        let mut keys: Vec<Key> = Vec::new();
        let mut routes = Vec::new();
        let streams = shared.as_ref().is_some_and(Shared::streams);
        for stage in &plan.stages {
            let mut segments = Vec::new();
            // What runs piece by piece is not prepared as a whole, too.
            let in_pieces = streams && stage.stage == Stage::Prefill;
            for segment in stage.segments.iter().filter(|_| !in_pieces) {
                segments.push(place(&mut keys, (segment.device, segment.range.clone())));
            }
            routes.push(Route { stage: stage.stage, m: stage.m, segments });
        }
        let tail = Tail::of(graph, plan).map(|tail| {
            let segments = tail.segments.into_iter().map(|key| place(&mut keys, key));
            (segments.collect(), tail.hidden)
        });
        let lanes = shared.map(|shared| {
            let keys = shared.keys();
            (shared, [keys[0].len(), keys[1].len()], keys.concat())
        });
        let own = keys.len();
        keys.extend(lanes.iter().flat_map(|(.., keys)| keys.clone()));
        let mut segments = Self::prepare(graph, devices, &used, (&keys, prepare), progress)?;
        let mut of_lanes = segments.split_off(own).into_iter();
        let together = lanes.map(|(shared, counts, _)| Together {
            lanes: [0, 1].map(|lane| Lane {
                cache: used.iter().position(|&d| d == shared.devices[lane]).unwrap_or(0),
                pieces: of_lanes.by_ref().take(counts[lane]).collect(),
            }),
            rows: shared.rows,
        });
        let handover = Handover::new(&caches);
        let (values, logits) = (Values::new(), graph.logits);
        let took = Took::default();
        Ok(Self { caches, segments, routes, tail, together, took, handover, values, logits })
    }

    /// Prepares segments, all of a device in one go, so that it can share weights between them.
    fn prepare(
        graph: &Graph,
        devices: &[Arc<dyn Device>],
        used: &[usize],
        (keys, (prepare, packed)): (&[Key], (Prepare, Option<&dyn PackedCache>)),
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<Vec<Piece>, EngineError> {
        let ends: Vec<Ends> = keys.iter().map(|(_, range)| Ends::of(graph, range)).collect();
        let mut runnables: Vec<Option<Box<dyn Runnable>>> = keys.iter().map(|_| None).collect();
        for (turn, &index) in used.iter().enumerate() {
            let mine: Vec<usize> = (0..keys.len()).filter(|&i| keys[i].0 == index).collect();
            let segment = |&i: &usize| Segment {
                graph,
                nodes: keys[i].1.clone(),
                inputs: ends[i].inputs.clone(),
                outputs: ends[i].outputs.clone(),
                packed,
            };
            let segments: Vec<Segment<'_>> = mine.iter().map(segment).collect();
            let device = &devices[index];
            let mut report = |share: f32| {
                let share = (turn as f32 + share.clamp(0.0, 1.0)) / used.len() as f32;
                progress(Progress { device: &device.descriptor().name, share });
            };
            let prepared = device.prepare_all(&segments, prepare, &mut report)?;
            for (i, runnable) in mine.into_iter().zip(prepared) {
                runnables[i] = Some(runnable);
            }
        }
        let pieces =
            keys.iter().zip(ends).zip(runnables).filter_map(|(((device, _), ends), run)| {
                let cache = used.iter().position(|d| d == device)?;
                Some(Piece { cache, runnable: run?, ends })
            });
        Ok(pieces.collect())
    }

    /// Bytes that weights and caches take.
    pub(crate) fn memory(&self) -> Memory {
        let kv = self.caches.iter().map(|cache| cache.spec());
        let lanes = self.together.iter().flat_map(|together| &together.lanes);
        let pieces = self.segments.iter().chain(lanes.flat_map(|lane| &lane.pieces));
        Memory {
            weights: pieces.map(|piece| piece.runnable.memory_bytes()).sum(),
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
        if work.hidden {
            return self.run_tail(&batch);
        }
        let Some(route) = self.route(work.stage, work.tokens.len()) else { return Ok(()) };
        (self.took.stage, self.took.rows) = (route, work.tokens.len());
        self.took.seconds.clear();
        if work.stage == Stage::Prefill && self.run_together(&batch)? {
            return Ok(());
        }
        for index in self.routes[route].segments.clone() {
            let begin = Instant::now();
            self.run_segment(index, &batch)?;
            self.took.seconds.push(begin.elapsed().as_secs_f64());
        }
        Ok(())
    }

    /// Runs a batch as far as its hidden states.
    fn run_tail(&mut self, batch: &Batch<'_>) -> Result<(), EngineError> {
        let Some((segments, _)) = &self.tail else { return Err(EngineError::NoEmbeddings) };
        // Of no stage of the plan.
        self.took = Took::default();
        for index in segments.clone() {
            self.run_segment(index, batch)?;
        }
        Ok(())
    }

    /// Whether it can run batches for embeddings.
    pub(crate) fn embeds(&self) -> bool {
        self.tail.is_some()
    }

    /// What the last batch took, if it ran to its end.
    pub(crate) fn took(&self) -> &Took {
        &self.took
    }

    /// What the last batch was run for: logits, `(logit rows, vocab)`, or hidden states, `(logit
    /// rows, hidden)`.
    pub(crate) fn rows(&self, work: &Work) -> &[f32] {
        let hidden = self.tail.as_ref().filter(|_| work.hidden).map(|(_, hidden)| *hidden);
        let id = hidden.unwrap_or(self.logits);
        self.values.get(&id).map(Vec::as_slice).unwrap_or_default()
    }

    /// Index of the stage for a batch: the smallest planned one that is large enough, or the
    /// largest.
    fn route(&self, stage: Stage, rows: usize) -> Option<usize> {
        let mut of_stage = (0..self.routes.len()).filter(|&i| self.routes[i].stage == stage);
        let last = of_stage.clone().next_back();
        of_stage.find(|&i| self.routes[i].m >= rows).or(last)
    }

    /// Runs a batch on two devices at the same time, if it has rows for both, or if the second is
    /// to have the keys and values of the first.
    fn run_together(&mut self, batch: &Batch<'_>) -> Result<bool, EngineError> {
        let Some(together) = &mut self.together else { return Ok(false) };
        if !together.wants(batch) {
            return Ok(false);
        }
        let pair = [0, 1].map(|lane| together.lanes[lane].cache);
        let layers: Vec<usize> = (0..self.caches[pair[0]].spec().layers).collect();
        for (span, device) in batch.spans.iter().flat_map(|span| pair.map(|d| (span, d))) {
            self.handover.bring(&mut self.caches, device, &layers, span.pages, span.start);
        }
        let begin = Instant::now();
        let logits = together.run(batch, &mut self.caches, self.logits)?;
        if together.streams() {
            // All of it is the first device's one segment.
            self.took.seconds.push(begin.elapsed().as_secs_f64());
        }
        self.values.insert(self.logits, logits);
        for span in batch.spans {
            let written = (span.start, span.start + span.rows.len());
            self.handover.wrote(pair[0], &layers, span.pages, written);
            self.handover.received(pair[1], &layers, span.pages, written);
        }
        Ok(true)
    }

    fn run_segment(&mut self, index: usize, batch: &Batch<'_>) -> Result<(), EngineError> {
        let piece = &mut self.segments[index];
        for span in batch.spans {
            let (layers, cache) = (&piece.ends.layers, piece.cache);
            self.handover.bring(&mut self.caches, cache, layers, span.pages, span.start);
        }
        piece.run(batch, self.caches[piece.cache].as_mut(), &mut self.values)?;
        for span in batch.spans {
            let written = (span.start, span.start + span.rows.len());
            self.handover.wrote(piece.cache, &piece.ends.layers, span.pages, written);
        }
        Ok(())
    }
}

impl Ends {
    fn of(graph: &Graph, range: &Range<usize>) -> Self {
        let nodes = &graph.nodes[range.clone()];
        let written: BTreeSet<ValueId> = nodes.iter().flat_map(|n| n.outputs.clone()).collect();
        let read: BTreeSet<ValueId> = nodes.iter().flat_map(|n| n.inputs.clone()).collect();
        let later = graph.nodes[range.end..].iter().flat_map(|n| n.inputs.clone());
        let wanted: BTreeSet<ValueId> = later.chain([graph.logits]).collect();
        let layer = |node: &Node| match &node.op {
            Op::Attention(attention) => Some(attention.layer),
            _ => None,
        };
        Self {
            inputs: read.difference(&written).copied().collect(),
            outputs: written.intersection(&wanted).copied().collect(),
            layers: nodes.iter().filter_map(layer).collect(),
        }
    }
}

impl Piece {
    /// Runs a batch: reads its inputs from `values` and leaves its outputs there.
    ///
    /// # Errors
    /// Whatever the device says.
    pub(crate) fn run(
        &mut self,
        batch: &Batch<'_>,
        cache: &mut dyn KvCache,
        values: &mut Values,
    ) -> Result<(), EngineError> {
        let mut outputs: Vec<Vec<f32>> =
            self.ends.outputs.iter().map(|id| values.remove(id).unwrap_or_default()).collect();
        let inputs: Vec<&[f32]> = self
            .ends
            .inputs
            .iter()
            .map(|id| values.get(id).map(Vec::as_slice).unwrap_or_default())
            .collect();
        let result = self.runnable.run(batch, cache, &inputs, &mut outputs);
        values.extend(self.ends.outputs.iter().copied().zip(outputs));
        Ok(result?)
    }
}

/// Two devices that share prompts, and where they cut the graph.
struct Shared {
    devices: [usize; 2],
    rows: [usize; 2],
    pieces: Vec<Range<usize>>,
}

impl Shared {
    /// Whether the second device only receives what the first one computes.
    fn streams(&self) -> bool {
        self.rows[1] == 0
    }

    /// What each of the two has to prepare: whoever has no rows of its own only receives.
    fn keys(&self) -> [Vec<Key>; 2] {
        [0, 1].map(|lane| match self.rows[lane] {
            0 => Vec::new(),
            _ => self.pieces.iter().map(|piece| (self.devices[lane], piece.clone())).collect(),
        })
    }
}

/// The index of a key, which is added if it is new.
fn place(keys: &mut Vec<Key>, key: Key) -> usize {
    keys.iter().position(|other| *other == key).unwrap_or_else(|| {
        keys.push(key);
        keys.len() - 1
    })
}

/// How prompts are shared: as the plan says. Where another device decodes, in a memory of its own,
/// it receives keys and values while prompts are read.
fn shared_prefill(graph: &Graph, plan: &Plan) -> Option<Shared> {
    if let Some(both) = &plan.cooperative {
        let pieces = both.pieces.clone();
        return Some(Shared { devices: both.devices, rows: both.rows, pieces });
    }
    let only = |stage| {
        let of_stage = plan.stages.iter().filter(move |planned| planned.stage == stage);
        let mut devices = of_stage.flat_map(|planned| planned.segments.iter().map(|s| s.device));
        let first = devices.next()?;
        devices.all(|device| device == first).then_some(first)
    };
    let (reads, writes) = (only(Stage::Prefill)?, only(Stage::Decode)?);
    let copies = |&device: &usize| plan.devices[device].memory != MemoryKind::Host;
    let apart = [reads, writes].iter().any(copies);
    (reads != writes && apart).then(|| {
        let pieces = tangor_plan::pieces(graph);
        Shared { devices: [reads, writes], rows: [1, 0], pieces }
    })
}

#[cfg(test)]
mod tests;
