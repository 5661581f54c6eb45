//! What real models do not have, and a device may therefore refuse: if it does, it says so before
//! ([`Device::refuses`]) and when the node is prepared, by name; if it does not, it computes it.

use super::ops::Case;
use super::random::{Form, Kind, Random, graph};
use super::{Checker, Line};
use crate::contract::{Device, DeviceError};
use tangor_model::Op;
use tangor_model::ir::Attention;
use tangor_tensor::DType;

/// What these may differ from the oracle by.
const TOLERANCE: f64 = 2e-2;

/// What is refused, and a line on whether refusals keep their word.
pub(super) fn check(device: &dyn Device) -> (Line, Vec<(&'static str, Option<String>)>) {
    let varied = "what a device refuses it says before, and by name; all else it computes";
    let mut checker = Checker::new("refusals", varied, TOLERANCE);
    let mut limits = Vec::new();
    let mut random = Random(31);
    for (what, case) in [
        ("attention: heads of 512 elements", attention(2, 1, 512)),
        ("attention: heads of 2048 elements", attention(2, 1, 2048)),
        ("attention: 48 query heads of one key head", attention(48, 1, 16)),
        ("attention: 160 query heads of one key head", attention(160, 1, 16)),
        ("linear: 140,000 inputs in 4 bits", linear(&mut random, 140_000)),
    ] {
        let Some(case) = case else {
            checker.record(what, Err("the case could not be built".into()));
            continue;
        };
        let width = case.inputs.iter().map(|&id| case.graph.value(id).width).sum::<usize>();
        let inputs = [random.activations(case.rows * width)];
        let refused = device.refuses(&case.graph, 0);
        let result = match (&refused, case.outputs(device, &inputs, &[case.rows])) {
            (Some(_), Err(DeviceError::Refused { node, .. })) if node == "op" => Ok(0.0),
            (Some(_), other) => Err(format!("it was to be refused by name, not: {other:?}")),
            (None, _) => case.error(device, &inputs),
        };
        checker.record(what, result);
        limits.push((what, refused));
    }
    (checker.line, limits)
}

fn attention(heads: usize, kv_heads: usize, head_dim: usize) -> Option<Case> {
    let mut g = graph(5, head_dim, false);
    (g.hyper.heads, g.hyper.kv_heads, g.hyper.head_dim) = (heads, kv_heads, head_dim);
    let width = (heads + 2 * kv_heads) * head_dim;
    let (layer, scale, window, softcap, rotate) = (0, 0.1, None, None, true);
    let op = Attention { layer, heads, kv_heads, head_dim, scale, window, softcap, rotate };
    Case::of(g, Op::Attention(op), &[width], 3)
}

fn linear(random: &mut Random, inputs: usize) -> Option<Case> {
    let form = Form::Grouped { bits: 4, group: 32, scales: DType::F16, zeros: Kind::Middle };
    let mut g = graph(5, 8, false);
    let weight = g.add_weight("w", form.weight(random, 3, inputs)?);
    Case::of(g, Op::Linear { weight, bias: None }, &[inputs], 2)
}
