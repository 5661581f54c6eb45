//! The plan and how it is made.

use crate::arena::Arena;
use crate::place::{Placement, candidates};
use crate::{DeviceProfile, KvType, PlanOptions, cost, place};
use serde::{Deserialize, Serialize};
use std::ops::Range;
use tangor_model::Graph;
use tangor_model::ir::Rows;

/// Tokens per page of the KV cache: the unit of sharing, and of the order in which attention
/// reduces. Larger pages waste more per sequence, smaller ones cost more bookkeeping per step.
pub const PAGE_TOKENS: usize = 32;

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

/// The pool of KV pages.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KvPlan {
    /// Element type.
    pub dtype: KvType,
    /// Tokens per page.
    pub page_tokens: usize,
    /// Bytes per page, all layers.
    pub page_bytes: u64,
    /// Pages.
    pub pages: usize,
    /// Bytes of the pool.
    pub bytes: u64,
    /// Longest sequence: never more than the pool holds.
    pub context: usize,
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
