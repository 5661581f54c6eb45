//! An answer as a row of blocks, as the Responses API, Anthropic and Ollama have it: thinking,
//! text, calls, each complete before the next one begins.

use crate::answers::{Choice, Delta, End, Happening};
use serde_json::{Value, json};

/// What a block is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum BlockKind {
    Reasoning,
    Text,
    Call { id: String, name: String },
}

/// A part of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Block {
    /// Its place in the answer.
    pub(crate) index: usize,
    pub(crate) kind: BlockKind,
    /// What it says; of a call, its arguments. Of a change, what that adds or completes.
    pub(crate) text: String,
}

impl Block {
    /// The arguments of a call, if they are an object, or were left out.
    pub(crate) fn arguments(&self) -> Option<Value> {
        if !matches!(self.kind, BlockKind::Call { .. }) {
            return None;
        }
        match self.text.trim() {
            "" | "null" => Some(json!({})),
            text => serde_json::from_str(text).ok().filter(Value::is_object),
        }
    }

    /// Whether it says all that it was to say: `cut`, if the answer's end cut it off.
    pub(crate) fn is_whole(&self, cut: bool) -> bool {
        !cut || (self.arguments().is_some() && !self.text.trim().is_empty())
    }

    /// This, for dialects in which every call is whole: what clients are handed as one, they make.
    /// A call that the answer's end cut off is nothing; one that is broken is text.
    pub(crate) fn sound(self, cut: bool) -> Option<Self> {
        let BlockKind::Call { name, .. } = &self.kind else { return Some(self) };
        if self.arguments().is_some() && self.is_whole(cut) {
            return Some(self);
        }
        let written = || format!("{{\"name\": {}, \"arguments\": {}", json!(name), self.text);
        let text = (!cut).then(written)?;
        Some(Self { index: self.index, kind: BlockKind::Text, text })
    }
}

/// What becomes of blocks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// A block begins, without a word.
    Open(Block),
    /// The open block goes on: only what is new is in it, since answers are long.
    More(Block),
    /// A block is complete, with all that it says.
    Close(Block),
}

/// The blocks of an answer that is being written, and how it ended.
#[derive(Clone, Debug, Default)]
pub(crate) struct Blocks {
    open: Option<Block>,
    next: usize,
    end: Option<End>,
}

impl Blocks {
    /// What becomes of the blocks when something happens.
    pub(crate) fn happened(&mut self, happening: Happening) -> Vec<Change> {
        match happening {
            Happening::Scored { .. } => Vec::new(),
            Happening::Delta { delta, .. } => self.push(delta),
            Happening::End { end, .. } => {
                self.end = Some(end);
                self.finish()
            }
        }
    }

    /// How the answer ended, once it has.
    pub(crate) fn end(&self) -> Option<&End> {
        self.end.as_ref()
    }

    /// Whether the answer ended in the middle of the last block.
    pub(crate) fn is_cut(&self) -> bool {
        self.end().is_some_and(End::is_cut)
    }

    /// Takes the next part of the answer.
    fn push(&mut self, delta: Delta) -> Vec<Change> {
        let mut changes = Vec::new();
        let text = match delta {
            Delta::Text(text) => {
                self.enter(BlockKind::Text, &mut changes);
                text
            }
            Delta::Reasoning(text) => {
                self.enter(BlockKind::Reasoning, &mut changes);
                text
            }
            Delta::Call { id, name, .. } => {
                self.enter(BlockKind::Call { id, name }, &mut changes);
                return changes;
            }
            Delta::Arguments { text, .. } => text,
        };
        if let Some(block) = &mut self.open {
            block.text.push_str(&text);
            let kind = block.kind.clone();
            changes.push(Change::More(Block { index: block.index, kind, text }));
        }
        changes
    }

    /// Closes the last block. An answer that said nothing has one empty text.
    fn finish(&mut self) -> Vec<Change> {
        let mut changes = Vec::new();
        if self.next == 0 {
            self.enter(BlockKind::Text, &mut changes);
        }
        changes.extend(self.open.take().map(Change::Close));
        changes
    }

    fn enter(&mut self, kind: BlockKind, changes: &mut Vec<Change>) {
        if self.open.as_ref().is_some_and(|open| open.kind == kind) {
            return;
        }
        changes.extend(self.open.take().map(Change::Close));
        let block = Block { index: self.next, kind, text: String::new() };
        self.next += 1;
        changes.push(Change::Open(block.clone()));
        self.open = Some(block);
    }
}

/// All blocks of an answer that is complete.
pub(crate) fn blocks(choice: &Choice) -> Vec<Block> {
    let mut all = Blocks::default();
    let mut changes = Vec::new();
    if !choice.reasoning.is_empty() {
        changes.extend(all.push(Delta::Reasoning(choice.reasoning.clone())));
    }
    if !choice.text.is_empty() {
        changes.extend(all.push(Delta::Text(choice.text.clone())));
    }
    for (index, call) in choice.calls.iter().enumerate() {
        let (id, name) = (call.id.clone(), call.name.clone());
        changes.extend(all.push(Delta::Call { index, id, name }));
        changes.extend(all.push(Delta::Arguments { index, text: call.arguments.clone() }));
    }
    changes.extend(all.finish());
    let closed = changes.into_iter().filter_map(|change| match change {
        Change::Close(block) => Some(block),
        _ => None,
    });
    closed.collect()
}

/// The same, for dialects in which every call is whole.
pub(crate) fn sound_blocks(choice: &Choice) -> Vec<Block> {
    let mut all = blocks(choice);
    let cut = choice.end.is_cut();
    let last = all.pop().and_then(|last| last.sound(cut));
    all.into_iter().filter_map(|block| block.sound(false)).chain(last).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_call_that_is_whole_is_one() {
        let name = || "f".to_owned();
        let call = |text: &str| {
            let kind = BlockKind::Call { id: "1".into(), name: name() };
            Block { index: 0, kind, text: text.to_owned() }
        };
        for (text, cut, expected) in [
            ("{\"a\": 1}", false, Some("{\"a\":1}")),
            ("{\"a\": 1}", true, Some("{\"a\":1}")),
            ("", false, Some("{}")),
            ("", true, None),
            ("{\"a\": ", true, None),
            ("{\"a\": 1,}", false, None),
            ("[1]", false, None),
        ] {
            let sound = call(text).sound(cut);
            let arguments = sound.as_ref().and_then(Block::arguments);
            assert_eq!(arguments.map(|a| a.to_string()).as_deref(), expected, "{text}");
            // What the model wrote is not lost, unless it is no whole sentence anyway.
            let said = sound.filter(|block| block.kind == BlockKind::Text).map(|block| block.text);
            let written = (expected.is_none() && !cut)
                .then(|| format!("{{\"name\": \"f\", \"arguments\": {text}"));
            assert_eq!(said, written);
        }
    }

    #[test]
    fn a_block_is_complete_before_the_next_one_begins() {
        let mut blocks = Blocks::default();
        let call = |index, name: &str| Delta::Call { index, id: "1".into(), name: name.into() };
        let mut changes = Vec::new();
        for delta in [
            Delta::Reasoning("hm".into()),
            Delta::Text("a".into()),
            Delta::Text("b".into()),
            call(0, "f"),
            Delta::Arguments { index: 0, text: "{}".into() },
            call(1, "g"),
        ] {
            changes.extend(blocks.push(delta));
        }
        changes.extend(blocks.finish());
        let word = |change: &Change| match change {
            Change::Open(block) => format!("+{}", block.index),
            Change::More(block) => block.text.clone(),
            Change::Close(block) => format!("-{}{}", block.index, block.text),
        };
        let words: Vec<String> = changes.iter().map(word).collect();
        assert_eq!(words.join(" "), "+0 hm -0hm +1 a b -1ab +2 {} -2{} +3 -3");
    }

    #[test]
    fn an_answer_without_a_word_has_one_empty_text() {
        let changes = Blocks::default().finish();
        assert!(
            matches!(&changes[..], [Change::Open(_), Change::Close(block)] if block.text.is_empty())
        );
    }
}
