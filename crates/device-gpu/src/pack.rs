//! Weights in the form that `shaders/weights.wgsl` describes, in the adapter's memory.
//!
//! A matrix becomes one part, or several: where its layout changes, and where a part would be
//! larger than a buffer may be.

pub(crate) mod kept;

use crate::context::{Block, Context, buffer_bytes};
use crate::shader::Constants;
use half::{bf16, f16};
use std::ops::Range;
use std::sync::Arc;
use tangor_device::DeviceError;
use tangor_device::tensor::quant::{Factors, Units};
use tangor_device::tensor::{DType, Group, Layout, Offset, Weight};
use wgpu::BufferUsages;

/// Rows of a tile.
pub(crate) const TILE: usize = 64;
/// Inputs of a chunk.
pub(crate) const CHUNK: usize = 32;

/// Rows of a matrix.
#[derive(Debug)]
pub(crate) struct Part {
    /// Which rows.
    pub(crate) rows: Range<usize>,
    pub(crate) codes: Arc<Block>,
    pub(crate) scales: Arc<Block>,
    pub(crate) form: Form,
    /// `Packed` of `weights.wgsl`: chunks, groups, where factors begin, blocks.
    pub(crate) shape: [u32; 4],
}

/// A matrix.
#[derive(Debug)]
pub(crate) struct Packed {
    pub(crate) parts: Vec<Part>,
    pub(crate) cols: usize,
}

/// Constants of `weights.wgsl`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Form {
    bits: u32,
    meta: u32,
    group: u32,
    block: u32,
    zero: u32,
    min: bool,
}

impl Form {
    /// Whether weights are codes with scales, which can be multiplied as integers.
    pub(crate) fn has_codes(&self) -> bool {
        self.bits <= 8
    }

    pub(crate) fn constants(&self) -> Constants {
        vec![
            ("BITS", self.bits),
            ("META", self.meta),
            ("GROUP", self.group),
            ("BLOCK", self.block),
            ("ZERO", self.zero),
            ("MIN", u32::from(self.min)),
        ]
    }
}

#[allow(clippy::cast_possible_truncation, reason = "shapes are checked against buffers' sizes")]
fn word(x: usize) -> u32 {
    x as u32
}

impl Packed {
    /// Packs a matrix; `keep` hears its bytes, part by part, codes before scales.
    pub(crate) fn new(
        weight: &Weight,
        context: &Arc<Context>,
        keep: &mut dyn FnMut(&[u8]),
    ) -> Result<Self, DeviceError> {
        let part = |rows| Part::new(weight, rows, context, keep);
        let parts = cuts(weight, context.max_weights).into_iter().map(part);
        Ok(Self { parts: parts.collect::<Result<_, _>>()?, cols: weight.cols() })
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.parts.iter().map(|part| part.codes.bytes() + part.scales.bytes()).sum()
    }

    /// Bytes that a matrix takes once it is packed, unless some of its rows need longer scales than
    /// those that are looked at.
    pub(crate) fn bytes_of(weight: &Weight, max_weights: u64) -> u64 {
        let part =
            |rows| weight.slice_rows(rows).map_or(0, |slice| Outline::likely(&slice).bytes());
        cuts(weight, max_weights).into_iter().map(part).sum()
    }
}

/// Rows of the parts of a matrix: of one layout each, and no more than buffers may have.
pub(crate) fn cuts(weight: &Weight, max_weights: u64) -> Vec<Range<usize>> {
    let mut parts = Vec::new();
    for rows in same_layout(weight, 0..weight.rows()) {
        let layout = weight.slice_rows(rows.clone()).ok().and_then(|w| w.layout());
        let (form, _) = canonical(layout, weight.cols());
        // Half of the limit, since scales may be as large as codes.
        let tile = TILE * weight.cols().next_multiple_of(CHUNK) * form.bits as usize / 8;
        let tiles = (max_weights / (2 * tile as u64)).max(1);
        let step = usize::try_from(tiles).unwrap_or(usize::MAX).saturating_mul(TILE);
        let mut first = rows.start;
        while first < rows.end {
            let end = first.saturating_add(step).min(rows.end);
            parts.push(first..end);
            first = end;
        }
    }
    parts
}

/// Runs of rows that have one layout.
fn same_layout(weight: &Weight, rows: Range<usize>) -> Vec<Range<usize>> {
    let one = rows.len() == 1
        || weight.slice_rows(rows.clone()).is_ok_and(|slice| slice.layout().is_some());
    if one {
        return vec![rows];
    }
    let middle = rows.start + rows.len() / 2;
    let mut runs = same_layout(weight, rows.start..middle);
    for run in same_layout(weight, middle..rows.end) {
        match runs.last_mut() {
            Some(last)
                if weight
                    .slice_rows(last.start..run.end)
                    .is_ok_and(|both| both.layout().is_some()) =>
            {
                last.end = run.end;
            }
            _ => runs.push(run),
        }
    }
    runs
}

/// The form of a layout; without it, or where groups do not fit chunks, plain `f32`. The second
/// value says whether it is quantised.
fn canonical(layout: Option<Layout>, cols: usize) -> (Form, bool) {
    let plain = |bits, meta| Form { bits, meta, group: 32, block: 256, zero: 0, min: false };
    match layout {
        Some(Layout::Dense(DType::F16)) => (plain(16, 4), false),
        Some(Layout::Dense(DType::Bf16)) => (plain(16, 5), false),
        Some(Layout::Quant { bits, group, offset })
            if group == 16 || group.is_multiple_of(32) || (group >= cols && group >= 32) =>
        {
            let group = if group.is_multiple_of(16) { group } else { group.next_multiple_of(32) };
            let group = word(group);
            let min = offset == Offset::Min;
            (Form { bits: u32::from(bits), meta: 2, group, block: 256, zero: 0, min }, true)
        }
        _ => (plain(32, 6), false),
    }
}

/// Scales and offsets of some rows, `(rows, groups)`, or the same as factors and whole numbers.
#[derive(Default)]
struct Scales {
    groups: Vec<Group>,
    factors: Vec<Factors>,
    units: Vec<Units>,
}

impl Scales {
    /// Appends those of a row, whose codes are read with them.
    fn read(&mut self, slice: &Weight, row: usize, outline: &Outline, codes: &mut [u8]) {
        let (first, groups) = (self.groups.len(), outline.groups);
        self.groups.resize(first + groups, Group::default());
        slice.row_codes(row, codes, &mut self.groups[first..]);
        if let Some(blocks) = outline.blocks {
            let (factors, units) = (self.factors.len(), self.units.len());
            self.factors.resize(factors + blocks, Factors::default());
            self.units.resize(units + groups, Units::default());
            slice.row_factors(row, &mut self.factors[factors..], &mut self.units[units..]);
        }
    }
}

/// What is known of a part before its weights are read; of its form, all but how scales are stored.
#[derive(Clone, Copy, Debug)]
struct Outline {
    form: Form,
    rows: usize,
    chunks: usize,
    /// Groups of a row; 0 where weights are not quantised.
    groups: usize,
    /// Blocks of a row whose scales have common factors.
    blocks: Option<usize>,
}

impl Outline {
    fn of(slice: &Weight) -> Self {
        let cols = slice.cols();
        let (form, quantised) = canonical(slice.layout(), cols);
        Self {
            form,
            rows: slice.rows(),
            chunks: cols.div_ceil(CHUNK),
            groups: if quantised { cols.div_ceil(form.group as usize) } else { 0 },
            blocks: slice.factored().map(|block| cols.div_ceil(block)).filter(|_| quantised),
        }
    }

    /// With scales stored as a few rows let expect.
    fn likely(slice: &Weight) -> Self {
        let outline = Self::of(slice);
        let (mut scales, mut codes) = (Scales::default(), vec![0; slice.cols()]);
        let most = if slice.is_uniform() { 1 } else { usize::MAX };
        for row in slice.sample_rows().take(most).filter(|_| outline.groups > 0) {
            scales.read(slice, row, &outline, &mut codes);
        }
        settled(outline, &scales)
    }

    /// Bytes of its buffers.
    fn bytes(&self) -> u64 {
        let sizes = [self.codes_bytes(), 4 * self.scale_words().1];
        sizes.map(|bytes| buffer_bytes(bytes as u64)).iter().sum()
    }

    /// The same with scales stored in another way; `None` if weights of that layout cannot be.
    fn with(mut self, meta: u32, zero: u32) -> Option<Self> {
        let same_zero = !self.form.min && zero <= 255;
        let possible = match meta {
            _ if self.groups == 0 => meta == self.form.meta && zero == 0,
            0 => same_zero,
            1 | 2 => zero == 0,
            3 => self.blocks.is_some() && (same_zero || zero == 0),
            _ => false,
        };
        if let (3, Some(blocks)) = (meta, self.blocks) {
            self.form.block = word(self.groups / blocks) * self.form.group;
        }
        (self.form.meta, self.form.zero) = (meta, zero);
        possible.then_some(self)
    }

    fn tiles(&self) -> usize {
        self.rows.div_ceil(TILE)
    }

    fn codes_bytes(&self) -> usize {
        self.tiles() * TILE * self.chunks * CHUNK * self.form.bits as usize / 8
    }

    /// Words of scales: those in front of factors, and all.
    fn scale_words(&self) -> (usize, usize) {
        let lanes = self.tiles() * TILE;
        let per_row = match self.form.meta {
            _ if self.groups == 0 => return (1, 1),
            1 => self.groups,
            2 => 2 * self.groups,
            _ => self.groups.div_ceil(2),
        };
        let factors = if self.form.meta == 3 { 2 * self.blocks.unwrap_or(0) } else { 0 };
        (lanes * per_row, lanes * (per_row + factors))
    }

    /// `Packed` of `weights.wgsl`.
    fn shape(&self) -> [u32; 4] {
        let factors_at = if self.form.meta == 3 { self.scale_words().0 } else { 0 };
        [self.chunks, self.groups, factors_at, self.blocks.unwrap_or(0)].map(word)
    }
}

impl Part {
    fn new(
        weight: &Weight,
        rows: Range<usize>,
        context: &Arc<Context>,
        keep: &mut dyn FnMut(&[u8]),
    ) -> Result<Self, DeviceError> {
        let slice = weight.slice_rows(rows.clone()).map_err(|error| context.broken(&error))?;
        let outline = Outline::of(&slice);
        let mut scales = Scales::default();
        let codes = context.block(
            "weights",
            outline.codes_bytes() as u64,
            BufferUsages::STORAGE,
            Some(&mut |put| {
                for tile in 0..outline.tiles() {
                    let tile = tile * TILE..((tile + 1) * TILE).min(rows.len());
                    let bytes = pack_tile(&slice, tile.clone(), &outline, &mut scales);
                    put(&bytes);
                    keep(&bytes);
                    weight.release_rows(rows.start + tile.start..rows.start + tile.end);
                }
            }),
        )?;
        let outline = settled(outline, &scales);
        let words = scale_words(&outline, &scales);
        keep(bytemuck::cast_slice(&words));
        let words = context.constant("weights", &words, BufferUsages::STORAGE)?;
        let (form, shape) = (outline.form, outline.shape());
        Ok(Self { rows, codes: Arc::new(codes), scales: Arc::new(words), form, shape })
    }
}

/// The codes, or the weights themselves, of a tile; its scales are appended to `scales`.
fn pack_tile(
    slice: &Weight,
    rows: Range<usize>,
    outline: &Outline,
    scales: &mut Scales,
) -> Vec<u8> {
    let (cols, &Outline { form, chunks, groups, .. }) = (slice.cols(), outline);
    // Bytes of a row's chunk, in vectors of 16.
    let vectors = form.bits as usize / 4;
    let mut out = vec![0; TILE * chunks * vectors * 16];
    let mut row = vec![0; chunks * CHUNK];
    let mut floats = vec![0.0; cols];
    let mut bytes = vec![0; chunks * vectors * 16];
    for (lane, index) in rows.enumerate() {
        if groups > 0 {
            scales.read(slice, index, outline, &mut row[..cols]);
        } else {
            slice.row_f32(index, &mut floats);
        }
        row_bytes(&form, &row, &floats, &mut bytes);
        for (at, vector) in bytes.chunks_exact(16).enumerate() {
            let to = (at * TILE + lane) * 16;
            out[to..to + 16].copy_from_slice(vector);
        }
    }
    out
}

/// One row, chunk by chunk, vectors of a chunk in order.
fn row_bytes(form: &Form, codes: &[u8], floats: &[f32], out: &mut [u8]) {
    match (form.bits, form.meta) {
        (4, _) => {
            // The low halves of four bytes are four weights, the high ones the next four.
            for (out, codes) in out.chunks_exact_mut(4).zip(codes.chunks_exact(8)) {
                for (out, (low, high)) in out.iter_mut().zip(codes[..4].iter().zip(&codes[4..])) {
                    *out = low | (high << 4);
                }
            }
        }
        (8, _) => out.copy_from_slice(codes),
        (16, 4) => {
            for (out, &x) in out.chunks_exact_mut(2).zip(floats) {
                out.copy_from_slice(&f16::from_f32(x).to_le_bytes());
            }
        }
        (16, _) => {
            for (out, &x) in out.chunks_exact_mut(2).zip(floats) {
                out.copy_from_slice(&bf16::from_f32(x).to_le_bytes());
            }
        }
        _ => {
            for (out, &x) in out.chunks_exact_mut(4).zip(floats) {
                out.copy_from_slice(&x.to_le_bytes());
            }
        }
    }
}

/// Whether the half nearest to a number is that number, and no adapter takes it for zero.
fn is_half(x: f32) -> bool {
    let half = f16::from_f32(x);
    x.to_bits() == 0 || (half.is_normal() && half.to_f32().to_bits() == x.to_bits())
}

/// Whether scales can be had in the outline's form.
fn suits(outline: &Outline, scales: &Scales) -> bool {
    #[allow(clippy::cast_precision_loss, reason = "zero points are at most 255")]
    let zero = (outline.form.zero as f32).to_bits();
    let same_zero = || scales.groups.iter().all(|g| g.offset.to_bits() == zero);
    match outline.form.meta {
        0 => same_zero() && scales.groups.iter().all(|g| is_half(g.scale)),
        1 => scales.groups.iter().all(|g| is_half(g.scale) && is_half(g.offset)),
        3 => outline.form.min || same_zero(),
        _ => true,
    }
}

/// The outline with the shortest form that keeps its scales.
fn settled(outline: Outline, scales: &Scales) -> Outline {
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    let zero = scales.groups.first().map_or(0, |g| g.offset as u32);
    let zero = if outline.form.min { 0 } else { zero };
    let forms = [(3, zero), (0, zero), (1, 0)].into_iter();
    let mut forms = forms.filter_map(|(meta, zero)| outline.with(meta, zero));
    forms.find(|outline| suits(outline, scales)).unwrap_or(outline)
}

/// Scales in the outline's form, of all its rows.
fn scale_words(outline: &Outline, scales: &Scales) -> Vec<u32> {
    let &Outline { form, rows, groups, blocks, .. } = outline;
    if groups == 0 {
        return vec![0];
    }
    let inside = |row: usize, index: usize| row < rows && index < groups;
    let group = |row: usize, index: usize| {
        if inside(row, index) { scales.groups[row * groups + index] } else { Group::default() }
    };
    let half = |x: f32| u32::from(f16::from_f32(x).to_bits());
    let pairs = groups.div_ceil(2);
    match form.meta {
        0 => {
            let scale = |row, at| half(group(row, at).scale);
            tiled(rows, pairs, |row, at| scale(row, 2 * at) | (scale(row, 2 * at + 1) << 16))
        }
        1 => tiled(rows, groups, |row, at| {
            let g = group(row, at);
            half(g.scale) | (half(g.offset) << 16)
        }),
        3 => {
            let unit = |row: usize, index: usize| {
                let there = inside(row, index);
                let u = if there { scales.units[row * groups + index] } else { Units::default() };
                u32::from(u.scale.cast_unsigned()) | (u32::from(u.min.cast_unsigned()) << 8)
            };
            let blocks = blocks.unwrap_or(0);
            let factor = |row: usize, at: usize| {
                let there = row < rows;
                let f =
                    if there { scales.factors[row * blocks + at / 2] } else { Factors::default() };
                let f = if at.is_multiple_of(2) { f.scale } else { f.min };
                f.to_f32().to_bits()
            };
            let mut words =
                tiled(rows, pairs, |row, at| unit(row, 2 * at) | (unit(row, 2 * at + 1) << 16));
            words.extend(tiled(rows, 2 * blocks, factor));
            words
        }
        _ => tiled(rows, 2 * groups, |row, at| {
            let g = group(row, at / 2);
            if at % 2 == 0 { g.scale } else { g.offset }.to_bits()
        }),
    }
}

/// Words in the order (tile, index, row of the tile).
fn tiled(rows: usize, count: usize, word: impl Fn(usize, usize) -> u32) -> Vec<u32> {
    let mut out = Vec::with_capacity(rows.next_multiple_of(TILE) * count);
    for tile in 0..rows.div_ceil(TILE) {
        for at in 0..count {
            out.extend((tile * TILE..(tile + 1) * TILE).map(|row| word(row, at)));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test stops where it fails")]
    use super::*;
    use crate::{GpuDevice, GpuOptions};
    use tangor_testkit::forms::every_form;

    #[test]
    fn a_matrix_takes_the_bytes_that_were_expected_in_every_form() {
        for max_weight_bytes in [None, Some(40_000)] {
            let options = GpuOptions { max_weight_bytes, ..GpuOptions::default() };
            let device = GpuDevice::open(&options).unwrap();
            let context = device.context();
            for (name, weight) in every_form(150, 512) {
                let packed = Packed::new(&weight, context, &mut |_| {}).unwrap();
                let expected = Packed::bytes_of(&weight, context.max_weights);
                assert_eq!(expected, packed.bytes(), "{name}, {max_weight_bytes:?}");
            }
        }
    }

    #[test]
    fn nibbles_of_four_weights_share_bytes() {
        let (form, _) =
            canonical(Some(Layout::Quant { bits: 4, group: 32, offset: Offset::Zero }), 32);
        let codes: Vec<u8> = (0..32).map(|i| i % 16).collect();
        let mut out = [0; 16];
        row_bytes(&form, &codes, &[], &mut out);
        assert_eq!(out[..4], [0x40, 0x51, 0x62, 0x73]);
        assert_eq!(out[4..8], [0xc8, 0xd9, 0xea, 0xfb]);
    }

    #[test]
    fn only_halves_that_no_adapter_flushes_count_as_halves() {
        assert!(is_half(0.0) && is_half(1.5) && is_half(-0.007_812_5));
        assert!(!is_half(0.1) && !is_half(1e-6) && !is_half(5.960_464_5e-8) && !is_half(1e6));
        assert!(!is_half(-0.0), "a sign that halves keep and whole numbers do not");
    }

    #[test]
    fn matrices_are_cut_where_their_layout_changes() {
        let dense = |dtype: DType, rows: usize| {
            Weight::dense(dtype, rows, 8, vec![0; rows * 8 * dtype.size()].into())
                .expect("a weight")
        };
        let (a, b) = (dense(DType::F32, 5), dense(DType::F16, 9));
        let both = Weight::stack(&[&a, &b, &b]).expect("a weight");
        assert_eq!(same_layout(&both, 0..both.rows()), [0..5, 5..23]);
    }
}
