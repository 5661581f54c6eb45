//! The state machine against a cache that remembers tokens: random arrivals, lengths, rewinds,
//! cancellations and faults, with every page and every answer checked.

use super::*;
use crate::Usage;
use crate::propose::{Ask, Guess, Propose};
use crate::sample::SamplingParams;
use crate::speculate::{Speculation, Speculator};
use crate::stop::StopMatcher;
use std::sync::Arc;

const VOCAB: usize = 16;
const PAGE: usize = 4;

fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// What a "model" computes behind `tokens`: noise that depends on all of them and on the variant.
fn logits(tokens: impl Iterator<Item = u32>, rope: Variant) -> [f32; VOCAB] {
    let start = u64::from(rope == Variant::Long);
    let state = tokens.fold(start, |state, token| mix(state ^ u64::from(token + 1)));
    std::array::from_fn(|token| (mix(state ^ (token as u64) << 32) >> 40) as f32)
}

/// A device whose cache holds the tokens themselves.
struct Cache(Vec<[Option<(u32, Variant)>; PAGE]>);

impl Cache {
    fn new(pages: usize) -> Self {
        Self(vec![[None; PAGE]; pages])
    }

    fn run(&mut self, work: &Work) -> Vec<f32> {
        for copy in &work.copies {
            for at in 0..copy.tokens {
                self.0[copy.to as usize][at] = self.0[copy.from as usize][at];
            }
        }
        let mut out = Vec::new();
        for span in &work.spans {
            for row in span.rows.clone() {
                let position = span.start + row - span.rows.start;
                let cell = (work.tokens[row], span.rope);
                self.0[span.pages[position / PAGE] as usize][position % PAGE] = Some(cell);
                if work.logit_rows.contains(&row) {
                    let seen = (0..=position).map(|p| {
                        let cell = self.0[span.pages[p / PAGE] as usize][p % PAGE];
                        let (token, rope) = cell.expect("a row that was never written");
                        assert_eq!(rope, span.rope, "keys of another rotary variant");
                        token
                    });
                    out.extend(logits(seen, span.rope));
                }
            }
        }
        out
    }
}

fn limits() -> Limits {
    Limits {
        context: 24,
        hidden: VOCAB,
        vocab: VOCAB,
        max_sequences: 3,
        prefill_rows: 5,
        max_rows: 6,
        logit_rows: 4,
        pages: 9,
        page_tokens: PAGE,
        prefix_cache: true,
        mixed: true,
        short_rope: Some(14),
        verify: true,
    }
}

fn job(prompt: usize, max_tokens: usize) -> Box<Job> {
    Box::new(Job {
        sampling: SamplingParams::default(),
        seed: 1,
        max_tokens,
        logprobs: None,
        score_prompt: false,
        client: 0,
        pool: None,
        constraint: None,
        eos: Arc::new([0]),
        stop: StopMatcher::default(),
        decode: None,
        usage: Usage { prompt, ..Usage::default() },
        speculation: Speculation::default(),
    })
}

/// Proposes what will come, what will not, or anything.
struct Prophet {
    limits: Limits,
    kind: u64,
    random: u64,
}

impl Propose for Prophet {
    fn propose(&mut self, asks: &[Ask<'_>]) -> Vec<Guess> {
        let mut guess = |ask: &Ask<'_>| {
            let mut tokens = ask.tokens.to_vec();
            for _ in 0..ask.most {
                self.random = mix(self.random + 1);
                let right = next(&self.limits, &tokens);
                tokens.push(match (self.kind, self.random % 4) {
                    (0, _) | (2, 1..) => right,
                    (1, _) => (right + 1) % VOCAB as u32,
                    _ => (self.random >> 32) as u32 % VOCAB as u32,
                });
            }
            Guess { tokens: tokens.split_off(ask.tokens.len()), matched: 0 }
        };
        asks.iter().map(&mut guess).collect()
    }
}

/// The likeliest token behind `tokens`.
fn next(limits: &Limits, tokens: &[u32]) -> u32 {
    let logits = logits(tokens.iter().copied(), limits.variant(tokens.len()));
    let best = (0..VOCAB).max_by(|&a, &b| logits[a].total_cmp(&logits[b]).then(b.cmp(&a)));
    best.unwrap() as u32
}

/// What a request must answer.
fn answer(limits: &Limits, prompt: &[u32], max_tokens: usize) -> (Vec<u32>, Finish) {
    let mut tokens = prompt.to_vec();
    loop {
        let token = next(limits, &tokens);
        if token == 0 {
            return (tokens.split_off(prompt.len()), Finish::EndOfText(0));
        }
        tokens.push(token);
        if tokens.len() - prompt.len() == max_tokens || tokens.len() == limits.context {
            return (tokens.split_off(prompt.len()), Finish::Length);
        }
    }
}

/// What the simulation expects of a sequence.
enum Owner {
    Request {
        prompt: Vec<u32>,
        max: usize,
        got: Vec<u32>,
        poisoned: bool,
    },
    /// Tokens; the first whose logits are still to come; the length it is known to reach.
    Session {
        tokens: Vec<u32>,
        next: usize,
        horizon: usize,
    },
}

struct Simulation {
    random: u64,
    core: Core,
    cache: Cache,
    owners: BTreeMap<SequenceId, Owner>,
    next_id: u64,
    finished: usize,
}

impl Simulation {
    fn new(seed: u64, limits: Limits) -> Self {
        Self {
            random: seed,
            cache: Cache::new(limits.pages),
            core: Core::new(limits),
            owners: BTreeMap::new(),
            next_id: 0,
            finished: 0,
        }
    }

    /// Has tokens proposed: 0 right ones, 1 wrong ones, 2 mostly right ones, 3 any.
    fn speculate(&mut self, kind: u64) {
        let prophet = Prophet { limits: self.core.limits.clone(), kind, random: self.random };
        self.core.speculator = Some(Speculator::new(Box::new(prophet), true));
    }

    fn below(&mut self, n: usize) -> usize {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        (mix(self.random) % n as u64) as usize
    }

    /// Tokens that often begin alike.
    fn some_tokens(&mut self, most: usize) -> Vec<u32> {
        let (family, len) = (self.below(3) as u32, 1 + self.below(most));
        let cut = self.below(len + 1);
        let tail = self.below(4) as u32;
        (0..len).map(|i| 1 + if i < cut { family } else { tail } + i as u32 % 5).collect()
    }

    fn someone(&mut self, wanted: impl Fn(&Owner) -> bool) -> Option<SequenceId> {
        let ids: Vec<_> =
            self.owners.iter().filter(|(_, o)| wanted(o)).map(|(id, _)| *id).collect();
        (!ids.is_empty()).then(|| ids[self.below(ids.len())])
    }

    fn random_command(&mut self) {
        let context = self.core.limits.context;
        let id = SequenceId(self.next_id);
        match self.below(12) {
            0..5 if self.owners.len() < 8 => {
                let prompt = self.some_tokens(context - 1);
                let max = self.below(10);
                let poisoned = self.below(12) == 0;
                self.next_id += 1;
                let client = self.below(3) as u64;
                let job = Box::new(Job { client, ..*job(prompt.len(), max) });
                let command = Command::Generate { id, prompt: prompt.clone(), job };
                self.core.handle(command);
                self.owners.insert(id, Owner::Request { prompt, max, got: vec![], poisoned });
            }
            5 if self.owners.len() < 8 => {
                self.next_id += 1;
                self.core.handle(Command::Open { id });
                let owner = Owner::Session { tokens: vec![], next: 0, horizon: 0 };
                self.owners.insert(id, owner);
            }
            6..9 => self.random_extend(),
            9 => {
                let found = self.someone(|owner| matches!(owner, Owner::Request { .. }));
                found.into_iter().for_each(|id| self.core.handle(Command::Cancel { id }));
            }
            10 => {
                let found = self.someone(|owner| matches!(owner, Owner::Session { .. }));
                if let Some(id) = found {
                    self.core.handle(Command::Close { id });
                    self.owners.remove(&id);
                }
            }
            _ => self.core.handle(Command::Cancel { id: SequenceId(u64::MAX) }),
        }
    }

    /// A session that idles keeps some of its tokens and gets more.
    fn random_extend(&mut self) {
        let resting = |owner: &Owner| match owner {
            Owner::Session { tokens, next, .. } => *next == tokens.len(),
            Owner::Request { .. } => false,
        };
        let Some(id) = self.someone(resting) else { return };
        let more = self.some_tokens(7);
        let (keep, score, extra) = (self.below(30), self.below(2) == 0, self.below(4));
        let context = self.core.limits.context;
        let Some(Owner::Session { tokens, next, horizon }) = self.owners.get_mut(&id) else {
            return;
        };
        tokens.truncate(keep);
        let keep = tokens.len();
        tokens.extend(more.into_iter().take(context - keep));
        if tokens.is_empty() {
            return;
        }
        *next = if score { keep.min(tokens.len() - 1) } else { tokens.len() - 1 };
        *horizon = (tokens.len() + extra).min(context);
        let command = Command::Extend {
            id,
            keep,
            tokens: tokens[keep..].to_vec(),
            logits_from: *next,
            horizon: *horizon,
        };
        self.core.handle(command);
    }

    fn poisoned(&self, id: SequenceId) -> bool {
        matches!(self.owners.get(&id), Some(Owner::Request { poisoned: true, .. }))
    }

    /// One batch; `false` if there is nothing to run.
    fn step(&mut self) -> bool {
        self.hear();
        let Some(work) = self.core.next_work() else { return false };
        let limits = &self.core.limits;
        assert!(work.tokens.len() <= limits.max_rows, "{} rows", work.tokens.len());
        assert!(work.logit_rows.len() <= limits.logit_rows);
        assert!(work.spans.len() <= limits.max_sequences);
        let guilty = work.spans.iter().any(|span| self.poisoned(span.id));
        if guilty {
            self.core.finish(&work, Err(EngineError::Panicked("poison".into())));
        } else {
            let logits = self.cache.run(&work);
            self.core.finish(&work, Ok(&logits));
        }
        self.core.check().unwrap();
        self.hear();
        true
    }

    /// Compares what happened with what must happen.
    fn hear(&mut self) {
        for (id, notice) in self.core.take_notices() {
            match (notice, self.owners.get_mut(&id)) {
                (Notice::Token { id: token, .. }, Some(Owner::Request { got, .. })) => {
                    got.push(token);
                }
                (Notice::Done { finish, usage, .. }, Some(owner)) => {
                    let Owner::Request { prompt, max, got, .. } = owner else { panic!() };
                    let (expected, end) = match *max {
                        0 => (vec![], Finish::Length),
                        max => answer(&self.core.limits, prompt, max),
                    };
                    assert_eq!(usage.completion, got.len());
                    if finish == Finish::Cancelled {
                        assert_eq!(got[..], expected[..got.len()]);
                    } else {
                        assert_eq!((&*got, finish), (&expected, end), "{prompt:?}");
                        self.finished += 1;
                    }
                    self.owners.remove(&id);
                }
                (Notice::Failed(_), Some(owner)) => {
                    assert!(matches!(owner, Owner::Request { poisoned: true, .. }));
                    self.owners.remove(&id);
                }
                (Notice::Logits { first, logits: got }, Some(owner)) => {
                    let Owner::Session { tokens, next, horizon } = owner else { panic!() };
                    assert_eq!(first, *next);
                    let rope = self.core.limits.variant(tokens.len().max(*horizon));
                    for got in got.chunks(VOCAB) {
                        let seen = tokens[..=*next].iter().copied();
                        assert_eq!(got, logits(seen, rope), "behind token {next} of {tokens:?}");
                        *next += 1;
                    }
                }
                (Notice::Started | Notice::Prefill(_), Some(_)) => {}
                (notice, _) => panic!("{notice:?} about nobody's {id:?}"),
            }
        }
    }

    /// Lets everything come to its end.
    fn drain(&mut self) {
        for _ in 0..10_000 {
            if !self.step() {
                break;
            }
        }
        for (id, owner) in &self.owners {
            match owner {
                Owner::Session { tokens, next, .. } => assert_eq!(*next, tokens.len(), "{id:?}"),
                Owner::Request { prompt, .. } => panic!("{id:?} of {prompt:?} was lost"),
            }
        }
        for id in self.owners.keys().copied().collect::<Vec<_>>() {
            self.core.handle(Command::Close { id });
        }
        assert_eq!(self.core.pages.available(), self.core.limits.pages, "pages are still held");
        self.core.check().unwrap();
    }
}

#[test]
fn nothing_is_lost_or_mixed_up_whatever_arrives() {
    let mut finished = 0;
    for seed in 0..400 {
        let limits = Limits {
            prefix_cache: seed % 4 != 3,
            mixed: seed % 3 != 2,
            pages: if seed % 2 == 0 { 9 } else { 6 },
            ..limits()
        };
        let mut simulation = Simulation::new(mix(seed), limits);
        if seed % 5 > 0 {
            simulation.speculate(seed % 5 - 1);
        }
        for _ in 0..150 {
            simulation.random_command();
            for _ in 0..simulation.below(4) {
                simulation.step();
            }
        }
        simulation.drain();
        finished += simulation.finished;
    }
    assert!(finished > 5_000, "only {finished} requests came to their end");
}

/// Runs requests that arrive together, to their end.
fn together(limits: Limits, requests: &[(Vec<u32>, usize)]) -> (Simulation, usize) {
    let mut simulation = Simulation::new(0, limits);
    for (index, (prompt, max)) in requests.iter().enumerate() {
        let id = SequenceId(index as u64);
        let owner =
            Owner::Request { prompt: prompt.clone(), max: *max, got: vec![], poisoned: false };
        simulation.owners.insert(id, owner);
        let job = job(prompt.len(), *max);
        simulation.core.handle(Command::Generate { id, prompt: prompt.clone(), job });
    }
    let steps = (0..).take_while(|_| simulation.step()).count();
    (simulation, steps)
}

#[test]
fn a_full_cache_preempts_and_everything_still_comes_out_right() {
    let requests: Vec<_> = (0..3).map(|i| (vec![i + 1; 9], 12)).collect();
    let roomy = together(Limits { pages: 20, ..limits() }, &requests);
    let tight = together(Limits { pages: 6, ..limits() }, &requests);
    assert_eq!((roomy.0.finished, tight.0.finished), (3, 3));
    assert!(tight.1 > roomy.1, "nothing had to be computed again");
}

#[test]
fn equal_beginnings_are_computed_once() {
    let prompt: Vec<u32> = (1..14).collect();
    let rows = |prefix_cache| {
        let limits = Limits { prefix_cache, ..limits() };
        let (mut simulation, _) = together(limits, &[(prompt.clone(), 1)]);
        let id = SequenceId(9);
        let job = job(prompt.len(), 1);
        simulation.core.handle(Command::Generate { id, prompt: prompt.clone(), job });
        let mut rows = 0;
        while let Some(work) = simulation.core.next_work() {
            rows += work.tokens.len();
            let logits = simulation.cache.run(&work);
            simulation.core.finish(&work, Ok(&logits));
        }
        let cached = simulation.core.take_notices().into_iter().find_map(|(_, n)| match n {
            Notice::Done { usage, .. } => Some(usage.cached),
            _ => None,
        });
        (rows, cached)
    };
    assert_eq!(rows(false), (13, Some(0)));
    assert_eq!(rows(true), (1, Some(12)));
}

#[test]
fn an_answer_is_not_delayed_by_a_long_prompt() {
    let limits = Limits { pages: 20, ..limits() };
    let mut simulation = Simulation::new(0, limits);
    let submit = |core: &mut Core, id, prompt: Vec<u32>| {
        let job = job(prompt.len(), 8);
        core.handle(Command::Generate { id: SequenceId(id), prompt, job });
    };
    submit(&mut simulation.core, 0, vec![2, 3]);
    let work = simulation.core.next_work().unwrap();
    let logits = simulation.cache.run(&work);
    simulation.core.finish(&work, Ok(&logits));
    submit(&mut simulation.core, 1, vec![5; 20]);
    let work = simulation.core.next_work().unwrap();
    let rows: Vec<_> = work.spans.iter().map(|span| (span.id.0, span.rows.len())).collect();
    assert_eq!(rows, [(0, 1), (1, 5)], "one row for the answer, the budget for the prompt");
}

#[test]
fn a_slow_prompt_is_cut_finer_while_an_answer_waits_for_it() {
    let (context, prefill_rows, max_rows, pages) = (600, 128, 130, 400);
    let limits = Limits { context, prefill_rows, max_rows, pages, short_rope: None, ..limits() };
    let rows_of_prompt = |seconds: f64, alone: bool| {
        let mut simulation = Simulation::new(0, limits.clone());
        let submit = |core: &mut Core, id, prompt: Vec<u32>| {
            let job = job(prompt.len(), 8);
            core.handle(Command::Generate { id: SequenceId(id), prompt, job });
        };
        if !alone {
            submit(&mut simulation.core, 0, vec![2, 3]);
        }
        submit(&mut simulation.core, 1, vec![5; 500]);
        let mut rows = Vec::new();
        for _ in 0..3 {
            let work = simulation.core.next_work().unwrap();
            rows.extend(work.spans.iter().filter(|span| span.id.0 == 1).map(|s| s.rows.len()));
            let logits = simulation.cache.run(&work);
            simulation.core.measured(&work, seconds);
            simulation.core.finish(&work, Ok(&logits));
        }
        rows
    };
    assert_eq!(rows_of_prompt(2.0, true), [128, 128, 128]);
    assert_eq!(rows_of_prompt(0.01, false), [126, 128, 128]);
    assert_eq!(rows_of_prompt(2.0, false), [126, 32, 32]);
}

#[test]
fn clients_take_turns_however_many_requests_one_of_them_has_waiting() {
    let mut simulation = Simulation::new(0, Limits { max_sequences: 1, ..limits() });
    let core = &mut simulation.core;
    let submit = |core: &mut Core, client, ids: std::ops::Range<u64>| {
        for id in ids {
            let job = Box::new(Job { client, ..*job(3, 1) });
            let prompt = vec![1 + id as u32; 3];
            core.handle(Command::Generate { id: SequenceId(id), prompt, job });
        }
    };
    let mut order = Vec::new();
    submit(core, 7, 0..6);
    while let Some(work) = core.next_work() {
        let id = work.spans[0].id.0;
        if order.last() != Some(&id) {
            order.push(id);
        }
        let logits = simulation.cache.run(&work);
        core.finish(&work, Ok(&logits));
        if order == [0, 1] && core.sequences.len() == 4 {
            submit(core, 8, 6..9);
            submit(core, 9, 9..10);
            core.handle(Command::Cancel { id: SequenceId(7) });
        }
    }
    assert_eq!(order, [0, 1, 6, 9, 2, 3, 8, 4, 5]);
}

#[test]
fn cancelling_anywhere_frees_every_page() {
    for steps in 0..12 {
        let mut core = Core::new(limits());
        let mut cache = Cache::new(core.limits.pages);
        let (id, prompt) = (SequenceId(0), vec![3; 11]);
        core.handle(Command::Generate { id, prompt, job: job(11, 9) });
        for _ in 0..steps {
            let Some(work) = core.next_work() else { break };
            let logits = cache.run(&work);
            core.finish(&work, Ok(&logits));
        }
        core.handle(Command::Cancel { id });
        assert_eq!(core.pages.available(), core.limits.pages, "after {steps} steps");
        assert!(core.next_work().is_none());
        let ends = core.take_notices();
        let ends = ends.iter().filter(|(_, n)| matches!(n, Notice::Done { .. })).count();
        assert_eq!(ends, 1);
    }
}

#[test]
fn proposals_that_come_true_save_steps_and_others_cost_none() {
    let steps = |kind: Option<u64>| {
        let mut simulation = Simulation::new(0, Limits { pages: 20, logit_rows: 6, ..limits() });
        kind.into_iter().for_each(|kind| simulation.speculate(kind));
        let owner =
            |prompt: Vec<u32>| Owner::Request { prompt, max: 9, got: vec![], poisoned: false };
        for id in 0..2 {
            let prompt = vec![id as u32 + 2, 5];
            simulation.owners.insert(SequenceId(id), owner(prompt.clone()));
            let (id, job) = (SequenceId(id), job(prompt.len(), 9));
            simulation.core.handle(Command::Generate { id, prompt, job });
        }
        (0..).take_while(|_| simulation.step()).count()
    };
    let plain = steps(None);
    assert_eq!(steps(Some(1)), plain);
    assert!(steps(Some(0)) < plain, "{} of {plain}", steps(Some(0)));
}

/// A letter for each token, the last one held back.
#[derive(Default)]
struct Letters(Option<char>);

impl crate::sequence::Decode for Letters {
    fn push(&mut self, token: u32) -> String {
        let letter = char::from_u32('a' as u32 + token % 4);
        std::mem::replace(&mut self.0, letter).into_iter().collect()
    }

    fn finish(&mut self) -> String {
        self.0.take().into_iter().collect()
    }
}

#[test]
fn stop_strings_and_limits_end_an_answer_in_the_midst_of_a_proposal() {
    let hear = |kind: Option<u64>, prompt: u32, max: usize, stop: &str| {
        let mut simulation = Simulation::new(0, Limits { logit_rows: 6, ..limits() });
        kind.into_iter().for_each(|kind| simulation.speculate(kind));
        let stop = StopMatcher::new(vec![stop.to_owned()]);
        let decode: Option<Box<dyn crate::sequence::Decode>> = Some(Box::new(Letters::default()));
        let job = Box::new(Job { stop, decode, ..*job(1, max) });
        let (id, prompt) = (SequenceId(0), vec![prompt]);
        simulation.core.handle(Command::Generate { id, prompt, job });
        let mut heard = Vec::new();
        while let Some(work) = simulation.core.next_work() {
            let logits = simulation.cache.run(&work);
            simulation.core.finish(&work, Ok(&logits));
            simulation.core.check().unwrap();
            heard.extend(simulation.core.take_notices().into_iter().filter_map(|(_, n)| match n {
                Notice::Token { id, text, .. } => Some((Some(id), text, None)),
                Notice::Done { text, finish, .. } => Some((None, text, Some(finish))),
                _ => None,
            }));
        }
        assert_eq!(simulation.core.pages.available(), simulation.core.limits.pages);
        heard
    };
    let mut stopped = 0;
    for prompt in 1..16 {
        for (max, stop) in [(30, "ab"), (30, "ca"), (30, "dab"), (4, "zz"), (30, "zz")] {
            let expected = hear(None, prompt, max, stop);
            for kind in 0..4 {
                assert_eq!(hear(Some(kind), prompt, max, stop), expected, "{kind} {stop}");
            }
            stopped +=
                usize::from(matches!(expected.last(), Some((.., Some(Finish::StopText(_))))));
        }
    }
    assert!(stopped > 10, "{stopped}");
}

#[test]
fn what_a_new_plan_has_no_room_for_fails_and_keeps_nobody_waiting() {
    let long = |core: &mut Core, id: u64, tokens: usize| {
        let (id, prompt) = (SequenceId(id), vec![1; tokens]);
        core.handle(Command::Generate { id, prompt, job: job(tokens, 1) });
    };
    let append = |core: &mut Core, tokens: usize| {
        let (keep, logits_from) = (0, tokens - 1);
        let (id, tokens, horizon) = (SequenceId(0), vec![2; tokens], tokens);
        core.handle(Command::Extend { id, keep, tokens, logits_from, horizon });
    };
    let mut simulation = Simulation::new(0, limits());
    let core = &mut simulation.core;
    core.handle(Command::Open { id: SequenceId(0) });
    core.restart(Limits { pages: 3, ..limits() });
    let context = core.limits.context;
    assert_eq!(context, 3 * PAGE);
    // Checked against what held before, and sent while the plan was made.
    long(core, 1, context);
    long(core, 2, context - 1);
    append(core, context);
    let failed = |notices: Vec<(SequenceId, Notice)>| -> Vec<(SequenceId, EngineError)> {
        let errors = notices.into_iter().filter_map(|(id, notice)| match notice {
            Notice::Failed(error) => Some((id, error)),
            _ => None,
        });
        errors.collect()
    };
    let too_long = |id, tokens| (SequenceId(id), EngineError::PromptTooLong { tokens, context });
    assert_eq!(failed(core.take_notices()), [too_long(1, context)]);
    while let Some(work) = core.next_work() {
        let logits = simulation.cache.run(&work);
        core.finish(&work, Ok(&logits));
        core.check().unwrap();
    }
    // What fits has been computed; what is appended to it does not fit any more.
    assert_eq!(core.sequences.len(), 1);
    assert_eq!(core.sequences[&SequenceId(0)].rest(), 0);
    append(core, context + 1);
    assert_eq!(failed(core.take_notices()), [too_long(0, context + 1)]);
    assert!(core.sequences.is_empty() && core.waiting.is_empty());
    core.check().unwrap();
}
