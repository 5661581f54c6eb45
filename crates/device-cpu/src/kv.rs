//! The KV cache: pages in the order in which attention reads them.
//!
//! A page holds, for each layer and KV head, one block: keys as `(head_dim, tokens)`, so that one
//! query meets sixteen keys per vector without sums across lanes, then values as
//! `(tokens, head_dim)`, then, in 8 bits, the scales of both: `(groups, tokens)` and
//! `(tokens, groups)`. Tokens and the values' head dimension are padded to 16.

use crate::buffer::Aligned;
use crate::kernels::quantise::round;
use crate::kernels::tile::{Elements, Half, Right};
use crate::simd::{LANES, Simd};
use half::f16;
use std::any::Any;
use std::marker::PhantomData;
use std::ops::Range;
use tangor_device::rounding::GROUP;
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
            KvType::Int8 => self.put_int8(s, block, token, key, value),
        }
    }

    #[inline(always)]
    fn put_int8<S: Simd>(&self, s: S, block: &mut [u8], token: usize, key: &[f32], value: &[f32]) {
        let (stride, padded, groups) = (self.padded_tokens(), self.padded_dim(), self.groups());
        let (codes, scales) = block.split_at_mut(self.key_scales_at());
        let (keys, values) = codes.split_at_mut(self.values_at());
        let keys = bytemuck::cast_slice_mut::<u8, i8>(keys);
        let values = &mut bytemuck::cast_slice_mut::<u8, i8>(values)[token * padded..][..padded];
        let scales = bytemuck::cast_slice_mut::<u8, f32>(scales);
        let (key_scales, value_scales) = scales.split_at_mut(groups * stride);
        let mut codes = [0; GROUP];
        for (group, x) in key.chunks(GROUP).enumerate() {
            key_scales[group * stride + token] = round(s, &whole(x), &mut codes).0;
            for (d, &code) in (group * GROUP..self.head_dim).zip(&codes) {
                keys[d * stride + token] = code;
            }
        }
        for (group, x) in value.chunks(GROUP).enumerate() {
            value_scales[token * groups + group] = round(s, &whole(x), &mut codes).0;
            let values = &mut values[group * GROUP..];
            let count = values.len().min(GROUP);
            values[..count].copy_from_slice(&codes[..count]);
        }
    }

    /// The block's keys, `(head_dim, tokens)`, and values, `(tokens, head_dim)`.
    pub(crate) fn parts<'a>(&self, block: &'a [u8]) -> Parts<'a> {
        assert_eq!(block.len(), self.bytes());
        let at = block.as_ptr();
        let (stride, padded) = (self.padded_tokens(), self.padded_dim());
        // SAFETY: a block is as long as its parts together.
        let (values, key_scales, value_scales) = unsafe {
            let key_scales = at.add(self.key_scales_at()).cast::<f32>();
            let value_scales = key_scales.add(self.groups() * stride);
            (at.add(self.values_at()), key_scales, value_scales)
        };
        let bytes = PhantomData;
        match self.dtype {
            KvType::F32 => Parts::F32(
                Elements { at: at.cast(), stride },
                Elements { at: values.cast(), stride: padded },
                bytes,
            ),
            KvType::F16 => Parts::F16(
                Elements { at: at.cast(), stride },
                Elements { at: values.cast(), stride: padded },
                bytes,
            ),
            KvType::Int8 => Parts::Int8(
                Keys8 { codes: at.cast(), scales: key_scales, stride },
                Values8 {
                    codes: values.cast(),
                    scales: value_scales,
                    stride: padded,
                    groups: self.groups(),
                },
                bytes,
            ),
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

/// Keys and values of a block, as factors of a product.
pub(crate) enum Parts<'a> {
    F32(Elements<f32>, Elements<f32>, PhantomData<&'a [u8]>),
    F16(Elements<Half>, Elements<Half>, PhantomData<&'a [u8]>),
    Int8(Keys8, Values8, PhantomData<&'a [u8]>),
}

/// Keys in 8 bits, `(head_dim, tokens)`, with scales `(groups, tokens)`.
#[derive(Clone, Copy)]
pub(crate) struct Keys8 {
    codes: *const i8,
    scales: *const f32,
    stride: usize,
}

/// Values in 8 bits, `(tokens, head_dim)`, with scales `(tokens, groups)`.
#[derive(Clone, Copy)]
pub(crate) struct Values8 {
    codes: *const i8,
    scales: *const f32,
    stride: usize,
    groups: usize,
}

impl<S: Simd> Right<S> for Keys8 {
    #[inline(always)]
    unsafe fn load(&self, s: S, d: usize, token: usize) -> S::F32 {
        // SAFETY: as the caller's.
        unsafe {
            let codes = s.load_i8(self.codes.add(d * self.stride + token));
            s.mul(codes, s.load(self.scales.add(d / GROUP * self.stride + token)))
        }
    }
    #[inline(always)]
    fn place(&self, d: usize, token: usize) -> *const u8 {
        self.codes.wrapping_add(d * self.stride + token).cast()
    }
}

impl<S: Simd> Right<S> for Values8 {
    #[inline(always)]
    unsafe fn load(&self, s: S, token: usize, d: usize) -> S::F32 {
        // SAFETY: as the caller's.
        unsafe {
            let codes = s.load_i8(self.codes.add(token * self.stride + d));
            s.mul(codes, s.splat(*self.scales.add(token * self.groups + d / GROUP)))
        }
    }
    #[inline(always)]
    fn place(&self, token: usize, d: usize) -> *const u8 {
        self.codes.wrapping_add(token * self.stride + d).cast()
    }
}

/// A group, with zeros where it is short.
#[inline(always)]
fn whole(x: &[f32]) -> [f32; GROUP] {
    let mut out = [0.0; GROUP];
    out[..x.len()].copy_from_slice(x);
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
