//! What needs no model: help, wrong usage, the empty store, exit codes, which stream gets what.

use crate::{Place, Written, keys};

const COMMANDS: &[&str] = &[
    "run",
    "chat",
    "pull",
    "list",
    "rm",
    "show",
    "inspect",
    "plan",
    "bench",
    "compare",
    "eval",
    "doctor",
    "completions",
];

#[test]
fn help_is_a_result_and_names_every_command() {
    let place = Place::new();
    let help = Written::of(place.tangor(&["--help"]));
    assert_eq!((help.code, help.stderr.as_str()), (0, ""));
    for command in COMMANDS {
        assert!(help.stdout.contains(&format!("\n  {command} ")), "{command}");
        let help = Written::of(place.tangor(&[command, "--help"]));
        assert_eq!((help.code, help.stderr.as_str()), (0, ""), "{command}");
        assert!(help.stdout.contains("Usage: tangor"), "{command}");
    }
}

#[test]
fn help_fits_a_terminal() {
    let place = Place::new();
    for command in COMMANDS {
        let help = Written::of(place.tangor(&[command, "--help"]));
        for line in help.stdout.lines() {
            assert!(line.chars().count() <= 100, "{command}: {line}");
        }
    }
}

#[test]
fn wrong_usage_exits_with_2_and_leaves_stdout_empty() {
    let place = Place::new();
    for args in [
        &["--nonsense"][..],
        &["nonsense"],
        &["run"],
        &["run", "m", "--temperature", "-1", "-p", "x"],
        &["run", "m", "-n", "0", "-p", "x"],
        &["run", "m", "--top-p", "1.5", "-p", "x"],
        &["run", "m", "-p", "x", "-f", "y"],
        &["run", "m", "-p", "x", "--raw", "--system", "y"],
        &["run", "m", "-p", "x", "--device", "abacus"],
        &["run", "m", "-p", "x", "--top", "1"],
        &["bench"],
        &["bench", "m", "--shape", "llama-3.2-1b"],
        &["bench", "--shape", "nonsense"],
        &["bench", "--shape", "llama-3.2-1b", "--weights", "q9"],
        &["bench", "m", "--weights", "q4_0"],
        &["plan", "m", "--weights", "q4_0"],
        &["bench", "m", "kernels"],
        &["bench", "kernels", "--cpu-time", "--threads", "2"],
        &["compare"],
        &["compare", "m", "--peers", "abacus"],
        &["compare", "m", "--chart", "picture.jpg"],
        &["plan", "m", "--policy", "nobody"],
        &["eval"],
        &["eval", "kl", "m", "--peers", "openvino"],
        &["completions", "nonsense"],
    ] {
        let written = Written::of(place.tangor(args));
        assert_eq!(written.code, 2, "{args:?}: {}", written.stderr);
        assert_eq!(written.stdout, "", "{args:?}");
        assert!(written.stderr.starts_with("error:"), "{args:?}: {}", written.stderr);
    }
}

#[test]
fn empty_variables_are_not_set() {
    let place = Place::new();
    let tiny = place.tiny();
    let tiny = tiny.to_str().unwrap();
    for args in [&["list"][..], &["run", tiny, "-p", "x", "-n", "2"], &["serve", "absent.gguf"]] {
        let mut command = place.tangor(args);
        for name in ["HOST", "PORT", "CORS", "THREADS", "ISA", "GPU", "NPU", "OFFLINE", "HOME"] {
            command.env(format!("TANGOR_{name}"), "");
        }
        command.env("XDG_DATA_HOME", place.folder.path()).env("HF_HUB_OFFLINE", "1");
        let written = Written::of(command);
        let absent = args.contains(&"absent.gguf");
        assert_eq!(written.code, i32::from(absent), "{args:?}: {}", written.stderr);
        assert!(!absent || written.stderr.contains("no such file"), "{}", written.stderr);
    }
}

#[test]
fn long_options_may_be_shortened_while_unique() {
    let place = Place::new();
    // The model is missing, which is found out after the options were understood.
    let args = ["run", "absent.gguf", "--prom", "x", "--temp", "0", "--act", "f32", "--th", "1"];
    let written = Written::of(place.tangor(&args));
    assert_eq!(written.code, 1, "{}", written.stderr);
}

#[test]
fn failures_exit_with_1_and_one_line_that_says_what_to_do() {
    let place = Place::new();
    let garbage = place.folder.path().join("garbage.gguf");
    std::fs::write(&garbage, "this is no model").unwrap();
    for (args, subject, hint) in [
        (&["run", "absent.gguf", "-p", "x"][..], "absent.gguf", false),
        (&["run", "garbage.gguf", "-p", "x"], "garbage.gguf", false),
        (&["inspect", "garbage.gguf"], "garbage.gguf", false),
        (&["run", "smollm2", "-p", "x"], "smollm2", true),
        (&["pull", "smollm2"], "smollm2", true),
        (&["pull", "nonsense"], "nonsense", true),
        (&["show", "org/repo"], "org/repo", true),
        (&["rm", "smollm2"], "smollm2", true),
        (&["plan", "--shape", "llama-3.2-1b", "--profile", "abacus"], "abacus", true),
        (&["chat", "smollm2", "--load", "absent.json"], "absent.json", false),
        (&["run", "m.gguf", "-f", "absent.txt"], "absent.txt", false),
    ] {
        let written = Written::of(place.tangor(args));
        assert_eq!(written.code, 1, "{args:?}: {}", written.stderr);
        assert_eq!(written.stdout, "", "{args:?}");
        let lines: Vec<&str> = written.stderr.lines().collect();
        assert!(lines[0].starts_with("error: ") && lines[0].contains(subject), "{lines:?}");
        assert!(lines.len() <= 2, "{lines:?}");
        assert!(lines[1..].iter().all(|line| line.starts_with("hint: ")), "{lines:?}");
        assert!(!hint || lines.len() == 2, "{args:?} has no hint: {lines:?}");
    }
}

#[test]
fn hints_are_true() {
    let place = Place::new();
    std::fs::create_dir(place.folder.path().join("mine")).unwrap();
    std::fs::write(place.folder.path().join("mine.gguf"), "weights").unwrap();
    for (args, hint) in [
        (&["rm", "smollm2"][..], "`tangor list` shows what is"),
        (&["rm", "--packed", "smollm2"], "`tangor list` shows what is"),
        (&["rm", "./mine.gguf"], "the file is yours to remove"),
        (&["run", "mine", "-p", "x"], "hint: ./mine is the one in this folder"),
        (&["serve", "mine"], "hint: ./mine is the one in this folder"),
    ] {
        let written = Written::of(place.tangor(args));
        assert_eq!(written.code, 1, "{args:?}");
        assert!(written.stderr.contains(hint), "{args:?}: {}", written.stderr);
        assert!(!written.stderr.contains("pull"), "{args:?}: {}", written.stderr);
    }
}

#[test]
fn an_empty_store_is_no_failure() {
    let place = Place::new();
    let list = Written::of(place.tangor(&["list"]));
    assert_eq!((list.code, list.stdout.as_str()), (0, ""));
    assert!(list.stderr.contains("tangor pull"), "{}", list.stderr);
    let quiet = Written::of(place.tangor(&["list", "--quiet"]));
    assert_eq!((quiet.code, quiet.stdout.as_str(), quiet.stderr.as_str()), (0, "", ""));
    let json = Written::of(place.tangor(&["list", "--json"])).json();
    assert_eq!(json, serde_json::json!({ "models": [], "unfinished": [] }));
}

#[test]
fn what_a_pull_has_left_is_shown() {
    let place = Place::new();
    let left = place.folder.path().join("home/models/org-repo-000000000000");
    std::fs::create_dir_all(left.join("part")).unwrap();
    std::fs::write(left.join("part/x.part"), [0; 3000]).unwrap();
    let list = Written::of(place.tangor(&["list"]));
    assert!(list.stderr.contains("org-repo-000000000000 is not complete, 3"), "{}", list.stderr);
    let json = Written::of(place.tangor(&["list", "--json"])).json();
    assert_eq!(json["unfinished"][0]["bytes"], 3000, "{json}");
    let doctor = Written::of(place.tangor(&["doctor"]));
    let said = doctor.stdout + &doctor.stderr;
    assert!(said.contains("org-repo-000000000000 is not complete"), "{said}");
}

#[test]
fn every_shell_has_completions() {
    let place = Place::new();
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        let written = Written::of(place.tangor(&["completions", shell]));
        assert_eq!((written.code, written.stderr.as_str()), (0, ""), "{shell}");
        for word in ["tangor", "inspect", "decode-device", "temperature"] {
            assert!(written.stdout.contains(word), "{shell} lacks {word}");
        }
    }
}

#[test]
fn the_doctor_knows_this_machine() {
    let place = Place::new();
    let report = Written::of(place.tangor(&["doctor", "--json"])).json();
    assert!(report["processor"]["usable_threads"].as_u64().unwrap() >= 1);
    let isas = report["isas"].as_array().unwrap();
    assert!(isas.contains(&report["isa"]));
    let speeds = report["isa_ops_per_s"].as_object().unwrap();
    assert!(speeds.keys().all(|isa| isas.contains(&isa.as_str().into())));
    let devices = report["devices"].as_array().unwrap();
    assert!(devices.iter().any(|device| device["kind"] == "cpu"));
    for finding in report["hardware"].as_array().unwrap() {
        assert_eq!(keys(finding), ["area", "state", "what", "todo"]);
        assert_eq!(finding["state"] == "missing", !finding["todo"].is_null(), "{finding}");
    }
    assert_eq!(report["store"]["models"], 0);
    assert!(report["limits"].as_array().unwrap().len() >= 3);
    assert!(report["measured"].is_null());
    let text = Written::of(place.tangor(&["doctor"]));
    assert_eq!((text.code, text.stderr.as_str()), (0, ""));
    assert!(text.stdout.contains("processor"), "{}", text.stdout);
}

#[test]
fn a_published_shape_is_planned_without_its_weights() {
    let place = Place::new();
    let plan = Written::of(place.tangor(&[
        "plan",
        "--shape",
        "smollm2-135m",
        "--no-measure",
        "-p",
        "100",
        "-n",
        "10",
        "--json",
    ]))
    .json();
    assert_eq!(keys(&plan["predicted"]), ["ttft_s", "decode_tps", "weights_bytes", "kv_bytes"]);
    let stages = plan["stages"].as_array().unwrap();
    assert!(stages.iter().any(|stage| stage["stage"] == "prefill"));
    assert!(stages.iter().any(|stage| stage["stage"] == "decode"));
    for stage in stages {
        assert_eq!(keys(stage), ["stage", "m", "segments"]);
        for segment in stage["segments"].as_array().unwrap() {
            let expected = ["device", "nodes", "predicted_s", "measured_s", "why"];
            assert_eq!(keys(segment), expected);
        }
    }
    let absent = Written::of(place.tangor(&["plan", "--shape", "smollm2-135m", "--device", "npu"]));
    assert_eq!(absent.code, 1);
    assert!(absent.stderr.contains("npu"), "{}", absent.stderr);
}

#[cfg(target_os = "linux")]
#[test]
fn a_service_that_cannot_start_is_not_installed() {
    let place = Place::new();
    let config = place.folder.path().join("config");
    let unit = config.join("systemd/user/tangor.service");
    let install = |more: &[&str]| {
        let mut command = place.tangor(&[&["serve", "--install-service"], more].concat());
        command.env("XDG_CONFIG_HOME", &config).env_remove("TANGOR_API_KEY");
        Written::of(command)
    };
    for (more, code, subject) in [
        (&["--host", "example.org"][..], 2, "example.org"),
        (&["nonsense"], 1, "nonsense"),
        (&["./absent.gguf"], 1, "absent.gguf"),
        (&["--compat", "ryzenai-server"], 2, "-m"),
        (&["--host", "0.0.0.0"], 1, "tangor/serve.env"),
    ] {
        let written = install(more);
        assert_eq!(written.code, code, "{more:?}: {}", written.stderr);
        assert!(written.stderr.contains(subject), "{more:?}: {}", written.stderr);
        assert!(!unit.exists(), "{more:?}");
    }
    std::fs::create_dir_all(config.join("tangor")).unwrap();
    for (keys, code) in [("TANGOR_API_KEY=\n", 1), ("# keys\nTANGOR_API_KEY=secret\n", 0)] {
        std::fs::write(config.join("tangor/serve.env"), keys).unwrap();
        let written = install(&["smollm2", "--host", "0.0.0.0"]);
        assert_eq!((written.code, unit.exists()), (code, code == 0), "{}", written.stderr);
    }
}

#[cfg(unix)]
#[test]
fn a_closed_pipe_is_quiet() {
    use std::process::{Command, Stdio};
    let place = Place::new();
    let mut child = Command::new(env!("CARGO_BIN_EXE_tangor"))
        .args(["completions", "bash"])
        .env("TANGOR_HOME", place.folder.path())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // Nobody reads: more than a pipe holds cannot be written.
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
}
