//! Weights in the order in which the kernels read them.
//!
//! Outputs come in panels of 64. Within a panel the inputs run from first to last, so a kernel that
//! computes 64 outputs reads one stream from beginning to end.
//!
//! A quantised panel is a sequence of records, one per group of inputs:
//!
//! | part | bytes |
//! |---|---|
//! | codes | 4 bits: for each 8 inputs, 64 outputs x 4 bytes, inputs 0..4 in the low nibbles, 4..8 in the high ones; 8 bits: for each 4 inputs, 64 outputs x 4 bytes |
//! | scales | 64 x `f16` if all scales and minima of the weight are `f16`, else 64 x `f32` |
//! | offsets | nothing if all zero points are equal; 64 x `u8` zero points; or 64 minima as the scales |
//!
//! A dense panel is `(inputs, 64)` elements of the weight's own type.
//!
//! Outputs are padded to 64 with zeros, inputs of quantised weights to 32.

use crate::buffer::{Aligned, Fixed, Shared};
use crate::pool::Pool;
use half::{bf16, f16};
use std::sync::atomic::{AtomicBool, Ordering};
use tangor_device::rounding::GROUP;
use tangor_device::tensor::{DType, Group, Layout, Offset, Weight};

/// Outputs per panel.
pub(crate) const PANEL: usize = 64;

pub(crate) mod kept;
mod rows;

/// A weight packed for the kernels.
#[derive(Debug)]
pub(crate) enum Packed {
    /// Quantised.
    Codes(PackedCodes),
    /// Plain elements.
    Dense(PackedDense),
}

/// Why a weight cannot be packed.
#[derive(Debug)]
pub(crate) enum PackError {
    /// The kernels have nothing for its layout.
    Layout(String),
    /// No memory for this many bytes.
    Memory(usize),
}

/// What the offsets of a quantised weight are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Offsets {
    /// One zero point for all of it.
    Uniform(u8),
    /// A zero point per group and output.
    Zero,
    /// A minimum per group and output.
    Min,
}

impl Offsets {
    /// The zero point of all of it; 0 if there is no such one.
    pub(crate) fn zero(self) -> i32 {
        if let Self::Uniform(zero) = self { i32::from(zero) } else { 0 }
    }
}

/// A quantised weight in panels.
#[derive(Debug)]
pub(crate) struct PackedCodes {
    pub(crate) outputs: usize,
    pub(crate) inputs: usize,
    /// 4 or 8.
    pub(crate) bits: u8,
    /// Inputs per record.
    pub(crate) group: usize,
    /// Whether scales and minima are `f16`.
    pub(crate) half: bool,
    pub(crate) offsets: Offsets,
    /// `(panels, records, record_bytes)`.
    data: Fixed,
}

/// A dense weight in panels.
#[derive(Debug)]
pub(crate) struct PackedDense {
    pub(crate) outputs: usize,
    pub(crate) inputs: usize,
    pub(crate) dtype: DType,
    /// `(panels, inputs, 64)`.
    data: Fixed,
}

impl Packed {
    /// Packs a weight on all threads of the pool.
    pub(crate) fn new(weight: &Weight, pool: &Pool) -> Result<Self, PackError> {
        let packed = match weight.layout() {
            Some(Layout::Dense(dtype)) => PackedDense::new(weight, dtype, pool).map(Self::Dense),
            Some(Layout::Quant { bits, group, offset }) => {
                PackedCodes::new(weight, (bits, group, offset), pool).map(Self::Codes)
            }
            None => Err(PackError::Layout("rows of different layouts in one weight".into())),
        };
        weight.release_rows(0..weight.rows());
        packed
    }

    /// Rows of the weight.
    pub(crate) fn outputs(&self) -> usize {
        match self {
            Self::Codes(w) => w.outputs,
            Self::Dense(w) => w.outputs,
        }
    }

    /// Bytes in memory.
    pub(crate) fn bytes(&self) -> usize {
        match self {
            Self::Codes(w) => w.data.bytes().len(),
            Self::Dense(w) => w.data.bytes().len(),
        }
    }
}

impl PackedCodes {
    fn new(
        weight: &Weight,
        (bits, group, offset): (u8, usize, Offset),
        pool: &Pool,
    ) -> Result<Self, PackError> {
        let (outputs, inputs) = (weight.rows(), weight.cols());
        let record = record_of(bits, group, inputs)?;
        let mut first = vec![Group::default(); inputs.div_ceil(group)];
        weight.row_codes(0, &mut vec![0; inputs], &mut first);
        // Assume the best form, and try a more general one when a row does not fit it.
        let mut half = true;
        let mut offsets = match offset {
            Offset::Zero => Offsets::Uniform(zero_point(first[0].offset)),
            Offset::Min => Offsets::Min,
        };
        loop {
            let mut packed = Self {
                outputs,
                inputs,
                bits,
                group: record,
                half,
                offsets,
                data: Fixed::Own(Aligned::default()),
            };
            match packed.fill(weight, group, pool)? {
                Fit::Fits => return Ok(packed),
                Fit::NotHalf => half = false,
                Fit::NotUniform => offsets = Offsets::Zero,
            }
        }
    }

    /// Packs every panel, or says which assumption does not hold.
    fn fill(&mut self, weight: &Weight, group: usize, pool: &Pool) -> Result<Fit, PackError> {
        let panels = self.outputs.div_ceil(PANEL);
        let bytes = self.panel_bytes();
        let total = bytes.checked_mul(panels).ok_or(PackError::Memory(usize::MAX))?;
        let mut data = Aligned::zeroed(total).ok_or(PackError::Memory(total))?;
        let out = Shared::new(data.get_mut::<u8>(total));
        let (not_half, not_uniform) = (AtomicBool::new(false), AtomicBool::new(false));
        let this = &*self;
        pool.run(panels, |panel, _| {
            if not_half.load(Ordering::Relaxed) || not_uniform.load(Ordering::Relaxed) {
                return;
            }
            // SAFETY: every tile has a panel of its own.
            let out = unsafe { out.part(panel * bytes..(panel + 1) * bytes) };
            match this.fill_panel(weight, group, panel, out) {
                Fit::Fits => {}
                Fit::NotHalf => not_half.store(true, Ordering::Relaxed),
                Fit::NotUniform => not_uniform.store(true, Ordering::Relaxed),
            }
            done_with(weight, panel);
        });
        self.data = Fixed::Own(data);
        Ok(match (not_half.into_inner(), not_uniform.into_inner()) {
            (true, _) => Fit::NotHalf,
            (_, true) => Fit::NotUniform,
            _ => Fit::Fits,
        })
    }

    fn fill_panel(&self, weight: &Weight, group: usize, panel: usize, out: &mut [u8]) -> Fit {
        let mut codes = vec![0; self.inputs];
        let mut groups = vec![Group::default(); self.inputs.div_ceil(group)];
        let size = self.scale_bytes();
        let (scales_at, offsets_at) = (self.code_bytes(), self.code_bytes() + PANEL * size);
        for column in 0..PANEL.min(self.outputs - panel * PANEL) {
            weight.row_codes(panel * PANEL + column, &mut codes, &mut groups);
            for (index, record) in out.chunks_exact_mut(self.record_bytes()).enumerate() {
                let first = index * self.group;
                let g = groups[(first / group).min(groups.len() - 1)];
                if self.half && !is_half(g.scale) {
                    return Fit::NotHalf;
                }
                self.put_scale(&mut record[scales_at + column * size..][..size], g.scale);
                match self.offsets {
                    Offsets::Uniform(zero) if zero_point(g.offset) != zero => {
                        return Fit::NotUniform;
                    }
                    Offsets::Uniform(_) => {}
                    Offsets::Zero => record[offsets_at + column] = zero_point(g.offset),
                    Offsets::Min if self.half && !is_half(g.offset) => return Fit::NotHalf,
                    Offsets::Min => {
                        self.put_scale(&mut record[offsets_at + column * size..][..size], g.offset);
                    }
                }
                let end = (first + self.group).min(self.inputs);
                let codes = codes.get(first..end).unwrap_or_default();
                put_codes(self.bits, &mut record[..scales_at], column, codes);
            }
        }
        Fit::Fits
    }

    fn put_scale(&self, out: &mut [u8], scale: f32) {
        if self.half {
            out.copy_from_slice(&f16::from_f32(scale).to_le_bytes());
        } else {
            out.copy_from_slice(&scale.to_le_bytes());
        }
    }

    /// Inputs whose products are summed as integers before they are scaled, with activations in
    /// groups of `activations`: as many, or 16 where the weight's groups are so short.
    pub(crate) fn step(&self, activations: usize) -> usize {
        if self.group.is_multiple_of(activations) { activations } else { GROUP / 2 }
    }

    /// Records per panel.
    pub(crate) fn records(&self) -> usize {
        self.inputs.next_multiple_of(GROUP) / self.group
    }

    /// Bytes of a record's codes.
    pub(crate) fn code_bytes(&self) -> usize {
        self.group * PANEL * usize::from(self.bits) / 8
    }

    /// Bytes of a scale or a minimum.
    pub(crate) fn scale_bytes(&self) -> usize {
        if self.half { 2 } else { 4 }
    }

    /// Bytes of a record.
    pub(crate) fn record_bytes(&self) -> usize {
        let offset = match self.offsets {
            Offsets::Uniform(_) => 0,
            Offsets::Zero => 1,
            Offsets::Min => self.scale_bytes(),
        };
        self.code_bytes() + PANEL * (self.scale_bytes() + offset)
    }

    /// Bytes of a panel.
    pub(crate) fn panel_bytes(&self) -> usize {
        self.records() * self.record_bytes()
    }

    /// The records of one panel.
    pub(crate) fn panel(&self, index: usize) -> &[u8] {
        &self.data.bytes()[index * self.panel_bytes()..][..self.panel_bytes()]
    }
}

impl PackedDense {
    fn new(weight: &Weight, dtype: DType, pool: &Pool) -> Result<Self, PackError> {
        let (outputs, inputs) = (weight.rows(), weight.cols());
        let panels = outputs.div_ceil(PANEL);
        let bytes = inputs * PANEL * dtype.size();
        let total = bytes.checked_mul(panels).ok_or(PackError::Memory(usize::MAX))?;
        let mut data = Aligned::zeroed(total).ok_or(PackError::Memory(total))?;
        let out = Shared::new(data.get_mut::<u8>(total));
        let mut packed = Self { outputs, inputs, dtype, data: Fixed::Own(Aligned::default()) };
        pool.run(panels, |panel, _| {
            // SAFETY: every tile has a panel of its own.
            let out = unsafe { out.part(panel * bytes..(panel + 1) * bytes) };
            packed.fill_panel(weight, panel, out);
            done_with(weight, panel);
        });
        packed.data = Fixed::Own(data);
        Ok(packed)
    }

    fn fill_panel(&self, weight: &Weight, panel: usize, out: &mut [u8]) {
        let size = self.dtype.size();
        let mut row = vec![0.0; self.inputs];
        for column in 0..PANEL.min(self.outputs - panel * PANEL) {
            weight.row_f32(panel * PANEL + column, &mut row);
            for (out, &x) in out.chunks_exact_mut(size).skip(column).step_by(PANEL).zip(&row) {
                match self.dtype {
                    DType::F32 => out.copy_from_slice(&x.to_le_bytes()),
                    DType::F16 => out.copy_from_slice(&f16::from_f32(x).to_le_bytes()),
                    DType::Bf16 => out.copy_from_slice(&bf16::from_f32(x).to_le_bytes()),
                }
            }
        }
    }

    /// `(inputs, 64)` elements of one panel.
    pub(crate) fn panel(&self, index: usize) -> &[u8] {
        let bytes = self.inputs * PANEL * self.dtype.size();
        &self.data.bytes()[index * bytes..][..bytes]
    }
}

/// Inputs per record: they divide the padded row; longer groups are split, their scales repeated.
fn record_of(bits: u8, group: usize, inputs: usize) -> Result<usize, PackError> {
    let record = gcd(group, inputs.next_multiple_of(GROUP));
    if !record.is_multiple_of(GROUP / 2) || (bits != 4 && bits != 8) {
        return Err(PackError::Layout(format!("groups of {group} weights of {bits} bits")));
    }
    Ok(record)
}

/// Lets the rows of a panel go, and those of the panels around it: what was packed need not stay in
/// memory twice.
fn done_with(weight: &Weight, panel: usize) {
    /// Panels whose rows go together: letting go costs a call of the system.
    const TOGETHER: usize = 16;
    let last = weight.rows().div_ceil(PANEL) - 1;
    if panel % TOGETHER == TOGETHER - 1 || panel == last {
        let first = panel / TOGETHER * TOGETHER * PANEL;
        weight.release_rows(first..((panel + 1) * PANEL).min(weight.rows()));
    }
}

/// Whether a form that was assumed for a weight holds for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fit {
    Fits,
    NotHalf,
    NotUniform,
}

fn is_half(x: f32) -> bool {
    f16::from_f32(x).to_f32() == x
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
fn zero_point(offset: f32) -> u8 {
    offset as u8
}

/// Puts one output's codes of a record where they belong.
fn put_codes(bits: u8, out: &mut [u8], column: usize, codes: &[u8]) {
    if bits == 4 {
        for (block, codes) in out.chunks_exact_mut(4 * PANEL).zip(codes.chunks(8)) {
            for (k, code) in codes.iter().enumerate() {
                block[column * 4 + k % 4] |= code << (k / 4 * 4);
            }
        }
    } else {
        for (block, codes) in out.chunks_exact_mut(4 * PANEL).zip(codes.chunks(4)) {
            block[column * 4..][..codes.len()].copy_from_slice(codes);
        }
    }
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}
