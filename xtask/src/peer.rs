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
    /// With next to nothing before the first token.
    decode: f64,
    /// After the prompt.
    decode_deep: f64,
}

impl Rates {
    /// The columns of the table.
    fn columns(self) -> [f64; 3] {
        [self.prefill, self.decode, self.decode_deep]
    }
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
    println!("tokens/s: prefill, decode at depth 0, decode at depth {}", options.prompt);
    for turn in 1..=options.rounds {
        let a = tangor(options, &model)?;
        let b = llama_bench(options, &bin, &model)?;
        println!("turn {turn}: tangor {:.1?}, llama.cpp {:.1?}", a.columns(), b.columns());
        ours.push(a);
        theirs.push(b);
    }
    for (column, name) in ["prefill", "decode", "decode after the prompt"].iter().enumerate() {
        let (a, b) = (median(&ours, column), median(&theirs, column));
        println!("{name}: tangor {a:.1}, llama.cpp {b:.1}, ratio {:.2}", a / b);
    }
    Ok(())
}

fn median(rates: &[Rates], column: usize) -> f64 {
    let mut values: Vec<f64> = rates.iter().map(|rates| rates.columns()[column]).collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

fn tangor(options: &Options, model: &Path) -> Outcome<Rates> {
    let bench = |prompt: usize| {
        let mut bench = Command::new(root().join("target/release/tangor"));
        bench.arg("bench").arg(model).args(["--json", "-r", "1"]);
        bench.args(["-p", &prompt.to_string(), "-n", &options.tokens.to_string()]);
        parse(&output(bench.args(["--threads", &options.threads.to_string()]))?)
    };
    let rate = |json: &serde_json::Value, key: &str| {
        json[key].as_f64().ok_or_else(|| format!("bench gave no {key}"))
    };
    let (shallow, deep) = (bench(8)?, bench(options.prompt)?);
    Ok(Rates {
        prefill: rate(&deep, "prefill_tps")?,
        decode: rate(&shallow, "decode_tps")?,
        decode_deep: rate(&deep, "decode_tps")?,
    })
}

fn llama_bench(options: &Options, bin: &Path, model: &Path) -> Outcome<Rates> {
    let bench = |prompt: usize, tokens: usize, depth: usize| {
        let mut bench = Command::new(bin.join("llama-bench"));
        bench.arg("-m").arg(model).args(["-o", "json", "-r", "1"]);
        bench.args(["-p", &prompt.to_string(), "-n", &tokens.to_string()]);
        bench.args(["-d", &depth.to_string(), "-t", &options.threads.to_string()]);
        let json = parse(&output(&mut bench)?)?;
        json[0]["avg_ts"].as_f64().ok_or_else(|| "llama-bench gave no avg_ts".to_owned())
    };
    Ok(Rates {
        prefill: bench(options.prompt, 0, 0)?,
        decode: bench(0, options.tokens, 0)?,
        decode_deep: bench(0, options.tokens, options.prompt)?,
    })
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
