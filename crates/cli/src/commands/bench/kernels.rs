//! `tangor bench kernels`: how close single operations come to what the machine can do.

use crate::args::positive;
use crate::error::{Failure, Outcome};
use crate::progress::Progress;
use crate::{interrupt, load, sys, terminal};
use clap::Args;
use serde::Serialize;
use std::ops::ControlFlow;
use std::time::Instant;
use tangor_engine::device::Device;
use tangor_eval::{FEW_ROWS, KernelSpec, KernelTime, MachineLimits, kernels};

const EXAMPLES: &str = "\
Examples:
  tangor bench kernels
  tangor bench kernels --only '2048 -> 8192' --isa avx2
  tangor bench kernels --only attention --threads 1 --cpu-time

Batches of fewer than 16 rows are compared with the bytes that memory delivers (weights, or keys and
values, are made to come from there), larger ones with the 8-bit arithmetic that the processor can
do. Medians; --json has the fastest calls too.";

/// Measure single operations beside the machine's limits
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Options {
    /// Threads of the CPU [default: as many as this process may use]
    #[arg(long, env = "TANGOR_THREADS", hide_env_values = true, value_name = "N", value_parser = positive)]
    threads: Option<usize>,

    /// Instruction set of the CPU kernels [default: the fastest, measured]
    #[arg(long, env = "TANGOR_ISA", hide_env_values = true, value_name = "ISA")]
    isa: Option<String>,

    /// Only operations whose name contains this
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    only: String,

    /// Measured calls of each
    #[arg(short, long, value_name = "RUNS", default_value_t = 7, value_parser = positive)]
    runs: usize,

    /// Count the processor time of a single thread, which does not depend on who else is busy
    #[arg(long)]
    cpu_time: bool,

    /// Print one JSON object: device, limits{int8_ops_per_s, read_bytes_per_s}, kernels[{name,
    /// rows, seconds, best_s, ops, bytes, of_int8, of_read}]
    #[arg(long)]
    json: bool,
}

/// What `--json` prints.
#[derive(Debug, Serialize)]
struct Report {
    device: String,
    limits: MachineLimits,
    kernels: Vec<KernelTime>,
}

pub(super) fn run(options: &Options) -> Outcome {
    if options.cpu_time && options.threads != Some(1) {
        return Err(Failure::Usage("--cpu-time counts one thread: give --threads 1 too".into()));
    }
    if options.cpu_time && sys::thread_seconds().is_none() {
        return Err(Failure::new("this system does not tell a thread's processor time"));
    }
    let cpu = crate::devices::cpu_with(options.threads, options.isa.as_deref())?;
    let limits = load::limits_of(&cpu);
    let begin = Instant::now();
    let clock = || {
        let time = options.cpu_time.then(sys::thread_seconds).flatten();
        time.unwrap_or_else(|| begin.elapsed().as_secs_f64())
    };
    let spec = KernelSpec { only: &options.only, runs: options.runs, clock: &clock };
    let mut progress = Progress::share("measuring");
    let ctrl_c = interrupt::listen();
    let kernels = kernels(&cpu, &limits, &spec, &mut |done, total| {
        progress.set(done as u64, total as u64);
        if ctrl_c.pressed() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })?;
    drop(progress);
    let report = Report { device: cpu.descriptor().description.clone(), limits, kernels };
    if options.json { terminal::json(&report) } else { print(&report) }
}

/// One line per operation, one column per size of batch; attention behind the linears.
fn print(report: &Report) -> Outcome {
    terminal::line(&report.device)?;
    terminal::line(&format!(
        "{:.2} T int8 operations/s, {:.1} GB/s read",
        report.limits.int8_ops_per_s / 1e12,
        report.limits.read_bytes_per_s / 1e9
    ))?;
    for attention in [false, true] {
        let rows: Vec<&KernelTime> = report
            .kernels
            .iter()
            .filter(|time| time.name.starts_with("attention") == attention)
            .collect();
        if !rows.is_empty() {
            terminal::line("")?;
            print_table(&rows)?;
        }
    }
    Ok(())
}

fn print_table(times: &[&KernelTime]) -> Outcome {
    let mut sizes: Vec<usize> = times.iter().map(|time| time.rows).collect();
    sizes.sort_unstable();
    sizes.dedup();
    let headings = sizes.iter().map(|&rows| match rows {
        rows if rows < FEW_ROWS => format!("{rows}: % READ"),
        rows => format!("{rows}: % INT8"),
    });
    let headings: Vec<String> = std::iter::once("ROWS".to_owned()).chain(headings).collect();
    let headings: Vec<&str> = headings.iter().map(String::as_str).collect();
    let right: Vec<usize> = (1..headings.len()).collect();
    let mut table = terminal::columns(&headings, &right);
    for group in times.chunk_by(|a, b| a.name == b.name) {
        let cells = sizes.iter().map(|&rows| {
            let time = group.iter().find(|time| time.rows == rows);
            time.map_or_else(String::new, |time| {
                let share = if rows < FEW_ROWS { time.of_read } else { time.of_int8 };
                format!("{:.0}", share * 100.0)
            })
        });
        let name = group.first().map_or("", |time| time.name.as_str()).to_owned();
        table.add_row(std::iter::once(name).chain(cells));
    }
    terminal::table(&table)
}
