//! Random numbers as a function of a seed and a position: nothing to store, nothing that depends on
//! what else runs.

/// The finaliser of `SplitMix64` (Steele, Lea, Flood: Fast splittable pseudorandom number
/// generators, 2014).
fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// A number in `0.0..1.0`, with 53 random bits.
pub(super) fn uniform(seed: u64, position: u64) -> f64 {
    const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;
    let key = mix(seed.wrapping_add(GOLDEN));
    let bits = mix(key.wrapping_add(position.wrapping_add(1).wrapping_mul(GOLDEN)));
    (bits >> 11) as f64 / (1_u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_uniform_over_positions_and_over_seeds() {
        type Source = fn(u64) -> f64;
        for (name, source) in
            [("positions", (|i| uniform(7, i)) as Source), ("seeds", |i| uniform(i, 7))]
        {
            let mut buckets = [0_f64; 64];
            let n = 64_000;
            for i in 0..n {
                let x = source(i);
                assert!((0.0..1.0).contains(&x));
                buckets[(x * 64.0) as usize] += 1.0;
            }
            let expected = f64::from(1000);
            let chi2: f64 = buckets.iter().map(|b| (b - expected).powi(2) / expected).sum();
            // 63 degrees of freedom: 0.01 % of good generators exceed 112.
            assert!(chi2 < 112.0, "{name}: {chi2}");
        }
    }

    #[test]
    fn the_same_seed_and_position_give_the_same_number() {
        assert_eq!(uniform(1, 2).to_bits(), uniform(1, 2).to_bits());
        assert_ne!(uniform(1, 2).to_bits(), uniform(2, 1).to_bits());
    }
}
