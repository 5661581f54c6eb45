//! `tangor pull`: fetches a model, with progress; what arrived of an earlier try is not fetched
//! again.

use crate::args::Global;
use crate::error::Outcome;
use crate::load;
use crate::terminal;
use clap::Args;
use tangor_store::ModelName;

const EXAMPLES: &str = "\
Examples:
  tangor pull smollm2
  tangor pull org/repo
  tangor pull org/repo:Q4_0        a file, a quantisation or a folder of a repository
  tangor pull org/repo@revision    a branch, a tag or a commit

Everything that arrives is verified. An interrupted pull goes on where it ended.";

/// Fetch a model into the store, with progress, resume and verification
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Options {
    /// Name of the model
    #[arg(value_name = "MODEL")]
    model: String,

    /// Print what was pulled as one JSON object
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(options: &Options, global: &Global) -> Outcome {
    let store = load::store(global)?;
    let name = ModelName::parse(&options.model)?;
    let installed = load::pull(&store, &name)?;
    if options.json {
        return terminal::json(&installed);
    }
    let size = terminal::bytes(installed.bytes);
    terminal::line(&format!("{}  {size}  {}", installed.name, installed.path.display()))
}
