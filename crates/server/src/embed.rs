//! Embeddings: what texts mean to a model, as vectors of length 1, whatever dialect asks.

use crate::answers::Running;
use crate::app::App;
use crate::ask::Source;
use crate::client;
use crate::error::{ApiError, Kind, Result};
use crate::residents::{Lease, Resident};
use std::sync::Arc;
use tangor_engine::text::Specials;
use tangor_engine::{EngineError, Event, Pooling, Request};
use tokio::sync::mpsc;
use tokio::time::Instant;

/// What is to be embedded.
#[derive(Clone, Debug)]
pub(crate) struct Texts {
    pub(crate) sources: Vec<Source>,
    pub(crate) pooling: Pooling,
    /// Whether a text that is too long is cut at its end, and not refused.
    pub(crate) truncate: bool,
    /// Numbers of a vector that the client expects.
    pub(crate) dimensions: Option<usize>,
}

/// A vector per text, in order.
#[derive(Debug)]
pub(crate) struct Embedded {
    pub(crate) vectors: Vec<Vec<f32>>,
    /// Tokens of all texts.
    pub(crate) tokens: usize,
}

/// Embeds texts.
///
/// # Errors
/// Whatever is wrong with them; that the model cannot, or that there is no room.
pub(crate) async fn embed(app: &Arc<App>, lease: &Lease, texts: Texts) -> Result<Embedded> {
    app.check_open()?;
    check(app, lease.resident(), &texts)?;
    let resident = Arc::clone(lease.resident());
    let pooling = texts.pooling;
    let prompts = app.preparing(move |_| prompts(&resident, &texts)).await?;
    let tokens = prompts.iter().map(Vec::len).sum();
    let vectors = run(app, lease.resident(), prompts, pooling).await?;
    Ok(Embedded { vectors, tokens })
}

fn check(app: &App, resident: &Resident, texts: &Texts) -> Result<()> {
    let refuse = |field: &str, message: String| Err(ApiError::field(field, message));
    let (count, most) = (texts.sources.len(), app.limits().inputs);
    if count > most {
        return refuse("input", format!("input has {count} texts: at most {most} are accepted"));
    }
    let width = resident.model().hyper().hidden;
    match texts.dimensions {
        Some(wanted) if wanted != width => {
            let what = "what is cut off a vector of this model is part of its meaning";
            refuse(
                "dimensions",
                format!("dimensions is {wanted} and the model's vectors have {width}: {what}"),
            )
        }
        _ => Ok(()),
    }
}

/// Every text's tokens.
fn prompts(resident: &Resident, texts: &Texts) -> Result<Vec<Vec<u32>>> {
    let room = resident.model().context();
    let tokens = |(index, source): (usize, &Source)| {
        let tokens = match source {
            Source::Tokens(tokens) => cut(tokens.clone(), room, texts.truncate),
            Source::Text(text) if text.is_empty() => Vec::new(),
            Source::Text(text) => {
                let tokenizer = resident.tokenizer()?;
                let frame = tokenizer.frame(Vec::new()).len();
                let tokens = tokenizer.encode(text, Specials::AsText)?;
                tokenizer.frame(cut(tokens, room.saturating_sub(frame), texts.truncate))
            }
        };
        let (count, number) = (tokens.len(), index + 1);
        if count == 0 {
            let message = format!("text {number} of input is empty: give at least one token");
            return Err(ApiError::field("input", message));
        }
        if count > room {
            let message = format!(
                "text {number} of input has {count} tokens and the model's context holds {room}: \
                 shorten it"
            );
            return Err(ApiError::field("input", message).code("context_length_exceeded"));
        }
        Ok(tokens)
    };
    texts.sources.iter().enumerate().map(tokens).collect()
}

/// As many tokens as there is room for, where they may be cut.
fn cut(mut tokens: Vec<u32>, room: usize, truncate: bool) -> Vec<u32> {
    if truncate {
        tokens.truncate(room);
    }
    tokens
}

/// Has the engine embed prompts, a few at a time: others want room, too. What still runs is
/// cancelled when this is dropped.
async fn run(
    app: &Arc<App>,
    resident: &Resident,
    prompts: Vec<Vec<u32>>,
    pooling: Pooling,
) -> Result<Vec<Vec<f32>>> {
    let (sender, mut events) = mpsc::unbounded_channel();
    let mut sender = Some(sender);
    let deadline = Instant::now() + app.limits().answer_time;
    let mut abort = app.aborting();
    let client = client::number(None);
    let mut vectors = vec![Vec::new(); prompts.len()];
    let mut rest = prompts.into_iter().enumerate().peekable();
    let mut running: Vec<(usize, Running)> = Vec::new();
    loop {
        while running.len() < app.limits().embedding
            && let (Some((index, prompt)), Some(sender)) = (rest.peek().cloned(), sender.clone())
        {
            let embed = Some(pooling);
            let request = Request { prompt, embed, client, ..Request::default() };
            // A reader that is gone has cancelled already.
            let sink = move |event| drop(sender.send((index, event)));
            match resident.model().generate_with(request, sink) {
                Ok(cancel) => running.push((index, Running(cancel))),
                // Where some of its own are in work, there will be room.
                Err(EngineError::Busy { .. }) if !running.is_empty() => break,
                Err(error) => return Err(error.into()),
            }
            rest.next();
        }
        if rest.peek().is_none() {
            // What ends without a word is heard to end.
            sender = None;
        }
        if running.is_empty() {
            return Ok(vectors);
        }
        let event = tokio::select! {
            biased;
            event = events.recv() => event,
            () = tokio::time::sleep_until(deadline) => {
                let message = "the embeddings took too long: send fewer texts at once";
                return Err(ApiError::new(Kind::Timeout, message));
            }
            _ = abort.wait_for(|abort| *abort) => {
                return Err(ApiError::new(Kind::Unavailable, "the server is stopping"));
            }
        };
        let lost = || EngineError::Lost("its thread ended".into());
        let (index, event) = event.ok_or_else(lost)?;
        match event? {
            Event::Embedding(vector) => vectors[index] = vector,
            Event::Done(end) => {
                app.metrics.embedded(&resident.id, &end.usage);
                running.retain(|(own, _)| *own != index);
            }
            _ => {}
        }
    }
}
