//! Requests that are too many, too long, or left by their clients; and the end of the server.

use crate::support::*;
use serde_json::{Value, json};
use std::io::Read;
use std::time::Duration;

/// An answer that takes long on a [`slow`] oracle.
fn long(stream: bool) -> Value {
    json!({"messages": said("Hi"), "max_tokens": 1900, "ignore_eos": true, "stream": stream})
}

/// An answer that is soon complete.
fn short(stream: bool) -> Value {
    json!({"messages": said("Hi"), "max_tokens": 40, "stream": stream})
}

/// Waits until no request uses the model.
fn wait_idle(server: &Running) {
    wait_until(|| server.get("/v1/slots").json()[0]["is_processing"] == false);
}

#[test]
fn more_requests_than_fit_are_told_when_to_come_again() {
    let server = Running::with(&["tiny"], slow(), |_| {});
    // The test's loader takes 8 at a time.
    let streams: Vec<_> =
        (0..8).map(|_| server.send("/v1/chat/completions", &[], &long(true).to_string())).collect();
    let refused = server.post("/v1/chat/completions", long(false));
    assert_eq!(refused.status, 429, "{}", refused.text);
    assert_eq!(refused.header("retry-after"), Some("1"));
    assert_eq!(refused.any_json()["error"]["type"], "rate_limit_error");
    drop(streams);
    assert_eq!(server.post_when_free("/v1/chat/completions", &short(false)).status, 200);
}

#[test]
fn a_client_that_leaves_frees_its_place() {
    let server = Running::new(|_| {});
    for stream in [true, false] {
        for _ in 0..20 {
            if stream {
                let response = server.send("/v1/chat/completions", &[], &long(true).to_string());
                let mut first = [0; 64];
                response.into_body().into_reader().read_exact(&mut first).unwrap();
            } else {
                leave(&server);
            }
        }
        wait_idle(&server);
    }
    assert_eq!(server.post_when_free("/v1/chat/completions", &short(false)).status, 200);
}

/// A counter or gauge of a server, by its line's beginning; 0 where there is none.
fn counter(server: &Running, name: &str) -> f64 {
    let metrics = server.get("/metrics").text;
    let line = metrics.lines().find_map(|line| line.strip_prefix(name));
    line.map_or(0.0, |value| value.trim().parse().unwrap())
}

/// The counter of chats that have ended well.
const ENDED: &str = "tangor_requests_total{route=\"/chat/completions\",status=\"200\"}";

#[test]
fn whoever_asks_much_does_not_keep_others_waiting() {
    let server = Running::with(&["tiny"], slow(), |_| {});
    let ask = |user: &str, tokens: usize| {
        let body = json!({"messages": said("Hi"), "max_tokens": tokens, "ignore_eos": true,
                          "stream": true, "user": user});
        server.send("/v1/chat/completions", &[], &body.to_string())
    };
    // Four of the eight run, and four wait for the first one to end.
    let many = [60, 1900, 1900, 1900, 400, 400, 400].map(|tokens| ask("many", tokens));
    let one = ask("one", 20);
    let mut text = String::new();
    one.into_body().into_reader().read_to_string(&mut text).unwrap();
    assert!(text.ends_with("data: [DONE]\n\n"), "{text}");
    // In the order in which they came, those that waited would have ended before.
    let ended = counter(&server, ENDED);
    assert!(ended < 4.0, "{ended} answers have ended");
    drop(many);
}

#[test]
fn a_stream_counts_until_it_ends() {
    let server = Running::with(&["tiny"], slow(), |_| {});
    let response = server.send("/v1/chat/completions", &[], &long(true).to_string());
    // The other one asks for the counters.
    assert_eq!(counter(&server, "tangor_active_requests"), 2.0);
    assert_eq!(counter(&server, ENDED), 0.0);
    drop(response);
    let active = || counter(&server, "tangor_active_requests");
    wait_until(|| counter(&server, ENDED) >= 1.0 && active() <= 1.0);
    let sum =
        "gen_ai_server_request_duration_seconds_sum{gen_ai_operation_name=\"/chat/completions\"}";
    assert!(counter(&server, sum) > 0.0);
}

/// Asks, and closes the connection before there is an answer.
fn leave(server: &Running) {
    use std::io::Write;
    let address = server.base.trim_start_matches("http://");
    let mut stream = std::net::TcpStream::connect(address).unwrap();
    let body = long(false).to_string();
    let head = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: \
         application/json\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(format!("{head}{body}").as_bytes()).unwrap();
}

#[test]
fn an_answer_that_takes_too_long_is_ended() {
    let server = Running::with(&["tiny"], slow(), |options| {
        options.limits.answer_time = Duration::from_millis(1);
    });
    let reply = server.post("/v1/chat/completions", long(false));
    assert_eq!(reply.status, 504, "{}", reply.text);
    let events = server.post("/v1/chat/completions", long(true)).events();
    assert!(events.last().unwrap().1["error"]["message"].as_str().unwrap().contains("too long"));
    wait_idle(&server);
}

#[test]
fn answers_at_once_are_those_that_come_alone() {
    let server = Running::new(|_| {});
    let ask = |n: usize| {
        let ask = json!({"messages": said(&format!("No {n}")), "max_tokens": 30});
        server.post("/v1/chat/completions", ask).json()["choices"][0]["message"].clone()
    };
    let alone: Vec<_> = (0..8).map(ask).collect();
    std::thread::scope(|scope| {
        for (n, expected) in alone.iter().enumerate() {
            let ask = &ask;
            scope.spawn(move || (0..3).for_each(|_| assert_eq!(&ask(n), expected)));
        }
    });
}

#[test]
fn a_stopping_server_completes_what_it_has_begun() {
    let mut server = Running::new(|options| options.limits.grace = Duration::from_secs(60));
    let response = server.send("/v1/chat/completions", &[], &short(true).to_string());
    server.ask_to_stop();
    let mut text = String::new();
    response.into_body().into_reader().read_to_string(&mut text).unwrap();
    assert!(text.trim_end().ends_with("[DONE]"), "{text}");
    server.stop().unwrap();
}

#[test]
fn what_is_not_complete_when_the_grace_is_over_is_told_so() {
    let mut server = Running::with(&["tiny"], slow(), |options| {
        options.limits.grace = Duration::from_millis(1);
    });
    let response = server.send("/v1/chat/completions", &[], &long(true).to_string());
    server.stop().unwrap();
    let mut text = String::new();
    response.into_body().into_reader().read_to_string(&mut text).unwrap();
    assert!(text.contains("the server is stopping"), "{text}");
}

#[test]
fn halting_ends_the_server() {
    let mut server = Running::new(|_| {});
    assert_eq!(server.get("/v1/halt").json()["terminated"], true);
    server.stop().unwrap();
}
