//! `tangor`, the command line: it translates what a user types into calls of the crates below and
//! what they answer into text, and decides nothing.
//!
//! [`args`] holds what the commands share, [`commands`] one file per command, [`load`] the way from
//! a MODEL argument to a loaded model, [`terminal`] both outputs. The contract: results go to
//! stdout and nothing else does; exit codes are 0, 1 (failure), 2 (usage) and 130 (Ctrl-C).
#![forbid(unsafe_code)]

mod answer;
mod args;
mod chart;
mod commands;
mod describe;
mod devices;
mod error;
mod files;
mod hardware;
mod interrupt;
mod load;
mod packed;
mod peers;
mod progress;
mod prompt;
mod rates;
mod sampling;
mod service;
mod sys;
mod terminal;

use crate::args::{Command, Global};
use crate::error::Outcome;
use std::process::ExitCode;

fn main() -> ExitCode {
    let cli = args::parse(args::as_named(std::env::args_os().collect()));
    terminal::set_quiet(cli.global.quiet);
    interrupt::install();
    match run(cli.command, &cli.global) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}

fn run(command: Command, global: &Global) -> Outcome {
    match command {
        Command::Run(options) => commands::run::run(options, global),
        Command::Chat(options) => commands::chat::run(options, global),
        Command::Pull(options) => commands::pull::run(&options, global),
        Command::List(options) => commands::list::run(&options, global),
        Command::Rm(options) => commands::rm::run(&options, global),
        Command::Show(options) => commands::show::run(&options, global),
        Command::Inspect(options) => commands::inspect::run(&options, global),
        Command::Plan(options) => commands::plan::run(&options, global),
        Command::Bench(options) => commands::bench::run(&options, global),
        Command::Serve(options) => commands::serve::run(options, global),
        Command::Compare(options) => commands::compare::run(&options, global),
        Command::Eval(options) => commands::eval::run(&options, global),
        Command::Doctor(options) => commands::doctor::run(&options, global),
        Command::Completions(options) => commands::completions::run(&options),
    }
}
