//! The KV cache: two buffers for every layer, keys and values.
//!
//! Heads lie in the order (page, head, token), so that the tokens of a page that one head attends
//! to are next to each other. A head is `head_dim` elements, padded to whole words of four; in 8
//! bits, scales in bf16 follow, two to a word. `shaders/cache.wgsl` says the same.

use crate::context::{Block, Context, lock};
use half::{bf16, f16};
use std::any::Any;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use tangor_device::rounding::{
    KEY_GROUP, VALUE_GROUP, cached_scale, round_bf16, round_key, round_value,
};
use tangor_device::{DeviceError, KvCache, KvSpec, KvType, PageId};
use wgpu::BufferUsages;

/// Keys and values in the adapter's memory.
#[derive(Debug)]
pub(crate) struct GpuKv {
    spec: KvSpec,
    /// Tells caches apart.
    pub(crate) id: u64,
    context: Arc<Context>,
    layers: Vec<[Block; 2]>,
    /// What was fetched last, until anything is written.
    fetched: Mutex<Fetched>,
}

/// Copies of pages in single layers.
#[derive(Debug, Default)]
struct Fetched {
    /// In the order of the words.
    places: Vec<(PageId, usize)>,
    /// Of each place the keys, then the values.
    words: Vec<u32>,
}

impl Fetched {
    /// Keys and values of a page in a layer, of so many words.
    fn get(&self, place: (PageId, usize), [keys, values]: [usize; 2]) -> Option<[&[u32]; 2]> {
        let index = self.places.iter().position(|other| *other == place)?;
        let words = self.words.get(index * (keys + values)..(index + 1) * (keys + values))?;
        Some(words.split_at(keys).into())
    }
}

/// How one head of one token is kept.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HeadShape {
    dtype: KvType,
    head_dim: usize,
    /// Elements that share a scale in 8 bits.
    group: usize,
}

impl HeadShape {
    /// Of keys and of values.
    pub(crate) fn both(dtype: KvType, head_dim: usize) -> [Self; 2] {
        [KEY_GROUP, VALUE_GROUP].map(|group| Self { dtype, head_dim, group })
    }

    /// Words that hold elements.
    fn data(&self) -> usize {
        let padded = self.head_dim.next_multiple_of(4);
        match self.dtype {
            KvType::F32 => padded,
            KvType::F16 | KvType::Bf16 => padded / 2,
            KvType::Int8 => padded / 4,
        }
    }

    /// Words of a head.
    pub(crate) fn words(&self) -> usize {
        let scales = self.head_dim.div_ceil(self.group).div_ceil(2);
        self.data() + if self.dtype == KvType::Int8 { scales } else { 0 }
    }

    /// What is kept of a head; `out` has [`Self::words`].
    fn write(&self, head: &[f32], out: &mut [u32]) {
        out.fill(0);
        match self.dtype {
            KvType::F32 => {
                out.iter_mut().zip(head).for_each(|(out, x)| *out = x.to_bits());
            }
            KvType::F16 => {
                for (out, pair) in out.iter_mut().zip(head.chunks(2)) {
                    *out = pack_pair(pair, |x| f16::from_f32(x).to_bits());
                }
            }
            KvType::Bf16 => {
                for (out, pair) in out.iter_mut().zip(head.chunks(2)) {
                    *out = pack_pair(pair, |x| bf16::from_f32(round_bf16(x)).to_bits());
                }
            }
            KvType::Int8 => self.write_int8(head, out),
        }
    }

    fn write_int8(&self, head: &[f32], out: &mut [u32]) {
        let data = self.data();
        for (index, group) in head.chunks(self.group).enumerate() {
            let finite = group.iter().all(|x| x.is_finite());
            let amax = group.iter().fold(0.0_f32, |amax, x| amax.max(x.abs()));
            let scale = cached_scale(if finite { amax } else { f32::NAN });
            let bits = u32::from(bf16::from_f32(scale).to_bits());
            out[data + index / 2] |= bits << (index % 2 * 16);
            for (i, x) in group.iter().enumerate() {
                let steps = if scale > 0.0 { x * (1.0 / scale) } else { 0.0 };
                #[allow(clippy::cast_possible_truncation)]
                let code = steps.round_ties_even().clamp(-127.0, 127.0) as i8;
                let at = index * self.group + i;
                out[at / 4] |= u32::from(code.cast_unsigned()) << (at % 4 * 8);
            }
        }
    }

    /// The head that `words` hold.
    fn read(&self, words: &[u32], head: &mut [f32]) {
        let part = |at: usize, bits: usize| {
            let per_word = 32 / bits;
            words[at / per_word] >> (at % per_word * bits)
        };
        for (at, x) in head.iter_mut().enumerate() {
            #[allow(clippy::cast_possible_truncation, reason = "the lower bits are meant")]
            let value = match self.dtype {
                KvType::F32 => f32::from_bits(words[at]),
                KvType::F16 => f16::from_bits(part(at, 16) as u16).to_f32(),
                KvType::Bf16 => bf16::from_bits(part(at, 16) as u16).to_f32(),
                KvType::Int8 => {
                    let group = at / self.group;
                    let scale = words[self.data() + group / 2] >> (group % 2 * 16);
                    let code = (part(at, 8) as u8).cast_signed();
                    f32::from(code) * bf16::from_bits(scale as u16).to_f32()
                }
            };
            *x = value;
        }
    }
}

fn pack_pair(pair: &[f32], bits: impl Fn(f32) -> u16) -> u32 {
    let second = pair.get(1).map_or(0, |&x| u32::from(bits(x)));
    u32::from(bits(pair[0])) | (second << 16)
}

impl GpuKv {
    pub(crate) fn new(spec: &KvSpec, context: &Arc<Context>) -> Result<Self, DeviceError> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let heads = spec.pages as u64 * spec.kv_heads as u64 * spec.page_tokens as u64;
        let block = |shape: HeadShape| {
            let bytes = heads.saturating_mul(shape.words() as u64 * 4);
            let usage = BufferUsages::STORAGE | BufferUsages::COPY_SRC | BufferUsages::COPY_DST;
            context.block("KV cache", bytes, usage, None)
        };
        let layer = |_| {
            let [keys, values] = HeadShape::both(spec.dtype, spec.head_dim);
            Ok([block(keys)?, block(values)?])
        };
        Ok(Self {
            spec: *spec,
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            context: Arc::clone(context),
            layers: (0..spec.layers).map(layer).collect::<Result<_, DeviceError>>()?,
            fetched: Mutex::default(),
        })
    }

    /// The buffers of a layer, keys and values.
    pub(crate) fn layer(&self, layer: usize) -> Option<[&wgpu::Buffer; 2]> {
        self.layers.get(layer).map(|[keys, values]| [&keys.buffer, &values.buffer])
    }

    /// What was read of pages is no longer what they hold.
    pub(crate) fn written(&mut self) {
        *lock(&self.fetched) = Fetched::default();
    }

    fn shapes(&self) -> [HeadShape; 2] {
        HeadShape::both(self.spec.dtype, self.spec.head_dim)
    }

    /// Words of a page: keys and values of one layer.
    fn page_words(&self) -> [usize; 2] {
        self.shapes().map(|shape| self.spec.kv_heads * self.spec.page_tokens * shape.words())
    }

    /// Copies pages in single layers, in one submission.
    fn fetch(&self, places: Vec<(PageId, usize)>) -> Result<Fetched, DeviceError> {
        let words = self.page_words();
        let bytes = (words.iter().sum::<usize>() * places.len() * 4) as u64;
        let usage = BufferUsages::MAP_READ | BufferUsages::COPY_DST;
        let staging = self.context.block("KV cache", bytes, usage, None)?;
        let mut encoder = self.context.encoder();
        let mut to = 0;
        for &(page, layer) in &places {
            for (block, words) in self.layers[layer].iter().zip(words) {
                let len = words as u64 * 4;
                let from = u64::from(page) * len;
                encoder.copy_buffer_to_buffer(&block.buffer, from, &staging.buffer, to, len);
                to += len;
            }
        }
        let mut words = Vec::new();
        self.context.finish_and_read(encoder, &staging.buffer, bytes, &mut |bytes| {
            words.extend(bytes.as_chunks::<4>().0.iter().map(|word| u32::from_le_bytes(*word)));
        })?;
        Ok(Fetched { places, words })
    }

    /// Where the words of a head of a token of a page are.
    fn head(&self, shape: HeadShape, head: usize, token: usize) -> Range<usize> {
        let start = (head * self.spec.page_tokens + token) * shape.words();
        start..start + shape.words()
    }
}

impl KvCache for GpuKv {
    fn spec(&self) -> &KvSpec {
        &self.spec
    }

    fn copy_page(&mut self, from: PageId, to: PageId, tokens: usize) {
        if from == to || tokens == 0 {
            return;
        }
        self.written();
        let shapes = self.shapes();
        let mut encoder = self.context.encoder();
        // Within a buffer nothing is copied: through another one.
        let [keys, values] = self.page_words();
        let size = (keys.max(values) * 4) as u64;
        let usage = BufferUsages::COPY_SRC | BufferUsages::COPY_DST;
        let Ok(staging) = self.context.block("KV cache", size, usage, None) else { return };
        for layer in &self.layers {
            for (block, shape) in layer.iter().zip(shapes) {
                let head = (self.spec.page_tokens * shape.words() * 4) as u64;
                let page = head * self.spec.kv_heads as u64;
                let len = (tokens.min(self.spec.page_tokens) * shape.words() * 4) as u64;
                let (source, target) = (u64::from(from) * page, u64::from(to) * page);
                encoder.copy_buffer_to_buffer(&block.buffer, source, &staging.buffer, 0, page);
                for index in 0..self.spec.kv_heads as u64 {
                    let at = index * head;
                    let target = target + at;
                    encoder.copy_buffer_to_buffer(&staging.buffer, at, &block.buffer, target, len);
                }
            }
        }
        // The next run comes after this, and reports what went wrong.
        self.context.queue.submit([encoder.finish()]);
    }

    /// What cannot be had at once is fetched piece by piece.
    fn prefetch(&self, pages: &[PageId], layers: &[usize]) {
        let places = pages.iter().flat_map(|&page| layers.iter().map(move |&layer| (page, layer)));
        let places: Vec<_> = places.collect();
        if !places.is_empty() {
            *lock(&self.fetched) = self.fetch(places).unwrap_or_default();
        }
    }

    /// All elements are NaN if the device is lost: the next run says so.
    fn read_page(
        &self,
        page: PageId,
        layer: usize,
        tokens: usize,
        keys: &mut [f32],
        values: &mut [f32],
    ) {
        let mut fetched = lock(&self.fetched);
        let (place, sizes) = ((page, layer), self.page_words());
        if fetched.get(place, sizes).is_none() {
            *fetched = self.fetch(vec![place]).unwrap_or_default();
        }
        let Some(words) = fetched.get(place, sizes) else {
            keys.fill(f32::NAN);
            values.fill(f32::NAN);
            return;
        };
        let dim = self.spec.head_dim;
        for ((shape, words), out) in self.shapes().into_iter().zip(words).zip([keys, values]) {
            for (index, out) in
                out.chunks_exact_mut(dim).take(tokens * self.spec.kv_heads).enumerate()
            {
                let (token, head) = (index / self.spec.kv_heads, index % self.spec.kv_heads);
                let at = self.head(shape, head, token);
                shape.read(&words[at], out);
            }
        }
    }

    fn write_page(
        &mut self,
        page: PageId,
        layer: usize,
        tokens: usize,
        keys: &[f32],
        values: &[f32],
    ) {
        self.written();
        let Some(blocks) = self.layers.get(layer) else { return };
        let (dim, kv_heads) = (self.spec.head_dim, self.spec.kv_heads);
        let rounds = [round_key as fn(KvType, &mut [f32]), round_value];
        for (index, (source, shape)) in [keys, values].into_iter().zip(self.shapes()).enumerate() {
            let page_words = self.page_words()[index];
            let mut words = vec![0; kv_heads * tokens * shape.words()];
            for (at, out) in words.chunks_exact_mut(shape.words()).enumerate() {
                let (head, token) = (at / tokens, at % tokens);
                let first = (token * kv_heads + head) * dim;
                let mut elements = source[first..first + dim].to_vec();
                rounds[index](self.spec.dtype, &mut elements);
                shape.write(&elements, out);
            }
            // Heads of a whole page follow each other; of part of one they lie apart.
            let whole = tokens == self.spec.page_tokens;
            let step = if whole { words.len() } else { tokens * shape.words() };
            for (head, words) in words.chunks(step.max(1)).enumerate() {
                let at = page as usize * page_words + self.head(shape, head, 0).start;
                let bytes: &[u8] = bytemuck::cast_slice(words);
                self.context.queue.write_buffer(&blocks[index].buffer, at as u64 * 4, bytes);
            }
        }
    }

    fn as_any(&self) -> &dyn Any {
        self
    }

    fn as_any_mut(&mut self) -> &mut dyn Any {
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tangor_device::Device;

    #[test]
    fn what_is_read_of_pages_is_fetched_together_and_nothing_else() {
        let device = crate::GpuDevice::open(&crate::GpuOptions::default()).unwrap();
        let (layers, page_tokens) = (3, 4);
        let spec =
            KvSpec { layers, kv_heads: 2, head_dim: 8, page_tokens, pages: 5, dtype: KvType::F32 };
        let mut kv = device.kv_cache(&spec).unwrap();
        let width = page_tokens * spec.kv_heads * spec.head_dim;
        let of = |page: PageId, layer: usize| vec![(page as usize * 10 + layer) as f32; width];
        for (page, layer) in (0..5).flat_map(|page| (0..layers).map(move |layer| (page, layer))) {
            kv.write_page(page, layer, page_tokens, &of(page, layer), &of(page, layer));
        }
        let kv = kv.as_any().downcast_ref::<GpuKv>().unwrap();
        let read = |page, layer| {
            let (mut keys, mut values) = (vec![f32::NAN; width], vec![f32::NAN; width]);
            kv.read_page(page, layer, page_tokens, &mut keys, &mut values);
            assert_eq!((&keys, &values), (&of(page, layer), &of(page, layer)));
        };
        let fetched = || lock(&kv.fetched).places.clone();
        read(2, 1);
        assert_eq!(fetched(), [(2, 1)], "one layer of one page");
        kv.prefetch(&[4, 0, 3], &[2]);
        [4, 3, 0].into_iter().for_each(|page| read(page, 2));
        kv.prefetch(&[4], &[]);
        assert_eq!(fetched(), [(4, 2), (0, 2), (3, 2)], "in one go");
        assert_eq!(lock(&kv.fetched).words.len(), 3 * 2 * width);
    }

    #[test]
    fn heads_are_kept_as_the_contract_rounds_them() {
        for dtype in [KvType::F32, KvType::F16, KvType::Bf16, KvType::Int8] {
            for head_dim in [4, 6, 24, 40, 64, 100] {
                let head: Vec<f32> =
                    (0..head_dim).map(|i| (i as f32).sin() * i as f32 * 0.1).collect();
                let rounds = [round_key as fn(KvType, &mut [f32]), round_value];
                for (shape, round) in HeadShape::both(dtype, head_dim).into_iter().zip(rounds) {
                    let mut words = vec![u32::MAX; shape.words()];
                    shape.write(&head, &mut words);
                    let (mut found, mut expected) = (vec![f32::NAN; head_dim], head.clone());
                    shape.read(&words, &mut found);
                    round(dtype, &mut expected);
                    assert_eq!(found, expected, "{dtype:?}, {head_dim} elements");
                    let mut again = words.clone();
                    shape.write(&found, &mut again);
                    assert_eq!(again, words, "{dtype:?}, {head_dim} elements, written again");
                }
            }
        }
    }
}
