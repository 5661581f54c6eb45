//! What `tangor compare` says: a table, JSON, a picture.

use super::LeftOut;
use crate::error::Outcome;
use crate::peers::{SHALLOW, Spec};
use crate::terminal;
use serde::Serialize;
use serde_json::{Value, json};
use tangor_eval::{Chart, Contender, MachineLimits, Metric, Panel, Spread};

/// Everything that there is to say.
pub(super) struct Report {
    pub(super) model: String,
    pub(super) spec: Spec,
    pub(super) contenders: Vec<Contender>,
    pub(super) limits: Limits,
    pub(super) left_out: Vec<LeftOut>,
}

/// What the machine could do, measured in each of Tangor's turns: of its own, and as tokens per
/// second of this model.
///
/// Memory is now faster, now slower, from one process to the next: these are medians, and what a
/// program did in a good turn may be more.
#[derive(Debug, Serialize)]
pub(super) struct Limits {
    machine: MachineLimits,
    read_bytes_per_s: Option<Spread>,
    prefill_tps: Option<f64>,
    decode_tps: Option<f64>,
    decode_deep_tps: Option<f64>,
}

impl Limits {
    /// From the reports of `tangor bench`.
    pub(super) fn of(reports: &[Value], spec: &Spec) -> Self {
        let all = |of: &dyn Fn(&Value) -> Option<f64>| {
            let values = reports.iter().filter_map(of).filter(|value| value.is_finite());
            Spread::of(&values.collect::<Vec<f64>>())
        };
        let median = |of: &dyn Fn(&Value) -> Option<f64>| all(of).map(|spread| spread.median);
        let tps = |prompt: usize, rate: &str, share: &str| {
            let rate = format!("{rate}_tps");
            median(&|report: &Value| {
                let here = report["prompt_tokens"].as_u64() == Some(prompt as u64);
                let rate = report[&rate].as_f64().filter(|_| here)?;
                Some(rate / report["of_limit"][share].as_f64()?)
            })
        };
        let machine = |name: &str| all(&|report: &Value| report["limits"][name].as_f64());
        let or_nan = |spread: Option<Spread>| spread.map_or(f64::NAN, |spread| spread.median);
        Self {
            machine: MachineLimits {
                int8_ops_per_s: or_nan(machine("int8_ops_per_s")),
                read_bytes_per_s: or_nan(machine("read_bytes_per_s")),
            },
            read_bytes_per_s: machine("read_bytes_per_s"),
            prefill_tps: tps(spec.prompt, "prefill", "prefill"),
            decode_tps: tps(SHALLOW, "decode", "decode"),
            decode_deep_tps: tps(spec.prompt, "decode", "decode"),
        }
    }

    fn words(&self) -> String {
        let read = self.read_bytes_per_s.map_or_else(String::new, |read| {
            format!(" ({:.1} to {:.1})", read.min / 1e9, read.max / 1e9)
        });
        format!(
            "{:.2} T int8 operations/s, {:.1} GB/s read{read}",
            self.machine.int8_ops_per_s / 1e12,
            self.machine.read_bytes_per_s / 1e9,
        )
    }
}

impl Report {
    pub(super) fn json(&self) -> Outcome<Value> {
        let ours = &self.contenders[0];
        let contenders = self.contenders.iter().map(|one| {
            let mut json = serde_json::to_value(one)?;
            for (name, metric) in NAMES {
                json["medians"][name] = serde_json::to_value(one.spread(metric))?;
                json["times"][name] = ours.times(one, metric).into();
            }
            Ok(json)
        });
        Ok(json!({
            "model": self.model,
            "prompt_tokens": self.spec.prompt,
            "new_tokens": self.spec.new,
            "threads": self.spec.threads,
            "limits": self.limits,
            "contenders": contenders.collect::<Outcome<Vec<Value>>>()?,
            "left_out": self.left_out,
        }))
    }

    pub(super) fn print(&self) -> Outcome {
        let Spec { prompt, new, threads } = self.spec;
        terminal::facts([
            ("model", self.model.clone()),
            ("requests", format!("{prompt} tokens read, {new} written, {threads} threads")),
            ("limits", self.limits.words()),
        ])?;
        terminal::line("")?;
        let deep = format!("DECODE AT {prompt}");
        let headings = ["MEDIAN (RANGE)", "PREFILL", "TTFT", "DECODE AT 0", &deep];
        let mut table = terminal::columns(&headings, &[1, 2, 3, 4]);
        for one in &self.contenders {
            let cells = Metric::ALL.map(|metric| cell(one, metric));
            table.add_row(std::iter::once(one.name.clone()).chain(cells));
        }
        let limits = &self.limits;
        let of = |limit: Option<f64>| limit.map_or_else(String::new, rate);
        table.add_row([
            "limit of the machine".to_owned(),
            of(limits.prefill_tps),
            of(limits.prefill_tps.map(|tps| prompt as f64 / tps)),
            of(limits.decode_tps),
            of(limits.decode_deep_tps),
        ]);
        let ours = &self.contenders[0];
        for one in self.contenders.iter().skip(1) {
            let cells = Metric::ALL.map(|metric| {
                let times = ours.times(one, metric);
                times.map_or_else(String::new, |times| format!("{times:.2} x"))
            });
            let name = format!("tangor / {}", one.name);
            table.add_row(std::iter::once(name).chain(cells));
        }
        terminal::table(&table)?;
        terminal::line("")?;
        terminal::line("prefill and decode in tokens/s, the time to the first token in s")?;
        for one in &self.contenders {
            terminal::line(&format!("{}: {}", one.name, one.settings))?;
        }
        for out in &self.left_out {
            terminal::line(&out.to_string())?;
        }
        Ok(())
    }

    pub(super) fn chart(&self) -> Chart<'_> {
        let Spec { prompt, threads, .. } = self.spec;
        let panel = |title: String, metric, limit| Panel { title, metric, limit };
        let limits = &self.limits;
        let prefill = format!("prefill of {prompt} tokens, tokens/s");
        let deep = format!("decode after {prompt} tokens, tokens/s");
        Chart {
            title: format!("{}, {threads} threads", terminal::one_line(&self.model)),
            contenders: &self.contenders,
            panels: vec![
                panel(prefill, Metric::Prefill, limits.prefill_tps),
                panel("decode, tokens/s".into(), Metric::Decode, limits.decode_tps),
                panel(deep, Metric::DecodeDeep, limits.decode_deep_tps),
            ],
        }
    }
}

/// The metrics by their keys in JSON.
const NAMES: [(&str, Metric); 4] = [
    ("prefill_tps", Metric::Prefill),
    ("ttft_s", Metric::Ttft),
    ("decode_tps", Metric::Decode),
    ("decode_deep_tps", Metric::DecodeDeep),
];

/// `median (least..greatest)`.
fn cell(one: &Contender, metric: Metric) -> String {
    one.spread(metric).map_or_else(String::new, |spread| {
        format!("{} ({}..{})", rate(spread.median), rate(spread.min), rate(spread.max))
    })
}

/// A number with three digits or so.
fn rate(value: f64) -> String {
    let digits = match value {
        v if v >= 100.0 => 0,
        v if v >= 10.0 => 1,
        _ => 2,
    };
    format!("{value:.digits$}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_follow_from_rates_and_their_shares() {
        let report = |prompt: usize, share: f64, read: f64| {
            json!({
                "prompt_tokens": prompt, "prefill_tps": 50.0, "decode_tps": 8.0,
                "limits": {"int8_ops_per_s": 1e12, "read_bytes_per_s": read},
                "of_limit": {"prefill": share, "decode": share},
            })
        };
        let reports = [
            report(100, 0.5, 2e10),
            report(100, 0.25, 3e10),
            report(SHALLOW, 0.1, 5e10),
            report(100, 0.25, 3e10),
        ];
        let limits = Limits::of(&reports, &Spec { prompt: 100, new: 4, threads: 1 });
        assert_eq!(limits.prefill_tps, Some(200.0));
        assert_eq!((limits.decode_tps, limits.decode_deep_tps), (Some(80.0), Some(32.0)));
        assert_eq!(limits.machine.read_bytes_per_s, 3e10);
        let words = limits.words();
        assert_eq!(words, "1.00 T int8 operations/s, 30.0 GB/s read (20.0 to 50.0)");
    }
}
