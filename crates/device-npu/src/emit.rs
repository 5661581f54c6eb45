//! A run of nodes as an ONNX model with static shapes.
//!
//! Values are `f32`, `(rows, width)`, named `v7` after their id; weights are initializers. Large
//! ones stand outside the model, so that models for several row counts share them.

use crate::proto::Message;
use crate::weights::{Data, LinearForm, Packed, Tensor, vector};
use std::collections::BTreeSet;
use std::ops::Range;
use tangor_device::model::ir::Activation;
use tangor_device::model::{Graph, Node, Op, ValueId};

/// How a node is written where there are several ways.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Form {
    /// The only way.
    Plain,
    /// A linear.
    Linear(LinearForm),
    /// A norm as ONNX Runtime's own operator.
    FusedNorm,
    /// A norm in elementary operators.
    PrimitiveNorm,
}

/// Forms of a node, the best first. Empty: the node is no matter of a provider.
pub(crate) fn forms(op: &Op) -> &'static [Form] {
    match op {
        Op::Linear { .. } => &[
            Form::Linear(LinearForm::NBits),
            Form::Linear(LinearForm::Dequantize),
            Form::Linear(LinearForm::Float),
        ],
        Op::RmsNorm { .. } | Op::AddRmsNorm { .. } => &[Form::FusedNorm, Form::PrimitiveNorm],
        Op::Gated(_) | Op::Add | Op::Scale(_) => &[Form::Plain],
        Op::Embed { .. } | Op::Attention(_) | Op::SelectRows => &[],
    }
}

/// A run of nodes with what goes in and comes out.
#[derive(Clone, Debug)]
pub(crate) struct Piece {
    /// Nodes of the graph.
    pub(crate) nodes: Range<usize>,
    /// How each of them is written.
    pub(crate) forms: Vec<Form>,
    pub(crate) inputs: Vec<ValueId>,
    pub(crate) outputs: Vec<ValueId>,
}

/// A piece without its row count: nodes, and the tensors that they read.
#[derive(Debug)]
pub(crate) struct Emitted {
    nodes: Vec<Message>,
    /// Initializers by name.
    pub(crate) tensors: Vec<(String, Tensor)>,
    /// Operators in use.
    pub(crate) operators: BTreeSet<&'static str>,
    inputs: Vec<(String, usize)>,
    outputs: Vec<(String, usize)>,
}

/// Bytes from which on an initializer stands outside the model.
const OUTSIDE: usize = 4096;

mod onnx {
    //! Numbers of ONNX's protobuf.
    pub(super) const FLOAT: i64 = 1;
    pub(super) const UINT8: i64 = 2;
    pub(super) const INT64: i64 = 7;
    pub(super) const UINT4: i64 = 21;
    pub(super) const ATTRIBUTE_FLOAT: i64 = 1;
    pub(super) const ATTRIBUTE_INT: i64 = 2;
    pub(super) const ATTRIBUTE_INTS: i64 = 7;
    pub(super) const EXTERNAL: i64 = 1;
    /// With 4-bit integers and `DequantizeLinear` in blocks.
    pub(super) const OPSET: i64 = 21;
    pub(super) const IR_VERSION: i64 = 10;
}

/// The name of a value.
pub(crate) fn value_name(id: ValueId) -> String {
    format!("v{}", id.0)
}

impl Tensor {
    /// Bytes of its elements, wherever they are.
    pub(crate) fn bytes(&self) -> usize {
        let elements: usize = self.dims.iter().product();
        match &self.data {
            Data::F32(_) => elements * 4,
            Data::U8(_) => elements,
            Data::U4(_) => elements.div_ceil(2),
            Data::I64(_) => elements * 8,
        }
    }

    /// Whether it stands outside the model. (Bindings have no 4-bit tensors.)
    pub(crate) fn outside(&self) -> bool {
        self.bytes() >= OUTSIDE && matches!(self.data, Data::F32(_) | Data::U8(_))
    }

    fn proto(&self, name: &str) -> Message {
        let (kind, raw): (i64, Vec<u8>) = match &self.data {
            _ if self.outside() => (self.kind(), Vec::new()),
            Data::F32(values) => {
                (self.kind(), values.iter().flat_map(|x| x.to_le_bytes()).collect())
            }
            Data::U8(values) | Data::U4(values) => (self.kind(), values.clone()),
            Data::I64(values) => {
                (self.kind(), values.iter().flat_map(|x| x.to_le_bytes()).collect())
            }
        };
        let message = Message::new().each(&self.dims, |m, &dim| m.int(1, as_int(dim)));
        let message = message.int(2, kind).bytes(8, name);
        if self.outside() {
            let place = Message::new().bytes(1, "location").bytes(2, "outside");
            message.message(13, &place).int(14, onnx::EXTERNAL)
        } else {
            message.bytes(9, raw)
        }
    }

    fn kind(&self) -> i64 {
        match self.data {
            Data::F32(_) => onnx::FLOAT,
            Data::U8(_) => onnx::UINT8,
            Data::U4(_) => onnx::UINT4,
            Data::I64(_) => onnx::INT64,
        }
    }
}

fn as_int(value: usize) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

impl Emitted {
    /// The piece's nodes and tensors.
    ///
    /// # Errors
    /// The place in the piece of a node whose weight cannot be had in the form wanted.
    pub(crate) fn new(graph: &Graph, piece: &Piece) -> Result<Self, usize> {
        let name = |&id: &ValueId| (value_name(id), graph.value(id).width);
        let mut writer = Writer {
            graph,
            out: Self {
                nodes: Vec::new(),
                tensors: Vec::new(),
                operators: BTreeSet::new(),
                inputs: piece.inputs.iter().map(name).collect(),
                outputs: piece.outputs.iter().map(name).collect(),
            },
        };
        let nodes = graph.nodes[piece.nodes.clone()].iter().zip(&piece.forms);
        for (index, (node, form)) in nodes.enumerate() {
            writer.node(node, *form).ok_or(index)?;
        }
        Ok(writer.out)
    }

    /// The model for batches of `rows` rows.
    pub(crate) fn model(&self, rows: usize) -> Vec<u8> {
        let value = |(name, width): &(String, usize)| {
            let dim = |size: usize| Message::new().int(1, as_int(size));
            let shape = Message::new().message(1, &dim(rows)).message(1, &dim(*width));
            let tensor = Message::new().int(1, onnx::FLOAT).message(2, &shape);
            Message::new().bytes(1, name).message(2, &Message::new().message(1, &tensor))
        };
        let tensors = self.tensors.iter().map(|(name, tensor)| tensor.proto(name));
        let graph = Message::new()
            .each(&self.nodes, |m, node| m.message(1, node))
            .bytes(2, "piece")
            .each(tensors, |m, tensor| m.message(5, &tensor))
            .each(&self.inputs, |m, input| m.message(11, &value(input)))
            .each(&self.outputs, |m, output| m.message(12, &value(output)));
        let opset = |domain: &str, version| Message::new().bytes(1, domain).int(2, version);
        Message::new()
            .int(1, onnx::IR_VERSION)
            .bytes(2, "tangor")
            .message(7, &graph)
            .message(8, &opset("", onnx::OPSET))
            .message(8, &opset("com.microsoft", 1))
            .finish()
    }
}

/// Attributes of a node.
enum Attribute<'a> {
    Int(&'a str, i64),
    Float(&'a str, f32),
    Ints(&'a str, &'a [i64]),
}

struct Writer<'a> {
    graph: &'a Graph,
    out: Emitted,
}

impl Writer<'_> {
    fn push(
        &mut self,
        operator: &'static str,
        inputs: &[&str],
        outputs: &[&str],
        attributes: &[Attribute<'_>],
    ) {
        let domain = if operator == "MatMulNBits" { "com.microsoft" } else { "" };
        let attribute = |m: Message, attribute: &Attribute<'_>| {
            let one = match attribute {
                Attribute::Int(name, value) => {
                    Message::new().bytes(1, name).int(3, *value).int(20, onnx::ATTRIBUTE_INT)
                }
                Attribute::Float(name, value) => {
                    Message::new().bytes(1, name).float(2, *value).int(20, onnx::ATTRIBUTE_FLOAT)
                }
                Attribute::Ints(name, values) => Message::new()
                    .bytes(1, name)
                    .each(*values, |m, &value| m.int(8, value))
                    .int(20, onnx::ATTRIBUTE_INTS),
            };
            m.message(5, &one)
        };
        let node = Message::new()
            .each(inputs, |m, name| m.bytes(1, name))
            .each(outputs, |m, name| m.bytes(2, name))
            .bytes(3, format!("{operator}/{}", outputs[0]))
            .bytes(4, operator)
            .each(attributes, attribute)
            .bytes(7, domain);
        self.out.operators.insert(operator);
        self.out.nodes.push(node);
    }

    /// An initializer; the same name twice is the same one.
    fn tensor(&mut self, name: &str, tensor: Tensor) {
        if !self.out.tensors.iter().any(|(known, _)| known == name) {
            self.out.tensors.push((name.to_owned(), tensor));
        }
    }

    fn scalar(&mut self, name: &str, value: f32) {
        self.tensor(name, Tensor { dims: Vec::new(), data: Data::F32(vec![value]) });
    }

    fn ints(&mut self, name: &str, values: &[i64]) {
        let data = Data::I64(values.to_vec());
        self.tensor(name, Tensor { dims: vec![values.len()], data });
    }

    fn node(&mut self, node: &Node, form: Form) -> Option<()> {
        let names = |ids: &[ValueId]| ids.iter().map(|&id| value_name(id)).collect::<Vec<_>>();
        let (inputs, outputs) = (names(&node.inputs), names(&node.outputs));
        let graph = self.graph;
        match (&node.op, form) {
            (Op::RmsNorm { gain, eps }, form) => {
                let width = graph.value(node.inputs[0]).width;
                self.norm(&inputs[0], &outputs[0], (gain.0, *eps), width, form);
            }
            (Op::AddRmsNorm { gain, eps }, form) => {
                let width = graph.value(node.inputs[0]).width;
                self.push("Add", &[&inputs[0], &inputs[1]], &[&outputs[0]], &[]);
                self.norm(&outputs[0], &outputs[1], (gain.0, *eps), width, form);
            }
            (Op::Linear { weight, bias }, Form::Linear(form)) => {
                let packed = Packed::new(graph.weight(*weight), form)?;
                let product = match bias {
                    Some(_) => format!("{}_product", outputs[0]),
                    None => outputs[0].clone(),
                };
                self.linear(&inputs[0], &product, weight.0, packed);
                if let Some(bias) = bias {
                    let name = format!("w{}", bias.0);
                    self.tensor(&name, vector(graph.weight(*bias)));
                    self.push("Add", &[&product, &name], &[&outputs[0]], &[]);
                }
            }
            (Op::Gated(act), _) => self.gated(*act, node, &inputs, &outputs[0]),
            (Op::Add, _) => self.push("Add", &[&inputs[0], &inputs[1]], &[&outputs[0]], &[]),
            (Op::Scale(factor), _) => {
                let name = format!("{}_factor", outputs[0]);
                self.scalar(&name, *factor);
                self.push("Mul", &[&inputs[0], &name], &[&outputs[0]], &[]);
            }
            _ => return None,
        }
        Some(())
    }

    /// `gain`: the weight's index, and what is added to the mean.
    fn norm(&mut self, x: &str, y: &str, (gain, eps): (usize, f32), width: usize, form: Form) {
        let weight = &self.graph.weights[gain].weight;
        let (run, gain) = (weight.cols(), format!("w{gain}"));
        self.tensor(&gain, vector(weight));
        if run == width {
            return self.norm_of_rows(x, y, &gain, eps, form);
        }
        // Runs of the gain's length become rows of their own, and rows again afterwards.
        let (split, normed) = (format!("{y}_runs"), format!("{y}_normed"));
        let (to_runs, to_rows) = (format!("runs_of_{run}"), format!("rows_of_{width}"));
        self.ints(&to_runs, &[-1, as_int(run)]);
        self.ints(&to_rows, &[-1, as_int(width)]);
        self.push("Reshape", &[x, &to_runs], &[&split], &[]);
        self.norm_of_rows(&split, &normed, &gain, eps, form);
        self.push("Reshape", &[&normed, &to_rows], &[y], &[]);
    }

    fn norm_of_rows(&mut self, x: &str, y: &str, gain: &str, eps: f32, form: Form) {
        if form == Form::FusedNorm {
            let attributes = [
                Attribute::Int("axis", -1),
                Attribute::Float("epsilon", eps),
                Attribute::Int("stash_type", 1),
            ];
            return self.push("SimplifiedLayerNormalization", &[x, gain], &[y], &attributes);
        }
        let part = |what: &str| format!("{y}_{what}");
        let (square, mean, sum, root, unit) =
            (part("square"), part("mean"), part("sum"), part("root"), part("unit"));
        let (axes, eps_name) = ("last_axis", format!("eps_{:08x}", eps.to_bits()));
        self.ints(axes, &[-1]);
        self.scalar(&eps_name, eps);
        self.push("Mul", &[x, x], &[&square], &[]);
        self.push("ReduceMean", &[&square, axes], &[&mean], &[Attribute::Int("keepdims", 1)]);
        self.push("Add", &[&mean, &eps_name], &[&sum], &[]);
        self.push("Sqrt", &[&sum], &[&root], &[]);
        self.push("Div", &[x, &root], &[&unit], &[]);
        self.push("Mul", &[&unit, gain], &[y], &[]);
    }

    fn linear(&mut self, x: &str, y: &str, weight: usize, packed: Packed) {
        let matrix = &self.graph.weights[weight].weight;
        let (outputs, inputs) = (as_int(matrix.rows()), as_int(matrix.cols()));
        let part = |what: &str| format!("w{weight}_{what}");
        match packed {
            Packed::NBits { bits, group, codes, scales, zeros } => {
                let (codes_name, scales_name, zeros_name) =
                    (part("codes"), part("scales"), part("zeros"));
                self.tensor(&codes_name, codes);
                self.tensor(&scales_name, scales);
                let mut reads = vec![x, &codes_name, &scales_name];
                if let Some(zeros) = zeros {
                    self.tensor(&zeros_name, zeros);
                    reads.push(&zeros_name);
                }
                let attributes = [
                    Attribute::Int("K", inputs),
                    Attribute::Int("N", outputs),
                    Attribute::Int("bits", i64::from(bits)),
                    Attribute::Int("block_size", as_int(group)),
                    // Rows stay `f32`: level 4 would let kernels round them in one group per block,
                    // several times as coarsely as the contract's own rounding.
                    Attribute::Int("accuracy_level", 1),
                ];
                self.push("MatMulNBits", &reads, &[y], &attributes);
            }
            Packed::Dequantize { group, codes, scales, zeros } => {
                let names = [part("codes"), part("scales"), part("zeros")];
                for (name, tensor) in names.iter().zip([codes, scales, zeros]) {
                    self.tensor(name, tensor);
                }
                let (plain, turned) = (part("plain"), part("turned"));
                let reads: Vec<&str> = names.iter().map(String::as_str).collect();
                let blocks =
                    [Attribute::Int("axis", 1), Attribute::Int("block_size", as_int(group))];
                self.push("DequantizeLinear", &reads, &[&plain], &blocks);
                self.push("Transpose", &[&plain], &[&turned], &[Attribute::Ints("perm", &[1, 0])]);
                self.push("MatMul", &[x, &turned], &[y], &[]);
            }
            Packed::Float(tensor) => {
                let name = part("float");
                self.tensor(&name, tensor);
                self.push("MatMul", &[x, &name], &[y], &[]);
            }
        }
    }

    fn gated(&mut self, act: Activation, node: &Node, inputs: &[String], y: &str) {
        let (gate, up) = match inputs {
            [gate, up] => (gate.clone(), up.clone()),
            _ => {
                let half = as_int(self.graph.value(node.inputs[0]).width / 2);
                let (gate, up) = (format!("{y}_gate"), format!("{y}_up"));
                let halves = format!("halves_of_{half}");
                self.ints(&halves, &[half, half]);
                let axis = [Attribute::Int("axis", 1)];
                self.push("Split", &[&inputs[0], &halves], &[&gate, &up], &axis);
                (gate, up)
            }
        };
        let part = |what: &str| format!("{y}_{what}");
        let active = part("active");
        match act {
            Activation::Silu => {
                let sigmoid = part("sigmoid");
                self.push("Sigmoid", &[&gate], &[&sigmoid], &[]);
                self.push("Mul", &[&gate, &sigmoid], &[&active], &[]);
            }
            Activation::Gelu => {
                let inner = part("inner");
                self.scalar("half_root", std::f32::consts::FRAC_1_SQRT_2);
                self.push("Mul", &[&gate, "half_root"], &[&inner], &[]);
                let bent = part("bent");
                self.push("Erf", &[&inner], &[&bent], &[]);
                self.gelu(&gate, &bent, &active);
            }
            Activation::GeluTanh => {
                let names = ["square", "cube", "small", "all", "inner", "bent"].map(part);
                let [square, cube, small, all, inner, bent] = &names;
                self.scalar("cubic", 0.044_715);
                self.scalar("root", (2.0 / std::f32::consts::PI).sqrt());
                self.push("Mul", &[&gate, &gate], &[square], &[]);
                self.push("Mul", &[square, &gate], &[cube], &[]);
                self.push("Mul", &[cube, "cubic"], &[small], &[]);
                self.push("Add", &[&gate, small], &[all], &[]);
                self.push("Mul", &[all, "root"], &[inner], &[]);
                self.push("Tanh", &[inner], &[bent], &[]);
                self.gelu(&gate, bent, &active);
            }
        }
        self.push("Mul", &[&active, &up], &[y], &[]);
    }

    /// `y = x * (bent + 1) / 2`.
    fn gelu(&mut self, x: &str, bent: &str, y: &str) {
        let (sum, share) = (format!("{y}_sum"), format!("{y}_share"));
        self.scalar("one", 1.0);
        self.scalar("half", 0.5);
        self.push("Add", &[bent, "one"], &[&sum], &[]);
        self.push("Mul", &[&sum, "half"], &[&share], &[]);
        self.push("Mul", &[x, &share], &[y], &[]);
    }
}
