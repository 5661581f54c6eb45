//! A line for every request, written when all of its answer has gone, or its client has: who asked
//! for what, what became of it, and how long that took. What was said is written only if the
//! server's owner wants it, and keys never are.

use crate::answers::{Reason, new_id};
use crate::app::App;
use crate::client::Client;
use crate::residents::now;
use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderName, HeaderValue};
use axum::middleware::Next;
use axum::response::Response;
use serde_json::{Map, Value, json};
use std::fmt;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;
use tangor_engine::Usage;
use tangor_engine::text::strftime;

/// Names a request, in both directions.
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// Most characters of an id that a client gives.
const ID_CHARS: usize = 128;

/// Where lines go, and what they say.
#[derive(Clone)]
pub struct Log {
    /// How they are written.
    pub form: LogForm,
    /// Whether they hold prompts and answers.
    pub texts: bool,
    /// Takes a line, without its end.
    pub write: Arc<dyn Fn(&str) + Send + Sync>,
}

/// How lines are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogForm {
    /// For people.
    Human,
    /// A JSON object each.
    Json,
}

impl fmt::Debug for Log {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Log").field("form", &self.form).field("texts", &self.texts).finish()
    }
}

tokio::task_local! {
    /// The entry of the request that a task answers.
    static ENTRY: Entry;
}

/// What will be written of a request, once the last of those who know of it lets go.
#[derive(Clone)]
pub(crate) struct Entry(Option<Arc<Open>>);

/// An entry that is not written yet.
struct Open {
    log: Log,
    begin: Instant,
    facts: Mutex<Facts>,
}

#[derive(Default)]
struct Facts {
    id: String,
    client: Option<IpAddr>,
    method: String,
    route: Option<String>,
    /// `None`: the client left before there was one.
    status: Option<u16>,
    model: Option<String>,
    usage: Usage,
    ttft: Option<f64>,
    finish: Option<&'static str>,
    prompts: Vec<String>,
    answers: Vec<String>,
}

/// Names every request, and has an entry written for it.
pub(crate) async fn record(
    State(app): State<Arc<App>>,
    mut request: Request,
    next: Next,
) -> Response {
    let id = request_id(&request);
    let client: Option<Client> = request.extensions_mut().remove();
    let entry = Entry(app.options.log.as_ref().map(|log| {
        let facts = Facts {
            id: id.clone(),
            client: client.map(|Client(address)| address),
            method: request.method().to_string(),
            // The path itself may hold anything.
            route: request.extensions().get::<MatchedPath>().map(|path| path.as_str().to_owned()),
            ..Facts::default()
        };
        Arc::new(Open { log: log.clone(), begin: Instant::now(), facts: Mutex::new(facts) })
    }));
    let answered = ENTRY.scope(entry.clone(), next.run(request));
    let mut response = Client::scope(client, answered).await;
    entry.note(|facts| facts.status = Some(response.status().as_u16()));
    if let Ok(id) = HeaderValue::try_from(id) {
        response.headers_mut().insert(REQUEST_ID, id);
    }
    response
}

/// The id that the client gave, if it is one, and else a new one.
fn request_id(request: &Request) -> String {
    let given = request.headers().get(REQUEST_ID).and_then(|value| value.to_str().ok());
    let sound = |id: &&str| {
        (1..=ID_CHARS).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_graphic())
    };
    given.filter(sound).map_or_else(|| new_id("req_"), str::to_owned)
}

impl Entry {
    /// The entry of the request that this task answers.
    pub(crate) fn current() -> Self {
        ENTRY.try_with(Self::clone).unwrap_or(Self(None))
    }

    fn note(&self, change: impl FnOnce(&mut Facts)) {
        if let Some(open) = &self.0 {
            change(&mut open.facts());
        }
    }

    /// Whether prompts and answers are written.
    pub(crate) fn has_texts(&self) -> bool {
        self.0.as_ref().is_some_and(|open| open.log.texts)
    }

    /// An answer begins: by which model, to so many tokens.
    pub(crate) fn begins(&self, model: &str, prompt: usize) {
        self.note(|facts| {
            facts.model = Some(model.to_owned());
            facts.usage.prompt = prompt;
        });
    }

    /// What is answered; and where the answers will be, one after the other.
    pub(crate) fn prompts(&self, prompts: Vec<String>, answers: usize) {
        self.note(|facts| {
            facts.prompts = prompts;
            facts.answers = vec![String::new(); answers];
        });
    }

    /// A token has come, with the text that it completes.
    pub(crate) fn token(&self, choice: usize, text: &str) {
        let Some(open) = &self.0 else { return };
        let mut facts = open.facts();
        facts.ttft.get_or_insert_with(|| open.begin.elapsed().as_secs_f64());
        facts.usage.completion += 1;
        if let Some(answer) = facts.answers.get_mut(choice) {
            answer.push_str(text);
        }
    }

    /// An answer has ended, after a last piece of text.
    pub(crate) fn ends(&self, choice: usize, text: &str, reason: &Reason, cached: usize) {
        self.note(|facts| {
            facts.usage.cached += cached;
            facts.finish = Some(match reason {
                Reason::Stop | Reason::StopText(_) => "stop",
                Reason::Length => "length",
                Reason::ToolCalls => "tool_calls",
            });
            if let Some(answer) = facts.answers.get_mut(choice) {
                answer.push_str(text);
            }
        });
    }

    /// An answer was ended early by the server.
    pub(crate) fn fails(&self) {
        self.note(|facts| facts.finish = Some("error"));
    }
}

impl Open {
    fn facts(&self) -> MutexGuard<'_, Facts> {
        self.facts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        let duration = self.begin.elapsed().as_secs_f64();
        let facts = self.facts();
        let line = match self.log.form {
            LogForm::Json => facts.json(duration).to_string(),
            LogForm::Human => facts.human(duration),
        };
        (self.log.write)(&line);
    }
}

impl Facts {
    /// How an answer ended; one that did not was left by its client.
    fn finish(&self) -> Option<&'static str> {
        let answered = self.model.is_some() || self.status.is_none();
        self.finish.or_else(|| answered.then_some("client left"))
    }

    fn json(&self, duration: f64) -> Value {
        let mut line = Map::new();
        let mut put = |name: &str, value: Value| {
            if !value.is_null() {
                line.insert(name.to_owned(), value);
            }
        };
        put("time", moment(now()).into());
        put("id", self.id.clone().into());
        put("client", self.client.map(|client| client.to_string()).into());
        put("method", self.method.clone().into());
        put("route", self.route.clone().into());
        put("status", self.status.into());
        put("duration_s", rounded(duration));
        put("model", self.model.clone().into());
        if self.model.is_some() {
            put("prompt_tokens", self.usage.prompt.into());
            put("cached_tokens", self.usage.cached.into());
            put("completion_tokens", self.usage.completion.into());
            put("ttft_s", self.ttft.map_or(Value::Null, rounded));
        }
        put("finish", self.finish().into());
        if !self.prompts.is_empty() {
            put("prompts", json!(self.prompts));
            put("answers", json!(self.answers));
        }
        line.into()
    }

    fn human(&self, duration: f64) -> String {
        let status = self.status.map_or("---".to_owned(), |status| status.to_string());
        let client = self.client.map_or("-".to_owned(), |client| client.to_string());
        let route = self.route.as_deref().unwrap_or("-");
        let mut line = format!(
            "{} {status} {} {route}  {:.0} ms  {client} {}",
            moment(now()),
            self.method,
            duration * 1e3,
            self.id
        );
        if let Some(model) = &self.model {
            let Usage { prompt, cached, completion, .. } = self.usage;
            line += &format!("  {model}: {prompt} tokens ({cached} cached) + {completion}");
            line +=
                &self.ttft.map_or(String::new(), |ttft| format!(", first {:.0} ms", ttft * 1e3));
        }
        line += &self.finish().map_or(String::new(), |finish| format!(", {finish}"));
        for (name, texts) in [("prompt", &self.prompts), ("answer", &self.answers)] {
            texts.iter().for_each(|text| line += &format!("\n  {name} {text:?}"));
        }
        line
    }
}

fn moment(seconds: u64) -> String {
    strftime("%Y-%m-%dT%H:%M:%SZ", i64::try_from(seconds).unwrap_or(i64::MAX))
}

/// To microseconds.
fn rounded(seconds: f64) -> Value {
    ((seconds * 1e6).round() / 1e6).into()
}
