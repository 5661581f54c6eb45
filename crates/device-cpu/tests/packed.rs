//! Packed weights that are found again give the same bits as freshly packed ones, and what is not
//! what was kept is packed again.
#![allow(clippy::unwrap_used, reason = "tests stop at what is unexpected")]

use tangor_device::model::Graph;
use tangor_device::tensor::{DType, Layout, Offset};
use tangor_device::{
    Activations, KvType, PackedBytes, PackedCache, PackedKey, PackedWriter, Segment,
};
use tangor_device_cpu::{CpuDevice, CpuOptions};
use tangor_testkit::drive::Driver;
use tangor_testkit::kept::{Counts, Memory, aligned};
use tangor_testkit::tiny;

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
            let found = Counts { found: 1, missed: 1, written: 1, discarded: 0 };
            assert_eq!(cache.counts(), found);
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
    assert_eq!(cache.counts().written, graphs.len());
    let mut nameless = graphs[0].clone();
    nameless.identity = None;
    assert_eq!(logits(&nameless, Some(&cache)), logits(&graphs[0], None));
    assert_eq!(cache.counts().written, graphs.len(), "nothing tells what it is");
}

#[test]
fn k_quants_are_found_again_and_no_other_form_of_them_is_believed() {
    let graph = tiny::random_k_quants(5);
    let cache = Memory::default();
    let plain = logits(&graph, None);
    let replaced = |from: &str, to: &str| {
        cache.change(|index, _| {
            assert!(index.contains(from), "{index}");
            *index = index.replacen(from, to, 1);
        });
    };
    for round in ["cold", "warm"] {
        assert_eq!(logits(&graph, Some(&cache)), plain, "{round}");
    }
    for (written, (from, to)) in
        (2..).zip([("units minima", "f16 minima"), ("units minima", "units zeros")])
    {
        replaced(from, to);
        assert_eq!(logits(&graph, Some(&cache)), plain, "{to}");
        let kept = cache.counts();
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
    cache.change(change);
    assert_eq!(logits(&graph, Some(&cache)), bits, "{what}");
    let kept = cache.counts();
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
            if cache.indices().iter().any(|index| index.contains(from)) {
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
    assert_eq!(cache.counts().discarded, 1);
}

#[test]
fn a_cache_that_fails_is_done_without() {
    let graph = tiny::random("llama", layouts()[0], 5);
    let full = Memory::with_room(5000);
    assert_eq!(logits(&graph, Some(&full)), logits(&graph, None));
    assert_eq!(full.counts().written, 0, "half of it is nothing");
}

/// Files that change while they are mapped.
#[cfg(unix)]
mod lost {
    use super::*;
    use std::fs::File;
    use std::io::Write;
    use tangor_device::tensor::map_file;
    use tangor_device::{Device, DeviceError, Prepare};

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

    /// What runs of a segment say before and after files were lost.
    fn runs(segment: &Segment<'_>, lose: impl FnOnce()) -> [Result<(), DeviceError>; 2] {
        let mut driver = Driver::of(&device(), segment, Activations::Int8, KvType::F16);
        let mut sequence = driver.sequence(40);
        let mut run = || driver.try_feed_for(&mut [(&mut sequence, &TOKENS)], &[19]).map(|_| ());
        let before = run();
        lose();
        [before, run()]
    }

    #[test]
    fn weights_that_are_lost_while_they_are_in_use_end_in_an_error() {
        let (graph, _, cache) = warm(layouts()[0]);
        let disk = OnDisk(cache, tempfile::tempfile().unwrap());
        let segment = Segment { packed: Some(&disk), ..Segment::whole(&graph) };
        let ran = runs(&segment, || disk.1.set_len(0).unwrap());
        assert_eq!(ran, [Ok(()), Err(DeviceError::WeightsChanged)]);
    }

    #[test]
    fn a_table_that_is_lost_while_it_is_in_use_ends_in_an_error() {
        let mut graph = tiny::random("llama", layouts()[0], 5);
        let (table, file) = (tiny::table(&graph), tempfile::tempfile().unwrap());
        tiny::map_weight(&mut graph, table, &file);
        let ran = runs(&Segment::whole(&graph), || file.set_len(0).unwrap());
        assert_eq!(ran, [Ok(()), Err(DeviceError::WeightsChanged)]);
    }

    #[test]
    fn weights_that_are_lost_while_they_are_packed_are_not_kept() {
        let mut graph = tiny::random("llama", layouts()[0], 5);
        let (table, file) = (tiny::table(&graph), tempfile::tempfile().unwrap());
        tiny::map_weight(&mut graph, table, &file);
        let mut row = vec![0.0; graph.weight(table).cols()];
        file.set_len(0).unwrap();
        graph.weight(table).row_f32(0, &mut row);
        let cache = Memory::default();
        let segment = Segment { packed: Some(&cache), ..Segment::whole(&graph) };
        let options = Prepare { activations: Activations::Int8, context: 64, max_rows: 64 };
        let prepared = device().prepare(&segment, options, &mut |_| {});
        assert_eq!(prepared.err(), Some(DeviceError::WeightsChanged));
        assert_eq!(cache.counts().written, 0);
    }
}
