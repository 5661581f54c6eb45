//! Which instruction set is the fastest on this processor: measured, once per process.
//!
//! Names do not tell. Some processors split wide registers in two, some slow down for them, and a
//! virtual machine may hide or emulate what it likes. All instruction sets give the same bits, so
//! the choice changes nothing but time.

use crate::buffer::Shared;
use crate::isa::Isa;
use crate::kernels::linear_int8::Linear8;
use crate::kernels::quantise::{Quantise, Rows8};
use crate::pack::{PANEL, Packed};
use crate::pool::Pool;
use crate::simd::dispatch;
use std::sync::OnceLock;
use std::time::{Duration, Instant};
use tangor_device::rounding::GROUP;
use tangor_device::tensor::{DType, Scales, Weight, Zeros};

/// What an instruction set does on this processor.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Speed {
    /// The instruction set.
    pub isa: Isa,
    /// 8-bit multiplications and additions per second of one thread, in the kernel of prompts.
    /// `None` where there is nothing to choose from, or too slow to be measured in passing.
    pub ops_per_s: Option<f64>,
}

/// By how much a set has to beat those before it in [`Isa::ALL`]: noise decides nothing.
const MARGIN: f64 = 1.05;
/// How often every set has its turn; the best turn counts.
const TURNS: usize = 4;
/// How long a turn takes.
const TURN: Duration = Duration::from_micros(200);
/// A call that takes longer is an emulator's: names decide.
const TOO_LONG: Duration = Duration::from_millis(2);

/// The instruction sets that this processor can run, the one to use first. The first call takes two
/// or three milliseconds.
#[must_use]
pub fn speeds() -> &'static [Speed] {
    static SPEEDS: OnceLock<Vec<Speed>> = OnceLock::new();
    SPEEDS.get_or_init(|| {
        let available = Isa::available();
        let mut speeds = measure(&available).unwrap_or_else(|| unmeasured(&available));
        choose(&mut speeds);
        speeds
    })
}

fn unmeasured(isas: &[Isa]) -> Vec<Speed> {
    isas.iter().map(|&isa| Speed { isa, ops_per_s: None }).collect()
}

/// Puts the fastest in front, or of several that are about as fast the first.
fn choose(speeds: &mut [Speed]) {
    let ops = |speed: &Speed| speed.ops_per_s.unwrap_or(0.0);
    let best = speeds.iter().map(ops).fold(0.0, f64::max);
    if let Some(chosen) = speeds.iter().position(|speed| ops(speed) * MARGIN >= best) {
        speeds[..=chosen].rotate_right(1);
    }
}

/// Measures all but plain Rust, which is for processors that have nothing else. `None` if there is
/// nothing to choose or a call takes too long.
fn measure(available: &[Isa]) -> Option<Vec<Speed>> {
    let mut speeds = unmeasured(available);
    let rivals = available.iter().filter(|&&isa| isa != Isa::Portable).count();
    if rivals < 2 {
        return None;
    }
    let mut sample = Sample::new()?;
    // A first call of each: code and data come into the caches, wide registers get their power.
    for speed in &speeds[..rivals] {
        let begin = Instant::now();
        sample.run(speed.isa);
        if begin.elapsed() > TOO_LONG {
            return None;
        }
    }
    for _ in 0..TURNS {
        for speed in &mut speeds[..rivals] {
            let (begin, mut calls) = (Instant::now(), 0.0);
            let seconds = loop {
                sample.run(speed.isa);
                calls += 1.0;
                let elapsed = begin.elapsed();
                if elapsed > TURN {
                    break elapsed.as_secs_f64();
                }
            };
            let ops = calls * Sample::OPS / seconds;
            speed.ops_per_s = Some(speed.ops_per_s.map_or(ops, |best| best.max(ops)));
        }
    }
    Some(speeds)
}

/// Something like a linear of a prompt, small enough for the first-level cache.
struct Sample {
    weight: Packed,
    x: Rows8,
    y: Vec<f32>,
}

impl Sample {
    /// A multiple of every instruction set's tile but one.
    const ROWS: usize = 24;
    const INPUTS: usize = 8 * GROUP;
    #[allow(clippy::cast_precision_loss)]
    const OPS: f64 = (2 * Self::ROWS * Self::INPUTS * PANEL) as f64;

    fn new() -> Option<Self> {
        let codes = vec![0x5a_u8; PANEL * Self::INPUTS / 2];
        let scales: Vec<u8> = 0.01_f32.to_le_bytes().repeat(PANEL * Self::INPUTS / GROUP);
        let scales = Scales { dtype: DType::F32, bytes: scales.into() };
        let shape = (PANEL, Self::INPUTS);
        let weight = Weight::grouped((4, GROUP), shape, codes.into(), scales, Zeros::Middle);
        let weight = Packed::new(&weight.ok()?, &Pool::new(1, false)).ok()?;
        let mut x = Rows8::default();
        x.resize(Self::ROWS, Self::INPUTS, GROUP);
        let (values, out) = (vec![1.0; Self::ROWS * Self::INPUTS], x.writer());
        let task = Quantise { x: &values, width: Self::INPUTS, first: 0, out };
        dispatch(Isa::Portable, task);
        x.list_wide();
        Some(Self { weight, x, y: vec![0.0; Self::ROWS * PANEL] })
    }

    fn run(&mut self, isa: Isa) {
        if let Packed::Codes(weight) = &self.weight {
            let (x, y) = (&self.x, Shared::new(&mut self.y));
            let rows = 0..Self::ROWS;
            dispatch(isa, Linear8 { weight, bias: None, x, panel: 0, rows, gated: None, y });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(speeds: [Option<f64>; 3]) -> [Isa; 3] {
        let isas = [Isa::Avx512Vnni, Isa::AvxVnni, Isa::Avx2];
        let mut speeds: Vec<Speed> =
            isas.into_iter().zip(speeds).map(|(isa, ops_per_s)| Speed { isa, ops_per_s }).collect();
        choose(&mut speeds);
        [speeds[0].isa, speeds[1].isa, speeds[2].isa]
    }

    #[test]
    fn the_fastest_is_chosen_and_the_first_of_equals() {
        let by_name = [Isa::Avx512Vnni, Isa::AvxVnni, Isa::Avx2];
        let second = [Isa::AvxVnni, Isa::Avx512Vnni, Isa::Avx2];
        assert_eq!(order([None; 3]), by_name);
        assert_eq!(order([Some(3.0), Some(2.0), Some(1.0)]), by_name);
        assert_eq!(order([Some(2.0), Some(2.08), Some(1.0)]), by_name);
        assert_eq!(order([Some(2.0), Some(2.2), Some(1.0)]), second);
        assert_eq!(order([Some(2.0), Some(3.0), Some(3.1)]), second);
        assert_eq!(order([Some(1.0), None, Some(2.0)])[0], Isa::Avx2);
    }

    #[test]
    fn every_instruction_set_of_this_processor_has_its_place() {
        let mut isas: Vec<Isa> = speeds().iter().map(|speed| speed.isa).collect();
        isas.sort();
        assert_eq!(isas, Isa::available());
        for Speed { isa, ops_per_s } in speeds() {
            assert!(ops_per_s.is_none_or(|ops| ops > 1e3 && ops < 1e15), "{isa} {ops_per_s:?}");
        }
    }
}
