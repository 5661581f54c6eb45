//! Which device runs which nodes of a stage: the cheapest path through the graph.

use crate::plan::{PlanError, SegmentPlan};
use crate::{DeviceProfile, PlanOptions, cost};
use std::collections::BTreeSet;
use std::ops::Range;
use tangor_model::ir::Rows;
use tangor_model::{Graph, Node, Op};

/// Bytes per second between memories that are not shared: PCIe 4.0 x8, as it is reached.
pub(crate) const LINK_BYTES_PER_S: f64 = 12e9;

/// A device for each run of nodes, in order.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Placement {
    /// Device and nodes.
    pub(crate) parts: Vec<(usize, Range<usize>)>,
    /// Seconds in all, transfers included.
    pub(crate) seconds: f64,
}

/// The devices, by index, that may run a stage.
pub(crate) fn candidates(
    devices: &[DeviceProfile],
    options: &PlanOptions,
    stage: &'static str,
    only: Option<&str>,
) -> Result<Vec<usize>, PlanError> {
    let none = |asked: &str| PlanError::NoDevice {
        asked: asked.to_owned(),
        stage,
        available: if devices.is_empty() {
            "none".into()
        } else {
            let names = devices.iter().map(|device| format!("{} ({})", device.name, device.kind));
            names.collect::<Vec<_>>().join(", ")
        },
    };
    let kinds: BTreeSet<_> = devices.iter().map(|device| device.kind).collect();
    if options.device == crate::DeviceChoice::Hybrid && kinds.len() < 2 {
        return Err(none("second kind of"));
    }
    let matches = |device: &DeviceProfile| match only {
        Some(name) => device.name == name || device.kind.to_string() == name,
        None => options.device.kind().is_none_or(|kind| kind == device.kind),
    };
    let found: Vec<usize> = (0..devices.len()).filter(|&i| matches(&devices[i])).collect();
    if found.is_empty() {
        return Err(none(only.unwrap_or(&options.device.to_string())));
    }
    Ok(found)
}

/// Share of the time of the best single device that a split must save: a segment that another stage
/// does not have needs weights packed once more, and every border is one more thing to go wrong.
const WORTH_A_SPLIT: f64 = 0.1;

/// The cheapest way to run the whole graph on `allowed` devices: on one of them, or split if that
/// saves enough.
pub(crate) fn place(
    graph: &Graph,
    devices: &[DeviceProfile],
    allowed: &[usize],
    shape: &cost::Shape,
) -> Placement {
    let whole = allowed
        .iter()
        .map(|&device| split(graph, devices, &[device], shape))
        .min_by(|a, b| a.seconds.total_cmp(&b.seconds));
    let split = split(graph, devices, allowed, shape);
    match whole {
        Some(whole) if split.seconds > whole.seconds * (1.0 - WORTH_A_SPLIT) => whole,
        _ => split,
    }
}

/// The cheapest split.
///
/// Dynamic programming over the nodes: a node on a device costs what the roofline says; changing
/// the device costs a run and the transfer of every value that lives on.
fn split(
    graph: &Graph,
    devices: &[DeviceProfile],
    allowed: &[usize],
    shape: &cost::Shape,
) -> Placement {
    let crossing = crossing_bytes(graph, shape);
    // best[k]: cheapest cost of the nodes so far with the last one on allowed[k].
    let mut best: Vec<f64> = allowed.iter().map(|&d| devices[d].rates.run_s).collect();
    let mut came_from: Vec<Vec<usize>> = Vec::with_capacity(graph.nodes.len());
    for (index, node) in graph.nodes.iter().enumerate() {
        let mut next = Vec::with_capacity(allowed.len());
        let mut from = Vec::with_capacity(allowed.len());
        for (k, &device) in allowed.iter().enumerate() {
            let rates = &devices[device].rates;
            let rows = shape.rows.next_multiple_of(rates.row_tile.max(1));
            let here = if devices[device].refused.contains(&index) {
                f64::INFINITY
            } else {
                cost::node_seconds(graph, node, rates, &cost::Shape { rows, ..*shape })
            };
            // Staying is considered first, so that ties do not change the device.
            let (mut source, mut total) = (k, best[k]);
            for (j, &other) in allowed.iter().enumerate().filter(|_| index > 0) {
                let shared = devices[other].host_memory && devices[device].host_memory;
                let link = if shared { 0.0 } else { crossing[index] / LINK_BYTES_PER_S };
                let moved = best[j] + rates.run_s + link;
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
    let last = (0..allowed.len()).min_by(|&a, &b| best[a].total_cmp(&best[b])).unwrap_or(0);
    Placement {
        seconds: best.get(last).copied().unwrap_or(0.0),
        parts: trace_back(allowed, &came_from, last),
    }
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

/// Bytes of the values that are written before a node and read by it or later, per node.
fn crossing_bytes(graph: &Graph, shape: &cost::Shape) -> Vec<f64> {
    let mut bytes = vec![0.0; graph.nodes.len()];
    for (id, value) in graph.values.iter().enumerate() {
        let written = graph.nodes.iter().position(|n| n.outputs.iter().any(|o| o.0 == id));
        let read = graph.nodes.iter().rposition(|n| n.inputs.iter().any(|i| i.0 == id));
        let (Some(written), Some(read)) = (written, read) else { continue };
        let rows = match value.rows {
            Rows::Tokens => shape.rows,
            Rows::Logits => shape.logit_rows,
        };
        for slot in bytes.iter_mut().take(read + 1).skip(written + 1) {
            *slot += 4.0 * (rows * value.width) as f64;
        }
    }
    bytes
}

/// Spells a placement out.
pub(crate) fn segments(
    graph: &Graph,
    devices: &[DeviceProfile],
    allowed: &[usize],
    placement: &Placement,
    shape: &cost::Shape,
) -> Vec<SegmentPlan> {
    let spell = |(device, range): &(usize, Range<usize>)| {
        let nodes = &graph.nodes[range.clone()];
        SegmentPlan {
            device: *device,
            range: range.clone(),
            nodes: nodes.iter().map(|node| node.name.clone()).collect(),
            layouts: layouts(graph, nodes),
            predicted_s: cost::seconds(graph, range.clone(), &devices[*device].rates, shape),
            measured_s: None,
            why: why(graph, devices, allowed, (*device, range), shape),
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
    graph: &Graph,
    devices: &[DeviceProfile],
    allowed: &[usize],
    (device, range): (usize, &Range<usize>),
    shape: &cost::Shape,
) -> String {
    if allowed.len() == 1 {
        return if devices.len() == 1 {
            "the only device".into()
        } else {
            "no other device is considered for this stage".into()
        };
    }
    let mut times: Vec<(f64, &str)> = allowed
        .iter()
        .map(|&d| {
            (cost::seconds(graph, range.clone(), &devices[d].rates, shape), &*devices[d].name)
        })
        .collect();
    times.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(b.1)));
    let list: Vec<String> =
        times.iter().map(|(s, name)| format!("{name} {:.3} ms", s * 1e3)).collect();
    let verdict = if times.first().is_some_and(|(_, name)| *name == devices[device].name) {
        "fastest"
    } else {
        "saves a transfer"
    };
    format!("{verdict}: {}", list.join(", "))
}
