//! The plan as a picture: who reads the prompt when, and who writes a token.

use crate::terminal;
use tangor_engine::plan::simulate::Machine;
use tangor_engine::plan::{Plan, PlanOptions, Slot};
use tangor_eval::{LaneBar, LanePanel, Lanes};

/// The devices that take part, a panel for the prompt and one for a token.
pub(super) fn lanes(
    name: &str,
    plan: &Plan,
    asked: &PlanOptions,
    machine: Option<&Machine>,
) -> Lanes {
    let used: Vec<usize> = plan.used().into_iter().collect();
    let panel = |title: String, slots: &[Slot]| LanePanel {
        title,
        bars: slots.iter().filter_map(|slot| bar(&used, slot)).collect(),
    };
    let name = terminal::one_line(name);
    let title = match machine {
        Some(machine) => format!("{name} on {}: simulated", terminal::one_line(&machine.name)),
        None => format!("{name}: predicted"),
    };
    let predicted = &plan.predicted;
    let prefill = format!("prompt of {} tokens: {:.3} s", asked.prompt, predicted.ttft_s);
    let decode = format!("one token: {:.1} a second", predicted.decode_tps);
    Lanes {
        title,
        devices: used.iter().map(|&device| plan.devices[device].name.clone()).collect(),
        panels: vec![panel(prefill, &plan.timeline.prefill), panel(decode, &plan.timeline.decode)],
    }
}

fn bar(used: &[usize], slot: &Slot) -> Option<LaneBar> {
    Some(LaneBar {
        device: used.iter().position(|&device| device == slot.device)?,
        start_s: slot.start_s,
        end_s: slot.end_s,
        label: slot.label.clone(),
        measured_s: slot.measured_s,
    })
}
