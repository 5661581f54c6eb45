//! Both outputs: results on stdout, everything else on stderr, colour only on a terminal.

use crate::error::{Outcome, stdout_failure};
use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use serde::Serialize;
use std::io::{self, IsTerminal, Write};
use std::sync::atomic::{AtomicBool, Ordering};

static QUIET: AtomicBool = AtomicBool::new(false);

/// Turns notes and progress off (`--quiet`).
pub(crate) fn set_quiet(quiet: bool) {
    QUIET.store(quiet, Ordering::Relaxed);
}

/// Whether notes and progress are off.
pub(crate) fn is_quiet() -> bool {
    QUIET.load(Ordering::Relaxed)
}

/// Writes a part of the result, as it is, and shows it at once.
pub(crate) fn write(text: &str) -> Outcome {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(|e| stdout_failure(&e))
}

/// Writes a line of the result.
pub(crate) fn line(text: &str) -> Outcome {
    write(&format!("{text}\n"))
}

/// Writes the result as one JSON object.
pub(crate) fn json<T: Serialize + ?Sized>(value: &T) -> Outcome {
    let text = serde_json::to_string_pretty(value)?;
    line(&text)
}

/// Writes a table: plain columns, so that `cut`, `awk` and people can read it.
pub(crate) fn table(table: &Table) -> Outcome {
    for row in table.lines() {
        line(row.trim_end())?;
    }
    Ok(())
}

/// An empty table under these headings; the columns in `right` hold numbers.
pub(crate) fn columns(headings: &[&str], right: &[usize]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(headings.to_vec());
    for (index, column) in table.column_iter_mut().enumerate() {
        column.set_padding((0, 2));
        if right.contains(&index) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

/// Two columns without headings: a name and what is true of it.
pub(crate) fn facts<'a>(rows: impl IntoIterator<Item = (&'a str, String)>) -> Outcome {
    let rows: Vec<(&str, String)> = rows.into_iter().collect();
    let width = rows.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    for (name, value) in rows {
        line(format!("{name:<width$}  {value}").trim_end())?;
    }
    Ok(())
}

/// A line for the user on stderr, unless `--quiet`.
pub(crate) fn note(text: &str) {
    if !is_quiet() {
        note_plain(text);
    }
}

/// A line on stderr whatever happens. A stderr that cannot be written to has nobody to tell.
pub(crate) fn note_plain(text: &str) {
    let mut err = io::stderr().lock();
    let _ = writeln!(err, "{text}");
    let _ = err.flush();
}

/// Wipes the line that the cursor is in, where a progress bar may stand.
pub(crate) fn clear_line() {
    if stderr_is_terminal() {
        let mut err = io::stderr().lock();
        let _ = write!(err, "\r\u{1b}[2K");
        let _ = err.flush();
    }
}

/// Whether stdout is a terminal.
pub(crate) fn stdout_is_terminal() -> bool {
    io::stdout().is_terminal()
}

/// Whether stderr is a terminal.
pub(crate) fn stderr_is_terminal() -> bool {
    io::stderr().is_terminal()
}

/// Whether stdin is a terminal.
pub(crate) fn stdin_is_terminal() -> bool {
    io::stdin().is_terminal()
}

/// Red and bold, for errors on stderr.
pub(crate) fn red(text: &str) -> String {
    paint(text, "1;31")
}

/// Bold, on stderr.
pub(crate) fn bold(text: &str) -> String {
    paint(text, "1")
}

/// Dim, for statistics on stderr.
pub(crate) fn dim(text: &str) -> String {
    paint(text, "2")
}

fn paint(text: &str, code: &str) -> String {
    let plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    if plain || !stderr_is_terminal() {
        return text.to_owned();
    }
    format!("\u{1b}[{code}m{text}\u{1b}[0m")
}

/// Text on one line: control characters, line ends among them, as escapes.
pub(crate) fn one_line(text: &str) -> String {
    let escaped = |c: char| match c.is_control() {
        true => c.escape_default().to_string(),
        false => c.to_string(),
    };
    text.chars().map(escaped).collect()
}

/// A number of things: `1 model`, `2 models`.
pub(crate) fn things(count: usize, thing: &str) -> String {
    format!("{count} {thing}{}", if count == 1 { "" } else { "s" })
}

/// A size as people say it: `98.4 MB`. Decimal units, as disks have them.
pub(crate) fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["kB", "MB", "GB", "TB", "PB"];
    if count < 1000 {
        return format!("{count} B");
    }
    let mut value = count as f64 / 1000.0;
    let mut unit = 0;
    while value >= 999.5 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    format!("{value:.*} {}", if value < 10.0 { 2 } else { usize::from(value < 100.0) }, UNITS[unit])
}

/// A count as people say it: `135 M`, `1.24 B`.
pub(crate) fn count(count: u64) -> String {
    let (value, unit) = match count {
        0..1_000_000 => return count.to_string(),
        1_000_000..1_000_000_000 => (count as f64 / 1e6, "M"),
        _ => (count as f64 / 1e9, "B"),
    };
    format!("{value:.*} {unit}", if value < 10.0 { 2 } else { usize::from(value < 100.0) })
}

/// A time span as people say it: `12.3 ms`, `4.56 s`, `2 min 05 s`.
pub(crate) fn seconds(value: f64) -> String {
    match value {
        v if !v.is_finite() => "-".to_owned(),
        v if v < 0.001 => format!("{:.0} us", v * 1e6),
        v if v < 1.0 => format!("{:.1} ms", v * 1e3),
        v if v < 60.0 => format!("{v:.2} s"),
        v => format!("{} min {:02} s", (v / 60.0) as u64, (v % 60.0) as u64),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_read_as_people_say_them() {
        for (count, text) in [
            (0, "0 B"),
            (999, "999 B"),
            (1_000, "1.00 kB"),
            (98_437_120, "98.4 MB"),
            (999_600, "1.00 MB"),
            (4_930_000_000, "4.93 GB"),
        ] {
            assert_eq!(bytes(count), text, "{count}");
        }
    }

    #[test]
    fn counts_read_as_people_say_them() {
        for (value, text) in [
            (49_152, "49152"),
            (134_515_008, "135 M"),
            (1_235_814_400, "1.24 B"),
            (70_553_706_496, "70.6 B"),
        ] {
            assert_eq!(count(value), text, "{value}");
        }
    }

    #[test]
    fn times_read_as_people_say_them() {
        for (value, text) in [
            (0.000_25, "250 us"),
            (0.0123, "12.3 ms"),
            (4.561, "4.56 s"),
            (125.0, "2 min 05 s"),
            (f64::NAN, "-"),
        ] {
            assert_eq!(seconds(value), text, "{value}");
        }
    }

    #[test]
    fn tables_are_plain_columns() {
        let mut table = columns(&["NAME", "SIZE"], &[1]);
        table.add_row(["smollm2", "98.4 MB"]);
        table.add_row(["b", "1 B"]);
        let lines: Vec<String> = table.lines().map(|l| l.trim_end().to_owned()).collect();
        assert_eq!(lines, ["NAME        SIZE", "smollm2  98.4 MB", "b            1 B"]);
    }
}
