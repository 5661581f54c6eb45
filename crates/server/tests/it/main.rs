//! The server as clients see it, with a tiny model of random weights on the oracle.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test ends where it fails")]

mod answers;
mod door;
mod embeddings;
mod lifecycle;
mod models;
mod support;
