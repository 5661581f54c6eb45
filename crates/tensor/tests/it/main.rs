//! The crate's promises, seen from outside.
#![allow(clippy::unwrap_used)]

mod quant;
mod weight;
