//! The policy of speculation: how many proposed tokens are worth their rows.
//!
//! Two things are learned while running, and neither can change which tokens come out.
//!
//! * [`Costs`]: what a step with so many rows takes. A step of several rows reads the weights once,
//!   like a step of one, and computes several times as much; only measuring tells what that costs
//!   on this machine, with this model, beside these other programs.
//! * [`Acceptance`]: how often proposals of a sequence came true, apart for short and long matches.
//!   Proposals that cost nothing are compared with what comes even when none of them is run, so
//!   that a sequence which begins to copy is noticed at once.
//!
//! [`Policy::choose`] then takes the number of proposed rows with the most expected tokens per
//! second. Where none is [`WORTH`] its while the step is an ordinary one.

use crate::propose::{Ask, Guess, MAX_DRAFT, Propose};
use crate::sequence::SequenceId;
use crate::step::Core;
use tangor_plan::model::rope::Variant;

/// Gain, as a factor of tokens per second, below which an ordinary step is taken.
const WORTH: f64 = 1.04;
/// Steps after which a measurement no longer counts: contexts grow and machines get busy.
const STALE: u64 = 128;
/// Cost of one more row, as a share of the step, where nothing is known: low, so that it is tried.
const HOPED_ROW: f64 = 0.05;
/// Weight of the newest measurement.
const NEWEST: f64 = 0.2;
/// Share of its weight that an observation keeps when the next one of its kind comes.
const KEPT: f64 = 0.94;
/// Observations that the expectation before the first one is worth.
const PRIOR_WEIGHT: f64 = 3.0;
/// Chance that a proposed token comes true: of a model's proposal, and of matches of 2, 3 and
/// more, 5 and more, 9 and more, 17 and more tokens.
const PRIORS: [f64; 6] = [0.6, 0.15, 0.3, 0.5, 0.7, 0.8];
/// Share that old observations keep with every token for which nothing was proposed: a proposer
/// that was given up is tried again after some hundred tokens.
const FADING: f64 = 0.99;

/// How often proposals of one sequence came true.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Acceptance {
    /// Per kind: came true, of how many; both fade.
    kinds: [(f64, f64); PRIORS.len()],
}

impl Acceptance {
    /// Kind of a proposed token behind so many tokens that recurred.
    fn kind(matched: usize) -> usize {
        match matched {
            0 => 0,
            1..=2 => 1,
            3..=4 => 2,
            5..=8 => 3,
            9..=16 => 4,
            _ => 5,
        }
    }

    fn observe(&mut self, matched: usize, came_true: bool) {
        let (hits, all) = &mut self.kinds[Self::kind(matched)];
        *hits = *hits * KEPT + f64::from(u8::from(came_true));
        *all = *all * KEPT + 1.0;
    }

    /// A token came for which nothing was proposed.
    fn fade(&mut self) {
        let (hits, all) = &mut self.kinds[0];
        (*hits, *all) = (*hits * FADING, *all * FADING);
    }

    /// Chance that each of the next `tokens` proposed tokens comes true, and all before it.
    fn chances(&self, matched: usize, tokens: usize) -> impl Iterator<Item = f64> {
        (0..tokens).scan(1.0, move |chance, at| {
            let kind = Self::kind(if matched == 0 { 0 } else { matched + at });
            let (hits, all) = self.kinds[kind];
            *chance *= (hits + PRIORS[kind] * PRIOR_WEIGHT) / (all + PRIOR_WEIGHT);
            Some(*chance)
        })
    }
}

/// What one sequence expects, and what it learned.
#[derive(Clone, Debug, Default)]
pub(crate) struct Speculation {
    guess: Guess,
    /// Tokens of `guess` that have been compared.
    heard: usize,
    acceptance: Acceptance,
}

impl Speculation {
    /// Compares the next token with what was proposed.
    pub(crate) fn hear(&mut self, token: u32) {
        let Some(&proposed) = self.guess.tokens.get(self.heard) else {
            return self.acceptance.fade();
        };
        let matched = if self.guess.matched == 0 { 0 } else { self.guess.matched + self.heard };
        self.acceptance.observe(matched, proposed == token);
        self.heard += 1;
        if proposed != token {
            self.guess = Guess::default();
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct Measured {
    seconds: f64,
    /// The step of the newest measurement.
    at: u64,
    count: u32,
}

/// Seconds of a step by its rows, as measured.
#[derive(Clone, Debug, Default)]
pub(crate) struct Costs {
    /// By number of rows.
    rows: Vec<Option<Measured>>,
    steps: u64,
}

impl Costs {
    /// Takes a measurement. One that is far from those before it counts as twice or half of them:
    /// a program that was stopped for a while is no reason to change anything.
    fn measured(&mut self, rows: usize, seconds: f64) {
        self.steps += 1;
        if self.rows.len() <= rows {
            self.rows.resize(rows + 1, None);
        }
        let new = Measured { seconds, at: self.steps, count: 1 };
        let slot = &mut self.rows[rows];
        *slot = Some(match *slot {
            None => new,
            // Of the first two, the slower one may be a cold start.
            Some(old) if old.count == 1 => {
                Measured { seconds: old.seconds.min(seconds), count: 2, ..new }
            }
            Some(old) => {
                let near = seconds.clamp(old.seconds / 2.0, old.seconds * 2.0);
                Measured { seconds: old.seconds + NEWEST * (near - old.seconds), count: 2, ..new }
            }
        });
    }

    /// Seconds of a step with so many rows, if it is known.
    fn known(&self, rows: usize) -> Option<f64> {
        let measured = (*self.rows.get(rows)?)?;
        (measured.count > 1 && self.steps - measured.at < STALE).then_some(measured.seconds)
    }

    /// Seconds of a step with so many rows: between the nearest that are known, or hopefully little
    /// more than the largest that is known.
    fn expected(&self, rows: usize) -> f64 {
        let below = (0..=rows).rev().find_map(|m| Some((m, self.known(m)?)));
        let above = (rows..self.rows.len()).find_map(|m| Some((m, self.known(m)?)));
        match (below, above) {
            (Some((_, seconds)), _) if self.known(rows).is_some() => seconds,
            (Some((m, low)), Some((n, high))) => {
                low + (high - low) * (rows - m) as f64 / (n - m) as f64
            }
            (Some((m, low)), None) => low * (1.0 + HOPED_ROW * (rows - m) as f64),
            (None, above) => above.map_or(0.0, |(_, seconds)| seconds),
        }
    }
}

/// Proposer and policy of a model.
pub(crate) struct Speculator {
    proposer: Box<dyn Propose>,
    costs: Costs,
    /// Runs every proposal whole, whatever it costs.
    always: bool,
}

impl std::fmt::Debug for Speculator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Speculator").field("always", &self.always).finish_non_exhaustive()
    }
}

impl Speculator {
    /// Runs proposals where they pay or, with `always`, all of them.
    pub(crate) fn new(proposer: Box<dyn Propose>, always: bool) -> Self {
        Self { proposer, costs: Costs::default(), always }
    }

    /// A step without rows of prompts took so long.
    pub(crate) fn measured(&mut self, rows: usize, seconds: f64) {
        self.costs.measured(rows, seconds);
    }

    /// A sequence has ended.
    pub(crate) fn forget(&mut self, id: SequenceId) {
        self.proposer.forget(id);
    }

    /// How many tokens of each sequence's proposal to run, at most `spare` in all. `chances`: per
    /// sequence, of each proposed token.
    fn choose(&self, chances: &[Vec<f64>], spare: usize) -> Vec<usize> {
        let plain = chances.len();
        let mut offers: Vec<(f64, usize)> = chances
            .iter()
            .enumerate()
            .flat_map(|(owner, chances)| chances.iter().map(move |&chance| (chance, owner)))
            .collect();
        // Stable: a sequence's own offers stay in order, for no chance exceeds the one before it.
        offers.sort_by(|a, b| b.0.total_cmp(&a.0));
        offers.truncate(spare);
        let taken = if self.always { offers.len() } else { self.worth(plain, &offers) };
        let mut lengths = vec![0; plain];
        offers[..taken].iter().for_each(|(_, owner)| lengths[*owner] += 1);
        lengths
    }

    /// How many of the offers, best first, give the most tokens per second.
    fn worth(&self, plain: usize, offers: &[(f64, usize)]) -> usize {
        // The first steps are ordinary ones, so that there is something to compare with.
        let Some(seconds) = self.costs.known(plain) else { return 0 };
        let token_s = self.proposer.token_seconds().unwrap_or(0.0);
        let mut best = (plain as f64 / seconds * WORTH, 0);
        let mut tokens = plain as f64;
        let mut depths = vec![0; plain];
        for (index, (chance, owner)) in offers.iter().enumerate() {
            tokens += chance;
            depths[*owner] += 1;
            let deepest = depths.iter().copied().max().unwrap_or(0);
            let drafting = token_s * f64::from(u32::try_from(deepest).unwrap_or(u32::MAX));
            let rate = tokens / (self.costs.expected(plain + index + 1) + drafting);
            if rate > best.0 {
                best = (rate, index + 1);
            }
        }
        best.1
    }
}

impl Core {
    /// Has continuations of the sequences `ids` proposed, each of which has one row to run; returns
    /// what of them is to be run beside these rows.
    pub(crate) fn propose(&mut self, ids: &[SequenceId]) -> Vec<Vec<u32>> {
        let spare = self.limits.max_rows.min(self.limits.logit_rows).saturating_sub(ids.len());
        let rooms: Vec<usize> = ids.iter().map(|&id| self.room(id).min(spare)).collect();
        let Some(speculator) = &mut self.speculator else { return vec![Vec::new(); ids.len()] };
        let sequences = &self.sequences;
        let asks = |lengths: &[usize]| -> Vec<Ask<'_>> {
            let ask = |(&id, &most): (&SequenceId, &usize)| Ask {
                id,
                tokens: sequences.get(&id).map(|s| s.tokens.as_slice()).unwrap_or_default(),
                most,
            };
            ids.iter().zip(lengths).map(ask).collect()
        };
        let free = speculator.proposer.token_seconds().is_none();
        let mut guesses = match free {
            true => speculator.proposer.propose(&asks(&rooms)),
            // What costs time is made only as long as it is wanted.
            false => rooms.iter().map(|&n| Guess { tokens: vec![0; n], matched: 0 }).collect(),
        };
        guesses.resize(ids.len(), Guess::default());
        let of_sequence = |(id, guess): (&SequenceId, &Guess)| {
            let job = sequences.get(id).and_then(|sequence| sequence.job.as_ref());
            let acceptance = job.map(|job| job.speculation.acceptance).unwrap_or_default();
            acceptance.chances(guess.matched, guess.tokens.len()).collect()
        };
        let chances: Vec<Vec<f64>> = ids.iter().zip(&guesses).map(of_sequence).collect();
        let lengths = speculator.choose(&chances, spare);
        if !free {
            guesses = vec![Guess::default(); ids.len()];
            if lengths.iter().any(|&length| length > 0) {
                guesses = speculator.proposer.propose(&asks(&lengths));
                guesses.resize(ids.len(), Guess::default());
            }
        }
        let mut drafts = Vec::with_capacity(ids.len());
        for ((id, guess), (length, room)) in ids.iter().zip(guesses).zip(lengths.iter().zip(rooms))
        {
            let vocab = self.limits.vocab;
            let known = guess.tokens.iter().take_while(|&&token| (token as usize) < vocab).count();
            let length = known.min(*length).min(room);
            drafts.push(guess.tokens[..length].to_vec());
            if let Some(job) = self.sequences.get_mut(id).and_then(|s| s.job.as_mut()) {
                job.speculation.guess = guess;
                job.speculation.heard = 0;
            }
        }
        drafts
    }

    /// Most tokens that are of use behind those of a sequence: none beyond its end, none whose
    /// logits another rotary variant would compute.
    fn room(&self, id: SequenceId) -> usize {
        let Some(sequence) = self.sequences.get(&id) else { return 0 };
        let Some(job) = &sequence.job else { return 0 };
        let tokens = sequence.tokens.len();
        let until = |end: usize| end.saturating_sub(tokens);
        let border = match (sequence.rope, self.limits.short_rope) {
            (Variant::Short, Some(limit)) => until(limit),
            _ => MAX_DRAFT,
        };
        let answer = job.max_tokens.saturating_sub(job.usage.completion + 1);
        MAX_DRAFT.min(border).min(answer).min(until(self.limits.context.saturating_sub(1)))
    }
}

#[cfg(test)]
mod tests;
