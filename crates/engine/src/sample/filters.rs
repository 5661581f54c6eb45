//! Cutting a distribution down to its most likely tokens.

use super::Candidate;
use std::cmp::Ordering;

/// Most likely first, ties by id.
pub(super) fn by_likelihood(a: &Candidate, b: &Candidate) -> Ordering {
    b.weight.total_cmp(&a.weight).then(a.token.cmp(&b.token))
}

/// Brings the smallest set of most likely candidates that together have the share `p` of the whole
/// weight to the front, most likely first, and returns how many they are (at least one).
///
/// Sorts no more than it must: a nucleus is as a rule a few hundred tokens of a vocabulary of a
/// hundred thousand.
pub(super) fn nucleus(candidates: &mut [Candidate], p: f64) -> usize {
    let total: f64 = candidates.iter().map(|c| f64::from(c.weight)).sum();
    let (mut sorted, mut sum) = (0, 0.0);
    while sorted < candidates.len() {
        let end = (sorted * 8).max(64).min(candidates.len());
        let rest = &mut candidates[sorted..];
        if end - sorted < rest.len() {
            rest.select_nth_unstable_by(end - sorted, by_likelihood);
        }
        rest[..end - sorted].sort_unstable_by(by_likelihood);
        for (index, candidate) in candidates.iter().enumerate().take(end).skip(sorted) {
            sum += f64::from(candidate.weight);
            if sum >= p * total {
                return index + 1;
            }
        }
        sorted = end;
    }
    candidates.len()
}
