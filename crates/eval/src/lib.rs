//! Measurements of models: how well they expect a text ([`perplexity()`]), how far a fast
//! configuration strays from an exact one ([`divergence()`]), and how fast they ([`bench()`]) and
//! single operations ([`kernels()`]) are; and what a planner has to know of a device
//! ([`calibrate()`]). [`load()`] asks a server as many clients at once do.
//!
//! [`Contender`]s are programs that take turns; a [`Chart`] draws them, [`Lanes`] draw devices at
//! work.
//!
//! Nothing here prints: reports are plain data, and whoever asks may watch the progress and end it.
#![forbid(unsafe_code)]

mod bench;
mod calibrate;
mod chart;
mod compare;
mod divergence;
mod error;
mod kernels;
mod limits;
mod load;
pub mod logits;
mod perplexity;
mod reader;
mod record;
mod text;

pub use bench::{BenchReport, BenchRun, BenchSpec, bench};
pub use calibrate::calibrate;
pub use chart::{Chart, LaneBar, LanePanel, Lanes, Panel};
pub use compare::{Contender, Metric, Spread, Turn};
pub use divergence::{Divergence, divergence};
pub use error::EvalError;
pub use kernels::{FEW_ROWS, KernelSpec, KernelTime, kernels};
pub use limits::{MachineLimits, OfLimit, Work, of_limit};
pub use load::{LoadReport, LoadSpec, Quantiles, load};
pub use perplexity::{Perplexity, Windows, perplexity};
pub use reader::{CHUNK_TOKENS, ModelReader, Reader, Watch};
pub use record::{Expected, Recorder};
pub use tangor_engine as engine;
pub use text::ENGLISH;
