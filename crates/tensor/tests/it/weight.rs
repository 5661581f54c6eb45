//! Weights in every stored form, against plain arithmetic.

use half::{bf16, f16};
use tangor_tensor::quant::{ALL, by_name};
use tangor_tensor::{
    Bytes, DType, Group, Layout, Offset, RowOrder, Scales, Weight, WeightError, Zeros,
};

fn row(weight: &Weight, index: usize) -> Vec<f32> {
    let mut out = vec![f32::NAN; weight.cols()];
    weight.row_f32(index, &mut out);
    out
}

/// `(rows, cols)` of `10 row + col`.
fn grid(rows: usize, cols: usize) -> Weight {
    let bytes: Vec<u8> = (0..rows)
        .flat_map(|r| (0..cols).map(move |c| (10 * r + c) as f32))
        .flat_map(f32::to_le_bytes)
        .collect();
    Weight::dense(DType::F32, rows, cols, bytes.into()).unwrap()
}

fn f16s(values: &[f32]) -> Bytes {
    values.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()).collect::<Vec<u8>>().into()
}

fn halves(values: &[f32]) -> Scales {
    Scales { dtype: DType::F16, bytes: f16s(values) }
}

#[test]
fn plain_elements_of_every_type_read_as_they_are() {
    let values = [1.5f32, -0.0, 3.0e-3, 1000.0];
    let bytes16: Vec<u8> = values.iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()).collect();
    let brain = Weight::dense(DType::Bf16, 2, 2, bytes16.into()).unwrap();
    let half = Weight::dense(DType::F16, 2, 2, f16s(&values)).unwrap();
    for (index, value) in values.iter().enumerate() {
        assert_eq!(row(&brain, index / 2)[index % 2], bf16::from_f32(*value).to_f32());
        assert_eq!(row(&half, index / 2)[index % 2], f16::from_f32(*value).to_f32());
    }
    assert_eq!(row(&Weight::vector(&values).unwrap(), 0), values);
}

#[test]
fn grouped_codes_follow_their_layout_for_each_kind_of_zero_point() {
    // Two rows of 6 weights in groups of 4: the last group is padded.
    let codes = Bytes::from_static(&[0x10, 0x32, 0x54, 0x00, 0xba, 0xdc, 0xfe, 0x00]);
    let scales = || halves(&[0.5, 2.0, 1.0, 4.0]);
    let weight = |zeros| Weight::grouped((4, 4), (2, 6), codes.clone(), scales(), zeros).unwrap();

    let middle = weight(Zeros::Middle);
    assert_eq!(row(&middle, 0), [-4.0, -3.5, -3.0, -2.5, -8.0, -6.0]);
    assert_eq!(row(&middle, 1), [2.0, 3.0, 4.0, 5.0, 24.0, 28.0]);

    let packed = weight(Zeros::Packed(Bytes::from_static(&[0x41, 0xfa])));
    assert_eq!(row(&packed, 0), [-0.5, 0.0, 0.5, 1.0, 0.0, 2.0]);
    assert_eq!(row(&packed, 1), [0.0, 1.0, 2.0, 3.0, -4.0, 0.0]);
    let offset = Offset::Zero;
    assert_eq!(packed.layout(), Some(Layout::Quant { bits: 4, group: 4, offset }));

    let float = weight(Zeros::Float(DType::F16, f16s(&[0.5, 1.5, 0.0, 2.0])));
    assert_eq!(row(&float, 0), [-0.25, 0.25, 0.75, 1.25, 5.0, 7.0]);
    let mut codes = [0; 6];
    let mut groups = [Group::default(); 2];
    float.row_codes(1, &mut codes, &mut groups);
    assert_eq!(codes, [10, 11, 12, 13, 14, 15]);
    assert_eq!(groups[1], Group { scale: 4.0, offset: -8.0 });
}

#[test]
fn eight_bit_codes_are_bytes() {
    let codes = Bytes::from_static(&[0, 128, 255, 1]);
    let scales = halves(&[1.0, 0.5]);
    let zeros = Zeros::Packed(Bytes::from_static(&[0, 255]));
    let weight = Weight::grouped((8, 2), (1, 4), codes.clone(), scales, zeros).unwrap();
    assert_eq!(row(&weight, 0), [0.0, 128.0, 0.0, -127.0]);
    let middle = Weight::grouped((8, 2), (1, 4), codes, halves(&[1.0, 0.5]), Zeros::Middle);
    assert_eq!(row(&middle.unwrap(), 0), [-128.0, 0.0, 63.5, -63.5]);
}

#[test]
fn slices_and_stacks_read_the_rows_they_name() {
    let (a, b) = (grid(4, 3), grid(2, 3));
    let all = Weight::stack(&[&a, &b]).unwrap();
    assert_eq!((all.rows(), all.cols(), all.stored_bytes()), (6, 3, 72));
    assert_eq!(row(&all, 3), row(&a, 3));
    assert_eq!(row(&all, 4), row(&b, 0));
    let middle = all.slice_rows(3..5).unwrap();
    assert_eq!((row(&middle, 0), row(&middle, 1)), (row(&a, 3), row(&b, 0)));
    assert_eq!(all.slice_rows(4..4).unwrap_err(), WeightError::Rows { start: 4, end: 4, rows: 6 });
    assert_eq!(all.slice_rows(5..7).unwrap_err(), WeightError::Rows { start: 5, end: 7, rows: 6 });
    assert_eq!(Weight::stack(&[&a, &grid(1, 2)]).unwrap_err(), WeightError::Stack(3, 2));
    assert!(Weight::stack(&[]).is_err());
}

#[test]
fn stacks_of_different_forms_have_no_common_layout() {
    let q4 = by_name("Q4_0").unwrap();
    let blocks = Weight::blocks(q4, 1, 32, vec![0; 18].into()).unwrap();
    let mixed = Weight::stack(&[&grid(1, 32), &blocks]).unwrap();
    assert_eq!(mixed.layout(), None);
    assert_eq!(Weight::stack(&[&blocks, &blocks]).unwrap().layout(), Some(q4.layout()));
}

#[test]
fn rope_pairs_are_read_as_halves() {
    let reordered = grid(8, 1).reordered(RowOrder::RopePairs { head_dim: 4 }).unwrap();
    let rows: Vec<f32> = (0..8).map(|index| row(&reordered, index)[0]).collect();
    assert_eq!(rows, [0.0, 20.0, 10.0, 30.0, 40.0, 60.0, 50.0, 70.0]);
    let second = reordered.slice_rows(4..8).unwrap();
    assert_eq!(row(&second, 1)[0], 60.0);
    for head_dim in [0, 3, 16] {
        assert!(grid(8, 1).reordered(RowOrder::RopePairs { head_dim }).is_err(), "{head_dim}");
    }
}

#[test]
fn refuses_parts_whose_lengths_do_not_fit() {
    let dense = |rows, cols, len| Weight::dense(DType::F16, rows, cols, vec![0; len].into());
    assert!(dense(2, 3, 12).is_ok());
    for (rows, cols, len) in [(2, 3, 11), (2, 3, 13), (0, 3, 0), (3, 0, 0), (usize::MAX, 2, 4)] {
        assert!(dense(rows, cols, len).is_err(), "{rows} x {cols} in {len}");
    }
    for &format in ALL {
        let (len, size) = (format.block_len(), format.block_bytes());
        let blocks = |cols, bytes| Weight::blocks(format, 1, cols, vec![0; bytes].into());
        assert!(blocks(2 * len, 2 * size).is_ok());
        assert!(blocks(2 * len, 2 * size - 1).is_err());
        assert!(blocks(len + 1, 2 * size).is_err());
    }
    let grouped = |bits, group, codes: usize, scales: usize, zeros: usize| {
        let zeros = Zeros::Packed(vec![0; zeros].into());
        let scales = halves(&vec![1.0; scales]);
        Weight::grouped((bits, group), (2, 6), vec![0; codes].into(), scales, zeros)
    };
    assert!(grouped(4, 4, 8, 4, 2).is_ok());
    for (bits, group, codes, scales, zeros) in
        [(4, 4, 7, 4, 2), (4, 4, 8, 3, 2), (4, 4, 8, 4, 3), (3, 4, 8, 4, 2), (4, 0, 8, 4, 2)]
    {
        assert!(grouped(bits, group, codes, scales, zeros).is_err());
    }
}

#[test]
fn numbers_that_are_not_finite_are_found() {
    let mut values = [1.0f32; 6];
    values[4] = f32::NAN;
    let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    let weight = Weight::dense(DType::F32, 3, 2, bytes.into()).unwrap();
    let error = WeightError::NotFinite { what: "elements", row: 2 };
    assert_eq!(weight.check_finite(), Err(error));
    assert_eq!(weight.slice_rows(0..2).unwrap().check_finite(), Ok(()));
    let infinite = Weight::dense(DType::F16, 1, 2, f16s(&[65504.0, f32::INFINITY])).unwrap();
    assert!(infinite.check_finite().is_err());
    let brain = bf16::NEG_INFINITY.to_le_bytes().to_vec();
    assert!(Weight::dense(DType::Bf16, 1, 1, brain.into()).unwrap().check_finite().is_err());

    let grouped = |scales: &[f32], zeros| {
        Weight::grouped((8, 2), (2, 2), vec![0; 4].into(), halves(scales), zeros).unwrap()
    };
    let tiny = grouped(&[6e-8, 0.0], Zeros::Middle);
    assert_eq!(tiny.check_finite(), Ok(()), "denormals and zeros are numbers");
    let error = WeightError::NotFinite { what: "scales", row: 1 };
    assert_eq!(grouped(&[1.0, f32::NAN], Zeros::Middle).check_finite(), Err(error));
    let zeros = Zeros::Float(DType::F16, f16s(&[f32::INFINITY, 0.0]));
    let error = WeightError::NotFinite { what: "zero points", row: 0 };
    assert_eq!(grouped(&[1.0, 1.0], zeros).check_finite(), Err(error));
}

/// Kilobytes of the mapping that `bytes` lie in which this process holds in memory.
#[cfg(target_os = "linux")]
fn resident(bytes: &[u8]) -> usize {
    let address = bytes.as_ptr().addr();
    let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
    let mut inside = false;
    for line in maps.lines() {
        let range = line.split(' ').next().and_then(|range| range.split_once('-'));
        let range = range.and_then(|(start, end)| {
            let number = |text| usize::from_str_radix(text, 16).ok();
            Some(number(start)?..number(end)?)
        });
        match (range, line.strip_prefix("Rss:")) {
            (Some(range), _) => inside = range.contains(&address),
            (None, Some(size)) if inside => {
                return size.trim().trim_end_matches(" kB").parse().unwrap();
            }
            _ => {}
        }
    }
    panic!("{address:x} is in no mapping");
}

#[cfg(target_os = "linux")]
#[test]
fn released_rows_take_their_scales_and_zero_points_along() {
    let (rows, cols, group) = (4096, 256, 32);
    let groups = cols / group;
    let map = |len: usize| {
        let mut file = tempfile::tempfile().unwrap();
        std::io::Write::write_all(&mut file, &vec![0x11; len]).unwrap();
        tangor_tensor::map_file(&file).unwrap().0
    };
    let codes = map(rows * cols / 2);
    let scales = map(rows * groups * 2);
    for zeros in
        [Zeros::Packed(map(rows * groups / 2)), Zeros::Float(DType::F16, map(rows * groups * 2))]
    {
        let (Zeros::Packed(bytes) | Zeros::Float(_, bytes)) = &zeros else { unreachable!() };
        let bytes = bytes.clone();
        let dtype = DType::F16;
        let scales_of = Scales { dtype, bytes: scales.clone() };
        let weight =
            Weight::grouped((4, group), (rows, cols), codes.clone(), scales_of, zeros).unwrap();
        for index in 0..rows {
            row(&weight, index);
        }
        assert!(resident(&codes) > 0 && resident(&scales) > 0 && resident(&bytes) > 0);
        weight.release_rows(0..rows);
        assert_eq!([&codes, &scales, &bytes].map(|bytes| resident(bytes)), [0; 3]);
    }
}
