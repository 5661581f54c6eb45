//! The server's own page: what is served, and with which headers; and the page in a browser.

use crate::support::*;
use serde_json::json;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use tangor_server::Key;
use tangor_testkit::faulty::Fault;

/// The files that one of the page's files names.
fn named(text: &str) -> Vec<String> {
    let parts = text.split("\"/page/").skip(1);
    let names = parts.map(|part| format!("/page/{}", part.split('"').next().unwrap()));
    names.collect()
}

fn browser(server: &Running, path: &str) -> Reply {
    server.get_with(path, &[("accept", "text/html,application/xhtml+xml,*/*;q=0.8")])
}

#[test]
fn browsers_get_the_page_and_ollamas_clients_their_line() {
    let server = Running::new(|_| {});
    for accept in [None, Some("*/*"), Some("application/json")] {
        let headers: Vec<(&str, &str)> = accept.iter().map(|kind| ("accept", *kind)).collect();
        let reply = server.get_with("/", &headers);
        assert_eq!((reply.status, reply.text.as_str()), (200, "Ollama is running"), "{accept:?}");
        assert_eq!(reply.header("vary"), Some("accept"));
    }
    let page = browser(&server, "/");
    assert_eq!(page.status, 200);
    assert!(
        page.text.starts_with("<!doctype html>") && page.text.contains("<title>Tangor</title>")
    );
    assert_eq!(page.header("vary"), Some("accept"));
    assert_eq!(server.get("/docs").header("content-type"), Some("text/html; charset=utf-8"));
    assert_eq!(server.get("/openapi.json").json()["openapi"], "3.1.0");
}

#[test]
fn every_file_that_the_page_names_is_there_with_its_kind_and_nothing_comes_from_elsewhere() {
    let server = Running::new(|_| {});
    let mut seen = vec!["/".to_owned(), "/docs".to_owned()];
    let mut at = 0;
    while let Some(path) = seen.get(at).cloned() {
        let reply = browser(&server, &path);
        assert_eq!(reply.status, 200, "{path}");
        let kind = match path.rsplit('.').next().unwrap() {
            "js" => "text/javascript; charset=utf-8",
            "css" => "text/css; charset=utf-8",
            "txt" => "text/plain; charset=utf-8",
            _ => "text/html; charset=utf-8",
        };
        assert_eq!(reply.header("content-type"), Some(kind), "{path}");
        assert_eq!(reply.header("x-content-type-options"), Some("nosniff"), "{path}");
        if !path.contains("/vendor.") {
            let elsewhere = reply.text.replace("http://www.w3.org/2000/svg", "");
            let elsewhere = elsewhere.contains("http://") || elsewhere.contains("https://");
            assert!(!elsewhere, "{path} names another host");
            for inline in ["<script>", "<style", " style=", " onclick=", "innerHTML"] {
                assert!(!reply.text.contains(inline), "{path} holds {inline}");
            }
        }
        for name in named(&reply.text) {
            if !seen.contains(&name) {
                seen.push(name);
            }
        }
        at += 1;
    }
    assert!(seen.len() > 10, "{seen:?}");
    assert_eq!(server.get("/page/absent.js").status, 404);
    assert_eq!(server.get("/page/../Cargo.toml").status, 404);
}

#[test]
fn the_pages_policy_lets_it_fetch_from_here_alone_and_no_pictures_at_all() {
    let server = Running::new(|_| {});
    for path in ["/", "/docs", "/page/app.js"] {
        let reply = browser(&server, path);
        let policy = reply.header("content-security-policy").unwrap();
        let says: Vec<&str> = policy.split(';').map(str::trim).collect();
        for rule in [
            "default-src 'self'",
            "img-src data:",
            "object-src 'none'",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
            "require-trusted-types-for 'script'",
        ] {
            assert!(says.contains(&rule), "{path}: {policy}");
        }
        assert!(!policy.contains("unsafe"), "{policy}");
        assert_eq!(reply.header("referrer-policy"), Some("no-referrer"));
        assert_eq!(reply.header("cross-origin-resource-policy"), Some("same-origin"));
    }
}

#[test]
fn a_browser_that_has_a_file_does_not_get_it_again() {
    let server = Running::new(|_| {});
    for path in ["/", "/docs", "/page/style.css"] {
        let accept = ("accept", "text/html");
        let first = server.get_with(path, &[accept]);
        let tag = first.header("etag").unwrap();
        assert_eq!(first.header("cache-control"), Some("no-cache"));
        let again = server.get_with(path, &[accept, ("if-none-match", tag)]);
        assert_eq!((again.status, again.text.as_str()), (304, ""), "{path}");
        assert_eq!(again.header("etag"), Some(tag));
        assert!(again.header("content-security-policy").is_some());
        let other = server.get_with(path, &[accept, ("if-none-match", "\"other\"")]);
        assert_eq!((other.status, &other.text), (200, &first.text));
    }
    let tags = ["/page/app.js", "/page/api.js"].map(|path| server.get(path));
    assert_ne!(tags[0].header("etag"), tags[1].header("etag"));
}

#[test]
fn the_page_is_open_where_the_rest_wants_a_key() {
    let server = Running::new(|options| options.key = Key::new("user"));
    for path in ["/", "/docs", "/page/app.js"] {
        assert_eq!(browser(&server, path).status, 200, "{path}");
    }
    assert_eq!(server.get("/v1/plan").status, 401);
    assert_eq!(server.get_with("/v1/plan", &[("authorization", "Bearer user")]).status, 200);
}

#[test]
fn the_plan_says_of_every_model_in_memory_which_device_runs_what() {
    let server = Running::with(&["tiny", "other"], OnOracle::default(), |options| {
        options.limits.models = 1;
    });
    let ask = json!({"model": "other", "messages": said("Hi"), "max_tokens": 1});
    server.post("/v1/chat/completions", ask).json();
    let plans = server.get("/v1/plan").json();
    let plans = plans["data"].as_array().unwrap();
    assert_eq!(plans.len(), 1);
    let plan = &plans[0];
    assert_eq!(plan["model"], "other");
    let device = &plan["devices"][0]["name"];
    let stages: Vec<&str> = plan["stages"]
        .as_array()
        .unwrap()
        .iter()
        .map(|stage| {
            let segments = stage["segments"].as_array().unwrap();
            assert!(segments.iter().all(|segment| segment["device"] == *device), "{stage}");
            stage["stage"].as_str().unwrap()
        })
        .collect();
    assert!(stages.contains(&"prefill") && stages.contains(&"decode"), "{stages:?}");
    for lane in ["prefill", "decode"] {
        let slot = &plan["timeline"][lane][0];
        assert_eq!(slot["device"], *device);
        assert!(slot["end_s"].as_f64() > slot["start_s"].as_f64(), "{slot}");
    }
    assert_eq!(plan["kv"]["context"], CONTEXT);
    assert_eq!(server.post("/v1/unload", json!({})).status, 200);
    assert_eq!(server.get("/v1/plan").json()["data"], json!([]));
}

/// The packages that `cargo xtask setup` fetches for node; says so where they are not named.
#[allow(clippy::print_stderr, reason = "whoever reads the test's output is told")]
fn packages() -> Option<PathBuf> {
    let packages = std::env::var_os("TANGOR_TEST_PAGE");
    if packages.is_none() {
        eprintln!("skipped: TANGOR_TEST_PAGE is not set; `cargo xtask setup` says what it is");
    }
    packages.map(PathBuf::from)
}

/// Runs a script in node, in this crate's folder; it succeeds.
fn node(script: &Path, args: &[&str]) {
    let mut node = Command::new("node");
    let output = node.current_dir(env!("CARGO_MANIFEST_DIR")).arg(script).args(args).output();
    let output = output.unwrap_or_else(|error| panic!("node: {error}"));
    let said = String::from_utf8_lossy(&output.stdout);
    let why = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}\n{why}");
}

#[test]
fn the_vendored_libraries_are_what_their_packages_make() {
    if packages().is_some() {
        node(Path::new("web/vendor.build.mjs"), &["--check"]);
    }
}

#[test]
fn the_pages_files_are_formatted() {
    if let Some(packages) = packages() {
        let prettier = packages.join("node_modules/prettier/bin/prettier.cjs");
        node(&prettier, &["--check", "web", "tests/page"]);
    }
}

#[test]
fn the_page_works_in_a_browser() {
    if packages().is_none() {
        return;
    }
    // Answers last long enough to be watched, and stopped, by a browser on a machine that is busy.
    let fault = Some(Fault::Slow(Duration::from_millis(4)));
    let loader = OnOracle { fault, ..OnOracle::default() };
    let mut server = Running::with(&["tiny", "other"], loader, |options| {
        options.limits.models = 1;
    });
    let keyed = Running::new(|options| options.key = Key::new("secret"));
    node(Path::new("tests/page/page.test.mjs"), &[&server.base, &keyed.base]);
    // The last thing that the page sees is a server that ends.
    server.stop().unwrap();
}
