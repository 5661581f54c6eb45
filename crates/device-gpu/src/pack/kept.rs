//! Packed matrices that were kept: their forms in words, and the way back from words and bytes.
//!
//! What comes from a cache is foreign. A form is compared with what the weight itself says, and the
//! bytes have to be exactly as many as that form takes, so that kernels find everything whatever
//! the bytes are.

use super::{Outline, Packed, Part, Scales, TILE, cuts, pack_tile, scale_words, suits};
use crate::context::Context;
use std::fmt::Write;
use std::ops::Range;
use std::sync::Arc;
use tangor_device::DeviceError;
use tangor_device::tensor::{Bytes, Weight, release};

/// Raised whenever the same weight is packed into other bytes.
pub(crate) const VERSION: u32 = 1;

/// A packed matrix that is not on the adapter yet.
#[derive(Debug)]
pub(crate) struct Kept {
    parts: Vec<KeptPart>,
    cols: usize,
}

#[derive(Debug)]
struct KeptPart {
    rows: Range<usize>,
    outline: Outline,
    codes: Bytes,
    scales: Bytes,
}

impl Packed {
    /// What has to be known, besides the weight that was packed, to find its parts in its bytes: of
    /// every part the form of its scales, and its zero point.
    pub(crate) fn form(&self) -> String {
        let mut out = String::new();
        for (index, part) in self.parts.iter().enumerate() {
            let comma = if index == 0 { "" } else { ", " };
            // Writing to a string does not fail.
            let _ = write!(out, "{comma}{} {}", part.form.meta, part.form.zero);
        }
        out
    }
}

impl Kept {
    /// The packed form of `weight`, of a form and bytes that were kept; `None` if they cannot be
    /// that.
    pub(crate) fn new(
        weight: &Weight,
        max_weights: u64,
        form: &str,
        mut data: Bytes,
    ) -> Option<Self> {
        let mut forms = form.split(", ");
        let part = |rows: Range<usize>| {
            let (meta, zero) = forms.next()?.split_once(' ')?;
            let slice = weight.slice_rows(rows.clone()).ok()?;
            let outline = Outline::of(&slice).with(meta.parse().ok()?, zero.parse().ok()?)?;
            let [codes, scales] = [outline.codes_bytes(), 4 * outline.scale_words().1];
            if data.len() < codes.checked_add(scales)? {
                return None;
            }
            let (codes, scales) = (data.split_to(codes), data.split_to(scales));
            Some(KeptPart { rows, outline, codes, scales })
        };
        let parts = cuts(weight, max_weights).into_iter().map(part).collect::<Option<_>>()?;
        let whole = forms.next().is_none() && data.is_empty();
        whole.then_some(Self { parts, cols: weight.cols() })
    }

    /// Whether a tile, `place` halves of the way from the first to the last, is what `weight` is
    /// packed into: packs it once more.
    pub(crate) fn holds(&self, weight: &Weight, place: usize) -> bool {
        let part = self.parts.get(place * self.parts.len().saturating_sub(1) / 2);
        part.is_some_and(|part| part.holds(weight, place).unwrap_or(false))
    }

    /// Puts it into the adapter's memory.
    pub(crate) fn upload(&self, context: &Arc<Context>) -> Result<Packed, DeviceError> {
        let part = |part: &KeptPart| {
            let [codes, scales] = [&part.codes, &part.scales].map(|bytes| {
                let block = context.constant("weights", bytes, wgpu::BufferUsages::STORAGE);
                release(bytes);
                block.map(Arc::new)
            });
            let (rows, form, shape) = (part.rows.clone(), part.outline.form, part.outline.shape());
            Ok(Part { rows, codes: codes?, scales: scales?, form, shape })
        };
        let parts = self.parts.iter().map(part).collect::<Result<_, DeviceError>>()?;
        Ok(Packed { parts, cols: self.cols })
    }
}

impl KeptPart {
    fn holds(&self, weight: &Weight, place: usize) -> Option<bool> {
        let all = &self.outline;
        let tile = place * (all.tiles() - 1) / 2;
        let rows = tile * TILE..((tile + 1) * TILE).min(all.rows);
        let slice = weight.slice_rows(self.rows.start + rows.start..self.rows.start + rows.end);
        let slice = slice.ok()?;
        let outline = Outline { rows: rows.len(), ..*all };
        let mut scales = Scales::default();
        let again = pack_tile(&slice, 0..rows.len(), &outline, &mut scales);
        let codes = self.codes.get(tile * again.len()..(tile + 1) * again.len())?;
        if codes != again || !suits(&outline, &scales) {
            return Some(false);
        }
        if all.groups == 0 {
            return Some(true);
        }
        let words = scale_words(&outline, &scales);
        // Factors of all tiles follow the scales of all.
        let (first, second) = words.split_at_checked(outline.scale_words().0)?;
        let same = |(words, start): (&[u32], usize)| {
            let from = 4 * (start + tile * words.len());
            let kept = self.scales.get(from..from + 4 * words.len());
            kept == Some(bytemuck::cast_slice(words))
        };
        Some(same((first, 0)) && same((second, all.scale_words().0)))
    }
}
