//! JSON from files that nobody vouches for: bounded in size, depth and number of values, and
//! without duplicate keys (which parsers resolve differently).

use crate::{FormatError, Limits, Result};
use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};
use std::fmt;

/// Parses a whole file. `subject` is its name.
///
/// # Errors
/// If it is longer than [`Limits::json_bytes`], holds more than [`Limits::json_values`] values, is
/// nested more than 128 levels deep, repeats a key within an object, or is not JSON.
pub fn parse(subject: &str, bytes: &[u8], limits: &Limits) -> Result<Value> {
    if bytes.len() as u64 > limits.json_bytes {
        return Err(FormatError::limit(subject, "bytes of JSON", bytes.len(), limits.json_bytes));
    }
    let mut left = limits.json_values;
    let mut reader = serde_json::Deserializer::from_slice(bytes);
    let value = Bounded(&mut left).deserialize(&mut reader);
    match value.and_then(|value| reader.end().map(|()| value)) {
        Ok(value) => Ok(value),
        Err(_) if left == 0 => {
            let limit = limits.json_values;
            Err(FormatError::limit(subject, "JSON values", format!("more than {limit}"), limit))
        }
        Err(error) => Err(invalid(subject, &error)),
    }
}

/// The error for a file that is not the JSON it should be.
pub(crate) fn invalid(subject: &str, error: &serde_json::Error) -> FormatError {
    FormatError::malformed(subject, format!("is not valid JSON here: {error}"))
}

/// Builds a value while counting down.
struct Bounded<'a>(&'a mut usize);

impl<'de> DeserializeSeed<'de> for Bounded<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        *self.0 = self.0.checked_sub(1).ok_or_else(|| D::Error::custom("too many values"))?;
        if *self.0 == 0 {
            return Err(D::Error::custom("too many values"));
        }
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Bounded<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
        let number = Number::from_f64(value);
        number.map(Value::Number).ok_or_else(|| E::custom("a number that is not finite"))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Value, A::Error> {
        let mut values = Vec::new();
        while let Some(value) = list.next_element_seed(Bounded(self.0))? {
            values.push(value);
        }
        Ok(Value::Array(values))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut values = Map::new();
        while let Some(key) = map.next_key::<String>()? {
            let value = map.next_value_seed(Bounded(self.0))?;
            if values.contains_key(&key) {
                return Err(A::Error::custom(format!("the key {key:?} occurs twice")));
            }
            values.insert(key, value);
        }
        Ok(Value::Object(values))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ErrorKind;

    fn kind_of(text: &str) -> ErrorKind {
        parse("x.json", text.as_bytes(), &Limits::default()).unwrap_err().kind()
    }

    #[test]
    fn reads_what_serde_reads() {
        let text = r#"{"a":[1,-2,2.5,1e3,true,null,"x\u00e9"],"b":{"c":18446744073709551615}}"#;
        let value = parse("x.json", text.as_bytes(), &Limits::default()).unwrap();
        assert_eq!(value, serde_json::from_str::<Value>(text).unwrap());
    }

    #[test]
    fn refuses_what_parsers_disagree_about() {
        for text in [
            "",
            "{",
            "[1]x",
            "\u{feff}{}",
            r#"{"a":1,"a":2}"#,
            r#""\ud800""#,
            "[NaN]",
            "[1e400]",
            "[01]",
            "{'a':1}",
            "\0",
            "[1,]",
        ] {
            assert_eq!(kind_of(text), ErrorKind::Malformed, "{text:?}");
        }
    }

    #[test]
    fn bounds_depth_size_and_number_of_values() {
        assert_eq!(kind_of(&"[".repeat(100_000)), ErrorKind::Malformed);
        assert_eq!(kind_of(&" ".repeat((8 << 20) + 1)), ErrorKind::Limit);
        let list = |count: usize| format!("[{}0]", "0,".repeat(count.saturating_sub(1)));
        let limits = Limits { json_values: 10, ..Limits::default() };
        assert!(parse("x.json", list(8).as_bytes(), &limits).is_ok());
        let error = parse("x.json", list(10).as_bytes(), &limits).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Limit);
    }
}
