//! The plan and how it is made.

use crate::arena::Arena;
use crate::kv::{KvPlan, kv_plan};
use crate::place::{Placement, candidates};
use crate::{DeviceProfile, KvType, PlanOptions, cost, place};
use serde::{Deserialize, Serialize};
use std::ops::Range;
use tangor_model::Graph;

/// Rows of a batch for which the logits of every row are wanted: bounds the memory of logits.
const LOGIT_ROWS: usize = 64;

/// Rows per sequence of a verify batch: a drafted continuation and the token before it.
const VERIFY_ROWS: usize = 8;

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
    /// Seconds that runs took, where somebody measured.
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
    /// Bytes of all weights, each counted once.
    pub weights_bytes: u64,
    /// Bytes of keys and values of the prompt and the answer.
    pub kv_bytes: u64,
}

/// Where everything runs, and why.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// The devices that were considered.
    pub devices: Vec<DeviceProfile>,
    /// Prefill at a few row counts, ascending, then decode, then verify.
    pub stages: Vec<StagePlan>,
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
        let mut of_stage = self.stages.iter().filter(|plan| plan.stage == stage);
        let last = of_stage.clone().next_back();
        of_stage.find(|plan| plan.m >= m).or(last)
    }
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
        "the weights take {needed} bytes and {device} has room for {limit}: \
         choose a smaller model or another device"
    )]
    WeightsDoNotFit {
        /// The roomiest device.
        device: String,
        /// Bytes of the weights.
        needed: u64,
        /// Bytes that the device may use.
        limit: u64,
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
/// leave, and at most 4 GiB, unless one sequence of the context that was asked for needs more.
///
/// # Errors
/// [`PlanError`]: a device that is not there, or weights or KV that do not fit.
pub fn plan(
    graph: &Graph,
    devices: &[DeviceProfile],
    options: &PlanOptions,
) -> Result<Plan, PlanError> {
    check(options)?;
    let mut reasons = Vec::new();
    let weights = cost::weights_bytes(graph);
    let for_prefill = candidates(devices, options, "prefill", options.prefill_device.as_deref())?;
    let for_decode = candidates(devices, options, "decode", options.decode_device.as_deref())?;
    let for_prefill = that_fit(devices, &for_prefill, weights, options, &mut reasons)?;
    let for_decode = that_fit(devices, &for_decode, weights, options, &mut reasons)?;
    let (for_prefill, for_decode) =
        together(graph, devices, (for_prefill, for_decode), options, &mut reasons);

    let max_rows = options.prefill_rows.max(options.max_sequences);
    let logit_rows = LOGIT_ROWS.min(max_rows).max(options.max_sequences);
    let mut stages = Vec::new();
    for m in row_counts(options.prefill_rows) {
        let shape = prefill_shape(options, m);
        stages.push(stage(graph, devices, &for_prefill, (Stage::Prefill, m), &shape));
    }
    let shape = decode_shape(options);
    stages.push(stage(graph, devices, &for_decode, (Stage::Decode, 1), &shape));
    let verify = cost::Shape { rows: VERIFY_ROWS, logit_rows: VERIFY_ROWS, ..shape };
    stages.push(stage(graph, devices, &for_decode, (Stage::Verify, VERIFY_ROWS), &verify));

    let used = stages.iter().flat_map(|plan| plan.segments.iter().map(|segment| segment.device));
    let room = used.map(|d| limit(&devices[d], options).saturating_sub(weights)).min();
    let kv = kv_plan(graph, options, room.unwrap_or(0), &mut reasons)?;
    let mut plan = Plan {
        devices: devices.to_vec(),
        stages,
        arena: Arena::new(graph, max_rows, logit_rows),
        kv,
        predicted: Predicted { ttft_s: 0.0, decode_tps: 0.0, weights_bytes: weights, kv_bytes: 0 },
        max_sequences: options.max_sequences,
        prefill_rows: options.prefill_rows,
        max_rows,
        logit_rows,
        reasons,
    };
    plan.predicted = predict(graph, &plan, options);
    Ok(plan)
}

fn check(options: &PlanOptions) -> Result<(), PlanError> {
    let fields = [
        ("prefill_rows", Some(options.prefill_rows)),
        ("max_sequences", Some(options.max_sequences)),
        ("context", options.context),
    ];
    match fields.into_iter().find(|(_, value)| *value == Some(0)) {
        Some((field, _)) => Err(PlanError::Option { field, value: 0, allowed: "at least 1" }),
        None => Ok(()),
    }
}

/// Prefill is planned for these numbers of rows.
fn row_counts(most: usize) -> Vec<usize> {
    let mut counts = vec![most.div_ceil(16), most.div_ceil(4), most];
    counts.dedup();
    counts
}

fn limit(device: &DeviceProfile, options: &PlanOptions) -> u64 {
    options.memory_limit.map_or(device.memory_bytes, |limit| limit.min(device.memory_bytes))
}

/// The candidates that have room for the weights.
fn that_fit(
    devices: &[DeviceProfile],
    candidates: &[usize],
    weights: u64,
    options: &PlanOptions,
    reasons: &mut Vec<String>,
) -> Result<Vec<usize>, PlanError> {
    let room = |d: usize| limit(&devices[d], options);
    let fit: Vec<usize> = candidates.iter().copied().filter(|&d| room(d) > weights).collect();
    for &d in candidates.iter().filter(|&&d| room(d) <= weights) {
        let reason = format!(
            "{} is left out: it has room for {} bytes and the weights take {weights}",
            devices[d].name,
            room(d)
        );
        if !reasons.contains(&reason) {
            reasons.push(reason);
        }
    }
    if fit.is_empty() {
        let roomiest = candidates.iter().copied().max_by_key(|&d| room(d)).unwrap_or(0);
        let device = devices[roomiest].name.clone();
        return Err(PlanError::WeightsDoNotFit { device, needed: weights, limit: room(roomiest) });
    }
    Ok(fit)
}

/// Weighs the best placement of each stage, with the hand-over of keys and values between them,
/// against everything on one device.
fn together(
    graph: &Graph,
    devices: &[DeviceProfile],
    (prefill, decode): (Vec<usize>, Vec<usize>),
    options: &PlanOptions,
    reasons: &mut Vec<String>,
) -> (Vec<usize>, Vec<usize>) {
    let total = |prefill: &[usize], decode: &[usize]| {
        let rows = options.prefill_rows.min(options.prompt.max(1));
        let chunks = options.prompt.max(1).div_ceil(rows);
        let first = place::place(graph, devices, prefill, &prefill_shape(options, rows));
        let then = place::place(graph, devices, decode, &decode_shape(options));
        let handed = handover_seconds(graph, devices, &first, &then, options);
        first.seconds * to_f64(chunks) + handed + then.seconds * to_f64(options.answer)
    };
    let mut best = (total(&prefill, &decode), None);
    for &device in prefill.iter().filter(|device| decode.contains(device)) {
        let alone = total(&[device], &[device]);
        if alone < best.0 {
            best = (alone, Some(device));
        }
    }
    match best.1 {
        None => (prefill, decode),
        Some(device) => {
            reasons.push(format!(
                "everything on {}: handing keys and values over would cost more than it saves",
                devices[device].name
            ));
            (vec![device], vec![device])
        }
    }
}

/// Seconds to hand the prompt's keys and values to other memory.
fn handover_seconds(
    graph: &Graph,
    devices: &[DeviceProfile],
    from: &Placement,
    to: &Placement,
    options: &PlanOptions,
) -> f64 {
    let shared = |d: usize| devices[d].host_memory;
    let same = from.parts == to.parts;
    if same || from.parts.iter().chain(&to.parts).all(|(device, _)| shared(*device)) {
        return 0.0;
    }
    kv_token_bytes(graph, options.kv) * to_f64(options.prompt) / place::LINK_BYTES_PER_S
}

fn to_f64(n: usize) -> f64 {
    n as f64
}

/// Bytes of one token's keys and values in all layers.
fn kv_token_bytes(graph: &Graph, kv: KvType) -> f64 {
    let hyper = &graph.hyper;
    to_f64(2 * hyper.layers * hyper.kv_heads * hyper.head_dim) * cost::kv_bytes(kv)
}

fn prefill_shape(options: &PlanOptions, rows: usize) -> cost::Shape {
    let context = to_f64(options.prompt) / 2.0;
    cost::Shape { rows, logit_rows: 1, context, sequences: 1, kv: options.kv }
}

fn decode_shape(options: &PlanOptions) -> cost::Shape {
    let context = to_f64(options.prompt) + to_f64(options.answer) / 2.0;
    cost::Shape { rows: 1, logit_rows: 1, context, sequences: 1, kv: options.kv }
}

fn stage(
    graph: &Graph,
    devices: &[DeviceProfile],
    allowed: &[usize],
    (stage, m): (Stage, usize),
    shape: &cost::Shape,
) -> StagePlan {
    let placement = place::place(graph, devices, allowed, shape);
    let segments = place::segments(graph, devices, allowed, &placement, shape);
    StagePlan { stage, m, segments }
}

fn predict(graph: &Graph, plan: &Plan, options: &PlanOptions) -> Predicted {
    let mut ttft_s = 0.0;
    let mut done = 0;
    while done < options.prompt.max(1) {
        let rows = options.prefill_rows.min(options.prompt.max(1) - done);
        let context = to_f64(done) + to_f64(rows) / 2.0;
        let last = done + rows >= options.prompt;
        let shape =
            cost::Shape { context, logit_rows: usize::from(last), ..prefill_shape(options, rows) };
        for segment in plan.stage(Stage::Prefill, rows).into_iter().flat_map(|s| &s.segments) {
            let rates = &plan.devices[segment.device].rates;
            ttft_s += cost::seconds(graph, segment.range.clone(), rates, &shape);
        }
        done += rows;
    }
    let placed = |stage, m| {
        let parts = plan.stage(stage, m).map(|s| &s.segments).into_iter().flatten();
        let parts = parts.map(|segment| (segment.device, segment.range.clone())).collect();
        Placement { parts, seconds: 0.0 }
    };
    let (first, then) = (placed(Stage::Prefill, options.prefill_rows), placed(Stage::Decode, 1));
    ttft_s += handover_seconds(graph, &plan.devices, &first, &then, options);
    let decode_s = plan.stage(Stage::Decode, 1).map_or(0.0, StagePlan::predicted_s);
    let tokens = options.prompt + options.answer;
    let kv_bytes = (to_f64(tokens) * kv_token_bytes(graph, options.kv)) as u64;
    Predicted {
        ttft_s,
        decode_tps: if decode_s > 0.0 { 1.0 / decode_s } else { 0.0 },
        weights_bytes: plan.predicted.weights_bytes,
        kv_bytes,
    }
}
