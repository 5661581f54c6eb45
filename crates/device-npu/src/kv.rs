//! The KV cache: pages in this process's memory, in the type that was asked for.
//!
//! `(pages, layers, kv_heads)` blocks of one page's tokens; in a block keys, then values, each
//! `(tokens, head_dim)`; in 8 bits the codes of both, then the scales of both in bf16.

use bytemuck::Zeroable;
use half::{bf16, f16};
use std::any::Any;
use tangor_device::rounding::{KEY_GROUP, VALUE_GROUP, cached_scale, round_bf16};
use tangor_device::{DeviceError, KvCache, KvSpec, KvType, PageId};

/// Keys and values in this process's memory.
#[derive(Debug)]
pub(crate) struct NpuKv {
    spec: KvSpec,
    data: Data,
}

#[derive(Debug)]
enum Data {
    F32(Vec<f32>),
    /// Bits of f16 or bf16.
    Half(Vec<u16>),
    /// Codes and scales; the scales' bits are bf16.
    Int8(Vec<i8>, Vec<u16>),
}

impl NpuKv {
    pub(crate) fn new(spec: &KvSpec, device: &str) -> Result<Self, DeviceError> {
        let no_room = |bytes: usize| DeviceError::OutOfMemory {
            device: device.to_owned(),
            what: "KV cache",
            bytes: bytes as u64,
        };
        let factors = [2, spec.pages, spec.layers, spec.kv_heads, spec.page_tokens, spec.head_dim];
        let elements = factors.iter().try_fold(1_usize, |all, &factor| all.checked_mul(factor));
        let elements = elements.ok_or_else(|| no_room(usize::MAX))?;
        let data = match spec.dtype {
            KvType::F32 => {
                Data::F32(zeros(elements).ok_or_else(|| no_room(elements.saturating_mul(4)))?)
            }
            KvType::F16 | KvType::Bf16 => {
                Data::Half(zeros(elements).ok_or_else(|| no_room(elements.saturating_mul(2)))?)
            }
            KvType::Int8 => {
                let blocks = spec.pages * spec.layers * spec.kv_heads;
                let scales = blocks * spec.page_tokens * scales_per_token(spec.head_dim);
                let codes = zeros(elements).ok_or_else(|| no_room(elements))?;
                Data::Int8(codes, zeros(scales).ok_or_else(|| no_room(scales.saturating_mul(2)))?)
            }
        };
        Ok(Self { spec: *spec, data })
    }

    /// The block of a page, layer and head.
    fn block(&self, page: PageId, layer: usize, head: usize) -> usize {
        (page as usize * self.spec.layers + layer) * self.spec.kv_heads + head
    }

    /// Where a token's key and value are, and its scales.
    fn token(&self, block: usize, token: usize) -> (usize, usize, usize) {
        let KvSpec { page_tokens, head_dim, .. } = self.spec;
        let key = (block * 2 * page_tokens + token) * head_dim;
        let scales = (block * page_tokens + token) * scales_per_token(head_dim);
        (key, key + page_tokens * head_dim, scales)
    }

    /// Stores one head of one token, rounded to what the type keeps.
    pub(crate) fn put(
        &mut self,
        (page, layer, head): (PageId, usize, usize),
        token: usize,
        key: &[f32],
        value: &[f32],
    ) {
        let (k, v, s) = self.token(self.block(page, layer, head), token);
        let (dim, dtype) = (self.spec.head_dim, self.spec.dtype);
        match &mut self.data {
            Data::F32(data) => {
                data[k..k + dim].copy_from_slice(key);
                data[v..v + dim].copy_from_slice(value);
            }
            Data::Half(data) => {
                for (at, x) in [(k, key), (v, value)] {
                    for (to, &x) in data[at..at + dim].iter_mut().zip(x) {
                        *to = match dtype {
                            KvType::F16 => f16::from_f32(x).to_bits(),
                            _ => bf16::from_f32(round_bf16(x)).to_bits(),
                        };
                    }
                }
            }
            Data::Int8(codes, scales) => {
                let scales = &mut scales[s..s + scales_per_token(dim)];
                let (key_scales, value_scales) = scales.split_at_mut(dim.div_ceil(KEY_GROUP));
                encode(key, KEY_GROUP, &mut codes[k..k + dim], key_scales);
                encode(value, VALUE_GROUP, &mut codes[v..v + dim], value_scales);
            }
        }
    }

    /// Reads one head of one token.
    pub(crate) fn get(
        &self,
        (page, layer, head): (PageId, usize, usize),
        token: usize,
        key: &mut [f32],
        value: &mut [f32],
    ) {
        let (k, v, s) = self.token(self.block(page, layer, head), token);
        let (dim, dtype) = (self.spec.head_dim, self.spec.dtype);
        match &self.data {
            Data::F32(data) => {
                key.copy_from_slice(&data[k..k + dim]);
                value.copy_from_slice(&data[v..v + dim]);
            }
            Data::Half(data) => {
                for (at, x) in [(k, key), (v, value)] {
                    for (&bits, x) in data[at..at + dim].iter().zip(x) {
                        *x = match dtype {
                            KvType::F16 => f16::from_bits(bits).to_f32(),
                            _ => bf16::from_bits(bits).to_f32(),
                        };
                    }
                }
            }
            Data::Int8(codes, scales) => {
                let scales = &scales[s..s + scales_per_token(dim)];
                let (key_scales, value_scales) = scales.split_at(dim.div_ceil(KEY_GROUP));
                decode(&codes[k..k + dim], KEY_GROUP, key_scales, key);
                decode(&codes[v..v + dim], VALUE_GROUP, value_scales, value);
            }
        }
    }
}

/// Zeros that are the system's until they are written to: they take no memory before.
fn zeros<T: Zeroable>(len: usize) -> Option<Vec<T>> {
    bytemuck::allocation::try_zeroed_vec(len).ok()
}

fn scales_per_token(head_dim: usize) -> usize {
    head_dim.div_ceil(KEY_GROUP) + head_dim.div_ceil(VALUE_GROUP)
}

/// As [`tangor_device::rounding`] says: a group that is not finite becomes NaN as a whole.
fn encode(x: &[f32], group: usize, codes: &mut [i8], scales: &mut [u16]) {
    for ((x, codes), to) in x.chunks(group).zip(codes.chunks_mut(group)).zip(scales) {
        let finite = x.iter().all(|x| x.is_finite());
        let amax = x.iter().fold(0.0_f32, |amax, x| amax.max(x.abs()));
        let scale = cached_scale(if finite { amax } else { f32::NAN });
        *to = bf16::from_f32(scale).to_bits();
        for (code, &x) in codes.iter_mut().zip(x) {
            #[allow(clippy::cast_possible_truncation)]
            let rounded = (x * (1.0 / scale)).round_ties_even() as i8;
            *code = if scale > 0.0 { rounded } else { 0 };
        }
    }
}

fn decode(codes: &[i8], group: usize, scales: &[u16], x: &mut [f32]) {
    for ((codes, &scale), x) in codes.chunks(group).zip(scales).zip(x.chunks_mut(group)) {
        let scale = bf16::from_bits(scale).to_f32();
        for (&code, x) in codes.iter().zip(x) {
            *x = if scale.is_nan() { scale } else { f32::from(code) * scale };
        }
    }
}

impl KvCache for NpuKv {
    fn spec(&self) -> &KvSpec {
        &self.spec
    }

    fn copy_page(&mut self, from: PageId, to: PageId, tokens: usize) {
        let dim = self.spec.head_dim;
        for layer in 0..self.spec.layers {
            for head in 0..self.spec.kv_heads {
                let (k0, v0, s0) = self.token(self.block(from, layer, head), 0);
                let (k1, v1, s1) = self.token(self.block(to, layer, head), 0);
                let rows = tokens * dim;
                match &mut self.data {
                    Data::F32(data) => {
                        data.copy_within(k0..k0 + rows, k1);
                        data.copy_within(v0..v0 + rows, v1);
                    }
                    Data::Half(data) => {
                        data.copy_within(k0..k0 + rows, k1);
                        data.copy_within(v0..v0 + rows, v1);
                    }
                    Data::Int8(codes, scales) => {
                        codes.copy_within(k0..k0 + rows, k1);
                        codes.copy_within(v0..v0 + rows, v1);
                        scales.copy_within(s0..s0 + tokens * scales_per_token(dim), s1);
                    }
                }
            }
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
        let KvSpec { kv_heads, head_dim, .. } = self.spec;
        let rows = keys.chunks_mut(head_dim).zip(values.chunks_mut(head_dim));
        for (index, (key, value)) in rows.take(tokens * kv_heads).enumerate() {
            self.get((page, layer, index % kv_heads), index / kv_heads, key, value);
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
        let KvSpec { kv_heads, head_dim, .. } = self.spec;
        let rows = keys.chunks(head_dim).zip(values.chunks(head_dim));
        for (index, (key, value)) in rows.take(tokens * kv_heads).enumerate() {
            self.put((page, layer, index % kv_heads), index / kv_heads, key, value);
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

    fn spec(pages: usize, dtype: KvType) -> KvSpec {
        KvSpec { layers: 4, kv_heads: 8, head_dim: 64, page_tokens: 32, pages, dtype }
    }

    /// Bytes that this process has in memory.
    #[cfg(target_os = "linux")]
    fn resident() -> u64 {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn pages_take_no_memory_before_they_are_used() {
        for dtype in [KvType::F32, KvType::Bf16, KvType::Int8] {
            let before = resident();
            let mut kv = NpuKv::new(&spec(4096, dtype), "npu").unwrap();
            let (mut key, mut value) = ([f32::NAN; 64], [f32::NAN; 64]);
            kv.put((4095, 3, 7), 31, &[1.0; 64], &[2.0; 64]);
            kv.get((4095, 3, 7), 31, &mut key, &mut value);
            // 8 bits are not exact.
            assert!(key[63] > 0.99 && value[63] > 1.99, "{key:?} {value:?}");
            kv.get((17, 0, 0), 0, &mut key, &mut value);
            assert_eq!((key, value), ([0.0; 64], [0.0; 64]), "what was never written is zero");
            // The smallest of the three caches has 512 MiB.
            let taken = resident().saturating_sub(before);
            assert!(taken < 128 << 20, "{dtype:?}: {taken} bytes");
        }
    }

    #[test]
    fn a_cache_that_no_memory_holds_is_an_error() {
        for (pages, dtype) in [
            (1 << 44, KvType::F32),
            (1 << 44, KvType::Int8),
            (usize::MAX / (1 << 17), KvType::F32),
            (usize::MAX, KvType::Bf16),
        ] {
            let error = NpuKv::new(&spec(pages, dtype), "npu").map(|_| ()).unwrap_err();
            let full = matches!(error, DeviceError::OutOfMemory { what: "KV cache", .. });
            assert!(full, "{pages} pages: {error}");
        }
    }
}
