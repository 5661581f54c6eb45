//! Who is let in.

use crate::support::*;
use serde_json::json;
use std::time::Duration;
use tangor_server::{Key, Options, ServeError, Server};
use tangor_store::{Store, StoreOptions};

fn keyed(options: &mut Options) {
    options.key = Key::new("user");
    options.admin_key = Key::new("admin");
}

#[test]
fn a_key_opens_what_the_table_says() {
    let server = Running::new(keyed);
    let status = |path: &str, key: Option<&str>| {
        let bearer = key.map(|key| format!("Bearer {key}"));
        let headers: Vec<(&str, &str)> =
            bearer.iter().map(|bearer| ("authorization", bearer.as_str())).collect();
        server.get_with(path, &headers).status
    };
    for (path, none, user) in [
        ("/live", 200, 200),
        ("/", 200, 200),
        ("/openapi.json", 200, 200),
        ("/api/version", 200, 200),
        ("/v1/models", 401, 200),
        ("/api/v0/health", 401, 200),
        ("/metrics", 401, 200),
        ("/api/tags", 401, 200),
    ] {
        assert_eq!(status(path, None), none, "{path}");
        assert_eq!(status(path, Some("wrong")), none, "{path}");
        assert_eq!(status(path, Some("user")), user, "{path}");
        assert_eq!(status(path, Some("admin")), user, "{path}");
    }
    let load = json!({"model_name": "tiny"}).to_string();
    for (key, expected) in [("user", 401), ("admin", 200)] {
        let bearer = format!("Bearer {key}");
        let reply = server.post_with("/v1/load", &[("authorization", &bearer)], &load);
        assert_eq!(reply.status, expected, "{}", reply.text);
    }
    let ask = json!({"messages": said("Hi"), "max_tokens": 1}).to_string();
    assert_eq!(server.post_with("/v1/messages", &[("x-api-key", "user")], &ask).status, 200);
    let refused = server.post_with("/v1/messages", &[], &ask);
    assert_eq!(refused.any_json()["error"]["type"], "authentication_error");
    assert_eq!(refused.header("www-authenticate"), Some("Bearer"));
    assert!(server.post_with("/api/chat", &[], &ask).any_json()["error"].is_string());
}

#[test]
fn other_names_and_other_pages_are_refused() {
    let server = Running::new(|options| {
        options.hosts = vec!["box.example".into()];
        options.origins = vec!["https://chat.example".into()];
    });
    let port = server.base.rsplit(':').next().unwrap().to_owned();
    for (host, expected) in [
        ("localhost".to_owned(), 200),
        (format!("127.0.0.1:{port}"), 200),
        ("[::1]:80".to_owned(), 200),
        ("box.example".to_owned(), 200),
        ("evil.example".to_owned(), 403),
        (format!("localhost.evil.example:{port}"), 403),
        ("10.1.2.3".to_owned(), 403),
    ] {
        let status = server.get_with("/v1/models", &[("host", &host)]).status;
        assert_eq!(status, expected, "{host}");
    }
    let own = format!("http://localhost:{port}");
    for (origin, expected) in [
        (own.as_str(), 200),
        ("https://chat.example", 200),
        ("https://evil.example", 403),
        ("null", 403),
    ] {
        let host = format!("localhost:{port}");
        let headers = [("origin", origin), ("host", &host)];
        let reply = server.get_with("/v1/models", &headers);
        assert_eq!(reply.status, expected, "{origin}");
        let allowed = reply.header("access-control-allow-origin");
        assert_eq!(allowed.is_some(), origin == "https://chat.example", "{origin}");
    }
    // An image of another page has no Origin, but the browser says where it stands.
    for path in ["/v1/halt", "/v1/models"] {
        let headers = [("sec-fetch-site", "cross-site")];
        assert_eq!(server.get_with(path, &headers).status, 403);
    }
    // A link that a mail or a chat opened is no page's, and ends nothing either.
    for site in ["none", "same-origin"] {
        let headers = [("sec-fetch-site", site), ("sec-fetch-mode", "navigate")];
        assert_eq!(server.get_with("/api/v1/halt", &headers).status, 403, "{site}");
        assert_eq!(server.get_with("/v1/models", &headers).status, 200, "{site}");
    }
    let headers = [
        ("origin", own.as_str()),
        ("host", &own["http://".len()..]),
        ("content-type", "text/plain"),
    ];
    let reply = server.post_with("/v1/chat/completions", &headers[..2], "{\"messages\": 1}");
    assert!(reply.any_json()["error"]["param"] == "messages", "{}", reply.text);
}

#[test]
fn pages_that_may_ask_may_send_what_official_clients_send_and_read_when_to_ask_again() {
    let server = Running::new(|options| options.origins = vec!["https://chat.example".into()]);
    let wanted = "x-stainless-os,anthropic-dangerous-direct-browser-access,authorization";
    for (origin, allowed) in [("https://chat.example", true), ("https://evil.example", false)] {
        let headers = [
            ("host", "localhost"),
            ("origin", origin),
            ("access-control-request-method", "POST"),
            ("access-control-request-headers", wanted),
        ];
        let reply = Wire::new(&server.base).ask("OPTIONS", "/v1/messages", &headers, "");
        let told = reply.header("access-control-allow-headers");
        assert_eq!(told, allowed.then_some(wanted), "{origin}");
    }
    let reply = server.get_with("/v1/models", &[("origin", "https://chat.example")]);
    let readable = reply.header("access-control-expose-headers").unwrap_or_default();
    assert!(readable.contains("retry-after") && readable.contains("x-request-id"), "{readable}");
}

#[test]
fn what_this_server_never_does_says_so() {
    let server = Running::new(|_| {});
    for path in ["/api/create", "/api/copy", "/api/push", "/api/blobs/sha256:00"] {
        let reply = server.post(path, json!({"model": "mine", "from": "tiny"}));
        assert_eq!(reply.status, 501, "{path}: {}", reply.text);
        assert!(reply.any_json()["error"].as_str().unwrap().contains("server"), "{path}");
    }
}

#[test]
fn other_machines_need_a_key() {
    let folder = tempfile::tempdir().unwrap();
    let home = || {
        let root = Some(folder.path().to_path_buf());
        Store::open(StoreOptions { root, offline: true, ..StoreOptions::default() }).unwrap()
    };
    let options = |key| Options {
        address: ([0, 0, 0, 0], 0).into(),
        models: Vec::new(),
        loader: std::sync::Arc::new(OnOracle::default()),
        key,
        admin_key: None,
        origins: Vec::new(),
        hosts: Vec::new(),
        one_model: false,
        log: None,
        limits: tangor_server::Limits::default(),
    };
    let refused = Server::bind(options(None), home()).unwrap_err();
    assert!(matches!(refused, ServeError::Exposed(_)));
    assert!(Server::bind(options(Key::new("k")), home()).is_ok());
}

#[test]
fn what_is_not_there_says_so_in_the_dialect_of_its_place() {
    let server = Running::new(|_| {});
    let reply = server.get("/v1/nothing");
    assert_eq!(reply.status, 404);
    assert_eq!(reply.any_json()["error"]["type"], "not_found_error");
    assert!(server.get("/api/nothing").any_json()["error"].is_string());
    assert_eq!(server.get("/v1/chat/completions").status, 405);
    let reply = server.post("/v1/chat/completions", json!({"model": "no", "messages": said("x")}));
    assert_eq!(
        (reply.status, reply.any_json()["error"]["code"].as_str()),
        (404, Some("model_not_found"))
    );
    let path = server.folder.path().join("tiny").display().to_string();
    let reply = server.post("/v1/chat/completions", json!({"model": path, "messages": said("x")}));
    assert_eq!(reply.status, 404, "a path is no name");
}

#[test]
fn bodies_over_the_limit_are_refused() {
    let server = Running::new(|options| options.limits.body_bytes = 1000);
    let body = |len: usize| {
        let start =
            "{\"messages\": [{\"role\": \"user\", \"content\": \"Hi\"}], \"max_tokens\": 1}";
        format!("{start}{}", " ".repeat(len - start.len()))
    };
    assert_eq!(server.post_with("/v1/chat/completions", &[], &body(1000)).status, 200);
    assert_eq!(server.post_with("/v1/chat/completions", &[], &body(1001)).status, 413);
}

#[test]
fn a_slow_head_is_not_waited_for() {
    use std::io::{Read, Write};
    let server = Running::new(|options| options.limits.head_time = Duration::from_secs(3));
    let address = server.base.trim_start_matches("http://");
    let mut stream = std::net::TcpStream::connect(address).unwrap();
    stream.write_all(b"GET /live HTTP/1.1\r\nHost: local").unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut answer = Vec::new();
    // Closed, with or without a word.
    stream.read_to_end(&mut answer).unwrap();
    assert_eq!(server.get("/live").status, 200);
}

#[test]
fn refusals_leave_a_connection_that_goes_on_or_say_that_it_ends() {
    use std::io::Write;
    let server = Running::new(|_| {});
    let refused = [
        ("/api/copy", "", 501),
        ("/nowhere", "", 404),
        ("/v1/models", "", 405),
        ("/v1/completions", "Origin: http://elsewhere.example\r\n", 403),
    ];
    for (path, header, status) in refused {
        let head = |length: usize| {
            format!(
                "POST {path} HTTP/1.1\r\nHost: localhost\r\n{header}Content-Length: {length}\r\n\r\n"
            )
        };
        // The body follows when the answer is known, as from a client that sends it apart.
        let mut wire = Wire::new(&server.base);
        wire.stream().write_all(head(2).as_bytes()).unwrap();
        std::thread::sleep(Duration::from_millis(100));
        wire.stream().write_all(b"{}").unwrap();
        let reply = wire.reply();
        assert_eq!((reply.status, reply.header("connection")), (status, None), "{path}");
        let next = wire.ask("GET", "/live", &[("Host", "localhost")], "");
        assert_eq!(next.status, 200, "{path}");
        // One that does not come, and one that is too long to be read for nothing.
        for length in [2, 1 << 20] {
            let mut wire = Wire::new(&server.base);
            wire.stream().write_all(head(length).as_bytes()).unwrap();
            let reply = wire.reply();
            assert_eq!(
                (reply.status, reply.header("connection")),
                (status, Some("close")),
                "{path}"
            );
        }
    }
}
