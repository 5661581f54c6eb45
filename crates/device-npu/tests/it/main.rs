//! The device against the oracle, on providers that run on any machine. Their libraries are fetched
//! for Linux.
#![cfg(target_os = "linux")]
#![allow(clippy::expect_used, reason = "tests stop at what is unexpected")]
#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod conformance;
mod discovery;
mod fake;
mod kept;
mod refusal;
mod support;
mod tiny;
mod webgpu;
