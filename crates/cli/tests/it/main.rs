//! The binary as a user runs it, with tiny models of random weights.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test ends where it fails")]

mod model;
mod packed;
mod plan;
#[cfg(target_os = "linux")]
mod terminal;
mod usage;

use assert_cmd::Command;
use serde_json::Value;
use std::path::PathBuf;
use std::time::Duration;
use tempfile::TempDir;

/// A place of its own for every test: an empty store and no settings from outside.
struct Place {
    folder: TempDir,
}

impl Place {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    /// `tangor` with these arguments, offline.
    fn tangor(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tangor"));
        for name in ["TANGOR_THREADS", "TANGOR_ISA", "HF_TOKEN", "HF_HUB_OFFLINE"] {
            command.env_remove(name);
        }
        command.env("TANGOR_HOME", self.folder.path().join("home")).env("TANGOR_OFFLINE", "1");
        // Mesa's driver complains on stderr where there is no such folder.
        command.env("XDG_RUNTIME_DIR", self.folder.path());
        command.current_dir(self.folder.path()).timeout(Duration::from_secs(600));
        command.args(args).write_stdin("");
        command
    }

    /// A recorded tiny model with a tokenizer of 256 bytes and a chat template, as a folder.
    fn tiny(&self) -> PathBuf {
        let to = self.folder.path().join("tiny");
        tangor_testkit::tiny::write_with_text(&to);
        to
    }
}

/// What a command wrote.
struct Written {
    code: i32,
    stdout: String,
    stderr: String,
}

impl Written {
    fn of(mut command: Command) -> Self {
        let output = command.output().unwrap();
        Self {
            code: output.status.code().expect("an exit code"),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }

    /// The one JSON object on stdout of a command that succeeded.
    fn json(&self) -> Value {
        assert_eq!(self.code, 0, "{}", self.stderr);
        serde_json::from_str(&self.stdout).unwrap_or_else(|e| panic!("{e}: {}", self.stdout))
    }
}

/// The keys of an object, in order.
fn keys(value: &Value) -> Vec<&str> {
    value.as_object().expect("an object").keys().map(String::as_str).collect()
}
