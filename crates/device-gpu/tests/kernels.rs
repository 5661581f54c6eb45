//! Compiled kernels are kept, and found again.

use std::sync::Arc;
use tangor_device::model::Graph;
use tangor_device::tensor::{Layout, Offset};
use tangor_device::{Activations, KvType, PackedCache, Segment};
use tangor_device_gpu::{GpuDevice, GpuOptions};
use tangor_testkit::drive::Driver;
use tangor_testkit::kept::Memory;
use tangor_testkit::tiny;

fn graph() -> Graph {
    tiny::random("llama", Layout::Quant { bits: 4, group: 32, offset: Offset::Zero }, 5)
}

/// Rows of logits of a new device, which finds its kernels in `cache`; one row and many.
fn logits(graph: &Graph, cache: &Memory) -> Vec<u32> {
    let kernels: Arc<dyn PackedCache> = Arc::new(cache.clone());
    let options = GpuOptions { kernels: Some(kernels), ..GpuOptions::default() };
    let device = GpuDevice::open(&options).unwrap_or_else(|error| panic!("{error}"));
    let segment = Segment::whole(graph);
    let mut driver = Driver::of(&device, &segment, Activations::Int8, KvType::F16);
    driver.chunked(&[7, 99, 3, 250, 7, 7, 41, 180, 2], 8).iter().map(|x| x.to_bits()).collect()
}

#[test]
fn kernels_that_are_found_give_the_same_bits() {
    let (graph, cache) = (graph(), Memory::default());
    let first = logits(&graph, &cache);
    let before = cache.counts();
    assert!(before.written > 0, "the driver hands nothing over: {before:?}");
    assert_eq!(logits(&graph, &cache), first);
    let after = cache.counts();
    assert_eq!((after.found, after.missed), (before.found + 1, before.missed));
}

#[test]
fn what_the_driver_does_not_know_is_compiled_again() {
    let (graph, cache) = (graph(), Memory::default());
    let first = logits(&graph, &cache);
    let breaks: [fn(&mut Vec<u8>); 3] = [|data| data.truncate(20), Vec::clear, |data| data[0] ^= 1];
    for broken in breaks {
        let written = cache.counts().written;
        cache.change(|_, data| broken(data));
        assert_eq!(logits(&graph, &cache), first);
        assert!(cache.counts().written > written, "nothing whole is kept again");
    }
}
