//! The slow ring: checkpoints made from the real model by transformers and by onnxruntime-genai's
//! own builder, loaded by path alone and compared with what those libraries compute.

use crate::command::{Outcome, run};
use crate::setup::{python, setup};
use crate::{cargo, root};
use std::process::Command;

/// Packages of the private environment, as the recorded figures were taken with.
const PACKAGES: &[&str] = &[
    "torch",
    "transformers",
    "gguf",
    "safetensors",
    "sentencepiece",
    "accelerate",
    "onnx",
    "onnx_ir",
    "onnxruntime",
    "onnxruntime-genai==0.18.0",
];

/// Makes the checkpoints, then compares.
pub(crate) fn acceptance() -> Outcome {
    let inputs = setup()?;
    let python = python("acceptance-venv", PACKAGES)?;
    run("tangor", &mut cargo(&["build", "--release", "--package", "tangor-cli"]))?;
    let folder = root().join("target/acceptance");
    let tools = root().join("tools/acceptance");
    let mut make = Command::new(&python);
    make.arg(tools.join("make_real_checkpoints.py")).arg(&inputs.gguf);
    make.arg("--hf").arg(folder.join("hf")).arg("--oga").arg(folder.join("oga"));
    run("checkpoints", &mut make)?;
    let mut compare = Command::new(&python);
    compare.arg(tools.join("compare_real_checkpoints.py"));
    compare.arg("--tangor").arg(root().join("target/release/tangor"));
    compare.arg("--gguf").arg(&inputs.gguf).arg("--hf").arg(folder.join("hf"));
    run("comparison", compare.arg("--oga").arg(folder.join("oga")))
}
