//! Answers while they are written: the engine's events, read into text, thinking and calls, which
//! every dialect then words in its own way.

use crate::error::{ApiError, Kind, Result};
use crate::log::Entry;
use crate::metrics::Metrics;
use crate::prepare::Prepared;
use crate::residents::{Lease, Resident};
use std::collections::VecDeque;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::Arc;
use std::time::Duration;
use tangor_engine::text::{Reasoning, ToolDelta, ToolParser};
use tangor_engine::{Cancel, EngineError, Event, Finish, Logprobs, Timings, Usage};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

/// The answers to one request. Dropping them cancels what still runs.
pub(crate) struct Answers {
    lease: Lease,
    metrics: Arc<Metrics>,
    entry: Entry,
    events: mpsc::UnboundedReceiver<(usize, Result<Event, EngineError>)>,
    running: Vec<Running>,
    readers: Vec<Reader>,
    ready: VecDeque<Happening>,
    /// Answers that have not ended.
    open: usize,
    deadline: Instant,
    abort: watch::Receiver<bool>,
    prompts: Vec<Vec<u32>>,
}

/// When answers end at the latest.
pub(crate) struct Until {
    pub(crate) within: Duration,
    /// Becomes true when the server ends.
    pub(crate) abort: watch::Receiver<bool>,
}

/// Cancels a request of the engine when it is dropped.
pub(crate) struct Running(pub(crate) Cancel);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

/// One thing that happened to an answer.
#[derive(Clone, Debug)]
pub(crate) enum Happening {
    /// Log-probabilities of the prompt's tokens, from the second one on.
    Scored { choice: usize, logprobs: Vec<Logprobs> },
    /// More of an answer, and the log-probabilities of the tokens that it is made of.
    Delta { choice: usize, delta: Delta, logprobs: Vec<TokenLogprobs> },
    /// An answer is complete.
    End { choice: usize, end: End },
}

/// More of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Delta {
    Text(String),
    /// What the model thinks before it answers.
    Reasoning(String),
    /// A call of a tool begins.
    Call {
        index: usize,
        id: String,
        name: String,
    },
    /// More of a call's arguments.
    Arguments {
        index: usize,
        text: String,
    },
}

/// A token of the answer and its log-probabilities.
#[derive(Clone, Debug)]
pub(crate) struct TokenLogprobs {
    pub(crate) id: u32,
    pub(crate) logprobs: Logprobs,
}

/// Why an answer ended, and what it took.
#[derive(Clone, Debug)]
pub(crate) struct End {
    pub(crate) reason: Reason,
    pub(crate) usage: Usage,
    /// Of the answer's tokens, those that the model thought with.
    pub(crate) thought: usize,
    pub(crate) timings: Timings,
}

impl End {
    /// Whether the answer has as many tokens as it may have, and would have gone on.
    pub(crate) fn is_cut(&self) -> bool {
        self.reason == Reason::Length
    }
}

/// Why an answer ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Reason {
    /// The model was done.
    Stop,
    /// It reached this stop string.
    StopText(String),
    /// It has as many tokens as it may have.
    Length,
    /// It calls tools.
    ToolCalls,
}

/// Everything that one answer said.
#[derive(Clone, Debug)]
pub(crate) struct Choice {
    pub(crate) text: String,
    pub(crate) reasoning: String,
    pub(crate) calls: Vec<Call>,
    pub(crate) logprobs: Vec<TokenLogprobs>,
    pub(crate) scored: Vec<Logprobs>,
    pub(crate) end: End,
}

/// A call of a tool.
#[derive(Clone, Debug, Default)]
pub(crate) struct Call {
    pub(crate) id: String,
    pub(crate) name: String,
    /// JSON.
    pub(crate) arguments: String,
}

/// Turns the text of one answer into its parts.
struct Reader {
    reasoning: Option<Reasoning>,
    tools: Option<ToolParser>,
    /// Whether the answer ends with its first call.
    one_call: bool,
    /// Tokens that came before the answer did.
    thought: usize,
    /// Of tokens whose text has not come yet.
    held: Vec<TokenLogprobs>,
}

impl Answers {
    /// Has the engine begin.
    ///
    /// # Errors
    /// If it takes no more requests, or refuses one.
    pub(crate) fn start(
        lease: Lease,
        prepared: Prepared,
        metrics: Arc<Metrics>,
        until: Until,
    ) -> Result<Self> {
        let (sender, events) = mpsc::unbounded_channel();
        let reader = || Reader {
            reasoning: prepared.reasoning.clone(),
            tools: prepared.tool_parser(),
            one_call: prepared.one_call,
            thought: 0,
            held: Vec::new(),
        };
        let readers: Vec<Reader> = prepared.requests.iter().map(|_| reader()).collect();
        let entry = Entry::current();
        entry.begins(&lease.resident().id, prepared.prompts.iter().map(Vec::len).sum());
        if entry.has_texts() {
            let tokenizer = lease.resident().tokenizer()?;
            let texts = prepared.prompts.iter().map(|prompt| tokenizer.decode(prompt, false));
            entry.prompts(texts.collect(), readers.len());
        }
        let model = lease.resident().model();
        let running = prepared.requests.into_iter().enumerate().map(|(choice, request)| {
            let sender = sender.clone();
            // As many events as the answer may have tokens wait here, and no more.
            let sink = move |event| {
                // A reader that is gone has cancelled already.
                let _ = sender.send((choice, event));
            };
            model.generate_with(request, sink).map(Running)
        });
        let running: Vec<Running> = running.collect::<Result<_, EngineError>>()?;
        Ok(Self {
            open: running.len(),
            running,
            readers,
            lease,
            metrics,
            entry,
            events,
            ready: VecDeque::new(),
            deadline: Instant::now() + until.within,
            abort: until.abort,
            prompts: prepared.prompts,
        })
    }

    /// The model that answers.
    pub(crate) fn resident(&self) -> &Arc<Resident> {
        self.lease.resident()
    }

    /// Tokens of every prompt.
    pub(crate) fn prompts(&self) -> &[Vec<u32>] {
        &self.prompts
    }

    /// Answers in all.
    pub(crate) fn choices(&self) -> usize {
        self.readers.len()
    }

    /// Waits for the next thing to happen; `None` when every answer is complete.
    ///
    /// # Errors
    /// What ended an answer early.
    pub(crate) async fn next(&mut self) -> Result<Option<Happening>> {
        loop {
            if let Some(happening) = self.ready.pop_front() {
                return Ok(Some(happening));
            }
            if self.open == 0 {
                return Ok(None);
            }
            let event = tokio::select! {
                biased;
                event = self.events.recv() => event,
                () = tokio::time::sleep_until(self.deadline) => {
                    self.running.clear();
                    self.entry.fails();
                    let message = "the answer took too long: ask for fewer tokens (max_tokens)";
                    return Err(ApiError::new(Kind::Timeout, message));
                }
                _ = self.abort.wait_for(|abort| *abort) => {
                    self.running.clear();
                    self.entry.fails();
                    return Err(ApiError::new(Kind::Unavailable, "the server is stopping"));
                }
            };
            let lost = || EngineError::Lost("its thread ended".into());
            let (choice, event) = event.ok_or_else(lost)?;
            let read = event.map_err(ApiError::from).and_then(|event| self.read(choice, event));
            read.inspect_err(|_| self.entry.fails())?;
        }
    }

    /// Waits for all of it.
    ///
    /// # Errors
    /// As [`Answers::next`].
    pub(crate) async fn collect(&mut self) -> Result<Vec<Choice>> {
        let mut all: Vec<Collecting> = (0..self.choices()).map(|_| Collecting::default()).collect();
        while let Some(happening) = self.next().await? {
            match happening {
                Happening::Scored { choice, logprobs } => all[choice].scored.extend(logprobs),
                Happening::Delta { choice, delta, logprobs } => {
                    all[choice].take(delta);
                    all[choice].logprobs.extend(logprobs);
                }
                Happening::End { choice, end } => all[choice].end = Some(end),
            }
        }
        let unfinished = || ApiError::new(Kind::Internal, "an answer has no end: this is a defect");
        all.into_iter().map(|one| one.finish().ok_or_else(unfinished)).collect()
    }

    /// Answers to every prompt.
    fn per_prompt(&self) -> usize {
        (self.readers.len() / self.prompts.len().max(1)).max(1)
    }

    fn read(&mut self, choice: usize, event: Event) -> Result<()> {
        let reader = &mut self.readers[choice];
        match event {
            // What was on its way when the answer was ended.
            Event::Token(_) if reader.is_over() => {}
            Event::Prefill { .. } | Event::Replanned { .. } | Event::Embedding(_) => {}
            Event::Scored(logprobs) => self.ready.push_back(Happening::Scored { choice, logprobs }),
            Event::Token(token) => {
                self.entry.token(choice, &token.text);
                let id = token.id;
                let logprobs = token.logprobs.map(|logprobs| TokenLogprobs { id, logprobs });
                reader.held.extend(logprobs);
                let deltas = reader.push(&token.text);
                reader.thought += usize::from(reader.thinks());
                if reader.is_over() {
                    self.running[choice].0.cancel();
                }
                self.push(choice, deltas);
            }
            Event::Done(summary) => {
                let mut deltas = reader.push(&summary.text);
                deltas.extend(reader.finish());
                let called = reader.tools.as_ref().is_some_and(|tools| tools.calls() > 0);
                let reason = match summary.finish {
                    _ if reader.is_over() => Reason::ToolCalls,
                    Finish::Cancelled => {
                        let message = "the answer was cancelled: the server is stopping";
                        return Err(ApiError::new(Kind::Unavailable, message));
                    }
                    Finish::Length => Reason::Length,
                    _ if called => Reason::ToolCalls,
                    Finish::StopText(text) => Reason::StopText(text),
                    Finish::EndOfText(_) => Reason::Stop,
                };
                let thought = reader.thought;
                if deltas.is_empty() && !reader.held.is_empty() {
                    deltas.push(Delta::Text(String::new()));
                }
                self.push(choice, deltas);
                let (usage, timings) = (summary.usage, summary.timings);
                // Choices share their prompt, which counts once.
                let first = choice.is_multiple_of(self.per_prompt());
                let cached = if first { usage.cached } else { 0 };
                self.entry.ends(choice, &summary.text, &reason, cached);
                self.metrics.answered(&self.lease.resident().id, &usage, &timings);
                let end = End { reason, usage, thought, timings };
                self.ready.push_back(Happening::End { choice, end });
                self.open -= 1;
            }
        }
        Ok(())
    }

    fn push(&mut self, choice: usize, deltas: Vec<Delta>) {
        for delta in deltas {
            let logprobs = std::mem::take(&mut self.readers[choice].held);
            self.ready.push_back(Happening::Delta { choice, delta, logprobs });
        }
    }
}

impl Reader {
    /// Whether the answer proper is still to come.
    fn thinks(&self) -> bool {
        self.reasoning.as_ref().is_some_and(Reasoning::is_open)
    }

    /// Whether a second call began where there may be but one.
    fn is_over(&self) -> bool {
        self.one_call && self.tools.as_ref().is_some_and(|tools| tools.calls() > 1)
    }

    fn push(&mut self, text: &str) -> Vec<Delta> {
        if text.is_empty() || self.is_over() {
            return Vec::new();
        }
        let Some(reasoning) = &mut self.reasoning else { return self.answer(text) };
        let thought = reasoning.push(text);
        self.thought(thought)
    }

    fn finish(&mut self) -> Vec<Delta> {
        let thought = self.reasoning.as_mut().map(Reasoning::finish);
        let mut deltas = thought.map(|thought| self.thought(thought)).unwrap_or_default();
        let rest = self.tools.as_mut().map(ToolParser::finish);
        deltas.extend(self.allowed(rest.unwrap_or_default()));
        deltas
    }

    fn thought(&mut self, thought: tangor_engine::text::Thought) -> Vec<Delta> {
        let mut deltas = Vec::new();
        if !thought.reasoning.is_empty() {
            deltas.push(Delta::Reasoning(thought.reasoning));
        }
        if !thought.answer.is_empty() {
            deltas.extend(self.answer(&thought.answer));
        }
        deltas
    }

    fn answer(&mut self, text: &str) -> Vec<Delta> {
        match &mut self.tools {
            None => vec![Delta::Text(text.to_owned())],
            Some(tools) => {
                let deltas = tools.push(text);
                self.allowed(deltas)
            }
        }
    }

    /// What the answer may say: with one call, nothing from the second on.
    fn allowed(&self, deltas: Vec<ToolDelta>) -> Vec<Delta> {
        let second = |delta: &ToolDelta| {
            use ToolDelta::{Arguments, Call};
            matches!(delta, Call { index, .. } | Arguments { index, .. } if *index > 0)
        };
        let ends = |delta: &ToolDelta| self.one_call && second(delta);
        deltas.into_iter().take_while(|delta| !ends(delta)).map(delta).collect()
    }
}

fn delta(delta: ToolDelta) -> Delta {
    match delta {
        ToolDelta::Text(text) => Delta::Text(text),
        ToolDelta::Call { index, name } => Delta::Call { index, id: new_id("call_"), name },
        ToolDelta::Arguments { index, text } => Delta::Arguments { index, text },
    }
}

/// An answer that is being collected.
#[derive(Default)]
struct Collecting {
    text: String,
    reasoning: String,
    calls: Vec<Call>,
    logprobs: Vec<TokenLogprobs>,
    scored: Vec<Logprobs>,
    end: Option<End>,
}

impl Collecting {
    fn take(&mut self, delta: Delta) {
        match delta {
            Delta::Text(text) => self.text.push_str(&text),
            Delta::Reasoning(text) => self.reasoning.push_str(&text),
            Delta::Call { id, name, .. } => {
                self.calls.push(Call { id, name, arguments: String::new() });
            }
            Delta::Arguments { text, .. } => {
                if let Some(call) = self.calls.last_mut() {
                    call.arguments.push_str(&text);
                }
            }
        }
    }

    fn finish(self) -> Option<Choice> {
        let Self { text, reasoning, calls, logprobs, scored, end } = self;
        end.map(|end| Choice { text, reasoning, calls, logprobs, scored, end })
    }
}

/// An id that no other answer has.
pub(crate) fn new_id(prefix: &str) -> String {
    // Every `RandomState` has new keys, which come from the operating system.
    let random = || RandomState::new().build_hasher().finish();
    format!("{prefix}{:016x}{:08x}", random(), random() >> 32)
}
