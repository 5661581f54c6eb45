//! Values printed as Python prints them: `str`, `repr` and `json.dumps`.

use crate::limits;
use minijinja::value::{Serde, ValueKind};
use minijinja::{Error, ErrorKind, Value};
use std::fmt::Write as _;

/// Python's `str(value)`.
pub(crate) fn python_str(value: &Value) -> String {
    if let Some(text) = value.as_str() {
        return text.to_owned();
    }
    let mut out = String::new();
    write_repr(&mut out, value, 0);
    out
}

/// Python's `repr(value)`, for what templates can hold.
fn write_repr(out: &mut String, value: &Value, depth: usize) {
    if depth > limits::TEMPLATE_DEPTH {
        out.push_str("...");
        return;
    }
    match value.kind() {
        ValueKind::Undefined => {}
        ValueKind::None => out.push_str("None"),
        ValueKind::Bool => out.push_str(if value.is_true() { "True" } else { "False" }),
        ValueKind::Number => write_number(out, value),
        ValueKind::String => write_string_repr(out, value.as_str().unwrap_or_default()),
        ValueKind::Seq | ValueKind::Iterable => {
            out.push('[');
            for (i, item) in value.try_iter().into_iter().flatten().enumerate() {
                out.push_str(if i == 0 { "" } else { ", " });
                write_repr(out, &item, depth + 1);
            }
            out.push(']');
        }
        ValueKind::Map => {
            out.push('{');
            for (i, key) in value.try_iter().into_iter().flatten().enumerate() {
                out.push_str(if i == 0 { "" } else { ", " });
                write_repr(out, &key, depth + 1);
                out.push_str(": ");
                write_repr(out, &value.get_item(&key).unwrap_or_default(), depth + 1);
            }
            out.push('}');
        }
        _ => out.push_str(&value.to_string()),
    }
}

fn write_string_repr(out: &mut String, text: &str) {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    out.push(quote);
    for c in text.chars() {
        match c {
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\\' => out.push_str("\\\\"),
            c if c == quote => out.extend(['\\', c]),
            c if c.is_control() => out.extend(c.escape_default()),
            c => out.push(c),
        }
    }
    out.push(quote);
}

/// A number as Python prints it.
fn write_number(out: &mut String, value: &Value) {
    let printed = value.to_string();
    let is_float = !value.is_integer();
    match printed.parse::<f64>() {
        Ok(float) if is_float => out.push_str(&python_float(float)),
        _ => out.push_str(&printed),
    }
}

/// Python's `repr` of a float: the shortest digits, with an exponent outside 1e-4 to 1e16.
fn python_float(value: f64) -> String {
    if !value.is_finite() {
        let name = if value.is_nan() { "nan" } else { "inf" };
        return if value < 0.0 { format!("-{name}") } else { name.to_owned() };
    }
    let scientific = format!("{value:e}");
    let Some((digits, exponent)) = scientific.split_once('e') else { return scientific };
    match exponent.parse::<i32>() {
        Ok(e) if value != 0.0 && !(-4..16).contains(&e) => {
            let sign = if e < 0 { '-' } else { '+' };
            format!("{digits}e{sign}{:02}", e.unsigned_abs())
        }
        _ => format!("{value:?}"),
    }
}

/// How JSON is laid out.
pub(crate) struct Json {
    pub(crate) ensure_ascii: bool,
    /// Spaces per level; `None` for one line.
    pub(crate) indent: Option<usize>,
    pub(crate) item: String,
    pub(crate) key: String,
    pub(crate) sort_keys: bool,
}

impl Default for Json {
    fn default() -> Self {
        Self {
            ensure_ascii: false,
            indent: None,
            item: ", ".to_owned(),
            key: ": ".to_owned(),
            sort_keys: false,
        }
    }
}

/// Python's `json.dumps(value, ensure_ascii=False)`.
pub(crate) fn python_json(value: &serde_json::Value) -> String {
    let mut out = String::new();
    let written = Json::default().write(&mut out, &Value::from(Serde(value)), 0);
    if written.is_err() { value.to_string() } else { out }
}

impl Json {
    /// Appends a value.
    pub(crate) fn write(&self, out: &mut String, value: &Value, depth: usize) -> Result<(), Error> {
        if depth > limits::TEMPLATE_DEPTH {
            return Err(Error::new(
                ErrorKind::InvalidOperation,
                "tojson: value is nested too deep",
            ));
        }
        if out.len() > limits::TEMPLATE_OUTPUT {
            return Err(Error::new(ErrorKind::OutOfFuel, "tojson: output is too large"));
        }
        match value.kind() {
            ValueKind::None => out.push_str("null"),
            ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => write_number(out, value),
            ValueKind::String => self.write_string(out, value.as_str().unwrap_or_default()),
            ValueKind::Seq | ValueKind::Iterable => {
                let items: Vec<Value> = value.try_iter()?.collect();
                self.write_list(out, ('[', ']'), items, depth, |json, out, item| {
                    json.write(out, &item, depth + 1)
                })?;
            }
            ValueKind::Map => {
                let mut keys: Vec<Value> = value.try_iter()?.collect();
                if self.sort_keys {
                    keys.sort();
                }
                self.write_list(out, ('{', '}'), keys, depth, |json, out, key| {
                    json.write_string(out, &json_key(&key)?);
                    out.push_str(&json.key);
                    json.write(out, &value.get_item(&key)?, depth + 1)
                })?;
            }
            kind => {
                let why = format!("a value of type {kind} is not JSON serializable");
                return Err(Error::new(ErrorKind::InvalidOperation, why));
            }
        }
        Ok(())
    }

    fn write_list(
        &self,
        out: &mut String,
        (open, close): (char, char),
        items: Vec<Value>,
        depth: usize,
        mut write: impl FnMut(&Self, &mut String, Value) -> Result<(), Error>,
    ) -> Result<(), Error> {
        out.push(open);
        let is_empty = items.is_empty();
        for (i, item) in items.into_iter().enumerate() {
            out.push_str(if i == 0 { "" } else { &self.item });
            self.new_line(out, depth + 1);
            write(self, out, item)?;
        }
        if !is_empty {
            self.new_line(out, depth);
        }
        out.push(close);
        Ok(())
    }

    fn new_line(&self, out: &mut String, depth: usize) {
        if let Some(indent) = self.indent {
            out.push('\n');
            out.extend(std::iter::repeat_n(' ', indent * depth));
        }
    }

    fn write_string(&self, out: &mut String, text: &str) {
        out.push('"');
        for c in text.chars() {
            match c {
                '"' => out.push_str("\\\""),
                '\\' => out.push_str("\\\\"),
                '\n' => out.push_str("\\n"),
                '\r' => out.push_str("\\r"),
                '\t' => out.push_str("\\t"),
                '\u{8}' => out.push_str("\\b"),
                '\u{c}' => out.push_str("\\f"),
                c if c < ' ' => write_escape(out, u16::try_from(u32::from(c)).unwrap_or(0)),
                // Private characters are left: one may be the dye of an ASCII character.
                c if self.ensure_ascii && !c.is_ascii() && c < crate::guard::PRIVATE => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        write_escape(out, *unit);
                    }
                }
                c => out.push(c),
            }
        }
        out.push('"');
    }
}

fn write_escape(out: &mut String, unit: u16) {
    // Writing to a string does not fail.
    let _ = write!(out, "\\u{unit:04x}");
}

/// A dictionary's key as JSON has it.
fn json_key(key: &Value) -> Result<String, Error> {
    match key.kind() {
        ValueKind::String => Ok(key.as_str().unwrap_or_default().to_owned()),
        ValueKind::None => Ok("null".to_owned()),
        ValueKind::Bool => Ok(if key.is_true() { "true" } else { "false" }.to_owned()),
        ValueKind::Number => Ok(python_str(key)),
        kind => {
            let why = format!("keys must be str, int, float, bool or None, not {kind}");
            Err(Error::new(ErrorKind::InvalidOperation, why))
        }
    }
}
