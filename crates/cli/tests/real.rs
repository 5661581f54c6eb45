//! The binary with a real model (SmolLM2-135M-Instruct), end to end.
//!
//! `cargo xtask test` fetches the model into a store and names it in `TANGOR_HOME`.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test ends where it fails")]

use assert_cmd::Command;
use serde_json::Value;
use std::time::Duration;

/// `tangor` with these arguments, offline, on the store of the tests.
fn tangor(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tangor"));
    command.env("TANGOR_HOME", home()).env("TANGOR_OFFLINE", "1");
    command.arg("--quiet").args(args).write_stdin("").timeout(Duration::from_secs(3000));
    command
}

fn home() -> String {
    std::env::var("TANGOR_HOME").expect("TANGOR_HOME: run `cargo xtask test`")
}

/// What a command that succeeds writes to stdout and stderr.
fn written(mut command: Command) -> (String, String) {
    let output = command.output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(0), "{stderr}");
    (String::from_utf8(output.stdout).unwrap(), stderr)
}

fn json(args: &[&str]) -> Value {
    serde_json::from_str(&written(tangor(args)).0).unwrap()
}

const QUESTION: &str = "What is the capital of France?";

#[test]
fn knows_the_capital_of_france() {
    let (stdout, stderr) = written(tangor(&["run", "smollm2", "-p", QUESTION, "-n", "32"]));
    assert!(stdout.contains("Paris"), "{stdout}");
    assert_eq!(stderr, "");
    let exact = ["run", "smollm2", "-p", QUESTION, "-n", "32", "--activations", "f32"];
    assert!(written(tangor(&exact)).0.contains("Paris"));
}

#[test]
fn a_piped_question_gives_the_same_answer() {
    let args = ["run", "smollm2", "-n", "24"];
    let given = written(tangor(&[&args[..], &["-p", QUESTION]].concat())).0;
    let mut piped = tangor(&args);
    piped.write_stdin(format!("{QUESTION}\n"));
    assert_eq!(written(piped).0, given);
}

#[test]
fn json_tells_what_plain_output_shows() {
    let args = ["run", "smollm2", "-p", QUESTION, "-n", "24"];
    let plain = written(tangor(&args)).0;
    let json = json(&[&args[..], &["--json"]].concat());
    assert_eq!(plain, format!("{}\n", json["text"].as_str().unwrap()));
    let tokens = json["token_ids"].as_array().unwrap().len();
    assert_eq!(json["completion_tokens"], tokens);
    assert!(json["prompt_tokens"].as_u64().unwrap() > 10);
    assert!(["stop", "length"].contains(&json["finish_reason"].as_str().unwrap()));
    assert!(json["decode_tps"].as_f64().unwrap() > 0.0);
}

#[test]
fn stop_strings_end_the_answer_before_them() {
    let whole = json(&["run", "smollm2", "-p", QUESTION, "-n", "32", "--json"]);
    let whole = whole["text"].as_str().unwrap();
    let at = whole.find("Paris").expect("an answer with Paris");
    let args = ["run", "smollm2", "-p", QUESTION, "-n", "32", "--stop", "zzz", "--stop", "Paris"];
    let stopped = json(&[&args[..], &["--json"]].concat());
    assert_eq!(stopped["text"], whole[..at]);
    assert_eq!(stopped["finish_reason"], "stop");
}

#[test]
fn a_conversation_remembers_and_computes_nothing_twice() {
    let mut chat = tangor(&["chat", "smollm2", "-n", "24", "--stats"]);
    chat.write_stdin("What is the capital of France?\nAnd of Germany?\n");
    let (stdout, stderr) = written(chat);
    let answers: Vec<&str> = stdout.lines().collect();
    assert!(answers.len() == 2 && answers[1].contains("Berlin"), "{stdout}\n{stderr}");
    let statistics: Vec<&str> = stderr.lines().collect();
    assert!(!statistics[0].contains("cached") && statistics[1].contains("cached"), "{stderr}");
}

#[test]
fn eight_bit_activations_stay_close_to_exact_arithmetic() {
    let report = json(&["eval", "kl", "smollm2", "--json"]);
    assert!(report["tokens"].as_u64().unwrap() >= 2000, "{report}");
    assert!(report["mean_kl"].as_f64().unwrap() <= 4e-3, "{report}");
    assert!(report["top1_agreement"].as_f64().unwrap() >= 0.96, "{report}");
}

/// Ctrl-C in the middle of an answer.
#[cfg(unix)]
#[test]
fn ctrl_c_ends_an_answer_cleanly() {
    use std::io::Read;
    use std::process::{Command, Stdio};
    let mut child = Command::new(env!("CARGO_BIN_EXE_tangor"))
        .args([
            "--quiet",
            "run",
            "smollm2",
            "-p",
            "Write a very long story about the sea.",
            "-n",
            "4000",
        ])
        .env("TANGOR_HOME", home())
        .env("TANGOR_OFFLINE", "1")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // The answer has begun once there is something to read.
    let mut first = [0; 8];
    child.stdout.as_mut().unwrap().read_exact(&mut first).unwrap();
    let pid = child.id().to_string();
    assert!(Command::new("kill").args(["-INT", &pid]).status().unwrap().success());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130));
    assert_eq!(String::from_utf8_lossy(&output.stderr), "interrupted\n");
    assert!(output.stdout.ends_with(b"\n"), "the line is not ended");
}
