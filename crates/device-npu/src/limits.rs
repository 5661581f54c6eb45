//! How fast a device is, measured: plain numbers for a planner.

use crate::device::NpuDevice;
use crate::probe::numbers;
use std::time::Instant;
use tangor_device::model::ir::{Hyper, Rows, Value};
use tangor_device::model::rope::Rope;
use tangor_device::model::{Graph, Op, ValueId};
use tangor_device::tensor::{DType, Scales, Weight, Zeros};
use tangor_device::{
    Activations, Batch, Device, DeviceError, KvCache, KvSpec, KvType, PageId, Prepare, Runnable,
    Segment, Span,
};

/// Rows and columns of the weight that is measured: 2 MiB of codes, about a projection's size.
const WIDTH: usize = 2048;
/// Weights that share a scale.
const GROUP: usize = 128;
/// Width of the values whose operations cost next to nothing.
const NARROW: usize = 64;
/// Nodes of a chain.
const CHAIN: usize = 32;

/// What was measured. A run is a run of a segment with the host's own part of it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Measured {
    /// Multiplications and additions per second of a 4-bit linear with
    /// [`Activations::Int8`](tangor_device::Activations::Int8), at the largest row count.
    pub int8_ops_per_s: f64,
    /// Bytes of weights per second of the same linear with a single row.
    pub read_bytes_per_s: f64,
    /// Seconds of a run that computes next to nothing.
    pub run_s: f64,
    /// Seconds that a further node costs.
    pub node_s: f64,
    /// Rows to whose multiples batches are padded: the smallest row count above 1.
    pub row_tile: usize,
}

/// Measures a device in about a second, after the provider has compiled four small segments.
///
/// # Errors
/// As [`Device::prepare`] and [`Runnable::run`].
pub fn measure(device: &NpuDevice) -> Result<Measured, DeviceError> {
    let most = device.rows().last().copied().unwrap_or(1);
    let tile = device.rows().iter().copied().find(|&rows| rows > 1).unwrap_or(1);
    let linear = linear_graph().map_err(|why| refused(device, why))?;
    let matrix = seconds(device, &linear, most)?;
    let vector = seconds(device, &linear, 1)?;
    let run_s = seconds(device, &chain(1).map_err(|why| refused(device, why))?, 1)?;
    let chain = seconds(device, &chain(CHAIN).map_err(|why| refused(device, why))?, 1)?;
    #[allow(clippy::cast_precision_loss)]
    let (ops, bytes, links) = (
        (2 * most * WIDTH * WIDTH) as f64,
        (WIDTH * WIDTH / 2 + WIDTH * WIDTH / GROUP * 2) as f64,
        (CHAIN - 1) as f64,
    );
    Ok(Measured {
        int8_ops_per_s: ops / (matrix - run_s).max(matrix / 2.0),
        read_bytes_per_s: bytes / (vector - run_s).max(vector / 2.0),
        run_s,
        node_s: ((chain - run_s) / links).max(0.0),
        row_tile: tile,
    })
}

fn refused(device: &NpuDevice, why: String) -> DeviceError {
    let device = device.descriptor().name.clone();
    DeviceError::Refused { device, node: "measured".into(), why }
}

/// A graph that begins with one value of `width`.
fn graph(width: usize) -> Graph {
    let hyper = Hyper {
        arch: "measured".into(),
        layers: 1,
        hidden: width,
        ffn: width,
        heads: 1,
        kv_heads: 1,
        head_dim: 1,
        vocab: 1,
        context: 1,
    };
    let mut graph = Graph::new(hyper, Rope::none());
    graph.values.push(Value { width, rows: Rows::Tokens });
    graph
}

fn linear_graph() -> Result<Graph, String> {
    let codes: Vec<u8> = numbers(1, WIDTH * WIDTH / 2).iter().map(|x| x.to_bits() as u8).collect();
    let scales = vec![0x2c; WIDTH * WIDTH / GROUP * 2];
    let scales = Scales { dtype: DType::F16, bytes: scales.into() };
    let weight = Weight::grouped((4, GROUP), (WIDTH, WIDTH), codes.into(), scales, Zeros::Middle);
    let mut graph = graph(WIDTH);
    let weight = graph.add_weight("measured", weight.map_err(|error| error.to_string())?);
    let op = Op::Linear { weight, bias: None };
    graph.logits = graph.push1("linear", op, &[ValueId(0)]).map_err(|error| error.to_string())?;
    Ok(graph)
}

/// Additions that wait for each other.
fn chain(nodes: usize) -> Result<Graph, String> {
    let mut graph = graph(NARROW);
    graph.logits = ValueId(0);
    for index in 0..nodes {
        let inputs = [graph.logits, ValueId(0)];
        let added = graph.push1(format!("add{index}"), Op::Add, &inputs);
        graph.logits = added.map_err(|error| error.to_string())?;
    }
    Ok(graph)
}

/// The least of several runs over `rows` rows.
fn seconds(device: &NpuDevice, graph: &Graph, rows: usize) -> Result<f64, DeviceError> {
    let segment = Segment {
        graph,
        nodes: 0..graph.nodes.len(),
        inputs: vec![ValueId(0)],
        outputs: vec![graph.logits],
        packed: None,
    };
    let options = Prepare { activations: Activations::Int8, context: 1, max_rows: rows };
    let mut runnable = device.prepare(&segment, options, &mut |_| {})?;
    let spec = KvSpec {
        layers: 1,
        kv_heads: 1,
        head_dim: 1,
        page_tokens: rows,
        pages: 1,
        dtype: KvType::F16,
    };
    let mut kv = device.kv_cache(&spec)?;
    let x = numbers(2, rows * graph.values[0].width);
    let mut best = f64::INFINITY;
    let begin = Instant::now();
    for round in 0..200 {
        let start = Instant::now();
        once(runnable.as_mut(), kv.as_mut(), rows, &x)?;
        best = best.min(start.elapsed().as_secs_f64());
        if round >= 5 && begin.elapsed().as_secs_f64() > 0.3 {
            break;
        }
    }
    Ok(best)
}

fn once(
    runnable: &mut dyn Runnable,
    kv: &mut dyn KvCache,
    rows: usize,
    x: &[f32],
) -> Result<(), DeviceError> {
    let pages: [PageId; 1] = [0];
    let spans = [Span { rows: 0..rows, start: 0, pages: &pages, rope: Default::default() }];
    let tokens = vec![0; rows];
    let batch = Batch { tokens: &tokens, spans: &spans, logit_rows: &[] };
    runnable.run(&batch, kv, &[x], &mut [Vec::new()])
}
