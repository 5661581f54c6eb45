//! Packed weights that are found again give the same bits as freshly packed ones, and what is not
//! what was kept is packed again.
#![allow(clippy::expect_used, reason = "tests stop at what is unexpected")]

use tangor_device::model::Graph;
use tangor_device::tensor::{DType, Layout, Offset};
use tangor_device::{Activations, Device, KvType, PackedCache, Prepare, Segment};
use tangor_device_gpu::{GpuDevice, GpuOptions};
use tangor_testkit::drive::Driver;
use tangor_testkit::kept::{Counts, Memory};
use tangor_testkit::tiny;

fn open(options: &GpuOptions) -> GpuDevice {
    GpuDevice::open(options).unwrap_or_else(|error| panic!("{error}"))
}

thread_local! {
    /// One for every test: a run waits for all that is submitted to its device.
    static DEVICE: GpuDevice = open(&GpuOptions::default());
}

const TOKENS: [u32; 20] =
    [7, 99, 3, 250, 7, 7, 41, 180, 2, 90, 33, 4, 77, 200, 1, 0, 255, 128, 64, 32];

fn logits_of(device: &GpuDevice, graph: &Graph, cache: Option<&dyn PackedCache>) -> Vec<u32> {
    let segment = Segment { packed: cache, ..Segment::whole(graph) };
    let mut driver = Driver::of(device, &segment, Activations::Int8, KvType::F16);
    driver.chunked(&TOKENS, 13).iter().map(|x| x.to_bits()).collect()
}

fn logits(graph: &Graph, cache: Option<&dyn PackedCache>) -> Vec<u32> {
    DEVICE.with(|device| logits_of(device, graph, cache))
}

const fn quant(bits: u8, group: usize, offset: Offset) -> Layout {
    Layout::Quant { bits, group, offset }
}

const LAYOUTS: [Layout; 6] = [
    quant(4, 32, Offset::Zero),
    quant(4, 64, Offset::Min),
    quant(8, 16, Offset::Zero),
    quant(8, 32, Offset::Min),
    Layout::Dense(DType::F16),
    Layout::Dense(DType::F32),
];

fn counts(found: usize, missed: usize, written: usize, discarded: usize) -> Counts {
    Counts { found, missed, written, discarded }
}

#[test]
fn weights_that_are_found_give_the_same_bits() {
    for (seed, layout) in (0..).zip(LAYOUTS) {
        for arch in ["llama", "phi3"] {
            let graph = tiny::random(arch, layout, seed);
            let (plain, cache) = (logits(&graph, None), Memory::default());
            assert_eq!(logits(&graph, Some(&cache)), plain, "{arch} {layout:?}, cold");
            assert_eq!(logits(&graph, Some(&cache)), plain, "{arch} {layout:?}, warm");
            assert_eq!(cache.counts(), counts(1, 1, 1, 0));
        }
    }
}

#[test]
fn models_forms_and_limits_of_buffers_are_told_apart() {
    let cache = Memory::default();
    let graphs = [
        tiny::random("llama", LAYOUTS[0], 1),
        tiny::random("llama", LAYOUTS[0], 2),
        tiny::random("qwen2", LAYOUTS[0], 1),
        tiny::random("llama", LAYOUTS[1], 1),
    ];
    for round in 0..2 {
        for graph in &graphs {
            assert_eq!(logits(graph, Some(&cache)), logits(graph, None), "round {round}");
        }
    }
    assert_eq!(cache.counts(), counts(4, 4, 4, 0));
    let small = GpuOptions { max_weight_bytes: Some(4 << 10), ..GpuOptions::default() };
    let small = open(&small);
    for round in ["cold", "warm"] {
        let got = logits_of(&small, &graphs[0], Some(&cache));
        assert_eq!(got, logits(&graphs[0], None), "matrices that are cut, {round}");
    }
    assert_eq!(cache.counts(), counts(5, 5, 5, 0));
    let nameless = Graph { identity: None, ..graphs[0].clone() };
    assert_eq!(logits(&nameless, Some(&cache)), logits(&graphs[0], None));
    assert_eq!(cache.counts(), counts(5, 5, 5, 0), "nothing tells what it is");
}

#[test]
fn k_quants_are_found_again_and_no_other_form_of_them_is_believed() {
    let graph = tiny::random_k_quants(5);
    let (plain, cache) = (logits(&graph, None), Memory::default());
    for round in ["cold", "warm"] {
        assert_eq!(logits(&graph, Some(&cache)), plain, "{round}");
    }
    assert_eq!(cache.counts(), counts(1, 1, 1, 0));
    for (replaced, (from, to)) in (1..).zip([(" 3 0", " 1 0"), (" 3 0", " 2 0")]) {
        cache.change(|index, _| {
            assert!(index.contains(from), "{index}");
            *index = index.replacen(from, to, 1);
        });
        assert_eq!(logits(&graph, Some(&cache)), plain, "{to}");
        assert_eq!(cache.counts(), counts(1 + replaced, 1, 1 + replaced, replaced), "{to}");
    }
}

/// Pieces that are prepared together are one entry, and share what is found.
#[test]
fn pieces_find_their_weights_together() {
    let graph = tiny::random("llama", LAYOUTS[0], 7);
    let cache = Memory::default();
    let (middle, end) = (graph.nodes.len() / 2, graph.nodes.len());
    let values: Vec<_> = graph.nodes[middle - 1].outputs.clone();
    let segment = |nodes: std::ops::Range<usize>| Segment {
        nodes,
        outputs: values.clone(),
        packed: Some(&cache),
        ..Segment::whole(&graph)
    };
    let segments = [segment(0..middle), segment(0..end)];
    let options = Prepare { activations: Activations::Int8, context: 64, max_rows: 8 };
    let mut bytes = Vec::new();
    for _ in 0..2 {
        let prepare = |device: &GpuDevice| device.prepare_all(&segments, options, &mut |_| {});
        let all = DEVICE.with(prepare).expect("prepared");
        bytes.push(all.iter().map(|runnable| runnable.memory_bytes()).collect::<Vec<_>>());
    }
    assert_eq!(bytes[0], bytes[1]);
    assert_eq!(cache.counts(), counts(1, 1, 1, 0));
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
    assert_eq!(cache.counts(), counts(1, 1, 2, 1), "{what}");
    assert_eq!(logits(&graph, Some(&cache)), bits, "{what}, and is found again");
    assert_eq!(cache.counts(), counts(2, 1, 2, 1), "{what}, and is found again");
}

#[test]
fn an_index_that_does_not_fit_the_model_is_not_believed() {
    for layout in LAYOUTS {
        let (_, _, cache) = warm(layout);
        let index = cache.indices().concat();
        for (from, to) in [
            ("tangor gpu", "tangor cpu"),
            ("tangor gpu 1", "tangor gpu 0"),
            ("\n0 ", "\n64 "),
            ("\n0 ", "\n18446744073709551615 "),
            ("\n0 ", "\n-1 "),
            ("\n0 ", "\n"),
            (" 0 8", " 0 7"),
            (" 0 8", " 2 0"),
            (" 0 8", " 3 8"),
            (" 0 8", " 0 300"),
            (" 0 128", " 0"),
            (" 1 0", " 2 0"),
            (" 2 0", " 1 0"),
            (" 4 0", " 5 0"),
            (" 6 0", " 6 1"),
            (" 6 0", " 6 0, 6 0"),
        ] {
            if index.contains(from) {
                attack(&format!("{from:?} -> {to:?}"), layout, |index, _| {
                    *index = index.replace(from, to);
                });
            }
        }
        attack("no index", layout, |index, _| index.clear());
        attack("a line less", layout, |index, _| {
            index.truncate(index.rfind('\n').expect("lines"));
        });
        attack("a line more", layout, |index, _| index.push_str("\n0 64 6 0"));
        attack("lines of other weights", layout, |index, _| {
            let mut lines: Vec<&str> = index.lines().collect();
            lines[1..].rotate_left(1);
            *index = lines.join("\n");
        });
    }
}

#[test]
fn data_of_another_length_or_another_weight_is_not_believed() {
    for layout in LAYOUTS {
        attack("no data", layout, |_, data| data.clear());
        attack("half of the data", layout, |_, data| data.truncate(data.len() / 2));
        attack("zeros", layout, |_, data| data.fill(0));
        attack("shifted", layout, |_, data| data.rotate_left(64));
    }
}

#[test]
fn a_cache_that_fails_is_done_without() {
    let graph = tiny::random("llama", LAYOUTS[0], 5);
    let full = Memory::with_room(5000);
    assert_eq!(logits(&graph, Some(&full)), logits(&graph, None));
    assert_eq!(full.counts(), counts(0, 1, 0, 0), "half of it is nothing");
}

/// As with the store, one of them writes.
#[test]
fn starts_at_the_same_time_do_not_mind_each_other() {
    let graph = tiny::random("llama", LAYOUTS[0], 5);
    let (plain, cache) = (logits(&graph, None), Memory::default());
    let devices = [open(&GpuOptions::default()), open(&GpuOptions::default())];
    std::thread::scope(|scope| {
        let start = |device| {
            let (graph, cache) = (&graph, &cache);
            scope.spawn(move || logits_of(device, graph, Some(cache)))
        };
        for started in devices.each_ref().map(start) {
            assert_eq!(started.join().expect("no panic"), plain);
        }
    });
    assert_eq!(logits(&graph, Some(&cache)), plain);
    assert!(cache.counts().written >= 1 && cache.counts().found >= 1);
    assert_eq!(cache.counts().discarded, 0);
}

/// Files that change while they are read.
#[cfg(unix)]
mod lost {
    use super::*;
    use tangor_device::DeviceError;
    use tangor_device::model::WeightId;
    use tangor_device::model::ir::NamedWeight;
    use tangor_device::tensor::{MapGuard, map_file};
    use tangor_device::{PackedBytes, PackedKey, PackedWriter};

    /// A guard of a file that was lost.
    fn failed_guard() -> MapGuard {
        let file = tempfile::tempfile().expect("a file");
        file.set_len(1 << 16).expect("room");
        let (data, guard) = map_file(&file).expect("a map");
        file.set_len(0).expect("truncated");
        assert_eq!(data[0], 0);
        assert!(guard.check().is_err());
        guard
    }

    /// Finds data whose last bytes were lost while they were read.
    #[derive(Debug)]
    struct Lost(Memory);

    impl PackedCache for Lost {
        fn find(&self, key: &PackedKey) -> Option<PackedBytes> {
            Some(PackedBytes { guard: failed_guard(), ..self.0.find(key)? })
        }
        fn create(&self, key: &PackedKey, bytes: u64) -> Option<Box<dyn PackedWriter>> {
            self.0.create(key, bytes)
        }
        fn discard(&self, key: &PackedKey) {
            self.0.discard(key);
        }
    }

    #[test]
    fn data_that_is_lost_on_the_way_to_the_adapter_is_packed_again() {
        let (graph, bits, cache) = warm(LAYOUTS[0]);
        assert_eq!(logits(&graph, Some(&Lost(cache.clone()))), bits);
        assert_eq!(cache.counts(), counts(1, 1, 2, 1));
    }

    #[test]
    fn weights_that_are_lost_while_they_are_packed_end_in_an_error_and_are_not_kept() {
        for norm in [false, true] {
            let mut graph = tiny::random("llama", LAYOUTS[0], 3);
            let vector = |named: &NamedWeight| named.weight.rows() == 1;
            let gain = graph.weights.iter().position(vector).map(WeightId).expect("a norm");
            let file = tempfile::tempfile().expect("a file");
            let lost = if norm { gain } else { tiny::table(&graph) };
            tiny::map_weight(&mut graph, lost, &file);
            let cache = Memory::default();
            let segment = Segment { packed: Some(&cache), ..Segment::whole(&graph) };
            let options = Prepare { activations: Activations::Int8, context: 64, max_rows: 8 };
            let prepare = || {
                let prepare = |device: &GpuDevice| device.prepare(&segment, options, &mut |_| {});
                DEVICE.with(prepare).map(|_| ())
            };
            if norm {
                // Packed and kept; what is not packed is lost at the second start.
                assert_eq!(prepare(), Ok(()));
            }
            file.set_len(0).expect("truncated");
            assert_eq!(prepare(), Err(DeviceError::WeightsChanged));
            assert_eq!(cache.counts().written, usize::from(norm));
        }
    }
}
