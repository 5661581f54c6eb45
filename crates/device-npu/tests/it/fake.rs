//! A plug-in that pretends to be an NPU (`examples/fake_npu`): it adds and multiplies, refuses the
//! rest, compiles into contexts, and fails when it is told to.

use crate::kept::counts;
use crate::support::options;
use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;
use tangor_device::model::ir::{Hyper, Rows, Value};
use tangor_device::model::rope::Rope;
use tangor_device::model::{Graph, Op, ValueId};
use tangor_device::oracle::OracleDevice;
use tangor_device::tensor::{Layout, Offset};
use tangor_device::{
    Activations, Batch, Device, DeviceError, Health, KvCache, KvSpec, KvType, Prepare, Runnable,
    Segment, Span,
};
use tangor_device_npu::{Keep, NpuDevice, NpuOptions, ProviderLibrary};
use tangor_testkit::kept::Memory;
use tangor_testkit::tiny;

const NAME: &str = "FakeNpuExecutionProvider";
const WIDTH: usize = 48;

/// The plug-in's library. Cargo builds no example that is a library before it runs tests; this one
/// depends on nothing.
fn library() -> PathBuf {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    let build = || {
        let out = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("libfake_npu.so");
        let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
        let built = Command::new(rustc)
            .args(["--edition", "2024", "--crate-type", "cdylib", "--crate-name", "fake_npu"])
            .arg("-o")
            .arg(&out)
            .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/examples/fake_npu/main.rs"))
            .status();
        assert!(built.expect("a compiler").success(), "the pretended NPU does not compile");
        out
    };
    BUILT.get_or_init(build).clone()
}

fn device(provider_options: &[(&str, &str)], keep: Keep) -> NpuDevice {
    let provider = ProviderLibrary { name: NAME.into(), path: library() };
    let owned = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
    NpuDevice::open(NpuOptions {
        providers: Some(vec![provider]),
        provider: Some(NAME.into()),
        provider_options: provider_options.iter().map(owned).collect(),
        rows: vec![1, 4, 16],
        keep,
        ..options()
    })
    .expect("a device")
}

/// `((x * 1.5 + y) * 0.3 + x) * 2`, and `x * 1.5 + y` beside it.
fn sums() -> Graph {
    let hyper = Hyper {
        arch: "test".into(),
        layers: 1,
        hidden: WIDTH,
        ffn: WIDTH,
        heads: 1,
        kv_heads: 1,
        head_dim: 1,
        vocab: 1,
        context: 64,
    };
    let mut graph = Graph::new(hyper, Rope::none());
    let value = || Value { width: WIDTH, rows: Rows::Tokens };
    graph.values = vec![value(), value()];
    let (x, y) = (ValueId(0), ValueId(1));
    let mut push = |name: &str, op, inputs: &[ValueId]| graph.push1(name, op, inputs).expect(name);
    let scaled = push("scaled", Op::Scale(1.5), &[x]);
    let sum = push("sum", Op::Add, &[scaled, y]);
    let small = push("small", Op::Scale(0.3), &[sum]);
    let both = push("both", Op::Add, &[small, x]);
    let twice = push("twice", Op::Scale(2.0), &[both]);
    graph.logits = twice;
    graph.identity = Some("sums".into());
    graph
}

/// A prepared segment with what it runs on.
struct Prepared {
    runnable: Box<dyn Runnable>,
    kv: Box<dyn KvCache>,
}

impl Prepared {
    fn new(device: &dyn Device, memory: Option<&Memory>) -> Result<Self, DeviceError> {
        let graph = sums();
        let segment = Segment {
            graph: &graph,
            nodes: 0..graph.nodes.len(),
            inputs: vec![ValueId(0), ValueId(1)],
            outputs: vec![ValueId(3), graph.logits],
            packed: memory.map(|memory| memory as _),
        };
        let options = Prepare { activations: Activations::F32, context: 64, max_rows: 64 };
        let spec = KvSpec {
            layers: 1,
            kv_heads: 1,
            head_dim: 1,
            page_tokens: 64,
            pages: 1,
            dtype: KvType::F32,
        };
        Ok(Self {
            runnable: device.prepare(&segment, options, &mut |_| {})?,
            kv: device.kv_cache(&spec)?,
        })
    }

    fn run(&mut self, rows: usize) -> Result<[Vec<f32>; 2], DeviceError> {
        let number = |i: usize| f32::from(u16::try_from(i % 977).expect("small")) / 97.0 - 5.0;
        let x: Vec<f32> = (0..rows * WIDTH).map(number).collect();
        let y: Vec<f32> = (0..rows * WIDTH).map(|i| number(i * 31 + 7)).collect();
        let spans = [Span { rows: 0..rows, start: 0, pages: &[0], rope: Default::default() }];
        let tokens = vec![0; rows];
        let batch = Batch { tokens: &tokens, spans: &spans, logit_rows: &[] };
        let mut outputs = [Vec::new(), Vec::new()];
        self.runnable.run(&batch, self.kv.as_mut(), &[&x, &y], &mut outputs)?;
        Ok(outputs)
    }
}

fn want(rows: usize) -> [Vec<f32>; 2] {
    let mut oracle = Prepared::new(&OracleDevice::new(), None).expect("the oracle");
    oracle.run(rows).expect("values")
}

#[test]
fn pieces_run_in_any_number_of_rows() {
    let device = device(&[], Keep::Never);
    assert_eq!(device.descriptor().description, "ONNX Runtime FakeNpu provider on Tangor NPU");
    let mut prepared = Prepared::new(&device, None).expect("a runnable");
    for rows in [1, 2, 4, 5, 16, 17, 33, 64] {
        assert_eq!(prepared.run(rows).expect("values"), want(rows), "{rows} rows");
    }
}

#[test]
fn a_provider_that_takes_small_pieces_gets_small_pieces() {
    for most in ["4", "2", "1"] {
        let device = device(&[("most_nodes", most)], Keep::Never);
        let mut prepared = Prepared::new(&device, None).expect("a runnable");
        let pieces = format!("{:?}", prepared.runnable).matches("Piece(").count();
        assert_eq!(pieces, 5_usize.div_ceil(most.parse().expect("a number")).max(2), "{most}");
        assert_eq!(prepared.run(19).expect("values"), want(19), "pieces of {most}");
    }
    let none = device(&[("most_nodes", "0")], Keep::Never);
    let error = Prepared::new(&none, None).map(|_| ()).unwrap_err();
    assert!(matches!(&error, DeviceError::Refused { node, .. } if node == "scaled"), "{error}");
}

#[test]
fn a_provider_that_lacks_an_operator_refuses_its_nodes_by_name() {
    let device = device(&[], Keep::Never);
    let layout = Layout::Quant { bits: 4, group: 32, offset: Offset::Zero };
    let graph = tiny::random("llama", layout, 1);
    for (index, node) in graph.nodes.iter().enumerate() {
        let host = matches!(node.op.name(), "embed" | "attention" | "select_rows" | "add");
        assert_eq!(device.refuses(&graph, index).is_none(), host, "{}", node.name);
    }
    let options = Prepare { activations: Activations::F32, context: 32, max_rows: 16 };
    let error = device.prepare(&Segment::whole(&graph), options, &mut |_| {}).unwrap_err();
    assert!(matches!(error, DeviceError::Refused { .. }), "{error}");
    assert_eq!(device.health(), Health::Ready);
}

#[test]
fn contexts_that_a_provider_compiled_are_kept_and_found() {
    let memory = Memory::default();
    let fresh = || device(&[], Keep::Compiled);
    let mut first = Prepared::new(&fresh(), Some(&memory)).expect("a runnable");
    assert_eq!(counts(&memory), (0, 1, 0));
    assert_eq!(first.run(21).expect("values"), want(21));
    memory.change(|_, data| {
        assert!(String::from_utf8_lossy(data).contains("fake npu 1"), "a context is kept");
    });
    let mut again = Prepared::new(&fresh(), Some(&memory)).expect("a runnable");
    assert_eq!(counts(&memory), (1, 1, 0));
    assert_eq!(again.run(21).expect("values"), want(21));
    // Other options are another key.
    let other = device(&[("most_nodes", "2")], Keep::Compiled);
    let mut small = Prepared::new(&other, Some(&memory)).expect("a runnable");
    assert_eq!(counts(&memory), (1, 2, 0));
    assert_eq!(small.run(21).expect("values"), want(21));
}

#[test]
fn damaged_contexts_are_compiled_again() {
    let memory = Memory::default();
    let fresh = || device(&[], Keep::Compiled);
    let _ = Prepared::new(&fresh(), Some(&memory)).expect("a runnable");
    memory.change(|_, data| {
        let at = data.windows(10).position(|bytes| bytes == b"fake npu 1").expect("a context");
        data[at + 9] = b'2';
    });
    let mut again = Prepared::new(&fresh(), Some(&memory)).expect("a runnable");
    assert_eq!(counts(&memory), (1, 2, 1));
    assert_eq!(again.run(21).expect("values"), want(21));
}

#[test]
fn a_provider_that_fails_loses_the_device() {
    // Five test rows at row count 1, and two or one runs of the others.
    let device = device(&[("fail_after", "12")], Keep::Never);
    let mut prepared = Prepared::new(&device, None).expect("a runnable");
    let runs = (0..40).map(|_| prepared.run(4)).find_map(Result::err);
    let DeviceError::Lost { device: name, why } = runs.expect("a failure") else {
        panic!("another error")
    };
    assert_eq!(name, "npu");
    assert!(why.contains("told to fail"), "{why}");
    assert_eq!(device.health(), Health::Lost(why));
    assert!(matches!(prepared.run(1), Err(DeviceError::Lost { .. })));
}
