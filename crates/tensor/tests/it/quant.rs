//! Block formats against gguf-py (`tools/goldens/quant.py`), and against themselves.

use proptest::prelude::*;
use std::path::PathBuf;
use tangor_tensor::quant::{ALL, BlockFormat, Factors, Units, by_name};
use tangor_tensor::{Bytes, Group, Layout, Offset, Weight, WeightError};

/// The sections of a golden file.
struct Golden(Vec<u8>);

impl Golden {
    fn of(format: &dyn BlockFormat) -> Self {
        let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/goldens/quant");
        Self(std::fs::read(dir.join(format!("{}.bin", format.name()))).unwrap())
    }

    fn take(&mut self, len: usize) -> Vec<u8> {
        self.0.drain(..len).collect()
    }

    fn count(&mut self) -> usize {
        u32::from_le_bytes(self.take(4).try_into().unwrap()) as usize
    }

    fn floats(&mut self, len: usize) -> Vec<f32> {
        let bytes = self.take(4 * len);
        bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
    }
}

/// Bits, with all NaNs alike.
fn bits(value: f32) -> u32 {
    if value.is_nan() { 0x7fc0_0000 } else { value.to_bits() }
}

fn rows_of(format: &'static dyn BlockFormat, rows: usize, bytes: Vec<u8>) -> Vec<f32> {
    let cols = format.block_len();
    let weight = Weight::blocks(format, rows, cols, Bytes::from(bytes)).unwrap();
    let mut out = vec![0.0; rows * cols];
    for (row, out) in out.chunks_mut(cols).enumerate() {
        weight.row_f32(row, out);
    }
    out
}

#[test]
fn every_format_reads_the_weights_that_gguf_py_reads_bit_for_bit() {
    for &format in ALL {
        let mut golden = Golden::of(format);
        let count = golden.count();
        let blocks = golden.take(count * format.block_bytes());
        let expected = golden.floats(count * format.block_len());
        let found = rows_of(format, count, blocks);
        assert!(expected.iter().filter(|w| w.is_finite() && **w != 0.0).count() > count * 8);
        for (index, (found, expected)) in found.iter().zip(&expected).enumerate() {
            let name = format.name();
            assert_eq!(bits(*found), bits(*expected), "{name} weight {index}: {found} {expected}");
        }
    }
}

#[test]
fn the_simple_formats_pack_the_bytes_that_gguf_py_packs() {
    for name in ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"] {
        let format = by_name(name).unwrap();
        let (len, size) = (format.block_len(), format.block_bytes());
        let mut golden = Golden::of(format);
        let read = golden.count();
        golden.take(read * (size + 4 * len));
        let count = golden.count();
        let weights = golden.floats(count * len);
        for weights in weights.chunks(len) {
            let mut block = vec![0xaa; size];
            format.pack(weights, &mut block);
            assert_eq!(block, golden.take(size), "{name}");
        }
    }
}

/// The largest error of a packed weight, in units of the largest magnitude in its block: half a
/// step (a whole one where one end of the range is cut off), and what rounding the scales adds.
/// Tiny scales fall into the denormals of `f16`, which the test allows for separately.
fn worst_error(name: &str) -> f32 {
    match name {
        "Q4_0" => 0.13,
        "Q4_1" => 0.069,
        "Q5_0" => 0.064,
        "Q5_1" => 0.034,
        "Q8_0" => 0.0045,
        "Q2_K" => 0.45,
        "Q3_K" => 0.28,
        "Q4_K" => 0.1,
        "Q5_K" => 0.065,
        "Q6_K" => 0.04,
        "IQ4_NL" => 0.12,
        "IQ4_XS" => 0.14,
        name => panic!("no bound for {name}"),
    }
}

proptest! {
    #[test]
    fn packing_rounds_to_what_the_format_can_say(
        unit in prop::collection::vec(-1.0f32..1.0, 256),
        magnitude in prop::sample::select(vec![0.05f32, 1.0, 300.0]),
        shift in -1.0f32..1.0,
    ) {
        for &format in ALL {
            let weights: Vec<f32> =
                unit.iter().take(format.block_len()).map(|w| (w + shift) * magnitude).collect();
            let mut block = vec![0xaa; format.block_bytes()];
            format.pack(&weights, &mut block);
            let largest = weights.iter().fold(0.0f32, |max, w| max.max(w.abs()));
            let bound = worst_error(format.name()) * largest + 6e-5;
            for (found, weight) in rows_of(format, 1, block).iter().zip(&weights) {
                let error = (found - weight).abs();
                prop_assert!(error <= bound, "{}: {weight} became {found}", format.name());
            }
        }
    }

    #[test]
    fn any_bytes_unpack_to_codes_of_the_declared_width(
        bytes in prop::collection::vec(any::<u8>(), 256),
    ) {
        for &format in ALL {
            let Layout::Quant { bits, group, .. } = format.layout() else {
                panic!("{} is not quantised", format.name())
            };
            let bits = bits.min(format.code_bits());
            let mut codes = vec![255; format.block_len()];
            let mut groups = vec![Group::default(); format.block_len() / group];
            let block = &bytes[..format.block_bytes()];
            format.unpack(block, &mut codes, &mut groups);
            let fits = |&code: &u8| u32::from(code) < 1 << bits;
            prop_assert!(codes.iter().all(fits), "{}", format.name());
            let finite = groups.iter().all(|g| g.scale.is_finite() && g.offset.is_finite());
            prop_assert_eq!(format.is_finite(block), finite, "{}", format.name());
        }
    }
}

proptest! {
    #[test]
    fn factors_times_units_are_the_groups_bit_for_bit(
        bytes in prop::collection::vec(any::<u8>(), 256),
    ) {
        let mut factored = 0;
        for &format in ALL {
            let Layout::Quant { group, offset, .. } = format.layout() else { unreachable!() };
            let block = &bytes[..format.block_bytes()];
            let weight =
                Weight::blocks(format, 1, format.block_len(), Bytes::copy_from_slice(block));
            let weight = weight.unwrap();
            let Some(len) = weight.factored() else { continue };
            prop_assert_eq!(len, format.block_len());
            factored += 1;
            let mut groups = vec![Group::default(); len / group];
            weight.row_codes(0, &mut vec![0; len], &mut groups);
            let mut factors = [Factors::default()];
            let mut units = vec![Units::default(); len / group];
            weight.row_factors(0, &mut factors, &mut units);
            for (group, units) in groups.iter().zip(&units) {
                let scale = factors[0].scale.to_f32() * f32::from(units.scale);
                prop_assert_eq!(bits(group.scale), bits(scale), "{}", format.name());
                if offset == Offset::Min {
                    let min = factors[0].min.to_f32() * f32::from(units.min);
                    prop_assert_eq!(bits(group.offset), bits(min), "{}", format.name());
                }
            }
        }
        prop_assert_eq!(factored, 6);
    }
}

#[test]
fn a_stack_is_factored_if_all_of_it_is() {
    let of = |name: &str| {
        let format = by_name(name).unwrap();
        let blocks = 256 / format.block_len() * format.block_bytes();
        Weight::blocks(format, 1, 256, vec![0; blocks].into()).unwrap()
    };
    let stack = |a: &str, b: &str| Weight::stack(&[&of(a), &of(b)]).unwrap();
    assert_eq!(stack("Q4_K", "Q4_K").factored(), Some(256));
    assert_eq!(stack("Q5_K", "Q5_1").factored(), None);
    assert_eq!(stack("Q5_1", "Q5_K").factored(), None);
    assert_eq!(stack("Q5_K", "Q5_1").code_bits(), Some(5));
    assert_eq!(stack("Q5_0", "Q8_0").code_bits(), Some(8));
    assert_eq!(stack("Q6_K", "Q6_K").code_bits(), Some(6));
}

#[test]
fn weights_of_zero_stay_zero() {
    for &format in ALL {
        let mut block = vec![0xaa; format.block_bytes()];
        format.pack(&vec![0.0; format.block_len()], &mut block);
        assert!(rows_of(format, 1, block).iter().all(|&w| w == 0.0), "{}", format.name());
    }
}

#[test]
fn an_infinite_scale_is_found_in_its_row() {
    for &format in ALL {
        let size = format.block_bytes();
        let mut bytes = vec![0; 3 * size];
        let weight = |bytes: &[u8]| {
            Weight::blocks(format, 3, format.block_len(), Bytes::copy_from_slice(bytes)).unwrap()
        };
        assert_eq!(weight(&bytes).check_finite(), Ok(()));
        let last = (0..size)
            .find(|&at| {
                bytes[size..2 * size].fill(0);
                bytes[size + at] = 0x7c;
                weight(&bytes).check_finite().is_err()
            })
            .unwrap_or_else(|| panic!("{} has no half-precision field", format.name()));
        bytes[size..2 * size].fill(0);
        bytes[size + last] = 0x7c;
        let error = weight(&bytes).check_finite().unwrap_err();
        assert_eq!(error, WeightError::NotFinite { what: "scales", row: 1 });
    }
}

#[test]
fn names_are_found_and_unique() {
    for &format in ALL {
        assert_eq!(by_name(format.name()).unwrap().name(), format.name());
    }
    let mut names: Vec<_> = ALL.iter().map(|format| format.name()).collect();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), ALL.len());
    assert!(by_name("Q9_Z").is_none());
}
