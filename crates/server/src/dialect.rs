//! The interfaces that the server speaks, and how each words an error.

use crate::error::{ApiError, Kind};
use serde_json::{Value, json};

/// Whose interface a route belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dialect {
    OpenAi,
    Anthropic,
    Ollama,
    /// Lemonade's own routes; it words errors as OpenAI does.
    Lemonade,
}

impl Dialect {
    /// Every one.
    pub(crate) const ALL: [Self; 4] = [Self::OpenAi, Self::Anthropic, Self::Ollama, Self::Lemonade];

    /// What the OpenAPI document calls it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::OpenAi => "OpenAI",
            Self::Anthropic => "Anthropic",
            Self::Ollama => "Ollama",
            Self::Lemonade => "Lemonade",
        }
    }

    /// The body of an error.
    pub(crate) fn error(self, error: &ApiError) -> Value {
        match self {
            Self::OpenAi | Self::Lemonade => json!({"error": {
                "message": error.message,
                "type": openai_type(error.kind),
                "param": error.param,
                "code": error.code,
            }}),
            Self::Anthropic => json!({
                "type": "error",
                "error": {"type": anthropic_type(error.kind), "message": error.message},
            }),
            Self::Ollama => json!({"error": error.message}),
        }
    }

    /// What its errors look like (see [`crate::shape`]).
    pub(crate) fn error_example(self) -> Value {
        match self {
            Self::OpenAi | Self::Lemonade => {
                json!({"error": {"message": "", "type": "", "param?": "", "code?": ""}})
            }
            Self::Anthropic => json!({"type": "error", "error": {"type": "", "message": ""}}),
            Self::Ollama => json!({"error": ""}),
        }
    }
}

fn openai_type(kind: Kind) -> &'static str {
    match kind {
        Kind::Invalid | Kind::TooLarge | Kind::Method | Kind::Unsupported => {
            "invalid_request_error"
        }
        Kind::Unauthorized => "authentication_error",
        Kind::Forbidden => "permission_error",
        Kind::NotFound => "not_found_error",
        Kind::Busy => "rate_limit_error",
        Kind::Unavailable | Kind::Timeout | Kind::Internal => "server_error",
    }
}

fn anthropic_type(kind: Kind) -> &'static str {
    match kind {
        Kind::Invalid | Kind::Method | Kind::Unsupported => "invalid_request_error",
        Kind::TooLarge => "request_too_large",
        Kind::Unauthorized => "authentication_error",
        Kind::Forbidden => "permission_error",
        Kind::NotFound => "not_found_error",
        Kind::Busy => "rate_limit_error",
        Kind::Unavailable => "overloaded_error",
        Kind::Timeout => "timeout_error",
        Kind::Internal => "api_error",
    }
}
