//! The conformance suite on whatever adapter there is, in every way in which kernels can be built.
#![allow(clippy::expect_used, reason = "tests stop at what is unexpected")]
#![allow(clippy::print_stdout, reason = "the table is shown where a test fails")]

use std::process::Command;
use tangor_device::{Device, conformance};
use tangor_device_gpu::{AdapterKind, GpuDevice, GpuOptions, limits};
use tangor_testkit::page;

/// A device; without an adapter the message says what to install.
fn device(options: &GpuOptions) -> GpuDevice {
    GpuDevice::open(options).unwrap_or_else(|error| panic!("{error}"))
}

fn conforms(options: &GpuOptions) -> conformance::Report {
    let device = device(options);
    let report = conformance::run(&device);
    println!("{report}");
    assert!(report.passed(), "{options:?}\n{report}");
    report
}

/// Conforms as the page says in a section.
fn conforms_as_documented(section: &str) {
    let report = conforms(&GpuOptions::default());
    page::check(section, &format!("{}.", report.device), &report.markdown());
}

#[test]
fn conforms_as_it_is() {
    conforms_as_documented("gpu");
}

/// Which driver a process finds is a matter of its environment, so this runs in one of its own.
#[test]
fn conforms_on_another_vulkan() {
    const ALONE: &str = "TANGOR_TEST_ALONE";
    if std::env::var_os(ALONE).is_some() {
        assert!(device(&GpuOptions::default()).descriptor().description.contains("SwiftShader"));
        return conforms_as_documented("gpu-swiftshader");
    }
    // Fetched for Linux, and slow.
    if !cfg!(target_os = "linux") || std::env::var_os("TANGOR_TEST_LONG").is_none() {
        return;
    }
    let driver = std::env::var_os("TANGOR_TEST_VULKAN_ICD")
        .expect("a driver: run `cargo xtask test`, or what `cargo xtask setup` prints");
    let status = Command::new(std::env::current_exe().expect("this program"))
        .args(["conforms_on_another_vulkan", "--exact", "--nocapture"])
        .env(ALONE, "1")
        .env("VK_ICD_FILENAMES", &driver)
        .env("VK_DRIVER_FILES", &driver)
        .status();
    assert!(status.expect("a process").success());
}

#[test]
fn conforms_without_subgroups() {
    conforms(&GpuOptions { subgroups: false, split_below: Some(u32::MAX), ..Default::default() });
}

#[test]
fn conforms_with_integer_dots() {
    let options = GpuOptions { integer_dots: Some(true), ..Default::default() };
    assert!(device(&options).uses_integer_dots());
    conforms(&options);
}

#[test]
fn software_multiplies_integers_only_when_told_to() {
    let device = device(&GpuOptions::default());
    let software = device.facts().kind == AdapterKind::Software;
    assert!(!(software && device.uses_integer_dots()));
    assert!(limits::dot_cost(&device).expect("a measurement") > 0.0);
}

#[test]
fn all_ways_give_the_same_bits() {
    let bits = |options: &GpuOptions| conformance::bits(&device(options)).expect("logits");
    for integer_dots in [Some(false), Some(true)] {
        let want = bits(&GpuOptions { integer_dots, ..Default::default() });
        for (subgroups, split_below, max_weight_bytes) in [
            (true, Some(u32::MAX), None),
            (false, Some(u32::MAX), None),
            (false, Some(0), Some(16 << 10)),
        ] {
            let options = GpuOptions {
                subgroups,
                split_below,
                max_weight_bytes,
                integer_dots,
                ..Default::default()
            };
            let got = bits(&options);
            let same = got.iter().zip(&want).all(|(a, b)| a.to_bits() == b.to_bits());
            assert!(same && got.len() == want.len(), "{options:?}");
        }
    }
}
