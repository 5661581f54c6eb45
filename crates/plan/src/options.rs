//! What a plan is asked for.

use crate::Kind;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// Which devices may take part.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DeviceChoice {
    /// Whatever is fastest.
    #[default]
    Auto,
    /// At least two kinds of processors must be there; the fastest split of the work.
    Hybrid,
    /// The neural processor alone.
    Npu,
    /// The graphics processor alone.
    Gpu,
    /// The central processor alone.
    Cpu,
}

impl DeviceChoice {
    /// The kind that it is restricted to.
    #[must_use]
    pub fn kind(self) -> Option<Kind> {
        match self {
            Self::Auto | Self::Hybrid => None,
            Self::Npu => Some(Kind::Npu),
            Self::Gpu => Some(Kind::Gpu),
            Self::Cpu => Some(Kind::Cpu),
        }
    }
}

impl FromStr for DeviceChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "hybrid" => Ok(Self::Hybrid),
            "npu" => Ok(Self::Npu),
            "gpu" => Ok(Self::Gpu),
            "cpu" => Ok(Self::Cpu),
            _ => Err(format!("{text:?} is not one of auto, hybrid, npu, gpu, cpu")),
        }
    }
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Hybrid => "hybrid",
            Self::Npu => "npu",
            Self::Gpu => "gpu",
            Self::Cpu => "cpu",
        })
    }
}

/// Element type of the KV cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KvType {
    /// 4 bytes.
    F32,
    /// 2 bytes, an IEEE half.
    F16,
    /// 2 bytes, the upper half of an `f32`.
    #[default]
    Bf16,
    /// 1 byte, and 2 for every 16 elements of a key and every 32 of a value.
    Int8,
}

/// Who decides what runs where.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Policy {
    /// The cost model.
    #[default]
    Ours,
    /// The fixed rule of AMD's hybrid flow: batches of more than one row on the NPU, single rows on
    /// the GPU. For comparisons: see [`simulate`](crate::simulate).
    Vendor,
}

/// What the plan is for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PlanOptions {
    /// Which devices may take part.
    pub device: DeviceChoice,
    /// Restricts prefill further: a device's name, or a kind.
    pub prefill_device: Option<String>,
    /// Restricts decode further: a device's name, or a kind.
    pub decode_device: Option<String>,
    /// Who decides.
    pub policy: Policy,
    /// Whether two devices may read one prompt at the same time.
    pub cooperative: bool,
    /// Most rows of one prefill batch, up to 65,535.
    pub prefill_rows: usize,
    /// Sequences that may run at once, up to 65,535.
    pub max_sequences: usize,
    /// Longest sequence, prompt and answer; `None`: the model's own context, or as much of it as
    /// fits.
    pub context: Option<usize>,
    /// Element type of the KV cache.
    pub kv: KvType,
    /// Bytes that the KV cache may take; `None`: see [`plan`](crate::plan()).
    pub kv_bytes: Option<u64>,
    /// Bytes that weights and KV may take together on a device, if less than the device has.
    pub memory_limit: Option<u64>,
    /// Prompt that the prediction is for.
    pub prompt: usize,
    /// Answer that the prediction is for.
    pub answer: usize,
}

/// Rows of a batch for which the logits of every row are wanted: bounds the memory of logits.
const LOGIT_ROWS: usize = 64;

impl PlanOptions {
    /// Most rows of any batch.
    pub(crate) fn max_rows(&self) -> usize {
        self.prefill_rows.max(self.max_sequences)
    }

    /// Most rows of a batch that go on to the logits.
    pub(crate) fn logit_rows(&self) -> usize {
        LOGIT_ROWS.min(self.max_rows()).max(self.max_sequences)
    }
}

impl Default for PlanOptions {
    fn default() -> Self {
        Self {
            device: DeviceChoice::Auto,
            prefill_device: None,
            decode_device: None,
            policy: Policy::Ours,
            cooperative: true,
            prefill_rows: 512,
            max_sequences: 16,
            context: None,
            kv: KvType::Bf16,
            kv_bytes: None,
            memory_limit: None,
            prompt: 1024,
            answer: 64,
        }
    }
}
