//! `tangor bench`: how fast a model is on this machine, beside what the machine could do.

mod kernels;
pub(crate) mod server;

use crate::args::{Global, ModelOptions, SpeculationOptions, positive};
use crate::error::Outcome;
use crate::load;
use crate::progress::Progress;
use crate::{sys, terminal};
use clap::{Args, Subcommand};
use serde::Serialize;
use std::ops::ControlFlow;
use std::sync::Arc;
use tangor_engine::Model;
use tangor_eval::{BenchReport, BenchRun, BenchSpec, MachineLimits, OfLimit, bench, of_limit};

const EXAMPLES: &str = "\
Examples:
  tangor bench smollm2
  tangor bench ./model.gguf -p 512 -n 128 -r 3 --threads 4
  tangor bench --shape llama-3.2-1b            a published model's shape with random weights
  tangor bench --shape mistral-7b --weights int4-g128
  tangor bench smollm2 --depth 4096 --json     with 4096 tokens in the cache already
  tangor bench smollm2 --streams 8             eight requests at once
  tangor bench kernels                         single operations instead of a model
  tangor bench server http://localhost:13305   a server, whoever made it

Every run is a request of random tokens on the path that all requests take. One run that is not
counted goes first; the numbers are medians of the others. The limits are what this machine does
when it does nothing but 8-bit arithmetic, and nothing but reading memory.";

/// Measure speed beside the machine's limits
#[derive(Debug, Args)]
#[command(
    after_help = EXAMPLES,
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true
)]
pub(crate) struct Options {
    #[command(subcommand)]
    what: Option<What>,

    #[command(flatten)]
    which: load::Which,

    /// Tokens of the prompt
    #[arg(short, long, value_name = "TOKENS", default_value_t = 1024, value_parser = positive)]
    prompt: usize,

    /// Tokens of the answer
    #[arg(short = 'n', long, value_name = "TOKENS", default_value_t = 64, value_parser = positive)]
    new_tokens: usize,

    /// Measured runs
    #[arg(short, long, value_name = "RUNS", default_value_t = 5, value_parser = positive)]
    runs: usize,

    /// Tokens that are in the cache before the prompt
    #[arg(long, value_name = "TOKENS", default_value_t = 0)]
    depth: usize,

    /// Requests at the same time
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = positive)]
    streams: usize,

    /// Print one JSON object: ttft_s, prefill_tps, decode_tps (medians), runs[{the same, drafted,
    /// accepted}], load_s, peak_rss_bytes, limits{int8_ops_per_s, read_bytes_per_s},
    /// of_limit{prefill, decode}, isa, isa_ops_per_s (what chose it), device, model, weights
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    model_options: ModelOptions,

    #[command(flatten)]
    speculation: SpeculationOptions,
}

/// What is measured if not a model.
#[derive(Debug, Subcommand)]
enum What {
    Kernels(kernels::Options),
    Server(server::Options),
}

/// What `--json` prints. The keys are part of the command line's contract.
#[derive(Debug, Serialize)]
struct Report<'a> {
    ttft_s: f64,
    prefill_tps: f64,
    decode_tps: Option<f64>,
    runs: &'a [BenchRun],
    prompt_tokens: usize,
    new_tokens: usize,
    depth: usize,
    streams: usize,
    load_s: f64,
    peak_rss_bytes: Option<u64>,
    limits: MachineLimits,
    of_limit: OfLimit,
    isa: &'static str,
    isa_ops_per_s: load::IsaSpeeds,
    device: String,
    model: &'a str,
    /// Of a shape: how its matrices are stored.
    weights: Option<&'static str>,
}

pub(crate) fn run(options: &Options, global: &Global) -> Outcome {
    match &options.what {
        Some(What::Kernels(options)) => return kernels::run(options),
        Some(What::Server(options)) => return server::run(options),
        None => {}
    }
    let spec = BenchSpec {
        prompt_tokens: options.prompt,
        new_tokens: options.new_tokens,
        runs: options.runs,
        depth: options.depth,
        streams: options.streams,
    };
    let (loaded, work) = load::model_or_shape(
        &options.which,
        &options.model_options,
        &options.speculation,
        &spec,
        global,
    )?;
    let report = measure(&loaded.model, &spec)?;
    let peak_rss_bytes = sys::peak_rss_bytes();
    // Last, as measuring the memory takes more of it than some models do.
    let limits = load::measure(&options.model_options)?;
    let kv = loaded.model.plan().kv.dtype;
    let share = of_limit(&work, kv, &spec, &report, &limits);
    let (isa, isa_ops_per_s) = load::isa(&options.model_options)?;
    let report = Report {
        ttft_s: report.ttft_s,
        prefill_tps: report.prefill_tps,
        decode_tps: report.decode_tps,
        runs: &report.runs,
        prompt_tokens: spec.prompt_tokens,
        new_tokens: spec.new_tokens,
        depth: spec.depth,
        streams: spec.streams,
        load_s: loaded.load_s,
        peak_rss_bytes,
        limits,
        of_limit: share,
        isa,
        isa_ops_per_s,
        device: loaded.device_names(),
        model: options.which.name(),
        weights: options.which.random()?.map(|(_, weights)| weights.name()),
    };
    if options.json { terminal::json(&report) } else { print(&report) }
}

/// Runs the measurement. Ctrl-C ends the program at once: there is nothing to keep.
fn measure(model: &Arc<Model>, spec: &BenchSpec) -> Outcome<BenchReport> {
    let mut progress = Progress::share("measuring");
    progress.set(0, spec.runs as u64 + 1);
    let report = bench(model, spec, &mut |done, total| {
        progress.set(done as u64, total as u64);
        ControlFlow::Continue(())
    });
    Ok(report?)
}

fn print(report: &Report<'_>) -> Outcome {
    let percent = |share: f64| format!("{:.0} % of the limit", share * 100.0);
    let spread = |of: fn(&BenchRun) -> f64| {
        let values = report.runs.iter().map(of);
        let (low, high) = values.fold((f64::MAX, f64::MIN), |(l, h), v| (l.min(v), h.max(v)));
        format!("{low:.1} to {high:.1}")
    };
    let mut rows = vec![
        (
            "model",
            match report.weights {
                Some(weights) => format!("{}, random weights, {weights}", report.model),
                None => report.model.to_owned(),
            },
        ),
        ("device", report.device.clone()),
        (
            "prefill",
            format!(
                "{:.1} tokens/s ({}), {}; first token after {}",
                report.prefill_tps,
                spread(|run| run.prefill_tps),
                percent(report.of_limit.prefill),
                terminal::seconds(report.ttft_s)
            ),
        ),
    ];
    if let (Some(tps), Some(share)) = (report.decode_tps, report.of_limit.decode) {
        let spread = spread(|run| run.decode_tps.unwrap_or(f64::NAN));
        rows.push(("decode", format!("{tps:.1} tokens/s ({spread}), {}", percent(share))));
    }
    let (int8, read) = (report.limits.int8_ops_per_s, report.limits.read_bytes_per_s);
    rows.push((
        "limits",
        format!("{:.2} T int8 operations/s, {:.1} GB/s read", int8 / 1e12, read / 1e9),
    ));
    rows.push(("load", terminal::seconds(report.load_s)));
    if let Some(peak) = report.peak_rss_bytes {
        rows.push(("memory", format!("{} at most", terminal::bytes(peak))));
    }
    let mut runs = format!(
        "{} of {} prompt and {} new tokens",
        report.runs.len(),
        report.prompt_tokens,
        report.new_tokens
    );
    if report.depth > 0 {
        runs.push_str(&format!(", after {} cached ones", report.depth));
    }
    let count = |of: fn(&BenchRun) -> usize| report.runs.iter().map(of).sum::<usize>();
    let drafted = count(|run| run.drafted);
    if drafted > 0 {
        let accepted = count(|run| run.accepted);
        rows.push(("proposals", format!("{drafted} run, {accepted} of them accepted")));
    }
    if report.streams > 1 {
        runs.push_str(&format!(", {} streams at once", report.streams));
    }
    rows.push(("runs", runs));
    terminal::facts(rows)
}
