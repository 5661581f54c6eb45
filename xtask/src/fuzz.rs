//! Fuzzing: every parser of foreign bytes has a target in `fuzz/`.

use crate::command::{Outcome, output, run};
use crate::root;
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
}

/// Runs the targets one after the other; the first finding ends it.
pub(crate) fn fuzz(options: &Options) -> Outcome {
    if Command::new("cargo-fuzz").arg("--version").output().is_err() {
        return Err("cargo-fuzz is not installed: cargo install cargo-fuzz".into());
    }
    let listed = output(&mut cargo_fuzz("list"))?;
    let targets = listed.lines().filter(|name| options.target.as_deref().unwrap_or(name) == *name);
    for target in targets {
        let mut fuzz = cargo_fuzz("run");
        fuzz.args([target, "--", "-print_final_stats=1", "-verbosity=0", "-max_len=65536"]);
        fuzz.arg(format!("-runs={}", options.execs));
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
