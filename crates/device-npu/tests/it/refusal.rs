//! Providers that lack operators: other forms, smaller pieces, or a refusal by name.

use crate::support::cpu_options;
use tangor_device::oracle::{self, run_sequence};
use tangor_device::tensor::{Layout, Offset};
use tangor_device::{Activations, Device, DeviceError, KvType, Prepare, Segment};
use tangor_device_npu::{NpuDevice, NpuOptions, limits};
use tangor_testkit::tiny;

fn without(operators: &[&str]) -> NpuDevice {
    let set_aside = operators.iter().map(ToString::to_string).collect();
    NpuDevice::open(NpuOptions { set_aside, rows: vec![4, 16], ..cpu_options() }).expect("a device")
}

fn graph() -> tangor_device::model::Graph {
    tiny::random("llama", Layout::Quant { bits: 4, group: 32, offset: Offset::Zero }, 2)
}

/// Largest difference from the oracle, relative to the largest logit.
fn off(device: &NpuDevice) -> Result<f32, DeviceError> {
    let tokens: Vec<u32> = (0..21).map(|i| i * 89 % 256).collect();
    let want = oracle::logits(&graph(), &tokens)?;
    let got = run_sequence(device, &graph(), &tokens, Activations::F32, KvType::F32)?;
    let scale = want.iter().fold(0_f32, |most, x| most.max(x.abs()));
    Ok(got.iter().zip(&want).fold(0_f32, |worst, (a, b)| worst.max((a - b).abs() / scale)))
}

#[test]
fn weights_and_norms_take_another_form() {
    for operators in [
        &["MatMulNBits"][..],
        &["MatMulNBits", "DequantizeLinear"],
        &["SimplifiedLayerNormalization"],
    ] {
        let off = off(&without(operators)).expect("logits");
        assert!(off < 1e-5, "without {operators:?}: {off:e} off");
    }
}

#[test]
fn what_no_form_avoids_is_refused_by_name() {
    let device = without(&["Sigmoid"]);
    let graph = graph();
    let gated = graph.nodes.iter().position(|node| node.op.name() == "gated").expect("a gate");
    assert!(device.refuses(&graph, gated).expect("a reason").contains("Sigmoid"));
    assert_eq!(device.refuses(&graph, gated - 1), None);
    let DeviceError::Refused { node, why, .. } = off(&device).unwrap_err() else {
        panic!("another error")
    };
    assert_eq!(node, graph.nodes[gated].name);
    assert!(why.contains("Sigmoid"), "{why}");
}

#[test]
fn a_device_is_measured() {
    let device = NpuDevice::open(cpu_options()).expect("a device");
    let measured = limits::measure(&device).expect("numbers");
    println!("{measured:?}");
    assert!(measured.int8_ops_per_s > 1e8 && measured.read_bytes_per_s > 1e6);
    assert!(measured.run_s > 0.0 && measured.node_s >= 0.0);
    assert_eq!(measured.row_tile, 16);
}

#[test]
fn progress_ends_at_one_and_memory_is_told() {
    let device = without(&[]);
    let options = Prepare { activations: Activations::F32, context: 32, max_rows: 16 };
    let mut heard = Vec::new();
    let graph = graph();
    let runnable = device.prepare(&Segment::whole(&graph), options, &mut |share| heard.push(share));
    assert!(runnable.expect("a runnable").memory_bytes() > 0);
    assert!(heard.windows(2).all(|pair| pair[0] <= pair[1]), "{heard:?}");
    assert!(heard.len() > 2 && heard.last() == Some(&1.0), "{heard:?}");
}
