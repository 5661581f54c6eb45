//! A conversation: its messages, and the file that `/save` and `/load` keep it in.

use crate::error::{Failure, Outcome};
use crate::files;
use crate::prompt::{Role, Turn};
use serde::{Deserialize, Serialize};
use std::fs;
use std::path::Path;

/// Largest file that `/load` reads.
const MAX_BYTES: u64 = 64 << 20;

/// Everything said so far. At most one system message, and that first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Conversation {
    messages: Vec<Turn>,
}

impl Conversation {
    /// An empty conversation under a system message.
    pub(crate) fn new(system: Option<String>) -> Self {
        let turn = system.map(|content| Turn { role: Role::System, content });
        Self { messages: turn.into_iter().collect() }
    }

    /// What was said, in order.
    pub(crate) fn turns(&self) -> &[Turn] {
        &self.messages
    }

    /// The system message.
    pub(crate) fn system(&self) -> Option<&str> {
        let first = self.messages.first().filter(|turn| turn.role == Role::System)?;
        Some(&first.content)
    }

    /// Forgets everything but the system message.
    pub(crate) fn clear(&mut self) {
        self.messages.retain(|turn| turn.role == Role::System);
    }

    /// The user says something.
    pub(crate) fn ask(&mut self, content: String) {
        self.messages.push(Turn { role: Role::User, content });
    }

    /// The model says something.
    pub(crate) fn answer(&mut self, content: String) {
        self.messages.push(Turn { role: Role::Assistant, content });
    }

    /// Takes back the last question and whatever followed it; the question, if there was one.
    pub(crate) fn undo(&mut self) -> Option<String> {
        let last = self.messages.iter().rposition(|turn| turn.role == Role::User)?;
        self.messages.drain(last..).next().map(|turn| turn.content)
    }

    /// Writes it to a file as `{"messages": [{"role", "content"}]}`, the shape that chat APIs take.
    pub(crate) fn save(&self, path: &Path) -> Outcome {
        let text = serde_json::to_string_pretty(self)?;
        files::write_whole(path, &(text + "\n"))
    }

    /// Reads what [`Conversation::save`] wrote, or the bare list of messages.
    pub(crate) fn load(path: &Path) -> Outcome<Self> {
        let about = |failure: Failure| failure.about(path.display());
        let size = fs::metadata(path).map_err(|e| about(Failure::from(e)))?.len();
        if size > MAX_BYTES {
            return Err(about(Failure::new(format!("is larger than {MAX_BYTES} bytes"))));
        }
        let text = fs::read_to_string(path).map_err(|e| about(Failure::from(e)))?;
        let whole: Result<Self, _> = serde_json::from_str(&text);
        let conversation = whole.or_else(|error| {
            let bare: Result<Vec<Turn>, _> = serde_json::from_str(&text);
            bare.map(|messages| Self { messages }).map_err(|_| error)
        });
        let conversation = conversation.map_err(|error| {
            about(Failure::new(format!("is no conversation: {error}")))
                .hint("/save writes such a file: {\"messages\": [{\"role\": …, \"content\": …}]}")
        })?;
        let late = conversation.messages.iter().skip(1).any(|turn| turn.role == Role::System);
        if late {
            return Err(about(Failure::new("has a system message that is not the first one")));
        }
        Ok(conversation)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> Conversation {
        let mut talk = Conversation::new(Some("Be brief.".into()));
        talk.ask("One?".into());
        talk.answer("1".into());
        talk.ask("Two?".into());
        talk.answer("2".into());
        talk
    }

    #[test]
    fn undo_takes_back_a_question_and_its_answer() {
        let mut talk = example();
        assert_eq!(talk.undo().as_deref(), Some("Two?"));
        assert_eq!(talk.turns().len(), 3);
        assert_eq!(talk.undo().as_deref(), Some("One?"));
        assert_eq!(talk.undo(), None);
        assert_eq!(talk.system(), Some("Be brief."));
    }

    #[test]
    fn clear_keeps_the_system_message() {
        let mut talk = example();
        talk.clear();
        assert_eq!(talk, Conversation::new(Some("Be brief.".into())));
    }

    #[test]
    fn what_is_saved_is_loaded() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("talk.json");
        example().save(&path).unwrap();
        assert_eq!(Conversation::load(&path).unwrap(), example());
    }

    #[test]
    fn files_that_are_no_conversation_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("talk.json");
        let late = r#"[{"role":"user","content":"a"},{"role":"system","content":"b"}]"#;
        for text in ["", "{}", "[1]", r#"[{"role":"cat","content":"miaow"}]"#, late] {
            fs::write(&path, text).unwrap();
            assert!(Conversation::load(&path).is_err(), "{text}");
        }
        assert!(Conversation::load(&folder.path().join("absent")).is_err());
        fs::write(&path, r#"[{"role":"user","content":"a"}]"#).unwrap();
        assert_eq!(Conversation::load(&path).unwrap().turns().len(), 1);
    }
}
