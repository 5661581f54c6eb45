//! A weight matrix, whatever its file stored it as.

use crate::quant::{BlockFormat, Factors, Units};
use crate::{DType, FileChanged, byte_len, check_mapped, checked_product, release};
use bytes::Bytes;
use std::ops::Range;
use std::sync::Arc;

/// One group of a quantised row.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Group {
    /// Step between neighbouring codes.
    pub scale: f32,
    /// Zero point or minimum, as [`Offset`] says.
    pub offset: f32,
}

/// What the offset of a group means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Offset {
    /// `w = scale * (code - offset)`; `offset` is an integer in `0..=255` for every group.
    Zero,
    /// `w = scale * code + offset`, or a fractional zero point rewritten so.
    Min,
}

/// The canonical form of a weight: what a device has to implement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Layout {
    /// Plain elements.
    Dense(DType),
    /// Unsigned codes of `bits` (4 or 8) in groups along a row.
    Quant {
        /// 4: codes are 0..=15. 8: codes are 0..=255.
        bits: u8,
        /// Weights that share a scale: 16, 32, 64, 128, 256 (or a divisor of the row length).
        group: usize,
        /// Meaning of the groups' offsets.
        offset: Offset,
    },
}

/// Order of a matrix's rows in its file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RowOrder {
    /// As they are.
    Stored,
    /// Within every head of `head_dim` rows the file holds the pairs of a rotary embedding next to
    /// each other (0, d/2, 1, d/2+1, …); readers see the halves one after the other
    /// (0, 1, …, d/2-1, d/2, …). GGUF stores the llama family's q and k so.
    RopePairs {
        /// Rows per head.
        head_dim: usize,
    },
}

/// Zero points of a grouped weight.
#[derive(Clone, Debug)]
pub enum Zeros {
    /// The middle code: 8 for 4 bits, 128 for 8 bits.
    Middle,
    /// Codes of the weights' own width, `groups` per row; 4-bit ones two to a byte, low nibble
    /// first, each row starting on a byte.
    Packed(Bytes),
    /// One floating-point zero point per group, `(rows, groups)`.
    Float(DType, Bytes),
}

impl Zeros {
    /// Bytes of a row of so many groups, of which there are bytes.
    fn row_bytes(&self, bits: u8, groups: usize) -> usize {
        match self {
            Self::Middle => 0,
            Self::Packed(_) if bits == 4 => groups.div_ceil(2),
            Self::Packed(_) => groups,
            Self::Float(dtype, _) => groups.saturating_mul(dtype.size()),
        }
    }
}

/// Scales of a grouped weight, `(rows, groups)`, row-major.
#[derive(Clone, Debug)]
pub struct Scales {
    /// Element type.
    pub dtype: DType,
    /// The elements, little-endian.
    pub bytes: Bytes,
}

/// A weight's parts do not fit together.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WeightError {
    /// Fewer or more bytes than the shape needs.
    #[error("{what} of a {rows} x {cols} weight needs {needed} bytes and has {found}")]
    Size {
        /// Codes, scales, zero points or elements.
        what: &'static str,
        /// Rows.
        rows: usize,
        /// Columns.
        cols: usize,
        /// Bytes that the shape needs.
        needed: usize,
        /// Bytes that there are.
        found: usize,
    },
    /// The shape does not divide into blocks or groups.
    #[error("rows of {cols} weights do not divide into {what} of {unit}")]
    Ragged {
        /// Blocks, groups or heads.
        what: &'static str,
        /// Columns.
        cols: usize,
        /// What they should be a multiple of.
        unit: usize,
    },
    /// The shape is larger than the address space, or has no elements.
    #[error("a weight of {rows} x {cols} is empty or larger than the address space")]
    Shape {
        /// Rows.
        rows: usize,
        /// Columns.
        cols: usize,
    },
    /// Only 4 and 8 bits are known.
    #[error("weights of {0} bits are not supported (4 and 8 are)")]
    Bits(u8),
    /// Matrices of different widths cannot be stacked.
    #[error("cannot stack weights of {0} and {1} columns")]
    Stack(usize, usize),
    /// A scale, zero point or element that is infinite or not a number.
    #[error("{what} of row {row} are not finite")]
    NotFinite {
        /// Scales, zero points or elements.
        what: &'static str,
        /// The first such row, as stored.
        row: usize,
    },
    /// A range of rows past the end.
    #[error("rows {start}..{end} of a weight that has {rows}")]
    Rows {
        /// First row asked for.
        start: usize,
        /// End of the range asked for.
        end: usize,
        /// Rows there are.
        rows: usize,
    },
}

#[derive(Debug)]
enum Stored {
    /// `(rows, cols)` elements, row-major.
    Dense { dtype: DType, bytes: Bytes },
    /// `(rows, cols / block_len)` blocks.
    Blocks { format: &'static dyn BlockFormat, bytes: Bytes },
    /// `codes`: `(rows, ceil(cols / group), group * bits / 8)` bytes, low nibble first.
    Grouped { bits: u8, group: usize, codes: Bytes, scales: Scales, zeros: Zeros },
}

#[derive(Clone, Debug)]
struct Part {
    stored: Arc<Stored>,
    /// Columns of the stored matrix (all parts of a weight agree).
    cols: usize,
    rows: Range<usize>,
    order: RowOrder,
}

/// A matrix of `rows x cols`, `y = x W^T`: a row holds the weights of one output.
///
/// Cheap to clone; slicing and stacking rows share the stored bytes. Vectors are one row.
#[derive(Clone, Debug)]
pub struct Weight {
    rows: usize,
    cols: usize,
    parts: Arc<[Part]>,
}

impl Weight {
    /// Plain elements, `(rows, cols)` row-major, little-endian.
    ///
    /// # Errors
    /// If `bytes` is not exactly as long as the shape needs.
    pub fn dense(
        dtype: DType,
        rows: usize,
        cols: usize,
        bytes: Bytes,
    ) -> Result<Self, WeightError> {
        expect_bytes("data", rows, cols, (cols, 1, dtype.size()), rows, &bytes)?;
        Ok(Self::whole(Stored::Dense { dtype, bytes }, rows, cols))
    }

    /// Quantised blocks along the rows, `(rows, cols / block_len)`.
    ///
    /// # Errors
    /// If rows do not divide into blocks, or `bytes` is not exactly as long as the shape needs.
    pub fn blocks(
        format: &'static dyn BlockFormat,
        rows: usize,
        cols: usize,
        bytes: Bytes,
    ) -> Result<Self, WeightError> {
        let unit = (cols, format.block_len(), format.block_bytes());
        expect_bytes("data", rows, cols, unit, rows, &bytes)?;
        Ok(Self::whole(Stored::Blocks { format, bytes }, rows, cols))
    }

    /// Codes, scales and zero points in separate arrays, as ONNX `MatMulNBits` has them: codes
    /// `(rows, groups, group * bits / 8)` with low nibble first and the last group of a row padded,
    /// scales `(rows, groups)`.
    ///
    /// # Errors
    /// If an array is not exactly as long as the shape needs.
    pub fn grouped(
        (bits, group): (u8, usize),
        (rows, cols): (usize, usize),
        codes: Bytes,
        scales: Scales,
        zeros: Zeros,
    ) -> Result<Self, WeightError> {
        if bits != 4 && bits != 8 {
            return Err(WeightError::Bits(bits));
        }
        if group == 0 || !group.is_multiple_of(2) {
            return Err(WeightError::Ragged { what: "groups", cols, unit: group });
        }
        let groups = cols.div_ceil(group);
        let group_bytes = group * usize::from(bits) / 8;
        expect_bytes("codes", rows, cols, (groups, 1, group_bytes), rows, &codes)?;
        expect_bytes("scales", rows, cols, (groups, 1, scales.dtype.size()), rows, &scales.bytes)?;
        match &zeros {
            Zeros::Middle => {}
            Zeros::Packed(bytes) => {
                let row = zeros.row_bytes(bits, groups);
                expect_bytes("zero points", rows, cols, (row, 1, 1), rows, bytes)?;
            }
            Zeros::Float(dtype, bytes) => {
                expect_bytes("zero points", rows, cols, (groups, 1, dtype.size()), rows, bytes)?;
            }
        }
        Ok(Self::whole(Stored::Grouped { bits, group, codes, scales, zeros }, rows, cols))
    }

    /// A vector of plain `f32`.
    ///
    /// # Errors
    /// If it is empty.
    pub fn vector(values: &[f32]) -> Result<Self, WeightError> {
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        Self::dense(DType::F32, 1, values.len(), bytes.into())
    }

    fn whole(stored: Stored, rows: usize, cols: usize) -> Self {
        let part = Part { stored: Arc::new(stored), cols, rows: 0..rows, order: RowOrder::Stored };
        Self { rows, cols, parts: Arc::new([part]) }
    }

    /// Outputs.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Inputs.
    #[must_use]
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// The canonical form, if all parts agree on one; parts that differ must be used one by one.
    #[must_use]
    pub fn layout(&self) -> Option<Layout> {
        let mut layouts = self.parts.iter().map(|part| part.stored.layout());
        let first = layouts.next()?;
        layouts.all(|layout| layout == first).then_some(first)
    }

    /// Bits that codes need at the most: those of the layout, or fewer. `None` if it is dense.
    #[must_use]
    pub fn code_bits(&self) -> Option<u8> {
        self.parts.iter().map(|part| part.stored.code_bits()).max().flatten()
    }

    /// Inputs of a row that have factors of their scales and minima in common, if all rows are
    /// stored so and agree on their number: then there are [`Self::row_factors`].
    #[must_use]
    pub fn factored(&self) -> Option<usize> {
        let mut blocks = self.parts.iter().map(|part| part.stored.factored());
        let first = blocks.next()?;
        first.filter(|_| blocks.all(|block| block == first))
    }

    /// Bytes that the file spends on these rows.
    #[must_use]
    pub fn stored_bytes(&self) -> usize {
        self.parts.iter().map(|part| part.rows.len() * part.stored.row_bytes(part.cols)).sum()
    }

    /// Whether scales and minima of all rows are stored as halves, or as factors that all rows
    /// have, and zero points not at all: then no row needs a more general form than others do.
    #[must_use]
    pub fn is_uniform(&self) -> bool {
        let factored = self.factored().is_some();
        self.parts.iter().all(|part| factored || part.stored.has_halves())
    }

    /// A few rows by which to guess what is true of all: first, middle and last of every part that
    /// was stored by itself.
    pub fn sample_rows(&self) -> impl Iterator<Item = usize> {
        let ends = self.parts.iter().scan(0, |end, part| {
            *end += part.rows.len();
            Some((*end, part.rows.len()))
        });
        ends.flat_map(|(end, rows)| [end - rows, end - rows.div_ceil(2), end - 1])
    }

    /// The rows `range`, sharing the bytes.
    ///
    /// # Errors
    /// If the range is empty or past the end.
    pub fn slice_rows(&self, range: Range<usize>) -> Result<Self, WeightError> {
        if range.start >= range.end || range.end > self.rows {
            let Range { start, end } = range;
            return Err(WeightError::Rows { start, end, rows: self.rows });
        }
        let mut parts = Vec::new();
        let mut first = 0;
        for part in self.parts.iter() {
            let start = range.start.max(first);
            let end = range.end.min(first + part.rows.len());
            if start < end {
                let rows = part.rows.start + (start - first)..part.rows.start + (end - first);
                parts.push(Part { rows, ..part.clone() });
            }
            first += part.rows.len();
        }
        Ok(Self { rows: range.len(), cols: self.cols, parts: parts.into() })
    }

    /// The rows of all `weights`, one after the other: the fused form of linears that share their
    /// input.
    ///
    /// # Errors
    /// If their widths differ, or there are none.
    pub fn stack(weights: &[&Self]) -> Result<Self, WeightError> {
        let Some(first) = weights.first() else {
            return Err(WeightError::Shape { rows: 0, cols: 0 });
        };
        if let Some(other) = weights.iter().find(|weight| weight.cols != first.cols) {
            return Err(WeightError::Stack(first.cols, other.cols));
        }
        let parts: Vec<Part> = weights.iter().flat_map(|w| w.parts.iter().cloned()).collect();
        Ok(Self {
            rows: parts.iter().map(|part| part.rows.len()).sum(),
            cols: first.cols,
            parts: parts.into(),
        })
    }

    /// The same matrix read in another order of its rows (see [`RowOrder`]).
    ///
    /// # Errors
    /// If the rows do not divide into heads of an even size.
    pub fn reordered(&self, order: RowOrder) -> Result<Self, WeightError> {
        if let RowOrder::RopePairs { head_dim } = order {
            let fits = head_dim > 0 && head_dim.is_multiple_of(2);
            if !fits
                || self.parts.iter().any(|p| {
                    !p.rows.start.is_multiple_of(head_dim) || !p.rows.end.is_multiple_of(head_dim)
                })
            {
                return Err(WeightError::Ragged { what: "heads", cols: self.rows, unit: head_dim });
            }
        }
        let parts: Vec<Part> =
            self.parts.iter().map(|part| Part { order, ..part.clone() }).collect();
        Ok(Self { rows: self.rows, cols: self.cols, parts: parts.into() })
    }

    /// Proves that every weight is a finite number: reads all plain elements, and the scales and
    /// zero points of the quantised ones.
    ///
    /// # Errors
    /// [`WeightError::NotFinite`] for the first that is not.
    pub fn check_finite(&self) -> Result<(), WeightError> {
        self.parts.iter().try_for_each(|part| part.stored.check_finite(part.cols, &part.rows))
    }

    /// Says of some rows that they will not be read again soon: where they are mapped, they stop
    /// counting as this process's memory. Reading them stays possible.
    ///
    /// # Panics
    /// If the range is past the end.
    pub fn release_rows(&self, range: Range<usize>) {
        assert!(range.end <= self.rows, "{range:?} of a weight of {} rows", self.rows);
        let mut first = 0;
        for part in self.parts.iter() {
            let (start, end) = (range.start.max(first), range.end.min(first + part.rows.len()));
            if start < end {
                let base = part.rows.start;
                part.stored.release(part.cols, base + (start - first)..base + (end - first));
            }
            first += part.rows.len();
        }
    }

    /// Whether all that was read of it was there: where it lies in mapped files, what is lost reads
    /// as zeros.
    ///
    /// # Errors
    /// [`FileChanged`] once any page of those files could not be read.
    pub fn check_unchanged(&self) -> Result<(), FileChanged> {
        self.parts
            .iter()
            .flat_map(|part| part.stored.bytes())
            .try_for_each(|bytes| check_mapped(bytes))
    }

    /// One row as `f32`. For quantised weights each element is computed as its [`Layout`] says, in
    /// `f32`, with one rounding per operation.
    ///
    /// # Panics
    /// If `row >= rows()` or `out.len() != cols()`.
    pub fn row_f32(&self, row: usize, out: &mut [f32]) {
        assert_eq!(out.len(), self.cols, "a row has {} elements", self.cols);
        let (part, row) = self.locate(row);
        match &*part.stored {
            Stored::Dense { dtype, bytes } => {
                let len = part.cols * dtype.size();
                dtype.widen(&bytes[row * len..(row + 1) * len], out);
            }
            stored => {
                let Layout::Quant { group, offset, .. } = stored.layout() else { return };
                let mut codes = vec![0; part.cols];
                let mut groups = vec![Group::default(); part.cols.div_ceil(group)];
                stored.row_codes(row, part.cols, &mut codes, &mut groups);
                for ((out, codes), g) in out.chunks_mut(group).zip(codes.chunks(group)).zip(&groups)
                {
                    for (out, &code) in out.iter_mut().zip(codes) {
                        *out = match offset {
                            Offset::Zero => g.scale * (f32::from(code) - g.offset),
                            Offset::Min => g.scale * f32::from(code) + g.offset,
                        };
                    }
                }
            }
        }
    }

    /// One quantised row as codes (`cols`) and groups (`ceil(cols / group)`).
    ///
    /// # Panics
    /// If the row is past the end, not quantised, or a slice has the wrong length.
    pub fn row_codes(&self, row: usize, codes: &mut [u8], groups: &mut [Group]) {
        assert_eq!(codes.len(), self.cols, "a row has {} elements", self.cols);
        let (part, row) = self.locate(row);
        part.stored.row_codes(row, part.cols, codes, groups);
    }

    /// The factors of one row's groups: for every [`Self::factored`] inputs the `factors`, for
    /// every group the `units`.
    ///
    /// # Panics
    /// If the row is past the end, not factored, or a slice has the wrong length.
    pub fn row_factors(&self, row: usize, factors: &mut [Factors], units: &mut [Units]) {
        let (part, row) = self.locate(row);
        part.stored.row_factors(row, part.cols, factors, units);
    }

    fn locate(&self, row: usize) -> (&Part, usize) {
        assert!(row < self.rows, "row {row} of a weight that has {}", self.rows);
        let mut row = row;
        for part in self.parts.iter() {
            if row < part.rows.len() {
                let stored = part.rows.start + row;
                return (part, part.order.stored_row(stored));
            }
            row -= part.rows.len();
        }
        unreachable!("the parts cover every row")
    }
}

impl RowOrder {
    fn stored_row(self, row: usize) -> usize {
        match self {
            Self::Stored => row,
            Self::RopePairs { head_dim } => {
                let (head, within) = (row / head_dim, row % head_dim);
                let half = head_dim / 2;
                head * head_dim + (within % half) * 2 + within / half
            }
        }
    }
}

impl Stored {
    fn layout(&self) -> Layout {
        match self {
            Self::Dense { dtype, .. } => Layout::Dense(*dtype),
            Self::Blocks { format, .. } => format.layout(),
            Self::Grouped { bits, group, zeros, .. } => Layout::Quant {
                bits: *bits,
                group: *group,
                offset: match zeros {
                    Zeros::Float(..) => Offset::Min,
                    Zeros::Middle | Zeros::Packed(_) => Offset::Zero,
                },
            },
        }
    }

    fn code_bits(&self) -> Option<u8> {
        match self {
            Self::Dense { .. } => None,
            Self::Blocks { format, .. } => Some(format.code_bits()),
            Self::Grouped { bits, .. } => Some(*bits),
        }
    }

    fn factored(&self) -> Option<usize> {
        let Self::Blocks { format, .. } = self else { return None };
        format.factored().map(|_| format.block_len())
    }

    /// Whether every group has a half as its scale, likewise its minimum, and no zero point.
    fn has_halves(&self) -> bool {
        match self {
            Self::Dense { .. } => true,
            // One group, one scale: those of more are products.
            Self::Blocks { format, .. } => matches!(
                format.layout(),
                Layout::Quant { group, .. } if group == format.block_len()
            ),
            Self::Grouped { scales, zeros, .. } => {
                scales.dtype == DType::F16 && matches!(zeros, Zeros::Middle)
            }
        }
    }

    fn row_factors(&self, row: usize, cols: usize, factors: &mut [Factors], units: &mut [Units]) {
        let Self::Blocks { format, bytes } = self else { panic!("a weight without factors") };
        let Some(factored) = format.factored() else {
            panic!("block format {} has no factors", format.name())
        };
        let (size, blocks) = (format.block_bytes(), cols / format.block_len());
        assert!(factors.len() == blocks && units.len().is_multiple_of(blocks), "factors of a row");
        let row = &bytes[row * blocks * size..][..blocks * size];
        let per_block = units.len() / blocks;
        for ((block, factors), units) in
            row.chunks_exact(size).zip(factors).zip(units.chunks_exact_mut(per_block))
        {
            *factors = factored.factors(block, units);
        }
    }

    fn check_finite(&self, cols: usize, rows: &Range<usize>) -> Result<(), WeightError> {
        let floats = |what, dtype: DType, bytes: &Bytes, per_row: usize| {
            let len = per_row * dtype.size();
            let bytes = &bytes[rows.start * len..rows.end * len];
            match dtype.first_not_finite(bytes) {
                Some(index) => {
                    Err(WeightError::NotFinite { what, row: rows.start + index / per_row })
                }
                None => Ok(()),
            }
        };
        match self {
            Self::Dense { dtype, bytes } => floats("elements", *dtype, bytes, cols),
            Self::Blocks { format, bytes } => {
                let (size, per_row) = (format.block_bytes(), cols / format.block_len());
                let bytes = &bytes[rows.start * per_row * size..rows.end * per_row * size];
                match bytes.chunks_exact(size).position(|block| !format.is_finite(block)) {
                    Some(index) => {
                        let row = rows.start + index / per_row;
                        Err(WeightError::NotFinite { what: "scales", row })
                    }
                    None => Ok(()),
                }
            }
            Self::Grouped { group, scales, zeros, .. } => {
                let groups = cols.div_ceil(*group);
                floats("scales", scales.dtype, &scales.bytes, groups)?;
                match zeros {
                    Zeros::Float(dtype, bytes) => floats("zero points", *dtype, bytes, groups),
                    Zeros::Middle | Zeros::Packed(_) => Ok(()),
                }
            }
        }
    }

    fn row_bytes(&self, cols: usize) -> usize {
        match self {
            Self::Dense { dtype, .. } => cols * dtype.size(),
            Self::Blocks { format, .. } => cols / format.block_len() * format.block_bytes(),
            Self::Grouped { bits, group, scales, zeros, .. } => {
                let groups = cols.div_ceil(*group);
                let zeros = zeros.row_bytes(*bits, groups);
                groups * (group * usize::from(*bits) / 8 + scales.dtype.size()) + zeros
            }
        }
    }

    /// Everything that it consists of.
    fn bytes(&self) -> impl Iterator<Item = &Bytes> {
        let (first, scales, zeros) = match self {
            Self::Dense { bytes, .. } | Self::Blocks { bytes, .. } => (bytes, None, None),
            Self::Grouped { codes, scales, zeros, .. } => {
                let zeros = match zeros {
                    Zeros::Middle => None,
                    Zeros::Packed(bytes) | Zeros::Float(_, bytes) => Some(bytes),
                };
                (codes, Some(&scales.bytes), zeros)
            }
        };
        [Some(first), scales, zeros].into_iter().flatten()
    }

    /// Reordered rows lie in the same heads, whose other rows are read soon before or after.
    fn release(&self, cols: usize, rows: Range<usize>) {
        let of = |bytes: &Bytes, row: usize| release(&bytes[rows.start * row..rows.end * row]);
        match self {
            Self::Dense { bytes, .. } | Self::Blocks { bytes, .. } => {
                of(bytes, self.row_bytes(cols));
            }
            Self::Grouped { bits, group, codes, scales, zeros } => {
                let groups = cols.div_ceil(*group);
                of(codes, groups * (group * usize::from(*bits) / 8));
                of(&scales.bytes, groups * scales.dtype.size());
                match zeros {
                    Zeros::Middle => {}
                    Zeros::Packed(bytes) | Zeros::Float(_, bytes) => {
                        of(bytes, zeros.row_bytes(*bits, groups));
                    }
                }
            }
        }
    }

    fn row_codes(&self, row: usize, cols: usize, codes: &mut [u8], groups: &mut [Group]) {
        match self {
            Self::Dense { .. } => panic!("a dense weight has no codes"),
            Self::Blocks { format, bytes } => {
                let blocks = cols / format.block_len();
                let Layout::Quant { group, .. } = format.layout() else {
                    panic!("block format {} is not quantised", format.name())
                };
                assert_eq!(groups.len(), cols / group, "groups of a row");
                let row = &bytes[row * blocks * format.block_bytes()..];
                for ((block, codes), groups) in row
                    .chunks_exact(format.block_bytes())
                    .zip(codes.chunks_exact_mut(format.block_len()))
                    .zip(groups.chunks_exact_mut(format.block_len() / group))
                {
                    format.unpack(block, codes, groups);
                }
            }
            Self::Grouped { bits, group, codes: stored, scales, zeros } => {
                let count = cols.div_ceil(*group);
                assert_eq!(groups.len(), count, "groups of a row");
                let group_bytes = group * usize::from(*bits) / 8;
                let row_bytes = &stored[row * count * group_bytes..(row + 1) * count * group_bytes];
                if *bits == 4 {
                    for (out, pair) in codes.chunks_mut(2).zip(row_bytes) {
                        out[0] = pair & 15;
                        if let Some(high) = out.get_mut(1) {
                            *high = pair >> 4;
                        }
                    }
                } else {
                    codes.copy_from_slice(&row_bytes[..cols]);
                }
                for (index, g) in groups.iter_mut().enumerate() {
                    g.scale = element(&scales.bytes, scales.dtype, row * count + index);
                    g.offset = match zeros {
                        Zeros::Middle if *bits == 4 => 8.0,
                        Zeros::Middle => 128.0,
                        Zeros::Packed(bytes) if *bits == 4 => {
                            let byte = bytes[row * zeros.row_bytes(4, count) + index / 2];
                            f32::from(if index % 2 == 0 { byte & 15 } else { byte >> 4 })
                        }
                        Zeros::Packed(bytes) => f32::from(bytes[row * count + index]),
                        Zeros::Float(dtype, bytes) => {
                            -g.scale * element(bytes, *dtype, row * count + index)
                        }
                    };
                }
            }
        }
    }
}

fn element(bytes: &Bytes, dtype: DType, index: usize) -> f32 {
    let size = dtype.size();
    let mut out = [0.0];
    dtype.widen(&bytes[index * size..(index + 1) * size], &mut out);
    out[0]
}

/// `unit`: elements per row, and the length and bytes of the blocks that they come in.
fn expect_bytes(
    what: &'static str,
    rows: usize,
    cols: usize,
    unit: (usize, usize, usize),
    row_count: usize,
    bytes: &Bytes,
) -> Result<(), WeightError> {
    let (per_row, block_len, block_bytes) = unit;
    let shape = || WeightError::Shape { rows, cols };
    if rows == 0 || cols == 0 {
        return Err(shape());
    }
    let row = byte_len(per_row, block_len, block_bytes)
        .map_err(|_| shape())?
        .ok_or(WeightError::Ragged { what: "blocks", cols, unit: block_len })?;
    let needed = checked_product(&[row, row_count]).map_err(|_| shape())?;
    if needed == bytes.len() {
        Ok(())
    } else {
        Err(WeightError::Size { what, rows, cols, needed, found: bytes.len() })
    }
}
