//! Which device runs which nodes of a stage: the cheapest path through the graph.

use crate::case::Case;
use crate::cost::Shape;
use crate::plan::{PlanError, SegmentPlan};
use crate::{DeviceProfile, Kind, PlanOptions};
use std::collections::BTreeSet;
use std::ops::Range;
use tangor_model::{Graph, Node, Op};

/// A device for each run of nodes, in order.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Placement {
    /// Device and nodes.
    pub(crate) parts: Vec<(usize, Range<usize>)>,
    /// Seconds in all, transfers included.
    pub(crate) seconds: f64,
}

/// Devices that may run a stage.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Seats {
    /// Those that were asked for.
    pub(crate) first: Vec<usize>,
    /// Those that take what all of these refuse, and nothing else.
    pub(crate) last_resort: Vec<usize>,
}

impl Seats {
    pub(crate) fn one(device: usize, last_resort: &[usize]) -> Self {
        let others = last_resort.iter().copied().filter(|&other| other != device);
        Self { first: vec![device], last_resort: others.collect() }
    }

    /// All of them, those of last resort behind.
    pub(crate) fn all(&self) -> Vec<usize> {
        self.first.iter().chain(&self.last_resort).copied().collect()
    }

    fn refuse(&self, devices: &[DeviceProfile], node: usize) -> bool {
        self.first.iter().all(|&d| devices[d].refused.contains(&node))
    }
}

/// The devices, by index, that may run a stage: those of the kind or name that was asked for. Where
/// that leaves neural processors only, the central processor takes what they refuse.
pub(crate) fn seats(
    devices: &[DeviceProfile],
    options: &PlanOptions,
    stage: &'static str,
    only: Option<&str>,
    without: &[usize],
) -> Result<Seats, PlanError> {
    let there = |&d: &usize| !without.contains(&d);
    let left: Vec<usize> = (0..devices.len()).filter(there).collect();
    let none = |asked: &str| PlanError::NoDevice {
        asked: asked.to_owned(),
        stage,
        available: if left.is_empty() {
            "none".into()
        } else {
            let left = left.iter().map(|&d| &devices[d]);
            let names = left.map(|device| format!("{} ({})", device.name, device.kind));
            names.collect::<Vec<_>>().join(", ")
        },
    };
    let kinds: BTreeSet<_> = left.iter().map(|&d| devices[d].kind).collect();
    if options.device == crate::DeviceChoice::Hybrid && kinds.len() < 2 {
        return Err(none("second kind of"));
    }
    let matches = |device: &DeviceProfile| match only {
        Some(name) => device.name == name || device.kind.to_string() == name,
        None => options.device.kind().is_none_or(|kind| kind == device.kind),
    };
    let first: Vec<usize> = left.iter().copied().filter(|&d| matches(&devices[d])).collect();
    if first.is_empty() {
        return Err(none(only.unwrap_or(&options.device.to_string())));
    }
    let neural = first.iter().all(|&d| devices[d].kind == Kind::Npu);
    let is_cpu = |&d: &usize| neural && devices[d].kind == Kind::Cpu;
    Ok(Seats { first, last_resort: left.into_iter().filter(is_cpu).collect() })
}

/// The first node that none of the devices runs.
pub(crate) fn refused_by_all(case: &Case<'_>, seats: &Seats) -> Option<usize> {
    let all = seats.all();
    let refused = |node: &usize| all.iter().all(|&d| case.devices[d].refused.contains(node));
    (0..case.graph.nodes.len()).find(refused)
}

/// Share of the time of the best single device that a split must save: a segment that another stage
/// does not have needs weights packed once more, and every border is one more thing to go wrong.
pub(crate) const WORTH_A_SPLIT: f64 = 0.1;

/// The cheapest way to run the whole graph on these devices: on one of them, or split if that saves
/// enough. `None` if no device takes some node.
pub(crate) fn place(case: &Case<'_>, seats: &Seats, shape: &Shape) -> Option<Placement> {
    let whole = seats
        .first
        .iter()
        .filter_map(|&device| split(case, &Seats::one(device, &seats.last_resort), shape))
        .min_by(|a, b| a.seconds.total_cmp(&b.seconds));
    match (whole, split(case, seats, shape)) {
        (Some(whole), Some(split)) if split.seconds > whole.seconds * (1.0 - WORTH_A_SPLIT) => {
            Some(whole)
        }
        (whole, split) => split.or(whole),
    }
}

/// The cheapest split.
///
/// Dynamic programming over the nodes: a node on a device costs what the roofline says; changing
/// the device costs a run and the transfer of every value that lives on.
pub(crate) fn split(case: &Case<'_>, seats: &Seats, shape: &Shape) -> Option<Placement> {
    let allowed = seats.all();
    let crossing = case.crossing(shape);
    let costs: Vec<_> = allowed.iter().map(|&d| case.nodes(d, None, shape)).collect();
    // best[k]: cheapest cost of the nodes so far with the last one on allowed[k].
    let mut best: Vec<f64> = allowed.iter().map(|&d| case.rates(d).run_s).collect();
    let mut came_from: Vec<Vec<usize>> = Vec::with_capacity(case.graph.nodes.len());
    for index in 0..case.graph.nodes.len() {
        let spare = seats.refuse(case.devices, index);
        let mut next = Vec::with_capacity(allowed.len());
        let mut from = Vec::with_capacity(allowed.len());
        for (k, &device) in allowed.iter().enumerate() {
            let barred = k >= seats.first.len() && !spare;
            let here = match barred || case.devices[device].refused.contains(&index) {
                true => f64::INFINITY,
                false => costs[k][index],
            };
            // Staying is considered first, so that ties do not change the device.
            let (mut source, mut total) = (k, best[k]);
            for (j, &other) in allowed.iter().enumerate().filter(|_| index > 0) {
                let moved = best[j]
                    + case.rates(device).run_s
                    + case.transfer(other, device, crossing[index]);
                if j != k && moved < total {
                    (source, total) = (j, moved);
                }
            }
            next.push(total + here);
            from.push(source);
        }
        best = next;
        came_from.push(from);
    }
    let last = (0..allowed.len()).min_by(|&a, &b| best[a].total_cmp(&best[b]))?;
    let parts = trace_back(&allowed, &came_from, last);
    best[last].is_finite().then_some(Placement { seconds: best[last], parts })
}

fn trace_back(
    allowed: &[usize],
    came_from: &[Vec<usize>],
    last: usize,
) -> Vec<(usize, Range<usize>)> {
    let mut parts = Vec::new();
    let (mut current, mut end) = (last, came_from.len());
    for index in (0..came_from.len()).rev() {
        let previous = came_from[index][current];
        if previous != current || index == 0 {
            parts.push((allowed[current], index..end));
            end = index;
        }
        current = previous;
    }
    parts.reverse();
    parts
}

/// Seconds of a placement for a batch of another shape, transfers included.
pub(crate) fn seconds(case: &Case<'_>, parts: &[(usize, Range<usize>)], shape: &Shape) -> f64 {
    let crossing = if parts.len() > 1 { case.crossing(shape) } else { Vec::new() };
    let run = |(device, range): &(usize, Range<usize>)| case.segment(*device, range.clone(), shape);
    let moved = |pair: &[(usize, Range<usize>)]| {
        case.transfer(pair[0].0, pair[1].0, crossing[pair[1].1.start])
    };
    parts.iter().map(run).sum::<f64>() + parts.windows(2).map(moved).sum::<f64>()
}

/// Spells a placement out; `considered` are the devices that the stage might have run on.
pub(crate) fn segments(
    case: &Case<'_>,
    considered: &[usize],
    placement: &Placement,
    shape: &Shape,
) -> Vec<SegmentPlan> {
    let spell = |(device, range): &(usize, Range<usize>)| {
        let nodes = &case.graph.nodes[range.clone()];
        SegmentPlan {
            device: *device,
            range: range.clone(),
            nodes: nodes.iter().map(|node| node.name.clone()).collect(),
            layouts: layouts(case.graph, nodes),
            predicted_s: case.segment(*device, range.clone(), shape),
            measured_s: None,
            why: why(case, considered, (*device, range), shape),
        }
    };
    placement.parts.iter().map(spell).collect()
}

fn layouts(graph: &Graph, nodes: &[Node]) -> Vec<String> {
    let weights = nodes.iter().filter_map(|node| match node.op {
        Op::Linear { weight, .. } | Op::Embed { table: weight } => Some(graph.weight(weight)),
        _ => None,
    });
    let names: BTreeSet<String> = weights
        .map(|weight| match weight.layout() {
            Some(tangor_model::tensor::Layout::Dense(dtype)) => dtype.name().to_owned(),
            Some(tangor_model::tensor::Layout::Quant { bits, group, offset }) => {
                format!("{bits}-bit group {group} {}", format!("{offset:?}").to_lowercase())
            }
            None => "mixed".to_owned(),
        })
        .collect();
    names.into_iter().collect()
}

fn why(
    case: &Case<'_>,
    considered: &[usize],
    (device, range): (usize, &Range<usize>),
    shape: &Shape,
) -> String {
    let devices = case.devices;
    let name = &devices[device].name;
    if considered.len() <= 1 && considered.contains(&device) {
        return if devices.len() == 1 {
            "the only device".into()
        } else {
            "no other device is considered for this stage".into()
        };
    }
    let refuses = |d: usize| range.clone().any(|node| devices[d].refused.contains(&node));
    let mut times: Vec<(f64, &str)> = considered
        .iter()
        .filter(|&&d| !refuses(d))
        .map(|&d| (case.segment(d, range.clone(), shape), &*devices[d].name))
        .collect();
    times.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(b.1)));
    let mut list: Vec<String> =
        times.iter().map(|(s, name)| format!("{name} {:.3} ms", s * 1e3)).collect();
    let refusing = considered.iter().filter(|&&d| refuses(d));
    list.extend(refusing.map(|&d| format!("{} refuses", devices[d].name)));
    let verdict = match times.first() {
        Some((_, best)) if best == name => "fastest",
        _ if !considered.contains(&device) => "takes what others refuse",
        _ => "costs less with the rest of the plan",
    };
    format!("{verdict}: {}", list.join(", "))
}
