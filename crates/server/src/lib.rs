//! The server: existing applications point at it and work, in whatever interface they speak.
//!
//! A request goes one way: the *door* ([`guard`]) lets it in, its *dialect* (`openai`, `anthropic`,
//! `ollama`, `lemonade`) turns it into an [`ask`], which is [`prepare`]d for a model that is among
//! the [`residents`]; the engine's events become [`answers`], which the dialect words again, at
//! once or as a stream ([`reply`]). No dialect knows another, and nothing but a dialect knows its
//! words.
//!
//! The route table ([`routes`]) has a row for every endpoint; keys, counters and the OpenAPI
//! document are derived from it. [`Limits`] has a row for every bound.
//!
//! The server knows no devices: whoever starts it brings a [`Loader`].
#![forbid(unsafe_code)]

mod answers;
mod anthropic;
mod app;
mod ask;
mod blocks;
mod body;
mod card;
mod catalog;
mod client;
mod dialect;
mod embed;
mod error;
mod guard;
mod lemonade;
mod limits;
mod listen;
mod loader;
mod log;
mod metrics;
mod ollama;
mod openai;
mod openapi;
mod options;
mod page;
mod prepare;
mod pulling;
mod reply;
mod residents;
mod route;
mod routes;
mod shape;
mod slots;
mod thinking;

pub use limits::Limits;
pub use listen::{Server, Stopper};
pub use loader::{LoadAsk, LoadError, Loaded, Loader};
pub use log::{Log, LogForm};
pub use options::{Key, Options};

use std::net::{IpAddr, SocketAddr};

/// Why there is no server.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServeError {
    /// Other machines could reach it, and nothing would keep them out.
    #[error("{0} can be reached by other machines: that needs an API key")]
    Exposed(IpAddr),
    /// The system does not give the address.
    #[error("cannot listen on {address}: {why}")]
    Address {
        /// What was asked for.
        address: SocketAddr,
        /// What the system said.
        why: String,
    },
    /// A model that was named cannot be loaded.
    #[error("{model} cannot be loaded: {why}")]
    Model {
        /// Its name.
        model: String,
        /// Why not.
        why: String,
    },
    /// The system gives no threads.
    #[error("cannot start: {0}")]
    System(String),
}

/// The OpenAPI document of every route.
#[must_use]
pub fn openapi() -> serde_json::Value {
    openapi::describe(false)
}
