//! How long kernels take, as the adapter's own clock says.

use std::collections::BTreeMap;

/// Seconds by operation.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Profile {
    /// By the operation's name as [`Op::name`](tangor_device::model::Op::name) has it, and `round`
    /// and `rotate` for what the device adds.
    pub operations: BTreeMap<&'static str, Spent>,
    /// Runs that were timed.
    pub runs: usize,
}

/// What an operation took.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Spent {
    /// Seconds in all.
    pub seconds: f64,
    /// Dispatches.
    pub count: usize,
}
