//! Packed weights that are found again give the same bits as freshly packed ones, and what is not
//! what was kept is packed again.
#![allow(clippy::unwrap_used, reason = "tests stop at what is unexpected")]

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use tangor_device::model::Graph;
use tangor_device::tensor::{Bytes, DType, Layout, MapGuard, Offset};
use tangor_device::{
    Activations, KvType, PackedBytes, PackedCache, PackedKey, PackedWriter, Segment,
};
use tangor_device_cpu::{CpuDevice, CpuOptions};
use tangor_testkit::drive::Driver;
use tangor_testkit::tiny;

/// Index and data by key, and how often something was asked for in vain, kept, or discarded.
#[derive(Debug, Default)]
struct Kept {
    entries: HashMap<String, (String, Vec<u8>)>,
    missed: usize,
    written: usize,
    discarded: usize,
}

/// A cache in memory.
#[derive(Clone, Debug, Default)]
struct Memory(Arc<Mutex<Kept>>);

#[derive(Debug)]
struct Writer {
    to: Memory,
    key: String,
    data: Vec<u8>,
    /// Bytes that there is room for.
    room: usize,
}

/// Bytes from a cache line on, and `shift` bytes further.
fn aligned(bytes: &[u8], shift: usize) -> Bytes {
    let mut longer = vec![0; bytes.len() + 128];
    let start = longer.as_ptr().align_offset(64) + shift;
    longer[start..start + bytes.len()].copy_from_slice(bytes);
    Bytes::from(longer).slice(start..start + bytes.len())
}

fn text(key: &PackedKey) -> String {
    format!("{}\n{}", key.model, key.form)
}

impl PackedCache for Memory {
    fn find(&self, key: &PackedKey) -> Option<PackedBytes> {
        let mut kept = self.0.lock().unwrap();
        let found = kept.entries.get(&text(key)).cloned();
        kept.missed += usize::from(found.is_none());
        let (index, data) = found?;
        Some(PackedBytes { index, data: aligned(&data, 0), guard: MapGuard::default() })
    }

    fn create(&self, key: &PackedKey, bytes: u64) -> Option<Box<dyn PackedWriter>> {
        let room = usize::try_from(bytes).unwrap() * 3;
        Some(Box::new(Writer { to: self.clone(), key: text(key), data: Vec::new(), room }))
    }

    fn discard(&self, key: &PackedKey) {
        let mut kept = self.0.lock().unwrap();
        kept.entries.remove(&text(key));
        kept.discarded += 1;
    }
}

impl PackedWriter for Writer {
    fn write(&mut self, bytes: &[u8]) -> bool {
        self.data.extend_from_slice(bytes);
        self.data.len() <= self.room
    }

    fn finish(self: Box<Self>, index: String) {
        let mut kept = self.to.0.lock().unwrap();
        kept.entries.insert(self.key, (index, self.data));
        kept.written += 1;
    }
}

fn device() -> CpuDevice {
    CpuDevice::new(CpuOptions { threads: Some(2), ..CpuOptions::default() }).unwrap()
}

const TOKENS: [u32; 20] =
    [7, 99, 3, 250, 7, 7, 41, 180, 2, 90, 33, 4, 77, 200, 1, 0, 255, 128, 64, 32];

fn logits(graph: &Graph, cache: Option<&dyn PackedCache>) -> Vec<u32> {
    let segment = Segment { packed: cache, ..Segment::whole(graph) };
    let mut driver = Driver::of(&device(), &segment, Activations::Int8, KvType::F16);
    driver.chunked(&TOKENS, 9).iter().map(|x| x.to_bits()).collect()
}

fn layouts() -> Vec<Layout> {
    let quant = |bits, group, offset| Layout::Quant { bits, group, offset };
    vec![
        quant(4, 32, Offset::Zero),
        quant(4, 64, Offset::Min),
        quant(8, 16, Offset::Zero),
        quant(8, 32, Offset::Min),
        Layout::Dense(DType::F16),
        Layout::Dense(DType::F32),
    ]
}

#[test]
fn weights_that_are_found_give_the_same_bits() {
    for (seed, layout) in layouts().into_iter().enumerate() {
        for arch in ["llama", "phi3"] {
            let graph = tiny::random(arch, layout, seed as u64);
            let plain = logits(&graph, None);
            let cache = Memory::default();
            assert_eq!(logits(&graph, Some(&cache)), plain, "{arch} {layout:?}, cold");
            assert_eq!(logits(&graph, Some(&cache)), plain, "{arch} {layout:?}, warm");
            let kept = cache.0.lock().unwrap();
            assert_eq!((kept.missed, kept.written, kept.discarded), (1, 1, 0));
        }
    }
}

#[test]
fn models_and_forms_are_told_apart() {
    let cache = Memory::default();
    let layout = layouts()[0];
    let graphs = [
        tiny::random("llama", layout, 1),
        tiny::random("llama", layout, 2),
        tiny::random("qwen2", layout, 1),
        tiny::random("llama", layouts()[1], 1),
    ];
    for round in 0..2 {
        for graph in &graphs {
            assert_eq!(logits(graph, Some(&cache)), logits(graph, None), "round {round}");
        }
    }
    assert_eq!(cache.0.lock().unwrap().written, graphs.len());
    let mut nameless = graphs[0].clone();
    nameless.identity = None;
    assert_eq!(logits(&nameless, Some(&cache)), logits(&graphs[0], None));
    assert_eq!(cache.0.lock().unwrap().written, graphs.len(), "nothing tells what it is");
}

#[test]
fn k_quants_are_found_again_and_no_other_form_of_them_is_believed() {
    let graph = tiny::random_k_quants(5);
    let cache = Memory::default();
    let plain = logits(&graph, None);
    let replaced = |from: &str, to: &str| {
        for (index, _) in cache.0.lock().unwrap().entries.values_mut() {
            assert!(index.contains(from), "{index}");
            *index = index.replacen(from, to, 1);
        }
    };
    for round in ["cold", "warm"] {
        assert_eq!(logits(&graph, Some(&cache)), plain, "{round}");
    }
    for (written, (from, to)) in
        (2..).zip([("units minima", "f16 minima"), ("units minima", "units zeros")])
    {
        replaced(from, to);
        assert_eq!(logits(&graph, Some(&cache)), plain, "{to}");
        let kept = cache.0.lock().unwrap();
        assert_eq!((kept.discarded, kept.written), (written - 1, written), "{to}");
    }
}

/// A graph, and a cache that knows it.
fn warm(layout: Layout) -> (Graph, Vec<u32>, Memory) {
    let graph = tiny::random("llama", layout, 5);
    let cache = Memory::default();
    let bits = logits(&graph, Some(&cache));
    (graph, bits, cache)
}

/// Changes what the cache holds; the graph must then be packed again and compute the same.
fn attack(what: &str, layout: Layout, change: impl Fn(&mut String, &mut Vec<u8>)) {
    let (graph, bits, cache) = warm(layout);
    for (index, data) in cache.0.lock().unwrap().entries.values_mut() {
        change(index, data);
    }
    assert_eq!(logits(&graph, Some(&cache)), bits, "{what}");
    let kept = cache.0.lock().unwrap();
    assert_eq!((kept.discarded, kept.written), (1, 2), "{what}");
}

#[test]
fn an_index_that_does_not_fit_the_model_is_not_believed() {
    for layout in layouts() {
        for (from, to) in [
            ("tangor cpu", "tangor gpu"),
            ("tangor cpu 2", "tangor cpu 1"),
            ("\n0 ", "\n64 "),
            ("\n0 ", "\n18446744073709551615 "),
            ("\n0 ", "\n-1 "),
            ("\n0 ", "\n"),
            ("f16", "f32"),
            ("f32", "f16"),
            ("zero 8", "zeros"),
            ("zero 8", "zero 300"),
            ("zero 128", "zero"),
            ("minima", "zeros"),
            ("codes", "dense"),
            ("dense", "codes f16 zero 8"),
        ] {
            let (_, _, cache) = warm(layout);
            let has =
                cache.0.lock().unwrap().entries.values().any(|(index, _)| index.contains(from));
            if has {
                attack(&format!("{from:?} -> {to:?}"), layout, |index, _| {
                    *index = index.replacen(from, to, 1);
                });
            }
        }
        attack("no index", layout, |index, _| index.clear());
        attack("a line less", layout, |index, _| {
            let last = index.rfind('\n').unwrap();
            index.truncate(last);
        });
        attack("a line more", layout, |index, _| index.push_str("\n0 64 dense"));
        attack("lines of other weights", layout, |index, _| {
            let mut lines: Vec<&str> = index.lines().collect();
            lines[1..].rotate_left(1);
            *index = lines.join("\n");
        });
    }
}

#[test]
fn data_of_another_length_or_another_weight_is_not_believed() {
    for layout in layouts() {
        attack("no data", layout, |_, data| data.clear());
        attack("a byte less", layout, |_, data| data.truncate(data.len() / 2));
        attack("zeros", layout, |_, data| data.fill(0));
        attack("shifted", layout, |_, data| data.rotate_left(64));
    }
}

#[test]
fn bytes_that_start_between_cache_lines_are_not_used() {
    #[derive(Debug)]
    struct Shifted(Memory);
    impl PackedCache for Shifted {
        fn find(&self, key: &PackedKey) -> Option<PackedBytes> {
            let found = self.0.find(key)?;
            Some(PackedBytes { data: aligned(&found.data, 4), ..found })
        }
        fn create(&self, _: &PackedKey, _: u64) -> Option<Box<dyn PackedWriter>> {
            None
        }
        fn discard(&self, key: &PackedKey) {
            self.0.discard(key);
        }
    }
    let (graph, bits, cache) = warm(layouts()[0]);
    assert_eq!(logits(&graph, Some(&Shifted(cache.clone()))), bits);
    assert_eq!(cache.0.lock().unwrap().discarded, 1);
}

#[test]
fn a_cache_that_fails_is_done_without() {
    #[derive(Debug)]
    struct Full(Memory);
    impl PackedCache for Full {
        fn find(&self, _: &PackedKey) -> Option<PackedBytes> {
            None
        }
        fn create(&self, key: &PackedKey, _: u64) -> Option<Box<dyn PackedWriter>> {
            let (to, key, data) = (self.0.clone(), text(key), Vec::new());
            Some(Box::new(Writer { to, key, data, room: 5000 }))
        }
        fn discard(&self, _: &PackedKey) {}
    }
    let graph = tiny::random("llama", layouts()[0], 5);
    let full = Full(Memory::default());
    assert_eq!(logits(&graph, Some(&full)), logits(&graph, None));
    assert_eq!(full.0.0.lock().unwrap().written, 0, "half of it is nothing");
}

/// Files that change while they are mapped.
#[cfg(unix)]
mod lost {
    use super::*;
    use std::fs::File;
    use std::io::Write;
    use tangor_device::tensor::map_file;
    use tangor_device::{Batch, Device, DeviceError, KvSpec, Prepare, Span};

    /// Weights in a file, as the store has them.
    #[derive(Debug)]
    struct OnDisk(Memory, File);

    impl PackedCache for OnDisk {
        fn find(&self, key: &PackedKey) -> Option<PackedBytes> {
            let found = self.0.find(key)?;
            (&self.1).write_all(&found.data).unwrap();
            let (data, guard) = map_file(&self.1).unwrap();
            Some(PackedBytes { data, guard, ..found })
        }
        fn create(&self, _: &PackedKey, _: u64) -> Option<Box<dyn PackedWriter>> {
            None
        }
        fn discard(&self, _: &PackedKey) {}
    }

    #[test]
    fn weights_that_are_lost_while_they_are_in_use_end_in_an_error() {
        let (graph, _, cache) = warm(layouts()[0]);
        let disk = OnDisk(cache, tempfile::tempfile().unwrap());
        let device = device();
        let segment = Segment { packed: Some(&disk), ..Segment::whole(&graph) };
        let options = Prepare { activations: Activations::Int8, context: 64, max_rows: 64 };
        let mut runnable = device.prepare(&segment, options, &mut |_| {}).unwrap();
        let hyper = &graph.hyper;
        let mut kv = device
            .kv_cache(&KvSpec {
                layers: hyper.layers,
                kv_heads: hyper.kv_heads,
                head_dim: hyper.head_dim,
                page_tokens: 32,
                pages: 1,
                dtype: KvType::F16,
            })
            .unwrap();
        let spans = [Span { rows: 0..20, start: 0, pages: &[0], rope: graph.rope.variant(20) }];
        let batch = Batch { tokens: &TOKENS, spans: &spans, logit_rows: &[19] };
        let mut run = || runnable.run(&batch, kv.as_mut(), &[], &mut [Vec::new()]);
        assert_eq!(run(), Ok(()));
        disk.1.set_len(0).unwrap();
        assert_eq!(run(), Err(DeviceError::WeightsChanged));
    }
}
