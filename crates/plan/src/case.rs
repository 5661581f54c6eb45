//! What a plan is made from, with the cost of every node on every device worked out once per shape
//! of a batch.

use crate::cost::{self, Held, Shape};
use crate::memory::scratch_bytes;
use crate::{DeviceProfile, KvType, MemoryKind, PlanOptions, Policy, Rates};
use std::cell::RefCell;
use std::collections::HashMap;
use std::ops::Range;
use std::rc::Rc;
use tangor_model::ir::Rows;
use tangor_model::{Graph, Op};

/// A graph, the devices, and what was asked for.
pub(crate) struct Case<'a> {
    pub(crate) graph: &'a Graph,
    pub(crate) devices: &'a [DeviceProfile],
    pub(crate) options: &'a PlanOptions,
    /// Whole layers, in order: nodes whose cuts lie between layers.
    pub(crate) pieces: Vec<Range<usize>>,
    /// Of each value, the first node that writes and the last that reads it.
    lives: Vec<Option<(usize, usize)>>,
    /// Of each device and node.
    held: Vec<Vec<Held>>,
    /// Bytes of all weights on each device.
    pub(crate) weights_bytes: Vec<u64>,
    /// Bytes of scratch memory of a device.
    pub(crate) scratch_bytes: u64,
    costs: RefCell<HashMap<Key, Rc<Vec<f64>>>>,
}

/// Device, the one that works beside it, rows, logit rows, bits of the context, late picking.
type Key = (usize, Option<usize>, usize, usize, u64, bool);

impl<'a> Case<'a> {
    pub(crate) fn new(
        graph: &'a Graph,
        devices: &'a [DeviceProfile],
        options: &'a PlanOptions,
    ) -> Self {
        let life = |id: usize| {
            let written = graph.nodes.iter().position(|n| n.outputs.iter().any(|o| o.0 == id))?;
            let read = graph.nodes.iter().rposition(|n| n.inputs.iter().any(|i| i.0 == id))?;
            Some((written, read))
        };
        let lives = (0..graph.values.len()).map(life).collect();
        let pieces = pieces(graph);
        let held = |device: &DeviceProfile| {
            graph.nodes.iter().map(|node| Held::on(device, graph, node)).collect()
        };
        Self {
            graph,
            devices,
            options,
            pieces,
            lives,
            held: devices.iter().map(held).collect(),
            weights_bytes: devices.iter().map(|device| device.packed.all_bytes(graph)).collect(),
            scratch_bytes: scratch_bytes(graph, options.max_rows(), options.logit_rows()),
            costs: RefCell::default(),
        }
    }

    /// Seconds of every node on a device, while `beside` works too.
    pub(crate) fn nodes(
        &self,
        device: usize,
        beside: Option<usize>,
        shape: &Shape,
    ) -> Rc<Vec<f64>> {
        let bits = shape.context.to_bits();
        let late = shape.picked_late;
        let key = (device, beside, shape.rows, shape.logit_rows, bits, late);
        if let Some(known) = self.costs.borrow().get(&key) {
            return Rc::clone(known);
        }
        let mut profile = self.devices[device].clone();
        if let Some(other) = beside.map(|other| &self.devices[other]) {
            let same = profile.memory.is_host() && other.memory.is_host();
            profile.rates = profile.rates.beside(&other.rates, same);
        }
        let nodes = self.graph.nodes.iter().zip(&self.held[device]);
        let seconds = |(node, held): (&_, &Held)| {
            cost::node_seconds(self.graph, node, &profile, shape, *held)
        };
        let costs = nodes.map(seconds);
        let costs = Rc::new(costs.collect::<Vec<f64>>());
        self.costs.borrow_mut().insert(key, Rc::clone(&costs));
        costs
    }

    /// Seconds of a segment on a device.
    pub(crate) fn segment(&self, device: usize, range: Range<usize>, shape: &Shape) -> f64 {
        self.rates(device).run_s + self.nodes(device, None, shape)[range].iter().sum::<f64>()
    }

    pub(crate) fn rates(&self, device: usize) -> &Rates {
        &self.devices[device].rates
    }

    /// Whether two devices read each other's memory without a copy.
    pub(crate) fn shared(&self, a: usize, b: usize) -> bool {
        a == b || [a, b].iter().all(|&d| self.devices[d].memory == MemoryKind::Host)
    }

    /// Seconds until `bytes` that one device has written can be read on another.
    pub(crate) fn transfer(&self, from: usize, to: usize, bytes: f64) -> f64 {
        if from == to {
            return 0.0;
        }
        let sync = self.rates(from).sync_s.max(self.rates(to).sync_s);
        if self.shared(from, to) { sync } else { sync + bytes / self.link(from, to) }
    }

    /// Bytes per second from one memory to another: through the slower link of the two.
    pub(crate) fn link(&self, from: usize, to: usize) -> f64 {
        let copies = |d: &usize| self.devices[*d].memory != MemoryKind::Host;
        let links = [from, to].into_iter().filter(copies);
        links.map(|d| self.rates(d).link_bytes_per_s).fold(f64::INFINITY, f64::min)
    }

    /// Bytes of the values that are written before each node and read by it or later.
    pub(crate) fn crossing(&self, shape: &Shape) -> Vec<f64> {
        let mut bytes = vec![0.0; self.graph.nodes.len()];
        for (value, life) in self.graph.values.iter().zip(&self.lives) {
            let Some((written, read)) = *life else { continue };
            let rows = match value.rows {
                Rows::Tokens => shape.rows,
                Rows::Logits => shape.logit_rows,
            };
            for slot in bytes.iter_mut().take(read + 1).skip(written + 1) {
                *slot += 4.0 * (rows * value.width) as f64;
            }
        }
        bytes
    }

    /// Bytes of one token's keys and values in one layer.
    pub(crate) fn kv_layer_bytes(&self) -> f64 {
        let hyper = &self.graph.hyper;
        to_f64(2 * hyper.kv_heads * hyper.head_dim) * cost::kv_bytes(self.options.kv)
    }

    /// A chunk of a prompt: `rows` rows behind `before` others.
    pub(crate) fn chunk(&self, before: usize, rows: usize, last: bool) -> Shape {
        Shape {
            rows,
            logit_rows: usize::from(last),
            picked_late: self.options.policy == Policy::Vendor,
            context: to_f64(before) + to_f64(rows) / 2.0,
            sequences: 1,
            kv: self.options.kv,
        }
    }

    /// A step of one token, in the middle of the answer.
    pub(crate) fn token(&self) -> Shape {
        let context = to_f64(self.options.prompt) + to_f64(self.options.answer) / 2.0;
        let kv: KvType = self.options.kv;
        Shape { rows: 1, logit_rows: 1, picked_late: false, context, sequences: 1, kv }
    }
}

/// The graph cut in front of every layer but the first: before the node that reads the residual
/// stream for the layer's attention.
#[must_use]
pub fn pieces(graph: &Graph) -> Vec<Range<usize>> {
    let is_attention = |op: &Op| matches!(op, Op::Attention(_));
    let attention: Vec<usize> =
        (0..graph.nodes.len()).filter(|&i| is_attention(&graph.nodes[i].op)).collect();
    // A layer ends with the linear behind its attention's own and its gated product; what follows
    // up to the next attention begins with a norm.
    let mut cuts = vec![0];
    for pair in attention.windows(2) {
        let between = pair[0] + 1..pair[1];
        let norm = |op: &Op| matches!(op, Op::RmsNorm { .. } | Op::AddRmsNorm { .. });
        let cut = between.clone().rev().find(|&index| {
            let node = &graph.nodes[index];
            norm(&node.op) && graph.value(node.outputs[0]).width == graph.hyper.hidden
        });
        cuts.push(cut.unwrap_or(pair[1]));
    }
    cuts.push(graph.nodes.len());
    cuts.dedup();
    cuts.windows(2).map(|pair| pair[0]..pair[1]).collect()
}

pub(crate) fn to_f64(n: usize) -> f64 {
    n as f64
}
