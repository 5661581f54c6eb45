//! Every dialect says the same thing: streamed and not, alone and at once.

use crate::support::*;
use serde_json::{Value, json};

fn text_of_chat(events: &[(Option<String>, Value)]) -> String {
    let pieces = events
        .iter()
        .filter_map(|(_, data)| data["choices"][0]["delta"]["content"].as_str().map(str::to_owned));
    pieces.collect()
}

#[test]
fn a_stream_of_openais_says_what_the_whole_answer_says() {
    let server = Running::new(|_| {});
    for extra in [
        json!({}),
        json!({"temperature": 0.9, "seed": 5}),
        json!({"temperature": 1.2, "top_k": 40, "min_p": 0.01, "logit_bias": {"65": 5.0}}),
    ] {
        let mut ask = json!({"model": "tiny", "messages": said("Hi"), "max_tokens": 20});
        ask.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        let whole = server.post("/v1/chat/completions", ask.clone()).json();
        ask["stream"] = true.into();
        ask["stream_options"] = json!({"include_usage": true});
        let reply = server.post("/v1/chat/completions", ask);
        assert!(reply.header("content-type").unwrap().starts_with("text/event-stream"));
        let events = reply.events();
        assert_eq!(text_of_chat(&events), whole["choices"][0]["message"]["content"]);
        assert_eq!(events.last().unwrap().1, "[DONE]");
        let usage = &events[events.len() - 2].1["usage"];
        assert_eq!(usage["completion_tokens"], whole["usage"]["completion_tokens"]);
        let finish = events.iter().find_map(|(_, e)| e["choices"][0]["finish_reason"].as_str());
        assert_eq!(finish, whole["choices"][0]["finish_reason"].as_str());
        assert_eq!(events[0].1["choices"][0]["delta"]["role"], "assistant");
    }
}

#[test]
fn every_dialect_gives_the_same_answer() {
    let server = Running::new(|_| {});
    let openai = server.post(
        "/api/v0/chat/completions",
        json!({"messages": said("Hi"), "max_completion_tokens": 12}),
    );
    let openai = openai.json();
    let text = openai["choices"][0]["message"]["content"].as_str().unwrap().to_owned();
    let prompt = openai["usage"]["prompt_tokens"].as_u64().unwrap();
    assert_eq!(prompt, "user: Hi\nassistant: ".len() as u64);

    let ask = json!({"model": "tiny", "messages": said("Hi"), "max_tokens": 12});
    let anthropic = server.post("/v1/messages", ask.clone()).json();
    assert_eq!(anthropic["content"][0]["text"], text);
    assert_eq!(anthropic["stop_reason"], "max_tokens");
    let counted = server.post("/v1/messages/count_tokens", ask).json();
    assert_eq!(counted["input_tokens"], prompt);

    let options = json!({"num_predict": 12});
    let ask = json!({"model": "tiny:latest", "messages": said("Hi"), "options": options});
    let lines = server.post("/api/chat", ask).lines();
    let pieces = lines.iter().map(|line| line["message"]["content"].as_str().unwrap());
    assert_eq!(pieces.collect::<String>(), text);
    let last = lines.last().unwrap();
    assert_eq!((&last["done"], &last["done_reason"]), (&json!(true), &json!("length")));
    assert_eq!((&last["eval_count"], &last["prompt_eval_count"]), (&json!(12), &json!(prompt)));
    assert!(last["total_duration"].as_u64().unwrap() > 0);

    let ask = json!({"model": "TINY", "prompt": "Hi", "stream": false, "options": options});
    assert_eq!(server.post("/api/generate", ask).json()["response"], text);

    let ask = json!({"input": "Hi", "max_output_tokens": 12});
    let response = server.post("/v1/responses", ask).json();
    assert_eq!(response["output"][0]["content"][0]["text"], text);
    assert_eq!(response["status"], "incomplete");
    assert_eq!(response["output"][0]["status"], "incomplete");
}

#[test]
fn events_of_the_responses_api_are_numbered_and_add_up() {
    let server = Running::new(|_| {});
    let ask = json!({"input": "Hi", "max_output_tokens": 9, "stream": true});
    let events = server.post("/v1/responses", ask).events();
    let mut text = String::new();
    for (number, (name, data)) in events.iter().enumerate() {
        assert_eq!(data["sequence_number"], number);
        assert_eq!(name.as_deref(), data["type"].as_str());
        if data["type"] == "response.output_text.delta" {
            text.push_str(data["delta"].as_str().unwrap());
        }
    }
    let names: Vec<&str> = events.iter().map(|(name, _)| name.as_deref().unwrap()).collect();
    assert_eq!(
        names[..4],
        [
            "response.created",
            "response.in_progress",
            "response.output_item.added",
            "response.content_part.added",
        ]
    );
    let last = &events.last().unwrap().1;
    assert_eq!(last["type"], "response.incomplete");
    let item = &last["response"]["output"][0];
    assert_eq!(
        (&item["content"][0]["text"], &item["status"]),
        (&json!(text), &json!("incomplete"))
    );
    assert_eq!(last["response"]["usage"]["output_tokens"], 9);
}

#[test]
fn events_of_anthropics_come_in_their_order() {
    let server = Running::new(|_| {});
    let ask = json!({"messages": said("Hi"), "max_tokens": 6, "stream": true});
    let events = server.post("/v1/messages", ask).events();
    let mut names: Vec<&str> = events.iter().map(|(name, _)| name.as_deref().unwrap()).collect();
    names.dedup();
    assert_eq!(
        names,
        [
            "message_start",
            "content_block_start",
            "content_block_delta",
            "content_block_stop",
            "message_delta",
            "message_stop",
        ]
    );
    assert_eq!(events[events.len() - 2].1["usage"]["output_tokens"], 6);
}

#[test]
fn several_answers_and_several_prompts_are_told_apart() {
    let server = Running::new(|_| {});
    let ask = json!({"prompt": ["ab", "cd"], "n": 2, "temperature": 1.0, "max_tokens": 8});
    let body = server.post("/v1/completions", ask.clone()).json();
    let texts: Vec<&str> =
        body["choices"].as_array().unwrap().iter().map(|c| c["text"].as_str().unwrap()).collect();
    assert_eq!(texts.len(), 4);
    assert_ne!(texts[0], texts[1]);
    assert_eq!(body["usage"]["prompt_tokens"], 4);
    let one = json!({"prompt": "cd", "temperature": 1.0, "max_tokens": 8});
    assert_eq!(server.post("/v1/completions", one).json()["choices"][0]["text"], texts[2]);
    let mut ask = ask;
    ask["stream"] = true.into();
    let events = server.post("/v1/completions", ask).events();
    let mut streamed = vec![String::new(); 4];
    for (_, data) in &events {
        for choice in data["choices"].as_array().into_iter().flatten() {
            let index = choice["index"].as_u64().unwrap() as usize;
            streamed[index].push_str(choice["text"].as_str().unwrap());
        }
    }
    assert_eq!(streamed, texts);
}

#[test]
fn an_echo_has_the_prompts_own_log_probabilities() {
    let server = Running::new(|_| {});
    let ask = json!({
        "prompt": [104, 101, 108, 108, 111], "max_tokens": 1, "logprobs": 1, "echo": true,
        "temperature": 0.0,
    });
    let body = server.post("/v1/completions", ask.clone()).json();
    let choice = &body["choices"][0];
    assert!(choice["text"].as_str().unwrap().starts_with("hello"));
    let logprobs = &choice["logprobs"];
    let scores = logprobs["token_logprobs"].as_array().unwrap();
    assert_eq!(scores.len(), 6);
    assert!(scores[0].is_null() && scores[1..].iter().all(|s| s.as_f64().unwrap() <= 0.0));
    assert!(logprobs["top_logprobs"][0].is_null());
    assert_eq!(logprobs["text_offset"], json!([0, 1, 2, 3, 4, 5]));
    // The most likely token is among those that are listed.
    for (score, top) in scores.iter().zip(logprobs["top_logprobs"].as_array().unwrap()).skip(1) {
        let best = top.as_object().unwrap().values().map(|v| v.as_f64().unwrap());
        assert!(best.fold(f64::MIN, f64::max) >= score.as_f64().unwrap());
    }
    // Without an answer, and as a stream, the prompt's are the same.
    let mut scored = ask.clone();
    scored["max_tokens"] = 0.into();
    let only = server.post("/v1/completions", scored).json();
    assert_eq!(only["choices"][0]["text"], "hello");
    assert_eq!(only["choices"][0]["logprobs"]["token_logprobs"], json!(scores[..5]));
    let mut streamed = ask;
    streamed["stream"] = true.into();
    let events = server.post("/v1/completions", streamed).events();
    let all: Vec<Value> = events
        .iter()
        .filter_map(|(_, e)| e["choices"][0]["logprobs"]["token_logprobs"].as_array().cloned())
        .flatten()
        .collect();
    assert_eq!(&all, scores);
}

#[test]
fn chat_log_probabilities_belong_to_the_tokens_of_the_answer() {
    let server = Running::new(|_| {});
    let ask = json!({
        "messages": said("Hi"), "max_tokens": 5, "logprobs": true, "top_logprobs": 3,
    });
    let body = server.post("/v1/chat/completions", ask).json();
    let content = body["choices"][0]["logprobs"]["content"].as_array().unwrap();
    assert_eq!(content.len(), 5);
    for token in content {
        assert_eq!(token["top_logprobs"].as_array().unwrap().len(), 3);
        assert_eq!(token["top_logprobs"][0]["logprob"], token["logprob"]);
    }
}

#[test]
fn answers_end_before_a_stop_string() {
    let server = Running::new(|_| {});
    let ask = json!({"messages": said("Hi"), "max_tokens": 24});
    let whole = server.post("/v1/chat/completions", ask.clone()).json();
    let whole = whole["choices"][0]["message"]["content"].as_str().unwrap();
    let chars: Vec<char> = whole.chars().collect();
    let stop: String = chars[6..9].iter().collect();
    let expected = whole.split(&stop).next().unwrap();
    let mut ask = ask;
    ask["stop"] = json!([stop, "never"]);
    for stream in [false, true] {
        ask["stream"] = stream.into();
        let reply = server.post("/v1/chat/completions", ask.clone());
        let text = match stream {
            true => text_of_chat(&reply.events()),
            false => {
                let body = reply.json();
                assert_eq!(body["choices"][0]["finish_reason"], "stop");
                body["choices"][0]["message"]["content"].as_str().unwrap().to_owned()
            }
        };
        assert_eq!(text, expected, "streamed: {stream}");
    }
}

#[test]
fn json_answers_follow_their_schema_whatever_the_model_would_say() {
    let server = Running::new(|_| {});
    let schema = json!({
        "type": "object",
        "properties": {
            "n": {"type": "integer", "minimum": 3, "maximum": 9},
            "word": {"enum": ["yes", "no"]},
        },
        "required": ["n", "word"],
        "additionalProperties": false,
    });
    let format = json!({"type": "json_schema", "json_schema": {"name": "x", "schema": schema}});
    for seed in 0..6 {
        let ask = json!({
            "messages": said("J"), "response_format": format, "temperature": 1.5, "seed": seed,
            "max_tokens": 80,
        });
        let body = server.post("/v1/chat/completions", ask).json();
        let text = body["choices"][0]["message"]["content"].as_str().unwrap();
        if body["choices"][0]["finish_reason"] == "stop" {
            let value: Value = serde_json::from_str(text).unwrap();
            assert!((3..=9).contains(&value["n"].as_i64().unwrap()), "{text}");
            assert!(["yes", "no"].contains(&value["word"].as_str().unwrap()));
        }
    }
    for format in [
        json!({"type": "json_schema", "json_schema": {"schema": {"type": "nonsense"}}}),
        json!({"type": "json_schema", "json_schema": {}}),
        json!({"type": "xml"}),
    ] {
        let ask = json!({"messages": said("J"), "response_format": format});
        let reply = server.post("/v1/chat/completions", ask);
        assert_eq!(reply.status, 400, "{format}");
        assert_eq!(reply.any_json()["error"]["param"], "response_format");
    }
}

#[test]
fn a_call_that_is_demanded_is_made() {
    let server = Running::new(|_| {});
    let tool = |name: &str| {
        let parameters = json!({
            "type": "object",
            "properties": {"city": {"enum": ["Rome", "Oslo"]}},
            "required": ["city"],
            "additionalProperties": false,
        });
        json!({"type": "function", "function": {"name": name, "parameters": parameters}})
    };
    let named = json!({"type": "function", "function": {"name": "beta"}});
    for (choice, expected) in [(json!("required"), None), (named, Some("beta"))] {
        let mut ask = json!({
            "messages": said("?"), "tools": [tool("alpha"), tool("beta")], "tool_choice": choice,
            "parallel_tool_calls": false,
        });
        let body = server.post("/v1/chat/completions", ask.clone()).json();
        let choice = &body["choices"][0];
        assert_eq!(choice["finish_reason"], "tool_calls", "{body}");
        let call = &choice["message"]["tool_calls"][0];
        assert!(expected.is_none_or(|name| call["function"]["name"] == name));
        let arguments = call["function"]["arguments"].as_str().unwrap();
        let city: Value = serde_json::from_str(arguments).unwrap();
        assert!(["Rome", "Oslo"].contains(&city["city"].as_str().unwrap()));
        ask["stream"] = true.into();
        let events = server.post("/v1/chat/completions", ask).events();
        let (mut name, mut streamed) = (String::new(), String::new());
        for (_, data) in &events {
            let call = &data["choices"][0]["delta"]["tool_calls"][0]["function"];
            name.push_str(call["name"].as_str().unwrap_or_default());
            streamed.push_str(call["arguments"].as_str().unwrap_or_default());
        }
        assert_eq!(
            (name.as_str(), streamed.as_str()),
            (call["function"]["name"].as_str().unwrap(), arguments)
        );
    }
}

#[test]
fn a_prompt_that_does_not_fit_is_refused_with_the_numbers() {
    let short = OnOracle { context: Some(128), ..OnOracle::default() };
    let server = Running::with(&["tiny"], short, |_| {});
    let long = "x".repeat(200);
    let error = |path: &str, body: Value| {
        let reply = server.post(path, body);
        assert_eq!(reply.status, 400, "{}", reply.text);
        reply.any_json()
    };
    let openai = error("/v1/chat/completions", json!({"messages": said(&long)}));
    let message = openai["error"]["message"].as_str().unwrap();
    assert!(message.contains("218") && message.contains("128"), "{message}");
    assert_eq!(openai["error"]["code"], "context_length_exceeded");
    let ollama = error("/api/chat", json!({"model": "tiny", "messages": said(&long)}));
    assert!(ollama["error"].as_str().unwrap().contains("128"));
    let anthropic = error("/v1/messages", json!({"messages": said(&long), "max_tokens": 1}));
    assert_eq!(anthropic["error"]["type"], "invalid_request_error");
    // Clients count in order to make it fit.
    let ask = json!({"messages": said(&long), "tools": [{"name": "f", "input_schema": {}}],
                     "tool_choice": {"type": "tool", "name": "f"}});
    let counted = server.post("/v1/messages/count_tokens", ask).json();
    assert!(counted["input_tokens"].as_u64() > Some(218), "{counted}");
}

#[test]
fn wrong_types_and_values_are_refused_by_name_and_unknown_fields_are_ignored() {
    let server = Running::new(|_| {});
    for (field, value) in [
        ("temperature", json!(-1)),
        ("temperature", json!("hot")),
        ("top_p", json!(1.5)),
        ("max_tokens", json!(-3)),
        ("max_tokens", json!(0)),
        ("max_tokens", json!(1.5)),
        ("n", json!(0)),
        ("n", json!(1_000_000_000)),
        ("stop", json!(vec!["x"; 17])),
        ("stop", json!([1])),
        ("logit_bias", json!({"x": 1})),
        ("logit_bias", json!({"5": 1000})),
        ("top_logprobs", json!(3)),
        ("tool_choice", json!("sometimes")),
        ("messages", json!([])),
        ("messages", json!("Hi")),
    ] {
        let mut ask = json!({"messages": said("Hi"), "max_tokens": 1, "unheard_of": {"x": [1]}});
        assert_eq!(server.post("/v1/chat/completions", ask.clone()).status, 200);
        ask[field] = value.clone();
        let reply = server.post("/v1/chat/completions", ask);
        assert_eq!(reply.status, 400, "{field} = {value}: {}", reply.text);
        let error = reply.any_json()["error"].clone();
        let named = error["param"].as_str().unwrap_or_default().starts_with(field);
        assert!(named && !error["message"].as_str().unwrap().is_empty(), "{error}");
    }
    for body in ["", "{", "[]", "nul", "\u{0}"] {
        let reply = server.post_with("/v1/chat/completions", &[], body);
        assert_eq!(reply.status, 400, "{body:?}");
    }
}

/// Changes a file of the model.
fn change(options: &tangor_server::Options, file: &str, change: impl FnOnce(&mut Value)) {
    let Some(tangor_store::ModelName::Path(folder)) = options.models.first() else { panic!() };
    let file = folder.join(file);
    let mut value: Value = std::fs::read_to_string(&file).unwrap().parse().unwrap();
    change(&mut value);
    std::fs::write(&file, value.to_string()).unwrap();
}

/// Adds this to the end of the model's template.
fn template_ends(options: &mut tangor_server::Options, end: &str) {
    change(options, "tokenizer_config.json", |config| {
        let template = config["chat_template"].as_str().unwrap().to_owned();
        config["chat_template"] = (template + end).into();
    });
}

#[test]
fn a_template_for_tools_is_used_where_there_are_tools() {
    let server = Running::new(|options| {
        change(options, "tokenizer_config.json", |config| {
            let usual = config["chat_template"].take();
            let tools = "{{ tools | length }} of <tool_call>";
            config["chat_template"] = json!([
                {"name": "default", "template": usual}, {"name": "tool_use", "template": tools},
            ]);
        });
    });
    let tool = json!({"type": "function", "function": {"name": "add", "parameters": {}}});
    let mut ask = json!({"messages": said("Hi"), "max_tokens": 1});
    let tokens = |ask: &Value| {
        let body = server.post("/v1/chat/completions", ask.clone()).json();
        body["usage"]["prompt_tokens"].as_u64().unwrap() as usize
    };
    assert_eq!(tokens(&ask), "user: Hi\nassistant: ".len());
    ask["tools"] = json!([tool]);
    assert_eq!(tokens(&ask), "1 of <tool_call>".len());
    let shown = server.post("/api/show", json!({"model": "tiny"})).json();
    assert!(shown["capabilities"].as_array().unwrap().contains(&"tools".into()), "{shown}");
}

#[test]
fn tokens_of_thinking_are_counted() {
    let thinks = |options: &mut tangor_server::Options| template_ends(options, "<think>");
    let server = Running::new(thinks);
    let ask = json!({"messages": said("Hi"), "max_tokens": 10, "ignore_eos": true});
    let body = server.post("/v1/chat/completions", ask).json();
    assert_eq!(body["usage"]["completion_tokens_details"]["reasoning_tokens"], 10, "{body}");
    assert_eq!(body["choices"][0]["message"]["content"], "");
    let ask = json!({"input": "Hi", "max_output_tokens": 10});
    let body = server.post("/v1/responses", ask).json();
    let details = &body["usage"]["output_tokens_details"];
    assert_eq!(details["reasoning_tokens"], body["usage"]["output_tokens"]);
}

#[test]
fn an_answer_that_a_conversation_ends_in_goes_on() {
    let server = Running::new(|_| {});
    let messages =
        json!([{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "AB"}]);
    let chat = json!({"messages": messages, "max_tokens": 12});
    let plain = json!({"prompt": "user: Hi\nassistant: AB", "max_tokens": 12});
    let plain = server.post("/v1/completions", plain).json();
    let openai = server.post("/v1/chat/completions", chat.clone()).json();
    assert_eq!(openai["choices"][0]["message"]["content"], plain["choices"][0]["text"]);
    assert_eq!(openai["usage"]["prompt_tokens"], plain["usage"]["prompt_tokens"]);
    let anthropic = server.post("/v1/messages", chat).json();
    assert_eq!(anthropic["content"][0]["text"], plain["choices"][0]["text"]);
    // Nothing to go on from: the next turn is the model's.
    let empty = json!([{"role": "user", "content": "Hi"}, {"role": "assistant", "content": ""}]);
    let body = server.post("/v1/chat/completions", json!({"messages": empty, "max_tokens": 2}));
    let tokens = "user: Hi\nassistant: \nassistant: ".len() as u64;
    assert_eq!(body.json()["usage"]["prompt_tokens"], tokens);
}

/// Gives the model a vocabulary of words with a space in front, as SentencePiece makes them.
fn words(options: &mut tangor_server::Options) {
    change(options, "tokenizer.json", |tokenizer| {
        let vocab = (0..256).map(|id| (format!("\u{2581}w{id}"), id.into())).collect();
        tokenizer["model"]["vocab"] = Value::Object(vocab);
        tokenizer["model"]["unk_token"] = "\u{2581}w0".into();
        tokenizer["pre_tokenizer"] = Value::Null;
        tokenizer["decoder"] = json!({"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "\u{2581}"}, "content": " "},
            {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0},
        ]});
    });
}

#[test]
fn the_space_before_the_first_word_stays_where_an_answer_goes_on_with_the_prompt() {
    let server = Running::new(words);
    let text = |path: &str, ask: Value, field: &str| {
        let reply = server.post(path, ask);
        let found =
            reply.any_json().pointer(field).and_then(|text| text.as_str().map(str::to_owned));
        found.unwrap_or_else(|| panic!("{path}: {}", reply.text))
    };
    let ask = json!({"prompt": "Hi", "max_tokens": 2});
    let plain = text("/v1/completions", ask, "/choices/0/text");
    assert!(plain.starts_with(" w"), "{plain:?}");
    let ask = json!({"prompt": "Hi", "max_tokens": 2, "echo": true});
    let echoed = text("/v1/completions", ask, "/choices/0/text");
    // The vocabulary has a word in the place of every letter.
    assert_eq!(echoed, format!("w0 w0{plain}"));
    let ask = |raw| json!({"model": "tiny", "prompt": "Hi", "raw": raw, "stream": false});
    assert!(text("/api/generate", ask(true), "/response").starts_with(" w"));
    assert!(text("/api/generate", ask(false), "/response").starts_with('w'));
    let chat = |messages: Value| {
        let ask = json!({"messages": messages, "max_tokens": 2});
        text("/v1/chat/completions", ask, "/choices/0/message/content")
    };
    assert!(chat(said("Hi")).starts_with('w'));
    let unfinished =
        json!([{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "A"}]);
    assert!(chat(unfinished).starts_with(" w"));
}

#[test]
fn a_model_without_tokens_for_gaps_says_so() {
    let server = Running::new(|_| {});
    let ask = json!({"prompt": "def f(", "suffix": "return x"});
    for path in ["/v1/completions", "/api/generate"] {
        let reply = server.post(path, ask.clone());
        assert_eq!(reply.status, 400, "{}", reply.text);
        assert!(reply.text.contains("fill gaps"), "{}", reply.text);
    }
    let tokens = json!({"prompt": [1, 2], "suffix": "return x"});
    let reply = server.post("/v1/completions", tokens);
    assert_eq!(reply.any_json()["error"]["param"], "suffix", "{}", reply.text);
}

#[test]
fn anthropics_clients_see_thinking_only_if_they_ask_for_it() {
    let ask = json!({"messages": said("Hi"), "max_tokens": 6});
    let with = |thinking: Value| {
        let mut ask = ask.clone();
        ask["thinking"] = thinking;
        ask
    };
    let enabled = json!({"type": "enabled", "budget_tokens": 1024});
    // As Qwen's do it: what is not refused is on.
    let wished = "{% if enable_thinking is not defined or enable_thinking %}<think>{% endif %}";
    let server = Running::new(|options| template_ends(options, wished));
    for silent in [Value::Null, json!({"type": "disabled"})] {
        let body = server.post("/v1/messages", with(silent)).json();
        assert_eq!(body["content"][0]["type"], "text", "{body}");
        assert_ne!(body["content"][0]["text"], "");
    }
    let body = server.post("/v1/messages", with(enabled.clone())).json();
    assert_eq!(body["content"][0]["type"], "thinking", "{body}");
    assert_ne!(body["content"][0]["signature"], "");
    let mut streamed = with(enabled.clone());
    streamed["stream"] = true.into();
    let events = server.post("/v1/messages", streamed).events();
    let deltas: Vec<&str> =
        events.iter().filter_map(|(_, event)| event["delta"]["type"].as_str()).collect();
    assert_eq!((deltas[0], deltas.last()), ("thinking_delta", Some(&"signature_delta")));
    // What a model thinks although nobody asked is left out.
    let server = Running::new(|options| template_ends(options, "<think>"));
    let body = server.post("/v1/messages", ask.clone()).json();
    assert_eq!(body["content"], json!([{"type": "text", "text": ""}]));
    let mut streamed = ask.clone();
    streamed["stream"] = true.into();
    let reply = server.post("/v1/messages", streamed);
    assert!(!reply.text.contains("thinking"), "{}", reply.text);
}

#[test]
fn a_call_that_is_cut_is_never_handed_out() {
    let server = Running::new(|_| {});
    let schema = json!({
        "type": "object",
        "properties": {"city": {"enum": ["Rome", "Oslo"]}},
        "required": ["city"],
        "additionalProperties": false,
    });
    let (mut calls, mut cut) = (0, 0);
    for max_tokens in (20..80).step_by(5) {
        let mut ask = json!({
            "messages": said("?"), "max_tokens": max_tokens, "tool_choice": {"type": "any"},
            "tools": [{"name": "f", "input_schema": schema}],
        });
        let body = server.post("/v1/messages", ask.clone()).json();
        let content = body["content"].as_array().unwrap();
        let whole: Vec<&Value> =
            content.iter().filter(|block| block["type"] == "tool_use").collect();
        whole.iter().for_each(|call| assert!(call["input"]["city"].is_string(), "{body}"));
        calls += whole.len();
        cut += usize::from(whole.is_empty() && body["stop_reason"] == "max_tokens");
        ask["stream"] = true.into();
        let events = server.post("/v1/messages", ask).events();
        let starts = events.iter().filter(|(_, e)| e["content_block"]["type"] == "tool_use");
        assert_eq!(starts.count(), whole.len(), "{events:?}");
        let inputs = events.iter().filter_map(|(_, e)| e["delta"]["partial_json"].as_str());
        let inputs: Vec<Value> = inputs.map(|input| input.parse().unwrap()).collect();
        let expected: Vec<&Value> = whole.iter().map(|call| &call["input"]).collect();
        assert_eq!(inputs.iter().collect::<Vec<_>>(), expected);
    }
    assert!(calls > 0 && cut > 0, "{calls} calls, {cut} cut");
}

#[test]
fn an_answer_that_may_call_once_ends_with_its_first_call() {
    let server = Running::new(|_| {});
    let call =
        |name: &str| format!(r#"<tool_call>{{"name": "{name}", "arguments": {{}}}}</tool_call>"#);
    let written = call("f") + "\n" + &call("g");
    let grammar = format!("start: {}", json!(written));
    let tool = |name: &str| json!({"type": "function", "function": {"name": name}});
    let mut ask = json!({
        "messages": said("?"), "tools": [tool("f"), tool("g")], "max_tokens": 300,
        "response_format": {"type": "grammar", "grammar": grammar},
    });
    let called = |ask: &Value| {
        let body = server.post("/v1/chat/completions", ask.clone()).json();
        let choice = body["choices"][0].clone();
        assert_eq!(choice["finish_reason"], "tool_calls", "{body}");
        let calls = choice["message"]["tool_calls"].as_array().unwrap().len();
        (calls, body["usage"]["completion_tokens"].as_u64().unwrap())
    };
    let (both, all) = called(&ask);
    ask["parallel_tool_calls"] = false.into();
    let (one, fewer) = called(&ask);
    assert_eq!((both, one), (2, 1));
    // The second one is not even written to its end.
    assert!(fewer <= all, "{fewer} of {all}");
    ask["stream"] = true.into();
    let events = server.post("/v1/chat/completions", ask).events();
    let names = events.iter().filter_map(|(_, event)| {
        event["choices"][0]["delta"]["tool_calls"][0]["function"]["name"].as_str()
    });
    assert_eq!(names.collect::<Vec<_>>(), ["f"]);
    let finish = events.iter().find_map(|(_, e)| e["choices"][0]["finish_reason"].as_str());
    assert_eq!(finish, Some("tool_calls"));
}

#[test]
fn how_much_a_model_thinks_reaches_its_template_in_every_dialect() {
    let told = "{{ enable_thinking }}/{{ reasoning_effort }}/";
    let server = Running::new(|options| template_ends(options, told));
    let tokens = |path: &str, extra: Value| {
        let mut ask = json!({
            "messages": said("Hi"), "max_tokens": 1, "stream": false, "prompt": "Hi",
            "options": {"num_predict": 1},
        });
        if path == "/v1/responses" {
            ask = json!({"input": "Hi", "max_output_tokens": 1});
        }
        ask.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        let body = server.post(path, ask).json();
        let counts = [
            &body["usage"]["prompt_tokens"],
            &body["usage"]["input_tokens"],
            &body["prompt_eval_count"],
        ];
        counts.into_iter().find_map(Value::as_u64).unwrap() as usize
    };
    let bare = "user: Hi\nassistant: ".len();
    for (path, extra, written) in [
        ("/v1/chat/completions", json!({}), "//"),
        ("/v1/chat/completions", json!({"reasoning_effort": "none"}), "False//"),
        ("/v1/chat/completions", json!({"reasoning_effort": "low"}), "True/low/"),
        (
            "/v1/chat/completions",
            json!({"reasoning_effort": "low", "enable_thinking": false}),
            "False/low/",
        ),
        ("/v1/responses", json!({"reasoning": {"effort": "none"}}), "False//"),
        ("/v1/responses", json!({"reasoning": {"effort": "medium"}}), "True/medium/"),
        ("/api/chat", json!({"think": true}), "True//"),
        ("/api/chat", json!({"think": "low"}), "True/low/"),
        ("/api/generate", json!({"think": "high"}), "True/high/"),
    ] {
        assert_eq!(tokens(path, extra.clone()), bare + written.len(), "{path} {extra}");
    }
}

#[test]
fn what_cannot_be_had_is_refused_by_name() {
    let server = Running::new(|_| {});
    let hosted = |kind: &str| json!([{"type": kind, "name": kind}]);
    for (path, field, value) in [
        ("/v1/chat/completions", "reasoning_effort", json!("lots")),
        ("/v1/chat/completions", "tools", hosted("web_search")),
        ("/v1/chat/completions", "web_search_options", json!({})),
        ("/v1/responses", "reasoning.effort", json!("lots")),
        ("/v1/responses", "tools", hosted("web_search")),
        ("/v1/responses", "tools", hosted("code_interpreter")),
        ("/v1/responses", "conversation", json!("conv_1")),
        ("/v1/responses", "previous_response_id", json!("resp_1")),
        ("/v1/messages", "tools", hosted("web_search_20250305")),
        ("/api/chat", "think", json!(3)),
        ("/api/generate", "context", json!([1, 2, 3])),
    ] {
        let mut ask = json!({
            "messages": said("Hi"), "input": "Hi", "prompt": "Hi", "max_tokens": 1,
            "max_output_tokens": 1, "options": {"num_predict": 1}, "stream": false,
        });
        assert_eq!(server.post(path, ask.clone()).status, 200, "{path}");
        match field.split_once('.') {
            Some((field, inner)) => ask[field] = json!({inner: value}),
            None => ask[field] = value.clone(),
        }
        let reply = server.post(path, ask);
        assert_eq!(reply.status, 400, "{path} {field} = {value}: {}", reply.text);
        let error = reply.any_json()["error"].clone();
        let param = error["param"].as_str().map(|param| param == field);
        assert!(param.unwrap_or(true), "{error}");
    }
    // As Ollama has it, no tokens at all are as many as there is room for.
    let ask = json!({"messages": said("Hi"), "stream": false, "options": {"num_predict": 0}});
    let body = server.post("/api/chat", ask).json();
    assert!(body["eval_count"].as_u64() > Some(1), "{body}");
}
