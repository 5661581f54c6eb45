//! The receiving end of a request.

use crate::driver::Driver;
use crate::sequence::SequenceId;
use crate::{Completion, EngineError, Event};
use std::fmt;
use std::sync::Arc;
use std::sync::mpsc::Receiver;

/// Where the events of a request go. It is called on the model's thread and must not block.
pub(crate) type Sink = Box<dyn FnMut(Result<Event, EngineError>) + Send>;

/// A request that is being answered.
///
/// The iterator blocks until the next [`Event`]; it ends after [`Event::Done`] or an error. A slow
/// reader delays nobody: at most `max_tokens` events wait for it. Dropping it cancels the request,
/// and its KV pages are free at the next step.
pub struct Generation {
    pub(crate) handle: Cancel,
    pub(crate) events: Receiver<Result<Event, EngineError>>,
}

/// Cancels a request, from any thread.
#[derive(Clone)]
pub struct Cancel {
    pub(crate) id: SequenceId,
    pub(crate) driver: Arc<Driver>,
}

impl Cancel {
    /// Ends the request; it answers with [`Finish::Cancelled`](crate::Finish::Cancelled) unless it
    /// has ended already.
    pub fn cancel(&self) {
        self.driver.cancel(self.id);
    }
}

impl Generation {
    /// Ends the request; the events that it still has end with
    /// [`Finish::Cancelled`](crate::Finish::Cancelled) unless it has ended already.
    pub fn cancel(&self) {
        self.handle.cancel();
    }

    /// A handle that can cancel the request while this one is read.
    #[must_use]
    pub fn canceller(&self) -> Cancel {
        self.handle.clone()
    }

    /// Waits for the end and collects the answer.
    ///
    /// # Errors
    /// The error that ended the request.
    pub fn wait(self) -> Result<Completion, EngineError> {
        let (mut tokens, mut text) = (Vec::new(), String::new());
        let (mut logprobs, mut prompt_logprobs) = (Vec::new(), Vec::new());
        let mut embedding = Vec::new();
        for event in self.events.iter() {
            match event? {
                Event::Prefill { .. } | Event::Replanned { .. } => {}
                Event::Scored(scored) => prompt_logprobs.extend(scored),
                Event::Embedding(vector) => embedding = vector,
                Event::Token(token) => {
                    tokens.push(token.id);
                    text.push_str(&token.text);
                    logprobs.extend(token.logprobs);
                }
                Event::Done(end) => {
                    text.push_str(&end.text);
                    let (finish, usage, timings, seed) =
                        (end.finish, end.usage, end.timings, end.seed);
                    return Ok(Completion {
                        tokens,
                        text,
                        logprobs,
                        prompt_logprobs,
                        embedding,
                        finish,
                        usage,
                        timings,
                        seed,
                    });
                }
            }
        }
        Err(EngineError::Lost("its thread ended".into()))
    }
}

impl Iterator for Generation {
    type Item = Result<Event, EngineError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.events.recv().ok()
    }
}

impl Drop for Generation {
    fn drop(&mut self) {
        self.handle.cancel();
    }
}

impl fmt::Debug for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Generation").field("id", &self.handle.id).finish_non_exhaustive()
    }
}

impl fmt::Debug for Cancel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cancel").field("id", &self.id).finish_non_exhaustive()
    }
}
