//! From what is asked to what the engine runs: template, tokens, grammar. Everything that can be
//! wrong with a request is found here, before it is admitted.

use crate::ask::{Ask, Chat, Format, Prompt, Source, ToolChoice};
use crate::error::{ApiError, Result};
use crate::residents::Resident;
use serde_json::{Value, json};
use tangor_engine::text::{Content, Grammar, Grammars, Message, Reasoning, ToolFormat, ToolParser};
use tangor_engine::{Constraint, EngineError, Request};

/// Requests that are ready for the engine.
#[derive(Debug)]
pub(crate) struct Prepared {
    /// Every prompt's choices, one after the other.
    pub(crate) requests: Vec<Request>,
    /// What reads the answers: thinking, and calls of tools.
    pub(crate) reasoning: Option<Reasoning>,
    pub(crate) tools: Option<&'static ToolFormat>,
    /// Whether an answer ends with its first call.
    pub(crate) one_call: bool,
    /// The prompts' tokens.
    pub(crate) prompts: Vec<Vec<u32>>,
}

/// The prompts in tokens, and how their answers are to be read.
struct Read {
    prompts: Vec<Vec<u32>>,
    reasoning: Option<Reasoning>,
    tools: Option<&'static ToolFormat>,
    /// What the choice of tools demands of the answer.
    demanded: Option<String>,
    /// Whether the answers go on with the prompts' text.
    continues: bool,
}

impl Read {
    /// Of prompts whose answers are texts that go on with theirs.
    fn plain(prompts: Vec<Vec<u32>>) -> Result<Self> {
        if prompts.is_empty() || prompts.iter().any(Vec::is_empty) {
            return Err(ApiError::field("prompt", "the prompt is empty: give at least one token"));
        }
        Ok(Self { prompts, reasoning: None, tools: None, demanded: None, continues: true })
    }
}

impl Prepared {
    /// A parser of calls for one answer.
    pub(crate) fn tool_parser(&self) -> Option<ToolParser> {
        self.tools.map(ToolParser::new)
    }
}

/// Prepares what is asked of a model. Takes as long as tokenising and compiling take.
///
/// # Errors
/// Whatever is wrong with the request.
pub(crate) fn prepare(resident: &Resident, ask: &Ask) -> Result<Prepared> {
    let read = read(resident, &ask.prompt)?;
    let context = resident.model().context();
    // Where nothing is to follow, a prompt may fill it.
    let answer = usize::from(ask.max_tokens != Some(0));
    for prompt in &read.prompts {
        if prompt.len() + answer > context {
            let tokens = prompt.len();
            return Err(EngineError::PromptTooLong { tokens, context }.into());
        }
    }
    let grammar = grammar(resident, ask, read.demanded.as_deref(), read.reasoning.as_ref())?;
    let request = |prompt: &Vec<u32>, choice: usize| Request {
        prompt: prompt.clone(),
        sampling: ask.knobs.over(&resident.recommended, choice),
        max_tokens: ask.max_tokens,
        stop: ask.stop.clone(),
        logprobs: ask.logprobs,
        score_prompt: ask.score_prompt,
        constraint: grammar
            .as_ref()
            .map(|grammar| Box::new(grammar.duplicate()) as Box<dyn Constraint>),
        special_text: read.tools.is_some(),
        continues: read.continues,
        ignore_eos: ask.knobs.ignore_eos,
        ..Request::default()
    };
    let choices = |prompt| (0..ask.choices).map(move |choice| request(prompt, choice));
    let requests = read.prompts.iter().flat_map(choices).collect();
    let one_call = matches!(&ask.prompt, Prompt::Chat(chat) if !chat.parallel);
    let Read { prompts, reasoning, tools, .. } = read;
    Ok(Prepared { requests, reasoning, tools, one_call, prompts })
}

/// Tokens of the prompts, whether or not they fit. Nothing is compiled for them.
///
/// # Errors
/// Whatever is wrong with them.
pub(crate) fn prompts(resident: &Resident, ask: &Ask) -> Result<Vec<Vec<u32>>> {
    Ok(read(resident, &ask.prompt)?.prompts)
}

fn read(resident: &Resident, prompt: &Prompt) -> Result<Read> {
    match prompt {
        Prompt::Chat(chat) => read_chat(resident, chat),
        Prompt::Plain(sources) => read_plain(resident, sources),
        Prompt::Gaps { before, after } => read_gaps(resident, before, after),
    }
}

/// Tokens of plain prompts. Whoever writes a whole prompt writes the model's special tokens in it;
/// text in which they are none comes as a conversation, or in tokens.
fn read_plain(resident: &Resident, sources: &[Source]) -> Result<Read> {
    let tokens = |source: &Source| match source {
        Source::Tokens(tokens) => Ok(tokens.clone()),
        Source::Text(text) => Ok(resident.tokenizer()?.prompt(text)?),
    };
    Read::plain(sources.iter().map(tokens).collect::<Result<_>>()?)
}

/// Tokens of texts with a gap behind them, and of what comes after it.
fn read_gaps(resident: &Resident, before: &[String], after: &str) -> Result<Read> {
    let tokens = |before: &String| {
        let tokens = resident.tokenizer()?.infill(before, after)?;
        tokens.ok_or_else(|| {
            let message = "this model was not made to fill gaps (it has no tokens for that): \
                           leave suffix out, or name a model for code";
            ApiError::field("suffix", message)
        })
    };
    Read::plain(before.iter().map(tokens).collect::<Result<_>>()?)
}

/// Tokens of a conversation in the model's own template.
fn read_chat(resident: &Resident, chat: &Chat) -> Result<Read> {
    if chat.messages.is_empty() {
        return Err(ApiError::field("messages", "there are no messages: send at least one"));
    }
    let tools = offered(chat)?;
    let (tokenizer, template) = (resident.tokenizer()?, resident.template()?);
    let messages = readable(&chat.messages)?;
    let (messages, shown) = match template.takes_tools() {
        true => (messages, (!tools.is_empty()).then_some(tools.as_slice())),
        false => (in_plain_words(messages, &tools), None),
    };
    let unfinished = match is_unfinished(&messages) {
        true => template.render_unfinished(&messages, shown, &chat.variables)?,
        false => None,
    };
    let continues = unfinished.is_some();
    let rendered = match unfinished {
        Some(rendered) => rendered,
        None => template.render(&messages, shown, true, &chat.variables)?,
    };
    let prompt = tokenizer.encode_spans(&rendered.spans)?;
    let source = match tools.is_empty() {
        true => template.source(),
        false => template.source_with_tools(),
    };
    let reasoning = Reasoning::of(source, &rendered.text());
    let format = (!tools.is_empty()).then(|| ToolFormat::of(source));
    let demanded = format.filter(|_| demands_call(&chat.tool_choice));
    let demanded = demanded.map(|format| format.grammar(&tools, chat.parallel, tokenizer));
    Ok(Read { prompts: vec![prompt], reasoning, tools: format, demanded, continues })
}

/// Whether a conversation ends in an answer, which then goes on.
fn is_unfinished(messages: &[Message]) -> bool {
    let text = |last: &Message| match &last.content {
        Some(Content::Text(text)) => !text.is_empty(),
        _ => false,
    };
    messages
        .last()
        .is_some_and(|last| last.role == "assistant" && last.tool_calls.is_empty() && text(last))
}

fn demands_call(choice: &ToolChoice) -> bool {
    matches!(choice, ToolChoice::Required | ToolChoice::Named(_))
}

/// The tools that the answer may call.
fn offered(chat: &Chat) -> Result<Vec<Value>> {
    let name = |tool: &Value| tool["function"]["name"].as_str().map(str::to_owned);
    for (index, tool) in chat.tools.iter().enumerate() {
        if name(tool).is_none_or(|name| name.is_empty()) {
            let message = format!("tool {index} has no function with a name");
            return Err(ApiError::field("tools", message));
        }
    }
    let tools = match &chat.tool_choice {
        ToolChoice::Never => Vec::new(),
        ToolChoice::Auto | ToolChoice::Required => chat.tools.clone(),
        ToolChoice::Named(wanted) => {
            let same = |tool: &&Value| name(tool).as_ref() == Some(wanted);
            chat.tools.iter().filter(same).cloned().collect()
        }
    };
    if tools.is_empty() && demands_call(&chat.tool_choice) {
        let message = "tool_choice demands a call of a tool that is not in tools";
        return Err(ApiError::field("tool_choice", message));
    }
    Ok(tools)
}

/// Messages whose parts are joined to texts, which every template takes.
fn readable(messages: &[Message]) -> Result<Vec<Message>> {
    let message = |message: &Message| {
        let mut message = message.clone();
        if message.role == "developer" {
            message.role = "system".to_owned();
        }
        if let Some(Content::Parts(parts)) = &message.content {
            message.content = Some(Content::Text(joined(parts)?));
        }
        Ok(message)
    };
    messages.iter().map(message).collect()
}

fn joined(parts: &[Value]) -> Result<String> {
    Ok(parts.iter().map(text_of).collect::<Result<Vec<_>>>()?.join("\n"))
}

/// The text of a part.
fn text_of(part: &Value) -> Result<&str> {
    let kind = part["type"].as_str().unwrap_or("text");
    match part["text"].as_str() {
        Some(text) if matches!(kind, "text" | "input_text" | "output_text") => Ok(text),
        _ => {
            let message = format!("a part of type {kind:?} is not text: the model reads no other");
            Err(ApiError::field("messages", message))
        }
    }
}

/// Tools, calls and results as text, for templates that know none.
fn in_plain_words(messages: Vec<Message>, tools: &[Value]) -> Vec<Message> {
    let mut messages: Vec<Message> = messages.into_iter().map(ToolFormat::plain).collect();
    if tools.is_empty() {
        return messages;
    }
    let instructions = ToolFormat::instructions(tools);
    match messages.first_mut().filter(|message| message.role == "system") {
        Some(Message { content: Some(Content::Text(text)), .. }) => {
            text.push_str("\n\n");
            text.push_str(&instructions);
        }
        _ => messages.insert(0, Message::new("system", instructions)),
    }
    messages
}

/// What the answers are held to. A model that thinks may do so first.
fn grammar(
    resident: &Resident,
    ask: &Ask,
    demanded: Option<&str>,
    reasoning: Option<&Reasoning>,
) -> Result<Option<Grammar>> {
    let grammars = || resident.grammars();
    let thinking = reasoning.filter(|reasoning| reasoning.is_open());
    let with_json = |text: &str| Ok::<_, ApiError>(grammars()?.lark(text)?.with_short_numbers());
    let valid = |schema: &Value| match thinking {
        None => Ok(grammars()?.json_schema(schema)?),
        Some(thinking) => {
            let answer = format!("start: %json {}", Grammars::embedded(schema)?);
            with_json(&thinking.grammar(&answer))
        }
    };
    Ok(match (demanded, &ask.format) {
        (Some(calls), _) => {
            let whole = reasoning.map_or_else(|| calls.to_owned(), |r| r.grammar(calls));
            Some(with_json(&whole)?)
        }
        (None, Format::Text) => None,
        (None, Format::Json) => Some(valid(&json!({"type": "object"}))?),
        (None, Format::Schema(schema)) => Some(valid(schema)?),
        (None, Format::Grammar(text)) => Some(grammars()?.lark(text)?),
    })
}
