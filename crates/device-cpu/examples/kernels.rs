//! How close to the machine's limits the kernels are.
//!
//! ```text
//! cargo run --release -p tangor-device-cpu --example kernels -- [THREADS] [MODEL.gguf]
//! ```
//!
//! Prints each linear shape's share of the measured 8-bit peak (many rows) and of the measured read
//! bandwidth (one row), then prefill and decode of a whole model: a file, or SmolLM2's shape with
//! random weights. `TANGOR_ISA` picks an instruction set, `TANGOR_SHAPES` asks for the table of
//! linears, `TANGOR_DECODE` for decode alone.

#![allow(clippy::print_stdout, clippy::unwrap_used, clippy::cast_precision_loss)]

use std::time::Instant;
use tangor_device::model::formats::{Checkpoint, Limits, MemorySource};
use tangor_device::model::ir::{Hyper, Rows, Value};
use tangor_device::model::rope::Rope;
use tangor_device::model::{Graph, Op, ValueId, import, shapes};
use tangor_device::tensor::{DType, Layout, Offset, Scales, Weight, Zeros};
use tangor_device::{Activations, Batch, Device, KvSpec, KvType, PageId, Prepare, Segment, Span};
use tangor_device_cpu::{CpuDevice, CpuOptions, limits};

fn main() {
    let mut args = std::env::args().skip(1);
    let threads = args.next().and_then(|n| n.parse().ok());
    let isa = std::env::var("TANGOR_ISA").ok().map(|name| name.parse().unwrap());
    let cpu = CpuDevice::new(CpuOptions { threads, isa, pin: false }).unwrap();
    println!("{}", cpu.descriptor().description);
    let peak = limits::int8_ops_per_s(cpu.pool(), cpu.isa());
    let bandwidth = limits::read_bytes_per_s(cpu.pool(), cpu.isa());
    println!("int8 {:.0} GOPS, read {:.1} GB/s", peak / 1e9, bandwidth / 1e9);
    if std::env::var("TANGOR_SHAPES").is_ok() {
        shapes_table(&cpu, peak, bandwidth);
    }
    let graph = match args.next() {
        Some(file) => {
            let source = MemorySource::new("model").with("m.gguf", std::fs::read(file).unwrap());
            let checkpoint = Checkpoint::open(&source, None, &Limits::default()).unwrap();
            import::import(&checkpoint).unwrap()
        }
        None => {
            let layout = Layout::Quant { bits: 4, group: 32, offset: Offset::Min };
            shapes::random_graph(&shapes::config("smollm2-135m").unwrap(), layout, 1).unwrap()
        }
    };
    for (activations, kv) in [(Activations::Int8, KvType::F16), (Activations::Int8, KvType::Int8)] {
        whole(&cpu, &graph, activations, kv, peak);
    }
}

/// Seconds that this thread has had a processor, where the system tells: with one thread, times do
/// not depend on who else is busy.
fn cpu_seconds() -> Option<f64> {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").ok()?;
    Some(text.split_whitespace().next()?.parse::<f64>().ok()? / 1e9)
}

/// Median seconds of `runs` calls, after one to warm up. `TANGOR_CPU_TIME` counts this thread's
/// processor time.
fn median(runs: usize, mut body: impl FnMut()) -> f64 {
    let begin = Instant::now();
    let use_cpu = std::env::var("TANGOR_CPU_TIME").is_ok();
    let now = || {
        let wall = begin.elapsed().as_secs_f64();
        if use_cpu { cpu_seconds().unwrap_or(wall) } else { wall }
    };
    body();
    let mut times: Vec<f64> = (0..runs)
        .map(|_| {
            let start = now();
            body();
            now() - start
        })
        .collect();
    times.sort_by(f64::total_cmp);
    times[runs / 2]
}

fn shapes_table(cpu: &CpuDevice, peak: f64, bandwidth: f64) {
    let forms = [
        ("w4 g32 min", 4, 32, false),
        ("w4 g32", 4, 32, true),
        ("w4 g64", 4, 64, true),
        ("w4 g128", 4, 128, true),
        ("w8 g32", 8, 32, true),
    ];
    for (inputs, outputs) in
        [(576_usize, 960), (576, 3072), (1536, 576), (2048, 8192), (4096, 4096)]
    {
        for (name, bits, group, middle) in forms {
            let groups = outputs * inputs.div_ceil(group);
            let codes = vec![0x5a; groups * group * bits / 8];
            let halves = || [0, 0x1c].repeat(groups).into();
            let zeros = if middle { Zeros::Middle } else { Zeros::Float(DType::F16, halves()) };
            let scales = Scales { dtype: DType::F16, bytes: halves() };
            let bits8 = u8::try_from(bits).unwrap();
            let weight =
                Weight::grouped((bits8, group), (outputs, inputs), codes.into(), scales, zeros);
            let mut line = format!("{inputs:>5} -> {outputs:<5} {name:<10}");
            for rows in [1, 4, 16, 512] {
                let (seconds, bytes) = linear(cpu, weight.clone().unwrap(), rows);
                let of_peak = 2.0 * (rows * inputs * outputs) as f64 / seconds / peak;
                let of_read = bytes as f64 / seconds / bandwidth;
                line += &if rows < 16 {
                    format!("  {rows:>3}: {:>4.0} % read", of_read * 100.0)
                } else {
                    format!("  {rows:>3}: {:>4.1} % peak", of_peak * 100.0)
                };
            }
            println!("{line}");
        }
    }
}

/// Seconds and packed bytes of one linear. Small weights are repeated, so that they come from
/// memory and not from a cache.
fn linear(cpu: &CpuDevice, weight: Weight, rows: usize) -> (f64, u64) {
    let (inputs, copies) = (weight.cols(), if rows < 16 { 64 } else { 1 });
    let hyper = Hyper {
        arch: "bench".into(),
        layers: 0,
        hidden: inputs,
        ffn: 1,
        heads: 1,
        kv_heads: 1,
        head_dim: 1,
        vocab: 1,
        context: rows,
    };
    let mut graph = Graph::new(hyper, Rope::none());
    graph.values.push(Value { width: inputs, rows: Rows::Tokens });
    for copy in 0..copies {
        let weight = graph.add_weight(&format!("w{copy}"), weight.clone());
        graph.push1("linear", Op::Linear { weight, bias: None }, &[ValueId(0)]).unwrap();
    }
    let nodes = 0..copies;
    let segment = Segment { graph: &graph, nodes, inputs: vec![ValueId(0)], outputs: vec![] };
    let options = Prepare { activations: Activations::Int8, context: rows, max_rows: rows };
    let mut runnable = cpu.prepare(&segment, options, &mut |_| {}).unwrap();
    let bytes = runnable.memory_bytes() / copies as u64;
    let dtype = KvType::F32;
    let spec = KvSpec { layers: 0, kv_heads: 1, head_dim: 1, page_tokens: rows, pages: 1, dtype };
    let mut kv = cpu.kv_cache(&spec).unwrap();
    let tokens = vec![0; rows];
    let spans = [Span { rows: 0..rows, start: 0, pages: &[0], rope: Default::default() }];
    let batch = Batch { tokens: &tokens, spans: &spans, logit_rows: &[] };
    let x: Vec<f32> = (0..rows * inputs).map(|i| ((i * 37 % 101) as f32 - 50.0) / 50.0).collect();
    let runs = if rows < 16 { 9 } else { 5 };
    let seconds = median(runs, || runnable.run(&batch, kv.as_mut(), &[&x], &mut []).unwrap());
    (seconds / copies as f64, bytes)
}

fn whole(cpu: &CpuDevice, graph: &Graph, activations: Activations, dtype: KvType, peak: f64) {
    let (prompt, page_tokens) = (1024, 64);
    let hyper = &graph.hyper;
    let options = Prepare { activations, context: 2048, max_rows: 1024 };
    let start = Instant::now();
    let mut runnable = cpu.prepare(&Segment::whole(graph), options, &mut |_| {}).unwrap();
    println!(
        "\n{} x {}, {activations:?}, KV {dtype:?}: packed in {:.2} s, {:.1} MB",
        hyper.layers,
        hyper.hidden,
        start.elapsed().as_secs_f64(),
        runnable.memory_bytes() as f64 / 1e6,
    );
    let spec = KvSpec {
        layers: hyper.layers,
        kv_heads: hyper.kv_heads,
        head_dim: hyper.head_dim,
        page_tokens,
        pages: 32,
        dtype,
    };
    let mut kv = cpu.kv_cache(&spec).unwrap();
    let pages: Vec<PageId> = (0..32).collect();
    let mut run = |count: usize, start: usize| {
        let tokens: Vec<u32> = (0..count).map(|i| (i * 997 % hyper.vocab) as u32).collect();
        let span = Span { rows: 0..count, start, pages: &pages, rope: Default::default() };
        let batch = Batch { tokens: &tokens, spans: &[span], logit_rows: &[count - 1] };
        runnable.run(&batch, kv.as_mut(), &[], &mut [Vec::new()]).unwrap();
    };
    for depth in [16, 1024] {
        let tokens = 32;
        let seconds = median(9, || (0..tokens).for_each(|i| run(1, depth + i))) / tokens as f64;
        println!("decode at {depth}: {:.1} tok/s, {:.2} ms", 1.0 / seconds, seconds * 1e3);
    }
    if std::env::var("TANGOR_DECODE").is_ok() {
        return;
    }
    let prefill = median(5, || run(prompt, 0));
    let weights: usize = graph
        .nodes
        .iter()
        .filter_map(|node| match node.op {
            Op::Linear { weight, .. } if graph.value(node.inputs[0]).rows == Rows::Tokens => {
                Some(graph.weight(weight).rows() * graph.weight(weight).cols())
            }
            _ => None,
        })
        .sum();
    println!(
        "prefill {prompt}: {:.0} tok/s, {:.1} % of peak in linears alone",
        prompt as f64 / prefill,
        2.0 * (weights * prompt) as f64 / prefill / peak * 100.0,
    );
}
