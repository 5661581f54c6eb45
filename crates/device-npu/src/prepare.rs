//! Cutting a segment into pieces that the provider accepts, and compiling them.
//!
//! Between two attentions lies a run of dense nodes: an output projection, a residual and a norm,
//! the whole MLP, the next norm and projections. A run is offered as one piece; if the provider
//! refuses it, each half is, cut before a norm where there is one, down to single nodes. What a
//! provider said about a shape is remembered, so layers alike are asked about once.

use crate::device::{Core, Keep, Verdict};
use crate::emit::{Emitted, Form, Piece, forms, value_name};
use crate::error::is_memory;
use crate::exec::{NpuRunnable, Prepared, Step};
use crate::kept::{Found, Keeper, KeptPiece, VERSION};
use crate::probe::agreeing;
use crate::session::{Bound, Shared, refusal, share};
use crate::weights::{Packed, zero_points};
use std::fmt::Write;
use std::ops::Range;
use std::sync::Arc;
use tangor_device::model::{Graph, Op, ValueId};
use tangor_device::{DeviceError, PackedKey, Prepare, Segment};

/// Whether a provider has a say in a node, or the host runs it.
fn dense(op: &Op) -> bool {
    !forms(op).is_empty()
}

/// Why a piece cannot run, or that it can.
enum Offer {
    Taken(Box<Prepared>),
    Refused(String),
}

pub(crate) struct Compiler<'a> {
    pub(crate) core: &'a Arc<Core>,
    pub(crate) segment: &'a Segment<'a>,
    pub(crate) options: Prepare,
}

impl Compiler<'_> {
    /// The whole segment, ready to run.
    pub(crate) fn compile(
        &self,
        progress: &mut dyn FnMut(f32),
    ) -> Result<NpuRunnable, DeviceError> {
        let key = self.key();
        let steps = match key.as_ref().and_then(|key| self.kept(key)) {
            Some(steps) => Ok(steps),
            None => self.compile_afresh(key.as_ref(), progress),
        };
        // What a file lost was read as zeros, of which a provider may say anything.
        self.segment.check_weights()?;
        let runnable = NpuRunnable::new(Arc::clone(self.core), self.segment, steps?);
        progress(1.0);
        Ok(runnable)
    }

    fn compile_afresh(
        &self,
        key: Option<&PackedKey>,
        progress: &mut dyn FnMut(f32),
    ) -> Result<Vec<Step>, DeviceError> {
        let bytes: usize = self.runs().into_iter().flatten().map(|node| self.weight_of(node)).sum();
        let keeper = key.filter(|_| self.core.keeps());
        let keeper = keeper.and_then(|key| Keeper::new(self.segment, key, bytes as u64));
        let mut cutter = Cutter { of: self, keeper, steps: Vec::new(), done: 0, all: bytes.max(1) };
        let mut next = self.segment.nodes.start;
        for run in self.runs() {
            cutter.steps.extend((next..run.start).map(Step::Host));
            next = run.end;
            cutter.cut(run, progress)?;
        }
        cutter.steps.extend((next..self.segment.nodes.end).map(Step::Host));
        self.segment.check_weights()?;
        if let Some(keeper) = cutter.keeper {
            keeper.finish();
        }
        Ok(cutter.steps)
    }

    /// Runs of dense nodes over the same rows.
    fn runs(&self) -> Vec<Range<usize>> {
        let graph = self.segment.graph;
        let rows = |node: usize| graph.value(graph.nodes[node].outputs[0]).rows;
        let mut out: Vec<Range<usize>> = Vec::new();
        for node in self.segment.nodes.clone().filter(|&node| dense(&graph.nodes[node].op)) {
            match out.last_mut() {
                Some(run) if run.end == node && rows(run.start) == rows(node) => run.end += 1,
                _ => out.push(node..node + 1),
            }
        }
        out
    }

    /// Elements of a linear's weight.
    fn weight_of(&self, node: usize) -> usize {
        let graph = self.segment.graph;
        let Op::Linear { weight, .. } = graph.nodes[node].op else { return 0 };
        graph.weight(weight).rows() * graph.weight(weight).cols()
    }

    /// Nodes as a piece: values from before it go in, values that are read after it come out.
    fn piece(&self, nodes: Range<usize>, forms: Vec<Form>) -> Piece {
        let graph = self.segment.graph;
        let of = |range: Range<usize>| graph.nodes[range].iter();
        let written: Vec<ValueId> = of(nodes.clone()).flat_map(|n| n.outputs.clone()).collect();
        let mut inputs = Vec::new();
        for id in of(nodes.clone()).flat_map(|node| node.inputs.clone()) {
            if !written.contains(&id) && !inputs.contains(&id) {
                inputs.push(id);
            }
        }
        let after = nodes.end..self.segment.nodes.end;
        let read_later = |id: &ValueId| {
            of(after.clone()).any(|node| node.inputs.contains(id))
                || self.segment.outputs.contains(id)
        };
        let mut outputs: Vec<ValueId> = written.iter().copied().filter(read_later).collect();
        if outputs.is_empty() {
            // Nobody reads it; a model has an output all the same.
            outputs.extend(written.last());
        }
        Piece { nodes, forms, inputs, outputs }
    }

    /// What tells segments of compiled pieces apart.
    fn key(&self) -> Option<PackedKey> {
        let graph = self.segment.graph;
        self.segment.packed?;
        if self.core.keep == Keep::Never {
            return None;
        }
        let model = graph.identity.clone()?;
        let most = self.options.max_rows;
        let mut form = format!("npu {VERSION}, {}, up to {most} rows", self.core.identity());
        let Segment { nodes, inputs, outputs, .. } = self.segment;
        let _ = write!(form, ", nodes {nodes:?}, {inputs:?} to {outputs:?}");
        for node in &graph.nodes[nodes.clone()] {
            let (reads, writes) = (&node.inputs, &node.outputs);
            let what = signature(graph, &node.op);
            let _ = write!(form, "\n{} {what}, {reads:?} to {writes:?}", node.name);
        }
        Some(PackedKey { model, form })
    }

    /// The steps as an earlier process compiled them, if they are kept and whole.
    fn kept(&self, key: &PackedKey) -> Option<Vec<Step>> {
        let cache = self.segment.packed?;
        let found = Found::new(cache, key)?;
        // Sessions have copies of what they were made from: it has to be there until now.
        let steps = self.load(&found).filter(|_| found.is_there());
        if steps.is_none() {
            cache.discard(key);
        }
        steps
    }

    fn load(&self, found: &Found) -> Option<Vec<Step>> {
        let mut steps = Vec::new();
        let mut next = self.segment.nodes.start;
        for KeptPiece { nodes: Range { start, end }, models } in found.pieces() {
            let fits = start >= next && start < end && end <= self.segment.nodes.end;
            let nodes = &self.segment.graph.nodes;
            if !fits || (start..end).any(|node| !dense(&nodes[node].op)) {
                return None;
            }
            let piece = self.piece(start..end, Vec::new());
            let (inputs, outputs) = self.names(&piece);
            let mut sessions = Vec::new();
            for (rows, model) in models {
                let session = self.core.provider.session(model, &Shared::new(), rows).ok()?;
                if !session.fits(&inputs, &outputs) {
                    return None;
                }
                sessions.push(session);
            }
            sessions.sort_by_key(|session| session.rows);
            steps.extend((next..start).map(Step::Host));
            steps.push(Step::Piece(Box::new(Prepared::new(self.segment.graph, piece, sessions))));
            next = end;
        }
        steps.extend((next..self.segment.nodes.end).map(Step::Host));
        let host = |step: &Step| match step {
            Step::Host(node) => !dense(&self.segment.graph.nodes[*node].op),
            Step::Piece(_) => true,
        };
        steps.iter().all(host).then_some(steps)
    }

    /// Names and widths of what goes in and comes out.
    fn names(&self, piece: &Piece) -> (Names, Names) {
        let name = |&id: &ValueId| (value_name(id), self.segment.graph.value(id).width);
        (piece.inputs.iter().map(name).collect(), piece.outputs.iter().map(name).collect())
    }
}

/// A session, and its model as the provider compiled it if that is to be kept.
type Compiled = (Bound, Option<Vec<u8>>);

/// Values by name and width.
type Names = Vec<(String, usize)>;

/// Collects steps while runs are cut.
struct Cutter<'a> {
    of: &'a Compiler<'a>,
    keeper: Option<Keeper>,
    steps: Vec<Step>,
    /// Elements of weights: compiled so far, and all.
    done: usize,
    all: usize,
}

impl Cutter<'_> {
    fn cut(&mut self, run: Range<usize>, progress: &mut dyn FnMut(f32)) -> Result<(), DeviceError> {
        let (core, graph) = (self.of.core, self.of.segment.graph);
        let refused = |node: usize, why| DeviceError::Refused {
            device: core.name.clone(),
            node: graph.nodes[node].name.clone(),
            why,
        };
        let form = |node| form_of(core, graph, node).map_err(|why| refused(node, why));
        let forms = run.clone().map(form).collect::<Result<Vec<Form>, DeviceError>>()?;
        let piece = self.of.piece(run.clone(), forms);
        match self.offer(piece)? {
            Offer::Taken(prepared) => {
                self.steps.push(Step::Piece(prepared));
                self.done += run.map(|node| self.of.weight_of(node)).sum::<usize>();
                #[allow(clippy::cast_precision_loss)]
                progress(self.done as f32 / self.all as f32);
                Ok(())
            }
            Offer::Refused(why) if run.len() == 1 => Err(refused(run.start, why)),
            Offer::Refused(_) => {
                let at = split(graph, &run);
                self.cut(run.start..at, progress)?;
                self.cut(at..run.end, progress)
            }
        }
    }

    /// Offers a piece to the provider, for every row count.
    fn offer(&mut self, mut piece: Piece) -> Result<Offer, DeviceError> {
        let (core, graph) = (self.of.core, self.of.segment.graph);
        let signature = piece_signature(graph, &piece);
        let verdict = core.verdict(&signature);
        if let Some(Verdict::Refused(why)) = verdict {
            return Ok(Offer::Refused(why));
        }
        let refuse = |why: String| {
            core.remember(&signature, Verdict::Refused(why.clone()));
            Ok(Offer::Refused(why))
        };
        let mut emitted = match self.emit(&mut piece) {
            Ok(emitted) => emitted,
            Err(why) => return Ok(Offer::Refused(why)),
        };
        if let Some(operator) = core.set_aside(&emitted) {
            return refuse(format!("{operator} is set aside"));
        }
        let shared = share(&mut emitted.tensors).map_err(|error| self.failed(&error))?;
        // The numerics of one shape are settled once: then only what a batch may need is compiled.
        let rows = match verdict {
            Some(Verdict::Rows(rows)) => needed(&rows, self.of.options.max_rows),
            _ => core.rows.clone(),
        };
        let (mut sessions, models) = match self.sessions(&emitted, &shared, &rows)? {
            Ok(sessions) => sessions.into_iter().unzip::<_, _, Vec<Bound>, Vec<_>>(),
            Err(why) => return refuse(why),
        };
        let (inputs, outputs) = self.of.names(&piece);
        let agreeing = agreeing(&mut sessions, &inputs, &outputs);
        let agreeing = agreeing.map_err(|error| self.failed(&error))?;
        if agreeing.is_empty() {
            return refuse("it computes a row otherwise at another place of a batch".into());
        }
        let agreed: Vec<usize> = agreeing.iter().map(|&index| sessions[index].rows).collect();
        let keep = needed(&agreed, self.of.options.max_rows);
        if !matches!(core.verdict(&signature), Some(Verdict::Rows(_))) {
            core.remember(&signature, Verdict::Rows(agreed));
        }
        let mut kept = Vec::new();
        for (session, model) in sessions.into_iter().zip(models) {
            if keep.contains(&session.rows) {
                self.keep(&piece, session.rows, model);
                kept.push(session);
            }
        }
        Ok(Offer::Taken(Box::new(Prepared::new(graph, piece, kept))))
    }

    /// Sessions for those row counts that the provider takes, or why it takes none.
    fn sessions(
        &self,
        emitted: &Emitted,
        shared: &Shared,
        rows: &[usize],
    ) -> Result<Result<Vec<Compiled>, String>, DeviceError> {
        let mut why = String::new();
        let mut taken = Vec::new();
        for &rows in rows {
            match self.session(emitted, shared, rows) {
                Ok(session) => taken.push(session),
                Err(error) if is_memory(error.message()) => return Err(self.failed(&error)),
                Err(error) => why = refusal(&error),
            }
        }
        Ok(if taken.is_empty() { Err(why) } else { Ok(taken) })
    }

    /// Writes a piece. A weight that cannot be had in the form of others alike gets the next one.
    fn emit(&self, piece: &mut Piece) -> Result<Emitted, String> {
        let (core, graph) = (self.of.core, self.of.segment.graph);
        loop {
            let index = match Emitted::new(graph, piece) {
                Ok(emitted) => return Ok(emitted),
                Err(index) => index,
            };
            let node = piece.nodes.start + index;
            let all = forms(&graph.nodes[node].op);
            let later = all.iter().skip_while(|form| **form != piece.forms[index]).skip(1);
            let mut why = String::from("its weight cannot be written in any form");
            let next = later.copied().find(|&form| {
                accepts(core, graph, node, form).unwrap_or_else(|error| {
                    why = error;
                    false
                })
            });
            piece.forms[index] = next.ok_or(why)?;
        }
    }

    /// A session, and the model as the provider compiled it if that is to be kept.
    fn session(
        &self,
        emitted: &Emitted,
        shared: &Shared,
        rows: usize,
    ) -> Result<Compiled, ort::Error> {
        let provider = &self.of.core.provider;
        let model = emitted.model(rows);
        if self.keeper.is_some() {
            let anyway = self.of.core.keep == Keep::Always;
            // What cannot be compiled ahead may run all the same.
            let compiled = provider.compile(&model, shared, anyway).ok().flatten();
            if let Some(compiled) = compiled
                && let Ok(session) = provider.session(&compiled, &Shared::new(), rows)
            {
                return Ok((session, Some(compiled)));
            }
        }
        Ok((provider.session(&model, shared, rows)?, None))
    }

    /// Keeps a compiled model; without one the segment cannot be kept as a whole.
    fn keep(&mut self, piece: &Piece, rows: usize, model: Option<Vec<u8>>) {
        if model.is_none() && self.keeper.is_some() {
            self.of.core.keeps_nothing();
        }
        let nodes = (piece.nodes.start, piece.nodes.end);
        self.keeper = match (self.keeper.take(), model) {
            (Some(keeper), Some(model)) => keeper.keep(nodes, rows, &model),
            _ => None,
        };
    }

    fn failed(&self, error: &ort::Error) -> DeviceError {
        let device = self.of.core.name.clone();
        if is_memory(error.message()) {
            return DeviceError::OutOfMemory { device, what: "weights", bytes: 0 };
        }
        self.of.core.lose(refusal(error))
    }
}

/// Of ascending row counts those that batches of up to `max_rows` need.
fn needed(rows: &[usize], max_rows: usize) -> Vec<usize> {
    let last = rows.iter().position(|&rows| rows >= max_rows).map_or(rows.len(), |last| last + 1);
    rows[..last].to_vec()
}

/// Where to cut a run that is refused: before the norm nearest to its middle, else in the middle.
fn split(graph: &Graph, run: &Range<usize>) -> usize {
    let middle = run.start + run.len() / 2;
    let norm =
        |node: &usize| matches!(graph.nodes[*node].op, Op::RmsNorm { .. } | Op::AddRmsNorm { .. });
    let norms = (run.start + 1..run.end).filter(norm);
    norms.min_by_key(|node| node.abs_diff(middle)).unwrap_or(middle)
}

/// The first form of a node that the provider accepts as a piece of its own.
///
/// # Errors
/// Why it accepts none.
pub(crate) fn form_of(core: &Core, graph: &Graph, node: usize) -> Result<Form, String> {
    let op = &graph.nodes[node].op;
    let name = format!("{} {:?}", signature(graph, op), widths(graph, node));
    if let Some(known) = core.form(&name) {
        return known;
    }
    let mut why = String::new();
    for &form in forms(op) {
        if let (Op::Linear { weight, .. }, Form::Linear(form)) = (op, form)
            && !Packed::possible(graph.weight(*weight), form)
        {
            continue;
        }
        match accepts(core, graph, node, form) {
            Ok(true) => return core.remember_form(&name, Ok(form)),
            // This weight cannot be written so, which says nothing of others alike.
            Ok(false) => {}
            Err(error) => why = error,
        }
    }
    core.remember_form(&name, Err(why))
}

/// Whether the provider takes a node alone, for any row count; `false` if it cannot be written.
fn accepts(core: &Core, graph: &Graph, node: usize, form: Form) -> Result<bool, String> {
    let Graph { nodes, .. } = graph;
    let mut inputs = nodes[node].inputs.clone();
    inputs.dedup();
    let outputs = nodes[node].outputs.clone();
    let piece = Piece { nodes: node..node + 1, forms: vec![form], inputs, outputs };
    let Ok(mut emitted) = Emitted::new(graph, &piece) else { return Ok(false) };
    if let Some(operator) = core.set_aside(&emitted) {
        return Err(format!("{operator} is set aside"));
    }
    let shared = share(&mut emitted.tensors).map_err(|error| refusal(&error))?;
    let mut why = String::new();
    for &rows in &core.rows {
        match core.provider.session(&emitted.model(rows), &shared, rows) {
            Ok(_) => return Ok(true),
            Err(error) => why = refusal(&error),
        }
    }
    Err(why)
}

fn widths(graph: &Graph, node: usize) -> Vec<usize> {
    graph.nodes[node].inputs.iter().map(|&id| graph.value(id).width).collect()
}

/// An operation with the shapes and layouts of its weights: all that a provider could mind.
fn signature(graph: &Graph, op: &Op) -> String {
    let of = |id: &tangor_device::model::WeightId| {
        let weight = graph.weight(*id);
        format!("{}x{} {:?}", weight.rows(), weight.cols(), weight.layout())
    };
    match op {
        Op::Linear { weight, bias } => {
            let zeros = zero_points(graph.weight(*weight));
            format!("linear {} {zeros:?} {:?}", of(weight), bias.is_some())
        }
        Op::RmsNorm { gain, eps } => format!("rms_norm {} {eps:e}", of(gain)),
        Op::AddRmsNorm { gain, eps } => format!("add_rms_norm {} {eps:e}", of(gain)),
        Op::Embed { table } => format!("embed {}", of(table)),
        Op::Attention(_) | Op::Gated(_) | Op::Add | Op::Scale(_) | Op::SelectRows => {
            format!("{op:?}")
        }
    }
}

/// A piece's nodes and how they are connected, without names.
fn piece_signature(graph: &Graph, piece: &Piece) -> String {
    let mut known: Vec<ValueId> = piece.inputs.clone();
    let mut out = String::new();
    for (node, form) in graph.nodes[piece.nodes.clone()].iter().zip(&piece.forms) {
        known.extend(&node.outputs);
        let at = |id: &ValueId| known.iter().position(|known| known == id);
        let reads: Vec<Option<usize>> = node.inputs.iter().map(at).collect();
        let _ = write!(out, "\n{} {form:?} {reads:?}", signature(graph, &node.op));
    }
    let widths: Vec<usize> = piece.inputs.iter().map(|&id| graph.value(id).width).collect();
    let outputs: Vec<Option<usize>> =
        piece.outputs.iter().map(|id| known.iter().position(|known| known == id)).collect();
    let _ = write!(out, "\n{widths:?} {outputs:?}");
    out
}
