//! The protobuf message of an ONNX model, field by field (onnx-ml.proto, IR versions 3 to 13).
//!
//! Memory is bounded by the size of the message: fields are counted before room is made for them,
//! and whatever is kept is charged to an allowance first, so that a file of a million empty nodes
//! is refused, not expanded.

use super::wire::{Fields, Value, WireError, varints};
use super::{Attribute, Element, External, Graph, Node, OnnxModel, Tensor, shown};
use crate::{FormatError, Limits, Result};
use tangor_tensor::{Bytes, DType, checked_product};

/// Protobuf forbids messages of 2 GiB and more.
const MAX_MESSAGE: usize = (1 << 31) - 1;

/// Bytes of structures that a message of no size may take; every byte of a message allows two more.
const BASE_ALLOWANCE: usize = 12 << 20;

/// Bytes per name of a set of names.
type SetEntry = [u8; 40];

/// Parses the message in `file`; external data is left unresolved.
pub(super) fn model(file: &str, bytes: Bytes, limits: &Limits) -> Result<OnnxModel> {
    if bytes.len() > MAX_MESSAGE {
        return Err(FormatError::limit(file, "bytes of the message", bytes.len(), MAX_MESSAGE)
            .with_hint("save the model with its weights as external data"));
    }
    let allowance = BASE_ALLOWANCE.saturating_add(bytes.len().saturating_mul(2));
    let mut parser = Parser { file, limits, allowance, nodes: 0, tensors: 0, depth: 0 };
    let (mut graph, mut opsets, len) = (None, Vec::new(), bytes.len() as u64);
    parser.fields(bytes, |this, field, value| {
        match (field, value) {
            (7, Value::Bytes(bytes)) => {
                if graph.is_some() {
                    return Err(this.malformed("has two graphs"));
                }
                graph = Some(this.graph(bytes)?);
            }
            (8, Value::Bytes(bytes)) => {
                this.charge::<(String, i64)>(1)?;
                opsets.push(this.opset(bytes)?);
            }
            _ => {}
        }
        Ok(())
    })?;
    let graph = graph.ok_or_else(|| {
        FormatError::malformed(file, "has no graph")
            .with_hint("this is not an ONNX model, or it is cut short")
    })?;
    let (file, guards) = (file.to_owned(), Vec::new());
    Ok(OnnxModel { file, graph, opsets, bytes: len, guards, finite: false })
}

struct Parser<'a> {
    file: &'a str,
    limits: &'a Limits,
    /// Bytes of structures that may still be kept.
    allowance: usize,
    nodes: u64,
    tensors: u64,
    depth: usize,
}

impl Parser<'_> {
    fn malformed(&self, message: impl Into<String>) -> FormatError {
        FormatError::malformed(self.file, message)
    }

    fn wire(&self, error: WireError) -> FormatError {
        self.malformed(format!("has {error}"))
            .with_hint("this is not an ONNX model, or it is damaged")
    }

    /// Pays for `count` structures of type `T` before they are kept.
    fn charge<T>(&mut self, count: usize) -> Result<()> {
        let cost = count.saturating_mul(size_of::<T>());
        self.allowance = self.allowance.checked_sub(cost).ok_or_else(|| {
            let message = "describes far more than its size accounts for";
            FormatError::new(crate::ErrorKind::Limit, self.file, message)
                .with_hint("no exporter writes such files; get the model from another place")
        })?;
        Ok(())
    }

    /// Calls `each` with every field of a message.
    fn fields(
        &mut self,
        message: Bytes,
        mut each: impl FnMut(&mut Self, u64, Value) -> Result<()>,
    ) -> Result<()> {
        let mut fields = Fields::new(message);
        while let Some((field, value)) = fields.next().map_err(|error| self.wire(error))? {
            each(self, field, value)?;
        }
        Ok(())
    }

    /// How often each of `wanted` occurs in a message.
    fn counts<const N: usize>(&self, message: &Bytes, wanted: [u64; N]) -> Result<[usize; N]> {
        let mut counts = [0usize; N];
        let mut fields = Fields::new(message.clone());
        while let Some((field, _)) = fields.next().map_err(|error| self.wire(error))? {
            for (count, _) in counts.iter_mut().zip(wanted).filter(|(_, wanted)| *wanted == field) {
                *count = count.saturating_add(1);
            }
        }
        Ok(counts)
    }

    /// Room for exactly `count` items.
    fn room<T>(&mut self, count: usize) -> Result<Vec<T>> {
        self.charge::<T>(count)?;
        Ok(Vec::with_capacity(count))
    }

    fn string(&mut self, bytes: &Bytes) -> Result<String> {
        self.charge::<u8>(bytes.len())?;
        // Copied first: a mapped file may change under the check.
        String::from_utf8(bytes.to_vec())
            .map_err(|_| self.malformed("has a name that is not UTF-8"))
    }

    fn opset(&mut self, message: Bytes) -> Result<(String, i64)> {
        let mut opset = (String::new(), 0);
        self.fields(message, |this, field, value| {
            match (field, value) {
                (1, Value::Bytes(bytes)) => opset.0 = this.string(&bytes)?,
                (2, Value::Varint(version)) => opset.1 = version.cast_signed(),
                _ => {}
            }
            Ok(())
        })?;
        Ok(opset)
    }

    fn graph(&mut self, message: Bytes) -> Result<Graph> {
        if self.depth > self.limits.onnx_depth {
            let (found, limit) = (self.depth, self.limits.onnx_depth);
            return Err(FormatError::limit(self.file, "depth of subgraphs", found, limit));
        }
        self.depth = self.depth.saturating_add(1);
        let [nodes, initializers, inputs, outputs] = self.counts(&message, [1, 5, 11, 12])?;
        self.count_nodes(nodes, initializers)?;
        let mut graph = Graph {
            nodes: self.room(nodes)?,
            initializers: self.room(initializers)?,
            inputs: self.room(inputs)?,
            outputs: self.room(outputs)?,
        };
        self.fields(message, |this, field, value| {
            match (field, value) {
                (1, Value::Bytes(bytes)) => graph.nodes.push(this.node(bytes)?),
                (5, Value::Bytes(bytes)) => graph.initializers.push(this.tensor(bytes)?),
                (11, Value::Bytes(bytes)) => graph.inputs.push(this.value_name(bytes)?),
                (12, Value::Bytes(bytes)) => graph.outputs.push(this.value_name(bytes)?),
                (15, _) => return Err(this.malformed("has sparse initializers")),
                _ => {}
            }
            Ok(())
        })?;
        self.depth = self.depth.saturating_sub(1);
        let outputs: usize = graph.nodes.iter().map(|node| node.outputs.len()).sum();
        self.charge::<SetEntry>(inputs.max(initializers.saturating_add(outputs)))?;
        graph.check_names(self.file)?;
        Ok(graph)
    }

    fn count_nodes(&mut self, nodes: usize, tensors: usize) -> Result<()> {
        self.nodes = self.nodes.saturating_add(nodes as u64);
        if self.nodes > self.limits.onnx_nodes {
            let limit = self.limits.onnx_nodes;
            return Err(FormatError::limit(self.file, "nodes", self.nodes, limit));
        }
        self.tensors = self.tensors.saturating_add(tensors as u64);
        if self.tensors > self.limits.tensors {
            let limit = self.limits.tensors;
            return Err(FormatError::limit(self.file, "tensors", self.tensors, limit));
        }
        Ok(())
    }

    fn value_name(&mut self, message: Bytes) -> Result<String> {
        let mut name = String::new();
        self.fields(message, |this, field, value| {
            if let (1, Value::Bytes(bytes)) = (field, value) {
                name = this.string(&bytes)?;
            }
            Ok(())
        })?;
        Ok(name)
    }

    fn node(&mut self, message: Bytes) -> Result<Node> {
        let [inputs, outputs, attributes] = self.counts(&message, [1, 2, 5])?;
        let mut node = Node {
            inputs: self.room(inputs)?,
            outputs: self.room(outputs)?,
            attributes: self.room(attributes)?,
            ..Node::default()
        };
        self.fields(message, |this, field, value| {
            let Value::Bytes(bytes) = value else { return Ok(()) };
            match field {
                1 => node.inputs.push(this.string(&bytes)?),
                2 => node.outputs.push(this.string(&bytes)?),
                3 => node.name = this.string(&bytes)?,
                4 => node.op = this.string(&bytes)?,
                5 => node.attributes.push(this.attribute(bytes)?),
                7 => node.domain = this.string(&bytes)?,
                _ => {}
            }
            Ok(())
        })?;
        // Both spellings name the default domain.
        if node.domain == "ai.onnx" {
            node.domain.clear();
        }
        Ok(node)
    }

    fn attribute(&mut self, message: Bytes) -> Result<(String, Attribute)> {
        let (mut name, mut found) = (String::new(), Attribute::Other);
        let [single_floats, single_ints] = self.counts(&message, [7, 8])?;
        let mut floats: Vec<f32> = self.room(single_floats)?;
        let mut ints = self.room(single_ints)?;
        self.fields(message, |this, field, value| {
            match (field, value) {
                (1, Value::Bytes(bytes)) => name = this.string(&bytes)?,
                (2, Value::Fixed32(bytes)) => found = Attribute::Float(f32::from_le_bytes(bytes)),
                (3, Value::Varint(value)) => found = Attribute::Int(value.cast_signed()),
                (4, Value::Bytes(bytes)) => found = Attribute::String(bytes),
                (5, Value::Bytes(bytes)) => {
                    this.count_nodes(0, 1)?;
                    this.charge::<Tensor>(1)?;
                    found = Attribute::Tensor(Box::new(this.tensor(bytes)?));
                }
                (6, Value::Bytes(bytes)) => {
                    this.charge::<Graph>(1)?;
                    found = Attribute::Graph(Box::new(this.graph(bytes)?));
                }
                (7, Value::Fixed32(bytes)) => floats.push(f32::from_le_bytes(bytes)),
                (7, Value::Bytes(bytes)) => {
                    let chunks = bytes.as_chunks::<4>().0;
                    this.charge::<f32>(chunks.len())?;
                    floats.reserve_exact(chunks.len());
                    floats.extend(chunks.iter().map(|&b| f32::from_le_bytes(b)));
                }
                (8, value) => this.integers(value, &mut ints)?,
                _ => {}
            }
            Ok(())
        })?;
        if !floats.is_empty() {
            found = Attribute::Floats(floats);
        } else if !ints.is_empty() {
            found = Attribute::Ints(ints);
        }
        Ok((name, found))
    }

    /// A repeated integer field, packed or not; `out` has room for those that are not.
    fn integers(&mut self, value: Value, out: &mut Vec<i64>) -> Result<()> {
        match value {
            Value::Varint(value) => out.push(value.cast_signed()),
            Value::Bytes(packed) => {
                // The last byte of each has its top bit clear.
                let count = packed.iter().filter(|&&byte| byte < 0x80).count();
                self.charge::<i64>(count)?;
                out.reserve_exact(count);
                for value in varints(packed) {
                    out.push(value.map_err(|error| self.wire(error))?.cast_signed());
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn tensor(&mut self, message: Bytes) -> Result<Tensor> {
        let [dims, narrow, wide] = self.counts(&message, [1, 5, 7])?;
        let mut fields = TensorFields {
            dims: self.room(dims)?,
            ints: self.room(narrow.saturating_add(wide))?,
            ..TensorFields::default()
        };
        self.fields(message, |this, field, value| this.tensor_field(&mut fields, field, value))?;
        let TensorFields { name, dims, element, location, external, .. } = &mut fields;
        let mut tensor = Tensor {
            name: std::mem::take(name),
            dims: self.shape(name, dims)?,
            element: *element,
            data: Bytes::new(),
            external: (*location == 1).then(|| Box::new(std::mem::take(external))),
        };
        if tensor.external.is_none()
            && let Some(needed) = tensor.byte_len()
        {
            tensor.data = self.inline_data(fields)?;
            let found = tensor.data.len();
            if found != needed {
                let name = shown(&tensor.name);
                return Err(self.malformed(format!(
                    "has {found} bytes for the tensor {name}, whose shape needs {needed}"
                )));
            }
        }
        Ok(tensor)
    }

    fn tensor_field(&mut self, fields: &mut TensorFields, field: u64, value: Value) -> Result<()> {
        match (field, value) {
            (1, value) => self.integers(value, &mut fields.dims)?,
            (2, Value::Varint(number)) => fields.element = Element::from_number(number),
            (3, _) => return Err(self.malformed("has a tensor in segments")),
            (4, Value::Bytes(bytes)) if fields.floats.is_empty() => fields.floats = bytes,
            (4, _) => return Err(self.malformed("has a tensor with its numbers in pieces")),
            (5 | 7, value) => self.integers(value, &mut fields.ints)?,
            (8, Value::Bytes(bytes)) => fields.name = self.string(&bytes)?,
            (9, Value::Bytes(bytes)) => fields.raw = Some(bytes),
            (13, Value::Bytes(bytes)) => self.external_entry(bytes, &mut fields.external)?,
            (14, Value::Varint(location)) => fields.location = location,
            _ => {}
        }
        Ok(())
    }

    fn shape(&self, name: &str, dims: &[i64]) -> Result<Vec<usize>> {
        if dims.len() > self.limits.dims {
            let (found, limit) = (dims.len(), self.limits.dims);
            return Err(FormatError::limit(self.file, "dimensions of a tensor", found, limit));
        }
        let sizes: Option<Vec<usize>> = dims.iter().map(|&dim| usize::try_from(dim).ok()).collect();
        // Eight bytes per element must fit, whatever the type: no later product can wrap.
        sizes
            .filter(|sizes| {
                let nonzero: Vec<usize> = sizes.iter().map(|&s| s.max(1)).chain([8]).collect();
                checked_product(&nonzero).is_ok()
            })
            .ok_or_else(|| {
                let name = shown(name);
                self.malformed(format!("has the tensor {name} of the impossible shape {dims:?}"))
            })
    }

    /// The elements of a tensor whose data is in the message, as little-endian bytes.
    fn inline_data(&mut self, fields: TensorFields) -> Result<Bytes> {
        if let Some(raw) = fields.raw {
            return Ok(raw);
        }
        if fields.element == Element::Float(DType::F32) {
            return Ok(fields.floats);
        }
        // Narrow types lie in 32-bit fields, one element (4-bit types: two) each.
        let width = fields.element.bits().unwrap_or(0).div_ceil(8);
        self.charge::<u8>(fields.ints.len().saturating_mul(width))?;
        let bytes =
            fields.ints.iter().flat_map(|value| value.to_le_bytes().into_iter().take(width));
        Ok(bytes.collect::<Vec<u8>>().into())
    }

    fn external_entry(&mut self, message: Bytes, external: &mut External) -> Result<()> {
        let (mut key, mut text) = (Bytes::new(), Bytes::new());
        self.fields(message, |_, field, value| {
            match (field, value) {
                (1, Value::Bytes(bytes)) => key = bytes,
                (2, Value::Bytes(bytes)) => text = bytes,
                _ => {}
            }
            Ok(())
        })?;
        let text = self.string(&text)?;
        let number = || {
            text.parse::<u64>().map_err(|_| {
                let text = shown(&text);
                self.malformed(format!("has external data whose offset or length is {text}"))
            })
        };
        match &key[..] {
            b"location" => external.location = text,
            b"offset" => external.offset = number()?,
            b"length" => external.length = Some(number()?),
            _ => {}
        }
        Ok(())
    }
}

/// The fields of a tensor's message.
struct TensorFields {
    name: String,
    dims: Vec<i64>,
    element: Element,
    floats: Bytes,
    ints: Vec<i64>,
    raw: Option<Bytes>,
    location: u64,
    external: External,
}

impl Default for TensorFields {
    fn default() -> Self {
        Self {
            name: String::new(),
            dims: Vec::new(),
            element: Element::Other(0),
            floats: Bytes::new(),
            ints: Vec::new(),
            raw: None,
            location: 0,
            external: External::default(),
        }
    }
}
