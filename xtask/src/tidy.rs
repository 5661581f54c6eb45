//! Rules that the compiler does not know: which crate may depend on which, how long files may be,
//! that every file says what it is, where unsafe code may stand, and what may not be in the tree.

use crate::command::{Outcome, output};
use crate::{cargo, root};
use std::collections::BTreeMap;
use std::fs;
use std::process::Command;

/// Crates and the workspace crates that each may depend on. Tests may use the test kit, and what
/// `TEST_EDGES` adds.
const EDGES: &[(&str, &[&str])] = &[
    ("tensor", &[]),
    ("formats", &["tensor"]),
    ("model", &["tensor", "formats"]),
    ("plan", &["model"]),
    ("device", &["tensor", "model"]),
    ("device-cpu", &["device"]),
    ("device-npu", &["device"]),
    ("device-gpu", &["device"]),
    ("text", &[]),
    ("engine", &["plan", "device", "text"]),
    ("store", &["formats"]),
    ("eval", &["engine", "store"]),
    ("server", &["engine", "store"]),
    ("cli", &["engine", "store", "eval", "server", "device-cpu", "device-gpu", "device-npu"]),
    ("testkit", &["tensor", "formats", "model", "device"]),
];

/// What the tests of a crate may use beyond its own edges: concrete devices to test against.
const TEST_EDGES: &[&str] =
    &["testkit", "device", "device-cpu", "formats", "model", "tensor", "store"];

/// Crates that may contain unsafe code; all others forbid it.
const UNSAFE: &[&str] = &["tensor", "device-cpu", "device-gpu"];

/// Longest file, in lines.
const FILE_LINES: usize = 1000;
/// Longest line, in characters.
const LINE_CHARS: usize = 100;
/// Largest file in the repository.
const FILE_BYTES: u64 = 2 << 20;

/// Checks every rule and lists all that is broken.
pub(crate) fn tidy() -> Outcome {
    eprintln!("== tidy");
    let mut broken = edges()?;
    for path in output(Command::new("git").current_dir(root()).args(["ls-files"]))?.lines() {
        let full = root().join(path);
        let Ok(metadata) = fs::symlink_metadata(&full) else { continue };
        if metadata.len() > FILE_BYTES {
            broken.push(format!("{path}: {} bytes; the limit is {FILE_BYTES}", metadata.len()));
        }
        let Ok(text) = fs::read_to_string(&full) else { continue };
        broken.extend(text_rules(path, &text));
        if path.ends_with(".rs") {
            broken.extend(rust_rules(path, &text));
        }
    }
    broken.extend(unsafe_is_forbidden());
    if broken.is_empty() { Ok(()) } else { Err(format!("tidy:\n  {}", broken.join("\n  "))) }
}

/// Compares the dependency edges of the workspace with [`EDGES`].
fn edges() -> Outcome<Vec<String>> {
    let metadata = output(&mut cargo(&["metadata", "--format-version=1", "--no-deps"]))?;
    let metadata: serde_json::Value =
        serde_json::from_str(&metadata).map_err(|error| error.to_string())?;
    let allowed: BTreeMap<&str, &[&str]> = EDGES.iter().copied().collect();
    let mut broken = Vec::new();
    for package in metadata["packages"].as_array().into_iter().flatten() {
        let Some(name) = package["name"].as_str().and_then(|n| n.strip_prefix("tangor-")) else {
            continue;
        };
        let Some(allowed) = allowed.get(name) else {
            broken.push(format!("crate {name} has no row in xtask's table of edges"));
            continue;
        };
        for dependency in package["dependencies"].as_array().into_iter().flatten() {
            let to = dependency["name"].as_str().and_then(|n| n.strip_prefix("tangor-"));
            let test = dependency["kind"] == "dev";
            if let Some(to) = to
                && !allowed.contains(&to)
                && !(test && TEST_EDGES.contains(&to))
            {
                broken.push(format!("{name} may not depend on {to}"));
            }
        }
    }
    Ok(broken)
}

/// Rules for every text file.
fn text_rules(path: &str, text: &str) -> Vec<String> {
    let mut broken = Vec::new();
    // Spelled in two halves, so that this file passes its own rule.
    for host in [concat!("crates", ".io"), concat!("pypi", ".org"), concat!("npmjs", ".")] {
        if !path.ends_with("Cargo.lock") && text.contains(host) {
            broken.push(format!("{path}: names the host of a package registry"));
        }
    }
    for word in [concat!("FIX", "ME"), concat!("XX", "X:")] {
        if text.contains(word) {
            broken.push(format!("{path}: {word} left behind"));
        }
    }
    broken
}

/// Rules for Rust files.
fn rust_rules(path: &str, text: &str) -> Vec<String> {
    let mut broken = Vec::new();
    let lines = text.lines().count();
    if lines > FILE_LINES {
        broken.push(format!("{path}: {lines} lines; the limit is {FILE_LINES}"));
    }
    if !text.trim_start().starts_with("//!") && !text.trim_start().starts_with("#![no_main]") {
        broken.push(format!("{path}: does not open with a //! line that says what it is"));
    }
    for (number, line) in text.lines().enumerate() {
        let length = line.chars().count();
        // Strings and rows of tables cannot be broken.
        if length > LINE_CHARS && !line.contains('"') && !line.starts_with("//! |") {
            broken.push(format!("{path}:{}: {length} characters", number + 1));
        }
    }
    broken
}

/// Every crate outside [`UNSAFE`] must forbid unsafe code in its root.
fn unsafe_is_forbidden() -> Vec<String> {
    EDGES
        .iter()
        .filter(|(name, _)| !UNSAFE.contains(name))
        .filter(|(name, _)| {
            let source = root().join("crates").join(name).join("src");
            !["lib.rs", "main.rs"].iter().any(|file| {
                fs::read_to_string(source.join(file))
                    .is_ok_and(|text| text.contains("#![forbid(unsafe_code)]"))
            })
        })
        .map(|(name, _)| format!("crate {name} does not forbid unsafe code in its root"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_long_files_and_missing_module_docs() {
        let long = "fn main() {}\n".repeat(FILE_LINES + 1);
        assert_eq!(rust_rules("x.rs", &long).len(), 2);
        assert!(rust_rules("x.rs", "//! Says what it is.\n").is_empty());
    }

    #[test]
    fn finds_registry_hosts() {
        let text = format!("see {}", concat!("pypi", ".org"));
        assert_eq!(text_rules("README.md", &text).len(), 1);
    }

    #[test]
    fn edges_form_no_cycle() {
        // Every crate may only name crates that stand before it, but for the test kit.
        for (index, (name, to)) in EDGES.iter().enumerate() {
            for to in *to {
                let place = EDGES.iter().position(|(other, _)| other == to);
                assert!(place.is_some_and(|place| place < index) || *name == "cli", "{name}->{to}");
            }
        }
    }
}
