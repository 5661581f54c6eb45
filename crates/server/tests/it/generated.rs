//! Requests that schemathesis makes from the OpenAPI document: `cargo xtask schemathesis`.

use crate::support::*;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

/// Requests in a run of all tests: `TANGOR_TEST_CASES` asks for others.
const CASES: &str = "400";

#[test]
fn whatever_is_asked_is_answered_as_the_document_says() {
    let python = std::env::var("TANGOR_TEST_SCHEMATHESIS");
    let python = python.expect("TANGOR_TEST_SCHEMATHESIS: run `cargo xtask schemathesis`");
    let set = |name: &str, usual: &str| std::env::var(name).unwrap_or_else(|_| usual.to_owned());
    let (cases, seed) = (set("TANGOR_TEST_CASES", CASES), set("TANGOR_TEST_SEED", "1"));
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/generated.py");
    // The oracle has no memory of its own that would bound a sequence.
    let server = Running::new(|options| options.limits.context = 2 * CONTEXT);
    let mut command = Command::new(python);
    // Whatever it keeps is kept where it is removed afterwards.
    command.arg(script).args([&server.base, &cases, &seed]).current_dir(server.folder.path());
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::inherit()).spawn().unwrap();
    // A long run is watched.
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    lines.for_each(|line| println!("{}", line.unwrap()));
    assert!(child.wait().unwrap().success(), "the requests' report says what is wrong");
}
