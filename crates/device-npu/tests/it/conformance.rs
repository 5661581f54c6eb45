//! The conformance suite with ONNX Runtime's own provider; with a plug-in see `webgpu`.

use crate::support::cpu;
use tangor_device::conformance;
use tangor_testkit::page;

#[test]
fn the_processors_provider_conforms() {
    let report = conformance::run(&cpu());
    println!("{report}");
    assert!(report.passed(), "{report}");
    page::check("npu", &format!("{}.", report.device), &report.markdown());
}
