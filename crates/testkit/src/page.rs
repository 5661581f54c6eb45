//! Tables in docs/conformance.md: tests that run the conformance suite compare theirs with the
//! page, or write them there (`cargo xtask conformance`, which sets `TANGOR_RECORD`).
//!
//! Errors differ from machine to machine, in their last digits: what has to be equal is which
//! checks ran, in how many cases, what they allow, how they ended, and what is refused.
#![allow(clippy::expect_used, reason = "a page that cannot be read has to stop its test")]

use std::fs::{self, File};
use std::path::PathBuf;

/// Set where tests are to write their tables.
const RECORD: &str = "TANGOR_RECORD";
/// The column of tables that is not compared.
const OFF: &str = "off at most";

/// Compares `tables` with what the page has in section `name`, or writes them there. `on` says what
/// they were made on.
///
/// # Panics
/// If they differ or the page has no such section.
pub fn check(name: &str, on: &str, tables: &str) {
    let path = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/conformance.md"));
    // Tests of several processes may write one after the other.
    let lock = File::open(&path).expect("docs/conformance.md is there");
    lock.lock().expect("docs/conformance.md can be locked");
    let page = fs::read_to_string(&path).expect("docs/conformance.md is text");
    let (before, section, after) =
        split(&page, name).unwrap_or_else(|| panic!("docs/conformance.md has no section {name}"));
    if std::env::var_os(RECORD).is_some() {
        let page = format!("{before}\n{on}\n\n{tables}{after}");
        fs::write(&path, page).expect("docs/conformance.md can be written");
        return;
    }
    let (found, recorded) = (compared(tables), compared(section));
    for (found, recorded) in found.iter().zip(&recorded) {
        assert_eq!(found, recorded, "section {name}: run `cargo xtask conformance`");
    }
    assert_eq!(found.len(), recorded.len(), "section {name}: run `cargo xtask conformance`");
}

/// The page up to and with the line that begins a section, the section, and the rest.
fn split<'a>(page: &'a str, name: &str) -> Option<(&'a str, &'a str, &'a str)> {
    let begin = format!("<!-- begin {name} -->\n");
    let start = page.find(&begin)? + begin.len();
    let end = start + page[start..].find("<!-- end -->")?;
    Some((&page[..start], &page[start..end], &page[end..]))
}

/// Cells of all rows of tables, but for those of the column that differs.
fn compared(text: &str) -> Vec<Vec<&str>> {
    let mut left_out = None;
    let mut rows = Vec::new();
    for line in text.lines().filter(|line| line.starts_with('|')) {
        let cells: Vec<&str> =
            line.split(" | ").map(|cell| cell.trim_matches(['|', ' '])).collect();
        if !line.starts_with("|-") && left_out.is_none_or(|(width, _)| width != cells.len()) {
            // The head of a table.
            left_out = Some((cells.len(), cells.iter().position(|cell| *cell == OFF)));
        }
        let kept = |place: &usize| left_out.is_none_or(|(_, off)| off != Some(*place));
        rows.push((0..cells.len()).filter(kept).map(|place| cells[place]).collect());
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLES: &str = "| check | off at most | |\n|---|---|---|\n| add | 1e-6 | ok |\n\n\
                          | limit | |\n|---|---|\n| heads | runs |\n";

    #[test]
    fn errors_are_not_compared_and_all_else_is() {
        assert_eq!(compared(TABLES), compared(&TABLES.replace("1e-6", "2e-6")));
        assert_ne!(compared(TABLES), compared(&TABLES.replace("ok", "failed")));
        assert_ne!(compared(TABLES), compared(&TABLES.replace("runs", "refused")));
        assert_ne!(compared(TABLES), compared(&TABLES.replace("| add", "| sub")));
        assert_eq!(compared(TABLES).len(), 6);
    }

    #[test]
    fn a_section_is_what_is_between_its_lines() {
        let page = "a\n<!-- begin x -->\nb\n<!-- end -->\nc\n";
        let (before, section, after) = split(page, "x").expect("a section");
        assert_eq!((section, [before, section, after].concat().as_str()), ("b\n", page));
        assert_eq!(split(page, "y"), None);
    }
}
