//! What it costs that one device reads keys and values that another one wrote.

use crate::case::{Case, to_f64};
use std::ops::Range;
use tangor_model::Op;

/// The device of every attention, in the order of layers.
pub(crate) fn of_layers(case: &Case<'_>, parts: &[(usize, Range<usize>)]) -> Vec<usize> {
    let attention = |range: &Range<usize>| {
        let nodes = &case.graph.nodes[range.clone()];
        nodes.iter().filter(|node| matches!(node.op, Op::Attention(_))).count()
    };
    let parts = parts.iter().map(|(device, range)| (*device, attention(range)));
    parts.flat_map(|(device, count)| std::iter::repeat_n(device, count)).collect()
}

/// Seconds that the next stage waits for keys and values of `tokens` tokens, which were written
/// layer by layer in the `while_s` seconds before.
///
/// Where memory is shared this is a fence. Elsewhere every layer is copied while the next ones are
/// computed: what counts is the last layer's copy, and whatever the link could not move before.
pub(crate) fn seconds(
    case: &Case<'_>,
    (from, to): (&[usize], &[usize]),
    tokens: usize,
    while_s: f64,
) -> f64 {
    let moves = from.iter().zip(to).filter(|(from, to)| from != to);
    let (mut sync, mut copies, mut last) = (0.0_f64, 0.0, 0.0);
    for (&from, &to) in moves {
        sync = sync.max(case.transfer(from, to, 0.0));
        if !case.shared(from, to) {
            last = case.kv_layer_bytes() * to_f64(tokens) / case.link(from, to);
            copies += last;
        }
    }
    let layers = to_f64(from.len().max(1));
    sync + f64::max(last, copies - while_s * (layers - 1.0) / layers)
}
