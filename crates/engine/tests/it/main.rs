//! Tests of whole models: tiny ones on the oracle and on the CPU.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test stops where it fails")]

mod faults;
mod laws;
mod requests;
mod sessions;
mod support;
