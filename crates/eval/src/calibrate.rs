//! How fast a device is, in the terms of the planner's cost model: from a few layers of two
//! published shapes, a narrow and a wide one, with few and many rows, with and without tokens
//! behind them. The model is linear in what is sought, so each number follows from differences of
//! times.

use crate::EvalError;
use crate::logits::median;
use std::fmt::Display;
use std::time::Instant;
use tangor_engine::device::{
    Activations, Batch, Device, KvCache, KvSpec, KvType, PageId, Prepare, Runnable, Segment, Span,
};
use tangor_engine::plan::cost::{Shape, Work, work};
use tangor_engine::plan::model::rope::Variant;
use tangor_engine::plan::model::{Graph, Mixture, Op, shapes};
use tangor_engine::plan::{Kind, KvType as PlanKv, PAGE_TOKENS, Rates};

/// The shapes, how their matrices are stored, and how many layers of them are run: enough that a
/// token's weights do not stay in a cache.
const NARROW: (&str, Mixture, usize) = ("smollm2-135m", Mixture::Q4_0, 28);
const WIDE: (&str, Mixture, usize) = ("llama-3.2-1b", Mixture::Q4_0, 4);
const WIDE_GROUPS: (&str, Mixture, usize) = ("llama-3.2-1b", Mixture::Int4 { group: 128 }, 2);

/// Rows of a batch of many, and tokens that attention is measured behind.
const ROWS: usize = 256;
const DEPTH: usize = 1024;

/// Calls of which the median counts, of batches of many rows and of one.
const MANY_CALLS: usize = 5;
const ROW_CALLS: usize = 15;

/// Measures a device, in a second or three.
///
/// # Errors
/// [`EvalError::Kernel`] if the device refuses a layer or fails.
pub fn calibrate(device: &dyn Device, kind: Kind) -> Result<Rates, EvalError> {
    let (narrow, narrow_deep, row, row_deep) = {
        let mut bench = Layers::new(device, NARROW)?;
        (
            bench.time(0, ROWS, MANY_CALLS)?,
            bench.time(DEPTH - ROWS, ROWS, MANY_CALLS)?,
            bench.time(0, 1, ROW_CALLS)?,
            bench.time(DEPTH, 1, ROW_CALLS)?,
        )
    };
    let (wide, wide_row) = {
        let mut bench = Layers::new(device, WIDE)?;
        (bench.time(0, ROWS, MANY_CALLS)?, bench.time(0, 1, ROW_CALLS)?)
    };
    let groups = Layers::new(device, WIDE_GROUPS)?.time(0, ROWS, MANY_CALLS)?;
    Ok(rates(kind, &Times { narrow, narrow_deep, row, row_deep, wide, wide_row, groups }))
}

/// A time, and what was done in it.
#[derive(Clone, Copy, Debug, Default)]
struct Timed {
    seconds: f64,
    /// Operations of linears, and of attention.
    linear: f64,
    attention: f64,
    /// Bytes of weights.
    bytes: f64,
    elements: f64,
    nodes: f64,
}

/// All that is measured.
struct Times {
    narrow: Timed,
    narrow_deep: Timed,
    row: Timed,
    row_deep: Timed,
    wide: Timed,
    wide_row: Timed,
    groups: Timed,
}

/// Solves for the numbers of the cost model. Noise may turn a small one negative: it is taken for
/// none then.
fn rates(kind: Kind, times: &Times) -> Rates {
    let typical = Rates::typical(kind);
    // One row: bytes / read + nodes * node_s = seconds, in two shapes.
    let (row, wide_row) = (&times.row, &times.wide_row);
    let (per_byte, node_s) = solve(
        [row.bytes, row.nodes, row.seconds],
        [wide_row.bytes, wide_row.nodes, wide_row.seconds],
    );
    let read = positive(1.0 / per_byte).unwrap_or(wide_row.bytes / wide_row.seconds);
    let node_s = node_s.max(0.0);
    // Many rows: what attention behind many tokens takes more, then linears and elements.
    let attention = |deep: &Timed, flat: &Timed| {
        let more = (deep.attention - flat.attention) / (deep.seconds - flat.seconds);
        positive(more)
    };
    let many = attention(&times.narrow_deep, &times.narrow);
    let many = many.unwrap_or(typical.attention_ops_per_s);
    let rest = |timed: &Timed| timed.seconds - timed.attention / many - timed.nodes * node_s;
    let (narrow, wide) = (&times.narrow, &times.wide);
    let (per_op, element_s) = solve(
        [narrow.linear, narrow.elements, rest(narrow)],
        [wide.linear, wide.elements, rest(wide)],
    );
    let element_s = element_s.max(0.0);
    let short = positive(1.0 / per_op).unwrap_or(wide.linear / wide.seconds);
    let groups = &times.groups;
    let long = positive(groups.linear / (rest(groups) - groups.elements * element_s));
    let long = long.unwrap_or(short);
    let best = short.max(long);
    Rates {
        int8_ops_per_s: best,
        group_share: [short, f64::midpoint(short, long), long].map(|rate| rate / best),
        attention_ops_per_s: many,
        attention_row_ops_per_s: attention(&times.row_deep, row).unwrap_or(many),
        read_bytes_per_s: read,
        element_s,
        node_s,
        node_row_s: node_s,
        measured: true,
        ..typical
    }
}

/// `a x + b y = c`, twice.
fn solve([a, b, c]: [f64; 3], [d, e, f]: [f64; 3]) -> (f64, f64) {
    let det = a * e - b * d;
    ((c * e - b * f) / det, (a * f - c * d) / det)
}

fn positive(value: f64) -> Option<f64> {
    (value.is_finite() && value > 0.0).then_some(value)
}

/// A few layers, ready to run.
struct Layers {
    graph: Graph,
    /// Bytes that the weight of each node takes on the device.
    held: Vec<f64>,
    runnable: Box<dyn Runnable>,
    kv: Box<dyn KvCache>,
    pages: Vec<PageId>,
}

impl Layers {
    fn new(
        device: &dyn Device,
        (shape, weights, layers): (&'static str, Mixture, usize),
    ) -> Result<Self, EvalError> {
        let failed = |why: &dyn Display| failed(why);
        let mut config = shapes::config(shape).map_err(|e| failed(&e))?;
        (config.hyper.layers, config.hyper.vocab) = (layers, 64);
        config.windows.truncate(layers);
        let graph = shapes::random_mixture(&config, weights, 1).map_err(|e| failed(&e))?;
        let tokens = DEPTH + ROWS;
        let prepare = Prepare { activations: Activations::Int8, context: tokens, max_rows: ROWS };
        let segment = Segment::whole(&graph);
        let runnable = device.prepare(&segment, prepare, &mut |_| {}).map_err(|e| failed(&e))?;
        let pages = tokens.div_ceil(PAGE_TOKENS);
        let spec = KvSpec {
            layers,
            kv_heads: graph.hyper.kv_heads,
            head_dim: graph.hyper.head_dim,
            page_tokens: PAGE_TOKENS,
            pages,
            dtype: KvType::Bf16,
        };
        let kv = device.kv_cache(&spec).map_err(|e| failed(&e))?;
        let pages = (0..).take(pages).collect();
        let held = graph.nodes.iter().map(|node| match node.op {
            Op::Linear { weight: id, .. } => device.packed_bytes(&graph, id) as f64,
            _ => 0.0,
        });
        let held = held.collect();
        let mut layers = Self { graph, held, runnable, kv, pages };
        // Fills the cache, and warms up.
        for start in (0..tokens).step_by(ROWS) {
            layers.run(start, ROWS)?;
        }
        Ok(layers)
    }

    fn run(&mut self, start: usize, rows: usize) -> Result<(), EvalError> {
        let tokens: Vec<u32> = (0..rows as u32).map(|token| token % 64).collect();
        let spans = [Span { rows: 0..rows, start, pages: &self.pages, rope: Variant::default() }];
        let batch = Batch { tokens: &tokens, spans: &spans, logit_rows: &[rows - 1] };
        let done = self.runnable.run(&batch, self.kv.as_mut(), &[], &mut [Vec::new()]);
        done.map_err(|e| failed(&e))
    }

    /// The median of some calls.
    fn time(&mut self, start: usize, rows: usize, calls: usize) -> Result<Timed, EvalError> {
        let mut seconds = Vec::with_capacity(calls);
        self.run(start, rows)?;
        for _ in 0..calls {
            let begin = Instant::now();
            self.run(start, rows)?;
            seconds.push(begin.elapsed().as_secs_f64());
        }
        let context = start as f64 + rows as f64 / 2.0;
        let shape = Shape {
            rows,
            logit_rows: 1,
            picked_late: false,
            context,
            sequences: 1,
            kv: PlanKv::Bf16,
        };
        let mut timed = Timed { seconds: median(&seconds), ..Timed::default() };
        for (node, held) in self.graph.nodes.iter().zip(&self.held) {
            let Work { ops, bytes, elements } = work(&self.graph, node, *held, &shape);
            match node.op {
                Op::Attention(_) => timed.attention += ops,
                Op::Linear { .. } => {
                    (timed.linear, timed.bytes) = (timed.linear + ops, timed.bytes + bytes)
                }
                _ => {}
            }
            timed.elements += elements;
            timed.nodes += 1.0;
        }
        Ok(timed)
    }
}

fn failed(why: &dyn Display) -> EvalError {
    EvalError::Kernel { name: "calibration".into(), why: why.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a device of these rates would take.
    fn timed(rates: &Rates, [linear, attention, bytes, elements]: [f64; 4], nodes: f64) -> Timed {
        let rate = if bytes > 0.0 { f64::INFINITY } else { rates.int8_ops_per_s };
        let of_attention =
            if bytes > 0.0 { rates.attention_row_ops_per_s } else { rates.attention_ops_per_s };
        let seconds = linear / rate
            + attention / of_attention
            + bytes / rates.read_bytes_per_s
            + elements * rates.element_s
            + nodes * rates.node_s;
        Timed { seconds, linear, attention, bytes, elements, nodes }
    }

    #[test]
    fn rates_are_found_again_from_the_times_that_they_make() {
        let rates = Rates {
            attention_ops_per_s: 3e11,
            attention_row_ops_per_s: 1e11,
            element_s: 2e-10,
            ..Rates::typical(Kind::Cpu)
        };
        let many = |linear, attention, elements, nodes| {
            timed(&rates, [linear, attention, 0.0, elements], nodes)
        };
        let one = |attention, bytes, nodes| timed(&rates, [1e8, attention, bytes, 0.0], nodes);
        let times = Times {
            narrow: many(5e10, 1e9, 3e7, 230.0),
            narrow_deep: many(5e10, 9e9, 3e7, 230.0),
            row: one(0.0, 5e7, 230.0),
            row_deep: one(6e7, 5e7, 230.0),
            wide: many(1e11, 1e9, 1e7, 36.0),
            wide_row: one(0.0, 1.4e8, 36.0),
            groups: many(6e10, 5e8, 5e6, 20.0),
        };
        let found = super::rates(Kind::Cpu, &times);
        for (what, found, true_rate) in [
            ("ops", found.int8_ops_per_s, rates.int8_ops_per_s),
            ("attention", found.attention_ops_per_s, rates.attention_ops_per_s),
            ("one row", found.attention_row_ops_per_s, rates.attention_row_ops_per_s),
            ("read", found.read_bytes_per_s, rates.read_bytes_per_s),
            ("element", found.element_s, rates.element_s),
            ("node", found.node_s, rates.node_s),
        ] {
            assert!((found / true_rate - 1.0).abs() < 1e-6, "{what}: {found} for {true_rate}");
        }
        assert!(found.group_share.iter().all(|share| (share - 1.0).abs() < 1e-6));
    }

    #[test]
    fn noise_makes_no_rate_negative() {
        let one = Timed { seconds: 1.0, linear: 1e9, bytes: 1e8, nodes: 1.0, ..Timed::default() };
        let times = Times {
            narrow: one,
            narrow_deep: Timed { seconds: 0.5, ..one },
            row: one,
            row_deep: one,
            wide: one,
            wide_row: one,
            groups: one,
        };
        let rates = super::rates(Kind::Cpu, &times);
        for rate in [
            rates.int8_ops_per_s,
            rates.attention_ops_per_s,
            rates.attention_row_ops_per_s,
            rates.read_bytes_per_s,
        ] {
            assert!(rate.is_finite() && rate > 0.0, "{rates:?}");
        }
        assert!(rates.element_s >= 0.0 && rates.node_s >= 0.0);
    }
}
