//! A weight in every form that files have.

use half::{bf16, f16};
use tangor_model::tensor::quant::{ALL, BlockFormat};
use tangor_model::tensor::{DType, Scales, Weight, Zeros};

/// Weights of `rows` rows of `cols` inputs, a multiple of 256, each with the name of its form:
/// plain elements, every block format, and groups with every kind of scales and zero points.
///
/// # Panics
/// If `cols` is something else.
#[must_use]
pub fn every_form(rows: usize, cols: usize) -> Vec<(String, Weight)> {
    let mut all = Vec::new();
    for dtype in [DType::F32, DType::F16, DType::Bf16] {
        let weight = Weight::dense(dtype, rows, cols, vec![0; rows * cols * dtype.size()].into());
        all.push((dtype.name().to_owned(), weight));
        for (bits, group) in [(4, 16), (4, 32), (4, 128), (8, 32), (8, 256)] {
            for zeros in ["middle", "packed", "float"] {
                let name = format!("{bits} bits, groups of {group}, {} {zeros}", dtype.name());
                all.push((name, grouped((bits, group), (rows, cols), dtype, zeros)));
            }
        }
    }
    all.extend(ALL.iter().map(|format| (format.name().to_owned(), blocks(*format, rows, cols))));
    let made = |(name, weight): (String, Result<Weight, _>)| match weight {
        Ok(weight) => (name, weight),
        Err(error) => panic!("{name}: {error}"),
    };
    all.into_iter().map(made).collect()
}

type Made = Result<Weight, tangor_model::tensor::WeightError>;

/// Numbers in no order, from -0.5 to 0.5.
fn number(index: usize) -> f32 {
    (index * 7919 % 1000) as f32 / 999.0 - 0.5
}

fn blocks(format: &'static dyn BlockFormat, rows: usize, cols: usize) -> Made {
    let mut bytes = vec![0; rows * cols / format.block_len() * format.block_bytes()];
    for (index, block) in bytes.chunks_exact_mut(format.block_bytes()).enumerate() {
        let first = index * format.block_len();
        let weights: Vec<f32> = (first..first + format.block_len()).map(number).collect();
        format.pack(&weights, block);
    }
    Weight::blocks(format, rows, cols, bytes.into())
}

fn grouped(
    (bits, group): (u8, usize),
    (rows, cols): (usize, usize),
    dtype: DType,
    zeros: &str,
) -> Made {
    let groups = cols / group;
    let bytes = |count: usize| (0..count).map(|index| (index * 89) as u8).collect::<Vec<_>>();
    let elements = |middle: f32| -> Vec<u8> {
        let numbers = (0..rows * groups).map(|index| middle + 0.1 * number(index));
        match dtype {
            DType::F32 => numbers.flat_map(f32::to_le_bytes).collect(),
            DType::F16 => numbers.flat_map(|x| f16::from_f32(x).to_le_bytes()).collect(),
            DType::Bf16 => numbers.flat_map(|x| bf16::from_f32(x).to_le_bytes()).collect(),
        }
    };
    let zeros = match zeros {
        "middle" => Zeros::Middle,
        "packed" if bits == 4 => Zeros::Packed(bytes(rows * groups.div_ceil(2)).into()),
        "packed" => Zeros::Packed(bytes(rows * groups).into()),
        _ => Zeros::Float(dtype, elements(7.5).into()),
    };
    let codes = bytes(rows * groups * group * usize::from(bits) / 8);
    let scales = Scales { dtype, bytes: elements(0.1).into() };
    Weight::grouped((bits, group), (rows, cols), codes.into(), scales, zeros)
}
