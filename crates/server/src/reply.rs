//! Answers that stream: one loop for every dialect, which only words what happens.

use crate::answers::{Answers, Happening};
use crate::app::App;
use crate::error::ApiError;
use crate::log::Entry;
use axum::body::{Body, Bytes};
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use futures_core::Stream;
use serde_json::Value;
use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::{Interval, MissedTickBehavior};

/// After so long without a word, a stream of events says that it is still there: proxies close
/// connections that are silent.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// How a dialect words what happens.
pub(crate) trait Wording: Send + 'static {
    /// Before anything happens.
    fn begin(&mut self) -> Vec<Frame> {
        Vec::new()
    }

    /// Something happened.
    fn happened(&mut self, happening: Happening) -> Vec<Frame>;

    /// Every answer is complete.
    fn end(&mut self) -> Vec<Frame>;

    /// An answer ended early, and nothing follows.
    fn failed(&mut self, error: &ApiError) -> Vec<Frame>;
}

/// One event of a stream.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Frame {
    event: Option<&'static str>,
    data: String,
}

impl Frame {
    /// An event without a name.
    pub(crate) fn data(data: &Value) -> Self {
        Self { event: None, data: data.to_string() }
    }

    /// An event with a name.
    pub(crate) fn named(event: &'static str, data: &Value) -> Self {
        Self { event: Some(event), data: data.to_string() }
    }

    /// What OpenAI's streams end with.
    pub(crate) fn done() -> Self {
        Self { event: None, data: "[DONE]".to_owned() }
    }
}

/// How events are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// Server-sent events.
    Events,
    /// A line of JSON each.
    Lines,
}

impl Form {
    /// What it is called over HTTP.
    pub(crate) fn content_type(self) -> &'static str {
        match self {
            Self::Events => "text/event-stream",
            Self::Lines => "application/x-ndjson",
        }
    }

    fn write(self, frame: &Frame, out: &mut String) {
        match self {
            Self::Events => {
                if let Some(event) = frame.event {
                    out.push_str(&format!("event: {event}\n"));
                }
                out.push_str(&format!("data: {}\n\n", frame.data));
            }
            Self::Lines => {
                out.push_str(&frame.data);
                out.push('\n');
            }
        }
    }
}

/// Streams answers. They are cancelled when the client leaves.
pub(crate) fn stream(
    app: &App,
    form: Form,
    mut answers: Answers,
    mut wording: impl Wording,
) -> Response {
    let (frames, response) = channel(app, form);
    tokio::spawn(async move {
        let mut say = wording.begin();
        loop {
            if !frames.send(&say).await {
                return;
            }
            let happening = tokio::select! {
                biased;
                () = frames.gone() => return,
                happening = answers.next() => happening,
            };
            say = match happening {
                Ok(Some(happening)) => wording.happened(happening),
                Ok(None) => break,
                Err(error) => {
                    frames.send(&wording.failed(&error)).await;
                    return;
                }
            };
        }
        frames.send(&wording.end()).await;
    });
    response
}

/// A response whose frames are sent one by one.
pub(crate) fn channel(app: &App, form: Form) -> (Frames, Response) {
    let (sender, receiver) = mpsc::channel(app.limits().pieces);
    let alive = (form == Form::Events).then(|| {
        let mut alive = tokio::time::interval(KEEP_ALIVE);
        alive.set_missed_tick_behavior(MissedTickBehavior::Delay);
        alive.reset();
        alive
    });
    let body = Body::from_stream(Sent { receiver, alive, _entry: Entry::current() });
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static(form.content_type())),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-cache")),
    ];
    (Frames { sender, form }, (headers, body).into_response())
}

/// Where frames go.
pub(crate) struct Frames {
    sender: mpsc::Sender<Bytes>,
    form: Form,
}

impl Frames {
    /// Sends frames, and waits for a slow client; `false` if it has gone.
    pub(crate) async fn send(&self, frames: &[Frame]) -> bool {
        if frames.is_empty() {
            return !self.sender.is_closed();
        }
        let mut text = String::new();
        frames.iter().for_each(|frame| self.form.write(frame, &mut text));
        self.sender.send(text.into()).await.is_ok()
    }

    /// Sends a frame from a thread that may block; `false` if the client has gone.
    pub(crate) fn send_blocking(&self, frame: &Frame) -> bool {
        let mut text = String::new();
        self.form.write(frame, &mut text);
        self.sender.blocking_send(text.into()).is_ok()
    }

    /// Waits until the client has gone.
    pub(crate) async fn gone(&self) {
        self.sender.closed().await;
    }

    /// Whether the client has gone.
    pub(crate) fn is_gone(&self) -> bool {
        self.sender.is_closed()
    }
}

/// The body of a stream.
struct Sent {
    receiver: mpsc::Receiver<Bytes>,
    alive: Option<Interval>,
    /// Written when the stream has ended.
    _entry: Entry,
}

impl Stream for Sent {
    type Item = Result<Bytes, Infallible>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if let Poll::Ready(next) = self.receiver.poll_recv(context) {
            if let Some(alive) = &mut self.alive {
                alive.reset();
            }
            return Poll::Ready(next.map(Ok));
        }
        match &mut self.alive {
            Some(alive) => {
                alive.poll_tick(context).map(|_| Some(Ok(Bytes::from_static(b": alive\n\n"))))
            }
            None => Poll::Pending,
        }
    }
}
