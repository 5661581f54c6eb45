//! The KV cache: pages in the order in which attention reads them.
//!
//! A page holds, for each layer and KV head, one block: keys as `(head_dim, tokens)`, so that one
//! query meets sixteen keys per vector without sums across lanes, then values as
//! `(tokens, head_dim)`, then, in 8 bits, the scales of both: `(groups, tokens)` and
//! `(tokens, groups)`. Tokens and the values' head dimension are padded to 16.

use crate::buffer::Aligned;
use crate::simd::{LANES, Simd};
use half::f16;
use std::any::Any;
use std::ops::Range;
use tangor_device::rounding::{GROUP, scale_of};
use tangor_device::{DeviceError, KvCache, KvSpec, KvType, PageId};

/// Keys and values in this process's memory.
#[derive(Debug)]
pub(crate) struct CpuKv {
    spec: KvSpec,
    /// `(pages, layers, kv_heads, block_bytes)`.
    data: Aligned,
}

/// Where things are in a block.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BlockShape {
    pub(crate) dtype: KvType,
    pub(crate) head_dim: usize,
    /// Tokens of a page.
    pub(crate) tokens: usize,
}

impl BlockShape {
    pub(crate) fn new(spec: &KvSpec) -> Self {
        Self { dtype: spec.dtype, head_dim: spec.head_dim, tokens: spec.page_tokens }
    }

    /// Tokens, padded: the distance of a key's elements.
    pub(crate) fn padded_tokens(&self) -> usize {
        self.tokens.next_multiple_of(LANES)
    }

    /// Head dimension, padded: the distance of values.
    pub(crate) fn padded_dim(&self) -> usize {
        self.head_dim.next_multiple_of(LANES)
    }

    /// Scales per head and token, in 8 bits.
    fn groups(&self) -> usize {
        self.head_dim.div_ceil(GROUP)
    }

    fn element(&self) -> usize {
        match self.dtype {
            KvType::F32 => 4,
            KvType::F16 => 2,
            KvType::Int8 => 1,
        }
    }

    fn values_at(&self) -> usize {
        self.head_dim * self.padded_tokens() * self.element()
    }

    fn key_scales_at(&self) -> usize {
        self.values_at() + (self.tokens * self.padded_dim() * self.element()).next_multiple_of(64)
    }

    fn value_scales_at(&self) -> usize {
        self.key_scales_at() + self.groups() * self.padded_tokens() * 4
    }

    /// Bytes of a block.
    pub(crate) fn bytes(&self) -> usize {
        let scales = if self.dtype == KvType::Int8 {
            self.groups() * (self.padded_tokens() + self.tokens) * 4
        } else {
            0
        };
        (self.key_scales_at() + scales).next_multiple_of(64)
    }

    /// Writes one token's key and value of one head.
    #[inline(always)]
    pub(crate) fn put<S: Simd>(
        &self,
        s: S,
        block: &mut [u8],
        token: usize,
        key: &[f32],
        value: &[f32],
    ) {
        assert!(block.len() == self.bytes() && token < self.tokens);
        assert!(key.len() == self.head_dim && value.len() == self.head_dim);
        let (stride, padded) = (self.padded_tokens(), self.padded_dim());
        let (keys, rest) = block.split_at_mut(self.values_at());
        match self.dtype {
            KvType::F32 => {
                let keys = bytemuck::cast_slice_mut::<u8, f32>(keys);
                for (d, &x) in key.iter().enumerate() {
                    keys[d * stride + token] = x;
                }
                let values = &mut bytemuck::cast_slice_mut::<u8, f32>(rest)[token * padded..];
                values[..self.head_dim].copy_from_slice(value);
            }
            KvType::F16 => {
                let keys = bytemuck::cast_slice_mut::<u8, u16>(keys);
                let values = bytemuck::cast_slice_mut::<u8, u16>(rest);
                let values = &mut values[token * padded..][..padded];
                for (at, (key, value)) in key.chunks(LANES).zip(value.chunks(LANES)).enumerate() {
                    let key = halves(s, key);
                    for (d, &x) in (at * LANES..self.head_dim).zip(&key) {
                        keys[d * stride + token] = x;
                    }
                    values[at * LANES..][..LANES].copy_from_slice(&halves(s, value));
                }
            }
            KvType::Int8 => self.put_int8(block, token, key, value),
        }
    }

    #[allow(clippy::cast_possible_truncation)]
    fn put_int8(&self, block: &mut [u8], token: usize, key: &[f32], value: &[f32]) {
        let (stride, padded, groups) = (self.padded_tokens(), self.padded_dim(), self.groups());
        let (codes, scales) = block.split_at_mut(self.key_scales_at());
        let (keys, values) = codes.split_at_mut(self.values_at());
        let scales = bytemuck::cast_slice_mut::<u8, f32>(scales);
        for (group, x) in key.chunks(GROUP).enumerate() {
            let (scale, steps) = scale_of(x);
            scales[group * stride + token] = scale;
            for (i, x) in x.iter().enumerate() {
                let code = (x * steps).round_ties_even() as i8;
                keys[(group * GROUP + i) * stride + token] = code.cast_unsigned();
            }
        }
        let scales = &mut scales[groups * stride..];
        for (group, x) in value.chunks(GROUP).enumerate() {
            let (scale, steps) = scale_of(x);
            scales[token * groups + group] = scale;
            for (i, x) in x.iter().enumerate() {
                let code = (x * steps).round_ties_even() as i8;
                values[token * padded + group * GROUP + i] = code.cast_unsigned();
            }
        }
    }

    /// Widens the first `tokens` tokens of a block: keys to `(head_dim, padded_tokens)` (whole
    /// vectors of tokens), values to `(tokens, padded_dim)`.
    #[inline(always)]
    pub(crate) fn widen<S: Simd>(
        &self,
        s: S,
        block: &[u8],
        tokens: usize,
        keys: &mut [f32],
        values: &mut [f32],
    ) {
        let (stride, padded) = (self.padded_tokens(), self.padded_dim());
        assert!(block.len() == self.bytes() && tokens <= self.tokens);
        assert!(keys.len() >= self.head_dim * stride && values.len() >= tokens * padded);
        let used = tokens.next_multiple_of(LANES);
        let from = block.as_ptr();
        for d in 0..self.head_dim {
            for t in (0..used).step_by(LANES) {
                let at = d * stride + t;
                // SAFETY: a block has `(head_dim, padded_tokens)` keys, and scales of each group.
                unsafe {
                    let x = self.load(s, from, at);
                    let x = if self.dtype == KvType::Int8 {
                        let scales = from.add(self.key_scales_at()).cast::<f32>();
                        s.mul(x, s.load(scales.add(d / GROUP * stride + t)))
                    } else {
                        x
                    };
                    s.store(keys.as_mut_ptr().add(at), x);
                }
            }
        }
        // SAFETY: the values follow the keys.
        let from = unsafe { from.add(self.values_at()) };
        for t in 0..tokens {
            for d in (0..padded).step_by(LANES) {
                let at = t * padded + d;
                // SAFETY: a block has `(tokens, padded_dim)` values, and scales of each group.
                unsafe {
                    let x = self.load(s, from, at);
                    let x = if self.dtype == KvType::Int8 {
                        let scales = block.as_ptr().add(self.value_scales_at()).cast::<f32>();
                        s.mul(x, s.splat(*scales.add(t * self.groups() + d / GROUP)))
                    } else {
                        x
                    };
                    s.store(values.as_mut_ptr().add(at), x);
                }
            }
        }
    }

    /// 16 elements.
    ///
    /// # Safety
    /// They are there.
    #[inline(always)]
    unsafe fn load<S: Simd>(&self, s: S, from: *const u8, at: usize) -> S::F32 {
        // SAFETY: as the caller's.
        unsafe {
            match self.dtype {
                KvType::F32 => s.load(from.cast::<f32>().add(at)),
                KvType::F16 => s.load_f16(from.cast::<u16>().add(at)),
                KvType::Int8 => s.load_i8(from.cast::<i8>().add(at)),
            }
        }
    }

    /// Reads one token's key and value of one head: the slow way, element by element.
    fn get(&self, block: &[u8], token: usize, key: &mut [f32], value: &mut [f32]) {
        let (stride, padded) = (self.padded_tokens(), self.padded_dim());
        let values = &block[self.values_at()..];
        let scale = |at: usize, index: usize| {
            bytemuck::pod_read_unaligned::<f32>(&block[at + index * 4..][..4])
        };
        for d in 0..self.head_dim {
            let (k, v) = (d * stride + token, token * padded + d);
            let (mut key_scale, mut value_scale) = (1.0, 1.0);
            if self.dtype == KvType::Int8 {
                key_scale = scale(self.key_scales_at(), d / GROUP * stride + token);
                value_scale = scale(self.value_scales_at(), token * self.groups() + d / GROUP);
            }
            key[d] = self.element_at(block, k) * key_scale;
            value[d] = self.element_at(values, v) * value_scale;
        }
    }

    fn element_at(&self, from: &[u8], index: usize) -> f32 {
        let bytes = &from[index * self.element()..][..self.element()];
        match self.dtype {
            KvType::F32 => bytemuck::pod_read_unaligned(bytes),
            KvType::F16 => f16::from_bits(bytemuck::pod_read_unaligned(bytes)).to_f32(),
            KvType::Int8 => f32::from(bytes[0].cast_signed()),
        }
    }
}

/// Up to 16 elements as IEEE halves.
#[inline(always)]
fn halves<S: Simd>(s: S, x: &[f32]) -> [u16; LANES] {
    let mut padded = [0.0; LANES];
    padded[..x.len()].copy_from_slice(x);
    let mut out = [0; LANES];
    // SAFETY: both have 16 elements.
    unsafe { s.store_f16(out.as_mut_ptr(), s.load(padded.as_ptr())) };
    out
}

impl CpuKv {
    pub(crate) fn new(spec: &KvSpec, device: &str) -> Result<Self, DeviceError> {
        let block = BlockShape::new(spec).bytes();
        let bytes = [spec.pages, spec.layers, spec.kv_heads]
            .iter()
            .try_fold(block, |bytes, &n| bytes.checked_mul(n));
        let data = bytes.and_then(Aligned::zeroed).ok_or_else(|| DeviceError::OutOfMemory {
            device: device.to_owned(),
            what: "KV cache",
            bytes: bytes.map_or(u64::MAX, |bytes| bytes as u64),
        })?;
        Ok(Self { spec: *spec, data })
    }

    /// Where the block of a page, layer and head is.
    pub(crate) fn block(&self, page: PageId, layer: usize, head: usize) -> Range<usize> {
        let bytes = BlockShape::new(&self.spec).bytes();
        let index = (page as usize * self.spec.layers + layer) * self.spec.kv_heads + head;
        index * bytes..(index + 1) * bytes
    }

    /// All of it.
    pub(crate) fn bytes(&self) -> &[u8] {
        self.data.get(self.data.len())
    }

    /// All of it.
    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        let len = self.data.len();
        self.data.get_mut(len)
    }
}

impl KvCache for CpuKv {
    fn spec(&self) -> &KvSpec {
        &self.spec
    }

    fn copy_page(&mut self, from: PageId, to: PageId, tokens: usize) {
        if tokens == 0 || from == to {
            return;
        }
        // The whole page: what lies behind `tokens` is never read before it is written.
        let heads = self.spec.layers * self.spec.kv_heads;
        if heads > 0 {
            let (start, end) = (self.block(from, 0, 0).start, self.block(from + 1, 0, 0).start);
            let target = self.block(to, 0, 0).start;
            self.bytes_mut().copy_within(start..end, target);
        }
    }

    fn read_page(
        &self,
        page: PageId,
        layer: usize,
        tokens: usize,
        keys: &mut [f32],
        values: &mut [f32],
    ) {
        let shape = BlockShape::new(&self.spec);
        let (dim, heads) = (self.spec.head_dim, self.spec.kv_heads);
        for token in 0..tokens {
            for head in 0..heads {
                let block = &self.bytes()[self.block(page, layer, head)];
                let at = (token * heads + head) * dim..(token * heads + head + 1) * dim;
                shape.get(block, token, &mut keys[at.clone()], &mut values[at]);
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
        let shape = BlockShape::new(&self.spec);
        let (dim, heads) = (self.spec.head_dim, self.spec.kv_heads);
        for token in 0..tokens {
            for head in 0..heads {
                let at = (token * heads + head) * dim..(token * heads + head + 1) * dim;
                let block = self.block(page, layer, head);
                let block = &mut self.bytes_mut()[block];
                shape.put(crate::simd::Portable, block, token, &keys[at.clone()], &values[at]);
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
