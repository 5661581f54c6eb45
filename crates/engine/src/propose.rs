//! Proposers: what might come next, for the model to check.
//!
//! A proposal can be anything: the model runs it as further rows of its batch and keeps the tokens
//! that it would have chosen itself. A good one saves steps, a bad one wastes rows, and neither
//! changes an answer.

use crate::EngineError;
use crate::executor::Executor;
use crate::fallback::Fallback;
use crate::sequence::{Notice, SequenceId};
use crate::step::{Command, Core};
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;
use tangor_device::DeviceError;

/// Most tokens of a proposal. With the token before it they are 24 rows, a multiple of every tile.
pub(crate) const MAX_DRAFT: usize = 23;
/// Fewest tokens that have to recur before what followed them is proposed.
const SHORTEST_MATCH: usize = 2;
/// Recurring beyond this many tokens says nothing more.
const LONGEST_MATCH: usize = 32;
/// Tokens that are searched backwards: bounds the time of a search.
const SEARCHED: usize = 1 << 15;

/// A sequence that asks what might follow.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ask<'a> {
    /// Which one.
    pub(crate) id: SequenceId,
    /// All of its tokens.
    pub(crate) tokens: &'a [u32],
    /// Most tokens that are of use.
    pub(crate) most: usize,
}

/// What might follow.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Guess {
    pub(crate) tokens: Vec<u32>,
    /// Tokens before them that recurred; 0 where nothing was searched.
    pub(crate) matched: usize,
}

/// Where proposals come from.
pub(crate) trait Propose: Send {
    /// One guess per ask, of at most as many tokens as are of use.
    fn propose(&mut self, asks: &[Ask<'_>]) -> Vec<Guess>;

    /// Seconds that each further token of a proposal costs, as measured. `None`: nothing to speak
    /// of, so that proposals can be made even where none is run, and compared with what comes.
    fn token_seconds(&self) -> Option<f64> {
        None
    }

    /// Sequences that have ended are not asked for again.
    fn forget(&mut self, _id: SequenceId) {}
}

/// Prompt lookup: the latest place where the longest run of last tokens occurred before, in the
/// prompt or in the answer, and what followed there.
#[derive(Debug, Default)]
pub(crate) struct Ngram;

impl Propose for Ngram {
    fn propose(&mut self, asks: &[Ask<'_>]) -> Vec<Guess> {
        asks.iter().map(|ask| look_up(ask.tokens, ask.most)).collect()
    }
}

fn look_up(tokens: &[u32], most: usize) -> Guess {
    let Some((last, before)) = tokens.split_last() else { return Guess::default() };
    let first = before.len().saturating_sub(SEARCHED);
    let (mut matched, mut place) = (0, 0);
    for at in (first..before.len()).rev().filter(|&at| before[at] == *last) {
        let ends = before[..=at].iter().rev().zip(tokens.iter().rev()).take(LONGEST_MATCH);
        let recurring = ends.take_while(|(a, b)| a == b).count();
        if recurring > matched {
            (matched, place) = (recurring, at);
        }
        if matched == LONGEST_MATCH {
            break;
        }
    }
    if matched < SHORTEST_MATCH {
        return Guess::default();
    }
    // A run that reaches the end goes on with itself: a loop is proposed as a loop.
    let period = before.len() - place;
    let guess = (0..most).map(|i| tokens[place + 1 + i % period]).collect();
    Guess { tokens: guess, matched }
}

/// Weight of the newest measurement.
const NEWEST: f64 = 0.2;

/// A second, smaller model with the same vocabulary: its likeliest tokens.
///
/// It is a state machine of its own with an executor of its own, and runs within the other model's
/// step. One that fails proposes nothing from then on: speed is lost, and no answer.
#[derive(Debug)]
pub(crate) struct DraftModel {
    core: Core,
    /// `None` once it has failed.
    executor: Option<Executor>,
    /// `None`: a lost device ends it.
    fallback: Option<Fallback>,
    /// By sequence: the tokens that it knows, the last ones perhaps only proposed.
    known: BTreeMap<SequenceId, Vec<u32>>,
    /// Of one more token of every proposal.
    seconds: Option<f64>,
}

impl DraftModel {
    pub(crate) fn new(core: Core, executor: Executor, fallback: Option<Fallback>) -> Self {
        let (executor, known) = (Some(executor), BTreeMap::new());
        Self { core, executor, fallback, known, seconds: None }
    }

    /// As if a run had failed.
    #[cfg(test)]
    pub(crate) fn fail(&mut self) {
        self.executor = None;
    }

    /// Tells the draft model a sequence as it is now, where it can go on with it.
    fn begin(&mut self, ask: &Ask<'_>) -> Option<Draft> {
        let room = self.core.limits.context.saturating_sub(ask.tokens.len());
        let vocab = self.core.limits.vocab;
        let most = ask.most.min(room);
        let known = self.known.entry(ask.id).or_insert_with(|| {
            self.core.handle(Command::Open { id: ask.id });
            Vec::new()
        });
        let keep = known.iter().zip(ask.tokens).take_while(|(a, b)| a == b).count();
        // Ids that only the other model has.
        let foreign = ask.tokens[keep..].iter().any(|&token| token as usize >= vocab);
        (most > 0 && !foreign).then(|| {
            known.truncate(keep);
            let draft = Draft { id: ask.id, begin: ask.tokens.len(), end: ask.tokens.len() + most };
            draft.extend(&mut self.core, known, &ask.tokens[keep..]);
            draft
        })
    }

    /// Runs everything that there is to run; the likeliest token of each sequence.
    fn run(&mut self) -> Option<Vec<(SequenceId, u32)>> {
        let mut found = Vec::new();
        while let Some(work) = self.core.next_work() {
            let executor = self.executor.as_mut()?;
            let result = catch_unwind(AssertUnwindSafe(|| executor.run(&work)));
            match result {
                Ok(Ok(())) => self.core.finish(&work, Ok(executor.rows(&work))),
                Ok(Err(EngineError::Device(error))) if self.goes_on_without(&error) => continue,
                _ => {
                    self.executor = None;
                    return None;
                }
            }
            for (id, notice) in self.core.take_notices() {
                if let Notice::Logits { logits, .. } = notice {
                    let better = |best: (u32, f32), next: (u32, f32)| match next.1 > best.1 {
                        true => next,
                        false => best,
                    };
                    let best = (0..).zip(logits).reduce(better);
                    found.extend(best.map(|(token, _)| (id, token)));
                }
            }
        }
        Some(found)
    }

    /// If `error` means that a device is lost and there are others: what was to be run is run by
    /// these.
    fn goes_on_without(&mut self, error: &DeviceError) -> bool {
        let Some(fallback) = &mut self.fallback else { return false };
        let Some(lost) = fallback.lost_by(error) else { return false };
        // Its memory may be what the new one needs: they are never there at the same time.
        self.executor = None;
        let Ok(prepared) = fallback.without(lost) else { return false };
        self.executor = Some(prepared.executor);
        self.core.restart(prepared.limits);
        // What its tokens took elsewhere says nothing.
        self.seconds = None;
        true
    }

    fn measured(&mut self, seconds: f64) {
        self.seconds = Some(
            self.seconds
                .map_or(seconds, |old| old + NEWEST * (seconds.clamp(old / 2.0, old * 2.0) - old)),
        );
    }
}

/// A proposal in the making.
struct Draft {
    id: SequenceId,
    begin: usize,
    end: usize,
}

impl Draft {
    /// Appends tokens and asks for the logits behind the last one.
    fn extend(&self, core: &mut Core, known: &mut Vec<u32>, tokens: &[u32]) {
        let keep = known.len();
        known.extend_from_slice(tokens);
        let (tokens, horizon) = (tokens.to_vec(), known.len());
        let logits_from = horizon.saturating_sub(1);
        core.handle(Command::Extend { id: self.id, keep, tokens, logits_from, horizon });
    }
}

impl Propose for DraftModel {
    fn propose(&mut self, asks: &[Ask<'_>]) -> Vec<Guess> {
        let mut drafts: Vec<Draft> =
            asks.iter().filter(|ask| ask.most > 0).filter_map(|ask| self.begin(ask)).collect();
        let mut guesses: BTreeMap<SequenceId, Vec<u32>> = BTreeMap::new();
        let mut catching_up = true;
        while self.executor.is_some() && !drafts.is_empty() {
            let begin = Instant::now();
            let Some(found) = self.run() else { break };
            // The first round also reads what came since the last one.
            if !catching_up || self.seconds.is_none() {
                self.measured(begin.elapsed().as_secs_f64());
            }
            catching_up = false;
            let found: BTreeMap<SequenceId, u32> = found.into_iter().collect();
            drafts.retain(|draft| {
                let (Some(&token), Some(known)) =
                    (found.get(&draft.id), self.known.get_mut(&draft.id))
                else {
                    return false;
                };
                let guess = guesses.entry(draft.id).or_default();
                guess.push(token);
                let more = draft.begin + guess.len() < draft.end;
                if more {
                    draft.extend(&mut self.core, known, &[token]);
                }
                more
            });
        }
        let mut guess = |ask: &Ask<'_>| guesses.remove(&ask.id).unwrap_or_default();
        asks.iter().map(&mut guess).map(|tokens| Guess { tokens, matched: 0 }).collect()
    }

    fn token_seconds(&self) -> Option<f64> {
        Some(self.seconds.unwrap_or(0.0))
    }

    fn forget(&mut self, id: SequenceId) {
        if self.known.remove(&id).is_some() {
            self.core.handle(Command::Close { id });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guess(tokens: &[u32], most: usize) -> (Vec<u32>, usize) {
        let guess = look_up(tokens, most);
        (guess.tokens, guess.matched)
    }

    #[test]
    fn what_followed_the_longest_latest_match_is_proposed() {
        for (tokens, most, expected) in [
            (&[1, 2, 3, 4, 9, 1, 2][..], 3, (vec![3, 4, 9], 2)),
            (&[5, 1, 2, 3, 0, 1, 2, 7, 0, 5, 1, 2], 2, (vec![3, 0], 3)),
            (&[1, 2, 3, 0, 1, 2, 4, 0, 1, 2], 1, (vec![4], 3)),
            (&[7, 1, 2, 3, 8, 1, 2, 4, 9, 1, 2], 1, (vec![4], 2)),
            (&[1, 2, 1, 2, 1, 2], 5, (vec![1, 2, 1, 2, 1], 4)),
            (&[3, 3, 3], 4, (vec![3, 3, 3, 3], 2)),
            (&[1, 2, 3, 4], 3, (vec![], 0)),
            (&[1, 9, 1], 3, (vec![], 0)),
            (&[1, 2, 5, 1, 2], 0, (vec![], 2)),
            (&[1], 3, (vec![], 0)),
            (&[], 3, (vec![], 0)),
        ] {
            assert_eq!(guess(tokens, most), expected, "{tokens:?}");
        }
    }

    #[test]
    fn the_search_has_a_bound() {
        let mut tokens = vec![1, 2, 3];
        tokens.extend((0..SEARCHED as u32).map(|i| 10 + i));
        tokens.extend([1, 2]);
        assert_eq!(guess(&tokens, 1), (vec![], 0));
    }
}
