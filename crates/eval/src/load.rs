//! A server under load, as its clients see it: answers at once over HTTP, with the time to each
//! first token and between any two, and whether every answer is what it would be alone.
//!
//! Any server that has OpenAI's `/v1/completions` can be measured. Prompts share no beginnings, so
//! that nothing comes out of a prefix cache.

use crate::EvalError;
use crate::logits::quantile;
use serde::Serialize;
use serde_json::{Value, json};
use std::io::{BufRead, BufReader};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// What is asked, and how much at once.
#[derive(Clone, Debug)]
pub struct LoadSpec {
    /// Where the server is, as `http://localhost:13305`.
    pub url: String,
    /// Name of the model; `None`: the server's own.
    pub model: Option<String>,
    /// The server's API key.
    pub key: Option<String>,
    /// Answers at the same time.
    pub streams: usize,
    /// How long new ones are asked for.
    pub lasting: Duration,
    /// Words of each prompt, about as many tokens: none is rare.
    pub words: usize,
    /// Tokens of each answer.
    pub new_tokens: usize,
    /// Whether answers are compared with what the server says when it is asked nothing else.
    pub check: bool,
    /// Of a hundred clients, how many leave in the middle of their answer.
    pub leaving: usize,
}

/// What clients saw.
#[derive(Clone, Debug, Default, Serialize)]
pub struct LoadReport {
    /// Answers that were complete.
    pub answers: usize,
    /// Of these, answers that were compared with what they must be.
    pub checked: usize,
    /// Of these, answers that were something else.
    pub wrong: usize,
    /// Requests that were refused, or whose answer broke off.
    pub failed: usize,
    /// Clients that left before the end.
    pub left: usize,
    /// Tokens of the prompts of complete answers, as the server counts them.
    pub prompt_tokens: u64,
    /// Tokens of complete answers.
    pub new_tokens: u64,
    /// From the first request to the end of the last answer.
    pub seconds: f64,
    /// Tokens of complete answers per second.
    pub new_tps: f64,
    /// Seconds to the first token.
    pub ttft_s: Quantiles,
    /// Seconds between two tokens of an answer, as they arrive.
    pub gap_s: Quantiles,
    /// The first things that went wrong.
    pub errors: Vec<String>,
}

/// How a number is spread.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Quantiles {
    /// The middle.
    pub p50: f64,
    /// What one in a hundred exceeds.
    pub p99: f64,
    /// The greatest.
    pub max: f64,
}

impl Quantiles {
    fn of(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        let at = |share| quantile(&values, share);
        Self { p50: at(0.5), p99: at(0.99), max: at(1.0) }
    }
}

/// What goes wrong is told in words this often.
const ERRORS: usize = 8;
/// Questions whose answers are known beforehand.
const KNOWN: u64 = 24;
/// A server that says nothing for so long has failed.
const PATIENCE: Duration = Duration::from_secs(600);

/// What a client waits after a failure.
const BREATH: Duration = Duration::from_millis(100);

/// A request, and what must come of it.
struct Question {
    path: &'static str,
    body: Value,
    expected: Option<String>,
}

/// One answer as it arrived.
#[derive(Default)]
struct Heard {
    text: String,
    /// When pieces of it came, from the request on.
    times: Vec<f64>,
    prompt_tokens: u64,
    new_tokens: u64,
    complete: bool,
}

/// What all clients saw so far.
#[derive(Default)]
struct Seen {
    report: LoadReport,
    ttft: Vec<f64>,
    gaps: Vec<f64>,
}

/// Puts a server under load. `watch` is told the seconds gone and all of them; breaking ends it.
///
/// # Errors
/// [`EvalError::Server`] if it does not answer a first request; [`EvalError::Stopped`].
pub fn load(spec: &LoadSpec, watch: crate::Watch<'_>) -> Result<LoadReport, EvalError> {
    let client = Client::new(spec);
    let known = if spec.check { client.learn()? } else { Vec::new() };
    // Warms the server, and tells whether it is one.
    client.ask(&spec.fresh(0), usize::MAX).map_err(EvalError::Server)?;
    let (seen, number) = (Mutex::new(Seen::default()), AtomicU64::new(1));
    let (begin, stop) = (Instant::now(), AtomicBool::new(false));
    let whole = usize::try_from(spec.lasting.as_secs()).unwrap_or(usize::MAX);
    let stopped = std::thread::scope(|scope| {
        let work = || {
            while begin.elapsed() < spec.lasting && !stop.load(Ordering::Relaxed) {
                let number = number.fetch_add(1, Ordering::Relaxed);
                client.one(number, &known, &seen);
            }
        };
        let threads: Vec<_> = (0..spec.streams).map(|_| scope.spawn(work)).collect();
        while threads.iter().any(|thread| !thread.is_finished()) {
            let gone = usize::try_from(begin.elapsed().as_secs()).unwrap_or(usize::MAX);
            if watch(gone.min(whole), whole).is_break() {
                stop.store(true, Ordering::Relaxed);
                return true;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        false
    });
    if stopped {
        return Err(EvalError::Stopped);
    }
    let mut seen = seen.into_inner().unwrap_or_else(PoisonError::into_inner);
    let report = &mut seen.report;
    report.seconds = begin.elapsed().as_secs_f64();
    report.new_tps = report.new_tokens as f64 / report.seconds;
    (report.ttft_s, report.gap_s) = (Quantiles::of(seen.ttft), Quantiles::of(seen.gaps));
    Ok(seen.report)
}

impl LoadSpec {
    /// A prompt that begins as no other does.
    fn fresh(&self, number: u64) -> Question {
        let body = json!({"prompt": prompt(number, self.words), "temperature": 0, "seed": 0});
        Question { path: "/v1/completions", body: self.sized(body), expected: None }
    }

    /// One of a few prompts; every other one is answered with chosen, not the likeliest, words.
    fn known(&self, number: u64) -> Question {
        let mut body = json!({"prompt": prompt(u64::MAX - number, self.words), "seed": number});
        body["temperature"] = json!(if number.is_multiple_of(2) { 0.0 } else { 1.0 });
        Question { path: "/v1/completions", body: self.sized(body), expected: None }
    }

    /// A question that can have one answer only, which no other has.
    fn nonce(&self, number: u64) -> Question {
        let nonce = format!("{:016x}-{number}", mix(number));
        let schema = json!({"name": "nonce", "schema": {"const": nonce}});
        let mut body = json!({
            "messages": [{"role": "user", "content": format!("Say {nonce}.")}],
            "response_format": {"type": "json_schema", "json_schema": schema},
            "max_tokens": 128, "stream": true, "stream_options": {"include_usage": true},
        });
        self.name_model(&mut body);
        let expected = Some(Value::from(nonce).to_string());
        Question { path: "/v1/chat/completions", body, expected }
    }

    fn sized(&self, mut body: Value) -> Value {
        body["max_tokens"] = self.new_tokens.into();
        body["ignore_eos"] = true.into();
        body["stream"] = true.into();
        body["stream_options"] = json!({"include_usage": true});
        self.name_model(&mut body);
        body
    }

    fn name_model(&self, body: &mut Value) {
        if let Some(model) = &self.model {
            body["model"] = model.as_str().into();
        }
    }
}

/// Clients of one server.
struct Client<'a> {
    spec: &'a LoadSpec,
    agent: ureq::Agent,
}

impl<'a> Client<'a> {
    fn new(spec: &'a LoadSpec) -> Self {
        let config = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .timeout_recv_response(Some(PATIENCE))
            // A connection that was used may be closed by the server just when it is used again.
            .max_idle_connections(0);
        Self { spec, agent: config.build().into() }
    }

    /// Questions with the answers that the server gives when it is asked nothing else.
    fn learn(&self) -> Result<Vec<Question>, EvalError> {
        let learn = |number| {
            let mut question = self.spec.known(number);
            let heard = self.ask(&question, usize::MAX).map_err(EvalError::Server)?;
            question.expected = Some(heard.text);
            Ok(question)
        };
        (0..KNOWN).map(learn).collect()
    }

    /// Asks one question and notes what came of it.
    fn one(&self, number: u64, known: &[Question], seen: &Mutex<Seen>) {
        let dice = mix(number);
        let made;
        let question = match known.get((dice >> 8) as usize % known.len().max(1)) {
            Some(question) if !dice.is_multiple_of(4) => question,
            Some(_) => {
                made = self.spec.nonce(number);
                &made
            }
            None => {
                made = self.spec.fresh(number);
                &made
            }
        };
        let leaves = (dice >> 32) % 100 < self.spec.leaving as u64;
        let most = if leaves { (dice >> 40) as usize % self.spec.new_tokens } else { usize::MAX };
        let heard = self.ask(question, most);
        if heard.is_err() {
            // Whoever refuses, or is not there any more, is not asked a thousand times a second.
            std::thread::sleep(BREATH);
        }
        seen.lock().unwrap_or_else(PoisonError::into_inner).note(question, heard);
    }

    /// Asks, and listens to the end, or until so many pieces have come.
    fn ask(&self, question: &Question, most: usize) -> Result<Heard, String> {
        let url = format!("{}{}", self.spec.url.trim_end_matches('/'), question.path);
        let mut request = self.agent.post(url).header("content-type", "application/json");
        if let Some(key) = &self.spec.key {
            request = request.header("authorization", format!("Bearer {key}"));
        }
        let begin = Instant::now();
        let response = request.send(question.body.to_string()).map_err(|e| e.to_string())?;
        let status = response.status();
        let mut body = response.into_body();
        if !status.is_success() {
            let said = body.read_to_string().unwrap_or_default();
            return Err(format!("{status}: {said}"));
        }
        let mut heard = Heard::default();
        for line in BufReader::new(body.into_reader()).lines() {
            let line = line.map_err(|error| format!("the answer broke off: {error}"))?;
            let Some(data) = line.strip_prefix("data: ") else { continue };
            heard.take(data, begin)?;
            if heard.times.len() > most {
                return Ok(heard);
            }
        }
        match heard.complete {
            true => Ok(heard),
            false => Err("the answer broke off without a word".into()),
        }
    }
}

impl Heard {
    /// Takes an event of a stream.
    fn take(&mut self, data: &str, begin: Instant) -> Result<(), String> {
        if data == "[DONE]" {
            self.complete = true;
            return Ok(());
        }
        let event: Value = serde_json::from_str(data).map_err(|_| format!("no JSON: {data}"))?;
        if !event["error"].is_null() {
            return Err(event["error"].to_string());
        }
        let choice = &event["choices"][0];
        let piece = choice["text"].as_str().or_else(|| choice["delta"]["content"].as_str());
        if let Some(piece) = piece.filter(|piece| !piece.is_empty()) {
            self.text.push_str(piece);
            self.times.push(begin.elapsed().as_secs_f64());
        }
        let count = |name: &str| event["usage"][name].as_u64();
        self.prompt_tokens = count("prompt_tokens").unwrap_or(self.prompt_tokens);
        self.new_tokens = count("completion_tokens").unwrap_or(self.new_tokens);
        Ok(())
    }
}

impl Seen {
    fn note(&mut self, question: &Question, heard: Result<Heard, String>) {
        let report = &mut self.report;
        let heard = match heard {
            Ok(heard) => heard,
            Err(why) => {
                report.failed += 1;
                return report.say(why);
            }
        };
        self.ttft.extend(heard.times.first());
        self.gaps.extend(heard.times.windows(2).map(|pair| pair[1] - pair[0]));
        if !heard.complete {
            report.left += 1;
            return;
        }
        report.answers += 1;
        report.prompt_tokens += heard.prompt_tokens;
        report.new_tokens += heard.new_tokens;
        if let Some(expected) = &question.expected {
            report.checked += 1;
            if heard.text != *expected {
                report.wrong += 1;
                report.say(format!("{expected:?} was expected, and {:?} came", heard.text));
            }
        }
    }
}

impl LoadReport {
    fn say(&mut self, why: String) {
        if self.errors.len() < ERRORS {
            self.errors.push(why);
        }
    }
}

/// Words, of which the first ones are found in no other prompt.
fn prompt(number: u64, words: usize) -> String {
    const WORDS: [&str; 16] = [
        "river", "stone", "paper", "green", "seven", "window", "garden", "letter", "winter",
        "music", "bridge", "silver", "market", "summer", "copper", "forest",
    ];
    let mut text = format!("Note {:08x}:", mix(number) >> 32);
    for at in 0..words.saturating_sub(4) as u64 {
        text.push(' ');
        text.push_str(WORDS[(mix(number ^ at << 40) % 16) as usize]);
    }
    text
}

/// Numbers that look random and are the same every time (splitmix64).
fn mix(number: u64) -> u64 {
    let z = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::ops::ControlFlow;

    /// A server that answers every request with what `answer` makes of its number and its body.
    fn server(answer: fn(usize, &Value) -> String) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap());
        std::thread::spawn(move || {
            for (number, stream) in listener.incoming().enumerate() {
                std::thread::spawn(move || serve(stream.unwrap(), |body| answer(number, body)));
            }
        });
        url
    }

    fn serve(mut stream: TcpStream, answer: impl Fn(&Value) -> String) {
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        let (mut line, mut length) = (String::new(), 0);
        while line != "\r\n" {
            line.clear();
            reader.read_line(&mut line).unwrap();
            let field = line.to_ascii_lowercase();
            length = field
                .strip_prefix("content-length:")
                .map_or(length, |value| value.trim().parse().unwrap());
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body).unwrap();
        let text = answer(&serde_json::from_slice(&body).unwrap());
        let head = "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n";
        // A client that has left is part of the test.
        let _ = stream.write_all(format!("{head}{text}").as_bytes());
    }

    /// A stream of two pieces: what was asked, and `end`.
    fn events(body: &Value, end: &str) -> String {
        let wanted = &body["response_format"]["json_schema"]["schema"]["const"];
        let piece = |text: &str| match body["messages"].is_null() {
            true => json!({"choices": [{"text": text}]}),
            false => json!({"choices": [{"delta": {"content": text}}]}),
        };
        let text = match wanted {
            Value::Null => format!("{}, {}", body["prompt"], body["temperature"]),
            wanted => wanted.to_string(),
        };
        let usage = json!({"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 2}});
        format!(
            "data: {}\n\ndata: {}\n\ndata: {usage}\n\ndata: [DONE]\n\n",
            piece(&text),
            piece(end)
        )
    }

    /// A load that lasts until more than a hundred questions were asked, however slow the machine.
    fn run(answer: fn(usize, &Value) -> String) -> LoadReport {
        let mut lasting = Duration::from_millis(300);
        loop {
            let spec = LoadSpec {
                url: server(answer),
                model: None,
                key: None,
                streams: 4,
                lasting,
                words: 8,
                new_tokens: 4,
                check: true,
                leaving: 20,
            };
            let report = load(&spec, &mut |_, _| ControlFlow::Continue(())).unwrap();
            if report.answers + report.left + report.failed > 100 {
                return report;
            }
            lasting *= 4;
        }
    }

    #[test]
    fn what_a_server_says_is_counted_and_compared() {
        let report = run(|_, body| events(body, ""));
        assert!(report.answers > 20 && report.left > 0, "{report:?}");
        let bad = (report.wrong, report.failed, report.errors.len());
        assert_eq!((report.checked, bad), (report.answers, (0, 0, 0)), "{report:?}");
        assert_eq!(report.new_tokens, 2 * report.answers as u64);
        assert!(report.ttft_s.p50 > 0.0 && report.ttft_s.p50 <= report.ttft_s.max);
    }

    #[test]
    fn answers_that_differ_and_answers_that_break_off_are_found() {
        let mixed_up = run(|number, body| events(body, if number > 40 { "?" } else { "" }));
        assert!(mixed_up.wrong > 0 && mixed_up.failed == 0, "{mixed_up:?}");
        let broken = run(|number, body| {
            let whole = events(body, "");
            let end = if number > 40 { whole.len() - 10 } else { whole.len() };
            whole[..end].to_owned()
        });
        assert!(broken.failed > 0 && broken.wrong == 0, "{broken:?}");
        assert!(broken.errors[0].contains("broke off"), "{broken:?}");
    }

    #[test]
    fn a_server_that_is_none_is_told_so() {
        let spec = LoadSpec {
            url: server(|_, _| "data: {\"error\": \"no\"}\n\n".into()),
            model: None,
            key: None,
            streams: 1,
            lasting: Duration::ZERO,
            words: 8,
            new_tokens: 1,
            check: false,
            leaving: 0,
        };
        let error = load(&spec, &mut |_, _| ControlFlow::Continue(())).unwrap_err();
        assert_eq!(
            error.to_string(),
            "the server does not answer (\"no\"): check its URL, and that it has /v1/completions"
        );
    }
}
