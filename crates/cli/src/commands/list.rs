//! `tangor list`: the models on this machine.

use crate::args::Global;
use crate::error::Outcome;
use crate::load;
use crate::terminal;
use clap::Args;
use serde::Serialize;
use serde_json::json;
use std::time::{SystemTime, UNIX_EPOCH};
use tangor_store::{Installed, Origin, Unfinished};

/// List the models in the store
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Print one JSON object: models[{name, origin, path, files, bytes, digest, pulled_at, damage,
    /// packed_bytes}], unfinished[{name, path, bytes}]
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(options: &Options, global: &Global) -> Outcome {
    let store = load::store(global)?;
    let (models, unfinished) = (store.list()?, store.unfinished()?);
    let packed =
        |model: &Installed| -> u64 { store.packed_of(model).iter().map(|entry| entry.bytes).sum() };
    if options.json {
        let listed: Vec<Listed<'_>> =
            models.iter().map(|model| Listed { model, packed_bytes: packed(model) }).collect();
        return terminal::json(&json!({ "models": listed, "unfinished": unfinished }));
    }
    if models.is_empty() {
        terminal::note(&format!("no models in {} yet", store.root().display()));
        terminal::note("try: tangor pull smollm2");
    } else {
        table(&models, packed)?;
    }
    for model in &models {
        if let Some(damage) = &model.damage {
            let name = &model.name;
            terminal::note(&format!("{name} is damaged ({damage}); repair it: tangor pull {name}"));
        }
    }
    for left in &unfinished {
        let (what, todo) = unfinished_pull(left);
        terminal::note(&format!("{what}; {todo}"));
    }
    Ok(())
}

/// What a pull has left, and what to do about it.
pub(crate) fn unfinished_pull(left: &Unfinished) -> (String, String) {
    let bytes = terminal::bytes(left.bytes);
    match &left.name {
        Some(name) => (
            format!("{name} is not complete, {bytes} are here"),
            format!("go on: tangor pull {name}, or give up: tangor rm {name}"),
        ),
        None => (
            format!("{} is not complete, {bytes} are there", left.path.display()),
            "pull the model that it is named after again, or remove the folder".to_owned(),
        ),
    }
}

fn table(models: &[Installed], packed: impl Fn(&Installed) -> u64) -> Outcome {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let mut table = terminal::columns(&["NAME", "SIZE", "PACKED", "PULLED", "SOURCE"], &[1, 2]);
    for model in models {
        let pulled = model.pulled_at.map_or_else(|| "-".into(), |then| age(now, then));
        let size = terminal::bytes(model.bytes);
        let packed = match packed(model) {
            0 => "-".into(),
            bytes => terminal::bytes(bytes),
        };
        table.add_row([model.name.clone(), size, packed, pulled, source(model)]);
    }
    terminal::table(&table)
}

/// A model with what its packed weights take.
#[derive(Debug, Serialize)]
struct Listed<'a> {
    #[serde(flatten)]
    model: &'a Installed,
    packed_bytes: u64,
}

/// Where a model came from, in a word.
pub(crate) fn source(model: &Installed) -> String {
    match &model.origin {
        Origin::Package { requirement } => format!("package {requirement}"),
        Origin::Hub { repo, commit } => format!("{repo}@{}", commit.get(..7).unwrap_or(commit)),
        Origin::Local => "local".to_owned(),
    }
}

/// How long ago `then` was, roughly.
fn age(now: u64, then: u64) -> String {
    let seconds = usize::try_from(now.saturating_sub(then)).unwrap_or(usize::MAX);
    let (value, unit) = match seconds {
        0..60 => return "just now".to_owned(),
        60..3600 => (seconds / 60, "minute"),
        3600..86_400 => (seconds / 3600, "hour"),
        86_400..5_184_000 => (seconds / 86_400, "day"),
        _ => (seconds / 2_592_000, "month"),
    };
    format!("{} ago", terminal::things(value, unit))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_are_rough() {
        for (seconds, text) in [
            (5, "just now"),
            (60, "1 minute ago"),
            (7300, "2 hours ago"),
            (86_400 * 3, "3 days ago"),
            (86_400 * 100, "3 months ago"),
        ] {
            assert_eq!(age(1_000_000_000, 1_000_000_000 - seconds), text);
        }
        assert_eq!(age(5, 10), "just now");
    }
}
