//! What the vendor has measured on the machine of the seed document, and what comes out here.

use super::{Machine, PREFILL_ROWS, Step, seed_graph, simulate};
use crate::{PlanError, PlanOptions};
use serde::Serialize;
use tangor_model::ImportError;

/// A row of the seed document's table "OGA API DeepSeek Supported LLMs": hybrid, int4, prompts of
/// 1024 tokens.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Published {
    /// The shape.
    pub shape: &'static str,
    /// Seconds to the first token.
    pub ttft_s: f64,
    /// Tokens per second behind it.
    pub decode_tps: f64,
}

/// The table.
pub const PUBLISHED: [Published; 3] = [
    Published { shape: "deepseek-r1-distill-qwen-1.5b", ttft_s: 0.68, decode_tps: 60.0 },
    Published { shape: "deepseek-r1-distill-qwen-7b", ttft_s: 2.64, decode_tps: 20.1 },
    Published { shape: "deepseek-r1-distill-llama-8b", ttft_s: 2.68, decode_tps: 19.2 },
];

/// A published row beside the simulated one.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Residual {
    /// What was measured.
    pub published: Published,
    /// What comes out.
    pub ttft_s: f64,
    /// What comes out.
    pub decode_tps: f64,
}

impl Residual {
    /// How far off the time to the first token is: 0.01 is one percent too long.
    #[must_use]
    pub fn ttft_error(&self) -> f64 {
        self.ttft_s / self.published.ttft_s - 1.0
    }

    /// How far off the tokens per second are.
    #[must_use]
    pub fn decode_error(&self) -> f64 {
        self.decode_tps / self.published.decode_tps - 1.0
    }
}

/// The seed's own setting: 1024 tokens of prompt, 64 of answer.
#[must_use]
pub fn options() -> PlanOptions {
    PlanOptions {
        prompt: 1024,
        answer: 64,
        max_sequences: 1,
        context: Some(4096),
        prefill_rows: PREFILL_ROWS,
        ..PlanOptions::default()
    }
}

/// The published table beside what the vendor's rule comes to on a machine.
///
/// # Errors
/// As [`simulate`].
pub fn residuals(machine: &Machine) -> Result<Vec<Residual>, SimulateError> {
    let of = |published: Published| {
        let graph = seed_graph(published.shape)?;
        let predicted = simulate(&graph, machine, Step::Vendor, &options())?.predicted;
        let (ttft_s, decode_tps) = (predicted.ttft_s, predicted.decode_tps);
        Ok(Residual { published, ttft_s, decode_tps })
    };
    PUBLISHED.into_iter().map(of).collect()
}

/// No table can be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SimulateError {
    /// There is no such shape.
    #[error(transparent)]
    Shape(#[from] ImportError),
    /// There is no such plan.
    #[error(transparent)]
    Plan(#[from] PlanError),
}
