//! `tangor serve` with a real model, driven by the official clients.
//!
//! `cargo xtask test` fetches the model and the clients, and names them in `TANGOR_HOME` and
//! `TANGOR_TEST_CLIENTS`.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test ends where it fails")]

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// A server that ends with its test.
struct Serving {
    child: Child,
    base: String,
}

impl Serving {
    fn new(args: &[&str]) -> Self {
        let home = std::env::var("TANGOR_HOME").expect("TANGOR_HOME: run `cargo xtask test`");
        let mut child = Command::new(env!("CARGO_BIN_EXE_tangor"))
            .args(["serve", "smollm2", "--port", "0"])
            .args(args)
            .env("TANGOR_HOME", home)
            .env("TANGOR_OFFLINE", "1")
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let base = lines.find_map(|line| {
            let line = line.unwrap();
            line.find("http://").map(|at| line[at..].trim().to_owned())
        });
        // What it says later must not fill the pipe.
        std::thread::spawn(move || lines.for_each(drop));
        Self { child, base: base.expect("a server that says where it serves") }
    }

    /// Runs a client of `tests/clients`; it succeeds.
    fn client(&self, script: &str) {
        let python = std::env::var("TANGOR_TEST_CLIENTS");
        let python = python.expect("TANGOR_TEST_CLIENTS: run `cargo xtask test`");
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients").join(script);
        let output = Command::new(python).arg(script).args([&self.base, "smollm2"]).output();
        let output = output.unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        let why = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{said}\n{why}");
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn openais_client_works() {
    Serving::new(&[]).client("openai_client.py");
}

#[test]
fn ollamas_client_works() {
    Serving::new(&[]).client("ollama_client.py");
}

#[test]
fn anthropics_client_works() {
    Serving::new(&[]).client("anthropic_client.py");
}

#[test]
fn langchains_client_works() {
    Serving::new(&[]).client("langchain_client.py");
}

#[test]
fn answers_are_valid_whatever_their_schema() {
    Serving::new(&["--sequences", "8"]).client("schemas_client.py");
}

#[test]
fn under_load_every_answer_is_what_it_is_alone() {
    let serving = Serving::new(&["--sequences", "6"]);
    let bench = ["bench", "server", &serving.base, "--check", "--leave", "10", "--json"];
    let checked = |seconds: &str| {
        let output = Command::new(env!("CARGO_BIN_EXE_tangor"))
            .args(bench)
            .args(["--streams", "6", "--seconds", seconds, "-p", "24", "-n", "16"])
            .output()
            .unwrap();
        let why = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{why}");
        let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!((&report["wrong"], &report["failed"]), (&0.into(), &0.into()), "{report}");
        report["checked"].as_u64()
    };
    // As long as it takes until some stream was heard more than once.
    assert!(["5", "60", "300"].into_iter().any(|seconds| checked(seconds) > Some(6)));
}

#[cfg(unix)]
#[test]
fn a_request_to_terminate_ends_the_server_well() {
    let mut serving = Serving::new(&["--grace", "5"]);
    let pid = serving.child.id().to_string();
    assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
    assert_eq!(serving.child.wait().unwrap().code(), Some(0));
}

#[test]
fn an_address_for_others_needs_a_key() {
    let output = Command::new(env!("CARGO_BIN_EXE_tangor"))
        .args(["serve", "--host", "0.0.0.0", "--port", "0"])
        .env_remove("TANGOR_API_KEY")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.contains("API key") && stderr.contains("hint:"), "{stderr}");
}
