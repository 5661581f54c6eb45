//! What a model expected after every token, kept for comparison with other programs.

use crate::EvalError;
use crate::logits::top;
use crate::reader::Reader;
use serde::Serialize;

/// A window of a text and the most likely token after each of its tokens.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Expected {
    /// What was read.
    pub tokens: Vec<u32>,
    /// The most likely next token after each of `tokens`; the lowest id of equals.
    pub top1: Vec<u32>,
}

/// A reader that keeps, window by window, what another one expects.
#[derive(Debug)]
pub struct Recorder<R> {
    reader: R,
    /// A window for each time that the reader started anew.
    pub windows: Vec<Expected>,
}

impl<R: Reader> Recorder<R> {
    /// Records what `reader` expects.
    pub fn new(reader: R) -> Self {
        Self { reader, windows: Vec::new() }
    }
}

impl<R: Reader> Reader for Recorder<R> {
    fn vocab(&self) -> usize {
        self.reader.vocab()
    }

    fn context(&self) -> usize {
        self.reader.context()
    }

    fn start(&mut self) -> Result<(), EvalError> {
        self.windows.push(Expected::default());
        self.reader.start()
    }

    fn read(&mut self, tokens: &[u32], logits: &mut Vec<f32>) -> Result<(), EvalError> {
        self.reader.read(tokens, logits)?;
        if self.windows.is_empty() {
            self.windows.push(Expected::default());
        }
        if let Some(window) = self.windows.last_mut() {
            window.tokens.extend(tokens);
            let rows = logits.chunks_exact(self.reader.vocab().max(1));
            let best = rows.filter_map(|row| top(row, 1).first().copied());
            window.top1.extend(best.filter_map(|index| u32::try_from(index).ok()));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reader::tests::Counter;

    #[test]
    fn keeps_what_was_expected_window_by_window() {
        let mut recorder = Recorder::new(Counter::new(10, 100, 1.0));
        let mut logits = Vec::new();
        recorder.start().unwrap();
        recorder.read(&[3, 4], &mut logits).unwrap();
        recorder.read(&[9], &mut logits).unwrap();
        recorder.start().unwrap();
        recorder.read(&[7], &mut logits).unwrap();
        let expected = |tokens: &[u32], top1: &[u32]| Expected {
            tokens: tokens.to_vec(),
            top1: top1.to_vec(),
        };
        assert_eq!(recorder.windows, [expected(&[3, 4, 9], &[4, 5, 0]), expected(&[7], &[8])]);
    }
}
