//! What chat templates expect of Python's Jinja, and minijinja does otherwise or not at all.

use crate::clock::strftime;
use crate::limits;
use crate::python::{Json, python_str};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Rest, ValueKind};
use minijinja::{Environment, Error, ErrorKind, Output, State, Value};
use minijinja_contrib::pycompat;
use std::time::{SystemTime, UNIX_EPOCH};

/// An environment set up as transformers sets up Jinja.
pub(crate) fn environment() -> Environment<'static> {
    let mut env = Environment::new();
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
    // The default delimiters are always valid.
    if let Ok(syntax) = syntax {
        env.set_syntax(syntax);
    }
    env.set_debug(false);
    env.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
    env.set_recursion_limit(limits::TEMPLATE_RECURSION);
    env.set_formatter(print);
    env.set_unknown_method_callback(method);
    env.add_filter("tojson", tojson);
    env.add_filter("string", string);
    env.add_filter("escape", escape);
    env.add_filter("e", escape);
    env.add_test("iterable", is_iterable);
    env.add_function("raise_exception", raise_exception);
    env.add_function("strftime_now", strftime_now);
    env
}

/// Stops the clock at a moment, in seconds since 1970.
pub(crate) fn set_time(env: &mut Environment<'static>, seconds: i64) {
    env.add_function("strftime_now", move |format: &str| strftime(format, seconds));
}

/// Rewrites what minijinja does not parse: `{% generation %}` marks the assistant's tokens for
/// training and prints its body.
pub(crate) fn prepare(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        let (text, tag) = rest.split_at(start);
        out.push_str(text);
        let end = tag.find("%}").map_or(tag.len(), |end| end + 2);
        let (tag, after) = tag.split_at(end);
        let word = tag.trim_matches(|c: char| matches!(c, '{' | '}' | '%' | '-' | '+') || c == ' ');
        match word {
            "generation" => out.push_str(&tag.replacen(word, "if true", 1)),
            "endgeneration" => out.push_str(&tag.replacen(word, "endif", 1)),
            _ => out.push_str(tag),
        }
        rest = after;
    }
    out.push_str(rest);
    out
}

fn raise_exception(message: &str) -> Result<Value, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, message.to_owned()))
}

/// Name of the variable that tells [`escape`] which characters are dyed: pairs of the private
/// character and the one that it stands for.
pub(crate) const DYE: &str = "__dye";

/// HTML escaping, for templates that ask for it.
fn escape(state: &State<'_, '_>, value: &Value) -> Value {
    if value.is_safe() {
        return value.clone();
    }
    let dye = state.lookup(DYE);
    let dye: Vec<char> = dye.as_ref().and_then(Value::as_str).unwrap_or_default().chars().collect();
    let original = |c: char| match dye.chunks_exact(2).find(|pair| pair.first() == Some(&c)) {
        Some(pair) if c >= crate::guard::PRIVATE => pair.get(1).copied().unwrap_or(c),
        _ => c,
    };
    let mut out = String::new();
    for c in python_str(value).chars() {
        match original(c) {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '\'' => out.push_str("&#39;"),
            '"' => out.push_str("&#34;"),
            _ => out.push(c),
        }
    }
    Value::from_safe_string(out)
}

/// Python does not iterate over `None`.
fn is_iterable(value: &Value) -> bool {
    !value.is_none() && value.try_iter().is_ok()
}

/// Prints a value as Python's `str` does.
fn print(out: &mut Output<'_>, _: &mut State<'_, '_>, value: &Value) -> Result<(), Error> {
    let printed = match value.as_str() {
        Some(text) => out.write_str(text),
        None => out.write_str(&python_str(value)),
    };
    printed.map_err(Error::from)
}

fn string(value: &Value) -> Value {
    match value.kind() {
        ValueKind::String => value.clone(),
        _ => Value::from(python_str(value)),
    }
}

/// The filter: `tojson(ensure_ascii=False, indent=None, separators=None, sort_keys=False)`.
fn tojson(
    state: &State<'_, '_>,
    value: &Value,
    args: Rest<Value>,
    kwargs: Kwargs,
) -> Result<Value, Error> {
    let get = |at: usize, name: &str| -> Result<Option<Value>, Error> {
        let given = match args.get(at) {
            Some(value) => Some(value.clone()),
            None => kwargs.get::<Option<Value>>(name)?,
        };
        Ok(given.filter(|v| !v.is_none() && !v.is_undefined()))
    };
    let mut json = Json::default();
    if let Some(flag) = get(0, "ensure_ascii")? {
        json.ensure_ascii = flag.is_true();
    }
    if let Some(indent) = get(1, "indent")? {
        let indent = usize::try_from(indent)?;
        if indent > 64 {
            return Err(Error::new(ErrorKind::InvalidOperation, "tojson: indent is over 64"));
        }
        json.indent = Some(indent);
        json.item = ",".to_owned();
    }
    if let Some(separators) = get(2, "separators")? {
        let separators: Vec<Value> = separators.try_iter()?.take(3).collect();
        if let [item, key] = separators.as_slice() {
            json.item = python_str(item);
            json.key = python_str(key);
        }
    }
    json.sort_keys = get(3, "sort_keys")?.is_some_and(|flag| flag.is_true());
    kwargs.assert_all_used()?;
    let mut out = String::new();
    json.write(&mut out, value, 0)?;
    state.consume_fuel(u64::try_from(out.len() / 64).unwrap_or(u64::MAX))?;
    Ok(Value::from(out))
}

/// Methods of Python's `str` that the compatibility layer lacks.
fn method(
    state: &mut State<'_, '_>,
    value: &Value,
    name: &str,
    args: &[Value],
) -> Result<Value, Error> {
    if let Some(text) = value.as_str() {
        let arg = args.first().and_then(Value::as_str);
        let list = |parts: [&str; 3]| Value::from(parts.map(str::to_owned).to_vec());
        let found = match (name, arg) {
            ("removeprefix", Some(p)) => Some(Value::from(text.strip_prefix(p).unwrap_or(text))),
            ("removesuffix", Some(p)) => Some(Value::from(text.strip_suffix(p).unwrap_or(text))),
            ("partition", Some(sep)) => Some(match text.split_once(sep) {
                Some((head, tail)) => list([head, sep, tail]),
                None => list([text, "", ""]),
            }),
            ("rpartition", Some(sep)) => Some(match text.rsplit_once(sep) {
                Some((head, tail)) => list([head, sep, tail]),
                None => list(["", "", text]),
            }),
            ("rsplit", Some(sep)) if !sep.is_empty() => Some(rsplit(text, sep, args.get(1))?),
            _ => None,
        };
        if let Some(found) = found {
            return Ok(found);
        }
    }
    pycompat::unknown_method_callback(state, value, name, args)
}

fn rsplit(text: &str, sep: &str, limit: Option<&Value>) -> Result<Value, Error> {
    let limit = match limit {
        Some(limit) => i64::try_from(limit.clone())?,
        None => -1,
    };
    let limit = usize::try_from(limit).map_or(usize::MAX, |limit| limit.saturating_add(1));
    let mut parts: Vec<String> = text.rsplitn(limit, sep).map(str::to_owned).collect();
    parts.reverse();
    Ok(Value::from(parts))
}

/// The time of day, UTC, in the format of C's `strftime`.
fn strftime_now(format: &str) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    strftime(format, i64::try_from(now).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use minijinja::context;
    use minijinja::value::Serde;

    fn render(source: &str, context: Value) -> Result<String, Error> {
        environment().render_str(&prepare(source), context)
    }

    #[test]
    fn values_print_as_in_python() {
        let cases = [
            ("{{ true }} {{ none }} {{ missing }}|", "True None |"),
            ("{{ ['a', \"it's\", 1, 1.0, none] }}", "['a', \"it's\", 1, 1.0, None]"),
            ("{{ {'a': {'b': false}} }}", "{'a': {'b': False}}"),
            ("{{ 1e16 }} {{ 0.00001 }} {{ 0.1 }} {{ 100.0 }}", "1e+16 1e-05 0.1 100.0"),
            ("{{ (true|string) ~ 'x' }}", "Truex"),
        ];
        for (source, expected) in cases {
            assert_eq!(render(source, context!()).unwrap(), expected, "{source}");
        }
    }

    #[test]
    fn json_prints_as_in_python() {
        let value =
            context!(v => Value::from(Serde(serde_json::json!({"b": [1, "é<\n"], "a": {}}))));
        let cases = [
            ("{{ v | tojson }}", r#"{"b": [1, "é<\n"], "a": {}}"#),
            ("{{ v | tojson(sort_keys=true) }}", r#"{"a": {}, "b": [1, "é<\n"]}"#),
            ("{{ v | tojson(ensure_ascii=true) }}", r#"{"b": [1, "\u00e9<\n"], "a": {}}"#),
            ("{{ v | tojson(separators=(',', ':')) }}", r#"{"b":[1,"é<\n"],"a":{}}"#),
            (
                "{{ v | tojson(indent=2) }}",
                "{\n  \"b\": [\n    1,\n    \"é<\\n\"\n  ],\n  \"a\": {}\n}",
            ),
        ];
        for (source, expected) in cases {
            assert_eq!(render(source, value.clone()).unwrap(), expected, "{source}");
        }
    }

    #[test]
    fn generation_blocks_print_their_body() {
        let source = "a\n{%- generation -%}\n b \n{%- endgeneration %}\nc";
        assert_eq!(render(source, context!()).unwrap(), "abc");
    }

    #[test]
    fn string_methods_of_python_work() {
        let cases = [
            ("{{ 'a.b.c'.rsplit('.', 1) }}", "['a.b', 'c']"),
            ("{{ 'a.b'.partition('.')[2] }}", "b"),
            ("{{ 'xab'.removeprefix('x') }}", "ab"),
            ("{{ 'abc'[::-1] }}", "cba"),
            ("{{ range(3, 0, -1) | list }}", "[3, 2, 1]"),
        ];
        for (source, expected) in cases {
            assert_eq!(render(source, context!()).unwrap(), expected, "{source}");
        }
    }
}
