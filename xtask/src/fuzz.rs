//! Fuzzing: every parser of foreign bytes has a target in `fuzz/`.

use crate::command::{Outcome, output, run};
use crate::{cargo, root};
use std::process::Command;

/// Which targets, and for how long.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// One target; all of them if absent.
    target: Option<String>,
    /// Executions of each target.
    #[arg(long, default_value_t = 1_000_000)]
    execs: u64,
    /// Seconds that each target may take at the most.
    #[arg(long, default_value_t = 3600)]
    seconds: u64,
    /// What watches memory; `none` runs ten times as fast.
    #[arg(long, default_value = "address")]
    sanitizer: String,
    /// Bytes of the longest input that is tried.
    #[arg(long, default_value_t = 4096)]
    max_len: u32,
    /// Leave out comparisons as a guide, which doubles the speed.
    #[arg(long)]
    no_trace_compares: bool,
}

/// The packages and their examples that write the seeds.
const SEEDS: [(&str, &str); 2] =
    [("tangor-formats", "formats_seeds"), ("tangor-text", "text_seeds")];

/// Runs the targets one after the other; the first finding ends it.
pub(crate) fn fuzz(options: &Options) -> Outcome {
    if Command::new("cargo-fuzz").arg("--version").output().is_err() {
        return Err("cargo-fuzz is not installed: cargo install cargo-fuzz".into());
    }
    let listed = output(&mut cargo_fuzz("list"))?;
    let wanted = |name: &&str| options.target.as_deref().is_none_or(|target| target == *name);
    let targets: Vec<&str> = listed.lines().filter(wanted).collect();
    if targets.is_empty() {
        return Err(format!("no such target; there are: {}", listed.trim().replace('\n', ", ")));
    }
    for (package, example) in SEEDS {
        let seeds = ["run", "-q", "-p", package, "--example", example, "--", "fuzz/corpus"];
        run("seeds", &mut cargo(&seeds))?;
    }
    for target in targets {
        let mut fuzz = cargo_fuzz("run");
        fuzz.args(["--sanitizer", &options.sanitizer]);
        fuzz.args(options.no_trace_compares.then_some("--no-trace-compares"));
        // Inputs that run faster get more turns: most of a file's meaning shows in a short one.
        fuzz.args([target, "--", "-entropic_scale_per_exec_time=1", "-timeout=30"]);
        fuzz.args(["-print_final_stats=1", "-verbosity=0"]);
        fuzz.args([format!("-max_len={}", options.max_len), format!("-runs={}", options.execs)]);
        run(target, fuzz.arg(format!("-max_total_time={}", options.seconds)))?;
    }
    Ok(())
}

/// `cargo fuzz`, which wants flags of the nightly compiler that the stable one has too.
fn cargo_fuzz(task: &str) -> Command {
    let mut command = Command::new("cargo");
    command.current_dir(root()).args(["fuzz", task]).env("RUSTC_BOOTSTRAP", "1");
    command
}
