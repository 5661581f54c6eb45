//! Messages of a conversation, in the shape of the OpenAI chat API, which templates expect.

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};

/// One message.
///
/// Fields that are not set are not visible to the template at all: many templates ask
/// `message.tool_calls is defined`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Message {
    /// `system`, `user`, `assistant`, `tool`, or another role that the template knows.
    pub role: String,
    /// The text. `None` is JSON `null`, as an assistant message that only calls tools has it.
    #[serde(default)]
    pub content: Option<Content>,
    /// What a reasoning model thought before it answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reasoning_content: Option<String>,
    /// Tools that the assistant called.
    #[serde(default, deserialize_with = "or_empty", skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<ToolCall>,
    /// In a `tool` message: the call that this is the result of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool_call_id: Option<String>,
    /// Name of the participant, or of the tool.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Anything else that a template may look for.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

impl Message {
    /// A message with a role and a text.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        let content = Some(Content::Text(content.into()));
        Self { role: role.into(), content, ..Self::default() }
    }
}

/// The content of a message: a text, or parts as `{"type": "text", "text": "…"}`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Content {
    /// Plain text.
    Text(String),
    /// Parts, handed to the template as they are.
    Parts(Vec<Value>),
}

/// A call of a tool by the assistant.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ToolCall {
    /// Id that the result refers to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// `function`.
    #[serde(rename = "type", default = "function", skip_serializing_if = "String::is_empty")]
    pub kind: String,
    /// What is called.
    pub function: FunctionCall,
}

/// Clients send `null` for "no calls".
fn or_empty<'de, D: Deserializer<'de>>(value: D) -> Result<Vec<ToolCall>, D::Error> {
    Ok(Option::deserialize(value)?.unwrap_or_default())
}

fn function() -> String {
    "function".to_owned()
}

/// Name and arguments of a call.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct FunctionCall {
    /// Name of the function.
    pub name: String,
    /// A JSON object, or, as the OpenAI API has it, a string that contains one. The template gets
    /// whichever of the two it can print.
    #[serde(default)]
    pub arguments: Value,
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn messages_of_the_openai_api_are_read_and_only_what_is_set_is_shown() {
        let given = json!({"role": "assistant", "content": null, "tool_calls": [
            {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
            "thinking": "hm"});
        let message: Message = serde_json::from_value(given.clone()).unwrap();
        assert_eq!(serde_json::to_value(&message).unwrap(), given);
        let nulls = json!({"role": "user", "content": "x", "tool_calls": null, "name": null});
        let message: Message = serde_json::from_value(nulls).unwrap();
        let shown = serde_json::to_value(&message).unwrap();
        assert_eq!(shown, json!({"role": "user", "content": "x"}));
        assert_eq!(message, Message::new("user", "x"));
    }
}
