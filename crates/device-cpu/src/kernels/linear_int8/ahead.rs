//! Weights asked for before they are read.
//!
//! Few rows use a weight so little that memory is the limit, and processors by themselves do not
//! fetch far enough, above all across the borders of pages. Requests are made one by one between
//! dot products: many at once fill the processor's list of lines under way, and until it has room
//! again nothing else goes on.

use crate::simd::Simd;

/// How far ahead of the kernel: about what memory delivers in the time that it takes to answer,
/// times a few.
const AHEAD: usize = 8192;

/// Asks for the line that lies ahead of `at`, which may be past the end of the weight.
#[inline(always)]
pub(super) fn ask_line<S: Simd>(s: S, at: *const u8) {
    s.prefetch(at.wrapping_add(AHEAD));
}

/// Asks for what lies ahead of all these bytes.
#[inline(always)]
pub(super) fn ask<S: Simd>(s: S, bytes: &[u8]) {
    for at in (0..bytes.len()).step_by(64) {
        ask_line(s, bytes.as_ptr().wrapping_add(at));
    }
}
