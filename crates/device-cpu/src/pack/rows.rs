//! Single rows out of panels: a table that is packed for the output head serves the embedding too.

use super::{Offsets, PANEL, Packed, PackedCodes, PackedDense, Scales, code};
use half::f16;

impl Packed {
    /// One row of the weight that was packed, with the bits that the weight itself gives.
    pub(crate) fn row_f32(&self, row: usize, out: &mut [f32]) {
        match self {
            Self::Codes(w) => w.row_f32(row, out),
            Self::Dense(w) => w.row_f32(row, out),
        }
    }
}

impl PackedCodes {
    fn row_f32(&self, row: usize, out: &mut [f32]) {
        let (panel, column) = (self.panel(row / PANEL), row % PANEL);
        let blocks = panel.chunks_exact(self.block_bytes());
        for (out, block) in out.chunks_mut(self.group * self.records).zip(blocks) {
            let (header, records) = block.split_at(self.header_bytes());
            let records = records.chunks_exact(self.record_bytes());
            for (out, record) in out.chunks_mut(self.group).zip(records) {
                self.group_f32(header, record, column, out);
            }
        }
    }

    /// One output's weights of one record.
    fn group_f32(&self, header: &[u8], record: &[u8], column: usize, out: &mut [f32]) {
        let (scales, offsets) = record[self.code_bytes()..].split_at(PANEL * self.scale_bytes());
        let half = |at: &[u8]| f16::from_le_bytes([at[2 * column], at[2 * column + 1]]).to_f32();
        // `factor`: the place of its factors in the header.
        let number = |at: &[u8], factor: usize| match self.scales {
            Scales::F16 => half(at),
            Scales::F32 => bytemuck::pod_read_unaligned(&at[4 * column..][..4]),
            Scales::Units => {
                half(&header[factor * 2 * PANEL..]) * f32::from(at[column].cast_signed())
            }
        };
        let scale = number(scales, 0);
        let codes = (0..).map(|index| f32::from(code(self.bits, record, column, index)));
        let zero = match self.offsets {
            Offsets::Uniform(zero) => zero,
            Offsets::Zero => offsets[column],
            Offsets::Min => {
                let min = number(offsets, 1);
                for (out, code) in out.iter_mut().zip(codes) {
                    *out = scale * code + min;
                }
                return;
            }
        };
        for (out, code) in out.iter_mut().zip(codes) {
            *out = scale * (code - f32::from(zero));
        }
    }
}

impl PackedDense {
    fn row_f32(&self, row: usize, out: &mut [f32]) {
        let (panel, column) = (self.panel(row / PANEL), row % PANEL);
        let size = self.dtype.size();
        let elements = panel.chunks_exact(size).skip(column).step_by(PANEL);
        for (out, element) in out.iter_mut().zip(elements) {
            self.dtype.widen(element, std::slice::from_mut(out));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pool::Pool;
    use tangor_device::model::{Op, shapes};
    use tangor_device::tensor::quant::{ALL, BlockFormat, by_name};
    use tangor_device::tensor::{DType, Layout, Offset, Weight};

    #[test]
    fn a_row_of_a_packed_weight_is_the_weights_own() {
        let quant = |bits, group, offset| Layout::Quant { bits, group, offset };
        let pool = Pool::new(2, false);
        for layout in [
            Layout::Dense(DType::F32),
            Layout::Dense(DType::F16),
            Layout::Dense(DType::Bf16),
            quant(4, 16, Offset::Zero),
            quant(4, 32, Offset::Min),
            quant(4, 128, Offset::Min),
            quant(8, 32, Offset::Zero),
            quant(8, 64, Offset::Min),
        ] {
            let config = shapes::config("smollm2-135m").unwrap();
            let graph = shapes::random_graph(&config, layout, 3).unwrap();
            let linears = graph.nodes.iter().filter_map(|node| match &node.op {
                Op::Linear { weight, .. } => Some(graph.weight(*weight)),
                _ => None,
            });
            for weight in linears.take(4) {
                let weight = weight.slice_rows(0..weight.rows().min(150)).unwrap();
                let packed = Packed::new(&weight, &pool).unwrap();
                let again = Packed::kept(&weight, &packed.form(), copy(packed.data())).unwrap();
                same_rows(&format!("{layout:?}"), &weight, &packed);
                same_rows(&format!("{layout:?}, kept"), &weight, &again);
            }
        }
    }

    fn same_rows(what: &str, weight: &Weight, packed: &Packed) {
        let (mut own, mut other) = (vec![0.0; weight.cols()], vec![0.0; weight.cols()]);
        let bits = |row: &[f32]| row.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        for row in 0..weight.rows() {
            weight.row_f32(row, &mut own);
            other.fill(f32::NAN);
            packed.row_f32(row, &mut other);
            assert_eq!(bits(&own), bits(&other), "{what}, row {row}");
        }
    }

    /// A weight of 150 rows of 512 inputs in blocks of a format, whose scales are finite.
    fn blocks(format: &'static dyn BlockFormat) -> Weight {
        let (rows, cols) = (150, 512);
        let count = rows * cols / format.block_len();
        let mut bytes: Vec<u8> =
            (0..count * format.block_bytes()).map(|i| (i * 193 + i / 7 * 31) as u8).collect();
        let mut packed = vec![0; format.block_bytes()];
        for (index, block) in bytes.chunks_exact_mut(format.block_bytes()).enumerate() {
            if !format.is_finite(block) {
                let weights: Vec<f32> =
                    (0..format.block_len()).map(|i| (i * 37 % 101 + index) as f32 - 50.0).collect();
                format.pack(&weights, &mut packed);
                block.copy_from_slice(&packed);
            }
        }
        Weight::blocks(format, rows, cols, bytes.into()).unwrap()
    }

    #[test]
    fn a_row_of_packed_blocks_is_the_weights_own() {
        let pool = Pool::new(2, false);
        for &format in ALL {
            let weight = blocks(format);
            let packed = Packed::new(&weight, &pool).unwrap();
            same_rows(format.name(), &weight, &packed);
            let again = Packed::kept(&weight, &packed.form(), copy(packed.data())).unwrap();
            same_rows(format.name(), &weight, &again);
            assert!((0..3).all(|panel| again.holds(&weight, panel)), "{}", format.name());
        }
    }

    #[test]
    fn blocks_take_few_more_bytes_packed_than_in_their_files() {
        let pool = Pool::new(2, false);
        for (name, bits) in [
            ("Q4_0", 4.5),
            ("Q5_0", 5.5),
            ("Q5_1", 6.0),
            ("Q8_0", 8.5),
            ("Q2_K", 5.125),
            ("Q3_K", 4.5625),
            ("Q4_K", 4.625),
            ("Q5_K", 5.625),
            ("Q6_K", 6.5625),
        ] {
            let weight = blocks(by_name(name).unwrap());
            let packed = Packed::new(&weight, &pool).unwrap();
            let padded = weight.rows().next_multiple_of(PANEL) * weight.cols();
            assert_eq!(packed.bytes() as f64 * 8.0 / padded as f64, bits, "{name}");
        }
    }

    #[test]
    fn a_form_that_does_not_fit_the_weight_or_the_bytes_is_not_believed() {
        let pool = Pool::new(2, false);
        let forms: Vec<String> = ["f16", "f32", "units", "i8", ""]
            .iter()
            .flat_map(|scales| {
                ["zero 8", "zero 32", "zeros", "minima", "zero", "zero 256"]
                    .map(|offsets| format!("codes {scales} {offsets}"))
            })
            .collect();
        for &format in ALL {
            let weight = blocks(format);
            let packed = Packed::new(&weight, &pool).unwrap();
            for form in &forms {
                let Some(other) = Packed::kept(&weight, form, copy(packed.data())) else {
                    continue;
                };
                let same_but_zero = |form: &str| form.replace(|c: char| c.is_ascii_digit(), "");
                assert_eq!(same_but_zero(form), same_but_zero(&packed.form()), "{}", format.name());
                assert_eq!(other.bytes(), packed.bytes());
            }
            for len in [0, packed.bytes() - 64, packed.bytes() / 2] {
                let short = copy(&packed.data()[..len]);
                assert!(Packed::kept(&weight, &packed.form(), short).is_none());
            }
        }
    }

    /// The same bytes elsewhere, from a cache line on.
    fn copy(bytes: &[u8]) -> tangor_device::tensor::Bytes {
        let longer = [&[0; 64], bytes].concat();
        let skip = longer.as_ptr().align_offset(64);
        let mut longer = longer;
        longer.copy_within(64.., skip);
        tangor_device::tensor::Bytes::from(longer).slice(skip..skip + bytes.len())
    }
}
