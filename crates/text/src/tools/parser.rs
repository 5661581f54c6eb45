//! Reads calls as a model writes them.

use super::members::{Member, Members};
use super::{Shape, ToolFormat};
use serde_json::Value;

/// Part of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ToolDelta {
    /// Text that is no call.
    Text(String),
    /// A call begins.
    Call {
        /// Which call of the answer, from 0.
        index: usize,
        /// What is called.
        name: String,
    },
    /// More of a call's arguments: together they are JSON.
    Arguments {
        /// Which call of the answer.
        index: usize,
        /// The text.
        text: String,
    },
}

/// Tells calls from text in an answer that arrives in pieces. What is marked as a call and is none
/// is text. The result does not depend on how the text is cut into pieces.
#[derive(Debug)]
pub struct ToolParser {
    format: &'static ToolFormat,
    place: Place,
    /// Text that may be the beginning of a mark.
    held: String,
    /// Whether anything but white space was text.
    begun: bool,
    calls: usize,
}

#[derive(Debug)]
enum Place {
    Text,
    /// Between the marks; bare calls have none.
    Block(Block),
}

/// What was read between marks.
#[derive(Debug, Default)]
struct Block {
    bare: bool,
    /// Everything, until it is certain that there is a call.
    raw: Option<String>,
    /// What stands before an object.
    header: String,
    call: Option<Call>,
}

/// A call that is being read.
#[derive(Debug, Default)]
struct Call {
    members: Members,
    name: Option<String>,
    /// What the current member is.
    kind: MemberKind,
    /// Its value, where that is not handed out at once.
    value: String,
    /// Arguments that came before the name.
    early: String,
    announced: bool,
}

/// A member of a call.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum MemberKind {
    /// Its value has not begun.
    #[default]
    Unknown,
    Name,
    /// Arguments that are handed out as they come.
    Arguments,
    /// Arguments in a string, which is read when it is complete.
    Quoted,
    Other,
}

impl ToolParser {
    /// For one answer.
    #[must_use]
    pub fn new(format: &'static ToolFormat) -> Self {
        Self { format, place: Place::Text, held: String::new(), begun: false, calls: 0 }
    }

    /// Calls so far.
    #[must_use]
    pub fn calls(&self) -> usize {
        self.calls
    }

    /// Takes the next piece.
    pub fn push(&mut self, piece: &str) -> Vec<ToolDelta> {
        let mut out = Deltas::default();
        for c in piece.chars() {
            self.held.push(c);
            self.step(&mut out);
        }
        out.0
    }

    /// The rest: nothing follows.
    pub fn finish(&mut self) -> Vec<ToolDelta> {
        let mut out = Deltas::default();
        let held = std::mem::take(&mut self.held);
        match std::mem::replace(&mut self.place, Place::Text) {
            Place::Text => self.text(held, &mut out),
            Place::Block(mut block) => {
                held.chars().for_each(|c| self.read(&mut block, c, &mut out));
                self.close(block, "", &mut out);
            }
        }
        out.0
    }

    /// Looks at what is held, one character of which is new.
    fn step(&mut self, out: &mut Deltas) {
        match std::mem::replace(&mut self.place, Place::Text) {
            Place::Text => {
                let open = self.format.open;
                if let Some(before) = self.held.strip_suffix(open).map(str::to_owned) {
                    self.held.clear();
                    self.text(before, out);
                    let block = Block { raw: Some(open.to_owned()), ..Block::default() };
                    self.place = Place::Block(block);
                } else if self.format.shape == Shape::Bare && self.begins_bare() {
                    self.held.clear();
                    let raw = Some(String::new());
                    let mut block = Block { bare: true, raw, ..Block::default() };
                    self.read(&mut block, '{', out);
                    self.place = Place::Block(block);
                } else {
                    let kept = possible(&self.held, open);
                    let rest = self.held.split_off(self.held.len() - kept);
                    let certain = std::mem::replace(&mut self.held, rest);
                    self.text(certain, out);
                }
            }
            Place::Block(mut block) => {
                // What a string quotes closes nothing.
                let quoted = block.call.as_ref().is_some_and(|call| call.members.in_string());
                let close = self.format.close.filter(|_| !block.bare && !quoted);
                if let Some(close) = close.filter(|close| self.held.ends_with(close)) {
                    self.held.clear();
                    return self.close(block, close, out);
                }
                let kept = possible(&self.held, close.unwrap_or_default());
                let rest = self.held.split_off(self.held.len() - kept);
                for c in std::mem::replace(&mut self.held, rest).chars() {
                    self.read(&mut block, c, out);
                }
                self.place = Place::Block(block);
            }
        }
    }

    /// Whether an answer begins with an object.
    fn begins_bare(&self) -> bool {
        !self.begun && self.held.trim_start() == "{"
    }

    fn text(&mut self, text: String, out: &mut Deltas) {
        // White space before a call is no answer.
        self.begun |= !text.trim().is_empty();
        if self.begun && !(self.calls > 0 && text.trim().is_empty()) {
            out.push(ToolDelta::Text(text));
        }
    }

    /// Takes a character between the marks.
    fn read(&mut self, block: &mut Block, c: char, out: &mut Deltas) {
        if let Some(raw) = &mut block.raw {
            raw.push(c);
        }
        let named = matches!(self.format.shape, Shape::Named { .. }) || {
            // Newer Mistral models write names before their arguments.
            self.format.shape == Shape::List && block.header.contains("[ARGS]")
        };
        let Some(call) = &mut block.call else {
            if c != '{' {
                return block.header.push(c);
            }
            let mut call = Call::default();
            call.members.push(c);
            if named {
                call.name = Some(self.name_in(&block.header));
                call.early.push(c);
            }
            block.call = Some(call);
            return;
        };
        let member = call.members.push(c);
        if named {
            call.early.push(c);
        } else {
            call.take(&member);
        }
        if let (Some(name), false) = (&call.name, call.announced) {
            out.push(ToolDelta::Call { index: self.calls, name: name.clone() });
            (call.announced, block.raw) = (true, None);
            self.calls += 1;
        }
        if call.announced && !call.early.is_empty() {
            let text = std::mem::take(&mut call.early);
            out.push(ToolDelta::Arguments { index: self.calls - 1, text });
        }
        if member == Member::End {
            block.call = None;
            block.header.clear();
        }
    }

    /// The name in what stands before its arguments.
    fn name_in(&self, header: &str) -> String {
        let after = match self.format.shape {
            Shape::Named { before, .. } => {
                // Marks may be missing from what is decoded.
                let mark = before
                    .rsplit('<')
                    .next()
                    .map_or(before, |tail| &before[before.len() - tail.len() - 1..]);
                header.rsplit_once(mark).map_or(header, |(_, after)| after)
            }
            _ => {
                let name = header.split("[ARGS]").next().unwrap_or(header);
                name.rsplit_once(self.format.open).map_or(name, |(_, after)| after)
            }
        };
        let line = after.trim().lines().next().unwrap_or_default();
        line.split('[').next().unwrap_or_default().trim().to_owned()
    }

    /// Ends a block; what was no call is text.
    fn close(&mut self, block: Block, mark: &str, out: &mut Deltas) {
        if let Some(raw) = block.raw {
            self.text(raw + mark, out);
        }
    }
}

impl Call {
    /// Takes what a character brought about.
    fn take(&mut self, member: &Member) {
        match member {
            Member::Nothing => {}
            Member::Value(text) => {
                if self.kind == MemberKind::Unknown {
                    self.kind = MemberKind::of(self.members.key(), text);
                }
                match self.kind {
                    MemberKind::Arguments => self.early.push_str(text),
                    _ => self.value.push_str(text),
                }
            }
            Member::ValueEnd | Member::End => {
                let value = serde_json::from_str(&std::mem::take(&mut self.value));
                match (std::mem::take(&mut self.kind), value) {
                    (MemberKind::Name, Ok(Value::String(name))) => self.name = Some(name),
                    (MemberKind::Quoted, Ok(Value::String(text))) => self.early.push_str(&text),
                    _ => {}
                }
            }
        }
    }
}

impl MemberKind {
    fn of(key: &str, begin: &str) -> Self {
        match key {
            "name" => Self::Name,
            "arguments" | "parameters" if begin == "\"" => Self::Quoted,
            "arguments" | "parameters" => Self::Arguments,
            _ => Self::Other,
        }
    }
}

/// Parts of an answer, neighbours of a kind joined.
#[derive(Debug, Default)]
struct Deltas(Vec<ToolDelta>);

impl Deltas {
    fn push(&mut self, delta: ToolDelta) {
        match (self.0.last_mut(), delta) {
            (_, ToolDelta::Text(text)) if text.is_empty() => {}
            (Some(ToolDelta::Text(last)), ToolDelta::Text(text)) => last.push_str(&text),
            (
                Some(ToolDelta::Arguments { index: last, text: all }),
                ToolDelta::Arguments { index, text },
            ) if *last == index => all.push_str(&text),
            (_, delta) => self.0.push(delta),
        }
    }
}

/// Bytes at the end of a text that may be the beginning of a mark.
fn possible(text: &str, mark: &str) -> usize {
    let tails = text.char_indices().map(|(at, _)| &text[at..]);
    let mut tails = tails.filter(|tail| tail.len() < mark.len());
    tails.find(|tail| mark.starts_with(tail)).map_or(0, str::len)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What an answer says, and the calls in it.
    fn read<'a>(
        template: &str,
        pieces: impl Iterator<Item = &'a str>,
    ) -> (String, Vec<(String, String)>) {
        let mut parser = ToolParser::new(ToolFormat::of(template));
        let mut deltas: Vec<ToolDelta> = pieces.flat_map(|piece| parser.push(piece)).collect();
        deltas.extend(parser.finish());
        let (mut said, mut calls) = (String::new(), Vec::<(String, String)>::new());
        for delta in deltas {
            match delta {
                ToolDelta::Text(text) => said.push_str(&text),
                ToolDelta::Call { index, name } => {
                    assert_eq!(index, calls.len());
                    calls.push((name, String::new()));
                }
                ToolDelta::Arguments { index, text } => calls[index].1.push_str(&text),
            }
        }
        (said, calls)
    }

    #[test]
    fn every_family_writes_calls_in_its_own_way() {
        let one = &[("f", r#"{"a": "}\"{", "b": [1, 2]}"#)][..];
        let two = &[("f", r#"{"a": 1}"#), ("g", "{}")][..];
        for (template, text, said, calls) in [
            (
                "<tool_call>",
                "Well.\n<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\": \"}\\\"{\", \
                 \"b\": [1, 2]}}\n</tool_call>",
                "Well.\n",
                one,
            ),
            (
                "<tool_call>",
                "<tool_call>{\"arguments\": {\"a\": 1} , \"name\": \"f\"}</tool_call>\n\
                 <tool_call>{\"name\": \"g\", \"arguments\": \"{}\"}</tool_call>",
                "",
                two,
            ),
            (
                "<tool_call>",
                "<tool_call>{\"name\": \"f\", \"arguments\": {\"a\": \"</tool_call>\"}}</tool_call>",
                "",
                &[("f", r#"{"a": "</tool_call>"}"#)],
            ),
            ("<tool_call>", "a <tool_call>{\"nam\"", "a <tool_call>{\"nam\"", &[]),
            ("<tool_call>", "1 < 2 <tool", "1 < 2 <tool", &[]),
            (
                "[TOOL_CALLS]",
                "[TOOL_CALLS][{\"name\": \"f\", \"arguments\": {\"a\": 1}}, \
                 {\"name\": \"g\", \"arguments\": {}}]",
                "",
                two,
            ),
            ("[TOOL_CALLS]", "[TOOL_CALLS]f[ARGS]{\"a\": 1}[TOOL_CALLS]g[ARGS]{}", "", two),
            (
                "ipython",
                "{\"name\": \"f\", \"parameters\": {\"a\": 1}}; \
                         {\"name\": \"g\", \"parameters\": {}}",
                "",
                two,
            ),
            ("ipython", "{\"answer\": 42}", "{\"answer\": 42}", &[]),
            ("ipython", "Say {\"name\": \"f\"}", "Say {\"name\": \"f\"}", &[]),
            (
                "<|tool|>",
                "<|tool_call|>[{\"name\": \"f\", \"arguments\": {\"a\": 1}}, \
                 {\"name\": \"g\", \"arguments\": {}}]<|/tool_call|>",
                "",
                two,
            ),
            (
                "<｜tool▁calls▁begin｜>",
                "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>f\n```json\n\
                 {\"a\": 1}\n```<｜tool▁call▁end｜>\n<｜tool▁call▁begin｜>function<｜tool▁sep｜>g\n\
                 ```json\n{}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
                "",
                two,
            ),
        ] {
            let calls = calls.iter().map(|(f, a)| (f.to_string(), a.to_string())).collect();
            let expected = (said.to_owned(), calls);
            assert_eq!(read(template, std::iter::once(text)), expected, "{text}");
            let chars: Vec<String> = text.chars().map(String::from).collect();
            let by_char = read(template, chars.iter().map(String::as_str));
            assert_eq!(by_char, expected, "{text} by character");
        }
    }
}
