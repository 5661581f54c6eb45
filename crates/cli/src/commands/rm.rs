//! `tangor rm`: removes models from the store.

use crate::args::Global;
use crate::error::{Failure, Outcome};
use crate::load;
use crate::terminal;
use clap::Args;
use serde_json::json;
use std::sync::atomic::AtomicBool;
use tangor_store::{ModelName, Store, StoreError};

/// Remove models from the store
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Names of the models, as `tangor list` shows them
    #[arg(value_name = "MODEL", required_unless_present = "packed")]
    models: Vec<String>,

    /// Remove packed weights only, those of all models if none is named: the next start packs them
    /// again
    #[arg(long)]
    packed: bool,

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
    if options.packed && names.is_empty() {
        let bytes = store.remove_packed(&store.packed())?;
        if options.json {
            return terminal::json(&json!({ "removed": [{ "name": null, "bytes": bytes }] }));
        }
        return terminal::line(&format!("removed packed weights, {}", terminal::bytes(bytes)));
    }
    for name in names {
        let removed_bytes = match options.packed {
            true => remove_packed(&store, &name),
            false => store.remove(&name, &AtomicBool::new(false)),
        };
        let bytes = removed_bytes.map_err(|error| not_removed(&name, error))?;
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

/// Why a model was not removed. To fetch it, as the store advises, would be no help.
fn not_removed(name: &ModelName, error: StoreError) -> Failure {
    match (name, &error) {
        (ModelName::Path(_), StoreError::NotInstalled(_)) => Failure::new(error.to_string())
            .hint("the file is yours to remove; --packed removes what was packed of it"),
        (_, StoreError::NotInstalled(_)) => {
            Failure::new(error.to_string()).hint("`tangor list` shows what is")
        }
        _ => error.into(),
    }
}

/// Removes what was packed of a model that is there, in the store or elsewhere.
fn remove_packed(store: &Store, name: &ModelName) -> Result<u64, StoreError> {
    let absent = || StoreError::NotInstalled(name.to_string());
    let model = store.resolve(name)?.ok_or_else(absent)?;
    store.remove_packed(&store.packed_of(&model))
}
