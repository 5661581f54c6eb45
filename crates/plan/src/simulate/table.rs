//! All models of the seed document on one machine, step by step, as data and as Markdown.

use super::published::{SimulateError, options, residuals};
use super::{Machine, Sensitivity, Step, seed_graph, sensitivity, simulate};
use crate::{PlanError, PlanOptions};
use serde::Serialize;
use std::fmt::Write;
use tangor_model::{Graph, shapes};

/// Tokens of the short prompt of the table.
pub const SHORT: usize = 128;

/// A model on a machine.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    /// The shape.
    pub model: String,
    /// What each step brings; a step that has no plan is missing.
    pub steps: Vec<Figures>,
    /// Why steps are missing.
    pub missing: Vec<String>,
    /// How much the figures of `--policy ours` hang on the constants.
    pub sensitivity: Option<Sensitivity>,
}

/// What a step comes to.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Figures {
    /// Which step.
    pub step: Step,
    /// Seconds to the first token of the prompt that was asked for.
    pub ttft_s: f64,
    /// Seconds to the first token of a prompt of [`SHORT`] tokens.
    pub short_ttft_s: f64,
    /// Tokens per second behind the prompt.
    pub decode_tps: f64,
    /// Bytes of all copies of the weights.
    pub weights_bytes: u64,
    /// Bytes of keys and values.
    pub kv_bytes: u64,
    /// Devices that read the prompt.
    pub prefill: Vec<String>,
    /// Devices that write the answer.
    pub decode: Vec<String>,
}

/// The thirteen models of the seed document, by their shapes' names.
pub fn seed_models() -> impl Iterator<Item = &'static str> {
    // The shape that is ours and not the seed's.
    shapes::names().filter(|name| *name != "smollm2-135m")
}

/// A model on a machine.
///
/// # Errors
/// [`SimulateError::Shape`]; what no plan fits is in [`Row::missing`].
pub fn row(
    model: &str,
    graph: &Graph,
    machine: &Machine,
    options: &PlanOptions,
) -> Result<Row, SimulateError> {
    let mut row =
        Row { model: model.to_owned(), steps: vec![], missing: vec![], sensitivity: None };
    for step in Step::ALL {
        match figures(graph, machine, step, options) {
            Ok(figures) => row.steps.push(figures),
            Err(error) => row.missing.push(format!("{}: {error}", step.name())),
        }
    }
    row.sensitivity = sensitivity(graph, machine, Step::Cooperation, options).ok();
    Ok(row)
}

fn figures(
    graph: &Graph,
    machine: &Machine,
    step: Step,
    options: &PlanOptions,
) -> Result<Figures, PlanError> {
    let plan = simulate(graph, machine, step, options)?;
    let short = PlanOptions { prompt: SHORT, ..options.clone() };
    let short = simulate(graph, machine, step, &short)?;
    let names = |slots: &[crate::Slot]| {
        let mut names: Vec<String> = Vec::new();
        for slot in slots {
            let name = &plan.devices[slot.device].name;
            if !names.contains(name) {
                names.push(name.clone());
            }
        }
        names
    };
    Ok(Figures {
        step,
        ttft_s: plan.predicted.ttft_s,
        short_ttft_s: short.predicted.ttft_s,
        decode_tps: plan.predicted.decode_tps,
        weights_bytes: plan.predicted.weights_bytes,
        kv_bytes: plan.predicted.kv_bytes,
        prefill: names(&plan.timeline.prefill),
        decode: names(&plan.timeline.decode),
    })
}

/// The simulated tables of the seed's models on a machine, as Markdown: what was published beside
/// what comes out, the gain of every step, what it hangs on, and where the numbers come from.
///
/// # Errors
/// As [`row`].
pub fn markdown(machine: &Machine) -> Result<String, SimulateError> {
    let mut out = String::new();
    // Writing to a string cannot fail.
    let _ = write(&mut out, machine, &options())?;
    Ok(out)
}

type Written = Result<std::fmt::Result, SimulateError>;

fn write(out: &mut String, machine: &Machine, options: &PlanOptions) -> Written {
    let mut rows = Vec::new();
    for model in seed_models() {
        rows.push(row(model, &seed_graph(model)?, machine, options)?);
    }
    let _ = writeln!(out, "### {} (simulated)\n\n{}.\n", machine.name, machine.title);
    if machine.calibrated {
        reproduced(out, machine)?;
    } else {
        let _ = writeln!(out, "Nobody has published measurements to compare with.\n");
    }
    let prompt = options.prompt;
    ladder(out, &rows, &format!("Seconds to the first token of {prompt}"), |f| f.ttft_s, 2);
    ladder(out, &rows, &format!("Seconds to the first token of {SHORT}"), |f| f.short_ttft_s, 2);
    ladder(out, &rows, "Tokens per second", |f| f.decode_tps, 1);
    ladder(out, &rows, "GB of weights", |f| f.weights_bytes as f64 / 1e9, 2);
    hangs_on(out, &rows);
    Ok(sources(out, machine))
}

fn reproduced(out: &mut String, machine: &Machine) -> Result<(), SimulateError> {
    let _ = writeln!(
        out,
        "| published / simulated, vendor's rule | TTFT, s | off | tokens/s | off |\n\
         |---|---|---|---|---|"
    );
    for residual in residuals(machine)? {
        let of = &residual.published;
        let _ = writeln!(
            out,
            "| {} | {:.2} / {:.3} | {:+.1} % | {:.1} / {:.2} | {:+.1} % |",
            of.shape,
            of.ttft_s,
            residual.ttft_s,
            residual.ttft_error() * 100.0,
            of.decode_tps,
            residual.decode_tps,
            residual.decode_error() * 100.0
        );
    }
    let _ = writeln!(out);
    Ok(())
}

/// One column per step.
fn ladder(out: &mut String, rows: &[Row], what: &str, of: fn(&Figures) -> f64, digits: usize) {
    let names: Vec<&str> = Step::ALL.into_iter().map(Step::name).collect();
    let _ = writeln!(out, "| {what} | {} |", names.join(" | "));
    let _ = writeln!(out, "|---|{}", "---|".repeat(names.len()));
    for row in rows {
        let cells = Step::ALL.map(|step| {
            let figures = row.steps.iter().find(|figures| figures.step == step);
            figures.map_or_else(|| "–".to_owned(), |f| format!("{:.digits$}", of(f)))
        });
        let _ = writeln!(out, "| {} | {} |", row.model, cells.join(" | "));
    }
    let _ = writeln!(out);
}

fn hangs_on(out: &mut String, rows: &[Row]) {
    let _ = writeln!(
        out,
        "| `--policy ours`, all constants at their worst to best | TTFT, s | tokens/s |\n|---|---|---|"
    );
    for row in rows {
        if let Some(range) = &row.sensitivity {
            let ([fast, slow], [low, high]) = (range.ttft_s, range.decode_tps);
            let (model, tps) = (&row.model, format!("{low:.1} to {high:.1}"));
            let _ = writeln!(out, "| {model} | {fast:.2} to {slow:.2} | {tps} |");
        }
    }
    let _ = writeln!(out);
}

fn sources(out: &mut String, machine: &Machine) -> std::fmt::Result {
    writeln!(out, "| number | value | worth | from |\n|---|---|---|---|")?;
    for source in &machine.sources {
        let grade = format!("{:?}", source.grade).to_lowercase();
        writeln!(out, "| {} | {:e} | {grade} | {} |", source.what, source.value, source.source)?;
    }
    writeln!(out)
}
