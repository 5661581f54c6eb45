//! Where messages come from: a line editor with history on a terminal, plain lines elsewhere.

use super::message;
use super::slash::COMMANDS;
use crate::error::{Failure, Outcome};
use crate::terminal;
use rustyline::completion::Completer;
use rustyline::error::ReadlineError;
use rustyline::highlight::Highlighter;
use rustyline::hint::Hinter;
use rustyline::history::DefaultHistory;
use rustyline::validate::{ValidationContext, ValidationResult, Validator};
use rustyline::{Behavior, Config, Context, Editor, Helper};
use std::fs;
use std::io::{self, BufRead};
use std::path::PathBuf;

const PROMPT: &str = ">>> ";

/// Messages kept in the history file.
const HISTORY: usize = 1000;

/// What the user did.
#[derive(Debug)]
pub(crate) enum Input {
    /// A message, unfolded, which may be empty.
    Message(String),
    /// Ctrl-C.
    Interrupted,
    /// Ctrl-D, or the end of the input.
    End,
}

/// Reads messages one after the other.
pub(crate) enum Messages {
    /// From a person.
    Terminal { editor: Box<Editor<Rules, DefaultHistory>>, history: Option<PathBuf> },
    /// From a file or a pipe.
    Lines(io::Lines<io::StdinLock<'static>>),
}

impl Messages {
    /// Opens the input; `history` is the file that keeps what was typed.
    pub(crate) fn open(history: Option<PathBuf>) -> Outcome<Self> {
        if !terminal::stdin_is_terminal() {
            return Ok(Self::Lines(io::stdin().lock().lines()));
        }
        // The prompt is no result: where stdout is not the terminal, it goes to the terminal.
        let behavior = match terminal::stdout_is_terminal() {
            true => Behavior::Stdio,
            false => Behavior::PreferTerm,
        };
        let config = Config::builder().behavior(behavior).max_history_size(HISTORY)?;
        let config = config.auto_add_history(true).history_ignore_space(true).build();
        let mut editor = Editor::<Rules, DefaultHistory>::with_config(config)?;
        editor.set_helper(Some(Rules));
        if let Some(path) = &history {
            // The first conversation finds no history.
            let _ = editor.load_history(path);
        }
        Ok(Self::Terminal { editor: Box::new(editor), history })
    }

    /// Whether a person types them.
    pub(crate) fn interactive(&self) -> bool {
        matches!(self, Self::Terminal { .. })
    }

    /// Waits for the next one.
    pub(crate) fn next(&mut self) -> Outcome<Input> {
        match self {
            Self::Terminal { editor, history } => match editor.readline(PROMPT) {
                Ok(text) => {
                    keep(editor, history);
                    Ok(Input::Message(message::unfold(&text)))
                }
                Err(ReadlineError::Interrupted) => Ok(Input::Interrupted),
                Err(ReadlineError::Eof) => Ok(Input::End),
                Err(error) => Err(Failure::from(error).about("cannot read the terminal")),
            },
            Self::Lines(lines) => {
                let mut text = String::new();
                for line in lines {
                    let line = line.map_err(|e| Failure::from(e).about("cannot read the input"))?;
                    text.push_str(&line);
                    if message::is_complete(&text) {
                        return Ok(Input::Message(message::unfold(&text)));
                    }
                    text.push('\n');
                }
                let nothing_left = text.is_empty();
                Ok(if nothing_left { Input::End } else { Input::Message(message::unfold(&text)) })
            }
        }
    }
}

/// Appends what was typed last to the history file, which other conversations write to as well;
/// says once that it cannot.
fn keep(editor: &mut Editor<Rules, DefaultHistory>, history: &mut Option<PathBuf>) {
    let Some(path) = history else { return };
    let folder = path.parent().map_or(Ok(()), fs::create_dir_all);
    let kept = folder.map_err(ReadlineError::from).and_then(|()| editor.append_history(path));
    if let Err(error) = kept {
        terminal::note(&format!("the history is not kept: {}: {error}", path.display()));
        *history = None;
    }
}

/// How the editor treats what is typed: Enter ends a message only when it is complete, Tab
/// completes commands.
pub(crate) struct Rules;

impl Validator for Rules {
    fn validate(&self, context: &mut ValidationContext<'_>) -> rustyline::Result<ValidationResult> {
        Ok(match message::is_complete(context.input()) {
            true => ValidationResult::Valid(None),
            false => ValidationResult::Incomplete,
        })
    }
}

impl Completer for Rules {
    type Candidate = String;

    fn complete(
        &self,
        line: &str,
        position: usize,
        _: &Context<'_>,
    ) -> rustyline::Result<(usize, Vec<String>)> {
        let typed = line.get(..position).unwrap_or(line);
        let names = COMMANDS.iter().flat_map(|(names, ..)| names.iter());
        let fitting = names.filter(|name| typed.starts_with('/') && name.starts_with(typed));
        Ok((0, fitting.map(|name| format!("{name} ")).collect()))
    }
}

impl Highlighter for Rules {}

impl Hinter for Rules {
    type Hint = String;
}

impl Helper for Rules {}
