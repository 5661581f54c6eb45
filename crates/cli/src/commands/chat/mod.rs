//! `tangor chat`: a conversation.
//!
//! The whole conversation goes to the engine every time; what it has in its cache of earlier turns
//! it does not compute again.

mod conversation;
mod editor;
mod message;
mod settings;
mod slash;

use self::conversation::Conversation;
use self::editor::{Input, Messages};
use self::slash::Slash;
use crate::answer;
use crate::args::{Global, ModelOptions, SamplingOptions, SpeculationOptions};
use crate::error::{Failure, Outcome};
use crate::load::{self, Loaded};
use crate::{interrupt, terminal};
use clap::Args;
use std::path::{Path, PathBuf};
use tangor_engine::plan::Stage;

const EXAMPLES: &str = "\
Examples:
  tangor chat smollm2
  tangor chat smollm2 --system 'You answer in rhymes.' --temperature 0.7
  tangor chat ./model.gguf < questions.txt     one answer per line, no editor

At a terminal, /help lists the commands; in a file or a pipe every line is a message. A line that
ends in a backslash goes on in the next one, and so does everything between \"\"\" and \"\"\".
Ctrl-C stops an answer; Ctrl-D leaves.";

/// Converse with a model
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Options {
    /// Name, file or folder of the model
    #[arg(value_name = "MODEL")]
    model: String,

    /// Instructions that stand before the conversation
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,

    /// Go on with a conversation that /save or --save wrote
    #[arg(long, value_name = "FILE", conflicts_with = "system")]
    load: Option<PathBuf>,

    /// Write the conversation to a file when it ends
    #[arg(long, value_name = "FILE")]
    save: Option<PathBuf>,

    /// Say after every answer how long it took
    #[arg(long)]
    stats: bool,

    #[command(flatten)]
    sampling: SamplingOptions,

    #[command(flatten)]
    model_options: ModelOptions,

    #[command(flatten)]
    speculation: SpeculationOptions,
}

/// Whether the conversation goes on.
enum Next {
    Listen,
    Leave,
}

struct Chat {
    loaded: Loaded,
    conversation: Conversation,
    sampling: SamplingOptions,
    stats: bool,
    interactive: bool,
}

pub(crate) fn run(options: Options, global: &Global) -> Outcome {
    let conversation = match &options.load {
        Some(path) => Conversation::load(path)?,
        None => Conversation::new(options.system),
    };
    let loaded =
        load::speculative(&options.model, &options.model_options, &options.speculation, global)?;
    loaded.require_template()?;
    let history = load::store(global).ok().map(|store| store.root().join("chat-history"));
    let mut messages = Messages::open(history)?;
    let mut chat = Chat {
        loaded,
        conversation,
        sampling: options.sampling,
        stats: options.stats,
        interactive: messages.interactive(),
    };
    if chat.interactive {
        terminal::note(&terminal::dim(&format!(
            "{} on {}, {} tokens of context; /help lists commands",
            options.model,
            chat.loaded.device_of(Stage::Decode),
            chat.loaded.model.context()
        )));
    }
    let ended = chat.converse(&mut messages);
    let saved = options.save.map_or(Ok(()), |path| chat.conversation.save(&path));
    ended.and(saved)
}

impl Chat {
    fn converse(&mut self, messages: &mut Messages) -> Outcome {
        let mut about_to_leave = false;
        loop {
            match messages.next()? {
                Input::End => return Ok(()),
                Input::Interrupted if about_to_leave => return Ok(()),
                Input::Interrupted => {
                    about_to_leave = true;
                    terminal::note_plain("(Ctrl-C once more, or Ctrl-D, leaves)");
                }
                Input::Message(text) => {
                    about_to_leave = false;
                    if let Next::Leave = self.hear(&text)? {
                        return Ok(());
                    }
                }
            }
        }
    }

    /// One message or command.
    ///
    /// Only a person commands: what is piped in may be anybody's text, and commands write files.
    /// What goes wrong ends the conversation only where no person is there to try again.
    fn hear(&mut self, text: &str) -> Outcome<Next> {
        if text.is_empty() {
            return Ok(Next::Listen);
        }
        let command = if self.interactive { slash::parse(text) } else { None };
        let result = match command {
            Some(Ok(Slash::Exit)) => return Ok(Next::Leave),
            Some(Ok(command)) => self.obey(command),
            Some(Err(why)) => Err(Failure::new(why)),
            None => {
                self.conversation.ask(text.to_owned());
                self.answer()
            }
        };
        match result {
            _ if interrupt::terminated() => Err(Failure::Interrupted),
            Err(failure @ Failure::Error { .. }) if self.interactive => {
                failure.report();
                Ok(Next::Listen)
            }
            Err(failure) => Err(failure),
            Ok(()) => Ok(Next::Listen),
        }
    }

    /// Has the last question answered. A question that cannot be answered is taken back.
    fn answer(&mut self) -> Outcome {
        let result = self.try_answer();
        if result.is_err() {
            self.conversation.undo();
        }
        result
    }

    /// Has the last question answered again. Its answer stays if there is no other.
    fn retry(&mut self) -> Outcome {
        let before = self.conversation.clone();
        let question = self.conversation.undo();
        let question =
            question.ok_or_else(|| Failure::new("there is no question to answer again"))?;
        self.conversation.ask(question);
        let result = self.answer();
        if result.is_err() {
            self.conversation = before;
        }
        result
    }

    fn try_answer(&mut self) -> Outcome {
        let tokens = self.loaded.chat_tokens(self.conversation.turns())?;
        let context = self.loaded.model.context();
        let too_long = tokens.len() >= context;
        let request = self.loaded.request(tokens, &self.sampling);
        let answer = answer::stream(&self.loaded, request, &mut terminal::write)
            .map_err(|why| if too_long { why.hint(self.to_make_room()) } else { why })?;
        terminal::write("\n")?;
        let most = self.sampling.max_tokens;
        answer::note_cut(&answer.summary, most, context, self.to_make_room());
        if answer.interrupted {
            if !self.interactive {
                return Err(Failure::Interrupted);
            }
            terminal::note(&terminal::dim("(stopped)"));
        }
        if self.stats {
            let line = answer::statistics(&self.loaded, &answer.summary);
            terminal::note_plain(&terminal::dim(&line));
        }
        self.conversation.answer(answer.text);
        Ok(())
    }

    /// What to do where the context is full.
    fn to_make_room(&self) -> &'static str {
        match self.interactive {
            true => "/undo and /clear make room, a longer --context has more",
            false => "a longer --context has more room",
        }
    }

    fn obey(&mut self, command: Slash) -> Outcome {
        match command {
            Slash::Exit => {}
            Slash::Help => terminal::note_plain(&slash::help()),
            Slash::Clear => {
                self.conversation.clear();
                terminal::note("forgotten");
            }
            Slash::System(None) => {
                let system = self.conversation.system().unwrap_or("(no system message)");
                terminal::note_plain(system);
            }
            Slash::System(Some(text)) => {
                self.conversation = Conversation::new(Some(text));
                terminal::note("a new conversation under this system message");
            }
            Slash::Set(change) => self.set(change)?,
            Slash::Stats => {
                self.stats = !self.stats;
                terminal::note(if self.stats { "statistics: on" } else { "statistics: off" });
            }
            Slash::Undo => match self.conversation.undo() {
                Some(question) => terminal::note(&format!("taken back: {}", first_line(&question))),
                None => return Err(Failure::new("there is nothing to take back")),
            },
            Slash::Retry => self.retry()?,
            Slash::Save(file) => {
                self.conversation.save(Path::new(&file))?;
                terminal::note(&format!("saved in {file}"));
            }
            Slash::Load(file) => {
                self.conversation = Conversation::load(Path::new(&file))?;
                let messages = terminal::things(self.conversation.turns().len(), "message");
                terminal::note(&format!("{messages} from {file}"));
            }
        }
        Ok(())
    }

    fn set(&mut self, change: Option<(String, Option<String>)>) -> Outcome {
        match change {
            None => {
                for name in settings::NAMES {
                    let line = self.setting(name)?;
                    terminal::note_plain(&line);
                }
            }
            Some((name, None)) => {
                let line = self.setting(&name)?;
                terminal::note_plain(&line);
            }
            Some((name, Some(value))) => {
                settings::set(&mut self.sampling, &name, &value).map_err(Failure::new)?;
                let line = self.setting(&name)?;
                terminal::note(&line);
            }
        }
        Ok(())
    }
}

impl Chat {
    fn setting(&self, name: &str) -> Outcome<String> {
        settings::show(&self.sampling, &self.loaded.recommended, name).map_err(Failure::new)
    }
}

/// The beginning of a message, to recognise it by.
fn first_line(text: &str) -> String {
    const SHOWN: usize = 60;
    let line = text.lines().next().unwrap_or_default();
    let short: String = line.chars().take(SHOWN).collect();
    if short == text { short } else { format!("{short}…") }
}
