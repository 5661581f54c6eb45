//! RoPE scaling schemes: from a checkpoint's parameters to the frequencies of [`Rope`].
//!
//! Everything follows `modeling_rope_utils.py` of Hugging Face transformers, in `f32` and in the
//! same order of operations, so that angles agree to the last bits far into a context.

use crate::rope::{Angles, Rope};
use std::f32::consts::PI;

/// How a checkpoint stretches its rotary embedding.
#[derive(Clone, Debug, PartialEq)]
pub enum Scaling {
    /// Not at all.
    None,
    /// All frequencies divided by one factor.
    Linear {
        /// Position interpolation factor.
        factor: f32,
    },
    /// Llama 3.1: low frequencies divided, high ones kept, a ramp between.
    Llama3 {
        /// Divisor of the low frequencies.
        factor: f32,
        /// Wavelengths above `original / low` are divided.
        low: f32,
        /// Wavelengths below `original / high` are kept.
        high: f32,
        /// Context in tokens that the model was first trained with.
        original: usize,
    },
    /// One divisor per frequency, `dim / 2`: how GGUF stores the outcome of `Llama3`.
    Divisors(Vec<f32>),
    /// LongRoPE: one set of divisors up to the original context, another beyond it.
    LongRope {
        /// Divisors up to `original` tokens, `dim / 2`.
        short: Vec<f32>,
        /// Divisors beyond, `dim / 2`.
        long: Vec<f32>,
        /// Context in tokens that the model was first trained with.
        original: usize,
        /// Factor on cosines and sines, see [`longrope_attention_factor`].
        attention: f32,
    },
}

/// Default factor on LongRoPE's cosines and sines for a context stretched `scale` times from
/// `original` tokens: `sqrt(1 + ln(scale) / ln(original))` (Ding et al. 2024, "LongRoPE").
#[must_use]
#[allow(clippy::cast_possible_truncation, clippy::cast_precision_loss)]
pub fn longrope_attention_factor(scale: f64, original: usize) -> f32 {
    if scale <= 1.0 || original < 2 {
        return 1.0;
    }
    (1.0 + scale.ln() / (original as f64).ln()).sqrt() as f32
}

/// The rotary embedding of halves (GPT-NeoX order) over the first `dim` elements of each head.
/// Divisor lists hold `dim / 2` elements.
#[must_use]
pub fn rope(dim: usize, theta: f64, scaling: &Scaling) -> Rope {
    let powers = powers(dim, theta);
    let plain = || powers.iter().map(|power| 1.0 / power).collect::<Vec<f32>>();
    let divided = |divisors: &[f32]| -> Vec<f32> {
        powers.iter().zip(divisors).map(|(power, divisor)| 1.0 / (divisor * power)).collect()
    };
    let mut factor_on_both = 1.0;
    let mut beyond = None;
    let inv_freq = match scaling {
        Scaling::None => plain(),
        Scaling::Linear { factor } => plain().iter().map(|freq| freq / factor).collect(),
        Scaling::Llama3 { factor, low, high, original } => {
            let smooth = |freq| llama3_frequency(freq, *factor, (*low, *high), *original);
            plain().into_iter().map(smooth).collect()
        }
        Scaling::Divisors(divisors) => divided(divisors),
        Scaling::LongRope { short, long, original, attention } => {
            factor_on_both = *attention;
            beyond = Some((
                *original,
                Angles::Frequencies { inv_freq: divided(long), factor: *attention },
            ));
            divided(short)
        }
    };
    let short = Angles::Frequencies { inv_freq, factor: factor_on_both };
    Rope { dim, interleaved: false, short, long: beyond }
}

/// `theta ^ (2 i / dim)` for `i` in `0..dim / 2`.
#[allow(clippy::cast_possible_truncation, clippy::cast_precision_loss)]
fn powers(dim: usize, theta: f64) -> Vec<f32> {
    // The exponent is rounded to f32 as torch does; the power is then the nearest f32.
    let exponent = |i: usize| (2 * i) as f32 / dim as f32;
    (0..dim / 2).map(|i| theta.powf(f64::from(exponent(i))) as f32).collect()
}

#[allow(clippy::cast_precision_loss)]
fn llama3_frequency(freq: f32, factor: f32, (low, high): (f32, f32), original: usize) -> f32 {
    let original = original as f32;
    let wavelength = 2.0 * PI / freq;
    if wavelength > original / low {
        freq / factor
    } else if wavelength < original / high {
        freq
    } else {
        let smooth = (original / wavelength - low) / (high - low);
        (1.0 - smooth) * freq / factor + smooth * freq
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frequencies(rope: &Rope) -> &[f32] {
        match &rope.short {
            Angles::Frequencies { inv_freq, .. } => inv_freq,
            Angles::Table { .. } => panic!("frequencies expected"),
        }
    }

    #[test]
    fn llama3_keeps_high_frequencies_and_divides_low_ones() {
        // Llama-3.2-1B.
        let scaling = Scaling::Llama3 { factor: 32.0, low: 1.0, high: 4.0, original: 8192 };
        let rope = rope(64, 500_000.0, &scaling);
        let freqs = frequencies(&rope);
        let plain = powers(64, 500_000.0);
        assert_eq!(freqs[0], 1.0);
        assert_eq!(freqs[5], 1.0 / plain[5]);
        assert_eq!(freqs[31], 1.0 / plain[31] / 32.0);
        let middle: Vec<usize> = (0..32)
            .filter(|&i| freqs[i] != 1.0 / plain[i] && freqs[i] > 1.0 / plain[i] / 31.0)
            .collect();
        assert!(!middle.is_empty() && middle.windows(2).all(|w| w[1] == w[0] + 1), "{middle:?}");
    }

    #[test]
    fn longrope_has_two_variants_and_one_attention_factor() {
        let attention = longrope_attention_factor(32.0, 4096);
        assert!((attention - 1.190_238_1).abs() < 1e-6, "Phi-3.5-mini's factor, not {attention}");
        let scaling = Scaling::LongRope {
            short: vec![1.0, 2.0],
            long: vec![4.0, 8.0],
            original: 4096,
            attention,
        };
        let rope = rope(4, 10_000.0, &scaling);
        assert_eq!(frequencies(&rope), [1.0, 0.005]);
        let (limit, long) = rope.long.expect("a long variant");
        assert_eq!(limit, 4096);
        assert_eq!(long, Angles::Frequencies { inv_freq: vec![0.25, 0.00125], factor: attention });
    }

    #[test]
    fn unstretched_contexts_have_no_attention_factor() {
        assert_eq!(longrope_attention_factor(1.0, 4096), 1.0);
        assert_eq!(longrope_attention_factor(0.5, 4096), 1.0);
    }
}
