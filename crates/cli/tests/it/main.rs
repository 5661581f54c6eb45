//! The binary as a user runs it, with tiny models of random weights.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test ends where it fails")]

mod model;
mod packed;
mod plan;
mod usage;

use assert_cmd::Command;
use serde_json::{Value, json};
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
        command.current_dir(self.folder.path()).timeout(Duration::from_secs(120));
        command.args(args).write_stdin("");
        command
    }

    /// A recorded tiny model with a tokenizer of 256 bytes and a chat template, as a folder.
    fn tiny(&self) -> PathBuf {
        let from = tangor_testkit::tiny::folder("llama-tied");
        let to = self.folder.path().join("tiny");
        std::fs::create_dir_all(&to).unwrap();
        for file in ["config.json", "model.safetensors"] {
            std::fs::copy(from.join(file), to.join(file)).unwrap();
        }
        std::fs::write(to.join("tokenizer.json"), byte_tokenizer().to_string()).unwrap();
        let config = json!({ "chat_template": TEMPLATE });
        std::fs::write(to.join("tokenizer_config.json"), config.to_string()).unwrap();
        to
    }
}

/// Every message behind its role, then the role that answers.
const TEMPLATE: &str = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}\
                        {% if add_generation_prompt %}assistant: {% endif %}";

/// A byte-level BPE without merges: one token per byte.
fn byte_tokenizer() -> Value {
    // The printable stand-ins for bytes of GPT-2's encoder.
    let printable = |byte: u32| matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    let mut others = 0x100..;
    let mut vocab = serde_json::Map::new();
    for byte in 0..256_u32 {
        let stand_in = if printable(byte) { byte } else { others.next().unwrap() };
        vocab.insert(char::from_u32(stand_in).unwrap().to_string(), byte.into());
    }
    json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": [],
        "normalizer": null,
        "pre_tokenizer": {
            "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true
        },
        "post_processor": null,
        "decoder": {
            "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true
        },
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
            "vocab": vocab, "merges": []
        }
    })
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
