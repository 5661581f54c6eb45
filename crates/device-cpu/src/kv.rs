//! The KV cache: pages in the order in which attention reads them.
//!
//! A page holds, for each layer and KV head, one block: keys, then values, each token's elements in
//! a column of the keys and a row of the values. So one query meets sixteen keys per vector without
//! sums across lanes. Tokens and the values' head dimension are padded to 16.
//!
//! ```text
//! f32, f16    (head_dim, tokens)         (tokens, head_dim)
//! bf16        (head_dim / 2, tokens, 2)  (tokens / 2, head_dim, 2), as instructions want
//! 8 bits      (head_dim, tokens)         (tokens, head_dim), then the scales of both in bf16:
//!             (groups, tokens)           (tokens, groups)
//! ```

use crate::buffer::{Aligned, LARGE};
use crate::kernels::pairs::{Codes, Pairs};
use crate::kernels::tile::{Elements, Half};
use crate::simd::{LANES, Simd};
use crate::system::Readying;
use half::{bf16, f16};
use std::any::Any;
use std::marker::PhantomData;
use std::ops::Range;
use tangor_device::rounding::{KEY_GROUP, VALUE_GROUP, cached_scale};
use tangor_device::{DeviceError, KvCache, KvSpec, KvType, PageId};

/// Tokens whose memory is made ready ahead: those of the first prompt.
const READY: usize = 1024;

/// Keys and values in this process's memory.
#[derive(Debug)]
pub(crate) struct CpuKv {
    spec: KvSpec,
    /// Dropped before the memory is.
    _readying: Option<Readying>,
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
    #[inline(always)]
    pub(crate) fn padded_tokens(&self) -> usize {
        self.tokens.next_multiple_of(LANES)
    }

    /// Head dimension, padded: the distance of values.
    #[inline(always)]
    pub(crate) fn padded_dim(&self) -> usize {
        self.head_dim.next_multiple_of(LANES)
    }

    /// Whether attention multiplies bf16.
    #[inline(always)]
    pub(crate) fn narrow(&self) -> bool {
        matches!(self.dtype, KvType::Bf16 | KvType::Int8)
    }

    /// Scales per head and token of keys, in 8 bits.
    #[inline(always)]
    fn key_groups(&self) -> usize {
        self.head_dim.div_ceil(KEY_GROUP)
    }

    /// Scales per head and token of values, in 8 bits.
    #[inline(always)]
    fn value_groups(&self) -> usize {
        self.head_dim.div_ceil(VALUE_GROUP)
    }

    #[inline(always)]
    fn element(&self) -> usize {
        match self.dtype {
            KvType::F32 => 4,
            KvType::F16 | KvType::Bf16 => 2,
            KvType::Int8 => 1,
        }
    }

    /// Bytes of keys, or where the values begin. There are whole pairs of everything.
    #[inline(always)]
    fn values_at(&self) -> usize {
        self.head_dim.next_multiple_of(2) * self.padded_tokens() * self.element()
    }

    #[inline(always)]
    fn key_scales_at(&self) -> usize {
        let values = self.tokens.next_multiple_of(2) * self.padded_dim() * self.element();
        self.values_at() + values.next_multiple_of(64)
    }

    #[inline(always)]
    fn value_scales_at(&self) -> usize {
        self.key_scales_at() + self.key_groups() * self.padded_tokens() * 2
    }

    /// Bytes of a block.
    #[inline(always)]
    pub(crate) fn bytes(&self) -> usize {
        let scales = if self.dtype == KvType::Int8 {
            // A vector of them is read at once.
            (self.key_groups() * self.padded_tokens()
                + self.tokens.next_multiple_of(2) * self.value_groups())
                * 2
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
            KvType::Bf16 => {
                let keys = bytemuck::cast_slice_mut::<u8, [u16; 2]>(keys);
                let values = bytemuck::cast_slice_mut::<u8, [u16; 2]>(rest);
                let values = &mut values[token / 2 * padded..][..padded];
                for (at, (key, value)) in key.chunks(LANES).zip(value.chunks(LANES)).enumerate() {
                    let key: [[u16; 2]; LANES / 2] = bytemuck::cast(bf16s(s, key));
                    let first = at * LANES / 2;
                    for (pair, &x) in (first..self.head_dim.div_ceil(2)).zip(&key) {
                        keys[pair * stride + token] = x;
                    }
                    let value = bf16s(s, value);
                    for (to, &x) in values[at * LANES..].iter_mut().zip(&value) {
                        to[token % 2] = x;
                    }
                }
            }
            KvType::Int8 => self.put_int8(s, block, token, key, value),
        }
    }

    #[inline(always)]
    fn put_int8<S: Simd>(&self, s: S, block: &mut [u8], token: usize, key: &[f32], value: &[f32]) {
        let (stride, padded) = (self.padded_tokens(), self.padded_dim());
        let (codes, scales) = block.split_at_mut(self.key_scales_at());
        let (keys, values) = codes.split_at_mut(self.values_at());
        let keys = bytemuck::cast_slice_mut::<u8, i8>(keys);
        let values = &mut bytemuck::cast_slice_mut::<u8, i8>(values)[token * padded..][..padded];
        let scales = bytemuck::cast_slice_mut::<u8, u16>(scales);
        let (key_scales, value_scales) = scales.split_at_mut(self.key_groups() * stride);
        for (group, x) in key.chunks(KEY_GROUP).enumerate() {
            let (scale, codes) = round(s, x);
            key_scales[group * stride + token] = scale;
            for (d, &code) in (group * KEY_GROUP..self.head_dim).zip(&codes[..KEY_GROUP]) {
                keys[d * stride + token] = code;
            }
        }
        for (group, x) in value.chunks(VALUE_GROUP).enumerate() {
            let (scale, codes) = round(s, x);
            value_scales[token * self.value_groups() + group] = scale;
            values[group * VALUE_GROUP..].iter_mut().zip(&codes).for_each(|(to, x)| *to = *x);
        }
    }

    /// The keys and values of a block of IEEE numbers.
    pub(crate) fn parts<'a>(&self, block: &'a [u8]) -> Parts<'a> {
        assert!(!self.narrow() && block.len() == self.bytes());
        let (at, values) = (block.as_ptr(), block.as_ptr().wrapping_add(self.values_at()));
        let (stride, padded) = (self.padded_tokens(), self.padded_dim());
        let bytes = PhantomData;
        match self.dtype {
            KvType::F32 => Parts::F32(
                Elements { at: at.cast(), stride },
                Elements { at: values.cast(), stride: padded },
                bytes,
            ),
            _ => Parts::F16(
                Elements { at: at.cast(), stride },
                Elements { at: values.cast(), stride: padded },
                bytes,
            ),
        }
    }

    /// The keys and values of a block of bf16, rows of pairs; they live as long as the block.
    #[inline(always)]
    pub(crate) fn pairs(&self, block: &[u8]) -> (Pairs, Pairs) {
        assert!(self.dtype == KvType::Bf16 && block.len() == self.bytes());
        let (keys, values) = (block.as_ptr(), block.as_ptr().wrapping_add(self.values_at()));
        (
            Pairs { at: keys.cast(), stride: self.padded_tokens() },
            Pairs { at: values.cast(), stride: self.padded_dim() },
        )
    }

    /// The keys and values of a block of 8 bits; they live as long as the block.
    #[inline(always)]
    pub(crate) fn codes(&self, block: &[u8]) -> (Codes<true>, Codes<false>) {
        assert!(self.dtype == KvType::Int8 && block.len() == self.bytes());
        let at = |offset: usize| block.as_ptr().wrapping_add(offset);
        let keys = Codes {
            codes: at(0).cast(),
            stride: self.padded_tokens(),
            scales: at(self.key_scales_at()).cast(),
            groups: self.padded_tokens(),
        };
        let values = Codes {
            codes: at(self.values_at()).cast(),
            stride: self.padded_dim(),
            scales: at(self.value_scales_at()).cast(),
            groups: self.value_groups(),
        };
        (keys, values)
    }

    /// Reads one token's key and value of one head: the slow way, element by element.
    fn get(&self, block: &[u8], token: usize, key: &mut [f32], value: &mut [f32]) {
        let (stride, padded) = (self.padded_tokens(), self.padded_dim());
        let values = &block[self.values_at()..];
        let scale = |at: usize, index: usize| {
            let bits = bytemuck::pod_read_unaligned(&block[at + index * 2..][..2]);
            bf16::from_bits(bits).to_f32()
        };
        for d in 0..self.head_dim {
            let (mut k, mut v) = (d * stride + token, token * padded + d);
            let (mut key_scale, mut value_scale) = (1.0, 1.0);
            if self.dtype == KvType::Bf16 {
                k = (d / 2 * stride + token) * 2 + d % 2;
                v = (token / 2 * padded + d) * 2 + token % 2;
            }
            if self.dtype == KvType::Int8 {
                key_scale = scale(self.key_scales_at(), d / KEY_GROUP * stride + token);
                let group = token * self.value_groups() + d / VALUE_GROUP;
                value_scale = scale(self.value_scales_at(), group);
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
            KvType::Bf16 => bf16::from_bits(bytemuck::pod_read_unaligned(bytes)).to_f32(),
            KvType::Int8 => f32::from(bytes[0].cast_signed()),
        }
    }
}

/// Keys and values of a block of IEEE numbers, as factors of a product.
pub(crate) enum Parts<'a> {
    F32(Elements<f32>, Elements<f32>, PhantomData<&'a [u8]>),
    F16(Elements<Half>, Elements<Half>, PhantomData<&'a [u8]>),
}

/// Most elements that share a scale.
const LONGEST: usize = 2 * LANES;

/// Rounds a group of up to 32 elements to 8 bits: its scale, in bf16, and its codes.
#[inline(always)]
fn round<S: Simd>(s: S, x: &[f32]) -> (u16, [i8; LONGEST]) {
    let mut padded = [0.0; LONGEST];
    padded[..x.len()].copy_from_slice(x);
    let mut codes = [0; LONGEST];
    // SAFETY: both hold 32 elements, two vectors.
    unsafe {
        let x = (s.load(padded.as_ptr()), s.load(padded.as_ptr().add(LANES)));
        let scale = cached_scale(s.greatest_abs(x.0, x.1));
        if scale > 0.0 {
            let steps = s.splat(1.0 / scale);
            s.store_i8(codes.as_mut_ptr(), s.to_i32(s.mul(x.0, steps)));
            s.store_i8(codes.as_mut_ptr().add(LANES), s.to_i32(s.mul(x.1, steps)));
        }
        (bf16::from_f32(scale).to_bits(), codes)
    }
}

/// Up to 16 elements as bf16.
#[inline(always)]
fn bf16s<S: Simd>(s: S, x: &[f32]) -> [u16; LANES] {
    let mut padded = [0.0; LANES];
    padded[..x.len()].copy_from_slice(x);
    let mut out = [0; LANES];
    // SAFETY: both have 16 elements.
    unsafe { s.store_bf16(out.as_mut_ptr(), s.load(padded.as_ptr())) };
    out
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
        let mut data = bytes.and_then(Aligned::zeroed).ok_or_else(|| DeviceError::OutOfMemory {
            device: device.to_owned(),
            what: "KV cache",
            bytes: bytes.map_or(u64::MAX, |bytes| bytes as u64),
        })?;
        let pages = spec.pages.min(READY.div_ceil(spec.page_tokens));
        let first = data.get_mut(block * pages * spec.layers * spec.kv_heads);
        // SAFETY: the two are dropped together, the memory last.
        let readying = (first.len() >= LARGE).then(|| unsafe { Readying::start(first) });
        Ok(Self { spec: *spec, _readying: readying, data })
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
