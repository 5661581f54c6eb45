//! Configurations, shapes, passes and the text form.
#![allow(clippy::expect_used, clippy::unwrap_used, reason = "tests stop at what is unexpected")]

mod config;
mod gguf;
mod hf;
mod oga;
mod passes;
mod print;
mod shapes;
