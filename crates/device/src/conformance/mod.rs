//! The conformance suite: what every device has to pass.
//!
//! [`run`] compares every operation with the [oracle](crate::oracle), for every weight layout and
//! for shapes at the edges, and then checks the laws of the contract, where equal means equal bits.
//! A device's own tests are a few lines that call it; a command can print its [`Report`].

mod laws;
mod ops;
mod random;

use crate::contract::Device;
use std::fmt;

pub use laws::bits;

/// What one kind of check found.
#[derive(Clone, Debug, PartialEq)]
pub struct Line {
    /// The operation or law, as `linear w4 int8`.
    pub what: &'static str,
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
}

impl Report {
    /// Whether nothing failed.
    #[must_use]
    pub fn passed(&self) -> bool {
        self.lines.iter().all(|line| line.failures.is_empty())
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.device)?;
        writeln!(f, "{:<28} {:>6} {:>10} {:>10}", "", "cases", "worst", "allowed")?;
        for Line { what, cases, worst, tolerance, failures } in &self.lines {
            let verdict = if failures.is_empty() { "ok" } else { "FAILED" };
            writeln!(f, "{what:<28} {cases:>6} {worst:>10.1e} {tolerance:>10.1e} {verdict}")?;
            for failure in failures {
                writeln!(f, "    {failure}")?;
            }
        }
        Ok(())
    }
}

/// Runs the whole suite. Operations that the device refuses fail it.
#[must_use]
pub fn run(device: &dyn Device) -> Report {
    let mut lines = ops::check(device);
    lines.extend(laws::check(device));
    Report { device: device.descriptor().description.clone(), lines }
}

/// Collects the cases of one line.
struct Checker {
    line: Line,
}

impl Checker {
    fn new(what: &'static str, tolerance: f64) -> Self {
        Self { line: Line { what, cases: 0, worst: 0.0, tolerance, failures: Vec::new() } }
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
