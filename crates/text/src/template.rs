//! Chat templates: a model's own Jinja program that turns messages into a prompt.
//!
//! Templates come with models and are not trusted: they run in a virtual machine without access
//! to anything, with bounded fuel, depth and output. Messages are not trusted either: see
//! [`crate::guard`].

use crate::error::{Error, Result, check_limit};
use crate::guard::{Author, Dye, Guard, Rendered};
use crate::limits;
use crate::message::{Content, Message};
use crate::python;
use crate::shims;
use crate::tokenizer::Tokenizer;
use minijinja::Environment;
use serde_json::{Map, Value, json};
use std::io;

/// A model's chat template, ready to render.
///
/// Immutable; share it between threads by reference or in an [`Arc`](std::sync::Arc).
#[derive(Debug)]
pub struct ChatTemplate {
    usual: Program,
    /// Used instead when there are tools.
    with_tools: Option<Program>,
    /// Texts of BOS, EOS and the like, by the names templates know them by.
    tokens: Map<String, Value>,
    special: Vec<String>,
}

/// One compiled template.
#[derive(Debug)]
struct Program {
    env: Environment<'static>,
    source: String,
    guard: Guard,
    arguments: Arguments,
}

/// In which form a template can print the arguments of a tool call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Arguments {
    Object,
    Text,
}

const NAME: &str = "chat_template";

/// Ends the text of an answer that is to go on, to be found again in what is rendered: a character
/// that no text has a use for and that templates neither trim nor look for.
const UNFINISHED: char = '\u{e000}';

impl ChatTemplate {
    /// The template that came with the tokenizer, and the one for tools if there is one. Of several
    /// without a default the first is taken.
    ///
    /// # Errors
    /// [`Error::NoTemplate`] if there is none, and what [`new`](Self::new) says of the template.
    pub fn of(tokenizer: &Tokenizer) -> Result<Self> {
        let templates = tokenizer.chat_templates();
        let named = |name: &str| templates.iter().find(|(n, _)| n == name).map(|(_, t)| t.as_str());
        let first = templates.first().map(|(_, first)| first.as_str());
        let usual = named("default").or(first).ok_or(Error::NoTemplate)?;
        let mut template = Self::new(usual, tokenizer)?;
        if let Some(source) = named("tool_use") {
            template.with_tools = Some(Program::new(source, tokenizer, &template.tokens)?);
        }
        Ok(template)
    }

    /// Compiles a template for the tokenizer whose special tokens it writes.
    ///
    /// # Errors
    /// [`Error::Limit`] for a source over [`limits::TEMPLATE_BYTES`]; [`Error::Template`], with the
    /// line, if it does not parse.
    pub fn new(source: &str, tokenizer: &Tokenizer) -> Result<Self> {
        let mut tokens = Map::new();
        let known = [
            ("bos_token", tokenizer.bos()),
            ("eos_token", tokenizer.main_eos()),
            ("unk_token", tokenizer.unk()),
            ("pad_token", tokenizer.pad()),
        ];
        for (name, id) in known {
            if let Some(text) = id.and_then(|id| tokenizer.token_text(id)) {
                tokens.insert(name.to_owned(), Value::String(text.to_owned()));
            }
        }
        let special = tokenizer.added_tokens().filter(|(_, special)| *special);
        Ok(Self {
            usual: Program::new(source, tokenizer, &tokens)?,
            with_tools: None,
            special: special.map(|(name, _)| name.to_owned()).collect(),
            tokens,
        })
    }

    /// Stops the clock that templates can read at a moment, in seconds since 1970 UTC, so that
    /// prompts that mention the date can be reproduced. Without it they show the current time, UTC.
    #[must_use]
    pub fn with_time(mut self, seconds: i64) -> Self {
        for program in [Some(&mut self.usual), self.with_tools.as_mut()].into_iter().flatten() {
            shims::set_time(&mut program.env, seconds);
        }
        self
    }

    /// Renders a conversation.
    ///
    /// `add_generation_prompt` ends the prompt where the assistant's answer begins. `extra` are
    /// more variables for the template, as `enable_thinking`; they cannot replace `messages`,
    /// `tools` or the special tokens.
    ///
    /// # Errors
    /// [`Error::Template`], with the line, where the template refuses the messages or exceeds its
    /// fuel, depth or output; [`Error::Message`] for a role that would forge a special token;
    /// [`Error::Limit`] for too many messages or tools.
    pub fn render(
        &self,
        messages: &[Message],
        tools: Option<&[Value]>,
        add_generation_prompt: bool,
        extra: &Map<String, Value>,
    ) -> Result<Rendered> {
        check_limit("number of messages", messages.len(), limits::MESSAGES)?;
        check_limit("number of tools", tools.map_or(0, <[Value]>::len), limits::TOOLS)?;
        for (index, message) in messages.iter().enumerate() {
            self.check_role(&message.role).map_err(|why| Error::Message { index, why })?;
        }
        let program = self.with_tools.as_ref().filter(|_| tools.is_some()).unwrap_or(&self.usual);
        program.render(messages, tools, add_generation_prompt, extra, &self.tokens)
    }

    /// Renders a conversation whose last message is an answer that is to go on: the prompt ends
    /// where its text does. `None` if it has no text, or the template does not show it.
    ///
    /// # Errors
    /// As [`ChatTemplate::render`].
    pub fn render_unfinished(
        &self,
        messages: &[Message],
        tools: Option<&[Value]>,
        extra: &Map<String, Value>,
    ) -> Result<Option<Rendered>> {
        let mut messages = messages.to_vec();
        let Some(Content::Text(text)) = messages.last_mut().and_then(|last| last.content.as_mut())
        else {
            return Ok(None);
        };
        text.push(UNFINISHED);
        Ok(self.render(&messages, tools, false, extra)?.before_last(UNFINISHED))
    }

    /// Whether it tells the model about tools. One that does not ignores them.
    pub fn takes_tools(&self) -> bool {
        self.with_tools.is_some() || self.usual.source.contains("tools")
    }

    /// Source of the template that is used without tools.
    pub fn source(&self) -> &str {
        &self.usual.source
    }

    /// Source of the template that is used with tools, which says how the model writes calls.
    pub fn source_with_tools(&self) -> &str {
        &self.with_tools.as_ref().unwrap_or(&self.usual).source
    }

    /// Templates compose special tokens from roles, as `'<|' + role + '|>'`, so a role must be a
    /// word, and not one that makes another special token.
    fn check_role(&self, role: &str) -> std::result::Result<(), String> {
        const USUAL: &[&str] = &[
            "system",
            "user",
            "assistant",
            "tool",
            "developer",
            "function",
            "model",
            "ipython",
            "environment",
            "observation",
        ];
        if USUAL.contains(&role) {
            return Ok(());
        }
        let is_word = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | ' ' | '.');
        if role.is_empty() || role.len() > limits::ROLE_BYTES || !role.chars().all(is_word) {
            return Err(format!(
                "a role is a word of at most {} letters and digits",
                limits::ROLE_BYTES
            ));
        }
        let names_token =
            |name: &String| name.split(|c: char| !is_word(c)).any(|word| word.contains(role));
        if self.special.iter().any(names_token) {
            return Err(format!("the role `{role}` is part of a special token's name"));
        }
        Ok(())
    }
}

impl Program {
    fn new(source: &str, tokenizer: &Tokenizer, tokens: &Map<String, Value>) -> Result<Self> {
        check_limit("size of the chat template in bytes", source.len(), limits::TEMPLATE_BYTES)?;
        let mut program = Self {
            env: shims::environment(),
            source: source.to_owned(),
            guard: Guard::new(tokenizer.added_tokens(), source)?,
            arguments: Arguments::Object,
        };
        let prepared = shims::prepare(source);
        program.env.add_template_owned(NAME, prepared).map_err(|e| template_error(&e))?;
        program.arguments = program.probe_arguments(tokens);
        Ok(program)
    }

    fn render(
        &self,
        messages: &[Message],
        tools: Option<&[Value]>,
        add_generation_prompt: bool,
        extra: &Map<String, Value>,
        tokens: &Map<String, Value>,
    ) -> Result<Rendered> {
        let plain = messages.iter().map(|m| self.message_value(m)).collect::<Result<Vec<_>>>()?;
        let given = plain.iter().chain(tools.unwrap_or_default()).chain(extra.values());
        let dye = self.guard.dye(&self.source, given)?;
        let context = self.context(&plain, tools, add_generation_prompt, extra, tokens, &dye)?;
        Ok(self.guard.wash(&self.run(&context)?, &dye))
    }

    /// The template's variables, dyed where they are not ours.
    fn context(
        &self,
        messages: &[Value],
        tools: Option<&[Value]>,
        add_generation_prompt: bool,
        extra: &Map<String, Value>,
        tokens: &Map<String, Value>,
        dye: &Dye,
    ) -> Result<Value> {
        let paint = |value: &Value, author| self.guard.paint_value(value, author, dye, 0);
        let mut context = Map::new();
        for (name, value) in extra {
            context.insert(name.clone(), paint(value, Author::Other)?);
        }
        context.extend(tokens.clone());
        context.insert(shims::DYE.to_owned(), Value::String(dye.pairs()));
        let mut painted = Vec::with_capacity(messages.len());
        for message in messages {
            let by_model = message.get("role").and_then(Value::as_str) == Some("assistant");
            let author = if by_model { Author::Model } else { Author::Other };
            let mut value = paint(message, author)?;
            // Roles are checked, and templates compare them.
            if let (Some(slot), Some(role)) = (value.get_mut("role"), message.get("role")) {
                *slot = role.clone();
            }
            painted.push(value);
        }
        context.insert("messages".to_owned(), Value::Array(painted));
        let tools = tools.map(|tools| {
            tools.iter().map(|tool| paint(tool, Author::Other)).collect::<Result<Vec<_>>>()
        });
        context.insert("tools".to_owned(), tools.transpose()?.map_or(Value::Null, Value::Array));
        context.insert("add_generation_prompt".to_owned(), Value::Bool(add_generation_prompt));
        Ok(Value::Object(context))
    }

    fn run(&self, context: &Value) -> Result<String> {
        let mut env = self.env.clone();
        env.set_fuel(Some(fuel_for(context).saturating_add(limits::TEMPLATE_FUEL)));
        let template = env.get_template(NAME).map_err(|e| template_error(&e))?;
        let mut output = Bounded::default();
        let context = minijinja::Value::from(minijinja::value::Serde(context));
        let result = template.render_captured_to(context, &mut output).map(|_| ());
        if output.overflowed {
            return Err(Error::Limit {
                what: "size of the rendered chat template in bytes".to_owned(),
                limit: u64::try_from(limits::TEMPLATE_OUTPUT).unwrap_or(u64::MAX),
                found: u64::try_from(output.wanted).unwrap_or(u64::MAX),
            });
        }
        result.map_err(|e| template_error(&e))?;
        String::from_utf8(output.bytes).map_err(|e| Error::invalid("the rendered template", e))
    }

    /// A message as the template sees it.
    fn message_value(&self, message: &Message) -> Result<Value> {
        let value = serde_json::to_value(message);
        let mut value = value.map_err(|e| Error::invalid("a message", e))?;
        let calls = value.get_mut("tool_calls").and_then(Value::as_array_mut);
        for call in calls.into_iter().flatten() {
            if let Some(arguments) = call.get_mut("function").and_then(|f| f.get_mut("arguments")) {
                convert_arguments(arguments, self.arguments);
            }
        }
        Ok(value)
    }

    /// Finds out whether the template wants arguments as an object, which is the rule, or as the
    /// JSON text: by looking which of them it prints as JSON.
    fn probe_arguments(&self, tokens: &Map<String, Value>) -> Arguments {
        let prints = |arguments: Value| {
            let call = json!({"id": "call00000", "type": "function",
                "function": {"name": "tangor_probe", "arguments": arguments}});
            // An answer must follow a call in some templates, and its absence prints more in none.
            let messages = vec![
                json!({"role": "user", "content": "?"}),
                json!({"role": "assistant", "content": "", "tool_calls": [call]}),
                json!({"role": "tool", "name": "tangor_probe", "content": "!",
                    "tool_call_id": "call00000"}),
            ];
            let nothing = Map::new();
            let context = self.context(&messages, None, false, &nothing, tokens, &Dye::default());
            context.and_then(|context| self.run(&context)).ok()
        };
        let of_object = prints(json!({"tangor_key": "tangor_value"})).unwrap_or_default();
        let of_text = prints(Value::String(r#"{"tangor_key": "tangor_value"}"#.to_owned()));
        let is_json = |printed: &str| printed.contains(r#""tangor_key""#);
        // Some print an object in a notation of their own; Python's is nobody's intention.
        let is_meant = is_json(&of_object)
            || of_object.contains("tangor_key") && !of_object.contains("'tangor_key'");
        if !is_meant && of_text.is_some_and(|printed| is_json(&printed)) {
            Arguments::Text
        } else {
            Arguments::Object
        }
    }
}

/// How much work the data given to a template may be.
fn fuel_for(value: &Value) -> u64 {
    let inside: u64 = match value {
        Value::String(text) => text.len() as u64 / limits::TEMPLATE_BYTES_PER_FUEL,
        Value::Array(items) => items.iter().map(fuel_for).sum(),
        Value::Object(entries) => entries.values().map(fuel_for).sum(),
        _ => 0,
    };
    inside.saturating_add(limits::TEMPLATE_FUEL_PER_VALUE)
}

/// Brings a call's arguments into the form wanted, if they can have it.
fn convert_arguments(arguments: &mut Value, wanted: Arguments) {
    match (wanted, &*arguments) {
        (Arguments::Object, Value::String(text)) => {
            if let Ok(object @ Value::Object(_)) = serde_json::from_str(text) {
                *arguments = object;
            }
        }
        (Arguments::Text, Value::Object(_) | Value::Array(_)) => {
            *arguments = Value::String(python::python_json(arguments));
        }
        _ => {}
    }
}

/// The error with the line of the template it belongs to.
fn template_error(error: &minijinja::Error) -> Error {
    let mut line = error.line();
    let mut why = error.detail().map_or_else(
        || error.kind().to_string(),
        |detail| {
            if error.kind() == minijinja::ErrorKind::InvalidOperation {
                detail.to_owned()
            } else {
                format!("{}: {detail}", error.kind())
            }
        },
    );
    // An error in a macro names the call; its source names the place.
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        if let Some(inner) = inner.downcast_ref::<minijinja::Error>() {
            line = inner.line().or(line);
        }
        why = inner.to_string();
        cause = inner.source();
    }
    Error::Template { line: line.unwrap_or(0), why }
}

/// A buffer that stops at [`limits::TEMPLATE_OUTPUT`].
#[derive(Default)]
struct Bounded {
    bytes: Vec<u8>,
    wanted: usize,
    overflowed: bool,
}

impl io::Write for Bounded {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.wanted = self.bytes.len().saturating_add(data.len());
        if self.wanted > limits::TEMPLATE_OUTPUT {
            self.overflowed = true;
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.bytes.extend_from_slice(data);
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
