//! How fast rows of prompts are: a batch with many of them keeps the answers that run beside it
//! waiting.

/// How long answers may wait for a batch with rows of a prompt, in times of one without.
const TOKENS: f64 = 2.0;
/// But always so long, in seconds, since nobody notices it, and prompts are read faster in batches
/// of many rows; and never longer than this.
const GAPS: [f64; 2] = [0.05, 0.25];
/// Rows of prompts that a batch may have in any case: weights are read once for all of a batch, and
/// fewer rows would hardly take less time.
const FEW: usize = 32;
/// Weight of the newest measurement.
const NEWEST: f64 = 0.3;

/// What was measured so far. It decides how prompts are cut, and no bit of what comes out.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Pace {
    seconds_per_row: Option<f64>,
    /// Of a batch without rows of prompts.
    seconds_per_token: Option<f64>,
}

/// Moves what is known towards the newest measurement.
fn learn(known: &mut Option<f64>, seconds: f64) {
    let before = known.unwrap_or(seconds);
    *known = Some(before + (seconds - before) * NEWEST);
}

impl Pace {
    /// A batch of so many rows, prompts among them, took so long.
    #[allow(clippy::cast_precision_loss)]
    pub(crate) fn measured(&mut self, rows: usize, seconds: f64) {
        if rows < FEW || !seconds.is_finite() {
            return;
        }
        learn(&mut self.seconds_per_row, seconds / rows as f64);
    }

    /// A batch without rows of prompts took so long.
    pub(crate) fn measured_token(&mut self, seconds: f64) {
        if seconds.is_finite() {
            learn(&mut self.seconds_per_token, seconds);
        }
    }

    /// Rows of prompts beside `others` rows that answers can wait for, at most `room`.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    pub(crate) fn rows(&self, others: usize, room: usize) -> usize {
        let [least, most] = GAPS;
        let gap = self.seconds_per_token.map_or(most, |token| (TOKENS * token).clamp(least, most));
        let all = self.seconds_per_row.map_or(usize::MAX, |seconds| (gap / seconds) as usize);
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

    #[test]
    fn answers_wait_no_longer_than_they_are_used_to() {
        let mut pace = Pace::default();
        pace.measured(256, 0.256);
        assert_eq!(pace.rows(0, 256), 250, "a quarter of a second, while nothing else is known");
        for (token, rows) in [(0.001, 50), (0.05, 100), (0.5, 250), (f64::NAN, 250)] {
            (0..50).for_each(|_| pace.measured_token(token));
            assert!(pace.rows(0, 256).abs_diff(rows) <= 1, "{token}: {pace:?}");
        }
    }
}
