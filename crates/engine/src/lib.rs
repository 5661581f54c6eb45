//! From requests to tokens: sequences, paged KV, prefix sharing, scheduling and sampling.
#![forbid(unsafe_code)]

mod error;
mod kv;
mod request;
mod sample;
mod stop;

pub use error::EngineError;
pub use request::{Completion, Event, Finish, Logprobs, Request, Summary, Timings, Token, Usage};
pub use sample::{MAX_LOGPROBS, SamplingParams};
