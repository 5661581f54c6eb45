//! The server as clients see it, with a tiny model of random weights on the oracle.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test ends where it fails")]

mod answers;
mod child;
mod document;
mod door;
mod embeddings;
#[cfg(feature = "schemathesis")]
mod generated;
mod lifecycle;
mod log;
mod matrix;
mod models;
mod page;
mod robust;
mod support;
