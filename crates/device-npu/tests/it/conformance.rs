//! The conformance suite with ONNX Runtime's own provider.

use crate::support::cpu;
use tangor_device::conformance;

#[test]
fn the_processors_provider_conforms() {
    let report = conformance::run(&cpu());
    println!("{report}");
    assert!(report.passed(), "{report}");
}
