//! The plan and how it is made.

use crate::arena::Arena;
use crate::case::Case;
use crate::choose::{self, Chosen};
use crate::cooperate::Cooperative;
use crate::kv::KvPlan;
use crate::memory::{self, MemoryUse};
use crate::place::{self, Seats};
use crate::timeline::Timeline;
use crate::{DeviceChoice, DeviceProfile, PlanOptions, Policy, vendor};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::ops::Range;
use tangor_model::Graph;

/// Rows per sequence of a verify batch: a drafted continuation and the token before it.
pub(crate) const VERIFY_ROWS: usize = 8;

/// Most rows of a batch: as many as a GPU is given workgroups of in one go.
const MAX_ROWS: usize = 65_535;

/// What a stage does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stage {
    /// Many rows of a prompt.
    Prefill,
    /// One row per sequence.
    Decode,
    /// A few rows per sequence, logits of all of them.
    Verify,
}

impl Stage {
    /// Its name in text and JSON.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Prefill => "prefill",
            Self::Decode => "decode",
            Self::Verify => "verify",
        }
    }
}

/// Nodes that one device runs in one go.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SegmentPlan {
    /// Index of the device in [`Plan::devices`].
    pub device: usize,
    /// Indices of the nodes.
    pub range: Range<usize>,
    /// Names of the nodes.
    pub nodes: Vec<String>,
    /// The forms of the weights that they read, as `4-bit group 32 min`, each once.
    pub layouts: Vec<String>,
    /// Seconds that a run should take.
    pub predicted_s: f64,
    /// Seconds that runs took, where somebody measured: runs of about as many rows as planned for.
    pub measured_s: Option<f64>,
    /// Why this device.
    pub why: String,
}

/// How one stage runs at one number of rows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StagePlan {
    /// Which stage.
    pub stage: Stage,
    /// Rows of the batch.
    pub m: usize,
    /// In running order; together they are the whole graph.
    pub segments: Vec<SegmentPlan>,
}

impl StagePlan {
    /// Seconds that a run should take.
    #[must_use]
    pub fn predicted_s(&self) -> f64 {
        self.segments.iter().map(|segment| segment.predicted_s).sum()
    }
}

/// What to expect for [`PlanOptions::prompt`] and [`PlanOptions::answer`].
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Predicted {
    /// Seconds until the first token.
    pub ttft_s: f64,
    /// Tokens per second after it, one sequence.
    pub decode_tps: f64,
    /// Bytes of all weights: one copy for each memory and form that they are packed in.
    pub weights_bytes: u64,
    /// Bytes of keys and values of the prompt and the answer.
    pub kv_bytes: u64,
}

/// A way to read the prompt.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Considered {
    /// In words.
    pub what: String,
    /// Seconds that the prompt takes so, without the hand-over.
    pub ttft_s: f64,
    /// Whether an engine can run it.
    pub possible: bool,
}

/// Where everything runs, and why.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// The devices that were considered.
    pub devices: Vec<DeviceProfile>,
    /// Prefill at a few row counts, ascending, then decode, then verify.
    pub stages: Vec<StagePlan>,
    /// How two devices read a prompt together, if that is worth it.
    pub cooperative: Option<Cooperative>,
    /// The ways to read the prompt that were weighed, in the order of their names.
    pub considered: Vec<Considered>,
    /// What lies in which memory.
    pub memory: Vec<MemoryUse>,
    /// When which device should work.
    pub timeline: Timeline,
    /// Offsets of activations in a scratch buffer.
    pub arena: Arena,
    /// The KV cache.
    pub kv: KvPlan,
    /// Expectation.
    pub predicted: Predicted,
    /// Sequences that run at once.
    pub max_sequences: usize,
    /// Most rows of a prefill batch.
    pub prefill_rows: usize,
    /// Most rows of any batch.
    pub max_rows: usize,
    /// Most rows of a batch whose logits are all wanted.
    pub logit_rows: usize,
    /// Choices that concern the whole plan, in words.
    pub reasons: Vec<String>,
}

impl Plan {
    /// The plan of a stage for a batch of `m` rows: the smallest that is large enough, or the
    /// largest.
    #[must_use]
    pub fn stage(&self, stage: Stage, m: usize) -> Option<&StagePlan> {
        stage_for(&self.stages, stage, m)
    }

    /// Indices of the devices that take part.
    #[must_use]
    pub fn used(&self) -> BTreeSet<usize> {
        let segments = self.stages.iter().flat_map(|stage| &stage.segments);
        let shared = self.cooperative.iter().flat_map(|both| both.devices);
        segments.map(|segment| segment.device).chain(shared).collect()
    }

    /// Bytes that it takes of a device's memory, by the device's index: weights, activations and
    /// the KV cache.
    #[must_use]
    pub fn taken_bytes(&self, device: usize) -> u64 {
        if !self.used().contains(&device) {
            return 0;
        }
        let device = &self.devices[device];
        let memory = self.memory.iter().find(|memory| memory.memory == memory::name(device));
        memory.map_or(0, |memory| memory.needed_with(&device.layout)).saturating_add(self.kv.bytes)
    }
}

/// The smallest of a stage's plans that takes `m` rows, or the largest.
pub(crate) fn stage_for(stages: &[StagePlan], stage: Stage, m: usize) -> Option<&StagePlan> {
    let mut of_stage = stages.iter().filter(|plan| plan.stage == stage);
    let last = of_stage.clone().next_back();
    of_stage.find(|plan| plan.m >= m).or(last)
}

/// No plan can be made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PlanError {
    /// A device was asked for that is not there.
    #[error("there is no {asked} device for {stage}: this machine has {available}")]
    NoDevice {
        /// Device, kind or choice.
        asked: String,
        /// Prefill or decode.
        stage: &'static str,
        /// Names and kinds of what there is.
        available: String,
    },
    /// The weights do not fit any device that may take part.
    #[error(
        "weights and activations take {needed} bytes and {device} has room for {limit}: \
         choose a smaller model or another device"
    )]
    WeightsDoNotFit {
        /// The roomiest device.
        device: String,
        /// Bytes of the weights and of the activations of the largest batch.
        needed: u64,
        /// Bytes that the device may use.
        limit: u64,
    },
    /// No device that may take part runs some node.
    #[error("no device runs {node} ({op}): {devices} refuse it")]
    Refused {
        /// The first such node.
        node: String,
        /// Its operation.
        op: &'static str,
        /// The devices that might have.
        devices: String,
    },
    /// The KV cache of one sequence does not fit.
    #[error(
        "a context of {context} tokens needs {needed} bytes of KV cache and {limit} are left: \
         choose a shorter context, a smaller KV type or a higher limit"
    )]
    KvDoesNotFit {
        /// Tokens of one sequence.
        context: usize,
        /// Bytes that it needs.
        needed: u64,
        /// Bytes that may be used.
        limit: u64,
    },
    /// A number that makes no sense.
    #[error("{field} is {value} and must be {allowed}")]
    Option {
        /// Name of the option.
        field: &'static str,
        /// What it was.
        value: usize,
        /// What it may be.
        allowed: &'static str,
    },
}

/// Makes a plan.
///
/// Without [`PlanOptions::kv_bytes`] the KV cache takes at most half of the memory that the weights
/// leave, and at most 4 GiB, unless one sequence of the context that was asked for needs more. Each
/// device has a cache of its own: those in one memory share its room equally.
///
/// # Errors
/// [`PlanError`]: a device that is not there, a node that no device runs, or weights or KV that do
/// not fit.
pub fn plan(
    graph: &Graph,
    devices: &[DeviceProfile],
    options: &PlanOptions,
) -> Result<Plan, PlanError> {
    replan(graph, devices, options, &[])
}

/// Makes a plan without some devices: one that failed, or whose memory is gone. Indices are those
/// of `devices`, which stay what they were. A choice that cannot be kept without them is given up,
/// with a reason.
///
/// # Errors
/// As [`plan`].
pub fn replan(
    graph: &Graph,
    devices: &[DeviceProfile],
    options: &PlanOptions,
    without: &[usize],
) -> Result<Plan, PlanError> {
    check(options)?;
    let mut reasons: Vec<String> = without
        .iter()
        .filter_map(|&lost| devices.get(lost))
        .map(|lost| format!("{} takes no part: it has failed or was taken away", lost.name))
        .collect();
    let options = &keepable(devices, options, without, &mut reasons);
    let case = Case::new(graph, devices, options);
    let seats = |stage, only: &Option<String>, reasons: &mut Vec<String>| {
        let seats = place::seats(devices, options, stage, only.as_deref(), without)?;
        that_fit(&case, seats, reasons)
    };
    let prefill = seats("prefill", &options.prefill_device, &mut reasons)?;
    let decode = seats("decode", &options.decode_device, &mut reasons)?;
    let chosen = match options.policy {
        Policy::Ours => choose::choose(&case, &prefill, &decode, &mut reasons)?,
        Policy::Vendor => vendor::choose(&case, &prefill, &decode, &mut reasons)?,
    };
    let mut plan = finish(&case, chosen);
    say_what_goes_elsewhere(&mut plan, &prefill, &decode);
    Ok(plan)
}

/// The options that can be kept without some devices.
fn keepable(
    devices: &[DeviceProfile],
    options: &PlanOptions,
    without: &[usize],
    reasons: &mut Vec<String>,
) -> PlanOptions {
    let mut kept = options.clone();
    if without.is_empty() {
        return kept;
    }
    let gone = |kept: &PlanOptions, only: Option<&str>| {
        place::seats(devices, kept, "", only, without).is_err()
    };
    if gone(&kept, None) {
        reasons.push(format!("--device {} cannot be kept: what is left is used", kept.device));
        kept.device = DeviceChoice::Auto;
    }
    for only in [&mut kept.prefill_device, &mut kept.decode_device] {
        let auto = PlanOptions { device: DeviceChoice::Auto, ..options.clone() };
        if let Some(name) = only.take_if(|name| gone(&auto, Some(name))) {
            reasons.push(format!("{name} cannot be kept: what is left is used"));
        }
    }
    kept
}

fn finish(case: &Case<'_>, chosen: Chosen) -> Plan {
    let (graph, options) = (case.graph, case.options);
    let (max_rows, logit_rows) = (options.max_rows(), options.logit_rows());
    let token_s = chosen.forecast.token_s;
    let predicted = Predicted {
        ttft_s: chosen.forecast.ttft_s,
        decode_tps: if token_s > 0.0 { 1.0 / token_s } else { 0.0 },
        weights_bytes: chosen.memory.iter().map(MemoryUse::weights_bytes).sum(),
        kv_bytes: chosen.forecast.kv_bytes,
    };
    Plan {
        devices: case.devices.to_vec(),
        stages: chosen.stages,
        cooperative: chosen.cooperative,
        considered: chosen.considered,
        memory: chosen.memory,
        timeline: chosen.forecast.timeline,
        arena: Arena::new(graph, max_rows, logit_rows),
        kv: chosen.kv,
        predicted,
        max_sequences: options.max_sequences,
        prefill_rows: options.prefill_rows,
        max_rows,
        logit_rows,
        reasons: chosen.reasons,
    }
}

/// Names the devices of last resort that run something, and what.
fn say_what_goes_elsewhere(plan: &mut Plan, prefill: &Seats, decode: &Seats) {
    for (seats, stages) in
        [(prefill, &[Stage::Prefill][..]), (decode, &[Stage::Decode, Stage::Verify])]
    {
        let of = plan.stages.iter().filter(|stage| stages.contains(&stage.stage));
        let resort = of.flat_map(|stage| &stage.segments);
        let mut resort = resort.filter(|segment| seats.last_resort.contains(&segment.device));
        if let Some(segment) = resort.next() {
            let (device, first) = (&plan.devices[segment.device].name, segment.nodes.first());
            let reason = format!(
                "{} of {} goes to {device}: the NPU refuses it",
                first.map_or("", String::as_str),
                stages[0].name()
            );
            plan.reasons.push(reason);
        }
    }
}

fn check(options: &PlanOptions) -> Result<(), PlanError> {
    let rows = "from 1 to 65535";
    let fields = [
        ("prefill_rows", options.prefill_rows, MAX_ROWS, rows),
        ("max_sequences", options.max_sequences, MAX_ROWS, rows),
        ("context", options.context.unwrap_or(1), usize::MAX, "at least 1"),
    ];
    match fields.into_iter().find(|(_, value, most, _)| !(1..=*most).contains(value)) {
        Some((field, value, _, allowed)) => Err(PlanError::Option { field, value, allowed }),
        None => Ok(()),
    }
}

/// Prefill is planned for these numbers of rows.
pub(crate) fn row_counts(most: usize) -> Vec<usize> {
    let mut counts = [16, 8, 4, 2, 1].map(|parts| most.div_ceil(parts)).to_vec();
    counts.dedup();
    counts
}

/// The devices that have room for the weights.
fn that_fit(
    case: &Case<'_>,
    mut seats: Seats,
    reasons: &mut Vec<String>,
) -> Result<Seats, PlanError> {
    let devices = case.devices;
    let room = |d: usize| memory::limit(&devices[d], case.options);
    let needed = |d: usize| memory::needed(case, d);
    let fits = |d: &usize| room(*d) > needed(*d);
    for &d in seats.first.iter().filter(|d| !fits(d)) {
        let reason = format!(
            "{} is left out: it has room for {} bytes and weights and activations take {}",
            devices[d].name,
            room(d),
            needed(d)
        );
        if !reasons.contains(&reason) {
            reasons.push(reason);
        }
    }
    let roomiest = seats.first.iter().copied().max_by_key(|&d| room(d)).unwrap_or(0);
    seats.first.retain(fits);
    seats.last_resort.retain(fits);
    if seats.first.is_empty() {
        return Err(PlanError::WeightsDoNotFit {
            device: devices[roomiest].name.clone(),
            needed: needed(roomiest),
            limit: room(roomiest),
        });
    }
    Ok(seats)
}
