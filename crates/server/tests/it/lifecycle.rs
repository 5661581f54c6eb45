//! Requests that are too many, too long, or left by their clients; and the end of the server.

use crate::support::*;
use serde_json::json;
use std::io::Read;
use std::time::{Duration, Instant};

/// An answer that takes a while on the oracle.
fn long(stream: bool) -> String {
    json!({"messages": said("Hi"), "max_tokens": 1900, "ignore_eos": true, "stream": stream})
        .to_string()
}

/// An answer that is soon complete.
fn short(stream: bool) -> String {
    json!({"messages": said("Hi"), "max_tokens": 40, "stream": stream}).to_string()
}

/// Waits until no request uses the model.
fn wait_idle(server: &Running, at_most: Duration) {
    let begin = Instant::now();
    while server.get("/v1/slots").json()[0]["is_processing"] != false {
        assert!(begin.elapsed() < at_most, "a request is still running");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn more_requests_than_fit_are_told_when_to_come_again() {
    let server = Running::new(|_| {});
    // The test's loader takes 8 at a time.
    let streams: Vec<_> =
        (0..8).map(|_| server.send("/v1/chat/completions", &[], &long(true))).collect();
    let refused = server.post_with("/v1/chat/completions", &[], &long(false));
    assert_eq!(refused.status, 429, "{}", refused.text);
    assert_eq!(refused.header("retry-after"), Some("1"));
    assert_eq!(refused.any_json()["error"]["type"], "rate_limit_error");
    drop(streams);
    let begin = Instant::now();
    while server.post_with("/v1/chat/completions", &[], &short(false)).status != 200 {
        assert!(begin.elapsed() < Duration::from_secs(5), "no place has become free");
    }
}

#[test]
fn a_client_that_leaves_frees_its_place() {
    let server = Running::new(|_| {});
    for stream in [true, false] {
        for _ in 0..20 {
            if stream {
                let response = server.send("/v1/chat/completions", &[], &long(true));
                let mut first = [0; 64];
                response.into_body().into_reader().read_exact(&mut first).unwrap();
            } else {
                leave(&server);
            }
        }
        wait_idle(&server, Duration::from_secs(5));
    }
    // The engine hears of the last ones after its step.
    let end = Instant::now() + Duration::from_secs(5);
    let ask = || server.post_with("/v1/chat/completions", &[], &short(false)).status;
    let status = std::iter::repeat_with(ask).find(|status| *status != 429 || Instant::now() > end);
    assert_eq!(status, Some(200));
}

#[test]
fn whoever_asks_much_does_not_keep_others_waiting() {
    let server = Running::new(|_| {});
    let ask = |user: &str| {
        let body = json!({"messages": said("Hi"), "max_tokens": 400, "ignore_eos": true,
                          "stream": true, "user": user});
        server.send("/v1/chat/completions", &[], &body.to_string())
    };
    // Four of the eight run, and four wait.
    let many: Vec<_> = (0..7).map(|_| ask("many")).collect();
    let one = ask("one");
    let ended = |response: ureq::http::Response<ureq::Body>| {
        let mut text = String::new();
        response.into_body().into_reader().read_to_string(&mut text).unwrap();
        assert!(text.ends_with("data: [DONE]\n\n"), "{text}");
        Instant::now()
    };
    let (one, many) = std::thread::scope(|scope| {
        let many: Vec<_> = many.into_iter().map(|r| scope.spawn(move || ended(r))).collect();
        let one = scope.spawn(move || ended(one)).join().unwrap();
        (one, many.into_iter().map(|thread| thread.join().unwrap()).collect::<Vec<_>>())
    });
    let before = many.iter().filter(|end| **end < one).count();
    assert!(before <= 5, "{before} of the other's seven answers came first");
}

#[test]
fn a_stream_counts_until_it_ends() {
    let server = Running::new(|_| {});
    let counter = |name: &str| {
        let metrics = server.get("/metrics").text;
        let line = metrics.lines().find_map(|line| line.strip_prefix(name));
        line.map_or(0.0, |value| value.trim().parse::<f64>().unwrap())
    };
    let ended = "tangor_requests_total{route=\"/chat/completions\",status=\"200\"}";
    let response = server.send("/v1/chat/completions", &[], &long(true));
    // The other one asks for the counters.
    assert_eq!(counter("tangor_active_requests"), 2.0);
    assert_eq!(counter(ended), 0.0);
    drop(response);
    let begin = Instant::now();
    while counter(ended) < 1.0 || counter("tangor_active_requests") > 1.0 {
        assert!(begin.elapsed() < Duration::from_secs(5), "{}", server.get("/metrics").text);
        std::thread::sleep(Duration::from_millis(5));
    }
    let sum =
        "gen_ai_server_request_duration_seconds_sum{gen_ai_operation_name=\"/chat/completions\"}";
    assert!(counter(sum) > 0.0);
}

/// Asks, and closes the connection before there is an answer.
fn leave(server: &Running) {
    use std::io::Write;
    let address = server.base.trim_start_matches("http://");
    let mut stream = std::net::TcpStream::connect(address).unwrap();
    let body = long(false);
    let head = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: \
         application/json\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(format!("{head}{body}").as_bytes()).unwrap();
}

#[test]
fn an_answer_that_takes_too_long_is_ended() {
    let server = Running::new(|options| options.limits.answer_time = Duration::from_millis(1));
    let reply = server.post_with("/v1/chat/completions", &[], &long(false));
    assert_eq!(reply.status, 504, "{}", reply.text);
    let events = server.post_with("/v1/chat/completions", &[], &long(true)).events();
    assert!(events.last().unwrap().1["error"]["message"].as_str().unwrap().contains("too long"));
    wait_idle(&server, Duration::from_secs(5));
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
    let response = server.send("/v1/chat/completions", &[], &short(true));
    server.ask_to_stop();
    let mut text = String::new();
    response.into_body().into_reader().read_to_string(&mut text).unwrap();
    assert!(text.trim_end().ends_with("[DONE]"), "{text}");
    server.stop().unwrap();
}

#[test]
fn what_is_not_complete_when_the_grace_is_over_is_told_so() {
    let mut server = Running::new(|options| options.limits.grace = Duration::from_millis(1));
    let response = server.send("/v1/chat/completions", &[], &long(true));
    let begin = Instant::now();
    server.stop().unwrap();
    assert!(begin.elapsed() < Duration::from_secs(5));
    let mut text = String::new();
    response.into_body().into_reader().read_to_string(&mut text).unwrap();
    assert!(text.contains("the server is stopping") || text.ends_with("[DONE]\n\n"), "{text}");
}

#[test]
fn halting_ends_the_server() {
    let mut server = Running::new(|_| {});
    assert_eq!(server.get("/v1/halt").json()["terminated"], true);
    server.stop().unwrap();
}
