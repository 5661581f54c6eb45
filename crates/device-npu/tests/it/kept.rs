//! Compiled pieces that are found again give the same bits, and what is damaged or foreign is
//! compiled again.

use crate::support::cpu_options;
use tangor_device::model::Graph;
use tangor_device::tensor::{Layout, Offset};
use tangor_device::{Activations, KvType, Segment};
use tangor_device_npu::{Keep, NpuDevice, NpuOptions};
use tangor_testkit::drive::Driver;
use tangor_testkit::kept::Memory;
use tangor_testkit::tiny;

/// How often something was found, kept, and discarded.
pub(crate) fn counts(memory: &Memory) -> (usize, usize, usize) {
    let counts = memory.counts();
    (counts.found, counts.written, counts.discarded)
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
    assert_eq!(counts(&memory), (0, 1, 0));
    let again = logits(&device(Keep::Always), &graph, &memory);
    assert_eq!(counts(&memory), (1, 1, 0));
    assert!(first == again);
}

#[test]
fn another_model_or_device_finds_nothing() {
    let memory = Memory::default();
    let _ = logits(&device(Keep::Always), &graph(1), &memory);
    let _ = logits(&device(Keep::Always), &graph(2), &memory);
    let other = NpuOptions { keep: Keep::Always, rows: vec![16], ..cpu_options() };
    let _ = logits(&NpuDevice::open(other).expect("a device"), &graph(1), &memory);
    assert_eq!(counts(&memory), (0, 3, 0));
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
        assert_eq!(counts(&memory).1, count + 2, "damage {count} is replaced");
        assert_eq!(counts(&memory).2, count + 1, "damage {count} is discarded");
    }
}

/// ONNX Runtime's own provider compiles into no form of its own: there is nothing worth keeping.
#[test]
fn what_a_provider_did_not_compile_is_not_kept() {
    for keep in [Keep::Compiled, Keep::Never] {
        let memory = Memory::default();
        let _ = logits(&device(keep), &graph(1), &memory);
        assert_eq!(counts(&memory), (0, 0, 0));
    }
}

/// Files that change while they are mapped.
#[cfg(unix)]
mod lost {
    use super::*;
    use tangor_device::{Device, DeviceError, Prepare};

    /// A model whose table of tokens, which the host reads at every run, lies in a mapped file.
    fn mapped() -> (Graph, std::fs::File) {
        let (mut graph, file) = (graph(1), tempfile::tempfile().expect("a file"));
        let table = tiny::table(&graph);
        tiny::map_weight(&mut graph, table, &file);
        (graph, file)
    }

    #[test]
    fn a_table_that_is_lost_while_it_is_in_use_ends_in_an_error() {
        let (graph, file) = mapped();
        let segment = Segment::whole(&graph);
        let device = device(Keep::Never);
        let mut driver = Driver::of(&device, &segment, Activations::F32, KvType::F32);
        let mut sequence = driver.sequence(4);
        let mut run = || driver.try_feed_for(&mut [(&mut sequence, &[7, 9])], &[1]).map(|_| ());
        assert_eq!(run(), Ok(()));
        file.set_len(0).expect("truncated");
        assert_eq!(run(), Err(DeviceError::WeightsChanged));
    }

    #[test]
    fn weights_that_are_lost_while_they_are_compiled_are_not_kept() {
        let (graph, file) = mapped();
        let table = tiny::table(&graph);
        file.set_len(0).expect("truncated");
        graph.weight(table).row_f32(0, &mut vec![0.0; graph.weight(table).cols()]);
        let memory = Memory::default();
        let segment = Segment { packed: Some(&memory), ..Segment::whole(&graph) };
        let options = Prepare { activations: Activations::F32, context: 64, max_rows: 8 };
        let prepared = device(Keep::Always).prepare(&segment, options, &mut |_| {});
        assert_eq!(prepared.map(|_| ()).err(), Some(DeviceError::WeightsChanged));
        assert_eq!(counts(&memory), (0, 0, 0));
    }
}
