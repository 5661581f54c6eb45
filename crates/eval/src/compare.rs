//! Programs side by side: each takes its turn, then the next, and medians are compared.
//!
//! Wall time on a machine that does other things too is noise; the ratio of programs that take
//! turns is much less so. Here are the numbers and what follows from them; whoever compares runs
//! the programs.

use crate::logits::median;
use serde::Serialize;

/// What one program did in one turn.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Turn {
    /// Prompt tokens per second.
    pub prefill_tps: Option<f64>,
    /// Seconds to the first token after the prompt.
    pub ttft_s: Option<f64>,
    /// Tokens per second with next to nothing before the first one.
    pub decode_tps: Option<f64>,
    /// Tokens per second after the prompt.
    pub decode_deep_tps: Option<f64>,
}

/// What a turn measures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Metric {
    /// [`Turn::prefill_tps`].
    Prefill,
    /// [`Turn::ttft_s`].
    Ttft,
    /// [`Turn::decode_tps`].
    Decode,
    /// [`Turn::decode_deep_tps`].
    DecodeDeep,
}

impl Metric {
    /// In the order of reports.
    pub const ALL: [Self; 4] = [Self::Prefill, Self::Ttft, Self::Decode, Self::DecodeDeep];

    /// The number of a turn.
    #[must_use]
    pub fn of(self, turn: &Turn) -> Option<f64> {
        match self {
            Self::Prefill => turn.prefill_tps,
            Self::Ttft => turn.ttft_s,
            Self::Decode => turn.decode_tps,
            Self::DecodeDeep => turn.decode_deep_tps,
        }
    }

    /// How many times as fast `a` is as `b`: of times, the other way round than of rates.
    #[must_use]
    pub fn ratio(self, a: f64, b: f64) -> f64 {
        if self == Self::Ttft { b / a } else { a / b }
    }
}

/// A number over several turns.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Spread {
    /// The middle.
    pub median: f64,
    /// The least.
    pub min: f64,
    /// The greatest.
    pub max: f64,
}

impl Spread {
    /// Of some numbers; none of no numbers.
    #[must_use]
    pub fn of(values: &[f64]) -> Option<Self> {
        let min = values.iter().copied().reduce(f64::min)?;
        let max = values.iter().copied().reduce(f64::max)?;
        Some(Self { median: median(values), min, max })
    }
}

/// One program's turns.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Contender {
    /// Its name.
    pub name: String,
    /// What it ran: its version, the format of the weights, settings.
    pub settings: String,
    /// Its turns, in order.
    pub turns: Vec<Turn>,
}

impl Contender {
    /// A number over all turns.
    #[must_use]
    pub fn spread(&self, metric: Metric) -> Option<Spread> {
        let values: Vec<f64> = self.turns.iter().filter_map(|turn| metric.of(turn)).collect();
        Spread::of(&values)
    }

    /// How many times as fast this one is as another, by medians.
    #[must_use]
    pub fn times(&self, other: &Self, metric: Metric) -> Option<f64> {
        let (a, b) = (self.spread(metric)?.median, other.spread(metric)?.median);
        Some(metric.ratio(a, b))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn contender(rates: &[f64]) -> Contender {
        let turn = |rate: &f64| Turn {
            prefill_tps: Some(*rate),
            ttft_s: Some(100.0 / rate),
            ..Turn::default()
        };
        let turns = rates.iter().map(turn).collect();
        Contender { name: "a".into(), settings: String::new(), turns }
    }

    #[test]
    fn medians_stand_for_many_turns() {
        let spread = contender(&[30.0, 10.0, 20.0]).spread(Metric::Prefill);
        assert_eq!(spread, Some(Spread { median: 20.0, min: 10.0, max: 30.0 }));
        assert_eq!(contender(&[1.0]).spread(Metric::Decode), None);
    }

    #[test]
    fn twice_the_rate_and_half_the_time_are_both_twice_as_fast() {
        let (a, b) = (contender(&[20.0, 50.0]), contender(&[10.0, 25.0]));
        assert_eq!(a.times(&b, Metric::Prefill), Some(2.0));
        assert_eq!(a.times(&b, Metric::Ttft), Some(2.0));
        assert_eq!(a.times(&b, Metric::Decode), None);
    }
}
