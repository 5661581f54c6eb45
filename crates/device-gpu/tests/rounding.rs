//! Rows in front of quantised weights are rounded as the contract says, bit for bit: seen through a
//! linear whose weights are the identity.
#![allow(clippy::expect_used, reason = "tests stop at what is unexpected")]

use tangor_device::model::ir::{Hyper, Rows, Value};
use tangor_device::model::rope::Rope;
use tangor_device::model::{Graph, Op, ValueId};
use tangor_device::rounding::round_row;
use tangor_device::tensor::{DType, Scales, Weight, Zeros};
use tangor_device::{Activations, Batch, Device, KvSpec, KvType, Prepare, Segment, Span};
use tangor_device_gpu::{GpuDevice, GpuOptions};

/// Inputs and outputs, and inputs of a group.
const WIDTH: usize = 192;
const GROUP: usize = 64;

fn identity() -> Weight {
    let codes = (0..WIDTH * WIDTH).map(|i| u8::from(i / WIDTH == i % WIDTH)).collect::<Vec<_>>();
    let groups = WIDTH * WIDTH / GROUP;
    let scales = Scales { dtype: DType::F32, bytes: 1.0_f32.to_le_bytes().repeat(groups).into() };
    let zeros = Zeros::Packed(vec![0; groups].into());
    Weight::grouped((8, GROUP), (WIDTH, WIDTH), codes.into(), scales, zeros).expect("a weight")
}

fn graph() -> Graph {
    let hyper = Hyper {
        arch: "test".into(),
        layers: 1,
        hidden: WIDTH,
        ffn: 1,
        heads: 1,
        kv_heads: 1,
        head_dim: 4,
        vocab: 8,
        context: 64,
    };
    let mut graph = Graph::new(hyper, Rope::none());
    graph.values = vec![Value { width: WIDTH, rows: Rows::Tokens }];
    let weight = graph.add_weight("identity", identity());
    graph.push("linear", Op::Linear { weight, bias: None }, &[ValueId(0)]).expect("a linear");
    graph
}

/// Rows with groups of very different sizes, the same rows larger and smaller, and noise.
fn rows() -> Vec<Vec<f32>> {
    let mut state = 1_u64;
    let mut unit = move || {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..32)
        .map(|row| {
            let factor = [1.0, 3e-12, 1e15, 0.37][row % 4];
            let great = [1.0, 9.0, 30.0][row % 3];
            (0..WIDTH)
                .map(|i| unit() * factor * if i / GROUP == row % 5 { great } else { 1.0 })
                .collect()
        })
        .collect()
}

#[test]
fn rows_are_rounded_bit_for_bit() {
    for integer_dots in [Some(false), Some(true)] {
        let options = GpuOptions { integer_dots, ..GpuOptions::default() };
        let device = GpuDevice::open(&options).unwrap_or_else(|error| panic!("{error}"));
        check_rounding(&device);
    }
}

fn check_rounding(device: &GpuDevice) {
    let graph = graph();
    let segment = Segment {
        graph: &graph,
        nodes: 0..1,
        inputs: vec![ValueId(0)],
        outputs: vec![ValueId(1)],
        packed: None,
    };
    let rows = rows();
    let options = Prepare { activations: Activations::Int8, context: 64, max_rows: rows.len() };
    let mut runnable = device.prepare(&segment, options, &mut |_| {}).expect("prepared");
    let spec = KvSpec {
        layers: 1,
        kv_heads: 1,
        head_dim: 4,
        page_tokens: 16,
        pages: 2,
        dtype: KvType::F32,
    };
    let mut kv = device.kv_cache(&spec).expect("a cache");
    let tokens = vec![0; rows.len()];
    let rope = graph.rope.variant(1);
    let spans = [Span { rows: 0..rows.len(), start: 0, pages: &[0, 1], rope }];
    let batch = Batch { tokens: &tokens, spans: &spans, logit_rows: &[] };
    let mut outputs = [vec![f32::NAN]];
    runnable.run(&batch, kv.as_mut(), &[&rows.concat()], &mut outputs).expect("a run");
    for (index, (found, row)) in outputs[0].chunks(WIDTH).zip(&rows).enumerate() {
        let mut expected = row.clone();
        round_row(&mut expected, GROUP);
        for (column, (a, b)) in found.iter().zip(&expected).enumerate() {
            assert!((a - b).abs() <= 0.0, "row {index}, column {column}: {a} instead of {b}");
        }
    }
}
