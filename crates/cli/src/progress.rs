//! Progress of long work on stderr: bars on a terminal, a line now and then elsewhere, nothing with
//! `--quiet`.

use crate::terminal;
use indicatif::{ProgressBar, ProgressStyle};
use std::time::{Duration, Instant};

/// A line is written at most this often where there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(10);

/// The progress of one piece of work; it vanishes when dropped.
#[derive(Debug)]
pub(crate) struct Progress {
    what: String,
    bar: Option<ProgressBar>,
    last_line: Instant,
}

impl Progress {
    /// Work whose share done is known.
    pub(crate) fn share(what: impl Into<String>) -> Self {
        Self::with_template(what.into(), "{msg} [{bar:28}] {percent:>3} %")
    }

    /// A transfer of bytes, in 80 columns.
    pub(crate) fn transfer(what: impl Into<String>) -> Self {
        Self::with_template(
            what.into(),
            "{msg:26!} [{bar:10}] {decimal_bytes:>9} of {decimal_total_bytes} \
             {decimal_bytes_per_sec:>11} {eta:>3}",
        )
    }

    /// Work of unknown length.
    pub(crate) fn spinner(what: impl Into<String>) -> Self {
        let progress = Self::with_template(what.into(), "{spinner} {msg} {elapsed:>4}");
        if let Some(bar) = &progress.bar {
            bar.enable_steady_tick(Duration::from_millis(120));
        }
        progress
    }

    fn with_template(what: String, template: &str) -> Self {
        let shown = terminal::stderr_is_terminal() && !terminal::is_quiet();
        let bar = shown.then(|| {
            let bar = ProgressBar::new(1);
            if let Ok(style) = ProgressStyle::with_template(template) {
                bar.set_style(style.progress_chars("=> "));
            }
            bar.set_message(what.clone());
            bar
        });
        Self { what, bar, last_line: Instant::now() }
    }

    /// `done` of `total` units are done; a total of 0 is unknown.
    pub(crate) fn set(&mut self, done: u64, total: u64) {
        if let Some(bar) = &self.bar {
            bar.set_length(total.max(done));
            bar.set_position(done);
        } else if done < total && self.last_line.elapsed() >= LINE_EVERY {
            self.last_line = Instant::now();
            terminal::note(&format!("{}: {} %", self.what, done * 100 / total));
        }
    }

    /// The share done, 0 to 1.
    pub(crate) fn set_share(&mut self, share: f32) {
        self.set((share.clamp(0.0, 1.0) * 1000.0) as u64, 1000);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
