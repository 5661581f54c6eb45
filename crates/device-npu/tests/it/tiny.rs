//! Tiny models of every architecture give what transformers and the oracle compute.

use crate::support::cpu;
use tangor_device::model::import;
use tangor_device::oracle::{self, run_sequence};
use tangor_device::tensor::{DType, Layout, Offset};
use tangor_device::{Activations, Batch, Device, KvSpec, KvType, Prepare, Segment, Span};
use tangor_testkit::drive;
use tangor_testkit::tiny;

fn off(found: &[f32], expected: &[f32]) -> f32 {
    let scale = expected.iter().fold(0_f32, |most, x| most.max(x.abs()));
    found.iter().zip(expected).fold(0_f32, |worst, (a, b)| worst.max((a - b).abs() / scale))
}

#[test]
fn the_exact_mode_gives_the_logits_of_transformers() {
    let device = cpu();
    for name in tiny::RECORDED {
        let off = drive::off_recorded(&device, name, &tiny::graph(name));
        assert!(off < 1e-5, "{name} is {off:e} off");
    }
    for name in tiny::RECORDED_GGUF {
        let graph = import::import(&tiny::gguf(name)).expect("a graph");
        let off = drive::off_recorded(&device, name, &graph);
        assert!(off < 1e-5, "{name} as GGUF is {off:e} off");
    }
}

#[test]
fn quantised_models_give_the_logits_of_the_oracle() {
    let quant = |bits, group, offset| Layout::Quant { bits, group, offset };
    let layouts = [
        quant(4, 16, Offset::Zero),
        quant(4, 32, Offset::Min),
        quant(4, 64, Offset::Zero),
        quant(8, 16, Offset::Zero),
        quant(8, 32, Offset::Min),
        Layout::Dense(DType::Bf16),
    ];
    let device = cpu();
    let tokens: Vec<u32> = (0..40).map(|i| i * 89 % 256).collect();
    let archs = ["llama", "mistral", "qwen2", "phi3"];
    let random = layouts.into_iter().zip(archs.into_iter().cycle());
    let graphs = random.map(|(layout, arch)| tiny::random(arch, layout, 11));
    for graph in graphs.chain([tiny::random_k_quants(3)]) {
        let want = oracle::logits(&graph, &tokens).expect("logits");
        for mode in [Activations::F32, Activations::Int8] {
            let found = run_sequence(&device, &graph, &tokens, mode, KvType::F32).expect("logits");
            let off = off(&found, &want);
            assert!(off < 1e-5, "{:?}, {mode:?}: {off:e} off", graph.identity);
        }
    }
}

#[test]
fn rows_do_not_depend_on_chunks_or_neighbours() {
    let device = cpu();
    for name in tiny::RECORDED {
        let graph = tiny::graph(name);
        for run in tiny::recorded(name) {
            for kv in [KvType::F32, KvType::Int8] {
                let mode = (Activations::F32, kv);
                drive::check_row_independence(&device, &graph, &run.tokens, mode);
            }
        }
    }
}

/// Stages of a plan prepare the same segment for batches of their own size.
#[test]
fn rows_do_not_depend_on_the_size_that_a_segment_is_prepared_for() {
    let layout = Layout::Quant { bits: 4, group: 32, offset: Offset::Zero };
    let graph = tiny::random("llama", layout, 4);
    let single = |device: &dyn Device, max_rows: usize| -> Vec<u32> {
        let options = Prepare { activations: Activations::F32, context: 16, max_rows };
        let mut runnable =
            device.prepare(&Segment::whole(&graph), options, &mut |_| {}).expect("a runnable");
        let spec = KvSpec {
            layers: 2,
            kv_heads: 2,
            head_dim: 16,
            page_tokens: 16,
            pages: 1,
            dtype: KvType::F32,
        };
        let mut kv = device.kv_cache(&spec).expect("a cache");
        let rope = graph.rope.variant(1);
        let spans = [Span { rows: 0..1, start: 0, pages: &[0], rope }];
        let batch = Batch { tokens: &[7], spans: &spans, logit_rows: &[0] };
        let mut outputs = [Vec::new()];
        runnable.run(&batch, kv.as_mut(), &[], &mut outputs).expect("logits");
        outputs[0].iter().map(|x| x.to_bits()).collect()
    };
    // A device that has seen a shape takes a shorter way, in whichever order it sees them.
    for sizes in [[1, 300, 1], [300, 1, 17]] {
        let device = cpu();
        let rows = sizes.map(|max_rows| single(&device, max_rows));
        assert!(rows[0] == rows[1] && rows[1] == rows[2], "{sizes:?}");
    }
}
