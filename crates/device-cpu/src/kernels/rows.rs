//! Operations that look at one row at a time: norms, gates, sums. Each may round its result to 8
//! bits while it is in the cache, for the linears that read it.
//!
//! Sums over a row add lane by lane and then fold the lanes, the same on every instruction set.

use crate::buffer::Shared;
use crate::kernels::quantise::Writer;
use crate::simd::{LANES, Op, Simd, math};
use std::ops::Range;
use tangor_device::model::ir::Activation;

/// What to compute.
#[derive(Clone, Copy, Debug)]
pub(crate) enum RowOp<'a> {
    /// `gain * x / sqrt(mean(x^2) + eps)` over each run of `gain.len()` elements.
    RmsNorm { x: &'a [f32], gain: &'a [f32], eps: f32 },
    /// `sum = x + delta`, then the norm of it.
    AddRmsNorm { x: &'a [f32], delta: &'a [f32], sum: Shared<'a, f32>, gain: &'a [f32], eps: f32 },
    /// `act(gate) * up`; rows of the two lie `stride` apart.
    Gated { gate: &'a [f32], up: &'a [f32], stride: usize, act: Activation },
    /// `a + b`.
    Add { a: &'a [f32], b: &'a [f32] },
    /// `x * factor`.
    Scale { x: &'a [f32], factor: f32 },
}

/// A range of rows.
#[derive(Clone, Debug)]
pub(crate) struct RowTask<'a> {
    pub(crate) op: RowOp<'a>,
    /// Elements per row.
    pub(crate) width: usize,
    pub(crate) rows: Range<usize>,
    /// `(rows, width)`; nobody else writes these rows.
    pub(crate) out: Shared<'a, f32>,
    /// Where the result goes in 8 bits.
    pub(crate) rounded: Option<Writer<'a>>,
    /// Whether the result is wanted as it is, too. If not, one row of `out` serves for all.
    pub(crate) plain: bool,
}

impl Op for RowTask<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for row in self.rows.clone() {
            let at = row * self.width..(row + 1) * self.width;
            // SAFETY: whoever makes a `RowTask` has these rows to itself.
            let out = unsafe {
                let row = if self.plain { row } else { self.rows.start };
                self.out.part(row * self.width..(row + 1) * self.width)
            };
            match self.op {
                RowOp::RmsNorm { x, gain, eps } => {
                    let runs = x[at].chunks_exact(gain.len());
                    for (x, out) in runs.zip(out.chunks_exact_mut(gain.len())) {
                        rms_norm(s, x, gain, eps, out);
                    }
                }
                RowOp::AddRmsNorm { x, delta, sum, gain, eps } => {
                    // SAFETY: as for `out`.
                    let sum = unsafe { sum.part(at.clone()) };
                    zip(s, &x[at.clone()], &delta[at], sum, Sum);
                    rms_norm(s, sum, gain, eps, out);
                }
                RowOp::Gated { gate, up, stride, act } => {
                    let (gate, up) = (&gate[row * stride..], &up[row * stride..]);
                    let (gate, up) = (&gate[..self.width], &up[..self.width]);
                    gate_row(s, act, gate, up, out);
                }
                RowOp::Add { a, b } => zip(s, &a[at.clone()], &b[at], out, Sum),
                RowOp::Scale { x, factor } => zip(s, &x[at.clone()], &x[at], out, Times(factor)),
            }
            if let Some(rounded) = &self.rounded {
                // SAFETY: as for `out`.
                unsafe { rounded.row(s, row, out) };
            }
        }
    }
}

/// `out = act(gate) * up`.
#[inline(always)]
pub(super) fn gate_row<S: Simd>(s: S, act: Activation, gate: &[f32], up: &[f32], out: &mut [f32]) {
    zip(s, gate, up, out, Gate(act));
}

/// `x / (1 + e^-x)` and the two forms of GELU.
#[inline(always)]
fn activate<S: Simd>(s: S, act: Activation, x: S::F32) -> S::F32 {
    let one = s.splat(1.0);
    let half = s.mul(x, s.splat(0.5));
    match act {
        Activation::Silu => {
            let e = math::exp(s, s.sub(s.splat(0.0), x));
            s.div(x, s.add(one, e))
        }
        Activation::Gelu => {
            let y = math::erf(s, s.mul(x, s.splat(std::f32::consts::FRAC_1_SQRT_2)));
            s.fma(half, y, half)
        }
        Activation::GeluTanh => {
            let cubic = s.mul(s.mul(x, x), s.splat(0.044_715));
            let inner = s.mul(s.fma(cubic, x, x), s.splat(0.797_884_6));
            s.fma(half, math::tanh(s, inner), half)
        }
    }
}

#[inline(always)]
fn rms_norm<S: Simd>(s: S, x: &[f32], gain: &[f32], eps: f32, out: &mut [f32]) {
    assert!(x.len() == gain.len() && x.len() == out.len());
    // Four chains, so that sums do not wait for each other.
    let zero = s.splat(0.0);
    let (mut a, mut b, mut c, mut d) = (zero, zero, zero, zero);
    let mut at = 0;
    while at + 4 * LANES <= x.len() {
        // SAFETY: four vectors follow.
        unsafe {
            let at = x.as_ptr().add(at);
            let (v, w) = (s.load(at), s.load(at.add(LANES)));
            (a, b) = (s.fma(v, v, a), s.fma(w, w, b));
            let (v, w) = (s.load(at.add(2 * LANES)), s.load(at.add(3 * LANES)));
            (c, d) = (s.fma(v, v, c), s.fma(w, w, d));
        }
        at += 4 * LANES;
    }
    while at < x.len() {
        let v = load(s, &x[at..]);
        a = s.fma(v, v, a);
        at += LANES;
    }
    #[allow(clippy::cast_precision_loss)]
    let mean = s.sum(s.add(s.add(a, b), s.add(c, d))) / x.len() as f32;
    zip(s, x, gain, out, Norm(1.0 / (mean + eps).sqrt()));
}

/// A function of two elements. Not a closure: those cannot be made to compile with the
/// instructions of the function that calls them.
trait Pairwise: Copy {
    fn of<S: Simd>(self, s: S, a: S::F32, b: S::F32) -> S::F32;
}

#[derive(Clone, Copy)]
struct Sum;
/// `act(a) * b`.
#[derive(Clone, Copy)]
struct Gate(Activation);
/// `a * factor * b`.
#[derive(Clone, Copy)]
struct Norm(f32);
/// `a * factor`.
#[derive(Clone, Copy)]
struct Times(f32);

impl Pairwise for Sum {
    #[inline(always)]
    fn of<S: Simd>(self, s: S, a: S::F32, b: S::F32) -> S::F32 {
        s.add(a, b)
    }
}

impl Pairwise for Gate {
    #[inline(always)]
    fn of<S: Simd>(self, s: S, a: S::F32, b: S::F32) -> S::F32 {
        s.mul(activate(s, self.0, a), b)
    }
}

impl Pairwise for Norm {
    #[inline(always)]
    fn of<S: Simd>(self, s: S, a: S::F32, b: S::F32) -> S::F32 {
        s.mul(s.mul(a, s.splat(self.0)), b)
    }
}

impl Pairwise for Times {
    #[inline(always)]
    fn of<S: Simd>(self, s: S, a: S::F32, _: S::F32) -> S::F32 {
        s.mul(a, s.splat(self.0))
    }
}

/// `out = f(a, b)`, element by element.
#[inline(always)]
fn zip<S: Simd>(s: S, a: &[f32], b: &[f32], out: &mut [f32], f: impl Pairwise) {
    assert!(a.len() == b.len() && a.len() == out.len());
    let whole = out.len() / LANES * LANES;
    let mut at = 0;
    while at < whole {
        // SAFETY: all three have 16 elements from here on.
        unsafe {
            let y = f.of(s, s.load(a.as_ptr().add(at)), s.load(b.as_ptr().add(at)));
            s.store(out.as_mut_ptr().add(at), y);
        }
        at += LANES;
    }
    if whole < out.len() {
        let y = f.of(s, load(s, &a[whole..]), load(s, &b[whole..]));
        let mut padded = [0.0; LANES];
        // SAFETY: 16 elements.
        unsafe { s.store(padded.as_mut_ptr(), y) };
        let rest = &mut out[whole..];
        rest.copy_from_slice(&padded[..rest.len()]);
    }
}

/// The first 16 elements, or as many as there are; lanes past the end are 0.
#[inline(always)]
fn load<S: Simd>(s: S, x: &[f32]) -> S::F32 {
    if x.len() >= LANES {
        // SAFETY: 16 elements.
        return unsafe { s.load(x.as_ptr()) };
    }
    let mut padded = [0.0; LANES];
    padded[..x.len()].copy_from_slice(x);
    // SAFETY: 16 elements.
    unsafe { s.load(padded.as_ptr()) }
}
