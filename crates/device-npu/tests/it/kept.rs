//! Compiled pieces that are found again give the same bits, and what is damaged or foreign is
//! compiled again.

use crate::support::cpu_options;
use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use tangor_device::model::Graph;
use tangor_device::tensor::{Layout, MapGuard, Offset};
use tangor_device::{
    Activations, KvType, PackedBytes, PackedCache, PackedKey, PackedWriter, Segment,
};
use tangor_device_npu::{Keep, NpuDevice, NpuOptions};
use tangor_testkit::drive::Driver;
use tangor_testkit::tiny;

/// Index and data by key, and how often something was found, kept, or discarded.
#[derive(Debug, Default)]
struct Kept {
    entries: HashMap<String, (String, Vec<u8>)>,
    found: usize,
    written: usize,
    discarded: usize,
}

/// A cache in memory.
#[derive(Clone, Debug, Default)]
pub(crate) struct Memory(Arc<Mutex<Kept>>);

#[derive(Debug)]
struct Writer {
    to: Memory,
    key: String,
    data: Vec<u8>,
}

fn text(key: &PackedKey) -> String {
    format!("{}\n{}", key.model, key.form)
}

impl PackedCache for Memory {
    fn find(&self, key: &PackedKey) -> Option<PackedBytes> {
        let mut kept = self.0.lock().unwrap();
        let (index, data) = kept.entries.get(&text(key)).cloned()?;
        kept.found += 1;
        Some(PackedBytes { index, data: data.into(), guard: MapGuard::default() })
    }

    fn create(&self, key: &PackedKey, _: u64) -> Option<Box<dyn PackedWriter>> {
        Some(Box::new(Writer { to: self.clone(), key: text(key), data: Vec::new() }))
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
        true
    }

    fn finish(self: Box<Self>, index: String) {
        let mut kept = self.to.0.lock().unwrap();
        kept.entries.insert(self.key, (index, self.data));
        kept.written += 1;
    }
}

impl Memory {
    /// How often something was found, kept, and discarded.
    pub(crate) fn counts(&self) -> (usize, usize, usize) {
        let kept = self.0.lock().unwrap();
        (kept.found, kept.written, kept.discarded)
    }

    pub(crate) fn change(&self, change: impl Fn(&mut String, &mut Vec<u8>)) {
        for (index, data) in self.0.lock().unwrap().entries.values_mut() {
            change(index, data);
        }
    }
}

fn device(keep: Keep) -> NpuDevice {
    NpuDevice::open(NpuOptions { keep, ..cpu_options() }).expect("a device")
}

fn graph(seed: u64) -> Graph {
    tiny::random("qwen2", Layout::Quant { bits: 4, group: 32, offset: Offset::Zero }, seed)
}

fn logits(device: &NpuDevice, graph: &Graph, memory: &Memory) -> Vec<u32> {
    let tokens: Vec<u32> = (0..40).map(|i| i * 89 % 256).collect();
    let segment = Segment { packed: Some(memory), ..Segment::whole(graph) };
    let mut driver = Driver::of(device, &segment, Activations::F32, KvType::F32);
    driver.chunked(&tokens, 17).iter().map(|x| x.to_bits()).collect()
}

#[test]
fn what_is_kept_gives_the_same_bits() {
    let (memory, graph) = (Memory::default(), graph(1));
    let first = logits(&device(Keep::Always), &graph, &memory);
    assert_eq!(memory.counts(), (0, 1, 0));
    let again = logits(&device(Keep::Always), &graph, &memory);
    assert_eq!(memory.counts(), (1, 1, 0));
    assert!(first == again);
}

#[test]
fn another_model_or_device_finds_nothing() {
    let memory = Memory::default();
    let _ = logits(&device(Keep::Always), &graph(1), &memory);
    let _ = logits(&device(Keep::Always), &graph(2), &memory);
    let other = NpuOptions { keep: Keep::Always, rows: vec![16], ..cpu_options() };
    let _ = logits(&NpuDevice::open(other).expect("a device"), &graph(1), &memory);
    assert_eq!(memory.counts(), (0, 3, 0));
}

#[test]
fn what_is_damaged_is_compiled_again() {
    let (memory, graph) = (Memory::default(), graph(1));
    let want = logits(&device(Keep::Always), &graph, &memory);
    let damages: [fn(&mut String, &mut Vec<u8>); 6] = [
        |_, data| data[100] ^= 1,
        |_, data| data.truncate(50),
        |_, data| data.push(0),
        |index, _| *index = "{".into(),
        |index, _| *index = r#"{"models":[]}"#.into(),
        |index, data| {
            // Whole, by its digest, and no model.
            data.truncate(0);
            let empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
            *index = format!(
                r#"{{"models":[{{"nodes":[1,3],"rows":1,"bytes":0,"digest":"{empty}"}}]}}"#
            );
        },
    ];
    for (count, damage) in damages.into_iter().enumerate() {
        memory.change(damage);
        let got = logits(&device(Keep::Always), &graph, &memory);
        assert!(got == want, "damage {count}");
        assert_eq!(memory.counts().1, count + 2, "damage {count} is replaced");
        assert_eq!(memory.counts().2, count + 1, "damage {count} is discarded");
    }
}

/// ONNX Runtime's own provider compiles into no form of its own: there is nothing worth keeping.
#[test]
fn what_a_provider_did_not_compile_is_not_kept() {
    for keep in [Keep::Compiled, Keep::Never] {
        let memory = Memory::default();
        let _ = logits(&device(keep), &graph(1), &memory);
        assert_eq!(memory.counts(), (0, 0, 0));
    }
}
