//! How much a model is to think, as dialects say it and as templates know it.

use crate::error::{ApiError, Result};
use crate::shape::field;
use schemars::{Schema, SchemaGenerator};
use serde_json::{Map, Value, json};

/// Levels that dialects name, as [`crate::shape`] has it.
pub(crate) const LEVELS: &str = "none|minimal|low|medium|high|xhigh|max";

/// What a level looks like.
pub(crate) fn level_schema(_: &mut SchemaGenerator) -> Schema {
    field(&json!(LEVELS))
}

/// Variables of the template for a level that stands in `field`. Templates know thinking as such, a
/// level of it, or neither.
///
/// # Errors
/// If there is no such level.
pub(crate) fn of_level(level: &Value, field: &str) -> Result<Map<String, Value>> {
    match level.as_str() {
        None if level.is_null() => Ok(Map::new()),
        Some("none") => Ok(switch(false)),
        Some(word) if LEVELS.split('|').any(|known| known == word) => {
            let mut variables = switch(true);
            variables.insert("reasoning_effort".into(), word.into());
            Ok(variables)
        }
        _ => {
            let known = LEVELS.replace('|', ", ");
            Err(ApiError::field(field, format!("{field} is {level}: there are {known}")))
        }
    }
}

/// Variables of the template for thinking, or none of it.
pub(crate) fn switch(on: bool) -> Map<String, Value> {
    Map::from_iter([("enable_thinking".to_owned(), on.into())])
}
