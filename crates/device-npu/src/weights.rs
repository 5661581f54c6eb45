//! Weights in the forms that ONNX operators read.
//!
//! A form either stands for exactly the weight that the graph has, up to the rounding of one `f32`
//! operation, or is not to be had: then the next one is taken, down to plain `f32`.

use tangor_device::tensor::{Group, Layout, Offset, Weight};

/// How a linear's weight is handed to a provider.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum LinearForm {
    /// `com.microsoft.MatMulNBits`: codes as they are, 4 or 8 bits.
    NBits,
    /// `DequantizeLinear` in blocks, then `MatMul`.
    Dequantize,
    /// `MatMul` with plain `f32`.
    Float,
}

/// Elements of a tensor.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Data {
    F32(Vec<f32>),
    U8(Vec<u8>),
    /// Two to a byte, low nibble first, without gaps.
    U4(Vec<u8>),
    I64(Vec<i64>),
}

/// A tensor of a model.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Tensor {
    pub(crate) dims: Vec<usize>,
    pub(crate) data: Data,
}

/// A linear's weight as tensors.
#[derive(Clone, Debug)]
pub(crate) enum Packed {
    /// Codes `(outputs, groups, group * bits / 8)`; scales `(outputs * groups)`; zero points by
    /// `zeros`.
    NBits { bits: u8, group: usize, codes: Tensor, scales: Tensor, zeros: Option<Tensor> },
    /// Codes `(outputs, inputs)`; scales and zero points `(outputs, groups)`.
    Dequantize { group: usize, codes: Tensor, scales: Tensor, zeros: Tensor },
    /// `(inputs, outputs)`.
    Float(Tensor),
}

impl Packed {
    /// `weight` in `form`; `None` if it cannot be had in it.
    pub(crate) fn new(weight: &Weight, form: LinearForm) -> Option<Self> {
        match form {
            LinearForm::NBits => nbits(weight),
            LinearForm::Dequantize => dequantize(weight),
            LinearForm::Float => Some(float(weight)),
        }
    }

    /// Bytes of the tensors that [`Packed::new`] gives.
    pub(crate) fn bytes_of(weight: &Weight, form: LinearForm) -> usize {
        let elements = weight.rows().saturating_mul(weight.cols());
        let Some(Layout::Quant { bits, group, .. }) = weight.layout() else { return 4 * elements };
        let (rows, groups) = (weight.rows(), weight.cols().div_ceil(group));
        let of_bits = |count: usize| (count * usize::from(bits)).div_ceil(8);
        match form {
            LinearForm::Float => 4 * elements,
            LinearForm::NBits => {
                let zeros = match zero_points(weight) {
                    Some(ZeroPoints::Integer) => of_bits(groups),
                    Some(ZeroPoints::Float) => 4 * groups,
                    Some(ZeroPoints::Middle) | None => 0,
                };
                rows * (groups * (of_bits(group) + 4) + zeros)
            }
            LinearForm::Dequantize => {
                of_bits(elements) + 4 * rows * groups + of_bits(rows * groups)
            }
        }
    }

    /// Whether [`Packed::new`] may give something, as far as the layout tells.
    pub(crate) fn possible(weight: &Weight, form: LinearForm) -> bool {
        match (form, weight.layout()) {
            (LinearForm::Float, _) => true,
            (LinearForm::NBits, Some(Layout::Quant { group, .. })) => {
                group.is_power_of_two() && (16..=256).contains(&group)
            }
            (LinearForm::Dequantize, Some(Layout::Quant { offset, .. })) => offset == Offset::Zero,
            _ => false,
        }
    }
}

/// A quantised weight, row by row.
struct Codes {
    bits: u8,
    group: usize,
    offset: Offset,
    groups_per_row: usize,
    /// `(outputs, inputs)`.
    codes: Vec<u8>,
    /// `(outputs, groups)`.
    groups: Vec<Group>,
}

impl Codes {
    fn read(weight: &Weight) -> Option<Self> {
        let Some(Layout::Quant { bits, group, offset }) = weight.layout() else { return None };
        let (rows, cols) = (weight.rows(), weight.cols());
        let groups_per_row = cols.div_ceil(group);
        let mut codes = vec![0; rows * cols];
        let mut groups = vec![Group::default(); rows * groups_per_row];
        let per_row = codes.chunks_mut(cols).zip(groups.chunks_mut(groups_per_row));
        for (row, (codes, groups)) in per_row.enumerate() {
            weight.row_codes(row, codes, groups);
        }
        Some(Self { bits, group, offset, groups_per_row, codes, groups })
    }

    fn rows(&self) -> usize {
        self.groups.len() / self.groups_per_row
    }

    fn greatest_code(&self) -> f32 {
        if self.bits == 4 { 15.0 } else { 255.0 }
    }

    fn scales(&self, dims: Vec<usize>) -> Tensor {
        Tensor { dims, data: Data::F32(self.groups.iter().map(|group| group.scale).collect()) }
    }

    /// Zero points as codes of the weight's own width, if all are.
    fn integer_zeros(&self) -> Option<Vec<u8>> {
        let fits = |group: &Group| group.offset <= self.greatest_code();
        if self.offset != Offset::Zero || !self.groups.iter().all(fits) {
            return None;
        }
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        Some(self.groups.iter().map(|group| group.offset as u8).collect())
    }

    /// Zero points as floats, if `scale * (code - zero)` is the weight up to rounding.
    fn float_zeros(&self) -> Option<Vec<f32>> {
        self.groups
            .iter()
            .map(|group| {
                if self.offset == Offset::Zero || group.offset == 0.0 {
                    return Some(if self.offset == Offset::Zero { group.offset } else { 0.0 });
                }
                let zero = -group.offset / group.scale;
                let largest = (group.scale * self.greatest_code()).abs().max(group.offset.abs());
                let near = |code: f32| {
                    let off = group.scale * (code - zero) - (group.scale * code + group.offset);
                    off.abs() <= 4.0 * f32::EPSILON * largest
                };
                (zero.is_finite() && near(0.0) && near(self.greatest_code())).then_some(zero)
            })
            .collect()
    }
}

/// Nibbles two to a byte; rows of `width` nibbles each start on a byte.
fn pack_nibbles(codes: &[u8], width: usize) -> Vec<u8> {
    let pair = |pair: &[u8]| pair[0] | pair.get(1).map_or(0, |high| high << 4);
    codes.chunks(width.max(1)).flat_map(|row| row.chunks(2).map(pair)).collect()
}

fn nbits(weight: &Weight) -> Option<Packed> {
    if !Packed::possible(weight, LinearForm::NBits) {
        return None;
    }
    let read = Codes::read(weight)?;
    let (rows, cols, groups) = (weight.rows(), weight.cols(), read.groups_per_row);
    let (bits, group) = (read.bits, read.group);
    let four = bits == 4;
    let group_bytes = group * usize::from(bits) / 8;
    let mut codes = Vec::with_capacity(rows * groups * group_bytes);
    for row in read.codes.chunks(cols) {
        let end = codes.len() + groups * group_bytes;
        if four {
            codes.extend(pack_nibbles(row, cols));
        } else {
            codes.extend_from_slice(row);
        }
        codes.resize(end, 0);
    }
    let middle = if four { 8 } else { 128 };
    let zeros = match read.integer_zeros() {
        Some(zeros) if zeros.iter().all(|&zero| zero == middle) => None,
        Some(zeros) if four => Some(Data::U8(pack_nibbles(&zeros, groups))),
        Some(zeros) => Some(Data::U8(zeros)),
        None => Some(Data::F32(read.float_zeros()?)),
    };
    let zeros = zeros.map(|data| {
        let len = match &data {
            Data::F32(values) => values.len(),
            Data::U8(values) | Data::U4(values) => values.len(),
            Data::I64(values) => values.len(),
        };
        Tensor { dims: vec![len], data }
    });
    let scales = read.scales(vec![read.rows() * groups]);
    let codes = Tensor { dims: vec![rows, groups, group_bytes], data: Data::U8(codes) };
    Some(Packed::NBits { bits, group, codes, scales, zeros })
}

fn dequantize(weight: &Weight) -> Option<Packed> {
    if !Packed::possible(weight, LinearForm::Dequantize) {
        return None;
    }
    let read = Codes::read(weight)?;
    let zeros = read.integer_zeros()?;
    let (rows, cols, groups) = (weight.rows(), weight.cols(), read.groups_per_row);
    let tensor = |dims: Vec<usize>, codes: &[u8]| {
        let data = match read.bits {
            4 => Data::U4(pack_nibbles(codes, codes.len())),
            _ => Data::U8(codes.to_vec()),
        };
        Tensor { dims, data }
    };
    Some(Packed::Dequantize {
        group: read.group,
        codes: tensor(vec![rows, cols], &read.codes),
        scales: read.scales(vec![rows, groups]),
        zeros: tensor(vec![rows, groups], &zeros),
    })
}

fn float(weight: &Weight) -> Packed {
    let (rows, cols) = (weight.rows(), weight.cols());
    let mut out = vec![0.0; rows * cols];
    let mut values = vec![0.0; cols];
    for row in 0..rows {
        weight.row_f32(row, &mut values);
        for (col, value) in values.iter().enumerate() {
            out[col * rows + row] = *value;
        }
    }
    Packed::Float(Tensor { dims: vec![cols, rows], data: Data::F32(out) })
}

/// A vector of the graph.
pub(crate) fn vector(weight: &Weight) -> Tensor {
    let mut out = vec![0.0; weight.cols()];
    weight.row_f32(0, &mut out);
    Tensor { dims: vec![out.len()], data: Data::F32(out) }
}

/// How the zero points of a quantised weight are written: what kernels may be chosen by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ZeroPoints {
    /// Not at all: all are the middle.
    Middle,
    Integer,
    Float,
}

/// Tells from a few of the weight's rows, as reading all takes long; a weight that differs between
/// is another case of the same shape, which costs a question and nothing else.
pub(crate) fn zero_points(weight: &Weight) -> Option<ZeroPoints> {
    let Some(Layout::Quant { bits, group, offset }) = weight.layout() else { return None };
    if offset == Offset::Min {
        return Some(ZeroPoints::Float);
    }
    let mut codes = vec![0; weight.cols()];
    let mut groups = vec![Group::default(); weight.cols().div_ceil(group)];
    let (middle, greatest) = if bits == 4 { (8.0, 15.0) } else { (128.0, 255.0) };
    let mut found = ZeroPoints::Middle;
    for row in weight.sample_rows() {
        weight.row_codes(row, &mut codes, &mut groups);
        for group in &groups {
            if group.offset > greatest {
                return Some(ZeroPoints::Float);
            }
            if group.offset != middle {
                found = ZeroPoints::Integer;
            }
        }
    }
    Some(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tangor_testkit::forms::every_form;

    #[test]
    fn a_weight_takes_the_bytes_that_were_expected_in_every_form() {
        for (name, weight) in every_form(10, 512) {
            for form in [LinearForm::NBits, LinearForm::Dequantize, LinearForm::Float] {
                let Some(packed) = Packed::new(&weight, form) else { continue };
                let tensors = match &packed {
                    Packed::NBits { codes, scales, zeros, .. } => {
                        [Some(codes), Some(scales), zeros.as_ref()]
                    }
                    Packed::Dequantize { codes, scales, zeros, .. } => {
                        [codes, scales, zeros].map(Some)
                    }
                    Packed::Float(values) => [Some(values), None, None],
                };
                let bytes: usize = tensors.into_iter().flatten().map(Tensor::bytes).sum();
                assert_eq!(Packed::bytes_of(&weight, form), bytes, "{name} as {form:?}");
            }
        }
    }
}
