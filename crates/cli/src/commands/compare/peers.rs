//! The programs that Tangor is compared with: one row each.

use super::child::{Argv, argv};
use super::tools::{self, Subject, Tools, scripts};
use crate::error::Outcome;
use serde_json::Value;
use std::path::{Path, PathBuf};
use tangor_eval::Turn;

/// Tokens of a prompt that is next to nothing.
pub(super) const SHALLOW: usize = 8;

/// What is measured in every turn.
#[derive(Clone, Copy, Debug)]
pub(super) struct Spec {
    /// Tokens of the prompt.
    pub(super) prompt: usize,
    /// Tokens of the answer.
    pub(super) new: usize,
    /// Threads.
    pub(super) threads: usize,
}

/// A program to compare with.
pub(super) struct Peer {
    /// Its name.
    pub(super) name: &'static str,
    /// Whether it takes part unless others are named.
    pub(super) usual: bool,
    /// What it computes with.
    pub(super) settings: &'static str,
    /// Installs it unless it is there, and says which version that is.
    pub(super) install: fn(&Tools) -> Outcome<String>,
    /// Makes the model in the form that it reads, unless that is there.
    pub(super) prepare: fn(&Tools, &Subject) -> Outcome<PathBuf>,
    /// The processes of a turn; each writes one JSON object per measurement.
    pub(super) measure: fn(&Tools, &Path, &Spec) -> Vec<Argv>,
    /// What such an object says.
    pub(super) read: fn(&Value, &Spec, &mut Turn),
}

/// Every peer.
pub(super) static PEERS: &[Peer] = &[
    Peer {
        name: "llama.cpp",
        usual: true,
        settings: "its weights as in the GGUF file",
        install: Tools::install_llama_cpp,
        prepare: Tools::gguf,
        measure: llama_bench,
        read: read_llama_bench,
    },
    Peer {
        name: "llama.cpp-q4km",
        usual: false,
        settings: "Q4_K_M",
        install: Tools::install_llama_cpp,
        prepare: Tools::q4_k_m,
        measure: llama_bench,
        read: read_llama_bench,
    },
    Peer {
        name: "openvino",
        usual: true,
        settings: "the GGUF file, as OpenVINO GenAI converts it",
        install: |tools| tools.install(&tools::OPENVINO),
        prepare: Tools::gguf,
        measure: |tools, model, spec| {
            script(&tools.python(&tools::OPENVINO), scripts::OPENVINO, model, spec)
        },
        read: read_request,
    },
    Peer {
        name: "onnxruntime-genai",
        usual: true,
        settings: "int4 in groups of 32, accuracy level 4, by its model builder",
        install: |tools| tools.install(&tools::GENAI),
        prepare: Tools::oga,
        measure: |tools, model, spec| {
            script(&tools.python(&tools::GENAI), scripts::GENAI, model, spec)
        },
        read: read_request,
    },
    Peer {
        name: "transformers",
        usual: true,
        settings: "bf16",
        install: |tools| tools.install(&tools::TORCH),
        prepare: Tools::hf,
        measure: |tools, model, spec| {
            script(&tools.python(&tools::TORCH), scripts::TORCH, model, spec)
        },
        read: read_request,
    },
];

/// A Python program that answers a short prompt, then the long one, and prints a line for each.
fn script(python: &Path, program: &str, model: &Path, spec: &Spec) -> Vec<Argv> {
    let (threads, new, prompt) = (spec.threads, spec.new, spec.prompt);
    vec![argv([&python, &"-c", &program, &model, &threads, &new, &SHALLOW, &prompt])]
}

fn llama_bench(tools: &Tools, model: &Path, spec: &Spec) -> Vec<Argv> {
    let bench = |prompt: usize, depth: usize| {
        let mut bench = argv([&tools.llama_cpp("llama-bench"), &"-m", &model, &"-o", &"jsonl"]);
        bench.extend(argv([&"-r", &"1", &"-t", &spec.threads, &"-p", &prompt]));
        bench.extend(argv([&"-n", &spec.new, &"-d", &depth]));
        bench
    };
    vec![bench(spec.prompt, 0), bench(0, spec.prompt)]
}

/// A line of llama-bench. It times prompts without the choice of the first token, so that the time
/// to it is a little more than this.
fn read_llama_bench(line: &Value, spec: &Spec, turn: &mut Turn) {
    let Some(tps) = line["avg_ts"].as_f64() else { return };
    match (line["n_gen"].as_u64(), line["n_depth"].as_u64()) {
        (Some(0), _) => {
            turn.prefill_tps = Some(tps);
            turn.ttft_s = Some(spec.prompt as f64 / tps);
        }
        (_, Some(0)) => turn.decode_tps = Some(tps),
        _ => turn.decode_deep_tps = Some(tps),
    }
}

/// A line of the Python programs: one request.
fn read_request(line: &Value, spec: &Spec, turn: &mut Turn) {
    let Some(prompt) = line["prompt"].as_u64() else { return };
    if prompt == SHALLOW as u64 {
        turn.decode_tps = line["decode_tps"].as_f64();
    }
    if prompt == spec.prompt as u64 {
        turn.ttft_s = line["ttft_s"].as_f64();
        turn.prefill_tps = turn.ttft_s.map(|seconds| spec.prompt as f64 / seconds);
        turn.decode_deep_tps = line["decode_tps"].as_f64();
    }
}

/// What `tangor bench --json` says.
pub(super) fn read_tangor(report: &Value, spec: &Spec, turn: &mut Turn) {
    let mut line = report.clone();
    line["prompt"] = report["prompt_tokens"].clone();
    read_request(&line, spec, turn);
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const SPEC: Spec = Spec { prompt: 100, new: 10, threads: 2 };

    #[test]
    fn requests_are_told_apart_by_their_prompts() {
        let mut turn = Turn::default();
        let short = json!({"prompt": SHALLOW, "ttft_s": 0.1, "decode_tps": 30.0});
        let long = json!({"prompt_tokens": 100, "ttft_s": 0.5, "decode_tps": 20.0});
        read_request(&short, &SPEC, &mut turn);
        read_tangor(&long, &SPEC, &mut turn);
        let expected = Turn {
            prefill_tps: Some(200.0),
            ttft_s: Some(0.5),
            decode_tps: Some(30.0),
            decode_deep_tps: Some(20.0),
        };
        assert_eq!(turn, expected);
    }

    #[test]
    fn llama_bench_says_what_it_ran() {
        let mut turn = Turn::default();
        let mut line = |gen_: u64, depth: u64, tps: f64| {
            let line = json!({"n_gen": gen_, "n_depth": depth, "avg_ts": tps});
            read_llama_bench(&line, &SPEC, &mut turn);
        };
        line(0, 0, 50.0);
        line(10, 0, 8.0);
        line(10, 100, 6.0);
        assert_eq!((turn.prefill_tps, turn.ttft_s), (Some(50.0), Some(2.0)));
        assert_eq!((turn.decode_tps, turn.decode_deep_tps), (Some(8.0), Some(6.0)));
    }
}
