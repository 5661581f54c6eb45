//! `tangor inspect`: what is inside a model's files.

use crate::args::Global;
use crate::describe::{self, Tensor};
use crate::error::Outcome;
use crate::load;
use crate::terminal;
use clap::Args;
use serde_json::{Value, json};

const EXAMPLES: &str = "\
Examples:
  tangor inspect ./model.gguf
  tangor inspect smollm2 --graph
  tangor inspect smollm2 --json | jq '.tensors[] | select(.bytes > 1e6) | .name'";

/// Print a model's metadata, tensors and graph
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Options {
    /// Name, file or folder of the model
    #[arg(value_name = "MODEL")]
    model: String,

    /// Print the graph that devices run, one operation a line, instead of metadata and tensors
    #[arg(long)]
    graph: bool,

    /// Print one JSON object: format, metadata, tensors[{name, shape, type, bytes}], graph
    #[arg(long)]
    json: bool,
}

/// Characters of a value that are shown in the table.
const SHOWN: usize = 80;

pub(crate) fn run(options: &Options, global: &Global) -> Outcome {
    let (_, checkpoint) = load::open(&options.model, global)?;
    let graph = options.graph.then(|| load::graph(&checkpoint)).transpose()?;
    if options.graph && !options.json {
        let text = graph.map(|graph| graph.to_string()).unwrap_or_default();
        return terminal::write(&text);
    }
    let metadata = describe::metadata(&checkpoint);
    let tensors = describe::tensors(&checkpoint);
    if options.json {
        let graph = graph.map(|graph| {
            Value::from(graph.to_string().lines().map(str::to_owned).collect::<Vec<_>>())
        });
        return terminal::json(&json!({
            "format": describe::format(&checkpoint),
            "metadata": metadata,
            "tensors": tensors,
            "graph": graph,
        }));
    }
    terminal::line(describe::format(&checkpoint))?;
    terminal::line("")?;
    let facts = metadata.iter().map(|(key, value)| (key.as_str(), short(value)));
    terminal::facts(facts)?;
    terminal::line("")?;
    print_tensors(&tensors)
}

fn print_tensors(tensors: &[Tensor]) -> Outcome {
    let mut table = terminal::columns(&["TENSOR", "SHAPE", "TYPE", "BYTES"], &[1, 3]);
    for tensor in tensors {
        let shape: Vec<String> = tensor.shape.iter().map(ToString::to_string).collect();
        table.add_row([
            tensor.name.clone(),
            shape.join(" x "),
            tensor.kind.clone(),
            tensor.bytes.to_string(),
        ]);
    }
    terminal::table(&table)?;
    let sums: Vec<String> = describe::kinds(tensors)
        .into_iter()
        .map(|(kind, bytes)| format!("{} in {kind}", terminal::bytes(bytes)))
        .collect();
    terminal::line("")?;
    terminal::line(&format!("{} tensors: {}", tensors.len(), sums.join(", ")))
}

/// A value on one short line.
fn short(value: &Value) -> String {
    let text = match value {
        Value::String(text) => terminal::one_line(text),
        Value::Object(map) if map.contains_key("array_of") => {
            let text = |key: &str| map.get(key).map(|v| v.to_string().replace('"', ""));
            return format!(
                "{} x {}",
                text("length").unwrap_or_default(),
                text("array_of").unwrap_or_default()
            );
        }
        other => other.to_string(),
    };
    let short: String = text.chars().take(SHOWN).collect();
    if short.len() == text.len() { text } else { format!("{short}…") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_fit_on_a_line() {
        assert_eq!(short(&json!("a\nb")), "a\\nb");
        assert_eq!(short(&json!({"array_of": "str", "length": 49152})), "49152 x str");
        assert_eq!(short(&json!([1, 2])), "[1,2]");
        assert_eq!(short(&json!("é".repeat(100))).chars().count(), SHOWN + 1);
    }
}
