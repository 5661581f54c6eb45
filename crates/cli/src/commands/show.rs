//! `tangor show`: what a model is.

use crate::args::Global;
use crate::describe;
use crate::error::{Failure, Outcome};
use crate::load;
use crate::terminal;
use clap::Args;
use serde_json::json;
use tangor_engine::plan::model::Graph;
use tangor_engine::plan::model::formats::Checkpoint;
use tangor_store::ModelName;

/// Say what a model is: architecture, size, quantisation, context, template, licence
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Name, file or folder of the model
    #[arg(value_name = "MODEL")]
    model: String,

    /// Print the chat template itself instead
    #[arg(long, conflicts_with = "json")]
    template: bool,

    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(options: &Options, global: &Global) -> Outcome {
    let (installed, checkpoint) = load::open(&options.model, global)?;
    let template = describe::template(&checkpoint);
    if options.template {
        return match template {
            Some(text) => terminal::line(&text),
            None => Err(Failure::new("the model has no chat template")
                .hint("use `tangor run --raw`, which needs none")),
        };
    }
    let graph = load::graph(&checkpoint)?;
    let (hyper, parameters) = (&graph.hyper, parameters(&graph));
    let kinds = describe::kinds(&describe::tensors(&checkpoint));
    let license = license(&options.model, &checkpoint);
    if options.json {
        return terminal::json(&json!({
            "name": installed.name,
            "path": installed.path,
            "origin": installed.origin,
            "bytes": installed.bytes,
            "digest": installed.digest,
            "format": describe::format(&checkpoint),
            "architecture": hyper.arch,
            "parameters": parameters,
            "quantisation": kinds.iter().map(|(kind, bytes)| json!({"type": kind, "bytes": bytes}))
                .collect::<Vec<_>>(),
            "context": hyper.context,
            "layers": hyper.layers,
            "hidden": hyper.hidden,
            "ffn": hyper.ffn,
            "heads": hyper.heads,
            "kv_heads": hyper.kv_heads,
            "head_dim": hyper.head_dim,
            "vocab": hyper.vocab,
            "template": template,
            "license": license,
        }));
    }
    let total: u64 = kinds.iter().map(|(_, bytes)| bytes).sum();
    let share = |bytes: u64| 100.0 * bytes as f64 / total.max(1) as f64;
    let kinds: Vec<String> =
        kinds.iter().map(|(kind, bytes)| format!("{kind} {:.0} %", share(*bytes))).collect();
    let digest = installed.digest.map_or_else(|| "none (a local model)".into(), |d| d.to_string());
    terminal::facts([
        ("name", installed.name.clone()),
        ("architecture", hyper.arch.clone()),
        ("parameters", terminal::count(parameters)),
        ("quantisation", kinds.join(", ")),
        ("context", format!("{} tokens", hyper.context)),
        (
            "shape",
            format!(
                "{} layers of {}, ffn {}, {} heads over {} of {}, vocabulary {}",
                hyper.layers,
                hyper.hidden,
                hyper.ffn,
                hyper.heads,
                hyper.kv_heads,
                hyper.head_dim,
                hyper.vocab
            ),
        ),
        ("template", if template.is_some() { "yes (--template prints it)" } else { "none" }.into()),
        ("licence", license.unwrap_or_else(|| "not stated".into())),
        ("source", super::list::source(&installed)),
        ("format", describe::format(&checkpoint).to_owned()),
        ("size", terminal::bytes(installed.bytes)),
        ("path", installed.path.display().to_string()),
        ("digest", digest),
    ])
}

/// The licence that the file states, or else the one that a built-in model is known to have.
fn license(model: &str, checkpoint: &Checkpoint) -> Option<String> {
    describe::license(checkpoint).or_else(|| match ModelName::parse(model) {
        Ok(ModelName::BuiltIn(known)) => Some(known.license.to_owned()),
        _ => None,
    })
}

/// Weights of the model, each counted once.
fn parameters(graph: &Graph) -> u64 {
    graph.weights.iter().map(|w| w.weight.rows() as u64 * w.weight.cols() as u64).sum()
}
