//! When each device works: for pictures.

use serde::{Deserialize, Serialize};

/// A device at work.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Slot {
    /// Index in [`Plan::devices`](crate::Plan::devices).
    pub device: usize,
    /// Seconds from the beginning of the prompt or of the token.
    pub start_s: f64,
    /// Seconds until it is done.
    pub end_s: f64,
    /// What it does, as `512 rows`.
    pub label: String,
    /// Seconds that it took, where somebody measured.
    pub measured_s: Option<f64>,
}

/// The prompt of the prediction, and one token behind it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Timeline {
    /// Reading the prompt.
    pub prefill: Vec<Slot>,
    /// One token.
    pub decode: Vec<Slot>,
}
