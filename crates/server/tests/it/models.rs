//! Which models there are, and which are in memory.

use crate::support::*;
use serde_json::json;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

#[test]
fn models_are_listed_by_name_in_every_dialect() {
    let server = Running::with(&["tiny", "other"], OnOracle::default(), |_| {});
    let openai = server.get("/v1/models").json();
    let ids: Vec<&str> =
        openai["data"].as_array().unwrap().iter().map(|m| m["id"].as_str().unwrap()).collect();
    assert_eq!(ids, ["tiny", "other"]);
    assert_eq!(server.get("/api/v1/models/other").json()["object"], "model");
    assert_eq!(server.get("/v1/models/absent").status, 404);
    let ask = json!({"model": "tiny", "messages": said("Hi"), "max_tokens": 1});
    server.post("/v1/chat/completions", ask).json();
    let show = server.post("/api/show", json!({"model": "tiny"})).json();
    assert!(show["template"].as_str().unwrap().contains("assistant"));
    assert_eq!(show["model_info"]["llama.context_length"], CONTEXT);
    let everything = openai.to_string() + &show.to_string();
    assert!(!everything.contains(&*server.folder.path().to_string_lossy()), "a path is told");
}

#[test]
fn clients_of_ollama_find_what_they_look_for() {
    let server = Running::with(&["tiny", "other"], OnOracle::default(), |_| {});
    wait_until(|| server.get("/health").status == 200);
    server.post("/v1/unload", json!({})).json();
    let tags = server.get("/api/tags").json();
    server.post("/api/generate", json!({"model": "tiny"})).json();
    let running = server.get("/api/ps").json();
    for model in [&tags["models"][0], &running["models"][0]] {
        // They look for a name with its tag, and cut pieces out of digests.
        assert_eq!((&model["name"], &model["model"]), (&json!("tiny:latest"), &model["name"]));
        let digest = model["digest"].as_str().unwrap();
        assert!(digest.len() == 64 && digest.bytes().all(|byte| byte.is_ascii_hexdigit()));
        let details = &model["details"];
        assert_eq!(
            (&details["family"], &details["families"]),
            (&json!("llama"), &json!(["llama"]))
        );
        assert_eq!(details["quantization_level"], "BF16");
        assert!(details["parameter_size"].as_str().unwrap().ends_with('K'), "{details}");
    }
    assert_ne!(tags["models"][0]["digest"], tags["models"][1]["digest"]);
    assert_eq!(tags["models"][0]["digest"], running["models"][0]["digest"]);
    // How much a model reads is told before it is loaded, too.
    let show = server.post("/api/show", json!({"model": "other:latest"})).json();
    let info = &show["model_info"];
    assert_eq!(info["llama.context_length"], CONTEXT, "{show}");
    assert!(info["llama.block_count"].as_u64() > Some(0));
    assert_eq!(info["general.basename"], "other");
    assert_eq!(show["capabilities"], json!(["completion"]));
    let version = server.get("/api/version").json();
    let numbers = version["version"].as_str().unwrap().split('.').map(str::parse::<u32>);
    assert!(numbers.collect::<Result<Vec<_>, _>>().unwrap() >= vec![0, 6, 4], "{version}");
    assert_eq!(version["tangor"], env!("CARGO_PKG_VERSION"));
}

#[test]
fn a_file_that_changed_has_another_digest() {
    let server = Running::new(|_| {});
    let digest = || server.get("/api/tags").json()["models"][0]["digest"].clone();
    let before = digest();
    assert_eq!(before, digest());
    let file = server.folder.path().join("tiny").join("tokenizer_config.json");
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, text + " ").unwrap();
    assert_ne!(before, digest());
}

#[test]
fn the_model_unused_for_longest_makes_room_and_a_pinned_one_stays() {
    let names = ["a", "b", "c"];
    let server = Running::with(&names, OnOracle::default(), |options| options.limits.models = 2);
    let ask = |model: &str| {
        let ask = json!({"model": model, "messages": said("Hi"), "max_tokens": 1});
        server.post("/v1/chat/completions", ask).status
    };
    let loaded = || {
        let health = server.get("/v1/health").json();
        let all = health["all_models_loaded"].as_array().unwrap().iter();
        let mut names: Vec<String> =
            all.map(|m| m["model_name"].as_str().unwrap().to_owned()).collect();
        names.sort();
        names.join("")
    };
    // As many as there is room for are loaded before anybody asks, the first one last.
    wait_until(|| loaded() == "ab");
    for (model, expected) in [("b", "ab"), ("c", "bc"), ("b", "bc"), ("a", "ab")] {
        assert_eq!(ask(model), 200);
        assert_eq!(loaded(), expected);
    }
    let pinned = server.post("/v1/load", json!({"model_name": "a", "pinned": true})).json();
    assert_eq!(pinned["status"], "success");
    assert_eq!((ask("b"), ask("c")), (200, 200));
    assert_eq!(loaded(), "ac");
    let all = server.post("/v1/load", json!({"model_name": "c", "pinned": true}));
    assert_eq!(all.status, 200);
    assert_eq!(ask("b"), 503);
    assert_eq!(server.post("/v1/unload", json!({"model_name": "c"})).status, 200);
    assert_eq!(server.post("/v1/unload", json!({"model_name": "c"})).status, 404);
    assert_eq!(ask("b"), 200);
}

#[test]
fn models_of_one_name_are_both_served() {
    let names = ["q4/model", "q8/model"];
    let server = Running::with(&names, OnOracle::default(), |_| {});
    let list = server.get("/v1/models").json();
    let ids: Vec<&str> =
        list["data"].as_array().unwrap().iter().map(|m| m["id"].as_str().unwrap()).collect();
    assert_eq!(ids, names);
    for name in names {
        let ask = json!({"model": name, "messages": said("Hi"), "max_tokens": 1});
        assert_eq!(server.post("/v1/chat/completions", ask).json()["model"], name);
        assert_eq!(server.get(&format!("/v1/models/{name}")).json()["id"], name);
    }
}

#[test]
fn requests_at_once_load_a_model_once() {
    let loader = OnOracle { slow: Duration::from_millis(300), ..OnOracle::default() };
    let server = Running::with(&["tiny"], loader, |_| {});
    std::thread::scope(|scope| {
        for _ in 0..6 {
            scope.spawn(|| {
                let ask = json!({"messages": said("Hi"), "max_tokens": 2});
                assert_eq!(server.post("/v1/chat/completions", ask).status, 200);
            });
        }
    });
    assert_eq!(server.loader.loads.load(Ordering::SeqCst), 1);
}

#[test]
fn loading_and_letting_go_lose_no_request() {
    let server = Running::with(&["a", "b"], OnOracle::default(), |options| {
        options.limits.models = 1;
    });
    let expected = {
        let ask = json!({"model": "a", "messages": said("Hi"), "max_tokens": 60});
        server.post("/v1/chat/completions", ask).json()["choices"][0]["message"].clone()
    };
    let until = Instant::now() + Duration::from_secs(3);
    std::thread::scope(|scope| {
        for model in ["a", "b", "a"] {
            let expected = &expected;
            let server = &server;
            scope.spawn(move || {
                while Instant::now() < until {
                    let ask = json!({"model": model, "messages": said("Hi"), "max_tokens": 60});
                    let body = server.post("/v1/chat/completions", ask).json();
                    assert_eq!(&body["choices"][0]["message"], expected);
                }
            });
        }
        scope.spawn(|| {
            while Instant::now() < until {
                server.post("/v1/unload", json!({}));
                std::thread::sleep(Duration::from_millis(50));
            }
        });
    });
}

#[test]
fn a_model_is_loaded_anew_with_another_context() {
    let server = Running::new(|options| options.limits.context = 96);
    let load = |size: i64| {
        server.post("/v1/load", json!({"model_name": "tiny", "ctx_size": size})).json();
        server.get("/v1/slots").json()[0]["n_ctx"].as_u64().unwrap()
    };
    assert_eq!((load(64), load(96), load(-1)), (64, 96, CONTEXT as u64));
    for size in [json!(0), json!(97), json!(1_u64 << 40), json!(1e30), json!("64")] {
        let reply = server.post("/v1/load", json!({"model_name": "tiny", "ctx_size": size}));
        assert_eq!(reply.status, 400, "{size}");
        assert_eq!(reply.any_json()["error"]["param"], "ctx_size");
    }
}

#[test]
fn a_client_of_ollama_loads_and_lets_go_with_empty_requests() {
    let server = Running::new(|_| {});
    let loaded = server.post("/api/generate", json!({"model": "tiny"})).json();
    assert_eq!(loaded["done_reason"], "load");
    assert_eq!(server.get("/api/ps").json()["models"].as_array().unwrap().len(), 1);
    let gone = server.post("/api/chat", json!({"model": "tiny", "keep_alive": 0})).json();
    assert_eq!(gone["done_reason"], "unload");
    assert_eq!(server.get("/api/ps").json()["models"], json!([]));
}

#[test]
fn fetching_and_removing_what_cannot_be_says_so() {
    let server = Running::new(|_| {});
    for path in ["/v1/pull", "/api/pull"] {
        let reply = server.post(path, json!({"model": "smollm2", "stream": false}));
        assert_eq!(reply.status, 400, "offline: {}", reply.text);
        assert_eq!(server.post(path, json!({"model": "/etc/passwd"})).status, 400);
        assert_eq!(server.post(path, json!({"model": "never-heard-of"})).status, 400);
        assert_eq!(server.post(path, json!({})).status, 400);
    }
    // A name of the client's own would lead nowhere afterwards.
    let named = json!({"model_name": "user.mine", "checkpoint": "smollm2"});
    let reply = server.post("/v1/pull", named);
    assert_eq!(reply.status, 400, "{}", reply.text);
    assert_eq!(reply.any_json()["error"]["param"], "model_name");
    let same = json!({"model_name": "smollm2", "checkpoint": "smollm2"});
    assert!(server.post("/v1/pull", same).text.contains("offline"));
    let lines = server.post("/api/pull", json!({"model": "smollm2"})).lines();
    assert!(lines.last().unwrap()["error"].as_str().unwrap().contains("offline"));
    let events = server.post("/v1/pull", json!({"model_name": "smollm2", "stream": true})).events();
    assert_eq!(events.last().unwrap().0.as_deref(), Some("error"));
    let reply = server.post("/v1/delete", json!({"model_name": "smollm2"}));
    assert_eq!(reply.status, 404, "{}", reply.text);
}

#[test]
fn texts_become_tokens_and_texts_again() {
    let server = Running::new(|_| {});
    let tokens = server.post("/v1/tokenize", json!({"content": "hé"})).json()["tokens"].clone();
    assert_eq!(tokens, json!([104, 195, 169]));
    let text = server.post("/v1/detokenize", json!({"tokens": tokens})).json();
    assert_eq!(text["content"], "hé");
    let pieces = server.post("/v1/tokenize", json!({"content": "h", "with_pieces": true})).json();
    assert_eq!(pieces["tokens"], json!([{"id": 104, "piece": "h"}]));
    // As vLLM has it
    let ask = json!({"prompt": "hé", "add_special_tokens": false});
    let answer = server.post("/tokenize", ask).json();
    assert_eq!(answer, json!({"tokens": tokens, "count": 3, "max_model_len": CONTEXT}));
    let text = server.post("/detokenize", json!({"tokens": [104, 105]})).json();
    assert_eq!(text["prompt"], "hi");
    let info = server.get("/tokenizer_info").json();
    assert!(info["eos_token"].is_string() && info["chat_template"].is_string(), "{info}");
}

#[test]
fn counters_and_parameters_are_read_back() {
    let server = Running::new(|_| {});
    let ask = json!({"messages": said("Hi"), "max_tokens": 4});
    server.post("/v1/chat/completions", ask.clone()).json();
    let stats = server.get("/v1/stats").json();
    assert_eq!((&stats["output_tokens"], &stats["request_count_total"]), (&json!(4), &json!(1)));
    let metrics = server.get("/metrics").text;
    for name in [
        "gen_ai_server_time_to_first_token_seconds_bucket",
        "tangor_output_tokens_total{gen_ai_request_model=\"tiny\"} 4",
        "tangor_loaded_models 1",
    ] {
        assert!(metrics.contains(name), "{name}: {metrics}");
    }
    server.post("/v1/params", json!({"temperature": 1.5, "seed": 3})).json();
    assert_eq!(server.get("/v1/params").json()["params"]["seed"], 3);
    let warm = server.post("/v1/chat/completions", ask.clone()).json();
    let mut same = ask;
    same["temperature"] = 1.5.into();
    same["seed"] = 3.into();
    server.post("/v1/params", json!({"temperature": null, "seed": null})).json();
    let asked = server.post("/v1/chat/completions", same).json();
    assert_eq!(warm["choices"][0]["message"], asked["choices"][0]["message"]);
    assert_eq!(server.post("/v1/params", json!({"colour": 1})).status, 400);
    // What no request may say, no request gets from here.
    for (name, value) in [
        ("temperature", json!(1e300)),
        ("temperature", json!("hot")),
        ("top_p", json!(2)),
        ("repeat_penalty", json!(0)),
        ("seed", json!(0.5)),
        ("top_k", json!(1e30)),
    ] {
        let reply = server.post("/v1/params", json!({"min_p": 0.5, name: value}));
        assert_eq!(reply.status, 400, "{name} = {value}");
        assert_eq!(reply.any_json()["error"]["param"], name);
    }
    assert_eq!(server.get("/v1/params").json()["params"], json!({}));
}
