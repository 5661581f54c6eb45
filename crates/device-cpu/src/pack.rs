//! Weights in the order in which the kernels read them.
//!
//! Outputs come in panels of 64. Within a panel the inputs run from first to last, so a kernel that
//! computes 64 outputs reads one stream from beginning to end.
//!
//! A quantised panel is a sequence of records, one per group of inputs:
//!
//! | part | bytes |
//! |---|---|
//! | codes | see below |
//! | scales | 64 x `f16` if all scales and minima of the weight are; 64 x `i8` if they have factors; else `f32` |
//! | offsets | nothing if all zero points are equal; 64 x `u8` zero points; or 64 minima as the scales |
//!
//! Where the weight's file multiplies scales and minima with factors that several groups have in
//! common (GGUF's K-quants: 256 inputs), so do the kernels: the records of these inputs are a
//! block, which begins with 64 x `f16` for the scales and, if there are minima, as many for those.
//!
//! Codes, always 64 outputs x 4 bytes for 4 inputs at a time, a byte for each:
//!
//! | bits | bytes |
//! |---|---|
//! | 8 | codes |
//! | 4 | for each 8 inputs: 0..4 in the low nibbles, 4..8 in the high ones |
//! | 5 | for each 32 inputs: 4 x nibbles, then fifth bits, those of inputs `4 i..4 i + 4` in bit `i` |
//! | 6 | for each 16 inputs: 2 x nibbles, then pairs, those of inputs `4 i..4 i + 4` in bits `2 i..2 i + 2` |
//!
//! A dense panel is `(inputs, 64)` elements of the weight's own type.
//!
//! Outputs are padded to 64 with zeros, inputs of quantised weights to 32.

use crate::buffer::{Aligned, Fixed, Shared};
use crate::pool::Pool;
use half::{bf16, f16};
use std::sync::atomic::{AtomicBool, Ordering};
use tangor_device::rounding::GROUP;
use tangor_device::tensor::quant::{Factors, Units};
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

/// What scales and minima are stored as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scales {
    F16,
    F32,
    /// `i8`, in units of the block's factors.
    Units,
}

/// How the scales and offsets of a weight are stored.
type Numbers = (Scales, Offsets);

/// A quantised weight in panels.
#[derive(Debug)]
pub(crate) struct PackedCodes {
    pub(crate) outputs: usize,
    pub(crate) inputs: usize,
    /// 4, 5, 6 or 8.
    pub(crate) bits: u8,
    /// Inputs per record.
    pub(crate) group: usize,
    /// Records per block: those that have their factors in common, else 1.
    pub(crate) records: usize,
    pub(crate) scales: Scales,
    pub(crate) offsets: Offsets,
    /// `(panels, blocks, block_bytes)`.
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
            None => Err(mixed()),
        };
        weight.release_rows(0..weight.rows());
        packed
    }

    /// Bytes in memory that a weight takes once it is packed, unless some of its rows need a more
    /// general form than those that are looked at.
    pub(crate) fn bytes_of(weight: &Weight) -> Result<usize, PackError> {
        let panel = match weight.layout() {
            Some(Layout::Dense(dtype)) => PackedDense::shaped(weight, dtype).panel_bytes(),
            Some(Layout::Quant { bits, group, offset }) => {
                // Every start asks: a file that is packed already need not be read for it.
                let numbers = match weight.is_uniform() {
                    true => unread(weight, offset),
                    false => likely(weight, group, offset),
                };
                PackedCodes::shaped(weight, (bits, group), numbers)?.panel_bytes()
            }
            None => return Err(mixed()),
        };
        Ok(weight.rows().div_ceil(PANEL).saturating_mul(panel))
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

/// The parts of one record.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Record<'a> {
    /// The factors of its block.
    pub(crate) header: &'a [u8],
    pub(crate) codes: &'a [u8],
    /// Scales, then offsets.
    pub(crate) numbers: &'a [u8],
    pub(crate) scales: &'a [u8],
    pub(crate) offsets: &'a [u8],
}

impl PackedCodes {
    fn new(
        weight: &Weight,
        (bits, group, offset): (u8, usize, Offset),
        pool: &Pool,
    ) -> Result<Self, PackError> {
        let mut numbers = likely(weight, group, offset);
        loop {
            let mut packed = Self::shaped(weight, (bits, group), numbers)?;
            match packed.fill(weight, group, pool)?.wider(numbers) {
                Some(wider) => numbers = wider,
                None => return Ok(packed),
            }
        }
    }

    /// A weight of groups in this form, without its panels.
    fn shaped(
        weight: &Weight,
        (bits, group): (u8, usize),
        (scales, offsets): Numbers,
    ) -> Result<Self, PackError> {
        let (outputs, inputs) = (weight.rows(), weight.cols());
        let group = record_of(bits, group, inputs)?;
        let bits = bits_of(weight, bits, group, offsets);
        let records = records_of(weight, group, scales).unwrap_or(1);
        let data = Fixed::Own(Aligned::default());
        Ok(Self { outputs, inputs, bits, group, records, scales, offsets, data })
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
        let mut units = vec![Units::default(); groups.len()];
        let mut factors = vec![Factors::default(); self.blocks()];
        for column in 0..PANEL.min(self.outputs - panel * PANEL) {
            let row = panel * PANEL + column;
            weight.row_codes(row, &mut codes, &mut groups);
            if self.scales == Scales::Units {
                weight.row_factors(row, &mut factors, &mut units);
            }
            for (index, block) in out.chunks_exact_mut(self.block_bytes()).enumerate() {
                let (header, records) = block.split_at_mut(self.header_bytes());
                for (out, factor) in header
                    .chunks_exact_mut(2 * PANEL)
                    .zip([factors[index].scale, factors[index].min])
                {
                    out[2 * column..][..2].copy_from_slice(&factor.to_le_bytes());
                }
                for (record, first) in records
                    .chunks_exact_mut(self.record_bytes())
                    .zip((index * self.records * self.group..).step_by(self.group))
                {
                    let at = (first / group).min(groups.len() - 1);
                    let fit = self.fill_group(record, column, groups[at], units[at]);
                    if fit != Fit::Fits {
                        return fit;
                    }
                    let end = (first + self.group).min(self.inputs);
                    let codes = codes.get(first..end).unwrap_or_default();
                    put_codes(self.bits, &mut record[..self.code_bytes()], column, codes);
                }
            }
        }
        Fit::Fits
    }

    /// Puts the scale and the offset of one output where they belong.
    fn fill_group(&self, record: &mut [u8], column: usize, group: Group, units: Units) -> Fit {
        let size = self.scale_bytes();
        let (scales, offsets) = record[self.code_bytes()..].split_at_mut(PANEL * size);
        let put = |out: &mut [u8], scale: f32, unit: i8| {
            let out = &mut out[column * size..][..size];
            match self.scales {
                Scales::F16 => out.copy_from_slice(&f16::from_f32(scale).to_le_bytes()),
                Scales::F32 => out.copy_from_slice(&scale.to_le_bytes()),
                Scales::Units => out.copy_from_slice(&unit.to_le_bytes()),
            }
        };
        let fit = fit(group, (self.scales, self.offsets));
        if fit == Fit::Fits {
            put(scales, group.scale, units.scale);
            match self.offsets {
                Offsets::Uniform(_) => {}
                Offsets::Zero => offsets[column] = zero_point(group.offset),
                Offsets::Min => put(offsets, group.offset, units.min),
            }
        }
        fit
    }

    /// Inputs whose products are summed as integers before they are scaled, with activations in
    /// groups of `activations`: as many, or 16 where the weight's groups are so short.
    pub(crate) fn step(&self, activations: usize) -> usize {
        if self.group.is_multiple_of(activations) { activations } else { GROUP / 2 }
    }

    /// Blocks per panel.
    pub(crate) fn blocks(&self) -> usize {
        self.inputs.next_multiple_of(GROUP) / (self.records * self.group)
    }

    /// Bytes of a record's codes.
    pub(crate) fn code_bytes(&self) -> usize {
        self.group * PANEL * usize::from(self.bits) / 8
    }

    /// Bytes of a scale or a minimum.
    pub(crate) fn scale_bytes(&self) -> usize {
        match self.scales {
            Scales::F16 => 2,
            Scales::F32 => 4,
            Scales::Units => 1,
        }
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

    /// Bytes of a block's factors.
    pub(crate) fn header_bytes(&self) -> usize {
        match (self.scales, self.offsets) {
            (Scales::Units, Offsets::Min) => 4 * PANEL,
            (Scales::Units, _) => 2 * PANEL,
            _ => 0,
        }
    }

    /// Bytes of a block.
    pub(crate) fn block_bytes(&self) -> usize {
        self.header_bytes() + self.records * self.record_bytes()
    }

    /// Bytes of a panel.
    pub(crate) fn panel_bytes(&self) -> usize {
        self.blocks() * self.block_bytes()
    }

    /// A record of a panel.
    #[inline(always)]
    pub(crate) fn record(&self, panel: usize, index: usize) -> Record<'_> {
        let block = &self.panel(panel)[index / self.records * self.block_bytes()..];
        self.record_of(&block[..self.block_bytes()], index % self.records)
    }

    /// A record of a block.
    #[inline(always)]
    pub(crate) fn record_of<'a>(&self, block: &'a [u8], index: usize) -> Record<'a> {
        let (header, records) = block.split_at(self.header_bytes());
        let whole = &records[index * self.record_bytes()..][..self.record_bytes()];
        let (codes, numbers) = whole.split_at(self.code_bytes());
        let (scales, offsets) = numbers.split_at(PANEL * self.scale_bytes());
        Record { header, codes, numbers, scales, offsets }
    }

    /// The blocks of one panel.
    pub(crate) fn panel(&self, index: usize) -> &[u8] {
        &self.data.bytes()[index * self.panel_bytes()..][..self.panel_bytes()]
    }
}

impl PackedDense {
    fn new(weight: &Weight, dtype: DType, pool: &Pool) -> Result<Self, PackError> {
        let mut packed = Self::shaped(weight, dtype);
        let (panels, bytes) = (packed.outputs.div_ceil(PANEL), packed.panel_bytes());
        let total = bytes.checked_mul(panels).ok_or(PackError::Memory(usize::MAX))?;
        let mut data = Aligned::zeroed(total).ok_or(PackError::Memory(total))?;
        let out = Shared::new(data.get_mut::<u8>(total));
        pool.run(panels, |panel, _| {
            // SAFETY: every tile has a panel of its own.
            let out = unsafe { out.part(panel * bytes..(panel + 1) * bytes) };
            packed.fill_panel(weight, panel, out);
            done_with(weight, panel);
        });
        packed.data = Fixed::Own(data);
        Ok(packed)
    }

    /// A weight of such elements, without its panels.
    fn shaped(weight: &Weight, dtype: DType) -> Self {
        let (outputs, inputs) = (weight.rows(), weight.cols());
        Self { outputs, inputs, dtype, data: Fixed::Own(Aligned::default()) }
    }

    /// Bytes of a panel.
    fn panel_bytes(&self) -> usize {
        self.inputs * PANEL * self.dtype.size()
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
        &self.data.bytes()[index * self.panel_bytes()..][..self.panel_bytes()]
    }
}

fn mixed() -> PackError {
    PackError::Layout("rows of different layouts in one weight".into())
}

/// The least general form of scales and offsets that a weight may have, but for its zero point.
fn unread(weight: &Weight, offset: Offset) -> Numbers {
    let scales = if weight.factored().is_some() { Scales::Units } else { Scales::F16 };
    let offsets = match offset {
        Offset::Zero => Offsets::Uniform(0),
        Offset::Min => Offsets::Min,
    };
    (scales, offsets)
}

/// How scales and offsets of a quantised weight are stored, going by its first row, and by a few
/// where rows may differ: reading them takes long.
fn likely(weight: &Weight, group: usize, offset: Offset) -> Numbers {
    let mut codes = vec![0; weight.cols()];
    let mut groups = vec![Group::default(); weight.cols().div_ceil(group)];
    let mut numbers = unread(weight, offset);
    if let Offsets::Uniform(zero) = &mut numbers.1 {
        weight.row_codes(0, &mut codes, &mut groups);
        *zero = zero_point(groups[0].offset);
    }
    for row in weight.sample_rows().filter(|_| !weight.is_uniform()) {
        weight.row_codes(row, &mut codes, &mut groups);
        for &group in &groups {
            while let Some(wider) = fit(group, numbers).wider(numbers) {
                numbers = wider;
            }
        }
    }
    numbers
}

/// Inputs per record: they divide the padded row; longer groups are split, their scales repeated.
fn record_of(bits: u8, group: usize, inputs: usize) -> Result<usize, PackError> {
    let record = gcd(group, inputs.next_multiple_of(GROUP));
    if !record.is_multiple_of(GROUP / 2) || (bits != 4 && bits != 8) {
        return Err(PackError::Layout(format!("groups of {group} weights of {bits} bits")));
    }
    Ok(record)
}

/// Bits that codes are stored in: fewer than those of the layout where the weight's own are fewer
/// and the kernels have them.
fn bits_of(weight: &Weight, bits: u8, record: usize, offsets: Offsets) -> u8 {
    match (bits, weight.code_bits(), offsets) {
        (8, Some(..=5), Offsets::Uniform(_) | Offsets::Min) if record.is_multiple_of(32) => 5,
        (8, Some(..=6), Offsets::Uniform(_)) if record == 16 => 6,
        _ => bits,
    }
}

/// Records that have the factors of their `scales` in common; `None` if the weight has none.
fn records_of(weight: &Weight, record: usize, scales: Scales) -> Option<usize> {
    match scales {
        Scales::F16 | Scales::F32 => Some(1),
        Scales::Units => weight.factored().map(|inputs| inputs / record),
    }
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

impl Fit {
    /// The form that takes what did not fit.
    fn wider(self, (scales, offsets): Numbers) -> Option<Numbers> {
        match self {
            Self::Fits => None,
            Self::NotHalf => Some((Scales::F32, offsets)),
            Self::NotUniform => Some((scales, Offsets::Zero)),
        }
    }
}

/// Whether a group's scale and offset can be stored so.
fn fit(group: Group, (scales, offsets): Numbers) -> Fit {
    let fits = |x: f32| scales != Scales::F16 || f16::from_f32(x).to_f32() == x;
    match offsets {
        _ if !fits(group.scale) => Fit::NotHalf,
        Offsets::Uniform(zero) if zero_point(group.offset) != zero => Fit::NotUniform,
        Offsets::Min if !fits(group.offset) => Fit::NotHalf,
        _ => Fit::Fits,
    }
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
fn zero_point(offset: f32) -> u8 {
    offset as u8
}

/// Puts one output's codes of a record where they belong, among zeros.
fn put_codes(bits: u8, out: &mut [u8], column: usize, codes: &[u8]) {
    for (index, &code) in codes.iter().enumerate() {
        let (byte, shift) = low_bits(bits, column, index);
        out[byte] |= if bits == 8 { code } else { (code & 15) << shift };
        if let Some((byte, shift)) = high_bits(bits, column, index) {
            out[byte] |= code >> 4 << shift;
        }
    }
}

/// One output's code of input `index` of a record.
fn code(bits: u8, record: &[u8], column: usize, index: usize) -> u8 {
    let (byte, shift) = low_bits(bits, column, index);
    let low = record[byte] >> shift;
    if bits == 8 {
        return low;
    }
    let high = high_bits(bits, column, index)
        .map_or(0, |(byte, shift)| record[byte] >> shift & ((1 << (bits - 4)) - 1));
    low & 15 | high << 4
}

/// The byte of a record's codes, and the bit in it, at which the nibble or the whole code begins.
fn low_bits(bits: u8, column: usize, index: usize) -> (usize, usize) {
    let place = column * 4 + index % 4;
    if bits == 8 {
        return (index / 4 * 4 * PANEL + place, 0);
    }
    let (chunk, within) = match plane_of(bits) {
        Some(inputs) => (index / inputs * (inputs / 8 + 1), index % inputs),
        None => (0, index),
    };
    ((chunk + within / 8) * 4 * PANEL + place, index % 8 / 4 * 4)
}

/// Likewise for the bits above the nibble.
fn high_bits(bits: u8, column: usize, index: usize) -> Option<(usize, usize)> {
    let inputs = plane_of(bits)?;
    let plane = index / inputs * (inputs / 8 + 1) + inputs / 8;
    let shift = index % inputs / 4 * usize::from(bits - 4);
    Some((plane * 4 * PANEL + column * 4 + index % 4, shift))
}

/// Inputs whose nibbles are followed by a plane of the bits above them.
pub(crate) fn plane_of(bits: u8) -> Option<usize> {
    match bits {
        5 => Some(32),
        6 => Some(16),
        _ => None,
    }
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test stops where it fails")]
    use super::*;
    use tangor_testkit::forms::every_form;

    #[test]
    fn a_weight_takes_the_bytes_that_were_expected_in_every_form() {
        let pool = Pool::new(2, false);
        for (name, weight) in every_form(150, 512) {
            let packed = Packed::new(&weight, &pool).unwrap();
            assert_eq!(Packed::bytes_of(&weight).unwrap(), packed.bytes(), "{name}");
        }
    }

    #[test]
    fn rows_are_read_only_where_they_may_differ() {
        let all = every_form(2, 512);
        let of = |name: &str| &all.iter().find(|(other, _)| other == name).unwrap().1;
        let uniform = |name: &str| of(name).is_uniform();
        for name in ["Q4_0", "Q4_1", "Q8_0", "Q4_K", "Q6_K", "4 bits, groups of 32, f16 middle"] {
            assert!(uniform(name), "{name}");
        }
        for other in ["f32 middle", "bf16 middle", "f16 packed", "f16 float"] {
            assert!(!uniform(&format!("4 bits, groups of 32, {other}")), "{other}");
        }
        let both = Weight::stack(&[of("Q4_1"), of("Q4_K")]).unwrap();
        assert!(!both.is_uniform(), "halves, and products of factors");
    }

    #[test]
    fn parts_of_a_weight_need_the_form_of_the_most_general_one() {
        let all = every_form(64, 512);
        let of = |name: &str| &all.iter().find(|(other, _)| other == name).unwrap().1;
        let halves = of("4 bits, groups of 32, f16 middle");
        for (other, bytes) in [
            ("4 bits, groups of 32, f16 middle", 16 + 2),
            ("4 bits, groups of 32, f16 packed", 16 + 2 + 1),
            ("4 bits, groups of 32, f32 packed", 16 + 4 + 1),
        ] {
            let both = Weight::stack(&[halves, of(other), halves]).unwrap();
            assert_eq!(Packed::bytes_of(&both).unwrap(), 3 * 64 * 512 / 32 * bytes, "{other}");
        }
    }
}
