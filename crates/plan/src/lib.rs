//! Which device runs which part of a model, decided from numbers.
//!
//! [`plan()`] is a pure function of a graph, of what is known about the devices ([`DeviceProfile`])
//! and of what was asked for ([`PlanOptions`]); the same input gives the same [`Plan`], with the
//! reason for every choice. Costs come from a roofline ([`cost`]): a node takes as long as its
//! arithmetic or its memory traffic, whichever is longer, plus a fixed overhead.
#![forbid(unsafe_code)]

mod arena;
mod case;
mod choose;
mod cooperate;
pub mod cost;
mod explain;
mod handover;
mod kv;
mod memory;
mod options;
mod place;
mod plan;
mod predict;
mod profile;
pub mod simulate;
mod timeline;
mod vendor;

pub use arena::Arena;
pub use case::pieces;
pub use cooperate::Cooperative;
pub use kv::{KvPlan, PAGE_TOKENS};
pub use memory::{MemoryUse, scratch_bytes};
pub use options::{DeviceChoice, KvType, PlanOptions, Policy};
pub use plan::{
    Considered, Plan, PlanError, Predicted, SegmentPlan, Stage, StagePlan, plan, replan,
};
pub use profile::{DeviceProfile, Kind, MemoryKind, PackedWeights, Rates};
pub use tangor_model as model;
pub use timeline::{Slot, Timeline};
