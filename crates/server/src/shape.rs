//! Schemas written as examples, which stand beside the code that words answers or reads requests.
//!
//! | in an example | means |
//! |---|---|
//! | `""`, `0`, `0.5`, `true` | a text, a whole number that is not negative, a number, a truth |
//! | `"a\|b"` | one of these words |
//! | `[x]`, `[]`, `{}` | a list of such, a list of anything, an object of anything |
//! | `{"a": x, "b?": y}` | an object that has `a`, and may have `b` or have it as `null` |
//! | `{"*": x}` | an object with any names for such |
//! | `{"|": [x, y]}` | such or such |
//! | `null` | anything |

use schemars::{Schema, SchemaGenerator, json_schema};
use serde_json::{Map, Value, json};

/// The schema of a request's field that looks like `example`.
pub(crate) fn field(example: &Value) -> Schema {
    Schema::try_from(like(example)).unwrap_or_default()
}

/// The schema of a field that is refused: it can be left out only.
pub(crate) fn refused(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "null"})
}

/// The schema of whatever looks like `example`.
pub(crate) fn like(example: &Value) -> Value {
    match example {
        Value::Null => json!({}),
        Value::Bool(_) => json!({"type": "boolean"}),
        Value::Number(number) if number.is_f64() => json!({"type": "number"}),
        Value::Number(_) => json!({"type": "integer", "minimum": 0}),
        Value::String(words) if words.is_empty() => json!({"type": "string"}),
        Value::String(words) => json!({"enum": words.split('|').collect::<Vec<_>>()}),
        Value::Array(items) => match items.first() {
            None => json!({"type": "array"}),
            Some(item) => json!({"type": "array", "items": like(item)}),
        },
        Value::Object(members) => object(members),
    }
}

fn object(members: &Map<String, Value>) -> Value {
    if let Some(any) = members.get("*") {
        return json!({"type": "object", "additionalProperties": like(any)});
    }
    if let Some(either) = members.get("|").and_then(Value::as_array) {
        return json!({"anyOf": either.iter().map(like).collect::<Vec<_>>()});
    }
    if members.is_empty() {
        return json!({"type": "object"});
    }
    let (mut properties, mut required) = (Map::new(), Vec::new());
    for (name, example) in members {
        match name.strip_suffix('?') {
            Some(name) => {
                let schema = json!({"anyOf": [like(example), {"type": "null"}]});
                properties.insert(name.to_owned(), schema);
            }
            None => {
                properties.insert(name.clone(), like(example));
                required.push(name);
            }
        }
    }
    json!({"type": "object", "properties": properties, "required": required})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_example_is_read_as_its_table_says() {
        let example = json!({"kind": "a|b", "n": 0, "rates?": [0.5], "more": {"*": true},
                            "any": {"|": [{}, ""]}});
        let expected = json!({
            "type": "object",
            "properties": {
                "kind": {"enum": ["a", "b"]},
                "n": {"type": "integer", "minimum": 0},
                "rates": {"anyOf": [
                    {"type": "array", "items": {"type": "number"}}, {"type": "null"},
                ]},
                "more": {"type": "object", "additionalProperties": {"type": "boolean"}},
                "any": {"anyOf": [{"type": "object"}, {"type": "string"}]},
            },
            "required": ["kind", "n", "more", "any"],
        });
        assert_eq!(like(&example), expected);
    }
}
