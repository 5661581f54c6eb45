//! Standard operators and norms.

use super::weights::EMBEDDING;
use super::{Columns, Importer, Ints, Val, names, refuse};
use crate::error::ImportError;
use crate::ir::{Activation, Op, Rows, ValueId};
use tangor_formats::onnx::{Attribute, Element, Graph, Node, Tensor};

impl<'a> Importer<'a> {
    pub(super) fn basic(&mut self, node: &'a Node) -> Result<(), ImportError> {
        if self.integers(node)? {
            return Ok(());
        }
        match node.op.as_str() {
            "Add" => self.add(node),
            "Cast" | "Identity" | "Unsqueeze" | "Squeeze" => self.same(node),
            "Constant" => self.constant_node(node),
            "DequantizeLinear" => self.dequantize_linear(node),
            "Gather" => self.gather(node),
            "Gelu" | "Swish" => self.activation(node),
            "If" => self.branch(node),
            "MatMul" => self.matmul(node),
            "Mul" => self.mul(node),
            "Reshape" => self.reshape(node),
            "Shape" => {
                self.set(node, 0, Val::Ints(Ints::Other));
                Ok(())
            }
            "Sigmoid" => {
                let x = self.columns(node, 0)?;
                self.set(node, 0, Val::Sigmoid(x));
                Ok(())
            }
            "Split" => self.split(node),
            "Transpose" => self.transpose(node),
            _ => Err(refuse(node, "no device of this program has such an operator")),
        }
    }

    /// Nodes that compute integers from masks, shapes and positions; false if this is none.
    fn integers(&mut self, node: &'a Node) -> Result<bool, ImportError> {
        if node.op == "Constant" || node.op == "If" || node.inputs.is_empty() {
            return Ok(false);
        }
        let mut ints = Vec::new();
        for index in 0..node.inputs.len() {
            match self.optional(node, index)? {
                Some(Val::Ints(value)) => ints.push(Some(*value)),
                Some(Val::Const(tensor)) if !matches!(tensor.element, Element::Float(_)) => {
                    ints.push(None);
                }
                None => {}
                Some(_) => return Ok(false),
            }
        }
        if ints.iter().all(Option::is_none) {
            return Ok(false);
        }
        let number = |index: usize| {
            let tensor = self.constant(node, index).ok()?;
            let [value] = list(tensor)?[..] else { return None };
            usize::try_from(value).ok()
        };
        let result = match (node.op.as_str(), &ints[..]) {
            ("Cast" | "Identity", &[Some(value)]) => value,
            ("Shape", [Some(Ints::Mask)]) => Ints::MaskShape,
            ("Gather", [Some(Ints::MaskShape), None]) if number(1) == Some(1) => Ints::Total,
            ("ReduceMax", [Some(Ints::Positions), ..]) => Ints::LastPosition,
            ("Greater", [Some(Ints::Total), None]) => longer(number(1)),
            ("GreaterOrEqual", [Some(Ints::Total), None]) => {
                longer(number(1).and_then(|n| n.checked_sub(1)))
            }
            // The last position is one less than the length.
            ("Greater", [Some(Ints::LastPosition), None]) => {
                longer(number(1).and_then(|n| n.checked_add(1)))
            }
            ("GreaterOrEqual", [Some(Ints::LastPosition), None]) => longer(number(1)),
            ("Mul", [Some(Ints::LongerThan(limit)), None]) => offset(*limit, number(1)),
            ("Mul", [None, Some(Ints::LongerThan(limit))]) => offset(*limit, number(0)),
            ("Add", [Some(Ints::Offset { limit, rows }), Some(Ints::Positions)])
            | ("Add", [Some(Ints::Positions), Some(Ints::Offset { limit, rows })]) => {
                Ints::OffsetPositions { limit: *limit, rows: *rows }
            }
            _ => Ints::Other,
        };
        for index in 0..node.outputs.len() {
            self.set(node, index, Val::Ints(result));
        }
        Ok(true)
    }

    /// The token ids, as input `index`.
    pub(super) fn expect_tokens(&self, node: &Node, index: usize) -> Result<(), ImportError> {
        match self.val(node, index)? {
            Val::Ints(Ints::Tokens) => Ok(()),
            other => Err(refuse(node, format!("it looks up {}, not token ids", other.kind()))),
        }
    }

    /// The activation, or the part of one, that input `index` is.
    pub(super) fn columns(&self, node: &Node, index: usize) -> Result<Columns, ImportError> {
        match self.val(node, index)? {
            Val::Rows(columns) => Ok(*columns),
            other => Err(refuse(node, format!("its input {index} is {}", other.kind()))),
        }
    }

    /// Nodes that change a type (everything is computed in `f32`) or a shape that does not matter.
    fn same(&mut self, node: &'a Node) -> Result<(), ImportError> {
        let val = self.val(node, 0)?.clone();
        let fits = match &val {
            // A cast to integers would round.
            Val::Rows(_) => node.op != "Cast" || node.int("to").is_none_or(is_float),
            Val::Ints(_) => true,
            Val::Const(_) | Val::Transposed(_) => node.op == "Identity",
            _ => false,
        };
        if !fits {
            let to = node.int("to").map_or(String::new(), |to| format!(" (to type {to})"));
            return Err(refuse(node, format!("it reads {}{to}", val.kind())));
        }
        self.set(node, 0, val);
        Ok(())
    }

    fn constant_node(&mut self, node: &'a Node) -> Result<(), ImportError> {
        let tensor = constant(node)
            .ok_or_else(|| refuse(node, "only constants that are tensors are supported"))?;
        let mut tensor = tensor.clone();
        if tensor.name.is_empty() {
            tensor.name = node.output(0).unwrap_or_default().to_owned();
        }
        self.set(node, 0, Val::Const(tensor));
        Ok(())
    }

    fn gather(&mut self, node: &'a Node) -> Result<(), ImportError> {
        let axis = node.int("axis").unwrap_or(0);
        match self.val(node, 0)?.clone() {
            Val::Const(table) if axis == 0 => {
                self.expect_tokens(node, 1)?;
                let table = self.matrix(node, &table, false, EMBEDDING)?;
                self.embed(node, table)
            }
            Val::Transposed(table) if axis == 0 => {
                self.expect_tokens(node, 1)?;
                let table = self.matrix(node, &table, true, EMBEDDING)?;
                self.embed(node, table)
            }
            Val::Rows(columns) if axis == 1 && self.is_whole(columns) => {
                let last = list(self.constant(node, 1)?).is_some_and(|index| index == [-1]);
                if !last {
                    return Err(refuse(node, "only the last token may be picked"));
                }
                let rows = self.selected(columns.of)?;
                self.set_rows(node, 0, rows);
                Ok(())
            }
            other => Err(refuse(node, format!("it gathers {} along axis {axis}", other.kind()))),
        }
    }

    /// The rows whose logits are wanted.
    fn selected(&mut self, value: ValueId) -> Result<ValueId, ImportError> {
        if self.graph.value(value).rows == Rows::Logits {
            return Ok(value);
        }
        self.push1("select_rows", Op::SelectRows, &[value])
    }

    fn matmul(&mut self, node: &'a Node) -> Result<(), ImportError> {
        let x = self.rows(node, 0)?;
        let weight = match self.val(node, 1)?.clone() {
            Val::Const(tensor) => {
                self.matrix(node, &tensor, true, &names::hugging_face(&tensor.name))?
            }
            Val::Transposed(tensor) => {
                self.matrix(node, &tensor, false, &names::hugging_face(&tensor.name))?
            }
            Val::Dequantized(weight) => weight,
            other => return Err(refuse(node, format!("it multiplies by {}", other.kind()))),
        };
        let name = self.module(weight);
        let y = self.push1(&name, Op::Linear { weight, bias: None }, &[x])?;
        self.set_rows(node, 0, y);
        Ok(())
    }

    fn transpose(&mut self, node: &'a Node) -> Result<(), ImportError> {
        let turned = match node.attribute("perm") {
            Some(Attribute::Ints(perm)) => perm[..] == [1, 0],
            Some(_) => false,
            None => true,
        };
        let val = match self.val(node, 0)?.clone() {
            Val::Const(tensor) if turned => Val::Transposed(tensor),
            Val::Transposed(tensor) if turned => Val::Const(tensor),
            other => return Err(refuse(node, format!("it transposes {}", other.kind()))),
        };
        self.set(node, 0, val);
        Ok(())
    }

    /// Two activations, or a bias after a linear.
    fn add(&mut self, node: &'a Node) -> Result<(), ImportError> {
        let (x, bias) = match (self.val(node, 0)?, self.val(node, 1)?) {
            (Val::Rows(x), Val::Const(bias)) => (*x, bias.clone()),
            (Val::Const(bias), Val::Rows(x)) => (*x, bias.clone()),
            _ => {
                let (a, b) = (self.rows(node, 0)?, self.rows(node, 1)?);
                let name = node.label().trim_matches('/').replace('/', ".");
                let sum = self.push1(&name, Op::Add, &[a, b])?;
                self.set_rows(node, 0, sum);
                return Ok(());
            }
        };
        let alone = node.inputs.iter().all(|name| {
            matches!(self.values.get(name.as_str()), Some(Val::Const(_)))
                || self.reads.get(name.as_str()) == Some(&1)
        });
        let first = self.first_names.get(&x.of).and_then(|name| self.reads.get(name));
        let alone = alone && first == Some(&1);
        let writer = &self.graph.nodes[self.writers[x.of.0]];
        let fits = alone && self.is_whole(x) && bias.elements() == x.width;
        if !fits || !matches!(writer.op, Op::Linear { bias: None, .. }) {
            return Err(refuse(node, "a constant may only be added as the bias of a linear"));
        }
        let id = self.vector(node, &bias)?;
        if let Op::Linear { bias, .. } = &mut self.graph.nodes[self.writers[x.of.0]].op {
            *bias = Some(id);
        }
        self.set(node, 0, Val::Rows(x));
        Ok(())
    }

    /// `x * sigmoid(x)`, `act(gate) * up`, or a constant factor.
    fn mul(&mut self, node: &'a Node) -> Result<(), ImportError> {
        let (a, b) = (self.val(node, 0)?.clone(), self.val(node, 1)?.clone());
        match (a, b) {
            (Val::Rows(x), Val::Sigmoid(of)) | (Val::Sigmoid(of), Val::Rows(x)) if x == of => {
                self.set(node, 0, Val::Activated(Activation::Silu, x));
                Ok(())
            }
            (Val::Activated(act, gate), Val::Rows(up))
            | (Val::Rows(up), Val::Activated(act, gate)) => self.gated(node, act, gate, up),
            (Val::Rows(x), Val::Const(factor)) | (Val::Const(factor), Val::Rows(x))
                if self.is_whole(x) && factor.elements() == 1 =>
            {
                let Some(&[factor]) = factor.floats().filter(|f| f[0].is_finite()).as_deref()
                else {
                    return Err(refuse(node, "its factor must be a finite float"));
                };
                let name = node.label().trim_matches('/').replace('/', ".");
                let y = self.push1(&name, Op::Scale(factor), &[x.of])?;
                self.set_rows(node, 0, y);
                Ok(())
            }
            (a, b) => {
                let why = format!("it multiplies {} by {}", a.kind(), b.kind());
                Err(refuse(node, why))
            }
        }
    }

    fn gated(
        &mut self,
        node: &'a Node,
        act: Activation,
        gate: Columns,
        up: Columns,
    ) -> Result<(), ImportError> {
        let inputs = if self.is_whole(gate) && self.is_whole(up) {
            vec![gate.of, up.of]
        } else {
            let halves = gate.of == up.of && (gate.start, up.start) == (0, gate.width);
            if !halves || gate.width * 2 != self.width(gate.of) || up.width != gate.width {
                return Err(refuse(node, "gate and up must be the halves of one activation"));
            }
            vec![gate.of]
        };
        let y = self.push_gated(act, &inputs)?;
        self.set_rows(node, 0, y);
        Ok(())
    }

    /// The gated activation of the layer whose attention came last.
    pub(super) fn push_gated(
        &mut self,
        act: Activation,
        inputs: &[ValueId],
    ) -> Result<ValueId, ImportError> {
        let layer = self.attentions.len().saturating_sub(1);
        let y = self.push1(&format!("layers.{layer}.gated"), Op::Gated(act), inputs)?;
        self.ffn = self.ffn.max(self.width(y));
        Ok(y)
    }

    pub(super) fn activation(&mut self, node: &'a Node) -> Result<(), ImportError> {
        self.left_out(node, &[(1, "bias")])?;
        let tanh = match node.attribute("approximate") {
            Some(Attribute::String(text)) => text[..] == *b"tanh",
            _ => false,
        };
        let unit = |default| node.float("alpha").unwrap_or(default).to_bits() == 1f32.to_bits();
        let act = match node.op.as_str() {
            "QuickGelu" if unit(1.702) => Activation::Silu,
            "Swish" if unit(1.0) => Activation::Silu,
            "FastGelu" => Activation::GeluTanh,
            "Gelu" if tanh => Activation::GeluTanh,
            "Gelu" => Activation::Gelu,
            _ => return Err(refuse(node, "its alpha must be 1")),
        };
        let x = self.columns(node, 0)?;
        self.set(node, 0, Val::Activated(act, x));
        Ok(())
    }

    /// Equal parts, or parts of the sizes that input 1 lists, of the last axis.
    fn split(&mut self, node: &'a Node) -> Result<(), ImportError> {
        let x = self.columns(node, 0)?;
        let axis = node.int("axis").unwrap_or(0);
        let parts = node.outputs.len().max(1);
        let sizes = match self.optional_constant(node, 1)? {
            Some(sizes) => list(sizes).unwrap_or_default(),
            None => vec![i64::try_from(x.width / parts).unwrap_or(0); parts],
        };
        let sizes: Vec<usize> = sizes.iter().filter_map(|&s| usize::try_from(s).ok()).collect();
        let whole = sizes.iter().try_fold(0usize, |sum, &size| sum.checked_add(size));
        if !matches!(axis, -1 | 2) || sizes.len() != parts || whole != Some(x.width) {
            return Err(refuse(node, "it must split the whole of the last axis"));
        }
        let mut start = x.start;
        for (index, width) in sizes.into_iter().enumerate() {
            self.set(node, index, Val::Rows(Columns { of: x.of, start, width }));
            start += width;
        }
        Ok(())
    }

    /// A constant in another shape, or rows as heads and back around a norm.
    fn reshape(&mut self, node: &'a Node) -> Result<(), ImportError> {
        let shape = list(self.constant(node, 1)?).unwrap_or_default();
        let last = shape.last().and_then(|&size| usize::try_from(size).ok()).unwrap_or(0);
        let val = match self.val(node, 0)?.clone() {
            Val::Const(mut tensor) => {
                tensor.dims = reshaped(&tensor, &shape).ok_or_else(|| {
                    refuse(node, format!("it makes {shape:?} of {:?}", tensor.dims))
                })?;
                Val::Const(tensor)
            }
            Val::Rows(x) if last == x.width && shape.len() == 3 => Val::Rows(x),
            Val::Rows(x) if last > 0 && x.width.is_multiple_of(last) => Val::Heads(x, last),
            Val::Heads(x, _) if last == x.width || (last == 0 && shape.len() == 3) => Val::Rows(x),
            other => {
                return Err(refuse(node, format!("it makes {shape:?} of {}", other.kind())));
            }
        };
        self.set(node, 0, val);
        Ok(())
    }

    pub(super) fn rms_norm(&mut self, node: &'a Node) -> Result<(), ImportError> {
        if !matches!(node.int("axis").unwrap_or(-1), -1 | 2 | 3) {
            return Err(refuse(node, "it must run along the last axis"));
        }
        let gain = self.constant(node, 1)?.clone();
        let (x, heads) = match *self.val(node, 0)? {
            Val::Heads(x, width) if gain.elements() == width => (self.part(node, x)?, true),
            _ => {
                let columns = self.columns(node, 0)?;
                (self.part(node, columns)?, false)
            }
        };
        if node.op == "SimplifiedLayerNormalization" && !heads && gain.elements() != self.width(x) {
            return Err(refuse(node, "its gain is not as long as its rows"));
        }
        let gain = self.vector(node, &gain)?;
        let op = Op::RmsNorm { gain, eps: epsilon(node)? };
        let name = self.module(gain);
        let y = self.push1(&name, op, &[x])?;
        let rows = self.whole(y);
        let width = self.graph.weight(gain).cols();
        self.set(node, 0, if heads { Val::Heads(rows, width) } else { Val::Rows(rows) });
        Ok(())
    }

    pub(super) fn skip_rms_norm(&mut self, node: &'a Node) -> Result<(), ImportError> {
        self.left_out(node, &[(3, "bias")])?;
        let (x, skip) = (self.rows(node, 0)?, self.rows(node, 1)?);
        let gain = self.constant(node, 2)?.clone();
        let [sum, y] = self.add_norm(node, x, skip, &gain, epsilon(node)?)?;
        self.set_rows(node, 0, y);
        self.set_rows(node, 3, sum);
        Ok(())
    }

    /// `x + skip`, and its norm.
    pub(super) fn add_norm(
        &mut self,
        node: &'a Node,
        x: ValueId,
        skip: ValueId,
        gain: &Tensor,
        eps: f32,
    ) -> Result<[ValueId; 2], ImportError> {
        let gain = self.vector(node, gain)?;
        let name = self.module(gain);
        let outputs = self.push(&name, Op::AddRmsNorm { gain, eps }, &[x, skip])?;
        Ok([outputs[0], outputs[1]])
    }

    /// The choice between two caches by the length of the sequence.
    fn branch(&mut self, node: &'a Node) -> Result<(), ImportError> {
        let &Val::Ints(Ints::LongerThan(limit)) = self.val(node, 0)? else {
            return Err(refuse(node, "only the length of the sequence may decide"));
        };
        let (Some(long), Some(short)) = (node.graph("then_branch"), node.graph("else_branch"))
        else {
            return Err(refuse(node, "it must have two branches"));
        };
        for index in 0..node.outputs.len() {
            let find = |graph| branch_constant(graph, index).cloned();
            let (Some(short), Some(long)) = (find(short), find(long)) else {
                return Err(refuse(node, "its branches must be constants"));
            };
            self.set(node, index, Val::ByLength(short, limit, long));
        }
        Ok(())
    }
}

/// What a norm adds to the mean.
pub(super) fn epsilon(node: &Node) -> Result<f32, ImportError> {
    let epsilon = node.float("epsilon").unwrap_or(1e-5);
    if (0.0..=1.0).contains(&epsilon) {
        return Ok(epsilon);
    }
    Err(refuse(node, format!("its epsilon is {epsilon}, not a number from 0 to 1")))
}

/// The numbers of a constant that lists sizes or says which one: a few, whatever the file claims.
fn list(tensor: &Tensor) -> Option<Vec<i64>> {
    const MOST: usize = 64;
    if tensor.elements() > MOST { None } else { tensor.integers() }
}

fn longer(limit: Option<usize>) -> Ints {
    limit.map_or(Ints::Other, Ints::LongerThan)
}

fn offset(limit: usize, rows: Option<usize>) -> Ints {
    rows.map_or(Ints::Other, |rows| Ints::Offset { limit, rows })
}

fn constant(node: &Node) -> Option<&Tensor> {
    if node.op == "Constant" { node.tensor("value") } else { None }
}

/// Whether ONNX numbers a float type so that loses no more than storing an activation does.
fn is_float(number: i64) -> bool {
    u64::try_from(number).is_ok_and(|n| matches!(Element::from_number(n), Element::Float(_)))
}

/// The constant that a branch gives as output `index`.
fn branch_constant(graph: &Graph, index: usize) -> Option<&Tensor> {
    let name = graph.outputs.get(index)?;
    let written = graph.nodes.iter().find(|node| node.output(0) == Some(name));
    written
        .and_then(constant)
        .or_else(|| graph.initializers.iter().find(|tensor| tensor.name == *name))
}

/// The dimensions that `Reshape` gives a constant (0 keeps one, -1 is what is left).
fn reshaped(tensor: &Tensor, shape: &[i64]) -> Option<Vec<usize>> {
    let mut dims = Vec::new();
    for (index, &size) in shape.iter().enumerate() {
        dims.push(match size {
            0 => *tensor.dims.get(index)?,
            -1 => 1,
            size => usize::try_from(size).ok()?,
        });
    }
    let known = tangor_tensor::checked_product(&dims).ok()?;
    if let Some(free) = shape.iter().position(|&size| size == -1) {
        dims[free] = tensor.elements().checked_div(known)?;
    }
    (dims.iter().product::<usize>() == tensor.elements()).then_some(dims)
}
