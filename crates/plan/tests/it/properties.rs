//! What holds for any devices.

use crate::{LLAMA_1B, devices_of};
use proptest::prelude::*;
use std::collections::BTreeSet;
use tangor_plan::{
    DeviceChoice, DeviceProfile, Kind, MemoryKind, PackedWeights, Plan, PlanError, PlanOptions,
    Rates, Stage, plan, replan,
};

prop_compose! {
    fn any_device(kind: Kind)(
        ops in 1e10..3e13_f64,
        read in 1e9..2e11_f64,
        run_s in 0.0..2e-3_f64,
        node_s in 0.0..5e-4_f64,
        memory in 300_000_000_u64..8_000_000_000,
        kind_of_memory in prop::sample::select(vec![
            MemoryKind::Host, MemoryKind::HostBuffers, MemoryKind::Own,
        ]),
        times in 0.8..2.5_f64,
        row_tile in prop::sample::select(vec![1_usize, 64, 256]),
        refused in prop::collection::btree_set(0_usize..133, 0..3),
        refuses in any::<bool>(),
    ) -> DeviceProfile {
        let rates = Rates {
            int8_ops_per_s: ops,
            attention_ops_per_s: ops,
            attention_row_ops_per_s: ops,
            read_bytes_per_s: read,
            run_s,
            node_s,
            node_row_s: node_s,
            row_tile,
            ..Rates::typical(kind)
        };
        let name = kind.to_string();
        DeviceProfile {
            rates,
            refused: if refuses { refused } else { BTreeSet::new() },
            packed: PackedWeights::Times(times),
            ..DeviceProfile::new(&name, kind, memory, kind_of_memory)
        }
    }
}

fn any_devices() -> impl Strategy<Value = Vec<DeviceProfile>> {
    (any_device(Kind::Cpu), any_device(Kind::Gpu), any_device(Kind::Npu))
        .prop_map(|(cpu, gpu, npu)| vec![cpu, gpu, npu])
}

/// Seconds of the prompt and the answer.
fn total(plan: &Plan, options: &PlanOptions) -> f64 {
    plan.predicted.ttft_s + options.answer as f64 / plan.predicted.decode_tps
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn a_plan_covers_the_graph_within_memory_and_what_devices_take(
        devices in any_devices(),
        prompt in 1_usize..3000,
    ) {
        let options = PlanOptions { prompt, ..PlanOptions::default() };
        let plan = match plan(&LLAMA_1B, &devices, &options) {
            Ok(plan) => plan,
            Err(PlanError::Refused { .. } | PlanError::WeightsDoNotFit { .. }) => return Ok(()),
            Err(error) => panic!("{error}"),
        };
        for stage in &plan.stages {
            let covered: Vec<usize> =
                stage.segments.iter().flat_map(|s| s.range.clone()).collect();
            prop_assert_eq!(&covered, &(0..LLAMA_1B.nodes.len()).collect::<Vec<_>>());
            for segment in &stage.segments {
                let refused = &plan.devices[segment.device].refused;
                prop_assert!(segment.range.clone().all(|node| !refused.contains(&node)));
            }
        }
        for memory in &plan.memory {
            let needed = memory.weights_bytes() + memory.scratch_bytes;
            prop_assert!(needed + memory.caches * plan.kv.bytes <= memory.limit_bytes);
        }
        for (index, device) in devices.iter().enumerate() {
            prop_assert!(plan.taken_bytes(index) <= device.memory_bytes);
        }
        if let Some(both) = &plan.cooperative {
            prop_assert!(both.predicted_s < both.alone_s);
            prop_assert!(both.rows.iter().all(|&rows| rows >= 1 && rows <= plan.prefill_rows));
            let nodes: Vec<usize> = both.pieces.iter().flat_map(Clone::clone).collect();
            prop_assert_eq!(nodes, (0..LLAMA_1B.nodes.len()).collect::<Vec<_>>());
            prop_assert_eq!(both.pieces.len(), LLAMA_1B.hyper.layers);
        }
    }

    #[test]
    fn a_plan_is_never_worse_than_the_best_device_alone(
        devices in any_devices(),
        prompt in 1_usize..3000,
        answer in 1_usize..500,
    ) {
        let options = PlanOptions { prompt, answer, ..PlanOptions::default() };
        let Ok(best) = plan(&LLAMA_1B, &devices, &options) else { return Ok(()) };
        for device in [DeviceChoice::Cpu, DeviceChoice::Gpu] {
            let alone = PlanOptions { device, ..options.clone() };
            // One that holds less of what is asked may be faster.
            if let Ok(alone) = plan(&LLAMA_1B, &devices, &alone)
                && alone.kv.context >= best.kv.context.min(prompt + answer)
            {
                let (best, alone) = (total(&best, &options), total(&alone, &options));
                prop_assert!(best <= alone * (1.0 + 1e-9), "{best} > {alone} of {device}");
            }
        }
    }

    #[test]
    fn the_same_question_has_the_same_answer(devices in any_devices()) {
        let options = PlanOptions::default();
        let ask = || plan(&LLAMA_1B, &devices, &options);
        prop_assert_eq!(ask(), ask());
    }

    /// Of several devices a threshold decides, which may hide a gain as large as itself.
    #[test]
    fn more_bandwidth_is_never_slower(
        mut devices in any_devices(),
        which in 0_usize..3,
        factor in 1.0..4.0_f64,
    ) {
        let options = PlanOptions::default();
        let Ok(before) = plan(&LLAMA_1B, &devices, &options) else { return Ok(()) };
        let kind = devices[which].kind;
        devices[which].rates.read_bytes_per_s *= factor;
        let after = plan(&LLAMA_1B, &devices, &options).unwrap();
        let (before, after) = (total(&before, &options), total(&after, &options));
        prop_assert!(after <= before / 0.9 * (1.0 + 1e-9), "{after} > {before}");
        let one = std::slice::from_ref(&devices[which]);
        let Ok(fast) = plan(&LLAMA_1B, one, &options) else { return Ok(()) };
        let mut slow = devices[which].clone();
        slow.rates.read_bytes_per_s /= factor;
        let slow = plan(&LLAMA_1B, &[slow], &options).unwrap();
        let (fast, slow) = (total(&fast, &options), total(&slow, &options));
        prop_assert!(fast <= slow * (1.0 + 1e-9), "{kind} alone");
    }

    #[test]
    fn a_device_that_is_gone_is_in_no_new_plan(devices in any_devices(), lost in 0_usize..3) {
        let options = PlanOptions::default();
        if let Ok(plan) = replan(&LLAMA_1B, &devices, &options, &[lost]) {
            prop_assert!(!plan.used().contains(&lost));
            prop_assert!(plan.reasons[0].contains("takes no part"), "{:?}", plan.reasons);
        }
    }
}

#[test]
fn a_choice_that_cannot_be_kept_without_a_device_is_given_up() {
    let devices = crate::all();
    let options = PlanOptions {
        device: DeviceChoice::Npu,
        decode_device: Some("npu".into()),
        ..PlanOptions::default()
    };
    let plan = replan(&LLAMA_1B, &devices, &options, &[2]).unwrap();
    assert_eq!(devices_of(&plan, Stage::Decode, 1), ["gpu0"]);
    assert!(plan.reasons.iter().any(|r| r.contains("--device npu cannot be kept")));
}

#[test]
fn hybrid_takes_two_kinds_even_where_one_is_faster() {
    let mut devices = crate::all();
    devices[1].rates.int8_ops_per_s = 1e14;
    devices[1].rates.attention_ops_per_s = 1e14;
    let options = PlanOptions { cooperative: false, ..PlanOptions::default() };
    let auto = plan(&LLAMA_1B, &devices, &options).unwrap();
    assert_eq!(devices_of(&auto, Stage::Prefill, 512), devices_of(&auto, Stage::Decode, 1));
    let options = PlanOptions { device: DeviceChoice::Hybrid, ..options };
    let hybrid = plan(&LLAMA_1B, &devices, &options).unwrap();
    let (first, then) =
        (devices_of(&hybrid, Stage::Prefill, 512), devices_of(&hybrid, Stage::Decode, 1));
    assert_ne!(first, then, "{}", hybrid.explain());
}

#[test]
fn what_the_npu_refuses_goes_to_the_cpu_and_is_said() {
    let mut devices = crate::all();
    devices[2].refused = [0, LLAMA_1B.nodes.len() - 1].into();
    let options = PlanOptions { device: DeviceChoice::Npu, ..PlanOptions::default() };
    let plan = plan(&LLAMA_1B, &devices, &options).unwrap();
    assert_eq!(devices_of(&plan, Stage::Prefill, 512), ["cpu0", "npu0", "cpu0"]);
    assert!(plan.reasons.iter().any(|reason| reason.contains("embed of prefill goes to cpu0")));
}

#[test]
fn a_node_that_nobody_runs_is_an_error_that_names_it() {
    let mut devices = crate::all();
    for device in &mut devices {
        device.refused = [5].into();
    }
    let error = plan(&LLAMA_1B, &devices, &PlanOptions::default()).unwrap_err();
    let PlanError::Refused { node, devices, .. } = &error else { panic!("{error}") };
    assert_eq!((node, &**devices), (&LLAMA_1B.nodes[5].name, "cpu0, gpu0, npu0"));
}

#[test]
fn two_equal_devices_read_a_prompt_together() {
    let mut devices = vec![crate::device(Kind::Cpu), crate::device(Kind::Gpu)];
    let rates = Rates { together: 1.0, ..Rates::typical(Kind::Cpu) };
    devices.iter_mut().for_each(|device| device.rates = rates);
    let plan = plan(&LLAMA_1B, &devices, &PlanOptions::default()).unwrap();
    let both = plan.cooperative.as_ref().unwrap();
    let share = both.predicted_s / both.alone_s;
    assert!((0.5..0.62).contains(&share), "half, and one layer behind: {share}");
    // Later rows attend to more, so the one behind has fewer of them.
    assert_eq!(both.rows.iter().sum::<usize>() % 32, 0, "{:?}", both.rows);
    let busy = plan.timeline.prefill.iter().map(|slot| slot.end_s).fold(0.0, f64::max);
    assert!((busy - both.predicted_s).abs() < 1e-9);
}
