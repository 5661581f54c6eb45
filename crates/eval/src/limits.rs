//! How close to the machine's limits a measured speed is: prefill against the arithmetic that the
//! processor can do, decode against the bytes that it can read.

use crate::{BenchReport, BenchSpec};
use serde::Serialize;
use tangor_engine::plan::KvType;
use tangor_engine::plan::cost::kv_bytes;
use tangor_engine::plan::model::ir::{Attention, Graph, Op, Rows};

/// What the machine can do, measured.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct MachineLimits {
    /// Multiplications and additions of 8-bit integers per second.
    pub int8_ops_per_s: f64,
    /// Bytes per second that can be read from memory.
    pub read_bytes_per_s: f64,
}

/// Shares of the limits, 0 to 1.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct OfLimit {
    /// Arithmetic of reading the prompt, of what the processor could have done in that time.
    pub prefill: f64,
    /// Weights and cached keys and values read, of what memory could have delivered in that time.
    pub decode: Option<f64>,
}

/// What a model has to do for a token: the numbers of its graph that bound its speed.
#[derive(Clone, Debug, PartialEq)]
pub struct Work {
    /// Weights in matrices that every token goes through.
    per_token: f64,
    /// Weights in matrices that only tokens go through whose logits are wanted.
    per_logits: f64,
    /// Bytes of all these weights.
    weight_bytes: f64,
    /// The attention of each layer.
    attention: Vec<Attention>,
}

impl Work {
    /// The work of a graph.
    #[must_use]
    pub fn of(graph: &Graph) -> Self {
        let mut work =
            Self { per_token: 0.0, per_logits: 0.0, weight_bytes: 0.0, attention: Vec::new() };
        for node in &graph.nodes {
            match &node.op {
                Op::Linear { weight, .. } => {
                    let weight = graph.weight(*weight);
                    let count = weight.rows() as f64 * weight.cols() as f64;
                    match node.inputs.first().map(|&id| graph.value(id).rows) {
                        Some(Rows::Logits) => work.per_logits += count,
                        _ => work.per_token += count,
                    }
                    work.weight_bytes += weight.stored_bytes() as f64;
                }
                Op::Attention(attention) => work.attention.push(attention.clone()),
                _ => {}
            }
        }
        work
    }

    /// Multiplications and additions of reading `prompt` tokens after `depth` others, with the
    /// logits of the last one.
    fn prefill_ops(&self, prompt: usize, depth: usize) -> f64 {
        let prompt = prompt as f64;
        let past = depth as f64 + prompt / 2.0;
        let attention: f64 =
            self.attention.iter().map(|a| seen(a, past) * (a.heads * a.head_dim) as f64).sum();
        2.0 * prompt * self.per_token + 2.0 * self.per_logits + 4.0 * prompt * attention
    }

    /// Bytes of keys and values that a token reads after `past` others.
    fn cached_bytes(&self, kv: KvType, past: usize) -> f64 {
        let elements =
            |a: &Attention| 2.0 * seen(a, past as f64) * (a.kv_heads * a.head_dim) as f64;
        self.attention.iter().map(elements).sum::<f64>() * kv_bytes(kv)
    }
}

/// Tokens that a token attends to, of `past`.
fn seen(attention: &Attention, past: f64) -> f64 {
    attention.window.map_or(past, |window| past.min(window as f64))
}

/// Compares a measurement with the machine's limits.
#[must_use]
pub fn of_limit(
    work: &Work,
    kv: KvType,
    spec: &BenchSpec,
    report: &BenchReport,
    limits: &MachineLimits,
) -> OfLimit {
    let streams = spec.streams as f64;
    let prefill_ops = streams * work.prefill_ops(spec.prompt_tokens, spec.depth);
    // On average half of the answer is in the cache when a token is written.
    let past = spec.depth + spec.prompt_tokens + spec.new_tokens / 2;
    let step_bytes = work.weight_bytes + streams * work.cached_bytes(kv, past);
    OfLimit {
        prefill: prefill_ops / report.ttft_s / limits.int8_ops_per_s,
        decode: report.decode_tps.map(|tps| step_bytes * tps / streams / limits.read_bytes_per_s),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::BenchRun;
    use tangor_engine::plan::model::shapes;
    use tangor_engine::plan::model::tensor::{Layout, Offset};

    /// SmolLM2-135M, by its published shape: hidden 576, 30 layers, 9/3 heads of 64, ffn 1536,
    /// vocabulary 49152.
    const LAYERS: f64 = 30.0 * (576.0 * (2.0 * 576.0 + 2.0 * 192.0) + 3.0 * 576.0 * 1536.0);
    const HEAD: f64 = 576.0 * 49_152.0;
    /// What the last layer computes behind its attention is needed for the last token only.
    const TAIL: f64 = 576.0 * 576.0 + 3.0 * 576.0 * 1536.0;

    fn work() -> Work {
        let config = shapes::config("smollm2-135m").unwrap();
        let layout = Layout::Quant { bits: 4, group: 64, offset: Offset::Zero };
        Work::of(&shapes::random_graph(&config, layout, 1).unwrap())
    }

    #[test]
    fn counts_what_a_published_shape_needs() {
        let work = work();
        let attention = 30.0 * 4.0 * 1024.0 * 512.0 * 576.0;
        let expected = 2.0 * 1024.0 * (LAYERS - TAIL) + 2.0 * (TAIL + HEAD) + attention;
        assert_eq!(work.prefill_ops(1024, 0), expected);
        // 4 bits and an f16 scale per 64.
        assert_eq!(work.weight_bytes, (LAYERS + HEAD) * (0.5 + 2.0 / 64.0));
        assert_eq!(work.cached_bytes(KvType::F16, 1000), 30.0 * 2.0 * 1000.0 * 192.0 * 2.0);
    }

    #[test]
    fn a_run_at_the_limit_is_at_the_limit() {
        let work = work();
        let spec = BenchSpec { streams: 2, ..BenchSpec::default() };
        let limits = MachineLimits { int8_ops_per_s: 1e12, read_bytes_per_s: 3e10 };
        let ttft_s = 2.0 * work.prefill_ops(1024, 0) / 1e12;
        let step = work.weight_bytes + 2.0 * work.cached_bytes(KvType::F16, 1024 + 32);
        let decode_tps = Some(2.0 * 3e10 / step);
        let runs = vec![BenchRun {
            ttft_s,
            prefill_tps: 2048.0 / ttft_s,
            decode_tps,
            drafted: 0,
            accepted: 0,
        }];
        let report = BenchReport { ttft_s, prefill_tps: 2048.0 / ttft_s, decode_tps, runs };
        let share = of_limit(&work, KvType::F16, &spec, &report, &limits);
        assert!((share.prefill - 1.0).abs() < 1e-9, "{share:?}");
        assert!(share.decode.is_some_and(|decode| (decode - 1.0).abs() < 1e-9), "{share:?}");
    }
}
