//! What happens when an adapter is missing, goes away, is full, or takes too long: typed errors,
//! and never a panic.
#![allow(clippy::expect_used, reason = "tests stop at what is unexpected")]

use std::time::Duration;
use tangor_device::model::Graph;
use tangor_device::tensor::{DType, Layout};
use tangor_device::{
    Activations, Batch, Device, DeviceError, Health, KvCache, KvSpec, KvType, PageId, Prepare,
    Runnable, Segment, Span,
};
use tangor_device_gpu::{AdapterChoice, AdapterKind, GpuDevice, GpuError, GpuOptions, adapters};
use tangor_testkit::tiny;

/// Reads of each thread: enough for one to look before another has called it, more often than not.
const ROUNDS: usize = 2_000;

fn open(options: &GpuOptions) -> GpuDevice {
    GpuDevice::open(options).unwrap_or_else(|error| panic!("{error}"))
}

fn graph() -> Graph {
    tiny::random("llama", Layout::Dense(DType::F32), 1)
}

fn spec(graph: &Graph, pages: usize) -> KvSpec {
    KvSpec {
        layers: graph.hyper.layers,
        kv_heads: graph.hyper.kv_heads,
        head_dim: graph.hyper.head_dim,
        page_tokens: 16,
        pages,
        dtype: KvType::F32,
    }
}

fn prepare(device: &GpuDevice, graph: &Graph) -> Result<Box<dyn Runnable>, DeviceError> {
    let options = Prepare { activations: Activations::F32, context: 64, max_rows: 64 };
    device.prepare(&Segment::whole(graph), options, &mut |_| {})
}

fn run(
    graph: &Graph,
    runnable: &mut dyn Runnable,
    kv: &mut dyn KvCache,
    (tokens, pages): (&[u32], &[PageId]),
) -> Result<Vec<f32>, DeviceError> {
    let rope = graph.rope.variant(tokens.len());
    let spans = [Span { rows: 0..tokens.len(), start: 0, pages, rope }];
    let last = tokens.len().saturating_sub(1);
    let batch = Batch { tokens, spans: &spans, logit_rows: &[last] };
    let mut outputs = [vec![f32::NAN; 3]];
    runnable.run(&batch, kv, &[], &mut outputs)?;
    let [logits] = outputs;
    Ok(logits)
}

/// Whoever waits calls what others are waiting for, too.
#[test]
fn threads_that_wait_at_the_same_time_all_get_what_they_read() {
    let (device, graph) = (open(&GpuOptions::default()), graph());
    let width = graph.hyper.kv_heads * graph.hyper.head_dim;
    let repeat = |value: f32| {
        let mut kv = device.kv_cache(&spec(&graph, 4)).expect("a cache");
        let written = vec![value; 16 * width];
        [2, 3].iter().for_each(|&page| kv.write_page(page, 0, 16, &written, &written));
        // What was read last is kept: one after the other.
        for page in [2, 3].into_iter().cycle().take(ROUNDS) {
            let (mut keys, mut values) = (vec![0.0; 16 * width], vec![0.0; 16 * width]);
            kv.read_page(page, 0, 16, &mut keys, &mut values);
            assert!(keys == written && values == written);
        }
    };
    std::thread::scope(|scope| {
        for value in [1.0, 2.0, 3.0, 4.0] {
            let repeat = &repeat;
            scope.spawn(move || repeat(value));
        }
    });
}

#[test]
fn a_lost_device_says_so_from_then_on() {
    let (device, graph) = (open(&GpuOptions::default()), graph());
    let mut runnable = prepare(&device, &graph).expect("prepared");
    let mut kv = device.kv_cache(&spec(&graph, 4)).expect("a cache");
    let case: (&[u32], &[PageId]) = (&[1, 2, 3], &[2]);
    assert_eq!(device.health(), Health::Ready);
    assert!(run(&graph, runnable.as_mut(), kv.as_mut(), case).is_ok());
    device.lose();
    let lost = |error: Option<DeviceError>| matches!(error, Some(DeviceError::Lost { .. }));
    for _ in 0..2 {
        assert!(lost(run(&graph, runnable.as_mut(), kv.as_mut(), case).err()));
        assert!(lost(prepare(&device, &graph).err()));
        assert!(lost(device.kv_cache(&spec(&graph, 4)).err()));
        assert!(matches!(device.health(), Health::Lost(_)));
    }
    let (mut keys, mut values) = (vec![0.0; 64], vec![0.0; 64]);
    kv.copy_page(0, 1, 3);
    kv.write_page(0, 0, 2, &[0.0; 64], &[0.0; 64]);
    kv.read_page(3, 0, 2, &mut keys, &mut values);
    assert!(keys.iter().chain(&values).all(|x| x.is_nan()));
    // Another device is not touched by it.
    assert!(prepare(&open(&GpuOptions::default()), &graph).is_ok());
}

#[test]
fn a_device_that_is_full_says_so_and_goes_on() {
    let graph = graph();
    let device = open(&GpuOptions { memory_bytes: Some(8 << 20), ..GpuOptions::default() });
    let mut runnable = prepare(&device, &graph).expect("prepared");
    let used = device.used_bytes();
    let full = device.kv_cache(&spec(&graph, 1 << 12)).err();
    assert!(matches!(full, Some(DeviceError::OutOfMemory { what: "KV cache", .. })), "{full:?}");
    assert_eq!(device.used_bytes(), used, "what was taken in vain is given back");
    let mut kv = device.kv_cache(&spec(&graph, 4)).expect("a smaller cache");
    assert!(run(&graph, runnable.as_mut(), kv.as_mut(), (&[1, 2], &[0])).is_ok());
    let small = open(&GpuOptions { memory_bytes: Some(1 << 16), ..GpuOptions::default() });
    let full = prepare(&small, &graph).err();
    assert!(matches!(full, Some(DeviceError::OutOfMemory { what: "weights", .. })), "{full:?}");
    assert_eq!(small.used_bytes(), 0);
}

#[test]
fn memory_that_the_driver_does_not_have_is_an_error() {
    let graph = graph();
    let options = GpuOptions { memory_bytes: Some(u64::MAX), ..GpuOptions::default() };
    let device = open(&options);
    let full = device.kv_cache(&spec(&graph, 1 << 30)).err();
    assert!(matches!(full, Some(DeviceError::OutOfMemory { .. })), "{full:?}");
    assert_eq!(device.health(), Health::Ready);
    assert!(device.kv_cache(&spec(&graph, 4)).is_ok());
}

#[test]
fn runs_that_take_too_long_end() {
    let graph = graph();
    let options =
        GpuOptions { time_limit: Duration::ZERO, subgroups: false, ..GpuOptions::default() };
    let device = open(&options);
    let mut runnable = prepare(&device, &graph).expect("prepared");
    let mut kv = device.kv_cache(&spec(&graph, 4)).expect("a cache");
    let tokens: Vec<u32> = (0..60).collect();
    let mut run = || run(&graph, runnable.as_mut(), kv.as_mut(), (&tokens, &[0, 1, 2, 3]));
    // One that has ended before anybody looked, as on a machine that is busy, was not too long.
    let late = (0..100).map(|_| run()).find(Result::is_err);
    assert!(matches!(late, Some(Err(DeviceError::Timeout { .. }))), "{late:?}");
}

#[test]
fn batches_that_do_not_fit_are_refused() {
    let (device, graph) = (open(&GpuOptions::default()), graph());
    let mut runnable = prepare(&device, &graph).expect("prepared");
    let mut kv = device.kv_cache(&spec(&graph, 4)).expect("a cache");
    let refused = |error: Result<Vec<f32>, DeviceError>| {
        assert!(matches!(error, Err(DeviceError::Batch { .. })), "{error:?}");
    };
    for case in [(&[1_u32, 256][..], &[0_u32][..]), (&[1], &[4]), (&[1], &[]), (&[1; 17], &[0])] {
        refused(run(&graph, runnable.as_mut(), kv.as_mut(), case));
    }
    let mut other = device
        .kv_cache(&KvSpec { head_dim: 32, ..spec(&graph, 4) })
        .expect("a cache of another shape");
    refused(run(&graph, runnable.as_mut(), other.as_mut(), (&[1], &[0])));
    assert!(run(&graph, runnable.as_mut(), kv.as_mut(), (&[1], &[3])).is_ok());
    let batch = Batch { tokens: &[], spans: &[], logit_rows: &[] };
    let mut outputs = [vec![1.0]];
    assert_eq!(runnable.run(&batch, kv.as_mut(), &[], &mut outputs), Ok(()));
    assert!(outputs[0].is_empty());
}

#[test]
fn adapters_are_listed_and_chosen() {
    let all = adapters();
    assert!(!all.is_empty(), "{}", GpuError::NoAdapter);
    for (index, facts) in all.iter().enumerate() {
        let options = GpuOptions { adapter: AdapterChoice::Index(index), ..GpuOptions::default() };
        let device = open(&options);
        assert_eq!(device.facts(), facts);
        let description = &device.descriptor().description;
        let software = facts.kind == AdapterKind::Software;
        assert_eq!(description.contains("software that runs on the central processor"), software);
    }
    for adapter in [AdapterChoice::Index(99), AdapterChoice::Name("voodoo".into())] {
        let missing = GpuDevice::open(&GpuOptions { adapter, ..GpuOptions::default() }).err();
        assert!(matches!(missing, Some(GpuError::Unknown { .. })), "{missing:?}");
    }
    let hint = GpuError::NoAdapter.to_string();
    assert!(!cfg!(target_os = "linux") || hint.contains("mesa-vulkan-drivers"), "{hint}");
}
