//! How fast rows of prompts are: a batch with many of them keeps the answers that run beside it
//! waiting.

/// How long answers may wait for a batch with rows of a prompt, in seconds.
const GAP: f64 = 0.25;
/// Rows of prompts that a batch may have in any case: weights are read once for all of a batch, and
/// fewer rows would hardly take less time.
const FEW: usize = 32;
/// Weight of the newest measurement.
const NEWEST: f64 = 0.3;

/// What was measured so far. It decides how prompts are cut, and no bit of what comes out.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Pace {
    seconds_per_row: Option<f64>,
}

impl Pace {
    /// A batch of so many rows, prompts among them, took so long.
    #[allow(clippy::cast_precision_loss)]
    pub(crate) fn measured(&mut self, rows: usize, seconds: f64) {
        if rows < FEW || !seconds.is_finite() {
            return;
        }
        let newest = seconds / rows as f64;
        let known = self.seconds_per_row.unwrap_or(newest);
        self.seconds_per_row = Some(known + (newest - known) * NEWEST);
    }

    /// Rows of prompts beside `others` rows that answers can wait for, at most `room`.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    pub(crate) fn rows(&self, others: usize, room: usize) -> usize {
        let all = self.seconds_per_row.map_or(usize::MAX, |seconds| (GAP / seconds) as usize);
        all.saturating_sub(others).max(FEW).min(room)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slow_rows_are_few_at_a_time_and_fast_ones_as_many_as_there_is_room_for() {
        let mut pace = Pace::default();
        assert_eq!(pace.rows(3, 256), 256);
        pace.measured(256, 0.064);
        assert_eq!(pace.rows(3, 256), 256);
        for _ in 0..50 {
            pace.measured(50, 0.25);
        }
        assert!((40..=47).contains(&pace.rows(3, 256)), "{pace:?}");
        for _ in 0..50 {
            pace.measured(32, 10.0);
        }
        assert_eq!((pace.rows(3, 256), pace.rows(3, 8)), (FEW, 8));
        let before = pace.seconds_per_row;
        pace.measured(64, f64::NAN);
        pace.measured(1, 0.0);
        assert_eq!(pace.seconds_per_row, before, "nothing to learn from");
    }
}
