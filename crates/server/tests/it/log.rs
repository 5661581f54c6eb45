//! What the server writes of requests, and what it never does.

use crate::support::*;
use serde_json::{Value, json};
use std::io::Read;
use std::sync::{Arc, Mutex};
use tangor_server::{Key, Log, LogForm};

type Lines = Arc<Mutex<Vec<String>>>;

/// A server that writes its lines into a list.
fn logged(form: LogForm, texts: bool) -> (Running, Lines) {
    logged_with(OnOracle::default(), form, texts)
}

fn logged_with(loader: OnOracle, form: LogForm, texts: bool) -> (Running, Lines) {
    let lines = Lines::default();
    let sink = Arc::clone(&lines);
    let server = Running::with(&["tiny"], loader, move |options| {
        let write = Arc::new(move |line: &str| sink.lock().unwrap().push(line.to_owned()));
        options.log = Some(Log { form, texts, write });
        options.key = Key::new("open sesame");
    });
    (server, lines)
}

const KEY: (&str, &str) = ("authorization", "Bearer open sesame");

/// The line of a request by its id, once it is written.
fn line_of(lines: &Lines, id: &str) -> String {
    let find = || lines.lock().unwrap().iter().find(|line| line.contains(id)).cloned();
    wait_until(|| find().is_some());
    find().unwrap()
}

fn json_of(lines: &Lines, id: &str) -> Value {
    line_of(lines, id).parse().unwrap()
}

#[test]
fn a_line_says_who_asked_for_what_and_what_it_took() {
    let (server, lines) = logged(LogForm::Json, false);
    let ask = json!({"messages": said("The password is swordfish"), "max_tokens": 5});
    let ask = ask.to_string();
    for path in ["/v1/chat/completions", "/v1/messages"] {
        let reply = server.post_with(path, &[KEY, ("x-request-id", "mine-1")], &ask);
        assert_eq!((reply.status, reply.header("x-request-id")), (200, Some("mine-1")));
        let line = json_of(&lines, "mine-1");
        assert_eq!(
            (&line["client"], &line["method"], &line["route"], &line["status"], &line["model"]),
            (&json!("127.0.0.1"), &json!("POST"), &json!(path), &json!(200), &json!("tiny"))
        );
        assert_eq!((&line["completion_tokens"], &line["finish"]), (&json!(5), &json!("length")));
        let prompt = "user: The password is swordfish\nassistant: ".len();
        assert_eq!(line["prompt_tokens"], prompt);
        let (ttft, whole) =
            (line["ttft_s"].as_f64().unwrap(), line["duration_s"].as_f64().unwrap());
        assert!(ttft > 0.0 && ttft <= whole, "{line}");
        assert!(line["time"].as_str().unwrap().ends_with('Z'));
        lines.lock().unwrap().clear();
    }
    let two = json!({"prompt": ["ab", "cd"], "n": 2, "max_tokens": 3}).to_string();
    server.post_with("/v1/completions", &[KEY, ("x-request-id", "mine-2")], &two).json();
    let line = json_of(&lines, "mine-2");
    assert_eq!((&line["prompt_tokens"], &line["completion_tokens"]), (&json!(4), &json!(12)));
}

#[test]
fn an_id_that_is_none_is_not_taken_and_every_answer_has_one() {
    let (server, lines) = logged(LogForm::Json, false);
    let long = "x".repeat(129);
    for given in [None, Some(long.as_str()), Some("two words"), Some("")] {
        let mut headers = vec![];
        headers.extend(given.map(|given| ("x-request-id", given)));
        let reply = server.get_with("/live", &headers);
        let id = reply.header("x-request-id").unwrap().to_owned();
        assert!(id.starts_with("req_") && Some(id.as_str()) != given, "{id}");
        assert_eq!(json_of(&lines, &id)["status"], 200);
    }
    let refused = server.get_with("/v1/models", &[("x-request-id", "no-key")]);
    assert_eq!((refused.status, refused.header("x-request-id")), (401, Some("no-key")));
    let line = json_of(&lines, "no-key");
    assert_eq!((&line["status"], &line["model"]), (&json!(401), &Value::Null));
    server.get_with("/swordfish", &[("x-request-id", "nowhere")]);
    assert_eq!(json_of(&lines, "nowhere").get("route"), None);
}

#[test]
fn streams_are_written_when_they_have_ended_and_clients_that_left_are_named() {
    let (server, lines) = logged_with(slow(), LogForm::Json, false);
    let ask = |id, tokens: usize| {
        let ask = json!({"messages": said("Hi"), "max_tokens": tokens, "ignore_eos": true,
                         "stream": true});
        let headers = [KEY, ("x-request-id", id)];
        let response = server.send("/v1/chat/completions", &headers, &ask.to_string());
        let mut reader = response.into_body().into_reader();
        reader.read_exact(&mut [0; 200]).unwrap();
        reader
    };
    let mut rest = String::new();
    ask("stream-1", 40).read_to_string(&mut rest).unwrap();
    let line = json_of(&lines, "stream-1");
    assert_eq!((&line["completion_tokens"], &line["finish"]), (&json!(40), &json!("length")));
    assert!(line["duration_s"].as_f64() > line["ttft_s"].as_f64());

    let reader = ask("stream-2", 1900);
    assert!(lines.lock().unwrap().iter().all(|line| !line.contains("stream-2")));
    drop(reader);
    let line = json_of(&lines, "stream-2");
    assert_eq!((&line["status"], &line["finish"]), (&json!(200), &json!("client left")));
}

#[test]
fn texts_are_written_when_they_are_asked_for_and_keys_never() {
    let ask = json!({"messages": said("The word is swordfish"), "max_tokens": 8}).to_string();
    for (form, texts) in [
        (LogForm::Json, false),
        (LogForm::Human, false),
        (LogForm::Json, true),
        (LogForm::Human, true),
    ] {
        let (server, lines) = logged(form, texts);
        let mut answer = String::new();
        for stream in [false, true] {
            let mut ask: Value = ask.parse().unwrap();
            ask["stream"] = stream.into();
            let id = ("x-request-id", if stream { "id-2" } else { "id-1" });
            let reply = server.post_with("/v1/chat/completions", &[KEY, id], &ask.to_string());
            if !stream {
                let body = reply.json();
                answer = body["choices"][0]["message"]["content"].as_str().unwrap().to_owned();
            }
            let line = line_of(&lines, id.1);
            assert_eq!(line.contains("swordfish"), texts, "{line}");
            if form == LogForm::Json && texts {
                let line: Value = line.parse().unwrap();
                assert_eq!(line["prompts"][0], "user: The word is swordfish\nassistant: ");
                assert_eq!(line["answers"][0], answer);
            }
        }
        server.post_with("/v1/chat/completions", &[("x-api-key", "opened")], "{\"swordfish\": 1");
        server.get_with("/v1/models/swordfish", &[KEY]);
        let all = lines.lock().unwrap().join("\n");
        assert!(!all.contains("sesame") && !all.contains("opened"), "{all}");
        assert_eq!(all.contains("swordfish"), texts, "{all}");
        assert!(!all.contains(&*server.folder.path().to_string_lossy()));
    }
}
