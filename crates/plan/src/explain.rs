//! A plan for people and for programs.

use crate::Plan;
use serde_json::{Value, json};
use std::fmt::Write;

impl Plan {
    /// `predicted{ttft_s, decode_tps, weights_bytes, kv_bytes}`,
    /// `stages[{stage, m, segments[{device, nodes, predicted_s, measured_s, why}]}]`, `devices`,
    /// `memory[{memory, weights[{layout, bytes}], scratch_bytes, kv_bytes, limit_bytes}]`,
    /// `cooperative`, `considered[{what, ttft_s, possible}]`, `reasons`.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let stages: Vec<Value> = self
            .stages
            .iter()
            .map(|stage| {
                let segments: Vec<Value> = stage
                    .segments
                    .iter()
                    .map(|segment| {
                        json!({
                            "device": self.devices[segment.device].name,
                            "nodes": segment.nodes,
                            "predicted_s": segment.predicted_s,
                            "measured_s": segment.measured_s,
                            "why": segment.why,
                        })
                    })
                    .collect();
                json!({ "stage": stage.stage.name(), "m": stage.m, "segments": segments })
            })
            .collect();
        let memory = self.memory.iter().map(|memory| {
            let copies = memory.copies.iter();
            let copies = copies.map(|(layout, bytes)| json!({ "layout": layout, "bytes": bytes }));
            json!({
                "memory": memory.memory,
                "weights": copies.collect::<Vec<_>>(),
                "scratch_bytes": memory.scratch_bytes,
                "kv_bytes": memory.kv_bytes,
                "limit_bytes": memory.limit_bytes,
            })
        });
        let devices = self.devices.iter().map(|device| {
            json!({ "name": device.name, "kind": device.kind, "description": device.description,
                    "rates": device.rates })
        });
        let cooperative = self.cooperative.as_ref().map(|both| {
            json!({
                "devices": both.devices.map(|device| &*self.devices[device].name),
                "rows": both.rows,
                "pieces": both.pieces.len(),
                "predicted_s": both.predicted_s,
                "alone_s": both.alone_s,
                "measured_s": both.measured_s,
                "why": both.why,
            })
        });
        json!({
            "predicted": self.predicted,
            "stages": stages,
            "devices": devices.collect::<Vec<_>>(),
            "memory": memory.collect::<Vec<_>>(),
            "cooperative": cooperative,
            "considered": self.considered,
            "reasons": self.reasons,
        })
    }

    /// The plan as a table with its reasons.
    #[must_use]
    pub fn explain(&self) -> String {
        let mut out = String::new();
        for device in &self.devices {
            let rates = &device.rates;
            let source = if rates.measured { "measured" } else { "typical, not measured" };
            line(
                &mut out,
                format_args!(
                    "{:8} {}: {:.2} int8 TOPS, {:.1} GB/s ({source})",
                    device.name,
                    device.description,
                    rates.int8_ops_per_s / 1e12,
                    rates.read_bytes_per_s / 1e9
                ),
            );
        }
        line(
            &mut out,
            format_args!(
                "\n{:8} {:>5}  {:8} {:40} {:>10}  why",
                "stage", "rows", "device", "nodes", "seconds"
            ),
        );
        for stage in &self.stages {
            for segment in &stage.segments {
                let (first, last) = (segment.nodes.first(), segment.nodes.last());
                let nodes = match (first, last) {
                    (Some(first), Some(last)) => {
                        format!("{first} .. {last} ({})", segment.nodes.len())
                    }
                    _ => "none".into(),
                };
                line(
                    &mut out,
                    format_args!(
                        "{:8} {:>5}  {:8} {nodes:40} {:>10.6}  {}",
                        stage.stage.name(),
                        stage.m,
                        self.devices[segment.device].name,
                        segment.measured_s.unwrap_or(segment.predicted_s),
                        segment.why
                    ),
                );
            }
        }
        if let Some(both) = &self.cooperative {
            let name = |index: usize| &*self.devices[both.devices[index]].name;
            line(
                &mut out,
                format_args!(
                    "\ntogether {} reads {} rows and {} the next {}, in turns, one layer behind: \
                     {:.3} s instead of {:.3} s",
                    name(0),
                    both.rows[0],
                    name(1),
                    both.rows[1],
                    both.measured_s.unwrap_or(both.predicted_s),
                    both.alone_s
                ),
            );
        }
        let (kv, predicted) = (&self.kv, &self.predicted);
        line(
            &mut out,
            format_args!(
                "\nKV       {:?}, {} pages of {} tokens, {}; context {}",
                kv.dtype,
                kv.pages,
                kv.page_tokens,
                mib(kv.bytes),
                kv.context
            ),
        );
        line(
            &mut out,
            format_args!(
                "memory   weights {}, activations {}",
                mib(predicted.weights_bytes),
                mib(self.arena.bytes)
            ),
        );
        line(
            &mut out,
            format_args!(
                "expect   first token after {:.3} s, then {:.1} tokens/s",
                predicted.ttft_s, predicted.decode_tps
            ),
        );
        for reason in &self.reasons {
            line(&mut out, format_args!("note     {reason}"));
        }
        out
    }
}

fn line(out: &mut String, text: std::fmt::Arguments<'_>) {
    // Writing to a string cannot fail.
    let _ = writeln!(out, "{text}");
}

fn mib(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}
