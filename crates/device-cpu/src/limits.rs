//! What the processor could do at most, measured: the denominators of every benchmark.

use crate::buffer::Aligned;
use crate::isa::Isa;
use crate::pool::Pool;
use crate::simd::{Op, Simd, Uses, dispatch};
use std::hint::black_box;
use std::time::Instant;

/// Bytes that are streamed: more than caches hold.
const STREAM: usize = 256 << 20;

/// 8-bit multiplications and additions per second of all threads together (each dot product of
/// four counts as eight): the best of many short runs of dot products in registers.
#[must_use]
pub fn int8_ops_per_s(pool: &Pool, isa: Isa) -> f64 {
    const ROUNDS: usize = 1 << 18;
    let threads = pool.threads();
    let seconds = best_of(40, || pool.run(threads, |_, _| dispatch(isa, Dots { rounds: ROUNDS })));
    #[allow(clippy::cast_precision_loss)]
    let ops = (threads * ROUNDS * Dots::OPS) as f64;
    ops / seconds
}

/// Bytes per second that all threads together read from memory: the best of a few passes over
/// 256 MiB.
#[must_use]
pub fn read_bytes_per_s(pool: &Pool, isa: Isa) -> f64 {
    let Some(mut data) = Aligned::zeroed(STREAM) else { return 0.0 };
    // Memory that nobody has written to is one page of zeros, which comes from a cache.
    data.get_mut::<u8>(STREAM).fill(1);
    let tiles = 4 * pool.threads();
    let bytes: &[u8] = data.get(STREAM);
    let seconds = best_of(9, || {
        pool.run(tiles, |tile, _| {
            let part = STREAM / tiles;
            dispatch(isa, Read { data: &bytes[tile * part..(tile + 1) * part] });
        });
    });
    #[allow(clippy::cast_precision_loss)]
    let total = STREAM as f64;
    total / seconds
}

fn best_of(runs: usize, mut body: impl FnMut()) -> f64 {
    let once = |_| {
        let start = Instant::now();
        body();
        start.elapsed().as_secs_f64()
    };
    (0..runs).map(once).fold(f64::INFINITY, f64::min)
}

struct Dots {
    rounds: usize,
}

impl Dots {
    const CHAINS: usize = 12;
    /// Per round.
    const OPS: usize = Self::CHAINS * 64 * 2;
}

impl Op for Dots {
    type Output = ();
    const USES: Uses = Uses::Dots;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let x = black_box([1_i8; 4]);
        let codes = black_box([1_u8; 64]);
        // SAFETY: both arrays are as long as their loads.
        unsafe {
            let w = s.codes(codes.as_ptr());
            let mut acc = [s.start4(0); Self::CHAINS];
            for _ in 0..self.rounds {
                for acc in &mut acc {
                    *acc = s.dot4(*acc, w, x.as_ptr());
                }
            }
            for acc in acc {
                black_box(s.sum_i32(s.total4(acc, 0)));
            }
        }
    }
}

struct Read<'a> {
    data: &'a [u8],
}

impl Op for Read<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let mut acc = [s.splat(0.0); 4];
        for chunk in self.data.chunks_exact(256) {
            for (index, acc) in acc.iter_mut().enumerate() {
                // SAFETY: a chunk has 64 elements.
                let x = unsafe { s.load(chunk.as_ptr().add(index * 64).cast()) };
                *acc = s.add(*acc, x);
            }
        }
        for acc in acc {
            black_box(s.sum(acc));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_plausible() {
        let pool = Pool::new(1, false);
        let ops = int8_ops_per_s(&pool, Isa::best());
        assert!(ops > 1e8 && ops < 1e14, "{ops}");
        let bytes = read_bytes_per_s(&pool, Isa::best());
        assert!(bytes > 1e7 && bytes < 1e13, "{bytes}");
    }
}
