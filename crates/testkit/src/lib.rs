//! What tests of several crates share: tiny models with known answers.
#![forbid(unsafe_code)]

pub mod tiny;
