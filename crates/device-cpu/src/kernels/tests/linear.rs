//! Linears of quantised weights: what a row comes to by the definition, on every instruction set,
//! for one row, few and many.

use super::{Guarded, exact, quantised, same_on_all, values};
use crate::buffer::Shared;
use crate::isa::Isa;
use crate::kernels::linear_int8::{BLOCK, HALF, Linear8, Row8};
use crate::kernels::quantise::Rows8;
use crate::kernels::rows::{RowOp, RowTask};
use crate::pack::{PANEL, Packed, PackedCodes};
use crate::pool::Pool;
use crate::simd::dispatch;
use tangor_device::model::ir::Activation;
use tangor_device::rounding::{GROUP, group_of};
use tangor_device::tensor::quant::{ALL, by_name};
use tangor_device::tensor::{Bytes, DType, Group, Layout, Offset, Scales, Weight, Zeros};

fn weight(bits: u8, group: usize, zeros: bool, outputs: usize, inputs: usize) -> Weight {
    let groups = outputs * inputs.div_ceil(group);
    let codes: Bytes = (0..groups * group * usize::from(bits) / 8)
        .map(|i| (i * 167 + i / 251) as u8)
        .collect::<Vec<u8>>()
        .into();
    let bytes: Vec<u8> = values(groups, 3).iter().flat_map(|x| (x * 0.01).to_le_bytes()).collect();
    let scales = Scales { dtype: DType::F32, bytes: bytes.clone().into() };
    let zeros = if zeros { Zeros::Float(DType::F32, bytes.into()) } else { Zeros::Middle };
    Weight::grouped((bits, group), (outputs, inputs), codes, scales, zeros).unwrap()
}

/// A weight in blocks of a format.
fn blocks(name: &str, outputs: usize, inputs: usize) -> Weight {
    let format = by_name(name).unwrap();
    let (len, size) = (format.block_len(), format.block_bytes());
    let mut bytes = vec![0; outputs * inputs / len * size];
    let values = values(outputs * inputs, 9);
    for (weights, block) in values.chunks(len).zip(bytes.chunks_mut(size)) {
        format.pack(weights, block);
    }
    Weight::blocks(format, outputs, inputs, bytes.into()).unwrap()
}

/// The definition, from what the weight itself says: see [`crate::kernels::linear_int8`].
#[allow(clippy::cast_precision_loss)]
fn defined(weight: &Weight, step: usize, bias: Option<&[f32]>, x: &Rows8, rows: usize) -> Vec<f32> {
    let Some(Layout::Quant { group, offset, .. }) = weight.layout() else { panic!("quantised") };
    let (outputs, inputs) = (weight.rows(), weight.cols());
    let mut y = vec![0.0_f32; rows * outputs];
    let mut codes = vec![0; inputs];
    let mut groups = vec![Group::default(); inputs.div_ceil(group)];
    for output in 0..outputs {
        weight.row_codes(output, &mut codes, &mut groups);
        for row in 0..rows {
            let mut sum = 0.0_f32;
            for first in (0..inputs).step_by(step) {
                let at = first / x.group() * x.stride() + row;
                let codes = &codes[first..(first + step).min(inputs)];
                let g = groups[first / group];
                let low = (x.codes(), x.scales()[at]);
                let high = (x.high(), 128.0 * x.scales()[at]);
                for (digits, scale) in [low, high].into_iter().take(1 + usize::from(x.wide()[at])) {
                    let digits = &digits[at * x.group() + first % x.group()..];
                    let products = codes.iter().zip(digits);
                    let dot: i32 = products.map(|(&c, &x)| i32::from(c) * i32::from(x)).sum();
                    let all: i32 = digits[..codes.len()].iter().map(|&x| i32::from(x)).sum();
                    match offset {
                        Offset::Zero => {
                            let dot = dot as f32 - g.offset * all as f32;
                            sum = (dot * g.scale).mul_add(scale, sum);
                        }
                        Offset::Min => {
                            sum = (dot as f32 * g.scale).mul_add(scale, sum);
                            sum = g.offset.mul_add(scale * all as f32, sum);
                        }
                    }
                }
            }
            y[row * outputs + output] = sum + bias.map_or(0.0, |bias| bias[output]);
        }
    }
    y
}

/// One row by the kernel of its own, its outputs cut in two wherever they can be.
fn by_halves(isa: Isa, weight: &PackedCodes, bias: Option<&[f32]>, x: &Rows8) -> Vec<Vec<u32>> {
    let halves = weight.outputs.div_ceil(HALF);
    let cut_at = |cut: usize| {
        let mut out = Guarded::new(weight.outputs);
        let y = Shared::new(out.slice());
        for halves in [0..cut, cut..halves] {
            dispatch(isa, Row8 { weight, bias, x, halves, y });
        }
        out.bits()
    };
    (0..=halves).map(cut_at).collect()
}

fn check(name: &str, weight: &Weight, rows: usize) {
    let (outputs, inputs) = (weight.rows(), weight.cols());
    let packed = Packed::new(weight, &Pool::new(1, false)).unwrap();
    let Packed::Codes(codes) = &packed else { panic!("a quantised weight") };
    let values_of_x = values(rows * inputs, 2);
    let bias = values(outputs, 5);
    let bias = (rows % 2 == 1).then_some(&bias[..]);
    for together in [GROUP, group_of(weight).unwrap()] {
        let name = format!("{name}, {outputs} outputs, {rows} rows of {inputs} in {together}");
        let x = quantised(Isa::Portable, &values_of_x, rows, inputs, together);
        let want = defined(weight, codes.step(together), bias, &x, rows);
        let want: Vec<u32> = want.iter().map(|x| x.to_bits()).collect();
        for isa in [Isa::Portable].into_iter().chain(Isa::available()) {
            let x = quantised(isa, &values_of_x, rows, inputs, together);
            let mut out = Guarded::new(rows * outputs);
            let y = Shared::new(out.slice());
            for panel in 0..outputs.div_ceil(PANEL) {
                let (weight, x) = (codes, &x);
                dispatch(isa, Linear8 { weight, bias, x, panel, rows: 0..rows, gated: None, y });
            }
            assert!(out.bits() == want, "{name} on {isa}");
            if rows == 1 {
                for (cut, bits) in by_halves(isa, codes, bias, &x).into_iter().enumerate() {
                    assert!(bits == want, "{name} cut at {cut} on {isa}");
                }
            }
        }
    }
    same_on_all(&format!("{name}, {rows} rows of {inputs}, exact"), |isa| {
        exact(isa, &packed, bias, &values_of_x, rows, outputs)
    });
}

#[test]
fn grouped_linears_are_as_defined_and_stay_in_their_rows() {
    for (bits, group, zeros) in [
        (4, 32, false),
        (4, 32, true),
        (4, 16, true),
        (4, 64, true),
        (4, 128, false),
        (8, 128, true),
        (8, 32, true),
        (8, 16, false),
    ] {
        for (outputs, inputs, rows) in [
            (1, 32, 1),
            (64, 64, 6),
            (100, 96, 17),
            (130, 40, 7),
            (33, 128, BLOCK),
            (230, 160, 1),
            (70, 256, 8),
            (130, 384, 1),
        ] {
            let weight = weight(bits, group, zeros, outputs, inputs);
            check(&format!("{bits} bits, groups of {group}"), &weight, rows);
        }
    }
}

#[test]
fn linears_of_every_block_format_are_as_defined_and_stay_in_their_rows() {
    for format in ALL {
        let (name, len) = (format.name(), format.block_len());
        for (outputs, blocks_per_row, rows) in
            [(1, 1, 1), (64, 2, 6), (100, 3, 17), (33, 1, BLOCK), (230, 5, 1), (130, 2, 20)]
        {
            check(name, &blocks(name, outputs, blocks_per_row * len), rows);
        }
    }
}

#[test]
fn linears_of_stacks_are_as_defined() {
    for (first, second) in
        [("Q5_0", "Q8_0"), ("Q5_0", "IQ4_XS"), ("Q5_1", "Q5_K"), ("Q5_K", "Q5_1")]
    {
        for rows in [1, 5, 19] {
            let (first_part, second_part) = (blocks(first, 70, 256), blocks(second, 70, 256));
            let weight = Weight::stack(&[&first_part, &second_part]).unwrap();
            check(&format!("{first} and {second}"), &weight, rows);
        }
    }
}

#[test]
fn gated_linears_are_the_gates_of_linears() {
    let pool = Pool::new(1, false);
    for (outputs, rows, act) in [
        (2 * PANEL, 5, Activation::Silu),
        (6 * PANEL, BLOCK, Activation::GeluTanh),
        (4 * PANEL, 19, Activation::Gelu),
    ] {
        let weight = weight(4, 32, rows == 19, outputs, 96);
        let Packed::Codes(weight) = Packed::new(&weight, &pool).unwrap() else { panic!("codes") };
        let (weight, half) = (&weight, outputs / 2);
        let (x, bias) = (values(rows * 96, 2), values(outputs, 5));
        for bias in [None, Some(&bias[..])] {
            same_on_all(&format!("{outputs} outputs gated by {act:?}"), |isa| {
                let x = &quantised(isa, &x, rows, 96, GROUP);
                let run = |panels: usize, width: usize, gated: Option<Activation>| {
                    let mut out = Guarded::new(rows * width);
                    let y = Shared::new(out.slice());
                    for panel in 0..panels {
                        dispatch(isa, Linear8 { weight, bias, x, panel, rows: 0..rows, gated, y });
                    }
                    out
                };
                let mut apart = run(outputs / PANEL, outputs, None);
                let (gate, mut want) = (apart.slice(), Guarded::new(rows * half));
                let op = RowOp::Gated { gate, up: &gate[half..], stride: outputs, act };
                let out = Shared::new(want.slice());
                let (width, rounded, plain) = (half, None, true);
                dispatch(isa, RowTask { op, width, rows: 0..rows, out, rounded, plain });
                let bits = run(half / PANEL, half, Some(act)).bits();
                assert!(bits == want.bits(), "{rows} rows on {isa}");
                bits
            });
        }
    }
}
