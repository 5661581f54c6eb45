//! What a plan comes to: seconds to the first token, tokens per second, and when who works.

use crate::case::{Case, to_f64};
use crate::cooperate::Shared;
use crate::plan::{Stage, StagePlan, stage_for};
use crate::timeline::{Slot, Timeline};
use crate::{handover, place};
use std::ops::Range;

type Parts = Vec<(usize, Range<usize>)>;

/// What is expected.
#[derive(Clone, Debug)]
pub(crate) struct Forecast {
    pub(crate) ttft_s: f64,
    pub(crate) token_s: f64,
    pub(crate) kv_bytes: u64,
    pub(crate) timeline: Timeline,
}

impl Forecast {
    /// Seconds of the prompt and the answer.
    pub(crate) fn total_s(&self, case: &Case<'_>) -> f64 {
        self.ttft_s + self.token_s * to_f64(case.options.answer)
    }
}

/// The chunks of the prompt: rows before each, and rows.
fn chunks(case: &Case<'_>) -> impl Iterator<Item = (usize, usize)> {
    let (prompt, most) = (case.options.prompt.max(1), case.options.prefill_rows);
    (0..prompt).step_by(most).map(move |before| (before, most.min(prompt - before)))
}

/// Seconds of the prompt with the same placement for every chunk.
pub(crate) fn prompt_seconds(case: &Case<'_>, parts: &Parts) -> f64 {
    let prompt = case.options.prompt.max(1);
    let seconds = chunks(case).map(|(before, rows)| {
        place::seconds(case, parts, &case.chunk(before, rows, before + rows >= prompt))
    });
    seconds.sum()
}

/// Seconds to hand the prompt's keys and values over.
pub(crate) fn handed(case: &Case<'_>, from: &Parts, to: &Parts, while_s: f64) -> f64 {
    let layers = (handover::of_layers(case, from), handover::of_layers(case, to));
    handover::seconds(case, (&layers.0, &layers.1), case.options.prompt, while_s)
}

fn parts(stage: Option<&StagePlan>) -> Parts {
    let segments = stage.map(|stage| stage.segments.as_slice()).unwrap_or_default();
    segments.iter().map(|segment| (segment.device, segment.range.clone())).collect()
}

/// What the stages come to, the prompt being read by two devices if it is shared.
pub(crate) fn forecast(case: &Case<'_>, stages: &[StagePlan], shared: Option<&Shared>) -> Forecast {
    let decode = parts(stage_for(stages, Stage::Decode, 1));
    let (mut ttft_s, prefill) = match shared {
        Some(shared) => (shared.seconds, shared.slots.clone()),
        None => alone(case, stages),
    };
    let last = parts(stage_for(
        stages,
        Stage::Prefill,
        case.options.prefill_rows.min(case.options.prompt.max(1)),
    ));
    ttft_s += match shared {
        // Half of the rows are elsewhere whichever device goes on.
        Some(shared) => shared
            .devices
            .map(|device| handed(case, &vec![(device, 0..case.graph.nodes.len())], &decode, ttft_s))
            .into_iter()
            .fold(0.0, f64::max),
        None => handed(case, &last, &decode, ttft_s),
    };
    let token = case.token();
    let mut slots = Vec::new();
    let token_s = slots_of(case, &decode, &token, 0.0, "1 row", &mut slots);
    let tokens = to_f64(case.options.prompt) + to_f64(case.options.answer);
    let kv_bytes = tokens * to_f64(case.graph.hyper.layers) * case.kv_layer_bytes();
    let timeline = Timeline { prefill, decode: slots };
    Forecast { ttft_s, token_s, kv_bytes: kv_bytes as u64, timeline }
}

/// The prompt, chunk by chunk.
fn alone(case: &Case<'_>, stages: &[StagePlan]) -> (f64, Vec<Slot>) {
    let prompt = case.options.prompt.max(1);
    let (mut clock, mut slots) = (0.0, Vec::new());
    let mut before: Option<Parts> = None;
    for (done, rows) in chunks(case) {
        let parts = parts(stage_for(stages, Stage::Prefill, rows));
        if let Some(before) = before.as_ref().filter(|before| **before != parts) {
            clock += handed(case, before, &parts, clock);
        }
        let shape = case.chunk(done, rows, done + rows >= prompt);
        clock = slots_of(case, &parts, &shape, clock, &format!("{rows} rows"), &mut slots);
        before = Some(parts);
    }
    (clock, slots)
}

/// Adds the segments of a batch, and returns when the last one ends.
fn slots_of(
    case: &Case<'_>,
    parts: &Parts,
    shape: &crate::cost::Shape,
    mut clock: f64,
    label: &str,
    slots: &mut Vec<Slot>,
) -> f64 {
    let crossing = if parts.len() > 1 { case.crossing(shape) } else { Vec::new() };
    let mut before: Option<usize> = None;
    for (device, range) in parts {
        if let Some(before) = before {
            clock += case.transfer(before, *device, crossing[range.start]);
        }
        let end_s = clock + case.segment(*device, range.clone(), shape);
        slots.push(Slot {
            device: *device,
            start_s: clock,
            end_s,
            label: label.to_owned(),
            measured_s: None,
        });
        (clock, before) = (end_s, Some(*device));
    }
    clock
}
