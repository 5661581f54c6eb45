//! From requests to tokens: sequences, paged KV, prefix sharing, scheduling and sampling.
//!
//! A [`Model`] is loaded from a checkpoint onto devices. [`Model::generate`] answers a prompt as a
//! stream of [`Event`]s; a [`Session`] is driven token by token. Both are sequences of the same
//! scheduler and run in the same batches. So are requests for a text's embedding
//! ([`Request::embed`]), in batches of their own: these stop in front of the output head.
//!
//! Inside, `step` is a pure state machine over all sequences (`sequence`), the page pool (`kv`) and
//! the scheduling policy (`schedule`), which may run proposed tokens (`propose`) where that pays
//! (`speculate`); `executor` runs its batches on devices as the plan says;
//! `driver` is the thread around them, which goes on with the devices that are left when one is
//! lost (`fallback`). Two devices may share a prompt (`together`).
//!
//! What a sequence computes depends on its tokens alone: not on what else runs, on how its prompt
//! is cut, on what is found in the cache, or on whether it was interrupted. Tests assert equal
//! bits.
#![forbid(unsafe_code)]

mod checkpoint_text;
mod constraint;
mod driver;
mod error;
mod executor;
mod fallback;
mod generation;
mod handover;
mod kv;
mod model;
mod pace;
mod pool;
mod profiles;
mod propose;
mod request;
mod sample;
mod schedule;
mod sequence;
mod session;
mod speculate;
mod step;
mod stop;
mod together;

pub use checkpoint_text::Text;
pub use constraint::Constraint;
pub use error::EngineError;
pub use generation::{Cancel, Generation};
pub use model::{LoadOptions, Memory, Model, OnLost, Progress, Speculate};
pub use pool::Pooling;
pub use profiles::profiles;
pub use request::{Completion, Event, Finish, Logprobs, Request, Summary, Timings, Token, Usage};
pub use sample::{MAX_LOGPROBS, SamplingParams};
pub use session::{Session, SessionOptions};
pub use tangor_device as device;
pub use tangor_plan as plan;
pub use tangor_text as text;
