//! What `tangor plan` says: tables and JSON.

use super::{THIS_MACHINE, Target};
use crate::error::Outcome;
use crate::terminal;
use serde_json::{Value, json};
use tangor_engine::plan::simulate::{Row, Sensitivity};
use tangor_engine::plan::{DeviceProfile, Plan, PlanOptions, Policy, SegmentPlan};

/// A plan and what belongs to it.
pub(super) struct Report<'a> {
    pub(super) name: &'a str,
    pub(super) plan: &'a Plan,
    pub(super) asked: &'a PlanOptions,
    pub(super) target: &'a Target,
    pub(super) sensitivity: Option<Sensitivity>,
}

impl Report<'_> {
    pub(super) fn json(&self) -> Value {
        let mut json = self.plan.to_json();
        let machine = self.target.machine();
        json["profile"] = profile(self.target).into();
        json["policy"] = policy(self.asked).into();
        json["simulated"] = machine.is_some().into();
        if let Some(machine) = machine {
            json["sensitivity"] = json!(self.sensitivity);
            json["sources"] = json!(machine.sources);
        }
        json
    }

    pub(super) fn print(&self) -> Outcome {
        terminal::facts(self.facts())?;
        terminal::line("")?;
        self.segments()?;
        self.ways()?;
        self.memory()?;
        terminal::line("")?;
        terminal::facts(self.expected())
    }

    fn facts(&self) -> Vec<(&str, String)> {
        let asked = self.asked;
        let mut rows = vec![
            ("model", self.name.to_owned()),
            ("for", format!("{} tokens read, {} written", asked.prompt, asked.answer)),
            ("machine", machine_words(self.target)),
            ("policy", policy(asked).to_owned()),
        ];
        rows.extend(self.plan.devices.iter().map(|device| (&*device.name, rates(device))));
        rows
    }

    fn segments(&self) -> Outcome {
        let segments = || self.plan.stages.iter().flat_map(|stage| &stage.segments);
        let measured = segments().any(|segment| segment.measured_s.is_some());
        let mut headings = vec!["STAGE", "ROWS", "DEVICE", "NODES", "PREDICTED"];
        headings.extend(measured.then_some("MEASURED"));
        headings.push("WHY");
        let mut table = terminal::columns(&headings, &[1, 4]);
        for stage in &self.plan.stages {
            for segment in &stage.segments {
                let mut cells = vec![
                    stage.stage.name().to_owned(),
                    stage.m.to_string(),
                    self.device(segment.device),
                    nodes(segment),
                    terminal::seconds(segment.predicted_s),
                ];
                if measured {
                    cells.push(segment.measured_s.map_or_else(String::new, terminal::seconds));
                }
                cells.push(segment.why.clone());
                table.add_row(cells);
            }
        }
        terminal::table(&table)
    }

    /// The ways to read the prompt that were weighed.
    fn ways(&self) -> Outcome {
        if self.plan.considered.len() < 2 {
            return Ok(());
        }
        terminal::line("")?;
        let mut table = terminal::columns(&["THE PROMPT", "PREDICTED"], &[1]);
        for way in &self.plan.considered {
            table.add_row([way.what.clone(), terminal::seconds(way.ttft_s)]);
        }
        terminal::table(&table)
    }

    fn memory(&self) -> Outcome {
        terminal::line("")?;
        let headings = ["MEMORY", "WEIGHTS", "COPIES", "ACTIVATIONS", "KV", "OF"];
        let mut table = terminal::columns(&headings, &[1, 3, 4, 5]);
        for memory in &self.plan.memory {
            let copies = memory.copies.iter();
            let copies = copies.map(|(name, bytes)| format!("{name} {}", terminal::bytes(*bytes)));
            table.add_row([
                memory.memory.clone(),
                terminal::bytes(memory.weights_bytes()),
                copies.collect::<Vec<_>>().join(", "),
                terminal::bytes(memory.scratch_bytes),
                terminal::bytes(memory.kv_bytes),
                terminal::bytes(memory.limit_bytes),
            ]);
        }
        terminal::table(&table)
    }

    fn expected(&self) -> Vec<(&str, String)> {
        let (plan, predicted) = (self.plan, &self.plan.predicted);
        let mut rows = Vec::new();
        if let Some(both) = &plan.cooperative {
            let [first, second] = both.devices.map(|device| self.device(device));
            rows.push((
                "together",
                format!(
                    "{first} reads {} rows, {second} the next {}, in turns, one layer behind: {}",
                    both.rows[0], both.rows[1], both.why
                ),
            ));
        }
        let verb = if self.target.machine().is_some() { "simulated" } else { "expect" };
        let mut words = format!(
            "first token after {}, then {:.1} tokens/s",
            terminal::seconds(predicted.ttft_s),
            predicted.decode_tps
        );
        if let Some(range) = &self.sensitivity {
            let ([fast, slow], [low, high]) = (range.ttft_s, range.decode_tps);
            words.push_str(&format!(
                "; if bandwidth is off by 10 %, arithmetic by 20 %, synchronisation by 2 times: \
                 {fast:.2} to {slow:.2} s, {low:.1} to {high:.1} tokens/s"
            ));
        }
        rows.push((verb, words));
        let kv = &plan.kv;
        rows.push((
            "context",
            format!("{} tokens, {} of KV cache", kv.context, terminal::bytes(kv.bytes)),
        ));
        rows.extend(plan.reasons.iter().map(|reason| ("note", reason.clone())));
        rows
    }

    fn device(&self, index: usize) -> String {
        self.plan.devices[index].name.clone()
    }
}

/// The nodes of a segment, from the first to the last.
fn nodes(segment: &SegmentPlan) -> String {
    match (segment.nodes.first(), segment.nodes.last()) {
        (Some(first), Some(last)) => format!("{first} .. {last} ({})", segment.nodes.len()),
        _ => "none".into(),
    }
}

fn rates(device: &DeviceProfile) -> String {
    let source = if device.rates.measured { "measured" } else { "not measured" };
    format!(
        "{}: {:.2} T operations/s, {:.1} GB/s ({source})",
        device.description,
        device.rates.int8_ops_per_s / 1e12,
        device.rates.read_bytes_per_s / 1e9
    )
}

fn profile(target: &Target) -> &str {
    target.machine().map_or(THIS_MACHINE, |machine| &machine.name)
}

fn machine_words(target: &Target) -> String {
    match target.machine() {
        None => "this one".to_owned(),
        Some(machine) => format!("{} (simulated)", machine.title),
    }
}

fn policy(asked: &PlanOptions) -> &'static str {
    match asked.policy {
        Policy::Ours => "ours",
        Policy::Vendor => "vendor",
    }
}

/// A model of `--all`.
pub(super) struct Line<'a> {
    pub(super) shape: &'a str,
    pub(super) plan: Outcome<Plan>,
    /// Step by step, on a simulated machine.
    pub(super) steps: Option<Row>,
}

/// All models, one line each.
pub(super) fn all(
    lines: &[Line<'_>],
    target: &Target,
    asked: &PlanOptions,
    as_json: bool,
) -> Outcome {
    if as_json {
        let models: Vec<Value> = lines.iter().map(json_line).collect();
        return terminal::json(&json!({
            "profile": profile(target),
            "policy": policy(asked),
            "simulated": target.machine().is_some(),
            "prompt_tokens": asked.prompt,
            "new_tokens": asked.answer,
            "models": models,
            "sources": target.machine().map(|machine| &machine.sources),
        }));
    }
    terminal::facts([
        ("machine", machine_words(target)),
        ("policy", policy(asked).to_owned()),
        ("for", format!("{} tokens read, {} written", asked.prompt, asked.answer)),
    ])?;
    terminal::line("")?;
    let headings = ["MODEL", "TTFT", "TOKENS/S", "WEIGHTS", "KV", "PREFILL", "DECODE"];
    let mut table = terminal::columns(&headings, &[1, 2, 3, 4]);
    for line in lines {
        match &line.plan {
            Ok(plan) => table.add_row(cells(line.shape, plan)),
            Err(error) => table.add_row([line.shape, "", "", "", "", &error.message(), ""]),
        };
    }
    terminal::table(&table)
}

fn cells(shape: &str, plan: &Plan) -> [String; 7] {
    let predicted = &plan.predicted;
    let [prefill, decode] = worked(plan).map(|names| names.join("+"));
    [
        shape.to_owned(),
        terminal::seconds(predicted.ttft_s),
        format!("{:.1}", predicted.decode_tps),
        terminal::bytes(predicted.weights_bytes),
        terminal::bytes(predicted.kv_bytes),
        prefill,
        decode,
    ]
}

/// Names of the devices that read the prompt, and that write a token.
fn worked(plan: &Plan) -> [Vec<String>; 2] {
    [&plan.timeline.prefill, &plan.timeline.decode].map(|slots| {
        let mut names: Vec<String> = Vec::new();
        for slot in slots {
            let name = &plan.devices[slot.device].name;
            if !names.contains(name) {
                names.push(name.clone());
            }
        }
        names
    })
}

fn json_line(line: &Line<'_>) -> Value {
    match &line.plan {
        Ok(plan) => {
            let [prefill, decode] = worked(plan);
            json!({
                "model": line.shape,
                "predicted": plan.predicted,
                "devices": { "prefill": prefill, "decode": decode },
                "steps": line.steps.as_ref().map(|row| &row.steps),
                "sensitivity": line.steps.as_ref().map(|row| &row.sensitivity),
            })
        }
        Err(error) => json!({ "model": line.shape, "error": error.message() }),
    }
}
