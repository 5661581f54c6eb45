//! Which models there are, and which are in memory.

use crate::support::*;
use serde_json::{Value, json};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use tangor_testkit::faulty::Fault;

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
    let server = Running::with(&["tiny", "other"], OnOracle::default(), |options| {
        options.limits.models = 1;
    });
    wait_until(|| server.get("/health").status == 200);
    server.loader.loads.store(0, Ordering::SeqCst);
    let holds = server.loader.held.lock().unwrap();
    std::thread::scope(|scope| {
        for _ in 0..6 {
            scope.spawn(|| {
                let ask = json!({"model": "other", "messages": said("Hi"), "max_tokens": 2});
                assert_eq!(server.post("/v1/chat/completions", ask).status, 200);
            });
        }
        // The seventh is who asks.
        wait_until(|| server.get("/metrics").text.contains("tangor_active_requests 7"));
        drop(holds);
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

/// An answer that is being written until it is dropped.
fn open_answer(server: &Running, path: &str, more: Value) -> ureq::http::Response<ureq::Body> {
    let mut ask = json!({"model": "tiny", "messages": said("Hi"), "stream": true});
    ask.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    server.send(path, &[], &ask.to_string())
}

fn in_memory(server: &Running) -> String {
    let health = server.get("/v1/health").json();
    let all = health["all_models_loaded"].as_array().unwrap().iter();
    let mut names: Vec<&str> = all.map(|m| m["model_name"].as_str().unwrap()).collect();
    names.sort_unstable();
    names.join(" ")
}

#[test]
fn a_model_that_a_client_lets_go_goes_once_and_when_nobody_uses_it() {
    let server = Running::with(&["tiny"], slow(), |_| {});
    wait_until(|| server.get("/health").status == 200);
    let loads = || server.loader.loads.load(Ordering::SeqCst);
    let lets_go = json!({"keep_alive": 0, "options": {"num_predict": 1900}});
    let long = || open_answer(&server, "/api/chat", lets_go.clone());
    let short = |keep_alive: Value| {
        let ask = json!({"model": "tiny", "prompt": "Hi", "stream": false,
                         "keep_alive": keep_alive, "options": {"num_predict": 1}});
        assert_eq!(server.post("/api/generate", ask).status, 200);
    };
    // While one that lets go is answered, others use the same copy, and it stays for them.
    let stream = long();
    short(json!(0));
    short(json!(null));
    assert_eq!((loads(), &*in_memory(&server)), (1, "tiny"));
    drop(stream);
    wait_until(|| server.get("/v1/slots").json()[0]["is_processing"] == false);
    assert_eq!(in_memory(&server), "tiny");
    // The last one that uses it takes it away.
    let stream = long();
    short(json!(0));
    assert_eq!(in_memory(&server), "tiny");
    drop(stream);
    wait_until(|| in_memory(&server).is_empty());
    assert_eq!(loads(), 1);
    // What an administrator has pinned stays.
    server.post("/v1/load", json!({"model_name": "tiny", "pinned": true})).json();
    short(json!(0));
    server.post("/api/chat", json!({"model": "tiny", "keep_alive": 0})).json();
    server.post("/api/embed", json!({"model": "tiny", "input": "Hi", "keep_alive": 0})).json();
    assert_eq!((loads(), &*in_memory(&server)), (2, "tiny"));
}

#[test]
fn a_model_that_is_let_go_or_loaded_otherwise_comes_again_when_its_answers_have_ended() {
    let server = Running::new(|_| {});
    let loads = || server.loader.loads.load(Ordering::SeqCst);
    let load = |how: Value| server.post("/v1/load", how).status;
    assert_eq!(load(json!({"model_name": "tiny", "pinned": true})), 200);
    let ask = || json!({"model": "tiny", "messages": said("Hi"), "max_tokens": 1});
    for what in [json!({"model_name": "tiny", "ctx_size": 64}), json!({"model_name": "tiny"})] {
        let (before, unloads) = (loads(), what["ctx_size"].is_null());
        let more = json!({"max_tokens": 60, "ignore_eos": true});
        let stream = open_answer(&server, "/v1/chat/completions", more);
        std::thread::scope(|scope| {
            let changed = scope.spawn(|| match unloads {
                true => server.post("/v1/unload", what.clone()).status,
                false => load(what.clone()),
            });
            let asked = scope.spawn(|| server.post("/v1/chat/completions", ask()).status);
            let mut text = String::new();
            std::io::Read::read_to_string(&mut stream.into_body().into_reader(), &mut text)
                .unwrap();
            assert!(text.ends_with("data: [DONE]\n\n"), "{text}");
            assert_eq!((changed.join().unwrap(), asked.join().unwrap()), (200, 200));
        });
        if !unloads {
            assert_eq!(loads(), before + 1);
            let health = server.get("/v1/health").json();
            let model = &health["all_models_loaded"][0];
            assert_eq!(model["recipe_options"]["ctx_size"], 64);
            assert_eq!(model["pinned"], true, "it was pinned before");
        }
    }
}

#[test]
fn a_lost_model_is_loaded_again_when_it_is_next_asked_for() {
    let start = |pause: Duration| {
        let loader = OnOracle { fault: Some(Fault::GetsLost), ..OnOracle::default() };
        let server = Running::with(&["tiny"], loader, |options| {
            options.limits.reload_pause = pause;
        });
        let pinned = json!({"model_name": "tiny", "pinned": true, "ctx_size": 512});
        server.post("/v1/load", pinned).json();
        wait_until(|| server.get("/health").status == 200);
        server
    };
    let ask = |server: &Running, text: &str| {
        let ask = json!({"messages": said(text), "max_tokens": 1});
        server.post("/v1/chat/completions", ask)
    };
    let described = |server: &Running| {
        let model = server.get("/v1/health").json()["all_models_loaded"][0].clone();
        (model["lost"].clone(), model["pinned"].clone(), model["recipe_options"].clone())
    };
    let as_before = |lost: bool| (json!(lost), json!(true), json!({"ctx_size": 512}));
    let server = start(Duration::ZERO);
    let loads = || server.loader.loads.load(Ordering::SeqCst);
    let before = loads();
    for round in 1..4 {
        let lost = ask(&server, POISON);
        assert_eq!((lost.status, lost.header("retry-after")), (503, Some("1")), "{}", lost.text);
        assert_eq!(lost.any_json()["error"]["code"], "model_lost");
        assert_eq!(described(&server), as_before(true));
        assert_eq!(ask(&server, "Hi").status, 200);
        assert_eq!(described(&server), as_before(false));
        assert_eq!(loads(), before + round);
    }
    // Texts that are embedded with it hear at once that it is lost.
    let texts: Vec<&str> = (0..40).map(|n| if n == 5 { POISON } else { "Hi" }).collect();
    assert_eq!(server.post("/v1/embeddings", json!({"input": texts})).status, 503);
    // Whoever only looks has it loaded, too.
    assert_eq!(server.get("/health").status, 503);
    wait_until(|| server.get("/health").status == 200);
    assert_eq!(loads(), before + 4);
    // One that is lost as soon as it is loaded is not loaded all the time.
    let server = start(Duration::from_secs(3600));
    let before = server.loader.loads.load(Ordering::SeqCst);
    assert_eq!(ask(&server, POISON).status, 503);
    for _ in 0..3 {
        let later = ask(&server, "Hi");
        let seconds: u64 = later.header("retry-after").unwrap().parse().unwrap();
        assert_eq!((later.status, seconds > 3000), (503, true), "{}", later.text);
        assert_eq!(server.get("/health").status, 503);
        assert_eq!(described(&server), as_before(true));
    }
    assert_eq!(server.loader.loads.load(Ordering::SeqCst), before);
}

#[test]
fn a_load_that_panics_fails_and_the_next_one_does_not() {
    let server = Running::with(&["tiny", "other"], OnOracle::default(), |options| {
        options.limits.models = 1;
    });
    wait_until(|| server.get("/health").status == 200);
    let ask = |model: &str| {
        let ask = json!({"model": model, "messages": said("Hi"), "max_tokens": 1});
        server.post("/v1/chat/completions", ask)
    };
    server.loader.panics.store(true, Ordering::SeqCst);
    let failed = ask("other");
    assert_eq!(failed.status, 500);
    assert_eq!(failed.any_json()["error"]["code"], "model_load_error");
    assert_eq!((ask("other").status, ask("tiny").status), (200, 200));
}

#[test]
fn whoever_waits_too_long_for_a_load_is_told_so() {
    let server = Running::with(&["tiny", "other"], OnOracle::default(), |options| {
        options.limits.models = 1;
        options.limits.load_time = Duration::from_secs(4);
    });
    wait_until(|| server.get("/health").status == 200);
    let holds = server.loader.held.lock().unwrap();
    let ask = json!({"model": "other", "messages": said("Hi"), "max_tokens": 1});
    let early = server.post("/v1/chat/completions", ask.clone());
    assert_eq!((early.status, early.header("retry-after")), (503, Some("1")));
    assert!(early.text.contains("still being loaded"), "{}", early.text);
    drop(holds);
    // It goes on although nobody waits for it.
    wait_until(|| in_memory(&server) == "other");
    assert_eq!(server.post("/v1/chat/completions", ask).status, 200);
}

/// A server of three models that may take so many bytes.
fn within(bytes: Option<u64>, heedless: bool) -> Running {
    // Pages for four short sequences: next to nothing beside the weights.
    let loader = OnOracle { context: Some(64), heedless, ..OnOracle::default() };
    Running::with(&["a", "b", "c"], loader, |options| {
        options.limits.memory = bytes;
        options.limits.models = 3;
    })
}

fn memory(server: &Running) -> Vec<u64> {
    let health = server.get("/v1/health").json();
    let all = health["all_models_loaded"].as_array().unwrap().iter();
    all.map(|model| model["memory_bytes"].as_u64().unwrap()).collect()
}

fn asked(server: &Running, model: &str) -> Reply {
    let ask = json!({"model": model, "messages": said("Hi"), "max_tokens": 1});
    server.post("/v1/chat/completions", ask)
}

fn pin(server: &Running, models: &[&str]) {
    for model in models {
        server.post("/v1/load", json!({"model_name": model, "pinned": true})).json();
    }
}

/// Bytes of a model's files, and what it takes on the oracle: keys and values.
fn sizes() -> (u64, u64) {
    let server = within(None, false);
    wait_until(|| server.get("/health").status == 200);
    let files = std::fs::read_dir(server.folder.path().join("a")).unwrap();
    let files = files.map(|file| file.unwrap().metadata().unwrap().len()).sum();
    assert_eq!(*server.loader.rooms.lock().unwrap(), [None; 3]);
    (files, memory(&server)[0])
}

#[test]
fn a_model_has_the_room_that_others_leave_and_they_make_room_for_what_it_lacks() {
    let (files, four) = sizes();
    // What a plan counts comes from what it says when that does not fit.
    let refused = within(Some(files), false).ended().unwrap_err().to_string();
    let numbers = refused.split_whitespace().filter_map(|word| word.parse().ok());
    let needed: u64 = numbers.max().unwrap();
    assert!(refused.contains("--memory"), "{refused}");
    // Two of them fit, each with room for one sequence.
    let (budget, one) = (needed + four / 2, four / 4);
    let server = within(Some(budget), false);
    wait_until(|| server.get("/health").status == 200);
    let rooms = || std::mem::take(&mut *server.loader.rooms.lock().unwrap());
    let left = |others: u64| Some(budget - others * one);
    assert_eq!((&*in_memory(&server), memory(&server)), ("a b", vec![one, one]));
    assert_eq!(rooms(), [left(0), left(1), left(2), left(1)]);
    for (model, expected) in [("c", "a c"), ("a", "a c"), ("b", "a b")] {
        assert_eq!(asked(&server, model).status, 200);
        assert_eq!((&*in_memory(&server), memory(&server)), (expected, vec![one, one]));
    }
    assert_eq!(rooms(), [left(2), left(1), left(2), left(1)]);
    pin(&server, &["a", "b"]);
    let refused = asked(&server, "c");
    assert_eq!(refused.status, 503);
    assert!(refused.text.contains(&needed.to_string()), "{}", refused.text);
    assert_eq!(in_memory(&server), "a b");
}

#[test]
fn models_unused_for_longest_make_room_for_the_weights_of_others() {
    let (files, four) = sizes();
    // One that runs leaves less than another's weights take.
    let budget = files / 4 * 5 + four / 2;
    let server = within(Some(budget), true);
    wait_until(|| server.get("/health").status == 200);
    for model in ["a", "b", "c"] {
        assert_eq!(asked(&server, model).status, 200);
        assert_eq!(in_memory(&server), model);
    }
    assert_eq!(*server.loader.rooms.lock().unwrap(), [Some(budget); 5]);
    pin(&server, &["c"]);
    let refused = asked(&server, "a");
    assert_eq!(refused.status, 503);
    assert!(refused.text.contains(&(budget - four).to_string()), "{}", refused.text);
    assert_eq!(in_memory(&server), "c");
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
