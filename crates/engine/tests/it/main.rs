//! Tests of whole models: tiny ones on the oracle and on the CPU.

mod faults;
mod laws;
mod requests;
mod sessions;
mod support;
