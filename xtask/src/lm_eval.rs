//! lm-eval's `local-completions` against the server, compared with `tangor eval`.

use crate::command::{Outcome, run};
use crate::setup::{home, model, python};
use crate::{cargo, root};
use std::process::Command;

/// No torch among them: tokens come from the server.
const PACKAGES: &[&str] = &["lm_eval[api]==0.4.13"];

/// Has it score a few sentences with the real model.
pub(crate) fn lm_eval() -> Outcome {
    model()?;
    let python = python("lm-eval-venv", PACKAGES)?;
    run("tangor", &mut cargo(&["build", "--release", "--package", "tangor-cli"]))?;
    let mut compare = Command::new(python);
    compare.arg(root().join("tools/lm_eval/compare.py"));
    compare.arg(root().join("target/release/tangor")).arg("smollm2");
    // Whatever it keeps of the sentences is kept with the rest.
    compare.env("HF_HOME", root().join("target/lm-eval-home")).env("HF_HUB_OFFLINE", "1");
    run("lm-eval", compare.env("TANGOR_HOME", home()).env("TANGOR_OFFLINE", "1"))
}
