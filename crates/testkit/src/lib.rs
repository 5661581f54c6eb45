//! What tests of several crates share: tiny models with known answers, and what to ask of
//! every device that runs them; and devices that fail.
#![forbid(unsafe_code)]

pub mod drive;
pub mod faulty;
pub mod page;
pub mod tiny;
