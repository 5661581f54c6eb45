//! Rearranging packed matrices: from `(inputs, outputs)`, as GPU kernels like them, to one row per
//! output.

use crate::safetensors::{ArrayInfo, ElementType, SafeTensors};
use crate::{FormatError, Result};
use tangor_tensor::{Bytes, DType, Zeros};

/// A stored matrix whose bytes are known to fit its shape.
pub(super) struct Matrix {
    pub(super) rows: usize,
    pub(super) cols: usize,
    pub(super) bytes: Bytes,
}

impl Matrix {
    /// `what` names it in errors.
    pub(super) fn new(
        arrays: &SafeTensors,
        array: &ArrayInfo,
        what: &str,
        element: ElementType,
    ) -> Result<Self> {
        let &[rows, cols] = array.shape() else {
            let message = format!("have shape {:?}, not two dimensions", array.shape());
            return Err(FormatError::malformed(what, message));
        };
        if array.element() != element {
            let message = format!("are of type {:?}, not {element:?}", array.element());
            return Err(FormatError::unsupported(what, message));
        }
        if rows == 0 || cols == 0 {
            return Err(FormatError::malformed(what, format!("have shape [{rows}, {cols}]")));
        }
        Ok(Self { rows, cols, bytes: arrays.bytes(array) })
    }

    pub(super) fn expect_cols(&self, what: &str, cols: usize) -> Result<()> {
        if self.cols == cols {
            return Ok(());
        }
        let message = format!("have {} columns, and the scales ask for {cols}", self.cols);
        Err(FormatError::malformed(what, message))
    }

    /// Calls `each` with the 32-bit words of every column, from top to bottom.
    ///
    /// Columns are gathered a cache line at a time: a column's words are far apart.
    fn columns(&self, mut each: impl FnMut(&[u32])) {
        const LINE: usize = 16;
        let words = self.bytes.as_chunks::<4>().0;
        let mut gathered = vec![0; self.rows.saturating_mul(LINE.min(self.cols))];
        for first in (0..self.cols).step_by(LINE) {
            let mut lanes: Vec<_> =
                gathered.chunks_exact_mut(self.rows).map(<[u32]>::iter_mut).collect();
            for row in words.chunks_exact(self.cols) {
                for (lane, word) in lanes.iter_mut().zip(row.iter().skip(first)) {
                    if let Some(slot) = lane.next() {
                        *slot = u32::from_le_bytes(*word);
                    }
                }
            }
            for (_, column) in (first..self.cols).zip(gathered.chunks_exact(self.rows)) {
                each(column);
            }
        }
    }
}

/// Bytes of `codes` codes.
pub(super) fn row_bytes(bits: u8, codes: usize) -> usize {
    if bits == 4 { codes.div_ceil(2) } else { codes }
}

/// Zeros for `rows` rows, or an error instead of an abort if there is no memory for them.
fn reserve(rows: usize, row_bytes: usize) -> Result<Vec<u8>> {
    let len = rows.checked_mul(row_bytes);
    let mut bytes = Vec::new();
    let reserved = len.map(|len| bytes.try_reserve_exact(len));
    match (len, reserved) {
        (Some(len), Some(Ok(()))) => {
            bytes.resize(len, 0);
            Ok(bytes)
        }
        _ => Err(FormatError::limit("memory", "bytes for one tensor", "too many", "this machine")),
    }
}

/// `(inputs / per_word, outputs)` words to `(outputs, row_bytes)`: a word's codes are neighbours
/// along the inputs already.
pub(super) fn transpose_words(matrix: &Matrix, rows: usize, row_bytes: usize) -> Result<Vec<u8>> {
    let mut out = reserve(rows, row_bytes)?;
    let mut rows = out.chunks_exact_mut(row_bytes.max(1));
    matrix.columns(|column| {
        for (out, word) in rows
            .next()
            .into_iter()
            .flat_map(|row| row.as_chunks_mut::<4>().0.iter_mut().zip(column))
        {
            *out = word.to_le_bytes();
        }
    });
    Ok(out)
}

/// `(inputs, outputs / per_word)` words to `(outputs, row_bytes)`: the code of a word's i-th output
/// stands at position `order[i]`.
pub(super) fn transpose_codes(
    matrix: &Matrix,
    bits: u8,
    order: &[u32; 8],
    rows: usize,
    row_bytes: usize,
) -> Result<Vec<u8>> {
    let mut out = reserve(rows, row_bytes)?;
    let shifts: Vec<u32> = if bits == 4 {
        order.iter().map(|position| position.saturating_mul(4)).collect()
    } else {
        vec![0, 8, 16, 24]
    };
    // The outputs of one word; the last one may have fewer.
    let mut blocks = out.chunks_mut(row_bytes.saturating_mul(shifts.len()).max(1));
    matrix.columns(|column| {
        let rows = blocks
            .next()
            .into_iter()
            .flat_map(|block| block.chunks_exact_mut(row_bytes.max(1)).zip(&shifts));
        for (row, shift) in rows {
            if bits == 4 {
                pack_nibbles(column, *shift, row);
            } else {
                for (out, word) in row.iter_mut().zip(column) {
                    *out = low_byte(*word, *shift);
                }
            }
        }
    });
    Ok(out)
}

fn low_byte(word: u32, shift: u32) -> u8 {
    let [low, ..] = word.wrapping_shr(shift).to_le_bytes();
    low
}

fn pack_nibbles(words: &[u32], shift: u32, out: &mut [u8]) {
    let nibble = |word: u32| low_byte(word, shift) & 15;
    let (pairs, last) = words.as_chunks::<2>();
    let mut out = out.iter_mut();
    for ([low, high], out) in pairs.iter().zip(out.by_ref()) {
        *out = nibble(*low) | (nibble(*high) << 4);
    }
    for (low, out) in last.iter().zip(out) {
        *out = nibble(*low);
    }
}

/// `(rows, cols)` elements of `size` bytes to `(cols, rows)`.
pub(super) fn transpose_elements(matrix: &Matrix, size: usize) -> Result<Vec<u8>> {
    let row_bytes = matrix.rows.saturating_mul(size);
    let mut out = reserve(matrix.cols, row_bytes)?;
    for (col, row) in out.chunks_exact_mut(row_bytes.max(1)).enumerate() {
        let column = matrix.bytes.chunks_exact(size).skip(col).step_by(matrix.cols);
        for (out, element) in row.chunks_exact_mut(size).zip(column) {
            out.copy_from_slice(element);
        }
    }
    Ok(out)
}

/// Zero points as they are; nothing to store where all are the middle code.
pub(super) fn packed_zeros(bytes: Vec<u8>, bits: u8, groups: usize) -> Zeros {
    let middle = if bits == 4 { 8 } else { 128 };
    if each(&bytes, bits, groups).all(|zero| zero == middle) {
        Zeros::Middle
    } else {
        Zeros::Packed(bytes.into())
    }
}

/// Zero points that are stored less one. A stored maximum means one more than a code can say, and
/// makes them all floating-point.
pub(super) fn add_one(mut bytes: Vec<u8>, bits: u8, groups: usize) -> Result<Zeros> {
    let max = if bits == 4 { 15 } else { 255 };
    if each(&bytes, bits, groups).any(|zero| zero == max) {
        let mut floats = Vec::new();
        let needed = bytes.len().saturating_mul(if bits == 4 { 8 } else { 4 });
        floats.try_reserve_exact(needed).map_err(|_| {
            FormatError::limit("memory", "bytes for zero points", needed, "this machine")
        })?;
        for zero in each(&bytes, bits, groups) {
            floats.extend_from_slice(&(f32::from(zero) + 1.0).to_le_bytes());
        }
        return Ok(Zeros::Float(DType::F32, floats.into()));
    }
    // No carry: every code is below the maximum.
    let one = if bits == 4 { 0x11 } else { 1 };
    bytes.iter_mut().for_each(|byte| *byte = byte.wrapping_add(one));
    Ok(packed_zeros(bytes, bits, groups))
}

/// The zero points of packed rows, without the padding of odd ones.
fn each(bytes: &[u8], bits: u8, groups: usize) -> impl Iterator<Item = u8> {
    bytes.chunks_exact(row_bytes(bits, groups).max(1)).flat_map(move |row| {
        let codes = row.iter().flat_map(move |&byte| match bits {
            4 => [Some(byte & 15), Some(byte >> 4)],
            _ => [Some(byte), None],
        });
        codes.flatten().take(groups)
    })
}
