//! The programs that Tangor is compared with: one row each, and what they print.
//!
//! [`tools`] installs them, [`models`] makes the files that they read, [`child`] runs them and
//! [`served`] those that are servers, and [`logits`] has llama.cpp read a text.

pub(crate) mod child;
pub(crate) mod logits;
mod models;
mod served;
mod tools;

pub(crate) use child::{Argv, argv};
pub(crate) use models::{Form, Memory, Subject};
pub(crate) use served::Served;
pub(crate) use tools::{Tools, Venv, scripts};

use crate::error::Outcome;
use serde_json::Value;
use std::path::Path;
use tangor_engine::plan::model::Mixture;
use tangor_eval::Turn;

/// Tokens of a prompt that is next to nothing.
pub(crate) const SHALLOW: usize = 8;

/// What is measured in every turn.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Spec {
    /// Tokens of the prompt.
    pub(crate) prompt: usize,
    /// Tokens of the answer.
    pub(crate) new: usize,
    /// Threads.
    pub(crate) threads: usize,
}

/// A program to compare with.
pub(crate) struct Peer {
    /// Its name.
    pub(crate) name: &'static str,
    /// Whether it takes part unless others are named.
    pub(crate) usual: bool,
    /// The program.
    pub(crate) program: Program,
    /// What it reads the model from.
    pub(crate) form: Form,
    /// Memory that it takes at most for a weight of the model, in bytes; measured.
    pub(crate) bytes_per_weight: f64,
}

/// How a program is installed and run.
#[derive(Clone, Copy)]
pub(crate) enum Program {
    /// `llama-bench`.
    LlamaCpp,
    /// One of [`scripts`] in a Python environment.
    Python(&'static Venv, &'static str),
}

const OPENVINO: Program = Program::Python(&tools::OPENVINO, scripts::OPENVINO);
const GENAI: Program = Program::Python(&tools::GENAI, scripts::GENAI);
const TORCH: Program = Program::Python(&tools::TORCH, scripts::TORCH);
const MISTRALRS: Program = Program::Python(&tools::MISTRALRS, scripts::MISTRALRS);

macro_rules! peers {
    ($($name:literal $usual:literal $program:ident $form:expr, $bytes:literal;)*) => {
        &[$(Peer {
            name: $name,
            usual: $usual,
            program: $program,
            form: $form,
            bytes_per_weight: $bytes,
        }),*]
    };
}

const LLAMA_CPP: Program = Program::LlamaCpp;

/// Every peer: its name, whether it is usual, its program, what it reads, its memory.
pub(crate) static PEERS: &[Peer] = peers![
    "llama.cpp" true LLAMA_CPP Form::Gguf, 0.8;
    "llama.cpp-q4_0" false LLAMA_CPP Form::GgufOf(Mixture::Q4_0), 0.8;
    "llama.cpp-q4_k_m" false LLAMA_CPP Form::GgufOf(Mixture::Q4KM), 0.8;
    "openvino" true OPENVINO Form::Gguf, 2.3;
    "onnxruntime-genai" true GENAI Form::Oga, 1.3;
    "onnxruntime-genai-g128" false GENAI Form::OgaOf(128), 1.3;
    "transformers" true TORCH Form::Hf, 2.2;
    "mistral.rs" true MISTRALRS Form::Gguf, 1.6;
];

impl Peer {
    /// Installs it and makes its model, unless they are there; says what it runs, and the processes
    /// of a turn, each of which writes one JSON object per measurement.
    pub(crate) fn prepare(
        &self,
        tools: &Tools,
        subject: &Subject,
        spec: &Spec,
    ) -> Outcome<(String, Vec<Argv>)> {
        let version = match self.program {
            Program::LlamaCpp => tools.install_llama_cpp()?,
            Program::Python(venv, _) => tools.install(venv)?,
        };
        let model = tools.make(subject, self.form)?;
        let turn = match self.program {
            Program::LlamaCpp => llama_bench(tools, &model, spec),
            Program::Python(venv, script) => {
                let mut turn = tools.script(venv, script);
                let (threads, new, prompt) = (spec.threads, spec.new, spec.prompt);
                turn.extend(argv([&model, &threads, &new, &SHALLOW, &prompt]));
                vec![turn]
            }
        };
        Ok((format!("{version}: {}", subject.describe(self.form)), turn))
    }

    /// Notes what an object that it wrote says.
    pub(crate) fn read(&self, line: &Value, spec: &Spec, turn: &mut Turn) {
        match self.program {
            Program::LlamaCpp => read_llama_bench(line, spec, turn),
            Program::Python(..) => read_request(line, spec, turn),
        }
    }
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
pub(crate) fn read_tangor(report: &Value, spec: &Spec, turn: &mut Turn) {
    let mut line = report.clone();
    line["prompt"] = report["prompt_tokens"].clone();
    read_request(&line, spec, turn);
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const SPEC: Spec = Spec { prompt: 100, new: 10, threads: 2 };

    fn peer(name: &str) -> &'static Peer {
        PEERS.iter().find(|peer| peer.name == name).expect("a peer")
    }

    #[test]
    fn requests_are_told_apart_by_their_prompts() {
        let mut turn = Turn::default();
        let short = json!({"prompt": SHALLOW, "ttft_s": 0.1, "decode_tps": 30.0});
        let long = json!({"prompt_tokens": 100, "ttft_s": 0.5, "decode_tps": 20.0});
        let other = json!({"prompt": 50, "ttft_s": 9.0, "decode_tps": 9.0});
        peer("openvino").read(&short, &SPEC, &mut turn);
        peer("mistral.rs").read(&other, &SPEC, &mut turn);
        read_tangor(&long, &SPEC, &mut turn);
        let expected = Turn {
            prefill_tps: Some(200.0),
            ttft_s: Some(0.5),
            decode_tps: Some(30.0),
            decode_deep_tps: Some(20.0),
        };
        assert_eq!(turn, expected);
    }

    /// Lines of llama-bench 0.3.36, shortened.
    #[test]
    fn llama_bench_says_what_it_ran() {
        let lines = [
            r#"{"build_commit": "x", "n_prompt": 100, "n_gen": 0, "n_depth": 0,
                "avg_ns": 2000000000, "avg_ts": 50.000000, "samples_ts": [ 50.0 ]}"#,
            r#"{"n_prompt": 0, "n_gen": 10, "n_depth": 0, "avg_ts": 8.0}"#,
            r#"{"n_prompt": 0, "n_gen": 10, "n_depth": 100, "avg_ts": 6.0}"#,
        ];
        let mut turn = Turn::default();
        for line in lines {
            let line = serde_json::from_str(line).unwrap();
            peer("llama.cpp").read(&line, &SPEC, &mut turn);
        }
        assert_eq!((turn.prefill_tps, turn.ttft_s), (Some(50.0), Some(2.0)));
        assert_eq!((turn.decode_tps, turn.decode_deep_tps), (Some(8.0), Some(6.0)));
    }

    #[test]
    fn what_is_no_measurement_changes_nothing() {
        let mut turn = Turn::default();
        for line in [json!({}), json!([1]), json!({"avg_ts": "x"}), json!({"prompt": -1})] {
            peer("llama.cpp").read(&line, &SPEC, &mut turn);
            peer("transformers").read(&line, &SPEC, &mut turn);
        }
        assert_eq!(turn, Turn::default());
    }

    #[test]
    fn names_are_unique() {
        for peer in PEERS {
            assert_eq!(PEERS.iter().filter(|other| other.name == peer.name).count(), 1);
        }
    }
}
