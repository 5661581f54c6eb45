//! Every chore of the repository, as `cargo xtask NAME`.
//!
//! CI calls `cargo xtask ci` and nothing else, so whatever CI checks anyone can check the same way.

#![allow(clippy::print_stdout, clippy::print_stderr)]

mod acceptance;
mod callgrind;
mod command;
mod conformance;
mod cross;
mod debian;
mod fuzz;
mod lm_eval;
mod page;
mod schemathesis;
mod setup;
mod tidy;
mod vulkan;

use clap::{Parser, Subcommand};
use command::{Outcome, run};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Instant;

/// The repository's chores.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", version, about)]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Format, lints and tidy.
    Check,
    /// Everything that CI runs: check, then every test, on the real model too.
    Test {
        /// Only tests whose name contains this.
        filter: Option<String>,
    },
    /// The same as `test`; what `.ci/run` calls.
    Ci,
    /// Dependency edges, file sizes, module docs, unsafe code.
    Tidy,
    /// Fetch what tests need: the real model, tokenizer vectors, ONNX Runtime and providers,
    /// clients of the server, a browser.
    Setup,
    /// Write docs/conformance.md anew: the conformance suite on every device there is.
    Conformance(conformance::Options),
    /// Compile for other systems, and run what an emulator can.
    Cross,
    /// Run fuzz targets.
    Fuzz(fuzz::Options),
    /// Ask the server whatever its OpenAPI document allows, and hold it to that.
    Schemathesis(schemathesis::Options),
    /// The slow ring: real checkpoints made by transformers and onnxruntime-genai, checked against
    /// them. Installs torch into a private environment (several gigabytes).
    Acceptance,
    /// Have lm-eval score sentences by the server, and compare that with `tangor eval`. Installs
    /// lm-eval into a private environment (under a gigabyte).
    LmEval,
    /// Count the instructions of fixed work under valgrind; more than recorded is an error.
    Callgrind(callgrind::Options),
}

/// The repository's root.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new(".")).to_path_buf()
}

/// A cargo command in the repository.
fn cargo(args: &[&str]) -> Command {
    let mut command = Command::new(std::env::var("CARGO").unwrap_or_else(|_| "cargo".into()));
    command.current_dir(root()).args(args).env("CARGO_INCREMENTAL", "0");
    if std::env::var_os("XDG_RUNTIME_DIR").is_none() {
        // Mesa complains of every process that has none.
        command.env("XDG_RUNTIME_DIR", std::env::temp_dir());
    }
    command
}

fn check() -> Outcome {
    run("format", &mut cargo(&["fmt", "--all", "--check"]))?;
    tidy::tidy()?;
    let lints = ["clippy", "--workspace", "--all-targets", "--all-features", "--", "-Dwarnings"];
    run("lints", &mut cargo(&lints))
}

fn test(filter: Option<&str>) -> Outcome {
    check()?;
    let inputs = setup::setup()?;
    let mut tests = cargo(&["test", "--workspace", "--all-features", "--no-fail-fast", "--"]);
    tests.args(filter);
    tests.envs(inputs.variables());
    run("tests", &mut tests)
}

fn main() -> ExitCode {
    let start = Instant::now();
    let outcome = match Cli::parse().task {
        Task::Check => check(),
        Task::Test { filter } => test(filter.as_deref()),
        Task::Ci => test(None),
        Task::Tidy => tidy::tidy(),
        Task::Setup => setup::setup().map(|inputs| println!("{inputs}")),
        Task::Conformance(options) => conformance::conformance(options),
        Task::Cross => cross::cross(),
        Task::Fuzz(options) => fuzz::fuzz(&options),
        Task::Schemathesis(options) => schemathesis::schemathesis(&options),
        Task::Acceptance => acceptance::acceptance(),
        Task::LmEval => lm_eval::lm_eval(),
        Task::Callgrind(options) => callgrind::callgrind(&options),
    };
    match outcome {
        Ok(()) => {
            eprintln!("done in {:.0} s", start.elapsed().as_secs_f32());
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
