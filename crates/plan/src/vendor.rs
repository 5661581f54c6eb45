//! The fixed rule of AMD's hybrid flow, to compare with: batches of more than one row run on the
//! NPU and single rows on the GPU, each from its own copy of the weights.

use crate::DeviceChoice;
use crate::case::Case;
use crate::choose::Chosen;
use crate::cost::Shape;
use crate::kv::kv_plan;
use crate::memory;
use crate::place::{self, Placement, Seats};
use crate::plan::{PlanError, Stage, StagePlan};
use crate::{Kind, predict};
use std::collections::BTreeSet;
use std::ops::Range;

/// The plan of the rule: with `--device npu`, `gpu` or `cpu` everything is there.
pub(crate) fn choose(
    case: &Case<'_>,
    prefill: &Seats,
    decode: &Seats,
    reasons: &mut Vec<String>,
) -> Result<Chosen, PlanError> {
    let of_kind = |seats: &Seats, kind: Kind| {
        let wanted = case.options.device.kind().unwrap_or(kind);
        let found = seats.first.iter().copied().find(|&d| case.devices[d].kind == wanted);
        found.ok_or_else(|| PlanError::NoDevice {
            asked: wanted.to_string(),
            stage: "the vendor's rule",
            available: case.devices.iter().map(|d| &*d.name).collect::<Vec<_>>().join(", "),
        })
    };
    let (many, one) = (of_kind(prefill, Kind::Npu)?, of_kind(decode, Kind::Gpu)?);
    if matches!(case.options.device, DeviceChoice::Auto | DeviceChoice::Hybrid) {
        reasons.push("the vendor's rule: more than one row on the NPU, one row on the GPU".into());
    }
    let nodes = case.graph.nodes.len();
    // The head sees the last row only.
    let head = case.graph.nodes.iter().rposition(|node| node.outputs.contains(&case.graph.logits));
    let head = head.unwrap_or(nodes);
    let rows = if many == one {
        vec![(many, 0..nodes)]
    } else {
        vec![(many, 0..head), (one, head..nodes)]
    };
    let seen = if many == one { vec![many] } else { vec![many, one] };
    let spell = |stage, m, parts: &[(usize, Range<usize>)], shape: &Shape| {
        let placement = Placement { seconds: 0.0, parts: parts.to_vec() };
        StagePlan { stage, m, segments: place::segments(case, &seen, &placement, shape) }
    };
    let all = [(one, 0..nodes)];
    let token = case.token();
    let most = case.options.prefill_rows;
    let stages = vec![
        spell(Stage::Prefill, 1, &all, &case.chunk(0, 1, true)),
        spell(Stage::Prefill, most, &rows, &case.chunk(0, most, true)),
        spell(Stage::Decode, 1, &all, &token),
    ];
    let forecast = predict::forecast(case, &stages, None);
    let used: BTreeSet<usize> = [many, one].into();
    let used: Vec<usize> = used.into_iter().collect();
    let mut memory = memory::memories(case, &used);
    let room = memory::room(case, &used, &memory)?;
    let kv = kv_plan(case.graph, case.options, room, reasons)?;
    memory.iter_mut().for_each(|memory| memory.hold(forecast.kv_bytes));
    let reasons = std::mem::take(reasons);
    Ok(Chosen { stages, cooperative: None, considered: vec![], forecast, memory, kv, reasons })
}
