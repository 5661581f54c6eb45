//! A sequence that its owner drives token by token: ONNX Runtime GenAI's generator.

use crate::driver::{Driver, SequenceId};
use crate::sample::{SamplingParams};
use crate::EngineError;
use std::sync::Arc;

/// How a session is to be made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SessionOptions {
    /// Longest sequence; `None`: the model's context.
    pub max_length: Option<usize>,
}

/// A sequence of tokens with its keys and values.
///
/// Appending computes; the logits of the last token are then pending until a token is sampled from
/// them. Sessions batch with each other and with requests; each belongs to one thread at a time.
#[derive(Debug)]
pub struct Session {
    id: SequenceId,
    driver: Arc<Driver>,
    tokens: Vec<u32>,
    logits: Option<Vec<f32>>,
}
// append(&mut self, tokens: &[u32]) -> Result<(), EngineError>      runs the prefill, logits pending
// score(&mut self, tokens: &[u32], each: &mut dyn FnMut(usize, &[f32])) -> Result<(), EngineError>
//                      as append; hears the logits behind every appended token: (position, logits)
// logits(&self) -> Option<&[f32]>                                     the pending ones
// set_logits(&mut self, &[f32]) -> Result<(), EngineError>
// sample(&mut self, &SamplingParams) -> Result<u32, EngineError>       from the pending logits
// generate_next(&mut self, &SamplingParams) -> Result<u32, EngineError>  computes them first if none
// rewind(&mut self, tokens: usize) -> Result<(), EngineError>
// tokens(&self) -> &[u32]
