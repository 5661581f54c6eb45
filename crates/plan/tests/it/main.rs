//! Plans of published shapes for machines that are not here.
#![allow(clippy::unwrap_used, reason = "a test stops where it fails")]

mod properties;
mod simulate;

use serde_json::Value;
use std::sync::LazyLock;
use tangor_plan::model::ir::Rows;
use tangor_plan::model::tensor::{Layout, Offset};
use tangor_plan::model::{Graph, shapes};
use tangor_plan::{
    Arena, DeviceChoice, DeviceProfile, Kind, KvType, MemoryKind, PackedWeights, PlanError,
    PlanOptions, Rates, Stage, plan,
};

static LLAMA_1B: LazyLock<Graph> = LazyLock::new(|| {
    let layout = Layout::Quant { bits: 4, group: 32, offset: Offset::Zero };
    shapes::random_graph(&shapes::config("llama-3.2-1b").unwrap(), layout, 1).unwrap()
});

fn device(kind: Kind) -> DeviceProfile {
    let profile = DeviceProfile::new(&format!("{kind}0"), kind, 16 << 30, MemoryKind::Host);
    DeviceProfile { description: format!("a {kind}"), ..profile }
}

fn all() -> Vec<DeviceProfile> {
    vec![device(Kind::Cpu), device(Kind::Gpu), device(Kind::Npu)]
}

/// Names of the devices of a stage, in order.
fn devices_of(plan: &tangor_plan::Plan, stage: Stage, m: usize) -> Vec<&str> {
    let segments = &plan.stage(stage, m).unwrap().segments;
    segments.iter().map(|segment| &*plan.devices[segment.device].name).collect()
}

#[test]
fn explains_itself() {
    let plan = plan(&LLAMA_1B, &all(), &PlanOptions::default()).unwrap();
    insta::assert_snapshot!(plan.explain());
}

#[test]
fn json_has_the_promised_keys_and_no_others() {
    let plan = plan(&LLAMA_1B, &[device(Kind::Cpu)], &PlanOptions::default()).unwrap();
    let json = plan.to_json();
    let keys = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    let all = ["predicted", "stages", "devices", "memory", "cooperative", "considered", "reasons"];
    assert_eq!(keys(&json), all);
    let predicted = ["ttft_s", "decode_tps", "weights_bytes", "kv_bytes"];
    assert_eq!(keys(&json["predicted"]), predicted);
    for stage in json["stages"].as_array().unwrap() {
        assert_eq!(keys(stage), ["stage", "m", "segments"]);
        let segment = &stage["segments"][0];
        assert_eq!(keys(segment), ["device", "nodes", "predicted_s", "measured_s", "why"]);
        assert_eq!(segment["nodes"].as_array().unwrap().len(), LLAMA_1B.nodes.len());
        assert_eq!(segment["measured_s"], Value::Null);
    }
    // Weights: 1.24e9 of them in groups of 32 with 16 bits of scale.
    let weights = json["predicted"]["weights_bytes"].as_f64().unwrap();
    assert!((weights / 0.695e9 - 1.0).abs() < 0.01, "{weights}");
    // Keys and values: 16 layers of 2 x 8 heads of 64 elements of 2 bytes.
    assert_eq!(json["predicted"]["kv_bytes"], (1024 + 64) * 16 * 2 * 8 * 64 * 2);
}

#[test]
fn the_same_question_has_the_same_answer_and_survives_serialisation() {
    let ask = || plan(&LLAMA_1B, &all(), &PlanOptions::default()).unwrap();
    assert_eq!(ask(), ask());
    let text = serde_json::to_string(&ask()).unwrap();
    let read: tangor_plan::Plan = serde_json::from_str(&text).unwrap();
    assert_eq!(read.explain(), ask().explain());
    assert_eq!((read.arena, read.kv), (ask().arena, ask().kv));
}

#[test]
fn predictions_are_the_roofline() {
    let cpu = device(Kind::Cpu);
    let plan = plan(&LLAMA_1B, std::slice::from_ref(&cpu), &PlanOptions::default()).unwrap();
    let streamed = plan.predicted.weights_bytes as f64 / cpu.rates.read_bytes_per_s;
    let token = 1.0 / plan.predicted.decode_tps;
    assert!((1.0..1.15).contains(&(token / streamed)), "{token} s for {streamed} s of weights");
    // 2 operations per weight of the layers (973 million) and token, and the attention.
    let computed = 2.0 * 973e6 * 1024.0 / cpu.rates.int8_ops_per_s;
    let ratio = plan.predicted.ttft_s / computed;
    assert!((1.0..1.15).contains(&ratio), "{} s", plan.predicted.ttft_s);
}

#[test]
fn long_prompts_go_to_the_npu_and_tokens_to_the_memory() {
    let auto = plan(&LLAMA_1B, &all(), &PlanOptions::default()).unwrap();
    assert_eq!(devices_of(&auto, Stage::Prefill, 512), ["npu0"]);
    assert_eq!(devices_of(&auto, Stage::Prefill, 1), ["gpu0"], "padding costs more than it gains");
    let alone = PlanOptions { device: DeviceChoice::Cpu, ..PlanOptions::default() };
    let alone = plan(&LLAMA_1B, &all(), &alone).unwrap();
    assert!(alone.predicted.ttft_s > auto.predicted.ttft_s);
    assert!(alone.predicted.decode_tps < auto.predicted.decode_tps);
}

#[test]
fn a_stage_is_split_where_that_saves_much() {
    // One computes and hardly reads, the other one reads and hardly computes.
    let mut devices = vec![device(Kind::Cpu), device(Kind::Npu)];
    devices[0].rates.int8_ops_per_s = 1e11;
    devices[0].rates.read_bytes_per_s = 1e12;
    devices[1].rates.int8_ops_per_s = 1e15;
    devices[1].rates.read_bytes_per_s = 1e10;
    let plan = plan(&LLAMA_1B, &devices, &PlanOptions::default()).unwrap();
    let stage = plan.stage(Stage::Prefill, 512).unwrap();
    assert!(stage.segments.len() > 1, "{}", plan.explain());
    let covered: Vec<usize> = stage.segments.iter().flat_map(|s| s.range.clone()).collect();
    assert_eq!(covered, (0..LLAMA_1B.nodes.len()).collect::<Vec<_>>());
    let neighbours = stage.segments.windows(2);
    assert!(neighbours.into_iter().all(|pair| pair[0].device != pair[1].device));
}

#[test]
fn a_choice_of_devices_is_kept() {
    let options = PlanOptions {
        prefill_device: Some("cpu".into()),
        decode_device: Some("npu0".into()),
        ..PlanOptions::default()
    };
    let plan = plan(&LLAMA_1B, &all(), &options).unwrap();
    assert_eq!(devices_of(&plan, Stage::Prefill, 512), ["cpu0"]);
    assert_eq!(devices_of(&plan, Stage::Decode, 1), ["npu0"]);
    assert_eq!(devices_of(&plan, Stage::Verify, 8), ["npu0"]);
}

#[test]
fn nothing_is_handed_over_for_a_gain_that_is_smaller() {
    let mut devices = vec![device(Kind::Cpu), device(Kind::Gpu)];
    devices[0].rates.int8_ops_per_s = 1e15;
    let rates = devices[0].rates;
    // A graphics card that reads a little faster and has memory of its own.
    devices[1].memory = MemoryKind::Own;
    devices[1].rates = Rates { read_bytes_per_s: rates.read_bytes_per_s * 1.001, ..rates };
    let prefill = |decode_device: Option<String>| {
        let options = PlanOptions { decode_device, ..PlanOptions::default() };
        let plan = plan(&LLAMA_1B, &devices, &options).unwrap();
        (devices_of(&plan, Stage::Prefill, 512).concat(), plan.reasons)
    };
    assert_eq!(prefill(None), ("gpu0".into(), vec![]));
    let (device, reasons) = prefill(Some("cpu".into()));
    assert_eq!(device, "cpu0");
    assert!(reasons[0].contains("everything on cpu0"), "{reasons:?}");
}

#[test]
fn what_is_not_there_is_an_error_that_lists_what_is() {
    let refused = |options: PlanOptions| plan(&LLAMA_1B, &[device(Kind::Cpu)], &options);
    let options = PlanOptions { device: DeviceChoice::Gpu, ..PlanOptions::default() };
    let error = refused(options).unwrap_err().to_string();
    assert!(error.contains("no gpu device") && error.contains("cpu0 (cpu)"), "{error}");
    let options = PlanOptions { decode_device: Some("gpu7".into()), ..PlanOptions::default() };
    let error = refused(options).unwrap_err().to_string();
    assert!(error.contains("gpu7") && error.contains("decode"), "{error}");
    let options = PlanOptions { device: DeviceChoice::Hybrid, ..PlanOptions::default() };
    assert!(matches!(refused(options), Err(PlanError::NoDevice { .. })));
    let error = plan(&LLAMA_1B, &[], &PlanOptions::default()).unwrap_err();
    assert!(matches!(error, PlanError::NoDevice { .. }));
}

#[test]
fn the_cache_is_as_large_as_asked_and_never_larger_than_fits() {
    let kv = |options: PlanOptions| plan(&LLAMA_1B, &[device(Kind::Cpu)], &options).map(|p| p.kv);
    let page: u64 = 2 * 16 * 32 * 8 * 64 * 2;
    let asked = PlanOptions { context: Some(2048), max_sequences: 4, ..PlanOptions::default() };
    let plain = kv(asked.clone()).unwrap();
    assert_eq!((plain.context, plain.pages, plain.page_bytes), (2048, 256, page));
    let small = kv(PlanOptions { kv: KvType::Int8, ..asked.clone() }).unwrap();
    assert_eq!(small.page_bytes, page / 2 + page / 2 / 16 + page / 2 / 32);
    let bounded = kv(PlanOptions { kv_bytes: Some(100 * page + 5), ..asked.clone() }).unwrap();
    assert_eq!((bounded.context, bounded.pages), (2048, 100));
    let error = kv(PlanOptions { kv_bytes: Some(63 * page), ..asked.clone() }).unwrap_err();
    let expected = PlanError::KvDoesNotFit { context: 2048, needed: 64 * page, limit: 63 * page };
    assert_eq!(error, expected);
    // Without a wish the context shrinks to what fits.
    let shrunk = kv(PlanOptions { context: None, kv_bytes: Some(100 * page), ..asked }).unwrap();
    assert_eq!((shrunk.context, shrunk.pages), (3200, 100));
}

#[test]
fn a_device_that_holds_too_little_loses_to_a_slower_one_that_holds_the_prompt() {
    let mut devices = vec![device(Kind::Cpu), device(Kind::Gpu)];
    devices[1].memory = MemoryKind::Own;
    devices[1].rates.read_bytes_per_s = 1e12;
    devices[1].rates.int8_ops_per_s = 1e14;
    let options = PlanOptions::default();
    let roomy = plan(&LLAMA_1B, &devices, &options).unwrap();
    assert_eq!(devices_of(&roomy, Stage::Decode, 1), ["gpu0"]);
    let alone = plan(&LLAMA_1B, &devices[1..], &options).unwrap();
    let needed = alone.memory[0].weights_bytes() + alone.memory[0].scratch_bytes;
    devices[1].memory_bytes = needed + 20 * alone.kv.page_bytes;
    let alone = plan(&LLAMA_1B, &devices[1..], &options).unwrap();
    assert_eq!(alone.kv.context, 320);
    let large = plan(&LLAMA_1B, &devices, &options).unwrap();
    assert_eq!(devices_of(&large, Stage::Decode, 1), ["cpu0"]);
    assert!(large.kv.context >= options.prompt + options.answer, "{}", large.kv.context);
    let short = PlanOptions { prompt: 250, answer: 70, ..options };
    let small = plan(&LLAMA_1B, &devices, &short).unwrap();
    assert_eq!(devices_of(&small, Stage::Decode, 1), ["gpu0"], "what fits goes where it is fast");
}

#[test]
fn every_device_has_room_for_keys_and_values_of_its_own() {
    let options = PlanOptions {
        prefill_device: Some("npu".into()),
        decode_device: Some("cpu".into()),
        kv_bytes: Some(u64::MAX),
        ..PlanOptions::default()
    };
    let plan = plan(&LLAMA_1B, &all(), &options).unwrap();
    let host = &plan.memory[0];
    assert_eq!((host.memory.as_str(), host.caches), ("host", 2));
    let needed = host.weights_bytes() + host.scratch_bytes;
    assert!(needed + 2 * plan.kv.bytes <= host.limit_bytes, "{}", plan.explain());
    assert_eq!(host.kv_bytes, 2 * plan.predicted.kv_bytes);
}

#[test]
fn weights_count_as_they_are_packed() {
    let plain = plan(&LLAMA_1B, &[device(Kind::Cpu)], &PlanOptions::default()).unwrap();
    let double = LLAMA_1B.weights.iter().map(|named| 2 * named.weight.stored_bytes() as u64);
    let packed = PackedWeights::Each(double.collect());
    let wide = DeviceProfile { packed, ..device(Kind::Cpu) };
    let plan_of = |device: &DeviceProfile| {
        plan(&LLAMA_1B, std::slice::from_ref(device), &PlanOptions::default())
    };
    let twice = plan_of(&wide).unwrap();
    assert_eq!(twice.predicted.weights_bytes, 2 * plain.predicted.weights_bytes);
    assert_eq!(twice.taken_bytes(0) - plain.taken_bytes(0), plain.predicted.weights_bytes);
    let slower = plain.predicted.decode_tps / twice.predicted.decode_tps;
    assert!((1.8..2.0).contains(&slower), "all but the fixed costs is reading: {slower}");
    let memory_bytes = plain.predicted.weights_bytes * 3 / 2;
    let error = plan_of(&DeviceProfile { memory_bytes, ..wide }).unwrap_err();
    assert!(matches!(error, PlanError::WeightsDoNotFit { .. }), "{error}");
}

#[test]
fn a_gpu_without_memory_of_its_own_takes_the_hosts() {
    let mut devices = vec![device(Kind::Cpu), device(Kind::Gpu)];
    devices[1].memory = MemoryKind::HostBuffers;
    devices[1].memory_bytes = 8 << 30;
    let both = PlanOptions {
        prefill_device: Some("cpu".into()),
        decode_device: Some("gpu".into()),
        kv_bytes: Some(u64::MAX),
        ..PlanOptions::default()
    };
    let of = |devices: &[DeviceProfile]| plan(&LLAMA_1B, devices, &both);
    let shared = of(&devices).unwrap();
    let [host] = &shared.memory[..] else { panic!("{}", shared.explain()) };
    let limits = (host.memory.as_str(), host.caches, host.limit_bytes);
    assert_eq!(limits, ("host", 2, 16 << 30));
    assert_eq!(host.copies.len(), 2, "each packs weights for itself");
    assert!(host.weights_bytes() + host.scratch_bytes + 2 * shared.kv.bytes <= 16 << 30);
    assert!(shared.taken_bytes(1) <= 8 << 30, "no more than it may have by itself");
    // What the GPU holds is missing to the CPU.
    let needed = shared.predicted.weights_bytes;
    devices.iter_mut().for_each(|device| device.memory_bytes = needed * 4 / 5);
    let error = of(&devices).unwrap_err();
    assert!(matches!(error, PlanError::WeightsDoNotFit { .. }), "{error}");
    devices[1].memory = MemoryKind::Own;
    assert_eq!(of(&devices).unwrap().memory.len(), 2);
}

#[test]
fn what_other_models_take_is_not_there() {
    let cpu = device(Kind::Cpu);
    let gpu = DeviceProfile { memory: MemoryKind::HostBuffers, ..device(Kind::Gpu) };
    let only = |device| PlanOptions { device, kv_bytes: Some(u64::MAX), ..PlanOptions::default() };
    let limit = |taken: [u64; 2], choice| {
        let mut devices = [cpu.clone(), gpu.clone()];
        devices[0].taken_bytes = taken[0];
        devices[1].taken_bytes = taken[1];
        let plan = plan(&LLAMA_1B, &devices, &only(choice)).map_err(|error| error.to_string())?;
        Ok::<u64, String>(plan.memory[0].limit_bytes)
    };
    assert_eq!(limit([0, 0], DeviceChoice::Cpu), Ok(16 << 30));
    assert_eq!(limit([5 << 30, 0], DeviceChoice::Cpu), Ok(11 << 30));
    assert_eq!(limit([5 << 30, 4 << 30], DeviceChoice::Cpu), Ok(7 << 30), "one memory");
    assert_eq!(limit([5 << 30, 4 << 30], DeviceChoice::Gpu), Ok(7 << 30));
    assert!(limit([8 << 30, 8 << 30], DeviceChoice::Gpu).unwrap_err().contains("room for 0"));
}

#[test]
fn absurd_numbers_of_rows_are_refused_and_wrap_nowhere() {
    let plain = PlanOptions::default;
    for options in [
        PlanOptions { prefill_rows: 65_536, ..plain() },
        PlanOptions { prefill_rows: usize::MAX, ..plain() },
        PlanOptions { max_sequences: usize::MAX, ..plain() },
        PlanOptions { max_sequences: 0, ..plain() },
    ] {
        let error = plan(&LLAMA_1B, &all(), &options).unwrap_err();
        let refused = matches!(error, PlanError::Option { allowed: "from 1 to 65535", .. });
        assert!(refused, "{error}");
    }
    let most = PlanOptions { prefill_rows: 65_535, ..plain() };
    let error = plan(&LLAMA_1B, &all(), &most).unwrap_err();
    assert!(matches!(error, PlanError::WeightsDoNotFit { .. }), "{error}");
    for rows in [usize::MAX, usize::MAX / (4 * LLAMA_1B.hyper.ffn)] {
        let arena = Arena::new(&LLAMA_1B, rows, rows);
        assert!(arena.bytes > u64::MAX / 2, "{rows} rows take {} bytes", arena.bytes);
    }
}

#[test]
fn weights_that_fit_nowhere_are_an_error_and_small_devices_are_left_out() {
    let mut devices = all();
    devices[1].memory_bytes = 100 << 20;
    let partly = plan(&LLAMA_1B, &devices, &PlanOptions::default()).unwrap();
    assert_ne!(devices_of(&partly, Stage::Decode, 1), ["gpu0"]);
    assert!(partly.reasons.iter().any(|reason| reason.contains("gpu0 is left out")));
    let options = PlanOptions { memory_limit: Some(100 << 20), ..PlanOptions::default() };
    let error = plan(&LLAMA_1B, &devices, &options).unwrap_err();
    assert!(matches!(error, PlanError::WeightsDoNotFit { limit: 104_857_600, .. }), "{error}");
}

#[test]
fn values_that_live_together_never_share_memory() {
    let graph = &*LLAMA_1B;
    let arena = Arena::new(graph, 512, 64);
    let rows = |value: &tangor_plan::model::ir::Value| match value.rows {
        Rows::Tokens => 512,
        Rows::Logits => 64,
    };
    // What every node reads and writes must hold while it runs: replay with owners of bytes.
    let size = |id: usize| 4 * (graph.values[id].width * rows(&graph.values[id])) as u64;
    let last_read = |id: usize| {
        let read = graph.nodes.iter().rposition(|node| node.inputs.iter().any(|i| i.0 == id));
        if graph.logits.0 == id { usize::MAX } else { read.unwrap_or(0) }
    };
    let mut live: Vec<usize> = Vec::new();
    for (index, node) in graph.nodes.iter().enumerate() {
        for output in &node.outputs {
            let start = arena.offsets[output.0];
            assert!(start + size(output.0) <= arena.bytes);
            for &other in &live {
                let other_start = arena.offsets[other];
                let apart =
                    start + size(output.0) <= other_start || other_start + size(other) <= start;
                assert!(apart, "{} overwrites a value that is still read", node.name);
            }
            live.push(output.0);
        }
        live.retain(|&id| last_read(id) > index);
    }
    let total: u64 = (0..graph.values.len()).map(size).sum();
    assert!(arena.bytes * 10 < total, "{} of {total} bytes", arena.bytes);
}
