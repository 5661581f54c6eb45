//! What the conformance suite checks, as docs/conformance.md has it.

use tangor_device::conformance;
use tangor_device::oracle::OracleDevice;
use tangor_testkit::page;

#[test]
fn what_is_checked_is_documented() {
    let report = conformance::run(&OracleDevice::new());
    assert!(report.passed(), "{report}");
    page::check("checks", "These are the suite's checks.", &report.checks());
}
