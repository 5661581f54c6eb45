//! What clients of Ollama ask for and this server does not do: told so, it is not taken for a wrong
//! address.

use crate::error::{ApiError, Kind};

/// Models are not made of other models here.
pub(crate) async fn create() -> ApiError {
    let message = "this server makes no models: start it with the path of a file or folder, or \
                   pull one by its name";
    ApiError::new(Kind::Unsupported, message)
}

/// Models have one name.
pub(crate) async fn copy() -> ApiError {
    let message = "this server gives models no second name: ask for the model by the one it has";
    ApiError::new(Kind::Unsupported, message)
}

/// Models go nowhere.
pub(crate) async fn push() -> ApiError {
    ApiError::new(Kind::Unsupported, "this server sends models nowhere: it only fetches them")
}
