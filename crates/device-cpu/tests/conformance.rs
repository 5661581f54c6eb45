//! The conformance suite on every instruction set of this machine, and equal bits between them and
//! between numbers of threads.

#![allow(clippy::expect_used, reason = "tests stop at what is unexpected")]
#![allow(clippy::unwrap_used)]

use tangor_device::conformance;
use tangor_device_cpu::{CpuDevice, CpuOptions, Isa};

fn device(isa: Isa, threads: usize) -> CpuDevice {
    CpuDevice::new(CpuOptions { isa: Some(isa), threads: Some(threads), pin: false })
        .expect("a device")
}

#[test]
fn every_instruction_set_conforms() {
    for isa in Isa::available() {
        let report = conformance::run(&device(isa, 2));
        println!("{report}");
        assert!(report.passed(), "{report}");
    }
}

#[test]
fn instruction_sets_and_threads_give_the_same_bits() {
    let want = conformance::bits(&device(Isa::Portable, 1)).expect("logits");
    for isa in Isa::available() {
        for threads in [1, 2, 3] {
            let got = conformance::bits(&device(isa, threads)).expect("logits");
            let same = got.iter().zip(&want).all(|(a, b)| a.to_bits() == b.to_bits());
            assert!(same && got.len() == want.len(), "{isa} with {threads} threads");
        }
    }
}
