//! The conformance suite on every instruction set of this machine, and equal bits between them and
//! between numbers of threads.

#![allow(clippy::expect_used, reason = "tests stop at what is unexpected")]
#![allow(clippy::unwrap_used)]

use tangor_device::{Device, conformance};
use tangor_device_cpu::{CpuDevice, CpuOptions, Isa};
use tangor_testkit::page;

fn device(isa: Isa, threads: usize) -> CpuDevice {
    CpuDevice::new(CpuOptions { isa: Some(isa), threads: Some(threads), pin: false })
        .expect("a device")
}

#[test]
fn every_instruction_set_conforms() {
    let isas = Isa::available();
    let reports = isas.iter().map(|&isa| conformance::run(&device(isa, 2)));
    let reports: Vec<conformance::Report> = reports.collect();
    for report in &reports {
        println!("{report}");
        assert!(report.passed(), "{report}");
        assert_eq!(report.lines, reports[0].lines, "not as far off as {}", reports[0].device);
    }
    let description = device(isas[0], 2).descriptor().description.clone();
    let others: Vec<&str> = isas[1..].iter().map(|isa| isa.name()).collect();
    let on = format!("{description}; the same with {}.", others.join(", "));
    page::check("cpu", &on, &reports[0].markdown());
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
