//! What tests of several crates share: tiny models with known answers, and what to ask of
//! every device that runs them; weights in every form; devices that fail, and a cache that counts.
#![forbid(unsafe_code)]

pub mod drive;
pub mod faulty;
pub mod forms;
pub mod kept;
pub mod page;
pub mod tiny;
