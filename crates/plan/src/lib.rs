//! Which device runs which part of a model, decided from numbers.
//!
//! [`plan()`] is a pure function of a graph, of what is known about the devices ([`DeviceProfile`])
//! and of what was asked for ([`PlanOptions`]); the same input gives the same [`Plan`], with the
//! reason for every choice. Costs come from a roofline ([`cost`]): a node takes as long as its
//! arithmetic or its memory traffic, whichever is longer, plus a fixed overhead.
#![forbid(unsafe_code)]

mod arena;
pub mod cost;
mod explain;
mod kv;
mod options;
mod place;
mod plan;
mod profile;

pub use arena::Arena;
pub use kv::{KvPlan, PAGE_TOKENS};
pub use options::{DeviceChoice, KvType, PlanOptions};
pub use plan::{Plan, PlanError, Predicted, SegmentPlan, Stage, StagePlan, plan};
pub use profile::{DeviceProfile, Kind, Rates};
pub use tangor_model as model;
