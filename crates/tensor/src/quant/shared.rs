//! What several formats do alike: half-precision fields, nibbles, and rounding to scales that are
//! themselves quantised.

use super::{Factored, Factors, Units};
use crate::Group;
use half::f16;

/// Weights of a block whose scales are quantised too.
pub(super) const SUPER: usize = 256;

/// The `f16` at `offset`.
pub(super) fn half_at(block: &[u8], offset: usize) -> f16 {
    f16::from_le_bytes([block[offset], block[offset + 1]])
}

/// The `f16` at `offset`, in `f32`.
pub(super) fn f16_at(block: &[u8], offset: usize) -> f32 {
    half_at(block, offset).to_f32()
}

/// Writes `value` as `f16`, and returns what it was rounded to.
pub(super) fn put_f16(block: &mut [u8], offset: usize, value: f32) -> f32 {
    let value = f16::from_f32(value);
    block[offset..offset + 2].copy_from_slice(&value.to_le_bytes());
    value.to_f32()
}

/// Whether the `f16` at `offset` is finite: its exponent is not all ones.
pub(super) fn is_f16_finite(block: &[u8], offset: usize) -> bool {
    block[offset + 1] & 0x7c != 0x7c
}

/// Low nibbles first, then high ones.
pub(super) fn split_nibbles(packed: &[u8], codes: &mut [u8]) {
    let (low, high) = codes.split_at_mut(packed.len());
    for ((low, high), byte) in low.iter_mut().zip(high).zip(packed) {
        *low = byte & 15;
        *high = byte >> 4;
    }
}

/// Undoes [`split_nibbles`]; only the low four bits of a code are stored.
pub(super) fn join_nibbles(codes: &[u8], packed: &mut [u8]) {
    let (low, high) = codes.split_at(packed.len());
    for ((byte, low), high) in packed.iter_mut().zip(low).zip(high) {
        *byte = (low & 15) | (high << 4);
    }
}

/// The value of largest magnitude, with its sign; the first one of several.
pub(super) fn extreme(weights: &[f32]) -> f32 {
    weights.iter().fold(0.0, |max: f32, &w| if w.abs() > max.abs() { w } else { max })
}

/// Least and greatest value.
pub(super) fn range(weights: &[f32]) -> (f32, f32) {
    weights
        .iter()
        .fold((f32::INFINITY, f32::NEG_INFINITY), |(min, max), &w| (min.min(w), max.max(w)))
}

/// `1 / value`, or 0.
pub(super) fn inverse(value: f32) -> f32 {
    if value == 0.0 { 0.0 } else { 1.0 / value }
}

/// `value + bias` without its fraction, in `0..=max`.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
pub(super) fn code(value: f32, bias: f32, max: u8) -> u8 {
    ((value + bias) as u8).min(max)
}

/// The nearest whole number in `min..=max`.
#[allow(clippy::cast_possible_truncation)]
pub(super) fn nearest(value: f32, min: i8, max: i8) -> i8 {
    (value.round() as i8).clamp(min, max)
}

/// Expresses `values` in units of one `f16` step, written at `offset`: whole numbers whose
/// magnitude is at most `max`.
pub(super) fn quantise_scales<const N: usize>(
    values: &[f32; N],
    max: i8,
    block: &mut [u8],
    offset: usize,
) -> (f32, [i8; N]) {
    let largest = extreme(values).abs();
    let step = put_f16(block, offset, largest / f32::from(max));
    let inverse = inverse(step);
    (step, values.map(|value| nearest(value * inverse, -max, max)))
}

/// Scale and minimum, six bits each, of eight groups in twelve bytes (`Q4_K`, `Q5_K`): the low six
/// bits of bytes 0–3 and 4–7 are those of groups 0–3; groups 4–7 have their low four bits in bytes
/// 8–11 and their high two in the top bits of bytes 0–7.
pub(super) fn unpack_scale_mins(packed: &[u8]) -> [(u8, u8); 8] {
    std::array::from_fn(|group| {
        if group < 4 {
            (packed[group] & 63, packed[group + 4] & 63)
        } else {
            let low = packed[group + 4];
            let scale = (low & 15) | (packed[group - 4] >> 6 << 4);
            (scale, (low >> 4) | (packed[group] >> 6 << 4))
        }
    })
}

/// Undoes [`unpack_scale_mins`].
pub(super) fn pack_scale_mins(values: [(u8, u8); 8], packed: &mut [u8]) {
    for (group, (scale, min)) in values.into_iter().enumerate() {
        if group < 4 {
            packed[group] = scale;
            packed[group + 4] = min;
        } else {
            packed[group + 4] = (scale & 15) | (min << 4);
            packed[group - 4] |= scale >> 4 << 6;
            packed[group] |= min >> 4 << 6;
        }
    }
}

/// `d` and `dmin` (`f16` at bytes 0 and 2), and the groups' six-bit scales and minima.
pub(super) fn scale_min_factors(block: &[u8], units: &mut [Units]) -> Factors {
    for (unit, (scale, min)) in units.iter_mut().zip(unpack_scale_mins(&block[4..16])) {
        *unit = Units { scale: scale.cast_signed(), min: min.cast_signed() };
    }
    Factors { scale: half_at(block, 0), min: -half_at(block, 2) }
}

/// The groups of a factored block, with the `zero` point of all or with minima.
pub(super) fn multiply(
    format: &dyn Factored,
    block: &[u8],
    zero: Option<f32>,
    groups: &mut [Group],
) {
    let mut units = [Units::default(); SUPER / 16];
    let factors = format.factors(block, &mut units[..groups.len()]);
    let (scale, min) = (factors.scale.to_f32(), factors.min.to_f32());
    for (group, unit) in groups.iter_mut().zip(units) {
        let offset = zero.unwrap_or(min * f32::from(unit.min));
        *group = Group { scale: scale * f32::from(unit.scale), offset };
    }
}

/// Rounds to codes of `0..=max` with a scale and a minimum per group: writes the first 16 bytes of
/// `Q4_K` and `Q5_K`, and returns the codes.
pub(super) fn quantise_scale_mins(weights: &[f32], max: u8, block: &mut [u8]) -> [u8; SUPER] {
    let mut scales = [0.0; 8];
    let mut mins = [0.0; 8];
    for ((weights, scale), min) in weights.chunks(32).zip(&mut scales).zip(&mut mins) {
        let (least, greatest) = range(weights);
        *min = -least.min(0.0);
        *scale = (greatest.max(0.0) + *min) / f32::from(max);
    }
    let (d, scales) = quantise_scales(&scales, 63, block, 0);
    let (dmin, mins) = quantise_scales(&mins, 63, block, 2);
    let pairs =
        std::array::from_fn(|group| (scales[group].unsigned_abs(), mins[group].unsigned_abs()));
    pack_scale_mins(pairs, &mut block[4..16]);
    let mut codes = [0; SUPER];
    for ((codes, weights), (scale, min)) in codes.chunks_mut(32).zip(weights.chunks(32)).zip(pairs)
    {
        let inverse = inverse(d * f32::from(scale));
        let min = dmin * f32::from(min);
        for (out, weight) in codes.iter_mut().zip(weights) {
            *out = code((weight + min) * inverse, 0.5, max);
        }
    }
    codes
}

/// Rounds groups of 16 to `min..=max` steps of a scale that is `low` steps at its extreme; the
/// scales in turn are whole numbers up to `max_scale`. Returns the scales and the codes less `min`.
pub(super) fn quantise_signed(
    weights: &[f32],
    (min, max): (i8, i8),
    max_scale: i8,
    block: &mut [u8],
    offset: usize,
) -> ([i8; 16], [u8; SUPER]) {
    let mut scales = [0.0; 16];
    for (weights, scale) in weights.chunks(16).zip(&mut scales) {
        *scale = extreme(weights) / f32::from(min);
    }
    let (d, scales) = quantise_scales(&scales, max_scale, block, offset);
    let mut codes = [0; SUPER];
    for ((codes, weights), scale) in codes.chunks_mut(16).zip(weights.chunks(16)).zip(scales) {
        let inverse = inverse(d * f32::from(scale));
        for (out, weight) in codes.iter_mut().zip(weights) {
            *out = (nearest(weight * inverse, min, max) - min).unsigned_abs();
        }
    }
    (scales, codes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn six_bit_scales_survive_packing() {
        let values = std::array::from_fn(|i| ((i * 9) as u8, (63 - i * 7) as u8));
        let mut packed = [0; 12];
        pack_scale_mins(values, &mut packed);
        assert_eq!(unpack_scale_mins(&packed), values);
    }
}
