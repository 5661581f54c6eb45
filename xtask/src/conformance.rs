//! The tables of docs/conformance.md: written by the tests that run the conformance suite.

use crate::command::{Outcome, run};
use crate::{cargo, setup};

/// Options of `cargo xtask conformance`.
#[derive(Clone, Copy, Debug, clap::Args)]
pub(crate) struct Options {
    /// Compare with the page as it is instead of writing it.
    #[arg(long)]
    check: bool,
}

/// Crates whose tests have a section of the page, and names of these tests.
const TESTS: &[(&str, &str)] = &[
    ("tangor-device", "documented"),
    ("tangor-device-cpu", "every_instruction_set_conforms"),
    ("tangor-device-gpu", "conforms_"),
    ("tangor-device-npu", "conforms"),
];

/// Runs the suite on every device that software can stand in for. Takes a quarter of an hour.
pub(crate) fn conformance(options: Options) -> Outcome {
    let inputs = setup::setup()?;
    for (package, filter) in TESTS {
        let mut tests = cargo(&["test", "--package", package, "--tests", "--no-fail-fast", "--"]);
        tests.arg(filter).envs(inputs.variables()).env("TANGOR_TEST_LONG", "1");
        if !options.check {
            tests.env("TANGOR_RECORD", "1");
        }
        run(package, &mut tests)?;
    }
    Ok(())
}
