//! Instruction counts of fixed work: what an edit costs, on a machine that is too busy for clocks.
//!
//! Valgrind counts what the CPU device executes while it runs batches, with one thread and AVX2 (it
//! knows no AVX-512). Loading, tokenizing and measuring the machine do not count. The counts stand
//! in `xtask/callgrind.json`; `--bless` writes them anew.

use crate::command::{Outcome, output, run};
use crate::{cargo, root, setup};
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The function whose instructions count, with all that it calls.
const COUNTED: &str = "*CpuRunnable*Runnable*::run";

/// By how much a count may grow.
const TOLERANCE: f64 = 0.03;

/// A model to work with.
enum Model {
    /// A recorded tiny one, by its folder.
    Tiny(&'static str),
    /// `SmolLM2` as it is published.
    Real,
}

/// A row: its name, the model, tokens read and written.
const WORKLOADS: &[(&str, Model, usize, usize)] = &[
    ("tiny-f32", Model::Tiny("crates/device/tests/fixtures/llama-tied"), 48, 8),
    ("smollm2", Model::Real, 16, 4),
];

/// What to do.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Write the counts instead of comparing with them
    #[arg(long)]
    bless: bool,
    /// Only workloads whose name contains this
    filter: Option<String>,
}

/// Counts every workload and compares with the recorded counts.
pub(crate) fn callgrind(options: &Options) -> Outcome {
    output(Command::new("valgrind").arg("--version"))
        .map_err(|error| format!("{error} (install valgrind, as with apt-get)"))?;
    run("tangor", &mut cargo(&["build", "--release", "--package", "tangor-cli"]))?;
    let file = root().join("xtask/callgrind.json");
    let text = fs::read_to_string(&file).unwrap_or_else(|_| "{}".into());
    let mut recorded: Value = serde_json::from_str(&text).map_err(|error| error.to_string())?;
    let mut grown = Vec::new();
    for (name, model, prompt, new) in WORKLOADS {
        if options.filter.as_ref().is_some_and(|filter| !name.contains(filter)) {
            continue;
        }
        let path = match model {
            Model::Tiny(folder) => root().join(folder),
            Model::Real => setup::model()?,
        };
        let count = count(name, &path, *prompt, *new)?;
        match recorded[name].as_u64().filter(|_| !options.bless) {
            None => println!("{name}: {count} instructions"),
            Some(before) => {
                #[allow(clippy::cast_precision_loss)]
                let growth = count as f64 / before as f64 - 1.0;
                println!("{name}: {count} instructions, {:+.1} %", growth * 100.0);
                if growth > TOLERANCE {
                    grown.push(format!("{name} from {before} to {count}"));
                }
            }
        }
        if options.bless {
            recorded[name] = count.into();
        }
    }
    if options.bless {
        let text = serde_json::to_string_pretty(&recorded).map_err(|error| error.to_string())?;
        return fs::write(&file, text + "\n").map_err(|error| error.to_string());
    }
    if grown.is_empty() { Ok(()) } else { Err(verdict(&grown)) }
}

fn verdict(grown: &[String]) -> String {
    format!(
        "more instructions than recorded: {}; if that is what it takes, record them: \
         cargo xtask callgrind --bless",
        grown.join(", ")
    )
}

/// Instructions of two requests (the bench warms up with one).
fn count(name: &str, model: &Path, prompt: usize, new: usize) -> Outcome<u64> {
    let result: PathBuf = root().join(format!("target/callgrind.{name}"));
    let mut valgrind = Command::new("valgrind");
    valgrind.args(["--quiet", "--tool=callgrind"]);
    valgrind.arg(format!("--toggle-collect={COUNTED}"));
    valgrind.arg(format!("--callgrind-out-file={}", result.display()));
    valgrind.arg(program()).arg("bench").arg(model).args(["--quiet", "--json", "--runs", "1"]);
    valgrind.args(["-p", &prompt.to_string(), "-n", &new.to_string()]);
    valgrind.args(["--threads", "1", "--isa", "avx2"]);
    eprintln!("== {name}");
    output(&mut valgrind)?;
    let text = fs::read_to_string(&result).map_err(|error| error.to_string())?;
    let count = total(&text).ok_or_else(|| format!("{}: no totals", result.display()))?;
    if count == 0 {
        return Err(format!("{name}: the binary has no function {COUNTED}"));
    }
    Ok(count)
}

/// The release build of `tangor`.
fn program() -> PathBuf {
    let target = std::env::var_os("CARGO_TARGET_DIR");
    let target = target.map_or_else(|| root().join("target"), PathBuf::from);
    target.join("release").join(format!("tangor{}", std::env::consts::EXE_SUFFIX))
}

/// The sum that callgrind wrote: the greatest, since a file has a part per dump.
fn total(text: &str) -> Option<u64> {
    let totals = text.lines().filter_map(|line| line.strip_prefix("totals: "));
    totals.filter_map(|count| count.trim().parse().ok()).max()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn totals_are_found_in_what_callgrind_writes() {
        let text =
            "# callgrind format\nevents: Ir\nsummary: 0\n\nfn=(1) a\n0 3\n\ntotals: 7543211\n";
        assert_eq!(total(text), Some(7_543_211));
        assert_eq!(total("events: Ir\n"), None);
    }

    #[test]
    fn every_workload_is_recorded() {
        let file = include_str!("../callgrind.json");
        let recorded: Value = serde_json::from_str(file).unwrap_or_default();
        for (name, ..) in WORKLOADS {
            assert!(recorded[name].as_u64() > Some(0), "{name}");
        }
    }
}
