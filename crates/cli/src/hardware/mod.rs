//! What hardware, drivers and providers there are, and what is missing.
//!
//! [`facts`] looks at the system, [`chip`] knows the supported processors by their names, and
//! [`advise`] draws the conclusions: a pure function, so that every system can be tested anywhere.

mod advise;
mod chip;
mod facts;

pub(crate) use advise::{Finding, State, advise};
pub(crate) use chip::Chip;
pub(crate) use facts::facts;
