//! What the OpenAPI document says of answers is true of answers.

use crate::support::*;
use serde_json::{Value, json};
use std::collections::BTreeSet;

/// What is wrong with a value by a schema of the document.
fn broken(document: &Value, schema: &Value, value: &Value, at: &str) -> Option<String> {
    if let Some(name) = schema["$ref"].as_str() {
        return broken(document, document.pointer(&name[1..]).unwrap(), value, at);
    }
    if let Some(any) = schema["anyOf"].as_array() {
        let mut each = any.iter().map(|schema| broken(document, schema, value, at));
        return each.all(|broken| broken.is_some()).then(|| format!("{at}: {value} is none of it"));
    }
    if let Some(words) = schema["enum"].as_array() {
        return (!words.contains(value)).then(|| format!("{at}: {value} is none of {words:?}"));
    }
    let fits = match schema["type"].as_str() {
        None => true,
        Some("null") => value.is_null(),
        Some("boolean") => value.is_boolean(),
        Some("integer") => value.is_u64(),
        Some("number") => value.is_number(),
        Some("string") => value.is_string(),
        Some("array") => value.is_array(),
        Some("object") => value.is_object(),
        Some(other) => panic!("{at}: unknown type {other}"),
    };
    if !fits {
        return Some(format!("{at}: {value} is no {}", schema["type"]));
    }
    let items = value.as_array().into_iter().flatten().enumerate();
    for (index, item) in items.filter(|_| schema["items"].is_object()) {
        if let Some(why) = broken(document, &schema["items"], item, &format!("{at}[{index}]")) {
            return Some(why);
        }
    }
    for name in schema["required"].as_array().into_iter().flatten() {
        if value[name.as_str().unwrap()].is_null() && value.get(name.as_str().unwrap()).is_none() {
            return Some(format!("{at}: {name} is missing"));
        }
    }
    for (name, member) in value.as_object().into_iter().flatten() {
        let at = format!("{at}.{name}");
        let schema = match (&schema["properties"][name], &schema["additionalProperties"]) {
            (Value::Null, Value::Null) if schema["properties"].is_null() => continue,
            (Value::Null, Value::Null) => return Some(format!("{at} is not in the document")),
            (Value::Null, any) => any,
            (own, _) => own,
        };
        if let Some(why) = broken(document, schema, member, &at) {
            return Some(why);
        }
    }
    None
}

/// Every route that can go well here, and what to send it: without a body to `get` it.
fn requests() -> Vec<(&'static str, Value)> {
    let chat = json!({"messages": said("Hi"), "max_tokens": 3});
    let with = |more: Value| {
        let mut ask = chat.clone();
        ask.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        ask
    };
    let tool = json!({"type": "function", "function": {"name": "f", "parameters": {
        "type": "object", "properties": {}, "additionalProperties": false,
    }}});
    let called = json!({"tools": [tool], "tool_choice": "required", "max_tokens": 200});
    vec![
        ("/v1/chat/completions", chat.clone()),
        ("/v1/chat/completions", with(json!({"logprobs": true, "top_logprobs": 2, "n": 2}))),
        ("/v1/chat/completions", with(called.clone())),
        ("/v1/completions", json!({"prompt": "Hi", "max_tokens": 0, "echo": true, "logprobs": 0})),
        ("/v1/completions", json!({"prompt": [[1, 2], [3]], "n": 2, "logprobs": 2})),
        ("/v1/responses", json!({"input": "Hi", "max_output_tokens": 3})),
        (
            "/v1/responses",
            json!({"input": "Hi", "max_output_tokens": 200, "tools": [tool],
            "tool_choice": "required", "metadata": {"a": "b"}, "temperature": 0.5}),
        ),
        ("/v1/messages", chat.clone()),
        (
            "/v1/messages",
            with(json!({"max_tokens": 200, "tool_choice": {"type": "any"},
            "tools": [{"name": "f", "input_schema": tool["function"]["parameters"]}]})),
        ),
        ("/v1/messages/count_tokens", chat.clone()),
        ("/api/chat", with(json!({"stream": false, "options": {"num_predict": 3}}))),
        ("/api/chat", json!({})),
        ("/api/generate", json!({"prompt": "Hi", "stream": false, "options": {"num_predict": 3}})),
        ("/api/generate", json!({"keep_alive": 0})),
        ("/api/generate", json!({})),
        ("/api/show", json!({"model": "tiny"})),
        ("/v1/load", json!({"model_name": "tiny", "pinned": true})),
        ("/v1/params", json!({"top_p": 0.5})),
        ("/v1/tokenize", json!({"content": "Hi"})),
        ("/v1/tokenize", json!({"content": "Hi", "with_pieces": true})),
        ("/v1/detokenize", json!({"tokens": [72]})),
        ("/tokenize", json!({"prompt": "Hi", "add_special_tokens": false})),
        ("/detokenize", json!({"tokens": [72]})),
        ("/v1/embeddings", json!({"input": ["Hi", "there"]})),
        ("/v1/embeddings", json!({"input": "Hi", "encoding_format": "base64"})),
        ("/api/embed", json!({"model": "tiny", "input": "Hi"})),
        ("/api/embed", json!({"model": "tiny"})),
        ("/api/embeddings", json!({"model": "tiny", "prompt": "Hi"})),
        ("/v1/models", Value::Null),
        ("/v1/models/tiny", Value::Null),
        ("/api/tags", Value::Null),
        ("/api/ps", Value::Null),
        ("/api/version", Value::Null),
        ("/v1/health", Value::Null),
        ("/v1/stats", Value::Null),
        ("/v1/system-info", Value::Null),
        ("/v1/plan", Value::Null),
        ("/v1/slots", Value::Null),
        ("/v1/params", Value::Null),
        ("/tokenizer_info", Value::Null),
        ("/live", Value::Null),
        ("/health", Value::Null),
        ("/openapi.json", Value::Null),
        ("/v1/unload", json!({})),
        ("/v1/halt", Value::Null),
    ]
}

#[test]
fn answers_look_as_the_document_says_and_every_answer_is_described() {
    let server = Running::new(|_| {});
    let document = server.get("/openapi.json").json();
    let mut seen = BTreeSet::new();
    for (path, body) in requests() {
        let method = if body.is_null() { "get" } else { "post" };
        let described = if path == "/v1/models/tiny" { "/v1/models/{id}" } else { path };
        let reply = match method {
            "get" => server.get(path),
            _ => server.post(path, body.clone()),
        };
        let responses = &document["paths"][described][method]["responses"];
        let schema = &responses["200"]["content"]["application/json"]["schema"];
        assert!(schema.is_object(), "{method} {path} is not described");
        assert_eq!(broken(&document, schema, &reply.json(), path), None, "{body}");
        seen.insert(format!("{method} {described}"));
    }
    let mut missing = Vec::new();
    for (path, methods) in document["paths"].as_object().unwrap() {
        let alias = ["/api/v1", "/v0", "/api/v0"].iter().any(|prefix| path.starts_with(prefix));
        for (method, operation) in methods.as_object().unwrap().iter().filter(|_| !alias) {
            let json = !operation["responses"]["200"]["content"]["application/json"].is_null();
            let name = format!("{method} {path}");
            missing.extend((json && !seen.contains(&name)).then_some(name));
        }
    }
    // These need a store with something in it, and a network.
    assert_eq!(missing, ["post /api/pull", "post /v1/pull", "post /v1/delete"]);
}

#[test]
fn errors_look_as_the_document_says() {
    let server = Running::with(&[], OnOracle::default(), |_| {});
    let document = server.get("/openapi.json").json();
    let paths = document["paths"].as_object().unwrap().iter();
    for (path, methods) in paths.filter(|(path, _)| !path.ends_with("/halt")) {
        for (method, operation) in methods.as_object().unwrap() {
            let schema = &operation["responses"]["4XX"]["content"]["application/json"]["schema"];
            let mut wire = Wire::new(&server.base);
            let at = path.replace("{id}", "a%ff").replace("{file}", "absent");
            let at = at.replace("{digest}", "sha256:0");
            for (host, status) in [("localhost", 400..502), ("evil.example", 403..404)] {
                let body = "{\"model\": \"nobody\", \"temperature\": [1]";
                let reply = wire.ask(&method.to_uppercase(), &at, &[("host", host)], body);
                if status.contains(&reply.status) {
                    assert!(reply.header("content-type").is_some_and(|t| t == "application/json"));
                    let why = broken(&document, schema, &reply.any_json(), path);
                    assert_eq!(why, None, "{method} {path}: {}", reply.status);
                } else {
                    assert_eq!((host, reply.status), ("localhost", 200), "{method} {path}");
                }
            }
        }
    }
}
