//! Calls of tools in what a model writes: each family of models marks them in its own way.
//!
//! A [`ToolFormat`] is one of these ways. It says which texts are calls ([`ToolFormat::grammar`]),
//! reads calls as they are written ([`ToolParser`]), and says them in plain words to models whose
//! template knows no tools ([`ToolFormat::instructions`], [`ToolFormat::plain`]).

mod members;
mod parser;

pub use parser::{ToolDelta, ToolParser};

use crate::grammar::compact;
use crate::message::{Content, Message};
use crate::tokenizer::Tokenizer;
use serde_json::{Value, json};

/// How a family of models writes calls.
#[derive(Debug, PartialEq, Eq)]
pub struct ToolFormat {
    /// What the family is called.
    pub name: &'static str,
    /// A text that only templates of this family contain.
    mark: &'static str,
    /// What calls stand between; without `close` they go on to the end.
    open: &'static str,
    close: Option<&'static str>,
    shape: Shape,
}

/// What stands between the marks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shape {
    /// One JSON object with a name and arguments.
    Object,
    /// A JSON list of such objects.
    List,
    /// One JSON object, also without the marks where it begins the answer; arguments are called
    /// `parameters`.
    Bare,
    /// Names and arguments apart: what stands before a name, and between it and its arguments, and
    /// behind these.
    Named { before: &'static str, between: &'static str, behind: &'static str },
}

/// Every format; the last one that fits a template is the model's.
const FORMATS: [ToolFormat; 5] = [
    ToolFormat {
        name: "llama",
        mark: "ipython",
        open: "<|python_tag|>",
        close: None,
        shape: Shape::Bare,
    },
    HERMES,
    ToolFormat {
        name: "phi",
        mark: "<|tool|>",
        open: "<|tool_call|>",
        close: Some("<|/tool_call|>"),
        shape: Shape::List,
    },
    ToolFormat {
        name: "mistral",
        mark: "[TOOL_CALLS]",
        open: "[TOOL_CALLS]",
        close: None,
        shape: Shape::List,
    },
    ToolFormat {
        name: "deepseek",
        mark: "<｜tool▁calls▁begin｜>",
        open: "<｜tool▁calls▁begin｜>",
        close: Some("<｜tool▁calls▁end｜>"),
        shape: Shape::Named {
            before: "<｜tool▁call▁begin｜>function<｜tool▁sep｜>",
            between: "\n```json\n",
            behind: "\n```<｜tool▁call▁end｜>",
        },
    },
];

/// Hermes' and Qwen's, which is also asked of models that know none.
const HERMES: ToolFormat = ToolFormat {
    name: "hermes",
    mark: "<tool_call>",
    open: "<tool_call>",
    close: Some("</tool_call>"),
    shape: Shape::Object,
};

impl ToolFormat {
    /// The format of the models with this chat template.
    #[must_use]
    pub fn of(template: &str) -> &'static Self {
        let fitting = FORMATS.iter().rev().find(|format| template.contains(format.mark));
        fitting.unwrap_or(&HERMES)
    }

    /// A grammar in Lark's notation of answers that are calls of these tools and nothing else:
    /// exactly one, or one and more with `several`.
    #[must_use]
    pub fn grammar(&self, tools: &[Value], several: bool, tokenizer: &Tokenizer) -> String {
        let mark = |text: &str| literals(text, tokenizer);
        let open = mark(self.open);
        let close = self.close.map(mark).unwrap_or_default();
        let more = |one: &str, between: &str| match several {
            true => format!("{one} ({between} {one})*"),
            false => one.to_owned(),
        };
        let arguments = if self.shape == Shape::Bare { "parameters" } else { "arguments" };
        let calls: Vec<Value> = tools.iter().map(|tool| call(tool, arguments)).collect();
        let objects = compact(&json!({"anyOf": calls}));
        match self.shape {
            Shape::Object => {
                let one = format!("{open} \"\\n\" call \"\\n\" {close}");
                format!("start: {}\ncall: %json {objects}", more(&one, "\"\\n\""))
            }
            Shape::List => {
                let calls = more("call", "\", \"");
                format!("start: {open} \"[\" {calls} \"]\" {close}\ncall: %json {objects}")
            }
            Shape::Bare => {
                format!("start: {}\ncall: %json {objects}", more("call", "\"; \""))
            }
            Shape::Named { before, between, behind } => {
                let calls = more("call", "\"\\n\"");
                let one = tools.iter().map(|tool| {
                    let name = Value::from(name_of(tool));
                    let (before, between, behind) = (mark(before), mark(between), mark(behind));
                    let schema = compact(&parameters_of(tool));
                    format!("{before} {name} {between} %json {schema} {behind}")
                });
                let one: Vec<String> = one.collect();
                format!("start: {open} {calls} {close}\ncall: {}", one.join(" | "))
            }
        }
    }

    /// What tells a model whose template knows no tools about them, as part of its system message.
    #[must_use]
    pub fn instructions(tools: &[Value]) -> String {
        let lines: Vec<String> = tools.iter().map(Value::to_string).collect();
        format!(
            "# Tools\n\nYou may call one or more functions to assist with the user query.\n\nYou \
             are provided with function signatures within <tools></tools> XML tags:\n<tools>\n{}\n\
             </tools>\n\nFor each function call, return a json object with function name and \
             arguments within <tool_call></tool_call> XML tags:\n<tool_call>\n{{\"name\": \
             <function-name>, \"arguments\": <args-json-object>}}\n</tool_call>",
            lines.join("\n")
        )
    }

    /// A message without calls and results, for such models: they become part of its text.
    #[must_use]
    pub fn plain(mut message: Message) -> Message {
        let mut text = match &message.content {
            Some(Content::Text(text)) => text.clone(),
            _ => String::new(),
        };
        if message.role == "tool" {
            message.role = "user".to_owned();
            text = format!("<tool_response>\n{text}\n</tool_response>");
        } else if message.tool_calls.is_empty() {
            return message;
        }
        for call in message.tool_calls.drain(..) {
            let arguments = match call.function.arguments {
                Value::String(text) => serde_json::from_str(&text).unwrap_or(Value::String(text)),
                other => other,
            };
            let call = json!({"name": call.function.name, "arguments": arguments});
            let line = if text.is_empty() { "" } else { "\n" };
            text.push_str(&format!("{line}<tool_call>\n{call}\n</tool_call>"));
        }
        message.content = Some(Content::Text(text));
        message.tool_call_id = None;
        message
    }
}

/// The function of a tool in OpenAI's shape, or the tool itself where it is one already.
fn function(tool: &Value) -> &Value {
    tool.get("function").unwrap_or(tool)
}

/// The name of a tool.
fn name_of(tool: &Value) -> &str {
    function(tool).get("name").and_then(Value::as_str).unwrap_or_default()
}

/// The schema of a tool's arguments.
fn parameters_of(tool: &Value) -> Value {
    let given = function(tool).get("parameters").filter(|schema| schema.is_object());
    given.cloned().unwrap_or_else(|| json!({"type": "object"}))
}

/// The schema of a call of a tool.
fn call(tool: &Value, arguments: &str) -> Value {
    json!({
        "type": "object",
        "properties": {"name": {"const": name_of(tool)}, arguments: parameters_of(tool)},
        "required": ["name", arguments],
        "additionalProperties": false,
    })
}

/// A text in Lark's notation: special tokens in it by id, since no text matches them.
fn literals(text: &str, tokenizer: &Tokenizer) -> String {
    let mut parts = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let special = special_in(rest, tokenizer);
        let (plain, token) = match special {
            Some((at, name, id)) => (at, Some((name, id))),
            None => (rest.len(), None),
        };
        if plain > 0 {
            parts.push(Value::from(&rest[..plain]).to_string());
        }
        rest = &rest[plain..];
        if let Some((name, id)) = token {
            parts.push(format!("<[{id}]>"));
            rest = &rest[name..];
        }
    }
    parts.join(" ")
}

/// Where the first special token in a text begins, its length and its id.
fn special_in(text: &str, tokenizer: &Tokenizer) -> Option<(usize, usize, u32)> {
    let ends = |from: usize| {
        let tails = text[from..].char_indices().map(move |(at, c)| at + c.len_utf8());
        tails.filter(|len| *len >= 3).find_map(|len| {
            let id = tokenizer.token_id(&text[from..from + len])?;
            tokenizer.is_special(id).then_some((from, len, id))
        })
    };
    text.char_indices().find_map(|(at, c)| matches!(c, '<' | '[').then(|| ends(at)).flatten())
}
