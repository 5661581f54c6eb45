//! What storage in fewer bits does to values: to the rows that enter a quantised linear under
//! [`Activations::Int8`](crate::Activations::Int8), and to keys and values in a cache.
//!
//! In 8 bits, every [`GROUP`] elements of a row share one scale, `amax / 127`; an element becomes
//! the nearest of `-127..=127` steps, ties to even. A group that holds a NaN or an infinity becomes
//! NaN as a whole, so that broken rows stay visible. Nothing but the row itself decides. In front
//! of weights whose own groups are longer, so are the row's: see [`group_before`]. Cached keys and
//! values have groups of their own, [`KEY_GROUP`] and [`VALUE_GROUP`], and scales in bf16.
//!
//! A few groups of a row hold its greatest elements, and with them nearly all of the error. Rows
//! that enter a linear therefore have *wide* groups: those whose greatest element is more than
//! [`WIDE_OVER_RMS`] times the root mean square of all groups' greatest elements get [`WIDE_STEPS`]
//! steps instead of 127. About one group in ten is wide, and the error of the logits falls to a
//! quarter.

use crate::contract::KvType;
use half::{bf16, f16};
use tangor_model::{Graph, Op, ValueId};
use tangor_tensor::{Layout, Weight};

/// Elements that share a scale, at the least.
pub const GROUP: usize = 32;

/// Elements that share a scale, at the most. Twice as many double the divergence, and halve the
/// work that is not dot products.
pub const LONGEST: usize = 128;

/// Groups whose greatest element is below this are zero: `127 / amax` would overflow.
pub const TINY: f32 = 1.0e-30;

/// Steps of a wide group: two digits of 8 bits, `128 * high + low`.
pub const WIDE_STEPS: f32 = 127.0 * 128.0;

/// Elements of a cached key that share a scale in 8 bits. Keys have a few great elements each, at
/// the same places in all tokens: shorter groups keep them apart from the others.
pub const KEY_GROUP: usize = 16;

/// Elements of a cached value that share a scale in 8 bits.
pub const VALUE_GROUP: usize = 32;

/// Smaller magnitudes are 0 in bf16, 2^-50: so no sum of products of two of them comes near the
/// smallest normal `f32`, and a processor that takes denormals for zero computes the same.
pub const SMALLEST_BF16: f32 = 8.881_784e-16;

/// How far a group's greatest element stands out where the group is wide.
pub const WIDE_OVER_RMS: f32 = 1.5;

/// Elements that share a scale in front of a quantised weight: as many as the weight's own groups
/// have, from [`GROUP`] to [`LONGEST`]. `None` for other weights.
#[must_use]
pub fn group_of(weight: &Weight) -> Option<usize> {
    match weight.layout() {
        Some(Layout::Dense(_)) => None,
        Some(Layout::Quant { group, .. }) => {
            let whole = |len: &usize| {
                group.is_multiple_of(*len)
                    && weight.cols().next_multiple_of(GROUP).is_multiple_of(*len)
            };
            let longer = std::iter::successors(Some(LONGEST), |len| Some(len / 2));
            Some(longer.take_while(|&len| len > GROUP).find(whole).unwrap_or(GROUP))
        }
        None => Some(GROUP),
    }
}

/// Elements that share a scale in a value that quantised linears read: what suits the weight with
/// the shortest groups. `None` if none reads it.
#[must_use]
pub fn group_before(graph: &Graph, value: ValueId) -> Option<usize> {
    let reads = |op: &Op| match op {
        Op::Linear { weight, .. } => group_of(graph.weight(*weight)),
        _ => None,
    };
    let readers = graph.nodes.iter().filter(|node| node.inputs.contains(&value));
    readers.filter_map(|node| reads(&node.op)).min()
}

/// The greatest element that a group of a row may have without being wide, given the greatest
/// elements of all its groups in order. Groups that are not finite do not count.
#[must_use]
#[allow(clippy::cast_precision_loss)]
pub fn wide_limit(greatest: impl Iterator<Item = f32>) -> f32 {
    // Four sums, so that additions do not wait for each other.
    let (mut sums, mut count) = ([0.0_f32; 4], 0_usize);
    for amax in greatest {
        sums[count % 4] += if amax.is_finite() { amax * amax } else { 0.0 };
        count += 1;
    }
    let sum = (sums[0] + sums[1]) + (sums[2] + sums[3]);
    (sum / count.max(1) as f32).sqrt() * WIDE_OVER_RMS
}

/// Scale of a group and the factor that turns its elements into steps.
#[must_use]
pub fn scale_of(group: &[f32]) -> (f32, f32) {
    if !group.iter().all(|x| x.is_finite()) {
        return (f32::NAN, 0.0);
    }
    let amax = group.iter().fold(0.0_f32, |amax, x| amax.max(x.abs()));
    if amax < TINY { (0.0, 0.0) } else { (amax / 127.0, 127.0 / amax) }
}

/// Rounds one row in place to what its form in front of a quantised linear stands for, in groups of
/// `len`.
pub fn round_row(row: &mut [f32], len: usize) {
    let greater = |amax: f32, x: &f32| match (amax.is_finite(), x.is_finite()) {
        (true, true) => amax.max(x.abs()),
        (true, false) => *x,
        _ => amax,
    };
    let greatest = |group: &[f32]| group.iter().fold(0.0, greater);
    let limit = wide_limit(row.chunks(len).map(greatest));
    for group in row.chunks_mut(len) {
        let amax = greatest(group);
        if amax.is_finite() && amax > limit && amax >= TINY {
            let (scale, steps) = (amax / WIDE_STEPS, WIDE_STEPS / amax);
            group.iter_mut().for_each(|x| *x = (*x * steps).round_ties_even() * scale);
        } else {
            round_group(group);
        }
    }
}

fn round_group(group: &mut [f32]) {
    let (scale, steps) = scale_of(group);
    for x in group {
        *x = if scale.is_nan() { scale } else { (*x * steps).round_ties_even() * scale };
    }
}

/// The nearest bf16, ties to even; 0 below [`SMALLEST_BF16`].
#[must_use]
pub fn round_bf16(x: f32) -> f32 {
    if x.abs() < SMALLEST_BF16 { 0.0 } else { bf16::from_f32(x).to_f32() }
}

/// Scale of a group of cached elements: the bf16 next to `amax / 127`, so that the greatest code is
/// always 127 and what was rounded once stays as it is.
#[must_use]
pub fn cached_scale(amax: f32) -> f32 {
    if !amax.is_finite() {
        f32::NAN
    } else if amax < TINY {
        0.0
    } else {
        bf16::from_f32(amax / 127.0).to_f32()
    }
}

fn round_cached(head: &mut [f32], len: usize) {
    for group in head.chunks_mut(len) {
        let finite = group.iter().all(|x| x.is_finite());
        let amax = group.iter().fold(0.0_f32, |amax, x| amax.max(x.abs()));
        let scale = cached_scale(if finite { amax } else { f32::NAN });
        for x in group {
            *x = if scale > 0.0 { (*x * (1.0 / scale)).round_ties_even() * scale } else { scale };
        }
    }
}

/// Rounds one head of one token's key in place to what the cache's type keeps of it.
pub fn round_key(dtype: KvType, head: &mut [f32]) {
    match dtype {
        KvType::F32 => {}
        KvType::F16 => head.iter_mut().for_each(|x| *x = f16::from_f32(*x).to_f32()),
        KvType::Bf16 => head.iter_mut().for_each(|x| *x = round_bf16(*x)),
        KvType::Int8 => round_cached(head, KEY_GROUP),
    }
}

/// Rounds one head of one token's value in place to what the cache's type keeps of it.
pub fn round_value(dtype: KvType, head: &mut [f32]) {
    match dtype {
        KvType::Int8 => round_cached(head, VALUE_GROUP),
        _ => round_key(dtype, head),
    }
}

/// Rounds what attention multiplies, queries, keys or values, in place: to bf16 over caches of that
/// type or fewer bits.
pub fn round_factor(dtype: KvType, x: &mut [f32]) {
    if matches!(dtype, KvType::Bf16 | KvType::Int8) {
        x.iter_mut().for_each(|x| *x = round_bf16(*x));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row() -> Vec<f32> {
        (0_u8..70).map(|i| f32::from(i).sin() * f32::from(i)).collect()
    }

    #[test]
    fn rounds_to_within_half_a_step_and_keeps_the_greatest() {
        let (before, mut row) = (row(), row());
        row.chunks_mut(GROUP).for_each(round_group);
        for (group, was) in row.chunks(GROUP).zip(before.chunks(GROUP)) {
            let (scale, _) = scale_of(was);
            for (now, was) in group.iter().zip(was) {
                assert!((now - was).abs() <= scale * 0.5001, "{was} became {now}, step {scale}");
            }
        }
    }

    #[test]
    fn broken_groups_become_nan_and_stay_alone() {
        for round in [|x: &mut [f32]| round_group(x), |x: &mut [f32]| round_cached(x, GROUP)] {
            let mut row = vec![1.0; 96];
            row[40] = f32::INFINITY;
            row.chunks_mut(GROUP).for_each(round);
            assert!(row[32..64].iter().all(|x| x.is_nan()));
            assert!(row[..32].iter().chain(&row[64..]).all(|x| (x - 1.0).abs() < 1e-2));
        }
    }

    #[test]
    fn zeros_stay_zero() {
        let mut row = [0.0, 1e-38, -1e-40];
        round_group(&mut row);
        assert_eq!(row, [0.0; 3]);
        let mut row = [0.0, 1e-38, -1e-40];
        round_key(KvType::Int8, &mut row);
        assert_eq!(row, [0.0; 3]);
    }

    #[test]
    fn what_a_cache_gives_back_it_keeps_as_it_is() {
        for dtype in [KvType::F32, KvType::F16, KvType::Bf16, KvType::Int8] {
            for factor in [1.0, 3e-7, 0.37, 1e30] {
                let mut once: Vec<f32> = row().iter().map(|x| x * factor).collect();
                round_key(dtype, &mut once);
                let mut twice = once.clone();
                round_key(dtype, &mut twice);
                assert_eq!(once, twice, "{dtype:?} keys");
                round_value(dtype, &mut once);
                let mut twice = once.clone();
                round_value(dtype, &mut twice);
                assert_eq!(once, twice, "{dtype:?} values");
            }
        }
    }

    #[test]
    fn bf16_rounds_to_nearest_and_keeps_nothing_tiny() {
        assert_eq!(SMALLEST_BF16.to_bits(), 2.0_f32.powi(-50).to_bits());
        assert_eq!(round_bf16(1.0 + 1.0 / 256.0), 1.0);
        assert_eq!(round_bf16(1.0 + 3.0 / 256.0), 1.0 + 1.0 / 64.0);
        assert_eq!(round_bf16(SMALLEST_BF16), SMALLEST_BF16);
        assert_eq!(round_bf16(-0.999 * SMALLEST_BF16), 0.0);
        assert!(round_bf16(f32::NAN).is_nan());
        assert_eq!(round_bf16(f32::INFINITY), f32::INFINITY);
    }
}
