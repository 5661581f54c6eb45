//! One sequence: its tokens, its pages, and what it is to become.

use crate::constraint::Constraint;
use crate::kv::{NodeId, Pages};
use crate::pool::{Pool, Pooling};
use crate::sample::SamplingParams;
use crate::speculate::Speculation;
use crate::stop::StopMatcher;
use crate::{Finish, Logprobs, Usage};
use std::sync::Arc;
use tangor_device::PageId;
use tangor_plan::model::rope::Variant;

/// Names a sequence as long as the model lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct SequenceId(pub(crate) u64);

/// Turns generated tokens into text.
pub(crate) trait Decode: Send {
    /// Text that is certain after one more token.
    fn push(&mut self, token: u32) -> String;
    /// Text that was held back: nothing follows.
    fn finish(&mut self) -> String;
}

/// What a request wants, and how far it got.
pub(crate) struct Job {
    pub(crate) sampling: SamplingParams,
    pub(crate) seed: u64,
    pub(crate) max_tokens: usize,
    pub(crate) logprobs: Option<usize>,
    /// Whether logits behind tokens of the prompt are wanted.
    pub(crate) score_prompt: bool,
    /// Whose it is.
    pub(crate) client: u64,
    /// What becomes the prompt's embedding, if that is what is wanted.
    pub(crate) pool: Option<Pool>,
    pub(crate) constraint: Option<Box<dyn Constraint>>,
    /// Tokens that end the answer.
    pub(crate) eos: Arc<[u32]>,
    pub(crate) stop: StopMatcher,
    pub(crate) decode: Option<Box<dyn Decode>>,
    pub(crate) usage: Usage,
    pub(crate) speculation: Speculation,
}

impl std::fmt::Debug for Job {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Job").field("usage", &self.usage).finish_non_exhaustive()
    }
}

impl Job {
    /// Whether tokens are to follow the prompt.
    pub(crate) fn generates(&self) -> bool {
        self.pool.is_none() && self.max_tokens > 0
    }

    /// Takes a generated token; returns its text and the end that it brings about.
    pub(crate) fn push(&mut self, token: u32) -> (String, Option<Finish>) {
        self.usage.completion += 1;
        let text = self.decode.as_mut().map(|decode| decode.push(token)).unwrap_or_default();
        let (text, stop) = self.stop.push(&text);
        let full = self.usage.completion >= self.max_tokens;
        let finish = stop.map(Finish::StopText).or_else(|| full.then_some(Finish::Length));
        (text, finish)
    }

    /// The text that was held back, and the end: a stop string that this text completes comes
    /// before `finish`.
    pub(crate) fn end(&mut self, finish: Finish) -> (String, Finish) {
        if matches!(finish, Finish::StopText(_)) {
            return (String::new(), finish);
        }
        let text = self.decode.as_mut().map(|decode| decode.finish()).unwrap_or_default();
        let (mut text, stop) = self.stop.push(&text);
        text.push_str(&self.stop.finish());
        (text, stop.map_or(finish, Finish::StopText))
    }
}

/// Where a sequence is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// A session between two calls.
    Idle,
    /// Has something to compute and no place yet.
    Waiting,
    /// Takes part in every step.
    Running,
}

/// A sequence of tokens.
#[derive(Debug)]
pub(crate) struct Sequence {
    /// Prompt and answer. Logits of the last one lead to the next one.
    pub(crate) tokens: Vec<u32>,
    /// Tokens whose keys and values are in `pages`.
    pub(crate) computed: usize,
    /// In order of position.
    pub(crate) pages: Vec<PageId>,
    /// Of these, pages that the tree knows: they are never written again.
    pub(crate) published: usize,
    /// Place of the last published page in the tree.
    pub(crate) node: NodeId,
    /// Rotary variant of everything that is computed.
    pub(crate) rope: Variant,
    /// First token whose logits are wanted; of embeddings, whose hidden state is.
    pub(crate) logits_from: usize,
    /// Length that the sequence is known to reach, which may be more than it has.
    pub(crate) horizon: usize,
    pub(crate) phase: Phase,
    /// Its place in the queue, among those of other clients.
    pub(crate) turn: u64,
    /// When it last did something, in calls.
    pub(crate) used: u64,
    /// `None`: a session.
    pub(crate) job: Option<Job>,
}

impl Sequence {
    pub(crate) fn new(tokens: Vec<u32>, job: Option<Job>) -> Self {
        let pools = |job: &Job| job.pool.as_ref().is_some_and(|pool| pool.how == Pooling::Mean);
        let every = job.as_ref().is_some_and(|job| job.score_prompt || pools(job));
        Self {
            logits_from: if every { 0 } else { tokens.len().saturating_sub(1) },
            horizon: 0,
            tokens,
            computed: 0,
            pages: Vec::new(),
            published: 0,
            node: Pages::root(Variant::Short),
            rope: Variant::Short,
            phase: Phase::Idle,
            turn: 0,
            used: 0,
            job,
        }
    }

    /// Whose it is; sessions are nobody's.
    pub(crate) fn client(&self) -> u64 {
        self.job.as_ref().map_or(0, |job| job.client)
    }

    /// Whether its hidden states are wanted, and not its logits.
    pub(crate) fn embeds(&self) -> bool {
        self.job.as_ref().is_some_and(|job| job.pool.is_some())
    }

    /// Tokens that are still to be computed.
    pub(crate) fn rest(&self) -> usize {
        self.tokens.len() - self.computed
    }

    /// Publishes the pages that are full.
    pub(crate) fn publish(&mut self, pool: &mut Pages) {
        let size = pool.page_tokens();
        while (self.published + 1) * size <= self.computed {
            let at = self.published;
            let tokens = &self.tokens[at * size..(at + 1) * size];
            (self.node, self.pages[at]) = pool.publish(self.node, tokens, self.pages[at]);
            self.published += 1;
        }
    }

    /// Gives all pages back. With `publish`, what they hold can be found again.
    pub(crate) fn release(&mut self, pool: &mut Pages, publish: bool) {
        let size = pool.page_tokens();
        if publish {
            self.publish(pool);
            let full = self.published * size;
            if full < self.computed {
                let page = self.pages[self.published];
                let tokens = &self.tokens[full..self.computed];
                self.pages[self.published] = pool.publish(self.node, tokens, page).1;
            }
        }
        self.pages.drain(..).for_each(|page| pool.release(page));
        (self.computed, self.published) = (0, 0);
        self.node = Pages::root(self.rope);
    }

    /// Forgets what is computed from token `to` on. A published page that is cut is given back
    /// whole: it must not be written, and is found again and copied if it is still there.
    pub(crate) fn rewind(&mut self, to: usize, pool: &mut Pages) {
        if to >= self.computed {
            return;
        }
        let full = to / pool.page_tokens();
        let kept = if full < self.published {
            self.node = pool.ancestor(self.node, self.published - full);
            self.published = full;
            self.computed = full * pool.page_tokens();
            full
        } else {
            self.computed = to;
            to.div_ceil(pool.page_tokens())
        };
        self.pages.drain(kept..).for_each(|page| pool.release(page));
    }
}

/// What became of a sequence in a step, for whoever owns it.
#[derive(Debug)]
pub(crate) enum Notice {
    /// Its first rows are about to run.
    Started,
    /// Tokens of its prompt that are computed.
    Prefill(usize),
    /// A device was lost, and the sequence goes on without it.
    Replanned { lost: String, why: String },
    /// Log-probabilities of tokens of its prompt.
    Scored(Vec<Logprobs>),
    /// The embedding of its prompt.
    Embedding(Vec<f32>),
    /// A token was generated.
    Token { id: u32, text: String, logprobs: Option<Logprobs> },
    /// The request ended.
    Done { text: String, finish: Finish, usage: Usage, seed: u64 },
    /// Logits behind the tokens from `first` on, `(tokens, vocab)`.
    Logits { first: usize, logits: Vec<f32> },
    /// It cannot go on; it is gone.
    Failed(crate::EngineError),
}
