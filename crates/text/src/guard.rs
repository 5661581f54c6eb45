//! Keeps the text of messages from becoming a special token on its way through a template.
//!
//! Templates are programs: they trim, split and compare what they are given, so text cannot be
//! wrapped in marks without changing what they do. Instead, single characters are *dyed*: replaced
//! one for one by characters from a private plane that occur nowhere else in the conversation.
//! Lengths, slices, white space and everything a template does with other characters stay as they
//! are. After rendering, dyed characters get their colour back; where one of them is part of what
//! spells a special token, that place is marked as not trusted.
//!
//! Two kinds of characters are dyed:
//! * the first character of every special token's name that a text spells out;
//! * every character that such names begin or end with (mostly `<`, `>`, `[` and `]`), so that a
//!   name assembled from pieces is found out as well. Left alone are those that belong to a text
//!   which the template itself mentions, as `</think>`, because it may be looking for that.
//!
//! A template that looks for a special token's name in a message therefore does not find it.

use crate::added::{AddedToken, AddedTokens};
use crate::error::{Error, Result};
use crate::limits;
use serde_json::{Map, Value};
use std::borrow::Cow;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::ops::Range;

/// First character of the two planes from which dye is chosen.
pub(crate) const PRIVATE: char = '\u{f0000}';

/// A part of a prompt, with where it comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span {
    /// The text.
    pub text: String,
    /// Special tokens in it are meant. False for text that a user, a tool or a model wrote.
    pub trusted: bool,
}

impl Span {
    /// Text in which special tokens are meant.
    pub fn trusted(text: impl Into<String>) -> Self {
        Self { text: text.into(), trusted: true }
    }

    /// Text in which the names of special tokens are just text.
    pub fn untrusted(text: impl Into<String>) -> Self {
        Self { text: text.into(), trusted: false }
    }
}

/// A rendered prompt, for [`Tokenizer::encode_spans`](crate::Tokenizer::encode_spans).
///
/// Only what would otherwise spell a special token is untrusted; a prompt without forgeries is
/// one trusted span.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rendered {
    /// The prompt in pieces.
    pub spans: Vec<Span>,
}

impl Rendered {
    /// The whole prompt.
    pub fn text(&self) -> String {
        self.spans.iter().map(|span| span.text.as_str()).collect()
    }

    /// What stands before the last such character; `None` if there is none.
    pub(crate) fn before_last(mut self, mark: char) -> Option<Self> {
        while let Some(mut span) = self.spans.pop() {
            if let Some(end) = span.text.rfind(mark) {
                span.text.truncate(end);
                self.spans.push(span);
                return Some(self);
            }
        }
        None
    }

    /// Whether a message spells a special token.
    pub fn has_forgery(&self) -> bool {
        self.spans.iter().any(|span| !span.trusted)
    }
}

/// Who wrote a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Author {
    /// The model, in an earlier turn: it may use the markup of its own answers, as `<think>`.
    Model,
    /// Anybody else.
    Other,
}

/// What must not be forged with one tokenizer and one template.
#[derive(Debug)]
pub(crate) struct Guard {
    /// Names of special tokens, and of other added tokens that structure this template.
    names: AddedTokens,
    /// Texts that the template mentions and that nobody has to be kept from writing.
    mentioned: AddedTokens,
    /// The same, with markup that only the model may write.
    mentioned_or_markup: AddedTokens,
    /// Characters that names begin or end with.
    edges: HashSet<char>,
    /// `edges`, and what else names begin with.
    dyeable: BTreeSet<char>,
}

/// The dye of one rendering: from characters to private ones, and back.
#[derive(Debug, Default)]
pub(crate) struct Dye {
    there: HashMap<char, char>,
    back: HashMap<char, char>,
}

impl Dye {
    /// Private characters, each followed by the one that it stands for.
    pub(crate) fn pairs(&self) -> String {
        self.back.iter().flat_map(|(private, original)| [*private, *original]).collect()
    }
}

impl Guard {
    /// `added`: every added token's name, and whether it is special.
    pub(crate) fn new<'a>(
        added: impl Iterator<Item = (&'a str, bool)>,
        template: &str,
    ) -> Result<Self> {
        let mut special = Vec::new();
        let mut markup = Vec::new();
        for (name, is_special) in added.filter(|(name, _)| !name.trim().is_empty()) {
            if is_special {
                special.push(name.to_owned());
            } else if looks_like_markup(name) && template.contains(name) {
                markup.push(name.to_owned());
            }
        }
        let is_edge = |c: &char| !c.is_alphanumeric() && !c.is_whitespace();
        let ends = |name: &String| [name.chars().next(), name.chars().next_back()];
        let names = || special.iter().chain(&markup);
        let edges: HashSet<char> = names().flat_map(ends).flatten().filter(is_edge).collect();
        let first = names().filter_map(|name| name.chars().next());
        let dyeable = edges.iter().copied().chain(first).collect();
        let mut literals = string_literals(template);
        literals.retain(|literal| literal.contains(|c| edges.contains(&c)));
        let literal = |text: &String| needle(text, false);
        let both = literals.iter().chain(&markup).filter_map(literal);
        let all = special.iter().filter_map(|name| needle(name, true));
        Ok(Self {
            names: AddedTokens::new(all.chain(markup.iter().filter_map(literal)).collect())?,
            mentioned: AddedTokens::new(literals.iter().filter_map(literal).collect())?,
            mentioned_or_markup: AddedTokens::new(both.collect())?,
            edges,
            dyeable,
        })
    }

    /// Chooses characters for a rendering that neither the template nor any value contains.
    pub(crate) fn dye<'a>(
        &self,
        template: &str,
        values: impl Iterator<Item = &'a Value>,
    ) -> Result<Dye> {
        let mut taken = HashSet::new();
        collect_private(template, &mut taken);
        for value in values {
            collect_private_of(value, &mut taken, 0)?;
        }
        let mut free = (PRIVATE..='\u{10ffff}').rev().filter(|c| !taken.contains(c));
        let mut dye = Dye::default();
        for c in &self.dyeable {
            let private = free.next().ok_or_else(|| {
                Error::invalid("the messages", "use up the private characters of Unicode")
            })?;
            dye.there.insert(*c, private);
            dye.back.insert(private, *c);
        }
        Ok(dye)
    }

    /// Dyes a text of a message.
    pub(crate) fn paint<'t>(&self, text: &'t str, author: Author, dye: &Dye) -> Cow<'t, str> {
        if !text.contains(|c| self.dyeable.contains(&c)) {
            return Cow::Borrowed(text);
        }
        let (mentioned, is_name): (_, &dyn Fn(&AddedToken) -> bool) = match author {
            Author::Model => (&self.mentioned_or_markup, &|token| token.special),
            Author::Other => (&self.mentioned, &|_| true),
        };
        let mut out = String::with_capacity(text.len() + 64);
        let mut mentioned_until = 0;
        for (at, c) in text.char_indices() {
            let rest = text.get(at..).unwrap_or_default().as_bytes();
            if let Some(found) = mentioned.at(rest).next_back() {
                mentioned_until = mentioned_until.max(at + found.text.len());
            }
            let is_loose_edge = self.edges.contains(&c) && at >= mentioned_until;
            let starts_name = || self.names.at(rest).any(is_name);
            let dyed = if is_loose_edge || starts_name() { dye.there.get(&c) } else { None };
            out.push(dyed.copied().unwrap_or(c));
        }
        Cow::Owned(out)
    }

    /// Dyes every string of a JSON value, keys included.
    pub(crate) fn paint_value(
        &self,
        value: &Value,
        author: Author,
        dye: &Dye,
        depth: usize,
    ) -> Result<Value> {
        check_depth(depth)?;
        let paint = |text: &str| self.paint(text, author, dye).into_owned();
        Ok(match value {
            Value::String(text) => Value::String(paint(text)),
            Value::Array(items) => {
                let items = items.iter().map(|v| self.paint_value(v, author, dye, depth + 1));
                Value::Array(items.collect::<Result<_>>()?)
            }
            Value::Object(fields) => {
                let mut painted = Map::new();
                for (key, value) in fields {
                    painted.insert(paint(key), self.paint_value(value, author, dye, depth + 1)?);
                }
                Value::Object(painted)
            }
            other => other.clone(),
        })
    }

    /// Takes the dye out of a rendered prompt and marks what it kept from being a name.
    pub(crate) fn wash(&self, rendered: &str, dye: &Dye) -> Rendered {
        let mut text = String::with_capacity(rendered.len());
        let mut dyed: Vec<Range<usize>> = Vec::new();
        for c in rendered.chars() {
            let start = text.len();
            let original = if c < PRIVATE { None } else { dye.back.get(&c) };
            text.push(original.copied().unwrap_or(c));
            if original.is_some() {
                dyed.push(start..text.len());
            }
        }
        // A dyed character matters if a name around it is spelled out.
        let mut forged: Vec<Range<usize>> = Vec::new();
        if !dyed.is_empty() {
            for (at, _) in text.char_indices() {
                let rest = text.get(at..).unwrap_or_default().as_bytes();
                for name in self.names.at(rest) {
                    let end = at + name.text.len();
                    let from = dyed.partition_point(|d| d.start < at);
                    forged.extend(dyed.iter().skip(from).take_while(|d| d.start < end).cloned());
                }
            }
            forged.sort_by_key(|range| range.start);
            forged.dedup();
        }
        Rendered { spans: cut(&text, &forged) }
    }
}

fn check_depth(depth: usize) -> Result<()> {
    if depth <= limits::TEMPLATE_DEPTH {
        return Ok(());
    }
    let why = format!("is nested deeper than {} levels", limits::TEMPLATE_DEPTH);
    Err(Error::invalid("the JSON given to the chat template", why))
}

/// Collects characters of the private planes, from which dye is chosen.
fn collect_private(text: &str, taken: &mut HashSet<char>) {
    taken.extend(text.chars().filter(|c| *c >= PRIVATE));
}

fn collect_private_of(value: &Value, taken: &mut HashSet<char>, depth: usize) -> Result<()> {
    check_depth(depth)?;
    match value {
        Value::String(text) => collect_private(text, taken),
        Value::Array(items) => {
            for item in items {
                collect_private_of(item, taken, depth + 1)?;
            }
        }
        Value::Object(fields) => {
            for (key, value) in fields {
                collect_private(key, taken);
                collect_private_of(value, taken, depth + 1)?;
            }
        }
        _ => {}
    }
    Ok(())
}

/// Cuts a text into spans, of which the given ranges are untrusted.
fn cut(text: &str, untrusted: &[Range<usize>]) -> Vec<Span> {
    let part = |range: Range<usize>| text.get(range).unwrap_or_default();
    let mut spans: Vec<Span> = Vec::new();
    let mut done = 0;
    for range in untrusted {
        if done < range.start {
            spans.push(Span::trusted(part(done..range.start)));
        }
        match spans.last_mut() {
            Some(last) if !last.trusted => last.text.push_str(part(range.clone())),
            _ => spans.push(Span::untrusted(part(range.clone()))),
        }
        done = range.end;
    }
    if done < text.len() {
        spans.push(Span::trusted(part(done..text.len())));
    }
    spans
}

/// A text to search for; `None` for one too long for a token's name.
fn needle(text: &str, special: bool) -> Option<AddedToken> {
    (text.len() <= limits::ADDED_TOKEN_BYTES).then(|| AddedToken {
        id: 0,
        text: text.to_owned(),
        special,
        lstrip: false,
        rstrip: false,
        single_word: false,
    })
}

/// `<tool_call>` and `[TOOL_CALLS]` do, words and runs of spaces do not.
fn looks_like_markup(name: &str) -> bool {
    let is_mark = |c: Option<char>| c.is_some_and(|c| !c.is_alphanumeric() && !c.is_whitespace());
    let mut chars = name.chars();
    chars.clone().count() >= 3 && is_mark(chars.next()) && is_mark(chars.next_back())
}

/// The string literals in a template's source: what its expressions can compare with.
fn string_literals(template: &str) -> Vec<String> {
    let mut found = BTreeSet::new();
    for (open, close) in [("{{", "}}"), ("{%", "%}")] {
        for block in template.split(open).skip(1) {
            let code = block.split(close).next().unwrap_or_default();
            let mut rest = code;
            while let Some(start) = rest.find(['\'', '"']) {
                let (quote, tail) = rest.split_at(start).1.split_at(1);
                let Some(end) = tail.find(quote) else { break };
                let (literal, after) = tail.split_at(end);
                found.insert(literal.replace("\\n", "\n").replace("\\t", "\t"));
                rest = after.get(1..).unwrap_or_default();
            }
        }
    }
    found.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guard(template: &str) -> Guard {
        let added = [("<|im|>", true), ("<s>", true), ("<think>", false), ("  ", false)];
        Guard::new(added.into_iter(), template).unwrap()
    }

    /// The text with a `*` for each dyed character.
    fn painted(guard: &Guard, text: &str, author: Author) -> String {
        let dye = guard.dye("", std::iter::empty()).unwrap();
        guard.paint(text, author, &dye).replace(|c| c >= PRIVATE, "*")
    }

    #[test]
    fn names_and_their_edges_are_dyed_and_what_the_template_mentions_is_not() {
        let guard = guard("{% if '<tool>' in m %}{{ '<think>' }}{% endif %}<|im|>");
        let cases = [
            ("plain text", "plain text"),
            ("<|im|>", "*|im|*"),
            ("a < b > c", "a * b * c"),
            ("x <tool> y", "x <tool> y"),
            ("<<tool>>", "*<tool>*"),
            ("<think>", "*think>"),
            ("  ", "  "),
        ];
        for (text, expected) in cases {
            assert_eq!(painted(&guard, text, Author::Other), expected, "{text}");
        }
        assert_eq!(painted(&guard, "<think> <|im|>", Author::Model), "<think> *|im|*");
    }

    #[test]
    fn dye_is_chosen_among_characters_that_nothing_contains() {
        let guard = guard("");
        let taken = Value::from("\u{10ffff}\u{10fffd}");
        let dye = guard.dye("\u{10fffe}", [&taken].into_iter()).unwrap();
        assert!(dye.back.keys().all(|c| *c < '\u{10fffd}'), "{dye:?}");
        let every: String = (PRIVATE..='\u{10ffff}').collect();
        assert!(guard.dye(&every, std::iter::empty()).is_err());
    }

    #[test]
    fn washing_marks_only_dye_that_is_part_of_a_name() {
        let guard = guard("");
        let dye = guard.dye("", std::iter::empty()).unwrap();
        let user = guard.paint("a < b <s>", Author::Other, &dye);
        let washed = guard.wash(&format!("<|im|>{user}<|im|>"), &dye);
        let expected = [
            Span::trusted("<|im|>a < b "),
            Span::untrusted("<"),
            Span::trusted("s"),
            Span::untrusted(">"),
            Span::trusted("<|im|>"),
        ];
        assert_eq!(washed.spans, expected);
    }

    #[test]
    fn literals_are_found_in_code_only() {
        let source = "a 'b' {{ 'c' ~ \"d'\" }} {% if '\\n<e>' %}{# 'f' #}";
        assert_eq!(string_literals(source), ["\n<e>", "c", "d'"]);
    }
}
