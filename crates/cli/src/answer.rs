//! An answer while it is written: streamed to whoever shows it, stopped by Ctrl-C.

use crate::error::{Failure, Outcome};
use crate::load::Loaded;
use crate::progress::Progress;
use crate::{interrupt, terminal};
use std::time::{Duration, Instant};
use tangor_engine::plan::Stage;
use tangor_engine::{Event, Finish, Request, Summary};

/// Reading a prompt shows its progress once it has taken this long.
const PATIENCE: Duration = Duration::from_millis(700);

/// A finished answer.
#[derive(Debug)]
pub(crate) struct Answer {
    /// All of its text.
    pub(crate) text: String,
    /// Its tokens.
    pub(crate) tokens: Vec<u32>,
    /// How it ended and what it took.
    pub(crate) summary: Summary,
    /// Whether the user ended it.
    pub(crate) interrupted: bool,
}

/// Has a model answer and hands every piece of text to `show` as soon as it is certain.
///
/// The first Ctrl-C ends the answer; what has been written until then is the answer.
pub(crate) fn stream(
    loaded: &Loaded,
    request: Request,
    show: &mut dyn FnMut(&str) -> Outcome,
) -> Outcome<Answer> {
    let begin = Instant::now();
    let generation = loaded.model.generate(request)?;
    let canceller = generation.canceller();
    let ctrl_c = interrupt::listen_and(move || canceller.cancel());
    let mut reading: Option<Progress> = None;
    let (mut text, mut tokens) = (String::new(), Vec::new());
    let mut say = |piece: &str, text: &mut String| {
        text.push_str(piece);
        if piece.is_empty() { Ok(()) } else { show(piece) }
    };
    for event in generation {
        match event? {
            Event::Prefill { done, total } => {
                if reading.is_none() && begin.elapsed() > PATIENCE && done < total {
                    reading = Some(Progress::share("reading the prompt"));
                }
                if let Some(progress) = &mut reading {
                    progress.set(done as u64, total as u64);
                }
            }
            Event::Scored(_) | Event::Embedding(_) => {}
            Event::Replanned { lost, why } => {
                drop(reading.take());
                terminal::note(&format!("{why}: going on without {lost}"));
            }
            Event::Token(token) => {
                drop(reading.take());
                tokens.push(token.id);
                say(&token.text, &mut text)?;
            }
            Event::Done(summary) => {
                drop(reading.take());
                say(&summary.text, &mut text)?;
                let interrupted = ctrl_c.pressed();
                return Ok(Answer { text, tokens, summary, interrupted });
            }
        }
    }
    Err(Failure::new("the answer ended without an end: this is a defect"))
}

/// Says why an answer ends in the middle, if a bound ended it, and what to do about that.
pub(crate) fn note_cut(summary: &Summary, most: Option<usize>, context: usize, advice: &str) {
    if summary.finish != Finish::Length {
        return;
    }
    terminal::note(&match most.filter(|most| summary.usage.completion >= *most) {
        Some(most) => format!("the answer was cut at {} (-n)", terminal::things(most, "token")),
        None => format!("the answer was cut: the context of {context} tokens is full; {advice}"),
    });
}

/// One line on what an answer took, for stderr.
pub(crate) fn statistics(loaded: &Loaded, summary: &Summary) -> String {
    let (usage, timings) = (&summary.usage, &summary.timings);
    let read = usage.prompt.saturating_sub(usage.cached);
    let ttft = timings.ttft.as_secs_f64();
    let mut text = format!("prompt {} tokens", usage.prompt);
    if usage.cached > 0 {
        text.push_str(&format!(" ({} cached)", usage.cached));
    }
    text.push_str(&format!(" in {}", terminal::seconds(ttft)));
    if read > 1 && ttft > 0.0 {
        text.push_str(&format!(" ({:.0}/s)", read as f64 / ttft));
    }
    text.push_str(&format!("; answer {} tokens", usage.completion));
    if let Some(tps) = timings.decode_tps(usage) {
        text.push_str(&format!(" ({tps:.1}/s)"));
    }
    if usage.drafted > 0 {
        text.push_str(&format!(", {} of {} proposals", usage.accepted, usage.drafted));
    }
    let (prefill, decode) = (loaded.device_of(Stage::Prefill), loaded.device_of(Stage::Decode));
    match prefill == decode {
        true => text.push_str(&format!("; {prefill}")),
        false => text.push_str(&format!("; {prefill}, then {decode}")),
    }
    text
}
