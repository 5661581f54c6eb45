//! The engine as a state machine: commands in, work out, results in, notices out.
//!
//! Nothing here knows threads, devices or time, so that every order of events can be tried. What to
//! run next is decided in [`schedule`](crate::schedule), what to propose in
//! [`speculate`](crate::speculate).
//!
//! LongRoPE: all keys of a sequence are rotated by the variant that its length asks for. A sequence
//! that grows past the border is therefore computed again from its beginning, once, so that its
//! logits are a function of its tokens alone.

use crate::constraint::Constraint;
use crate::kv::Pages;
use crate::pace::Pace;
use crate::pool::Pool;
use crate::sample::{self, Sampler};
use crate::sequence::{Job, Notice, Phase, Sequence, SequenceId};
use crate::speculate::Speculator;
use crate::{EngineError, Finish};
use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use tangor_device::PageId;
use tangor_plan::model::rope::Variant;
use tangor_plan::{Plan, Stage};

/// Bounds on everything that grows.
#[derive(Clone, Debug)]
pub(crate) struct Limits {
    /// Longest sequence.
    pub(crate) context: usize,
    /// Width of hidden states.
    pub(crate) hidden: usize,
    /// Width of the logits.
    pub(crate) vocab: usize,
    /// Sequences that run at once.
    pub(crate) max_sequences: usize,
    /// Most rows of prompts per step.
    pub(crate) prefill_rows: usize,
    /// Most rows per step.
    pub(crate) max_rows: usize,
    /// Most rows per step whose logits are wanted.
    pub(crate) logit_rows: usize,
    /// Pages of the pool.
    pub(crate) pages: usize,
    /// Tokens per page.
    pub(crate) page_tokens: usize,
    /// Whether equal beginnings share pages.
    pub(crate) prefix_cache: bool,
    /// Whether prompts and answers run in the same batch.
    pub(crate) mixed: bool,
    /// Longest sequence of the short rotary variant.
    pub(crate) short_rope: Option<usize>,
    /// Whether proposals are checked by the devices that decode: others may round otherwise.
    pub(crate) verify: bool,
}

impl Limits {
    /// The limits that a plan sets.
    pub(crate) fn of(plan: &Plan, graph: &tangor_plan::model::Graph) -> Self {
        let devices = |stage| {
            let segments = plan.stages.iter().filter(move |s| s.stage == stage);
            segments.flat_map(|s| &s.segments).map(|s| (s.device, s.range.clone()))
        };
        let first = devices(Stage::Decode).next();
        // Two devices that share a prompt have rows for one turn of both.
        let shared = plan.cooperative.as_ref().map_or(0, |both| both.rows.iter().sum());
        Self {
            context: plan.kv.context,
            hidden: graph.hyper.hidden,
            vocab: graph.hyper.vocab,
            max_sequences: plan.max_sequences,
            prefill_rows: plan.prefill_rows.max(shared),
            max_rows: plan.max_rows.max(shared),
            logit_rows: plan.logit_rows,
            pages: plan.kv.pages,
            page_tokens: plan.kv.page_tokens,
            prefix_cache: true,
            mixed: shared == 0
                && devices(Stage::Prefill).chain(devices(Stage::Decode)).all(|d| Some(d) == first),
            short_rope: graph.rope.long.as_ref().map(|(limit, _)| *limit),
            verify: devices(Stage::Decode).eq(devices(Stage::Verify)),
        }
    }

    /// Such that a sequence that has the pool for itself always gets to its end.
    fn bounded(self) -> Self {
        Self { context: self.context.min(self.pages * self.page_tokens), ..self }
    }

    /// Why a sequence is too long: one that is answered has room for a token of the answer, too.
    fn refuses(&self, sequence: &Sequence) -> Option<EngineError> {
        let (tokens, context) = (sequence.tokens.len(), self.context);
        let needed = tokens + usize::from(sequence.job.as_ref().is_some_and(Job::generates));
        (needed > context).then_some(EngineError::PromptTooLong { tokens, context })
    }

    fn variant(&self, tokens: usize) -> Variant {
        match self.short_rope {
            Some(limit) if tokens > limit => Variant::Long,
            _ => Variant::Short,
        }
    }
}

/// Something that owners of sequences want.
#[derive(Debug)]
pub(crate) enum Command {
    /// Answer a prompt.
    Generate { id: SequenceId, prompt: Vec<u32>, job: Box<Job> },
    /// A session without tokens.
    Open { id: SequenceId },
    /// Keep the first `keep` tokens of a session, append `tokens`, and compute the logits behind
    /// token `logits_from` and all after it; `horizon` is the length it will have in the end.
    Extend { id: SequenceId, keep: usize, tokens: Vec<u32>, logits_from: usize, horizon: usize },
    /// End a request.
    Cancel { id: SequenceId },
    /// End a session.
    Close { id: SequenceId },
}

/// Rows of one sequence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct WorkSpan {
    pub(crate) id: SequenceId,
    /// Its rows of the batch.
    pub(crate) rows: Range<usize>,
    /// Position of the first one.
    pub(crate) start: usize,
    pub(crate) pages: Vec<PageId>,
    pub(crate) rope: Variant,
    /// Its last rows whose logits are wanted.
    pub(crate) logits: usize,
    /// Its last rows whose tokens are only proposed.
    pub(crate) proposed: usize,
}

/// The first tokens of a page, to be copied before a batch runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PageCopy {
    /// Whose page it becomes.
    pub(crate) id: SequenceId,
    pub(crate) from: PageId,
    pub(crate) to: PageId,
    pub(crate) tokens: usize,
}

/// One batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Work {
    pub(crate) stage: Stage,
    pub(crate) copies: Vec<PageCopy>,
    pub(crate) tokens: Vec<u32>,
    pub(crate) spans: Vec<WorkSpan>,
    pub(crate) logit_rows: Vec<usize>,
    /// Whether hidden states of these rows are wanted, and not logits.
    pub(crate) hidden: bool,
}

/// All sequences and all pages.
#[derive(Debug)]
pub(crate) struct Core {
    pub(crate) limits: Limits,
    pub(crate) pages: Pages,
    pub(crate) sequences: BTreeMap<SequenceId, Sequence>,
    /// In order of turns, preempted ones first.
    pub(crate) waiting: VecDeque<SequenceId>,
    /// The turn of the last sequence that was admitted.
    pub(crate) turn: u64,
    /// In order of admission.
    pub(crate) running: Vec<SequenceId>,
    /// Sequences of a batch that failed: each runs alone next, so that only the guilty fail.
    pub(crate) suspects: VecDeque<SequenceId>,
    /// Copies that the next batch needs, and the pages that must not change until then.
    pub(crate) copies: Vec<PageCopy>,
    /// Whether the last batch was of prompts.
    pub(crate) last_was_prefill: bool,
    /// Whether the last batch was for embeddings.
    pub(crate) last_was_hidden: bool,
    pub(crate) notices: Vec<(SequenceId, Notice)>,
    pub(crate) clock: u64,
    /// How fast rows of prompts are.
    pub(crate) pace: Pace,
    /// Proposes tokens; `None`: every step is an ordinary one.
    pub(crate) speculator: Option<Speculator>,
    sampler: Sampler,
}

impl Core {
    pub(crate) fn new(limits: Limits) -> Self {
        let limits = limits.bounded();
        Self {
            pages: Pages::new(limits.pages, limits.page_tokens),
            limits,
            sequences: BTreeMap::new(),
            waiting: VecDeque::new(),
            turn: 0,
            running: Vec::new(),
            suspects: VecDeque::new(),
            copies: Vec::new(),
            last_was_prefill: false,
            last_was_hidden: false,
            notices: Vec::new(),
            clock: 0,
            pace: Pace::default(),
            speculator: None,
            sampler: Sampler::default(),
        }
    }

    /// Takes a command. Commands about sequences that have ended are ignored.
    pub(crate) fn handle(&mut self, command: Command) {
        match command {
            Command::Generate { id, prompt, job } => {
                self.sequences.insert(id, Sequence::new(prompt, Some(*job)));
                self.enqueue(id);
            }
            Command::Open { id } => {
                self.sequences.insert(id, Sequence::new(Vec::new(), None));
            }
            Command::Extend { id, keep, tokens, logits_from, horizon } => {
                if let Some(sequence) = self.sequences.get_mut(&id) {
                    sequence.tokens.truncate(keep);
                    sequence.rewind(keep.min(logits_from), &mut self.pages);
                    sequence.tokens.extend(tokens);
                    sequence.logits_from = logits_from;
                    sequence.horizon = horizon;
                    self.enqueue(id);
                }
            }
            Command::Cancel { id } => self.end(id, Finish::Cancelled),
            Command::Close { id } => drop(self.remove(id)),
        }
    }

    /// Puts a sequence into the queue. One that is too long fails: it may have been checked
    /// against limits that held until a device was lost, and would wait for ever.
    fn enqueue(&mut self, id: SequenceId) {
        if let Some(error) = self.sequences.get(&id).and_then(|s| self.limits.refuses(s)) {
            return self.fail(id, error);
        }
        self.settle_rope(id);
        if self.sequences.get(&id).is_some_and(|sequence| sequence.phase == Phase::Idle) {
            self.wait(id);
        }
    }

    /// Forgets what was computed with another rotary variant than the sequence now asks for.
    fn settle_rope(&mut self, id: SequenceId) {
        let publish = self.limits.prefix_cache;
        let Some(sequence) = self.sequences.get_mut(&id) else { return };
        let rope = self.limits.variant(sequence.tokens.len().max(sequence.horizon));
        if rope == sequence.rope {
            return;
        }
        sequence.release(&mut self.pages, publish);
        sequence.rope = rope;
        sequence.node = Pages::root(rope);
        if sequence.phase == Phase::Running {
            sequence.phase = Phase::Waiting;
            self.running.retain(|other| *other != id);
            self.waiting.push_front(id);
        }
    }

    /// Takes what happened since the last call.
    pub(crate) fn take_notices(&mut self) -> Vec<(SequenceId, Notice)> {
        std::mem::take(&mut self.notices)
    }

    /// Takes the result of a batch: logits, `(logit rows, vocab)`, or hidden states, `(logit rows,
    /// hidden)`, or why there are none.
    pub(crate) fn finish(&mut self, work: &Work, result: Result<&[f32], EngineError>) {
        for copy in &work.copies {
            self.pages.release(copy.from);
        }
        match result {
            Ok(logits) => self.advance(work, logits),
            Err(error) => self.isolate(work, &error),
        }
        debug_assert_eq!(self.check(), Ok(()));
    }

    /// A batch took so long: what decides how prompts are cut and what is proposed, and nothing
    /// that shows in an answer.
    pub(crate) fn measured(&mut self, work: &Work, seconds: f64) {
        let rows = work.tokens.len();
        if work.stage == Stage::Prefill {
            self.pace.measured(rows, seconds);
            return;
        }
        self.pace.measured_token(seconds);
        if let Some(speculator) = &mut self.speculator {
            speculator.measured(rows, seconds);
        }
    }

    fn advance(&mut self, work: &Work, logits: &[f32]) {
        let mut rest = logits;
        let width = if work.hidden { self.limits.hidden } else { self.limits.vocab };
        for span in &work.spans {
            let (logits, after) = rest.split_at((span.logits * width).min(rest.len()));
            rest = after;
            self.clock += 1;
            let Some(sequence) = self.sequences.get_mut(&span.id) else { continue };
            sequence.used = self.clock;
            if span.proposed > 0 {
                let rows = &work.tokens[span.rows.clone()];
                self.verify(span, &rows[rows.len() - span.proposed..], logits);
                continue;
            }
            sequence.computed += span.rows.len();
            if self.limits.prefix_cache {
                sequence.publish(&mut self.pages);
            }
            let computed = sequence.computed;
            if let Some(job) = &sequence.job
                && job.usage.completion == 0
            {
                self.notices.push((span.id, Notice::Prefill(computed.min(job.usage.prompt))));
            }
            if work.hidden {
                self.pool(span.id, logits);
            } else if span.logits > 0 {
                self.deliver(span.id, computed - span.logits, logits, None);
            }
        }
    }

    /// Takes hidden states of a sequence's last tokens that were computed.
    fn pool(&mut self, id: SequenceId, rows: &[f32]) {
        let Some(sequence) = self.sequences.get_mut(&id) else { return };
        let Some(pool) = sequence.job.as_mut().and_then(|job| job.pool.as_mut()) else { return };
        rows.chunks_exact(self.limits.hidden).for_each(|row| pool.add(row));
        sequence.logits_from = sequence.logits_from.max(sequence.computed);
        if sequence.rest() > 0 {
            return;
        }
        let pool = sequence.job.as_ref().and_then(|job| job.pool.as_ref());
        match pool.and_then(Pool::finish) {
            Some(vector) => {
                self.notices.push((id, Notice::Embedding(vector)));
                self.end(id, Finish::Length);
            }
            None => self.fail(id, EngineError::NotNumbers),
        }
    }

    /// Takes the logits behind a token and behind the tokens that were proposed to follow it, as
    /// far as the proposals are what an ordinary step would have chosen. What was computed beyond
    /// that is forgotten: it is on no published page, and the next step writes over it.
    fn verify(&mut self, span: &WorkSpan, proposed: &[u32], logits: &[f32]) {
        for (row, logits) in logits.chunks_exact(self.limits.vocab).enumerate() {
            let Some(sequence) = self.sequences.get_mut(&span.id) else { return };
            let begun = (span.start + row, span.rope);
            let known = row == 0 || sequence.tokens.last() == proposed.get(row - 1);
            if (sequence.computed, sequence.rope) != begun || !known {
                return;
            }
            sequence.computed += 1;
            if self.limits.prefix_cache {
                sequence.publish(&mut self.pages);
            }
            self.deliver(span.id, span.start + row, logits, proposed.get(row).copied());
        }
    }

    /// Hands logits behind the tokens from `first` on to whoever wants them.
    /// `proposed` is the token that was proposed for this place.
    fn deliver(&mut self, id: SequenceId, first: usize, logits: &[f32], proposed: Option<u32>) {
        let Some(sequence) = self.sequences.get_mut(&id) else { return };
        let Some(job) = &mut sequence.job else {
            sequence.logits_from = sequence.computed;
            if sequence.rest() == 0 {
                sequence.phase = Phase::Idle;
                self.running.retain(|other| *other != id);
            }
            return self.notices.push((id, Notice::Logits { first, logits: logits.to_vec() }));
        };
        let (tokens, prompt) = (&sequence.tokens, job.usage.prompt);
        let rows = logits.chunks_exact(self.limits.vocab);
        if job.score_prompt && first + 1 < tokens.len() {
            let known = rows.clone().zip(&tokens[first + 1..]);
            let top = job.logprobs.unwrap_or(0);
            let scored = known.map(|(logits, token)| sample::logprobs(logits, *token, top));
            self.notices.push((id, Notice::Scored(scored.collect())));
            sequence.logits_from = first + rows.len();
            if sequence.logits_from < tokens.len() {
                return;
            }
        }
        let logits = rows.last().unwrap_or_default();
        if job.max_tokens == 0 {
            return self.end(id, Finish::Length);
        }
        let how = (&job.sampling, job.constraint.as_deref_mut().map(|c| c as &mut dyn Constraint));
        let token = match self.sampler.sample(how, job.seed, logits, tokens, prompt) {
            Ok(token) => token,
            Err(error) => return self.fail(id, error),
        };
        if job.eos.contains(&token) {
            return self.end(id, Finish::EndOfText(token));
        }
        let logprobs = job.logprobs.map(|top| sample::logprobs(logits, token, top));
        job.speculation.hear(token);
        job.usage.accepted += usize::from(proposed == Some(token));
        let (text, finish) = job.push(token);
        sequence.tokens.push(token);
        sequence.logits_from = sequence.tokens.len() - 1;
        let full = sequence.tokens.len() >= self.limits.context;
        self.notices.push((id, Notice::Token { id: token, text, logprobs }));
        match finish.or_else(|| full.then_some(Finish::Length)) {
            Some(finish) => self.end(id, finish),
            None => self.settle_rope(id),
        }
    }

    /// A batch failed: one sequence is guilty, several are suspects.
    fn isolate(&mut self, work: &Work, error: &EngineError) {
        for copy in &work.copies {
            // Nobody knows whether the copy was made.
            if let Some(sequence) = self.sequences.get_mut(&copy.id) {
                let size = self.limits.page_tokens;
                sequence.rewind(sequence.computed / size * size, &mut self.pages);
            }
        }
        match work.spans.as_slice() {
            // Proposals may be to blame: the sequence runs again without.
            [only] if only.proposed == 0 => self.fail(only.id, error.clone()),
            spans => self.suspects.extend(spans.iter().map(|span| span.id)),
        }
    }

    /// Starts all sequences over, with other devices: no page holds anything any more, and every
    /// sequence that runs is computed again from its tokens. Those that are too long for the new
    /// limits fail.
    pub(crate) fn restart(&mut self, limits: Limits) {
        let Self { sequences, running, waiting, .. } = self;
        running.drain(..).rev().for_each(|id| waiting.push_front(id));
        for sequence in sequences.values_mut() {
            sequence.pages.clear();
            (sequence.computed, sequence.published) = (0, 0);
            sequence.node = Pages::root(sequence.rope);
            if sequence.phase == Phase::Running {
                sequence.phase = Phase::Waiting;
            }
        }
        self.suspects.clear();
        self.copies.clear();
        self.last_was_prefill = false;
        self.limits = limits.bounded();
        self.pages = Pages::new(self.limits.pages, self.limits.page_tokens);
        let refused = |(id, s): (&SequenceId, &Sequence)| Some((*id, self.limits.refuses(s)?));
        let too_long: Vec<_> = self.sequences.iter().filter_map(refused).collect();
        too_long.into_iter().for_each(|(id, error)| self.fail(id, error));
    }

    /// Tells every request that a device was lost.
    pub(crate) fn tell_replanned(&mut self, lost: &str, why: &str) {
        let notice = |id: &SequenceId| {
            (*id, Notice::Replanned { lost: lost.to_owned(), why: why.to_owned() })
        };
        self.notices.extend(self.sequences.keys().map(notice));
    }

    /// Ends every sequence with an error.
    pub(crate) fn fail_all(&mut self, error: &EngineError) {
        let ids: Vec<SequenceId> = self.sequences.keys().copied().collect();
        ids.into_iter().for_each(|id| self.fail(id, error.clone()));
    }

    fn fail(&mut self, id: SequenceId, error: EngineError) {
        if self.remove(id).is_some() {
            self.notices.push((id, Notice::Failed(error)));
        }
    }

    /// Ends a request.
    fn end(&mut self, id: SequenceId, finish: Finish) {
        if let Some(Sequence { job: Some(mut job), .. }) = self.remove(id) {
            let (text, finish) = job.end(finish);
            let (usage, seed) = (job.usage, job.seed);
            self.notices.push((id, Notice::Done { text, finish, usage, seed }));
        }
    }

    /// Takes a sequence out and frees its pages.
    fn remove(&mut self, id: SequenceId) -> Option<Sequence> {
        let mut sequence = self.sequences.remove(&id)?;
        sequence.release(&mut self.pages, self.limits.prefix_cache);
        if let Some(speculator) = &mut self.speculator {
            speculator.forget(id);
        }
        self.waiting.retain(|other| *other != id);
        self.running.retain(|other| *other != id);
        self.suspects.retain(|other| *other != id);
        Some(sequence)
    }

    /// Whether every page and every sequence is where it belongs.
    ///
    /// # Errors
    /// What is not.
    pub(crate) fn check(&self) -> Result<(), String> {
        let copied = self.copies.iter().map(|copy| copy.from);
        let held = self.sequences.values().flat_map(|s| s.pages.iter().copied());
        self.pages.check(held.chain(copied))?;
        for (id, sequence) in &self.sequences {
            let places = self.running.iter().filter(|other| *other == id).count()
                + self.waiting.iter().filter(|other| *other == id).count();
            let expected = usize::from(sequence.phase != Phase::Idle);
            if places != expected {
                return Err(format!("{id:?} is {:?} and in {places} queues", sequence.phase));
            }
            let size = self.limits.page_tokens;
            if sequence.computed > sequence.pages.len() * size {
                return Err(format!("{id:?} has computed more than its pages hold"));
            }
        }
        let turns = self.waiting.iter().map(|id| self.sequences[id].turn.max(self.turn));
        match turns.is_sorted() {
            true => Ok(()),
            false => Err(format!("{:?} wait in another order than their turns", self.waiting)),
        }
    }
}

#[cfg(test)]
mod tests;
