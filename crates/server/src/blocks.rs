//! An answer as a row of blocks, as the Responses API, Anthropic and Ollama have it: thinking,
//! text, calls, each complete before the next one begins.

use crate::answers::{Delta, End, Happening};

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
pub(crate) fn blocks(choice: &crate::answers::Choice) -> Vec<Block> {
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

#[cfg(test)]
mod tests {
    use super::*;

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
