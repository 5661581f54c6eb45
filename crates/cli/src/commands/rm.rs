//! `tangor rm`: removes models from the store.

use crate::args::Global;
use crate::error::Outcome;
use crate::load;
use crate::terminal;
use clap::Args;
use serde_json::json;
use std::sync::atomic::AtomicBool;
use tangor_store::ModelName;

/// Remove models from the store
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Names of the models, as `tangor list` shows them
    #[arg(value_name = "MODEL", required = true)]
    models: Vec<String>,

    /// Print one JSON object: removed[{name, bytes}]
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(options: &Options, global: &Global) -> Outcome {
    let store = load::store(global)?;
    // All names are checked before anything is removed.
    let names: Vec<ModelName> =
        options.models.iter().map(|text| ModelName::parse(text)).collect::<Result<_, _>>()?;
    let mut removed = Vec::new();
    for name in names {
        let bytes = store.remove(&name, &AtomicBool::new(false))?;
        if !options.json {
            terminal::line(&format!("removed {name}, {}", terminal::bytes(bytes)))?;
        }
        removed.push(json!({ "name": name.to_string(), "bytes": bytes }));
    }
    if options.json {
        terminal::json(&json!({ "removed": removed }))?;
    }
    Ok(())
}
