//! The oracle computes what transformers computes, for every architecture and file format, before
//! and after the graph's passes.
#![allow(clippy::expect_used, reason = "tests stop at what is unexpected")]

use tangor_device::oracle::{self, OracleDevice};
use tangor_device::{Activations, KvType};
use tangor_model::{Graph, import, pass};
use tangor_testkit::drive;
use tangor_testkit::tiny::{self, Recorded};

/// Largest difference of two vectors, relative to the largest magnitude of the second.
fn difference(found: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(found.len(), expected.len());
    let scale = expected.iter().fold(0_f32, |most, x| most.max(x.abs()));
    let most = found.iter().zip(expected).fold(0_f32, |most, (a, b)| most.max((a - b).abs()));
    most / scale
}

fn logits(graph: &Graph, run: &Recorded) -> Vec<f32> {
    let all = oracle::logits(graph, &run.tokens).expect("the oracle runs everything");
    let vocab = graph.hyper.vocab;
    run.rows.iter().flat_map(|row| &all[row * vocab..(row + 1) * vocab]).copied().collect()
}

fn check(name: &str, graph: &Graph) {
    for run in tiny::recorded(name) {
        let off = difference(&logits(graph, &run), &run.logits);
        assert!(off < 1e-5, "{name}: {} tokens are {off:e} off", run.tokens.len());
    }
}

#[test]
fn hugging_face_folders_give_the_logits_of_transformers() {
    for name in tiny::RECORDED {
        check(name, &tiny::graph(name));
    }
}

#[test]
fn gguf_files_give_the_logits_of_transformers() {
    for name in tiny::RECORDED_GGUF {
        check(name, &import::import(&tiny::gguf(name)).expect("a graph"));
    }
}

#[test]
fn passes_do_not_change_a_bit() {
    for name in tiny::RECORDED {
        let plain = import::as_written(&tiny::hf(name)).expect("a graph");
        let fused = pass::run_all(plain.clone()).expect("shapes fit");
        assert!(fused.nodes.len() < plain.nodes.len(), "{name}: nothing was fused");
        let tokens = &tiny::recorded(name)[0].tokens;
        let run = |graph| oracle::logits(graph, tokens).expect("the oracle runs everything");
        assert_eq!(run(&plain), run(&fused), "{name}");
    }
}

#[test]
fn rows_do_not_depend_on_chunks_or_neighbours() {
    for name in tiny::RECORDED {
        let (graph, runs) = (tiny::graph(name), tiny::recorded(name));
        for run in runs {
            let modes = [(Activations::F32, KvType::F32), (Activations::Int8, KvType::Int8)];
            for mode in modes {
                drive::check_row_independence(&OracleDevice::new(), &graph, &run.tokens, mode);
            }
        }
    }
}
