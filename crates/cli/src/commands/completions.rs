//! `tangor completions`: what a shell needs to complete commands and options.

use crate::args::Cli;
use crate::error::Outcome;
use crate::terminal;
use clap::{Args, CommandFactory};
use clap_complete::{Shell, generate};

const EXAMPLES: &str = "\
Examples:
  tangor completions bash > ~/.local/share/bash-completion/completions/tangor
  tangor completions fish > ~/.config/fish/completions/tangor.fish
  tangor completions zsh > ~/.zfunc/_tangor";

/// Print completions for a shell
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Options {
    /// Shell to complete in
    #[arg(value_enum)]
    shell: Shell,
}

pub(crate) fn run(options: &Options) -> Outcome {
    let mut script = Vec::new();
    generate(options.shell, &mut Cli::command(), "tangor", &mut script);
    terminal::write(&String::from_utf8_lossy(&script))
}
