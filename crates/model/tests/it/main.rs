//! Configurations, shapes, passes and the text form.

mod config;
mod gguf;
mod print;
mod shapes;
