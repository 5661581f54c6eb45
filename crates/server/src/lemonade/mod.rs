//! Lemonade's own interface.

pub(crate) mod models;
pub(crate) mod params;
pub(crate) mod status;
pub(crate) mod tokens;
