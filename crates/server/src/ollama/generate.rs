//! `POST /api/generate`

use super::chat::{loaded, thinking};
use super::{Tuning, format, lets_go, merge, timestamp_now, totals, totals_example};
use crate::answers::{Delta, End, Happening};
use crate::app::App;
use crate::ask::{Ask, Chat, Prompt, Source};
use crate::body::Json;
use crate::dialect::Dialect;
use crate::error::{ApiError, Kind, Result};
use crate::openai::{OneOrMany, or_default};
use crate::reply::{Form, Frame, Wording, stream};
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tangor_engine::text::Message;

/// A prompt to answer. Without one, the model is loaded, or let go.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
pub(crate) struct Request {
    /// Name of the model.
    pub(crate) model: Option<String>,
    /// The prompt.
    #[serde(deserialize_with = "or_default")]
    pub(crate) prompt: String,
    /// A text behind the answer, for models that were made to fill gaps: prompt and suffix are
    /// given to the model as they are.
    pub(crate) suffix: Option<String>,
    /// The system message.
    pub(crate) system: Option<String>,
    /// Refused: the model's own template is used, or none.
    pub(crate) template: Option<String>,
    /// Gives the prompt to the model as it is.
    pub(crate) raw: Option<bool>,
    /// Refused: models here read text.
    pub(crate) images: Option<Vec<String>>,
    /// Whether the answer streams, which it does unless this is false.
    pub(crate) stream: Option<bool>,
    /// `json`, or a JSON schema.
    #[schemars(schema_with = "super::format_schema")]
    pub(crate) format: Option<Value>,
    /// How tokens are chosen.
    #[serde(deserialize_with = "or_default")]
    pub(crate) options: Tuning,
    /// Refused: the server keeps no conversations.
    #[schemars(schema_with = "crate::shape::refused")]
    pub(crate) context: Option<Vec<i64>>,
    /// Whether a model that thinks does so, or how much.
    #[schemars(schema_with = "super::think_schema")]
    pub(crate) think: Option<Value>,
    /// 0 lets the model go afterwards.
    pub(crate) keep_alive: Option<Value>,
}

impl Request {
    fn check(&self) -> Result<()> {
        let refused = [
            ("template", self.template.as_ref().is_some_and(|text| !text.is_empty())),
            ("images", self.images.as_ref().is_some_and(|images| !images.is_empty())),
        ];
        if self.context.as_ref().is_some_and(|context| !context.is_empty()) {
            let message = "the server keeps no conversations: send all messages to /api/chat";
            return Err(ApiError::field("context", message));
        }
        match refused.iter().find(|(_, given)| *given) {
            Some((field, _)) => {
                Err(ApiError::field(*field, format!("{field} is not supported: leave it out")))
            }
            None => Ok(()),
        }
    }

    fn prompt(self) -> Result<Prompt> {
        if let Some(after) = self.suffix.filter(|text| !text.is_empty()) {
            return Ok(Prompt::Gaps { before: vec![self.prompt], after });
        }
        if self.raw.unwrap_or(false) {
            return Ok(Prompt::Plain(vec![Source::Text(self.prompt)]));
        }
        let system = self.system.filter(|text| !text.is_empty());
        let system = system.map(|text| Message::new("system", text));
        let messages = system.into_iter().chain([Message::new("user", self.prompt)]).collect();
        let variables = thinking(self.think.as_ref())?;
        Ok(Prompt::Chat(Box::new(Chat { messages, variables, ..Chat::default() })))
    }
}

/// What an answer looks like.
pub(crate) fn example() -> Value {
    merge(totals_example(), json!({"response": "", "thinking?": ""}))
}

/// Answers a prompt.
pub(crate) async fn create(
    State(app): State<Arc<App>>,
    Json(request): Json<Request>,
) -> Result<Response> {
    request.check()?;
    let begin = Instant::now();
    let goes = lets_go(request.keep_alive.as_ref());
    let lease = app.model(request.model.as_deref()).await?;
    let (loading, name) = (begin.elapsed(), lease.resident().id.clone());
    if request.prompt.is_empty() {
        return Ok(loaded(&app, &name, goes, json!({"response": ""})));
    }
    let streams = request.stream.unwrap_or(true);
    let ask = Ask {
        model: Some(name.clone()),
        knobs: request.options.knobs(),
        max_tokens: request.options.max_tokens(),
        stop: OneOrMany::list(request.options.stop.clone()),
        choices: 1,
        format: format(request.format.as_ref())?,
        prompt: request.prompt()?,
        ..Ask::default()
    };
    let mut answers = app.answer_with(lease, ask).await?;
    if goes {
        app.residents.leave(&name);
    }
    let lines = Lines { name, begin, loading, end: None };
    if streams {
        return Ok(stream(&app, Form::Lines, answers, lines));
    }
    let choices = answers.collect().await?;
    let Some(choice) = choices.first() else {
        return Err(ApiError::new(Kind::Internal, "no answer: this is a defect"));
    };
    let mut body = merge(lines.line(&choice.text), totals(begin, loading, &choice.end));
    if !choice.reasoning.is_empty() {
        body["thinking"] = choice.reasoning.clone().into();
    }
    Ok(axum::Json(body).into_response())
}

/// Words an answer as lines.
struct Lines {
    name: String,
    begin: Instant,
    loading: Duration,
    end: Option<End>,
}

impl Lines {
    fn line(&self, text: &str) -> Value {
        json!({
            "model": self.name,
            "created_at": timestamp_now(),
            "response": text,
            "done": false,
        })
    }
}

impl Wording for Lines {
    fn happened(&mut self, happening: Happening) -> Vec<Frame> {
        match happening {
            Happening::Delta { delta: Delta::Text(text), .. } => {
                vec![Frame::data(&self.line(&text))]
            }
            Happening::Delta { delta: Delta::Reasoning(text), .. } => {
                vec![Frame::data(&merge(self.line(""), json!({"thinking": text})))]
            }
            Happening::End { end, .. } => {
                self.end = Some(end);
                Vec::new()
            }
            _ => Vec::new(),
        }
    }

    fn end(&mut self) -> Vec<Frame> {
        let end = self.end.iter();
        end.map(|end| Frame::data(&merge(self.line(""), totals(self.begin, self.loading, end))))
            .collect()
    }

    fn failed(&mut self, error: &ApiError) -> Vec<Frame> {
        vec![Frame::data(&Dialect::Ollama.error(error))]
    }
}
