//! What there is, and what is said when it is not.

use crate::support::{cpu_options, input, options};
use tangor_device::tensor::{Layout, Offset};
use tangor_device::{Activations, Device, DeviceError, DeviceKind, Health, Prepare, Segment};
use tangor_device_npu::{Hardware, NpuDevice, NpuError, NpuOptions, ProviderLibrary, Runtime};
use tangor_testkit::tiny;

/// OpenVINO's plug-in with the NPUs that it can pretend to have.
fn virtual_npus() -> NpuOptions {
    let path = input("TANGOR_TEST_EP_OPENVINO");
    let provider = ProviderLibrary { name: "openvino.virtual".into(), path };
    NpuOptions { providers: Some(vec![provider]), ..options() }
}

#[test]
fn neural_processors_are_listed_with_their_makers() {
    let device = NpuDevice::open(virtual_npus()).expect("a device");
    assert_eq!(device.descriptor().kind, DeviceKind::Npu);
    assert_eq!(device.descriptor().name, "npu");
    let description = &device.descriptor().description;
    assert_eq!(description, "ONNX Runtime OpenVINO provider on Intel NPU");
    assert_eq!(device.info().hardware, Hardware::Npu);
    let runtime = Runtime::load(None).expect("the runtime in use");
    let npus = runtime.devices().into_iter().filter(|device| device.hardware == Hardware::Npu);
    let mut ids: Vec<u32> = npus.map(|device| device.hardware_id).collect();
    ids.dedup();
    assert!(ids.len() > 1, "several generations: {ids:?}");
    let other = NpuDevice::open(NpuOptions { nth: 1, ..virtual_npus() }).expect("another device");
    assert_ne!(other.info(), device.info());
}

/// There is no driver behind a pretended NPU: it refuses everything, by name, and is not lost.
#[test]
fn a_processor_without_a_driver_refuses_by_name() {
    let device = NpuDevice::open(virtual_npus()).expect("a device");
    let layout = Layout::Quant { bits: 4, group: 32, offset: Offset::Zero };
    let graph = tiny::random("llama", layout, 1);
    let options = Prepare { activations: Activations::F32, context: 32, max_rows: 16 };
    let error = device.prepare(&Segment::whole(&graph), options, &mut |_| {}).unwrap_err();
    let DeviceError::Refused { device: name, node, why } = &error else { panic!("{error}") };
    assert_eq!(name, "npu");
    assert!(graph.nodes.iter().any(|known| known.name == *node), "{error}");
    assert!(!why.is_empty(), "{error}");
    let refused: Vec<bool> =
        (0..graph.nodes.len()).map(|node| device.refuses(&graph, node).is_some()).collect();
    for (node, refused) in graph.nodes.iter().zip(refused) {
        let host = matches!(node.op.name(), "embed" | "attention" | "select_rows");
        assert_eq!(refused, !host, "{}", node.name);
    }
    assert_eq!(device.health(), Health::Ready);
}

#[test]
fn a_library_that_is_not_there_is_named() {
    let library = Some("/nowhere/libonnxruntime.so".into());
    let error = NpuDevice::open(NpuOptions { library, ..cpu_options() }).unwrap_err();
    assert!(matches!(error, NpuError::Missing { .. }), "{error}");
    assert!(error.to_string().contains("/nowhere/libonnxruntime.so"), "{error}");
}

#[test]
fn a_provider_that_does_not_load_is_named() {
    let path = input("TANGOR_TEST_ONNXRUNTIME");
    for path in [path, "/nowhere/provider.so".into()] {
        let provider = ProviderLibrary { name: "Broken".into(), path: path.clone() };
        let options = NpuOptions { providers: Some(vec![provider]), ..cpu_options() };
        let error = NpuDevice::open(options).unwrap_err();
        let NpuError::Provider { name, path: at, why } = &error else { panic!("{error}") };
        assert_eq!((name.as_str(), at), ("Broken", &path));
        assert!(!why.is_empty());
    }
}

#[test]
fn a_device_that_there_is_not_is_named_with_those_that_there_are() {
    let provider = Some("NoExecutionProvider".to_owned());
    let error = NpuDevice::open(NpuOptions { provider, ..options() }).unwrap_err();
    assert!(matches!(error, NpuError::NoDevice { .. }), "{error}");
    let text = error.to_string();
    assert!(text.contains("NPU of NoExecutionProvider"), "{text}");
    assert!(text.contains("CPUExecutionProvider on"), "{text}");
}

#[test]
fn row_counts_have_to_make_sense() {
    for rows in [vec![], vec![0], vec![1, 100_000]] {
        let error = NpuDevice::open(NpuOptions { rows, ..cpu_options() }).unwrap_err();
        assert!(matches!(error, NpuError::Rows { .. }), "{error}");
    }
}
