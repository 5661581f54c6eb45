//! What a cache of packed weights gives back to the device: an index and data with any edits.
//!
//! `flags`, then edits of the index (`operation`, `place`, `byte`), a quarter of the flags, then
//! bytes that take the place of the data's first ones. The low bit cuts the data off behind them,
//! the next one takes K-quants, whose records have two levels of scales.
#![no_main]

use libfuzzer_sys::fuzz_target;
use std::sync::{Mutex, OnceLock};
use tangor_device::model::Graph;
use tangor_device::tensor::{Bytes, Layout, MapGuard, Offset};
use tangor_device::{
    Activations, Batch, Device, KvSpec, KvType, PackedBytes, PackedCache, PackedKey, PackedWriter,
    Prepare, Segment, Span,
};
use tangor_device_cpu::{CpuDevice, CpuOptions};
use tangor_testkit::tiny;

/// The last index and data that were kept.
static KEPT: Mutex<(String, Vec<u8>)> = Mutex::new((String::new(), Vec::new()));

/// Gives back what it is made of, and keeps nothing.
#[derive(Debug)]
struct Given(String, Bytes);

impl PackedCache for Given {
    fn find(&self, _: &PackedKey) -> Option<PackedBytes> {
        let (index, data) = (self.0.clone(), self.1.clone());
        Some(PackedBytes { index, data, guard: MapGuard::default() })
    }
    fn create(&self, _: &PackedKey, _: u64) -> Option<Box<dyn PackedWriter>> {
        None
    }
    fn discard(&self, _: &PackedKey) {}
}

/// Gives nothing, and keeps what it is given.
#[derive(Debug, Default)]
struct Recorder(Vec<u8>);

impl PackedCache for Recorder {
    fn find(&self, _: &PackedKey) -> Option<PackedBytes> {
        None
    }
    fn create(&self, _: &PackedKey, _: u64) -> Option<Box<dyn PackedWriter>> {
        Some(Box::new(Self::default()))
    }
    fn discard(&self, _: &PackedKey) {}
}

impl PackedWriter for Recorder {
    fn write(&mut self, bytes: &[u8]) -> bool {
        self.0.extend_from_slice(bytes);
        true
    }
    fn finish(self: Box<Self>, index: String) {
        *KEPT.lock().expect("a lock") = (index, self.0);
    }
}

struct Fixture {
    device: CpuDevice,
    graph: Graph,
    index: String,
    data: Vec<u8>,
}

/// One of groups with minima, one of K-quants.
fn fixtures() -> &'static [Fixture; 2] {
    static FIXTURES: OnceLock<[Fixture; 2]> = OnceLock::new();
    FIXTURES.get_or_init(|| {
        let layout = Layout::Quant { bits: 4, group: 32, offset: Offset::Min };
        [tiny::random("llama", layout, 1), tiny::random_k_quants(1)].map(|graph| {
            let options = CpuOptions { threads: Some(1), ..CpuOptions::default() };
            let device = CpuDevice::new(options).expect("a device");
            run(&device, &graph, &Recorder::default());
            let (index, data) = KEPT.lock().expect("a lock").clone();
            Fixture { device, graph, index, data }
        })
    })
}

/// Prepares the graph and feeds it a few tokens.
fn run(device: &CpuDevice, graph: &Graph, cache: &dyn PackedCache) {
    let segment = Segment { packed: Some(cache), ..Segment::whole(graph) };
    let options = Prepare { activations: Activations::Int8, context: 32, max_rows: 32 };
    let mut runnable = device.prepare(&segment, options, &mut |_| {}).expect("it can be packed");
    let hyper = &graph.hyper;
    let spec = KvSpec {
        layers: hyper.layers,
        kv_heads: hyper.kv_heads,
        head_dim: hyper.head_dim,
        page_tokens: 32,
        pages: 1,
        dtype: KvType::F16,
    };
    let mut kv = device.kv_cache(&spec).expect("there is room");
    let spans = [Span { rows: 0..3, start: 0, pages: &[0], rope: graph.rope.variant(3) }];
    let batch = Batch { tokens: &[1, 200, 7], spans: &spans, logit_rows: &[2] };
    runnable.run(&batch, kv.as_mut(), &[], &mut [Vec::new()]).expect("it runs");
}

fuzz_target!(|data: &[u8]| {
    let Some((&flags, rest)) = data.split_first() else { return };
    let fixture = &fixtures()[usize::from(flags / 2 % 2)];
    let mut index = fixture.index.clone().into_bytes();
    let mut rest = rest;
    for _ in 0..flags / 4 {
        let [operation, place, byte, more @ ..] = rest else { break };
        let place = usize::from(*place) * index.len() / 256;
        match operation % 3 {
            0 if place < index.len() => index[place] = *byte,
            1 if place < index.len() => drop(index.remove(place)),
            _ => index.insert(place, *byte),
        }
        rest = more;
    }
    let mut bytes = vec![0; fixture.data.len() + 128];
    let start = bytes.as_ptr().align_offset(64);
    let mut end = start + fixture.data.len();
    bytes[start..end].copy_from_slice(&fixture.data);
    let overlay = rest.len().min(fixture.data.len());
    bytes[start..start + overlay].copy_from_slice(&rest[..overlay]);
    if flags % 2 == 1 {
        end = start + overlay;
    }
    let data = Bytes::from(bytes).slice(start..end);
    let given = Given(String::from_utf8_lossy(&index).into_owned(), data);
    run(&fixture.device, &fixture.graph, &given);
});
