//! Why a request gets no answer, before any dialect words it.

use crate::dialect::Dialect;
use crate::loader::LoadError;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use std::fmt;
use tangor_engine::device::DeviceError;
use tangor_engine::{EngineError, text};
use tangor_store::StoreError;

/// What a handler hands back.
pub(crate) type Result<T, E = ApiError> = std::result::Result<T, E>;

/// What kind of trouble it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The request is malformed, or asks for what cannot be.
    Invalid,
    /// The key is missing or wrong.
    Unauthorized,
    /// The request came from where it must not come from.
    Forbidden,
    /// There is no such thing.
    NotFound,
    /// Not with this method.
    Method,
    /// The body is too long.
    TooLarge,
    /// The server does not do this.
    Unsupported,
    /// As many requests as fit are waiting.
    Busy,
    /// Not now.
    Unavailable,
    /// It took too long.
    Timeout,
    /// A defect, or a failing device.
    Internal,
}

impl Kind {
    pub(crate) fn status(self) -> StatusCode {
        match self {
            Self::Invalid => StatusCode::BAD_REQUEST,
            Self::Unauthorized => StatusCode::UNAUTHORIZED,
            Self::Forbidden => StatusCode::FORBIDDEN,
            Self::NotFound => StatusCode::NOT_FOUND,
            Self::Method => StatusCode::METHOD_NOT_ALLOWED,
            Self::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Unsupported => StatusCode::NOT_IMPLEMENTED,
            Self::Busy => StatusCode::TOO_MANY_REQUESTS,
            Self::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
            Self::Timeout => StatusCode::GATEWAY_TIMEOUT,
            Self::Internal => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }
}

/// An error of a request. Its message never holds a path or the text of a prompt.
#[derive(Clone, Debug)]
pub(crate) struct ApiError {
    pub(crate) kind: Kind,
    /// What happened, and what to do about it.
    pub(crate) message: String,
    /// The field of the request that is to blame.
    pub(crate) param: Option<String>,
    /// A word for programs, as `model_not_found`.
    pub(crate) code: Option<&'static str>,
    /// Seconds after which it is worth trying again.
    pub(crate) retry_after: Option<u64>,
}

impl ApiError {
    pub(crate) fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), param: None, code: None, retry_after: None }
    }

    /// A field with a value that it cannot have.
    pub(crate) fn field(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self { param: Some(param.into()), ..Self::new(Kind::Invalid, message) }
    }

    #[must_use]
    pub(crate) fn code(self, code: &'static str) -> Self {
        Self { code: Some(code), ..self }
    }

    /// The model cannot compute any more.
    fn lost(why: &str) -> Self {
        let message = format!("the model was lost, and the next request has it loaded: {why}");
        let error = Self::new(Kind::Unavailable, message).code("model_lost");
        Self { retry_after: Some(1), ..error }
    }

    /// There is no such model here.
    pub(crate) fn no_model(name: &str) -> Self {
        let message = format!(
            "the model {name:?} is not on this machine: pull it first, or ask /v1/models for those \
             that are"
        );
        let error = Self::new(Kind::NotFound, message).code("model_not_found");
        Self { param: Some("model".into()), ..error }
    }
}

/// The status and, for the layer around every route, the error itself: only the route knows in
/// which dialect to say it.
impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = self.kind.status().into_response();
        if let Some(seconds) = self.retry_after {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if self.kind == Kind::Unauthorized {
            let bearer = HeaderValue::from_static("Bearer");
            response.headers_mut().insert(header::WWW_AUTHENTICATE, bearer);
        }
        response.extensions_mut().insert(self);
        response
    }
}

/// Gives a response that is still a bare error the body that `dialect` has for it.
pub(crate) fn worded(mut response: Response, dialect: Dialect) -> Response {
    let Some(error) = response.extensions_mut().remove::<ApiError>() else { return response };
    let body = axum::Json(dialect.error(&error)).into_response();
    let (mut parts, _) = response.into_parts();
    parts.headers.remove(header::CONTENT_LENGTH);
    parts.headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    Response::from_parts(parts, body.into_body())
}

impl fmt::Display for ApiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl From<EngineError> for ApiError {
    fn from(error: EngineError) -> Self {
        let message = error.to_string();
        match error {
            EngineError::PromptTooLong { .. } => {
                Self::field("messages", message).code("context_length_exceeded")
            }
            EngineError::EmptyPrompt => Self::field("prompt", message),
            EngineError::Parameter { field, .. } => Self::field(field, message),
            EngineError::UnknownToken { .. } => Self::field("prompt", message),
            EngineError::Constraint(_) => Self::field("response_format", message),
            EngineError::NoEmbeddings => {
                Self::new(Kind::Unsupported, message).code("model_not_supported")
            }
            EngineError::Busy { .. } => {
                Self { retry_after: Some(1), ..Self::new(Kind::Busy, message) }
            }
            EngineError::Lost(why) => Self::lost(&why),
            EngineError::Device(why @ DeviceError::Lost { .. }) => Self::lost(&why.to_string()),
            _ => Self::new(Kind::Internal, message),
        }
    }
}

impl From<text::Error> for ApiError {
    fn from(error: text::Error) -> Self {
        let param = match &error {
            text::Error::Grammar { .. } => "response_format",
            _ => "messages",
        };
        Self::field(param, error.to_string())
    }
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        // What the system says of a path stays here; clients learn what was tried, and why not.
        let message = match &error {
            StoreError::Io { action, source, .. } => {
                format!("cannot {action} a file of the model store: {}", source.kind())
            }
            StoreError::NoSpace { .. } => "the disk of the model store is full".to_owned(),
            StoreError::NotFound(_) | StoreError::NotAModel { .. } => {
                "the model's files are gone".to_owned()
            }
            other => other.to_string(),
        };
        let message = error.hint().map_or(message.clone(), |hint| format!("{message}: {hint}"));
        match error {
            StoreError::BadName { .. } => Self::field("model", message),
            StoreError::UnknownName(_) => Self::field("model", message).code("unknown_model"),
            StoreError::NotInstalled(name) => Self::no_model(&name),
            StoreError::Offline(_) => Self::field("model", message).code("offline"),
            StoreError::NoSpace { .. } => Self::new(Kind::Unavailable, message),
            _ => Self::new(Kind::Internal, message),
        }
    }
}

impl From<LoadError> for ApiError {
    fn from(error: LoadError) -> Self {
        let lacks = error.lacked().is_some();
        let error = match error {
            LoadError::Store(error) => error.into(),
            error if lacks => {
                let message = format!("{error}; or start the server with more --memory");
                Self::new(Kind::Unavailable, message)
            }
            error => Self::new(Kind::Internal, error.to_string()),
        };
        Self { code: error.code.or(Some("model_load_error")), ..error }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;

    #[test]
    fn why_a_model_is_not_loaded_names_no_path() {
        let path = std::path::PathBuf::from("/home/somebody/models/tiny");
        let denied = io::Error::from(io::ErrorKind::PermissionDenied);
        let refused = StoreError::Io { action: "open", path: path.clone(), source: denied };
        for error in [refused, StoreError::NotFound(path)] {
            let error = ApiError::from(LoadError::from(error));
            assert!(!error.message.contains("somebody"), "{error}");
            assert_eq!((error.kind, error.code), (Kind::Internal, Some("model_load_error")));
        }
    }
}
