//! The conformance suite: what every device has to pass.
//!
//! [`run`] compares every operation with the [oracle](crate::oracle), for every weight layout and
//! for shapes at the edges, then the laws of the contract, where equal means equal bits, and asks
//! for what real models do not have, which a device may refuse. A device's own tests are a few
//! lines that call it; docs/conformance.md is made of [`Report::markdown`].

mod laws;
mod ops;
mod pieces;
mod random;
mod refusals;

use crate::contract::Device;
use std::fmt;

pub use laws::bits;
pub use pieces::{InPieces, in_pieces};

/// What one kind of check found.
#[derive(Clone, Debug, PartialEq)]
pub struct Line {
    /// The operation or law, as `linear w4 g32, int8`.
    pub what: String,
    /// What varies among its cases, in words.
    pub varied: String,
    /// Cases that ran.
    pub cases: usize,
    /// Worst error, as a share of the row's greatest element; 0 for laws.
    pub worst: f64,
    /// What it may be.
    pub tolerance: f64,
    /// What went wrong, case by case.
    pub failures: Vec<String>,
}

/// What a device's suite found.
#[derive(Clone, Debug, PartialEq)]
pub struct Report {
    /// The device's description.
    pub device: String,
    /// By operation, then by law.
    pub lines: Vec<Line>,
    /// What devices may refuse, and why this one does, if it does.
    pub limits: Vec<(&'static str, Option<String>)>,
}

impl Report {
    /// Whether nothing failed.
    #[must_use]
    pub fn passed(&self) -> bool {
        self.lines.iter().all(|line| line.failures.is_empty())
    }

    /// Tables of what was found: how far off the oracle, and what is refused.
    #[must_use]
    pub fn markdown(&self) -> String {
        let mut out =
            "| check | cases | off at most | allowed | |\n|---|---|---|---|---|\n".to_owned();
        for line in &self.lines {
            let off = |off: f64| if off == 0.0 { "equal".into() } else { format!("{off:.1e}") };
            let (worst, allowed) = (off(line.worst), off(line.tolerance));
            let verdict = if line.failures.is_empty() { "ok" } else { "**failed**" };
            let Line { what, cases, .. } = line;
            out += &format!("| {what} | {cases} | {worst} | {allowed} | {verdict} |\n");
        }
        out += "\n| beyond real models | |\n|---|---|\n";
        for (what, why) in &self.limits {
            let answer = why.as_ref().map_or("runs".into(), |why| format!("refused: {why}"));
            out += &format!("| {what} | {answer} |\n");
        }
        out
    }

    /// A table of what is checked, which is the same for every device. Checks whose cases differ in
    /// the same share a row.
    #[must_use]
    pub fn checks(&self) -> String {
        let mut rows: Vec<(&str, Vec<&str>)> = Vec::new();
        for Line { what, varied, .. } in &self.lines {
            match rows.iter_mut().find(|(of, _)| of == varied) {
                Some((_, checks)) => checks.push(what),
                None => rows.push((varied, vec![what])),
            }
        }
        let row = |(varied, checks): &(&str, Vec<&str>)| {
            format!("| {} | {varied} |\n", checks.join("; "))
        };
        let rows: String = rows.iter().map(row).collect();
        format!("| checks | cases differ in |\n|---|---|\n{rows}")
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.device)?;
        writeln!(f, "{:<28} {:>6} {:>10} {:>10}", "", "cases", "worst", "allowed")?;
        for Line { what, cases, worst, tolerance, failures, .. } in &self.lines {
            let verdict = if failures.is_empty() { "ok" } else { "FAILED" };
            writeln!(f, "{what:<28} {cases:>6} {worst:>10.1e} {tolerance:>10.1e} {verdict}")?;
            for failure in failures {
                writeln!(f, "    {failure}")?;
            }
        }
        Ok(())
    }
}

/// Runs the whole suite. Operations that the device refuses fail it, but for its limits.
#[must_use]
pub fn run(device: &dyn Device) -> Report {
    run_some(device, 1)
}

/// Runs one of every `every` cases of operations, and all laws on three models instead of six: for
/// devices that compile each case for long.
#[must_use]
pub fn run_some(device: &dyn Device, every: usize) -> Report {
    let mut lines = ops::check(device, every.max(1));
    lines.extend(laws::check(device, if every > 1 { 2 } else { 1 }));
    let (line, limits) = refusals::check(device);
    lines.push(line);
    Report { device: device.descriptor().description.clone(), lines, limits }
}

/// Collects the cases of one line.
struct Checker {
    line: Line,
    /// One of so many cases runs.
    every: usize,
    /// Cases that there were.
    seen: usize,
}

impl Checker {
    fn new(what: impl Into<String>, varied: impl Into<String>, tolerance: f64) -> Self {
        let (what, varied, failures) = (what.into(), varied.into(), Vec::new());
        let line = Line { what, varied, cases: 0, worst: 0.0, tolerance, failures };
        Self { line, every: 1, seen: 0 }
    }

    /// The same with one of so many cases.
    fn every(self, every: usize) -> Self {
        Self { every, ..self }
    }

    /// Whether the next case is one that runs: the first is.
    fn wants(&mut self) -> bool {
        self.seen += 1;
        (self.seen - 1).is_multiple_of(self.every)
    }

    /// Records what a case found: its error, or why it could not run.
    fn record(&mut self, case: &str, result: Result<f64, String>) {
        self.line.cases += 1;
        match result {
            Ok(error) => {
                self.line.worst = self.line.worst.max(error);
                if error > self.line.tolerance {
                    self.line.failures.push(format!("{case}: off by {error:.2e}"));
                }
            }
            Err(why) => self.line.failures.push(format!("{case}: {why}")),
        }
    }
}

/// The greatest difference of two results, each row's as a share of its greatest element.
///
/// # Errors
/// If the lengths differ, or one is NaN where the other is not.
fn difference(got: &[f32], want: &[f32], width: usize) -> Result<f64, String> {
    if got.len() != want.len() {
        return Err(format!("{} elements instead of {}", got.len(), want.len()));
    }
    let mut worst = 0.0_f64;
    for (row, (got, want)) in got.chunks(width).zip(want.chunks(width)).enumerate() {
        let finite = want.iter().filter(|x| x.is_finite());
        let scale = finite.fold(1e-20_f64, |scale, x| scale.max(f64::from(x.abs())));
        for (column, (&got, &want)) in got.iter().zip(want).enumerate() {
            if got.to_bits() == want.to_bits() || (got.is_nan() && want.is_nan()) {
                continue;
            }
            let error = (f64::from(got) - f64::from(want)).abs() / scale;
            if !error.is_finite() {
                return Err(format!("row {row}, column {column}: {got} instead of {want}"));
            }
            worst = worst.max(error);
        }
    }
    Ok(worst)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oracle::OracleDevice;

    #[test]
    fn the_oracle_agrees_with_itself() {
        let report = run(&OracleDevice::new());
        assert!(report.passed(), "{report}");
        assert!(report.lines.iter().all(|line| line.cases > 0), "{report}");
    }

    #[test]
    fn differences_are_seen() {
        assert_eq!(difference(&[1.0, 2.0], &[1.0, 2.5], 2), Ok(0.2));
        assert!(difference(&[f32::NAN], &[0.0], 1).is_err());
        assert!(difference(&[0.0], &[f32::NAN], 1).is_err());
        assert!(difference(&[], &[0.0], 1).is_err());
    }
}
