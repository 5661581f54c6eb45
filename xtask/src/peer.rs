//! Tangor and llama.cpp side by side: same model, same threads, one run, interleaved.
//!
//! Wall time on a shared machine is noise; the ratio of two programs that take turns is not. The
//! machine's measured limits are printed beside the result.

use crate::command::{Outcome, output, run};
use crate::setup::{llama_cpp, python, setup};
use crate::{cargo, root};
use std::path::{Path, PathBuf};
use std::process::Command;

/// What to measure.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Threads of both.
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// Prompt tokens.
    #[arg(short, long, default_value_t = 1024)]
    prompt: usize,
    /// Generated tokens.
    #[arg(short = 'n', long, default_value_t = 64)]
    tokens: usize,
    /// Turns of each.
    #[arg(short, long, default_value_t = 5)]
    rounds: usize,
    /// Another GGUF file than the real model requantised to `Q4_0`.
    #[arg(long)]
    model: Option<PathBuf>,
}

/// One program's rates in one turn, tokens per second.
#[derive(Clone, Copy, Debug)]
struct Rates {
    prefill: f64,
    decode: f64,
}

/// Builds both, takes turns, prints medians and ratios.
pub(crate) fn peer(options: &Options) -> Outcome {
    let bin = build_llama_cpp()?;
    run("tangor", &mut cargo(&["build", "--release", "--package", "tangor-cli"]))?;
    let model = match &options.model {
        Some(model) => model.clone(),
        None => requantised(&bin)?,
    };
    let mut ours = Vec::new();
    let mut theirs = Vec::new();
    println!("{:>5} {:>28} {:>28}", "turn", "tangor prefill/decode", "llama.cpp prefill/decode");
    for turn in 1..=options.rounds {
        let a = tangor(options, &model)?;
        let b = llama_bench(options, &bin, &model)?;
        println!(
            "{turn:>5} {:>16.1} {:>11.1} {:>16.1} {:>11.1}",
            a.prefill, a.decode, b.prefill, b.decode
        );
        ours.push(a);
        theirs.push(b);
    }
    let ratio = |rate: fn(&Rates) -> f64| {
        let (a, b) = (median(&ours, rate), median(&theirs, rate));
        (a, b, a / b)
    };
    for (name, (a, b, ratio)) in
        [("prefill", ratio(|r| r.prefill)), ("decode", ratio(|r| r.decode))]
    {
        println!("{name}: tangor {a:.1} tok/s, llama.cpp {b:.1} tok/s, ratio {ratio:.2}");
    }
    Ok(())
}

fn median(rates: &[Rates], rate: fn(&Rates) -> f64) -> f64 {
    let mut values: Vec<f64> = rates.iter().map(rate).collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

fn tangor(options: &Options, model: &Path) -> Outcome<Rates> {
    let mut bench = Command::new(root().join("target/release/tangor"));
    bench.arg("bench").arg(model).args(["--json", "-r", "1"]);
    bench.args(["-p", &options.prompt.to_string(), "-n", &options.tokens.to_string()]);
    let json = parse(&output(bench.args(["--threads", &options.threads.to_string()]))?)?;
    let rate = |key: &str| {
        let value = &json[key];
        value.as_f64().or_else(|| value["median"].as_f64()).ok_or(format!("bench gave no {key}"))
    };
    Ok(Rates { prefill: rate("prefill_tps")?, decode: rate("decode_tps")? })
}

fn llama_bench(options: &Options, bin: &Path, model: &Path) -> Outcome<Rates> {
    let mut bench = Command::new(bin.join("llama-bench"));
    bench.arg("-m").arg(model).args(["-o", "json", "-r", "1"]);
    bench.args(["-p", &options.prompt.to_string(), "-n", &options.tokens.to_string()]);
    let json = parse(&output(bench.args(["-t", &options.threads.to_string()]))?)?;
    let rate = |key: &str| {
        json.as_array()
            .into_iter()
            .flatten()
            .find(|test| test[key].as_u64().is_some_and(|tokens| tokens > 0))
            .and_then(|test| test["avg_ts"].as_f64())
            .ok_or(format!("llama-bench gave no {key}"))
    };
    Ok(Rates { prefill: rate("n_prompt")?, decode: rate("n_gen")? })
}

fn parse(text: &str) -> Outcome<serde_json::Value> {
    serde_json::from_str(text).map_err(|error| format!("not JSON: {error}"))
}

/// Builds llama.cpp for this machine's processor, with its own best settings.
fn build_llama_cpp() -> Outcome<PathBuf> {
    let source = llama_cpp()?;
    let build = root().join("target/llama-cpp/build");
    let bin = build.join("bin");
    if bin.join("llama-bench").exists() && bin.join("llama-quantize").exists() {
        return Ok(bin);
    }
    let python = python("venv", &["cmake", "ninja"])?;
    let cmake = python.with_file_name("cmake");
    let mut configure = Command::new(&cmake);
    configure.arg("-S").arg(&source).arg("-B").arg(&build);
    configure.args(["-DCMAKE_BUILD_TYPE=Release", "-DGGML_NATIVE=ON", "-DLLAMA_CURL=OFF"]);
    configure.args(["-DLLAMA_BUILD_TESTS=OFF", "-DLLAMA_BUILD_SERVER=OFF", "-DLLAMA_OPENSSL=OFF"]);
    run("configure llama.cpp", &mut configure)?;
    let mut make = Command::new(&cmake);
    make.arg("--build").arg(&build).args(["-j", "--target", "llama-bench", "llama-quantize"]);
    run("build llama.cpp", &mut make)?;
    Ok(bin)
}

/// The real model as `Q4_0`, the format that llama.cpp runs fastest.
fn requantised(bin: &Path) -> Outcome<PathBuf> {
    let source = setup()?.gguf;
    let target = root().join("target/smollm2-q4_0.gguf");
    if !target.exists() {
        let mut quantize = Command::new(bin.join("llama-quantize"));
        quantize.args(["--allow-requantize", "--pure"]).arg(&source).arg(&target).arg("Q4_0");
        run("requantise", &mut quantize)?;
    }
    Ok(target)
}
