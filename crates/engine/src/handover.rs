//! Keys and values where they are needed: which device's cache holds which rows of which page.
//!
//! All devices number their pages alike. A page that was computed on one device is copied to
//! another one when a batch there first reads it, layer by layer, and never back and forth.

use tangor_device::{KvCache, PageId};

/// Tokens of each page and layer that a device's cache holds: `held[device][layer][page]`.
#[derive(Debug)]
pub(crate) struct Handover {
    held: Vec<Vec<Vec<usize>>>,
    page_tokens: usize,
    /// `(page_tokens, kv_heads, head_dim)`.
    keys: Vec<f32>,
    values: Vec<f32>,
}

impl Handover {
    /// Nothing is held anywhere.
    pub(crate) fn new(caches: &[Box<dyn KvCache>]) -> Self {
        let spec = caches.first().map(|cache| *cache.spec());
        let (layers, pages) = spec.map_or((0, 0), |spec| (spec.layers, spec.pages));
        let elements = spec.map_or(0, |s| s.page_tokens * s.kv_heads * s.head_dim);
        Self {
            held: vec![vec![vec![0; pages]; layers]; caches.len()],
            page_tokens: spec.map_or(1, |spec| spec.page_tokens),
            keys: vec![0.0; elements],
            values: vec![0.0; elements],
        }
    }

    /// Copies the first `tokens` tokens of a page, on every device that holds them.
    pub(crate) fn copy_page(
        &mut self,
        caches: &mut [Box<dyn KvCache>],
        (from, to): (PageId, PageId),
        tokens: usize,
    ) {
        for (cache, held) in caches.iter_mut().zip(&mut self.held) {
            cache.copy_page(from, to, tokens);
            for layer in held {
                layer[to as usize] = layer[from as usize].min(tokens);
            }
        }
    }

    /// Brings the first `tokens` tokens of a sequence to a device, for `layers`.
    pub(crate) fn bring(
        &mut self,
        caches: &mut [Box<dyn KvCache>],
        device: usize,
        layers: &[usize],
        pages: &[PageId],
        tokens: usize,
    ) {
        if caches.len() < 2 {
            return;
        }
        for (index, &page) in pages.iter().enumerate() {
            let needed = tokens.saturating_sub(index * self.page_tokens).min(self.page_tokens);
            for source in (0..caches.len()).filter(|&other| other != device) {
                let holds = |by: usize, layer: usize| self.held[by][layer][page as usize] >= needed;
                let missing = |&layer: &usize| holds(source, layer) && !holds(device, layer);
                let missing: Vec<usize> = layers.iter().copied().filter(missing).collect();
                if !missing.is_empty() {
                    caches[source].prefetch(&[page], &missing);
                }
                let elements = self.keys.len() / self.page_tokens * needed;
                let (keys, values) = (&mut self.keys[..elements], &mut self.values[..elements]);
                for layer in missing {
                    caches[source].read_page(page, layer, needed, keys, values);
                    caches[device].write_page(page, layer, needed, keys, values);
                    self.held[device][layer][page as usize] = needed;
                }
            }
        }
    }

    /// A device has received the tokens `start..end` of a sequence, all of them, from another one
    /// that [`Handover::wrote`] them.
    pub(crate) fn received(
        &mut self,
        device: usize,
        layers: &[usize],
        pages: &[PageId],
        (start, end): (usize, usize),
    ) {
        let size = self.page_tokens;
        for (index, &page) in pages.iter().enumerate().take(end.div_ceil(size)).skip(start / size) {
            for &layer in layers {
                self.held[device][layer][page as usize] = (end - index * size).min(size);
            }
        }
    }

    /// A device has written the tokens `start..end` of a sequence: no other cache holds them now.
    pub(crate) fn wrote(
        &mut self,
        device: usize,
        layers: &[usize],
        pages: &[PageId],
        (start, end): (usize, usize),
    ) {
        let size = self.page_tokens;
        if self.held.len() < 2 || start >= end {
            return;
        }
        for (index, &page) in pages.iter().enumerate().take(end.div_ceil(size)).skip(start / size) {
            for &layer in layers {
                for (other, held) in self.held.iter_mut().enumerate() {
                    let held = &mut held[layer][page as usize];
                    *held = if other == device {
                        (end - index * size).min(size)
                    } else {
                        (*held).min(start.saturating_sub(index * size))
                    };
                }
            }
        }
    }
}
