//! Two devices that share prompts compute what one computes, to the bit.

use super::*;
use crate::model::{LoadOptions, Model};
use crate::sequence::SequenceId;
use crate::step::WorkSpan;
use tangor_device::oracle::OracleDevice;
use tangor_device::tensor::{Layout, Offset};
use tangor_device::{Activations, Descriptor, DeviceError, DeviceKind};
use tangor_plan::model::rope::Variant;
use tangor_testkit::tiny;

/// The oracle under another name.
#[derive(Debug)]
struct Named(OracleDevice, Descriptor);

impl Device for Named {
    fn descriptor(&self) -> &Descriptor {
        &self.1
    }

    fn kv_cache(&self, spec: &KvSpec) -> Result<Box<dyn KvCache>, DeviceError> {
        self.0.kv_cache(spec)
    }

    fn prepare(
        &self,
        segment: &Segment<'_>,
        options: Prepare,
        progress: &mut dyn FnMut(f32),
    ) -> Result<Box<dyn Runnable>, DeviceError> {
        self.0.prepare(segment, options, progress)
    }
}

fn named(name: &str, kind: DeviceKind) -> Arc<dyn Device> {
    let oracle = OracleDevice::new();
    let facts = oracle.descriptor().clone();
    Arc::new(Named(oracle, Descriptor { name: name.into(), kind, ..facts }))
}

/// Rows of sequences on pages of their own: `(sequence, start, rows)`.
fn work(stage: Stage, parts: &[(usize, usize, usize)]) -> Work {
    let mut work = Work {
        stage,
        copies: Vec::new(),
        tokens: Vec::new(),
        spans: Vec::new(),
        logit_rows: Vec::new(),
        hidden: false,
    };
    for &(sequence, start, rows) in parts {
        let first = work.tokens.len();
        work.tokens
            .extend((start..start + rows).map(|i| (i * i * 31 + i * 7 + sequence) as u32 % 256));
        work.logit_rows.push(first + rows - 1);
        work.spans.push(WorkSpan {
            id: SequenceId(sequence as u64),
            rows: first..first + rows,
            start,
            pages: (0..8).map(|page| page * 2 + sequence as u32).collect(),
            rope: Variant::Short,
            logits: 1,
            proposed: 0,
        });
    }
    work
}

/// Prompts whole and in two parts, then single tokens, then more of a prompt.
fn script() -> Vec<Work> {
    vec![
        work(Stage::Prefill, &[(0, 0, 17)]),
        work(Stage::Prefill, &[(0, 17, 30), (1, 0, 9)]),
        work(Stage::Decode, &[(0, 47, 1), (1, 9, 1)]),
        work(Stage::Prefill, &[(1, 10, 25), (0, 48, 2)]),
        work(Stage::Decode, &[(1, 35, 1)]),
    ]
}

fn bits(executor: &mut Executor) -> Vec<Vec<u32>> {
    let mut run = |work: &Work| {
        executor.run(work).unwrap();
        executor.rows(work).iter().map(|logit| logit.to_bits()).collect()
    };
    script().iter().map(&mut run).collect()
}

#[test]
fn prompts_that_two_devices_share_equal_those_of_one() {
    let layout = Layout::Quant { bits: 4, group: 32, offset: Offset::Min };
    let graph = tiny::random("llama", layout, 7);
    let devices = [named("a", DeviceKind::Npu), named("b", DeviceKind::Gpu)];
    for kv in [KvType::F32, KvType::F16, KvType::Bf16, KvType::Int8] {
        let options = LoadOptions {
            activations: Activations::F32,
            kv: Some(kv),
            context: Some(128),
            prefill_device: Some("a".into()),
            decode_device: Some("b".into()),
            ..LoadOptions::default()
        };
        let prepare = |devices: &[Arc<dyn Device>], options: &LoadOptions| {
            Model::prepare(&graph, (devices, &[]), options, &mut |_| {}).unwrap()
        };
        let alone = LoadOptions { prefill_device: None, decode_device: None, ..options.clone() };
        let expected = bits(&mut prepare(&devices[..1], &alone).executor);
        let plan = prepare(&devices, &options).plan;
        let nodes = graph.nodes.len();
        let pieces: Vec<_> = (0..nodes).step_by(4).map(|i| i..nodes.min(i + 4)).collect();
        for (pair, rows) in [
            ([0, 1], [5, 3]),
            ([1, 0], [16, 7]),
            ([0, 1], [1, 1]),
            ([0, 1], [1, 0]),
            ([1, 0], [40, 9]),
        ] {
            let shared = Shared { devices: pair, rows, pieces: pieces.clone() };
            let prepare = Prepare {
                activations: options.activations,
                context: plan.kv.context,
                max_rows: plan.max_rows,
            };
            let mut executor = Executor::with_shared(
                &graph,
                &plan,
                &devices,
                (prepare, None),
                (kv, Some(shared)),
                &mut |_| {},
            )
            .unwrap();
            assert_eq!(bits(&mut executor), expected, "{kv:?}, {pair:?} in turns of {rows:?}");
        }
    }
}
