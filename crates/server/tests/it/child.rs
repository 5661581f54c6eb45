//! The server as another program's child, which stands in for lemonade's `ryzenai-server`.

use crate::support::*;
use serde_json::json;
use std::sync::{Arc, Mutex};

fn child(held: Arc<Mutex<()>>) -> Running {
    let loader = OnOracle { held, ..OnOracle::default() };
    Running::with(&["tiny", "other"], loader, |options| options.one_model = true)
}

#[test]
fn a_parent_is_told_when_the_model_is_loaded() {
    let held = Arc::new(Mutex::new(()));
    let holds = held.lock().unwrap();
    let server = child(Arc::clone(&held));
    let early = server.get("/health");
    assert_eq!(early.status, 503, "{}", early.text);
    assert_eq!(early.header("retry-after"), Some("1"));
    drop(holds);
    wait_until(|| server.get("/health").status == 200);
    assert_eq!(server.get("/health").json(), json!({"status": "ok"}));
}

#[test]
fn whatever_the_parent_calls_the_model_it_is_the_one_there_is() {
    let server = child(Arc::default());
    let theirs = "Llama-3.2-1B-Instruct-Hybrid";
    let chat = json!({"model": theirs, "messages": said("Hi"), "max_completion_tokens": 4,
                      "temperature": 0});
    for (path, ask) in [
        ("/v1/chat/completions", chat.clone()),
        ("/v1/completions", json!({"model": theirs, "prompt": "Hi", "max_tokens": 4})),
        ("/v1/responses", json!({"model": "other", "input": "Hi", "max_output_tokens": 4})),
    ] {
        let body = server.post(path, ask).json();
        assert_eq!(body["model"], "tiny", "{path}");
    }
    // What lemonade's benchmarks read of an answer.
    let body = server.post("/v1/chat/completions", chat).json();
    assert!(body["usage"]["prefill_duration_ttft"].as_f64().unwrap() > 0.0);
    assert!(body["usage"]["decoding_speed_tps"].as_f64().unwrap() > 0.0);
    for name in ["prompt_n", "prompt_ms", "predicted_n", "predicted_per_second"] {
        assert!(body["timings"][name].as_f64().unwrap() > 0.0, "{name}");
    }
    let otherwise = Running::new(|_| {});
    let ask = json!({"model": theirs, "prompt": "Hi"});
    assert_eq!(otherwise.post("/v1/completions", ask).status, 404);
}
