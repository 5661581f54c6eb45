//! The conformance suite on whatever adapter there is, in every way in which kernels can be built.
#![allow(clippy::expect_used, reason = "tests stop at what is unexpected")]
#![allow(clippy::print_stdout, reason = "the table is shown where a test fails")]

use tangor_device::conformance;
use tangor_device_gpu::{GpuDevice, GpuOptions};

/// A device; without an adapter the message says what to install.
fn device(options: &GpuOptions) -> GpuDevice {
    GpuDevice::open(options).unwrap_or_else(|error| panic!("{error}"))
}

fn conforms(options: &GpuOptions) {
    let device = device(options);
    let report = conformance::run(&device);
    println!("{report}");
    assert!(report.passed(), "{options:?}\n{report}");
}

#[test]
fn conforms_as_it_is() {
    conforms(&GpuOptions::default());
}

#[test]
fn conforms_without_subgroups() {
    conforms(&GpuOptions { subgroups: false, split_below: Some(u32::MAX), ..Default::default() });
}

#[test]
fn all_ways_give_the_same_bits() {
    let bits = |options: &GpuOptions| conformance::bits(&device(options)).expect("logits");
    let want = bits(&GpuOptions::default());
    for (subgroups, split_below, max_weight_bytes) in [
        (true, Some(u32::MAX), None),
        (false, Some(u32::MAX), None),
        (false, Some(0), Some(16 << 10)),
    ] {
        let options = GpuOptions { subgroups, split_below, max_weight_bytes, ..Default::default() };
        let got = bits(&options);
        let same = got.iter().zip(&want).all(|(a, b)| a.to_bits() == b.to_bits());
        assert!(same && got.len() == want.len(), "{options:?}");
    }
}
