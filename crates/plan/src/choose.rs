//! Which devices take part, in which stage: every set of devices that fits in memory is tried.

use crate::case::Case;
use crate::cooperate::{self, Cooperative, WORTH_COOPERATION};
use crate::cost::Shape;
use crate::kv::{KvPlan, kv_plan};
use crate::memory::{self, MemoryUse};
use crate::place::{self, Placement, Seats};
use crate::plan::{Considered, PlanError, Stage, StagePlan, VERIFY_ROWS, row_counts};
use crate::predict::{self, Forecast};
use crate::{DeviceChoice, cost};
use std::collections::BTreeSet;

/// Stages on devices, and what is expected of them.
#[derive(Debug)]
pub(crate) struct Chosen {
    pub(crate) stages: Vec<StagePlan>,
    pub(crate) cooperative: Option<Cooperative>,
    pub(crate) considered: Vec<Considered>,
    pub(crate) forecast: Forecast,
    pub(crate) memory: Vec<MemoryUse>,
    pub(crate) kv: KvPlan,
    pub(crate) reasons: Vec<String>,
}

impl Chosen {
    /// Whether it is the better one of two: it holds more of the prompt and the answer that the
    /// plan is for, or as much and is faster.
    fn beats(&self, other: &Self, case: &Case<'_>) -> bool {
        let wanted = case.options.prompt.saturating_add(case.options.answer);
        let held = |chosen: &Self| chosen.kv.context.min(wanted);
        let faster = || self.forecast.total_s(case) < other.forecast.total_s(case);
        held(self) > held(other) || held(self) == held(other) && faster()
    }
}

/// Devices of which all sets are tried; of more, only those of one and two, and all.
const ALL_SETS: usize = 6;

/// The best of all sets of devices that may take part and fit.
pub(crate) fn choose(
    case: &Case<'_>,
    prefill: &Seats,
    decode: &Seats,
    reasons: &mut Vec<String>,
) -> Result<Chosen, PlanError> {
    let all: BTreeSet<usize> = prefill.all().into_iter().chain(decode.all()).collect();
    let all: Vec<usize> = all.into_iter().collect();
    let mut best: Option<Chosen> = None;
    let mut error = None;
    let differ = case.options.device == DeviceChoice::Hybrid;
    for differ in [differ, false] {
        for set in sets(&all) {
            match of_set(case, prefill, decode, &set, differ) {
                Ok(Some(chosen)) => {
                    let better = best.as_ref().is_none_or(|best| chosen.beats(best, case));
                    best = if better { Some(chosen) } else { best };
                }
                Ok(None) => {}
                Err(problem) => error = Some(problem),
            }
        }
        if best.is_some() {
            break;
        }
        if differ {
            reasons.push("only one kind of device can run this model: no hybrid".into());
        }
    }
    let Some(mut chosen) = best else { return Err(error.unwrap_or_else(|| refused(case, &all))) };
    chosen.reasons.splice(0..0, std::mem::take(reasons));
    Ok(chosen)
}

/// Sets of devices, the small ones first.
fn sets(all: &[usize]) -> Vec<Vec<usize>> {
    let of = |bits: u32| -> Vec<usize> {
        (0..all.len()).filter(|bit| bits >> bit & 1 == 1).map(|bit| all[bit]).collect()
    };
    let mut sets: Vec<Vec<usize>> = if all.len() <= ALL_SETS {
        (1..1_u32 << all.len()).map(of).collect()
    } else {
        let pairs = all.iter().flat_map(|&a| all.iter().map(move |&b| vec![a, b]));
        let pairs = pairs.filter(|pair| pair[0] < pair[1]);
        all.iter().map(|&one| vec![one]).chain(pairs).chain([all.to_vec()]).collect()
    };
    sets.sort_by_key(Vec::len);
    sets
}

fn refused(case: &Case<'_>, all: &[usize]) -> PlanError {
    let seats = Seats { first: all.to_vec(), last_resort: Vec::new() };
    let node = place::refused_by_all(case, &seats).unwrap_or(0);
    let node = case.graph.nodes.get(node);
    PlanError::Refused {
        node: node.map_or_else(String::new, |node| node.name.clone()),
        op: node.map_or("", |node| node.op.name()),
        devices: all.iter().map(|&d| &*case.devices[d].name).collect::<Vec<_>>().join(", "),
    }
}

/// The best that the devices of a set can do together; `None` if one stage has no device among them
/// or some node none that takes it.
fn of_set(
    case: &Case<'_>,
    prefill: &Seats,
    decode: &Seats,
    set: &[usize],
    differ: bool,
) -> Result<Option<Chosen>, PlanError> {
    let asked = [prefill.all(), decode.all()];
    let within = |seats: &Seats| {
        let keep = |list: &[usize]| -> Vec<usize> {
            list.iter().copied().filter(|d| set.contains(d)).collect()
        };
        Seats { first: keep(&seats.first), last_resort: keep(&seats.last_resort) }
    };
    let (prefill, decode) = (within(prefill), within(decode));
    if prefill.first.is_empty() || decode.first.is_empty() {
        return Ok(None);
    }
    let mut memory = memory::memories(case, set);
    let room = memory::room(case, set, &memory)?;
    let Some(pair) = pair(case, &prefill, &decode, differ) else { return Ok(None) };
    let mut reasons = pair.reasons;
    let kv = kv_plan(case.graph, case.options, room, &mut reasons)?;
    let mut considered = pair.considered;
    let shared = shared(case, &prefill, pair.prefill_s, &mut considered);
    let forecast = |stages: &[StagePlan]| predict::forecast(case, stages, shared.as_ref());
    let each = stages(case, (&prefill, &asked), (&pair.prefill, &pair.decode), true);
    let same = stages(case, (&prefill, &asked), (&pair.prefill, &pair.decode), false);
    let (of_each, of_same) = (forecast(&each), forecast(&same));
    let (stages, forecast) = match of_each.total_s(case) <= of_same.total_s(case) {
        true => (each, of_each),
        false => (same, of_same),
    };
    memory.iter_mut().for_each(|memory| memory.hold(forecast.kv_bytes));
    let cooperative = shared.map(|shared| Cooperative {
        devices: shared.devices,
        rows: shared.rows,
        pieces: case.pieces.clone(),
        predicted_s: shared.seconds,
        alone_s: pair.prefill_s,
        measured_s: None,
        why: format!(
            "two devices at once save {:.0} %",
            100.0 * (1.0 - shared.seconds / pair.prefill_s)
        ),
    });
    Ok(Some(Chosen { stages, cooperative, considered, forecast, memory, kv, reasons }))
}

/// Cooperation, where it is worth it; every way that was weighed is noted.
fn shared(
    case: &Case<'_>,
    prefill: &Seats,
    alone_s: f64,
    considered: &mut Vec<Considered>,
) -> Option<cooperate::Shared> {
    if !case.options.cooperative {
        return None;
    }
    let shared = cooperate::best(case, &prefill.first)?;
    let name = |d: usize| &case.devices[d].name;
    let [a, b] = shared.devices;
    considered.push(Considered {
        what: format!(
            "rows split: {} {} and {} {}",
            name(a),
            shared.rows[0],
            name(b),
            shared.rows[1]
        ),
        ttft_s: shared.seconds,
        possible: true,
    });
    considered.push(Considered {
        what: format!("columns split between {} and {} (nothing runs so)", name(a), name(b)),
        ttft_s: cooperate::columns(case, shared.devices),
        possible: false,
    });
    (shared.seconds < alone_s * (1.0 - WORTH_COOPERATION)).then_some(shared)
}

/// Placements of the prompt and of a token.
struct Pair {
    prefill: Placement,
    decode: Placement,
    /// Seconds of the prompt, without cooperation.
    prefill_s: f64,
    considered: Vec<Considered>,
    reasons: Vec<String>,
}

/// Ways to place a stage: each device leading, with the others for what it refuses, or split.
fn ways(case: &Case<'_>, seats: &Seats, shape: &Shape) -> Vec<Placement> {
    let mut ways: Vec<Placement> = Vec::new();
    let leads = seats.first.iter().filter_map(|&lead| {
        let others: Vec<usize> = seats.all().into_iter().filter(|&d| d != lead).collect();
        place::split(case, &Seats::one(lead, &others), shape)
    });
    for way in leads.chain(place::place(case, seats, shape)) {
        if !ways.iter().any(|other| other.parts == way.parts) {
            ways.push(way);
        }
    }
    ways
}

/// The device that runs most of a placement, by nodes.
fn leader(placement: &Placement) -> usize {
    let longest = placement.parts.iter().max_by_key(|(_, range)| range.len());
    longest.map_or(0, |(device, _)| *device)
}

/// The best pair of placements, with the hand-over between them.
fn pair(case: &Case<'_>, prefill: &Seats, decode: &Seats, differ: bool) -> Option<Pair> {
    let rows = case.options.prefill_rows.min(case.options.prompt.max(1));
    let firsts = ways(case, prefill, &case.chunk(0, rows, true));
    let thens = ways(case, decode, &case.token());
    let kind = |placement: &Placement| case.devices[leader(placement)].kind;
    let mut best: Option<(f64, f64, &Placement, &Placement)> = None;
    let mut considered = Vec::new();
    let mut fastest = (f64::INFINITY, 0);
    for first in &firsts {
        let prompt_s = predict::prompt_seconds(case, &first.parts);
        considered.push(Considered { what: names(case, first), ttft_s: prompt_s, possible: true });
        if prompt_s < fastest.0 {
            fastest = (prompt_s, leader(first));
        }
        for then in thens.iter().filter(|then| !differ || kind(first) != kind(then)) {
            let handed = predict::handed(case, &first.parts, &then.parts, prompt_s);
            let total = prompt_s + handed + then.seconds * case.options.answer as f64;
            if best.is_none_or(|(least, ..)| total < least) {
                best = Some((total, prompt_s, first, then));
            }
        }
    }
    let (_, prefill_s, first, then) = best?;
    let mut reasons = Vec::new();
    if leader(first) == leader(then) && fastest.1 != leader(first) {
        reasons.push(format!(
            "everything on {}: handing keys and values over would cost more than it saves",
            case.devices[leader(first)].name
        ));
    }
    let (prefill, decode) = (first.clone(), then.clone());
    Some(Pair { prefill, decode, prefill_s, considered, reasons })
}

/// The devices of a placement, each once.
fn names(case: &Case<'_>, placement: &Placement) -> String {
    let mut names: Vec<&str> = Vec::new();
    for (device, _) in &placement.parts {
        let name = &*case.devices[*device].name;
        if !names.contains(&name) {
            names.push(name);
        }
    }
    match names.as_slice() {
        [one] => format!("{one} alone"),
        several => several.join(" with "),
    }
}

/// All stages; `asked` are the devices that might run prefill, and decode. Where `each`, every
/// number of rows goes where it is fastest: short prompts may be better off on another device than
/// long ones.
fn stages(
    case: &Case<'_>,
    (seats, asked): (&Seats, &[Vec<usize>; 2]),
    (prefill, decode): (&Placement, &Placement),
    each: bool,
) -> Vec<StagePlan> {
    let rows = case.options.prefill_rows.min(case.options.prompt.max(1));
    let counts = row_counts(case.options.prefill_rows);
    let main = counts.iter().copied().find(|&m| m >= rows);
    let mut stages = Vec::new();
    for m in counts {
        let shape = Shape { context: case.options.prompt as f64 / 2.0, ..case.chunk(0, m, true) };
        let total = |way: &Placement| {
            let seconds = place::seconds(case, &way.parts, &shape);
            seconds + predict::handed(case, &way.parts, &decode.parts, seconds)
        };
        let placement = match each && main != Some(m) {
            true => ways(case, seats, &shape)
                .into_iter()
                .min_by(|a, b| total(a).total_cmp(&total(b)))
                .unwrap_or_else(|| prefill.clone()),
            false => prefill.clone(),
        };
        let segments = place::segments(case, &asked[0], &placement, &shape);
        stages.push(StagePlan { stage: Stage::Prefill, m, segments });
    }
    let token = case.token();
    let verify = cost::Shape { rows: VERIFY_ROWS, logit_rows: VERIFY_ROWS, ..token };
    for (stage, m, shape) in [(Stage::Decode, 1, token), (Stage::Verify, VERIFY_ROWS, verify)] {
        let segments = place::segments(case, &asked[1], decode, &shape);
        stages.push(StagePlan { stage, m, segments });
    }
    stages
}
