//! Requests that schemathesis makes from the server's OpenAPI document, more of them than
//! `cargo xtask test` has time for.

use crate::command::{Outcome, run};
use crate::{cargo, setup};
use clap::Args;

/// How many requests.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Requests in all.
    #[arg(long, default_value_t = 20_000)]
    cases: u64,
    /// The same seed makes the same requests.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// Asks a server with a tiny model on the oracle.
pub(crate) fn schemathesis(options: &Options) -> Outcome {
    let mut test = cargo(&["test", "-p", "tangor-server", "--features", "schemathesis"]);
    test.args(["--test", "it", "generated", "--", "--nocapture"]);
    test.env("TANGOR_TEST_SCHEMATHESIS", setup::schemathesis()?);
    test.env("TANGOR_TEST_CASES", options.cases.to_string());
    test.env("TANGOR_TEST_SEED", options.seed.to_string());
    run("schemathesis", &mut test)
}
