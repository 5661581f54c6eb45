//! Two devices that read one prompt at the same time.
//!
//! The prompt's chunks alternate between the two. Attention of a chunk in some layer needs keys and
//! values of the chunk before in that layer and nothing else of it, so the device behind runs one
//! layer after the device ahead: a wavefront.

use crate::case::{Case, to_f64};
use crate::kv::PAGE_TOKENS;
use crate::timeline::Slot;
use serde::{Deserialize, Serialize};
use std::ops::Range;

/// Share of the time of the best single device that cooperation must save: it needs the weights on
/// both, and both of them undisturbed.
pub(crate) const WORTH_COOPERATION: f64 = 0.1;

/// How two devices share a prompt.
///
/// A prompt of more than `rows[0]` rows is cut into chunks: `rows[0]` rows for `devices[0]`, the
/// next `rows[1]` for `devices[1]`, and so on in turns until it ends; the last chunk is what is
/// left. A chunk runs piece by piece, in order. Before a device runs piece `p` of a chunk, the
/// other one must have finished piece `p` of the chunk before it, and the keys and values that
/// this piece wrote must be readable here. Nothing else of a chunk is needed elsewhere:
/// activations stay where they are. The last chunk's last piece writes the logits. Prompts of
/// `rows[0]` rows or fewer, and the chunks of several sequences in one batch, run as
/// [`Plan::stage`](crate::Plan::stage) says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Cooperative {
    /// Indices in [`Plan::devices`](crate::Plan::devices): the one that begins, the one behind.
    pub devices: [usize; 2],
    /// Rows of a chunk, for each of the two.
    pub rows: [usize; 2],
    /// The graph cut between its layers: indices of nodes, one attention each.
    pub pieces: Vec<Range<usize>>,
    /// Seconds that the prompt of the prediction takes so.
    pub predicted_s: f64,
    /// Seconds that it takes without.
    pub alone_s: f64,
    /// Seconds that it took, where somebody measured.
    pub measured_s: Option<f64>,
    /// Why.
    pub why: String,
}

/// The best way for two devices to share the prompt.
pub(crate) struct Shared {
    pub(crate) devices: [usize; 2],
    pub(crate) rows: [usize; 2],
    pub(crate) seconds: f64,
    pub(crate) slots: Vec<Slot>,
}

/// Rounds, each of one chunk per device, that a prompt may be cut into.
const ROUNDS: [usize; 3] = [1, 2, 4];

/// The best split of the prompt among these devices, if two of them can run the whole graph.
pub(crate) fn best(case: &Case<'_>, devices: &[usize]) -> Option<Shared> {
    let able: Vec<usize> =
        devices.iter().copied().filter(|&d| case.devices[d].refused.is_empty()).collect();
    let pairs = able.iter().flat_map(|&a| able.iter().map(move |&b| [a, b]));
    let pairs = pairs.filter(|[a, b]| a != b);
    let splits = pairs.flat_map(|pair| rows(case, pair).into_iter().map(move |rows| (pair, rows)));
    let timed = splits.map(|(pair, rows)| (pair, rows, wavefront(case, pair, rows).0));
    let (devices, rows, seconds) = timed.min_by(|a, b| a.2.total_cmp(&b.2))?;
    let slots = wavefront(case, devices, rows).1;
    Some(Shared { devices, rows, seconds, slots })
}

/// Splits that are worth a look: rows in proportion to speed, rounded to what the devices pad to,
/// and the neighbours of that.
fn rows(case: &Case<'_>, [a, b]: [usize; 2]) -> Vec<[usize; 2]> {
    let (prompt, most) = (case.options.prompt, case.options.prefill_rows);
    let speed = |d: usize, other: usize| {
        let rows = prompt.div_ceil(2).min(most).max(1);
        to_f64(rows) / case.nodes(d, Some(other), &case.chunk(0, rows, true)).iter().sum::<f64>()
    };
    let (fast, slow) = (speed(a, b), speed(b, a));
    let unit = |d: usize| case.devices[d].padded_rows(2).max(PAGE_TOKENS);
    let mut splits = Vec::new();
    for round in ROUNDS.map(|rounds| prompt.div_ceil(rounds)) {
        let ideal = to_f64(round) * fast / (fast + slow);
        for (unit, of_a) in [(unit(a), true), (unit(b), false)] {
            let share = if of_a { ideal } else { to_f64(round) - ideal };
            let near = (share / to_f64(unit)) as usize;
            for units in near.saturating_sub(1)..=near + 2 {
                let mine = (units * unit).min(round);
                let rest = round - mine;
                let split = if of_a { [mine, rest] } else { [rest, mine] };
                if split.iter().all(|&rows| (1..=most).contains(&rows)) && !splits.contains(&split)
                {
                    splits.push(split);
                }
            }
        }
    }
    splits
}

/// Seconds of the prompt when its chunks alternate, and when each of them runs.
fn wavefront(case: &Case<'_>, pair: [usize; 2], rows: [usize; 2]) -> (f64, Vec<Slot>) {
    let prompt = case.options.prompt.max(1);
    let mut slots: Vec<Slot> = Vec::new();
    let mut before: Vec<f64> = vec![0.0; case.pieces.len()];
    let mut free = [0.0; 2];
    let (mut done, mut turn, mut exchange) = (0, 0, 0.0);
    while done < prompt {
        let (device, other) = (pair[turn % 2], pair[(turn + 1) % 2]);
        let count = rows[turn % 2].min(prompt - done);
        let shape = case.chunk(done, count, done + count >= prompt);
        let costs = case.nodes(device, Some(other), &shape);
        let mut clock: f64 = free[turn % 2];
        let mut start = f64::NAN;
        for (piece, ready) in case.pieces.iter().zip(&mut before) {
            let needed = if turn == 0 { 0.0 } else { *ready + exchange };
            clock = clock.max(needed);
            start = if start.is_nan() { clock } else { start };
            clock += case.rates(device).run_s + costs[piece.clone()].iter().sum::<f64>();
            *ready = clock;
        }
        slots.push(Slot {
            device,
            start_s: start,
            end_s: clock,
            label: format!("{count} rows"),
            measured_s: None,
        });
        free[turn % 2] = clock;
        exchange = case.transfer(device, other, case.kv_layer_bytes() * to_f64(count));
        done += count;
        turn += 1;
    }
    (before.last().copied().unwrap_or(0.0), slots)
}

/// Exchanges of a layer whose matrices are split by columns: behind the projections of attention,
/// behind attention, behind the gates, behind the last matrix.
const COLUMN_SYNCS: f64 = 4.0;

/// Seconds of the prompt if two devices split the outputs of every matrix instead of its rows: no
/// lag, and four exchanges of activations a layer. Nothing runs so; it is there to compare with.
pub(crate) fn columns(case: &Case<'_>, [a, b]: [usize; 2]) -> f64 {
    let (prompt, most) = (case.options.prompt.max(1), case.options.prefill_rows);
    let mut seconds = 0.0;
    let mut done = 0;
    while done < prompt {
        let count = most.min(prompt - done);
        let shape = case.chunk(done, count, done + count >= prompt);
        let (left, right) = (case.nodes(a, Some(b), &shape), case.nodes(b, Some(a), &shape));
        let both: f64 = left.iter().zip(right.iter()).map(|(l, r)| l * r / (l + r)).sum();
        // Half of what is written goes the other way, as floats.
        let width = 4.0 * to_f64(case.graph.hyper.hidden + case.graph.hyper.ffn) / 2.0;
        let moved = case.transfer(a, b, to_f64(count) * width / COLUMN_SYNCS);
        seconds += both + to_f64(case.pieces.len()) * COLUMN_SYNCS * moved;
        done += count;
    }
    seconds
}
