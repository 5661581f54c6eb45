//! What chat templates expect of Python's Jinja, and minijinja does otherwise or not at all.

use crate::limits;
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Rest, Serde, ValueKind};
use minijinja::{Environment, Error, ErrorKind, Output, State, Value};
use minijinja_contrib::pycompat;
use std::fmt::Write as _;
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
    env.set_fuel(Some(limits::TEMPLATE_FUEL));
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
        Some(pair) if c >= '\u{f0000}' => pair.get(1).copied().unwrap_or(c),
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

/// Python's `str(value)`.
fn python_str(value: &Value) -> String {
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
struct Json {
    ensure_ascii: bool,
    /// Spaces per level; `None` for one line.
    indent: Option<usize>,
    item: String,
    key: String,
    sort_keys: bool,
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

impl Json {
    fn write(&self, out: &mut String, value: &Value, depth: usize) -> Result<(), Error> {
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
                c if self.ensure_ascii && !c.is_ascii() && c < '\u{f0000}' => {
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

const DAYS: [&str; 7] =
    ["Thursday", "Friday", "Saturday", "Sunday", "Monday", "Tuesday", "Wednesday"];
const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];

/// The time of day, UTC, in the format of C's `strftime`.
fn strftime_now(format: &str) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    strftime(format, i64::try_from(now).unwrap_or(0))
}

fn strftime(format: &str, seconds: i64) -> String {
    let (days, second) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    let (year, month, day) = civil(days);
    let day_of_year = days - days_from_civil(year, 1, 1) + 1;
    let name = |names: &[&'static str], at: i64| {
        usize::try_from(at).ok().and_then(|at| names.get(at)).copied().unwrap_or_default()
    };
    let weekday = name(&DAYS, days.rem_euclid(7));
    let month_name = name(&MONTHS, month - 1);
    let short = |name: &'static str| name.get(..3).unwrap_or(name).to_owned();
    let hour12 = (hour + 11) % 12 + 1;
    let mut out = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let mut code = chars.next();
        let padded = code != Some('-');
        if !padded {
            code = chars.next();
        }
        let two = |n: i64| if padded { format!("{n:02}") } else { n.to_string() };
        out.push_str(&match code {
            Some('Y') => year.to_string(),
            Some('y') => two(year.rem_euclid(100)),
            Some('m') => two(month),
            Some('d') => two(day),
            Some('e') => format!("{day:2}"),
            Some('H') => two(hour),
            Some('I') => two(hour12),
            Some('M') => two(minute),
            Some('S') => two(second),
            Some('p') => if hour < 12 { "AM" } else { "PM" }.to_owned(),
            Some('j') if padded => format!("{day_of_year:03}"),
            Some('j') => day_of_year.to_string(),
            Some('A') => weekday.to_owned(),
            Some('a') => short(weekday),
            Some('B') => month_name.to_owned(),
            Some('b' | 'h') => short(month_name),
            Some('F') => format!("{year}-{month:02}-{day:02}"),
            Some('T') => format!("{hour:02}:{minute:02}:{second:02}"),
            Some('D') => format!("{month:02}/{day:02}/{:02}", year.rem_euclid(100)),
            Some('z') => "+0000".to_owned(),
            Some('Z') => "UTC".to_owned(),
            Some('%') | None => "%".to_owned(),
            Some(other) => format!("%{other}"),
        });
    }
    out
}

/// Year, month and day of a day counted from 1970, in the Gregorian calendar.
fn civil(days: i64) -> (i64, i64, i64) {
    // Days are counted from 1 March of year 0, so that the leap day ends a year.
    let from_march = days + 719_468;
    let (era, day_of_era) = (from_march.div_euclid(146_097), from_march.rem_euclid(146_097));
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let march_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * march_month + 2) / 5 + 1;
    let month = if march_month < 10 { march_month + 3 } else { march_month - 9 };
    (year_of_era + era * 400 + i64::from(month <= 2), month, day)
}

/// The inverse of [`civil`].
fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    let year = year - i64::from(month <= 2);
    let (era, year_of_era) = (year.div_euclid(400), year.rem_euclid(400));
    let march_month = if month > 2 { month - 3 } else { month + 9 };
    let day_of_year = (153 * march_month + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    era * 146_097 + day_of_era - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;
    use minijinja::context;

    fn render(source: &str, context: Value) -> Result<String, Error> {
        environment().render_str(&prepare(source), context)
    }

    #[test]
    fn dates_print_as_in_c() {
        let cases = [
            (0, "%d %b %Y, %A", "01 Jan 1970, Thursday"),
            (951_782_400, "%Y-%m-%d %j", "2000-02-29 060"),
            (1_721_952_000, "%-d %B %Y %H:%M:%S", "26 July 2024 00:00:00"),
            (1_721_952_000 + 46_861, "%I:%M %p %F %T 100%%", "01:01 PM 2024-07-26 13:01:01 100%"),
            (4_102_444_800, "%a %e %y", "Fri  1 00"),
        ];
        for (seconds, format, expected) in cases {
            assert_eq!(strftime(format, seconds), expected, "{seconds} {format}");
        }
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
