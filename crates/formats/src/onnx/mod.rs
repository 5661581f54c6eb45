//! ONNX models: the graph of a `model.onnx` with its initializers, external data included.
//!
//! [`OnnxModel::open`] reads the protobuf message, then proves every tensor's bytes to lie inside
//! its file; nothing is copied. What nodes compute is for the reader of the graph to judge: nothing
//! here knows operators.

mod parse;
mod wire;

use crate::{FormatError, Limits, Result, Source, check_file_name};
use std::collections::{BTreeMap, HashSet};
use tangor_tensor::{Bytes, DType, MapGuard};

/// A parsed model.
#[derive(Debug)]
pub struct OnnxModel {
    /// Name of its file, for messages.
    pub file: String,
    /// The main graph.
    pub graph: Graph,
    /// Versions of the operator sets it uses, by domain (`""` is `ai.onnx`).
    pub opsets: Vec<(String, i64)>,
    /// Bytes of all its files.
    pub bytes: u64,
    /// The mapped files, to be checked for changes once their bytes have been read.
    pub guards: Vec<(String, MapGuard)>,
    /// Whether every number is known to be finite; if not, whoever makes weights of the constants
    /// has to see to it.
    pub finite: bool,
}

/// A graph: the main one, or a branch of an `If`.
#[derive(Debug, Default)]
pub struct Graph {
    /// Operations, as a rule in an order in which they can run.
    pub nodes: Vec<Node>,
    /// Constants by name.
    pub initializers: Vec<Tensor>,
    /// Names of the inputs.
    pub inputs: Vec<String>,
    /// Names of the outputs.
    pub outputs: Vec<String>,
}

/// An operation.
#[derive(Debug, Default)]
pub struct Node {
    /// Its name, often empty in hand-made graphs.
    pub name: String,
    /// Operator, as `MatMulNBits`.
    pub op: String,
    /// The operator's domain: `""` (`ai.onnx`), `com.microsoft`, ….
    pub domain: String,
    /// Names of the values read; empty where an optional input is left out.
    pub inputs: Vec<String>,
    /// Names of the values written; empty where an optional output is left out.
    pub outputs: Vec<String>,
    /// Attributes in the order of the file.
    pub attributes: Vec<(String, Attribute)>,
}

/// The value of an attribute.
#[derive(Debug)]
pub enum Attribute {
    /// A number.
    Float(f32),
    /// An integer.
    Int(i64),
    /// Bytes, as a rule UTF-8.
    String(Bytes),
    /// A constant.
    Tensor(Box<Tensor>),
    /// A subgraph.
    Graph(Box<Graph>),
    /// Numbers.
    Floats(Vec<f32>),
    /// Integers.
    Ints(Vec<i64>),
    /// Something that no importer asks for.
    Other,
}

/// Type of a tensor's elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Element {
    /// A float type.
    Float(DType),
    /// Unsigned bytes.
    U8,
    /// Signed bytes.
    I8,
    /// 32-bit integers.
    I32,
    /// 64-bit integers.
    I64,
    /// One byte each, 0 or 1.
    Bool,
    /// Unsigned 4-bit integers, two to a byte, the first in the low half.
    U4,
    /// Signed 4-bit integers, two to a byte, the first in the low half.
    I4,
    /// Another type, by its number in ONNX; its bytes are never read.
    Other(u64),
}

impl Element {
    /// Bits of one element; `None` for types that are never read.
    #[must_use]
    pub const fn bits(self) -> Option<usize> {
        match self {
            Self::Float(dtype) => Some(dtype.size().saturating_mul(8)),
            Self::U8 | Self::I8 | Self::Bool => Some(8),
            Self::I32 => Some(32),
            Self::I64 => Some(64),
            Self::U4 | Self::I4 => Some(4),
            Self::Other(_) => None,
        }
    }

    /// The type that ONNX numbers so (`TensorProto.DataType`).
    #[must_use]
    pub const fn from_number(number: u64) -> Self {
        match number {
            1 => Self::Float(DType::F32),
            2 => Self::U8,
            3 => Self::I8,
            6 => Self::I32,
            7 => Self::I64,
            9 => Self::Bool,
            10 => Self::Float(DType::F16),
            16 => Self::Float(DType::Bf16),
            21 => Self::U4,
            22 => Self::I4,
            other => Self::Other(other),
        }
    }
}

/// A constant.
#[derive(Clone, Debug)]
pub struct Tensor {
    /// Its name; attributes may have none.
    pub name: String,
    /// Shape; no dimensions: one element.
    pub dims: Vec<usize>,
    /// Type of the elements.
    pub element: Element,
    /// The elements, little-endian and row-major, exactly as many as the shape says. Empty where
    /// [`Element::bits`] is `None`.
    pub data: Bytes,
    external: Option<Box<External>>,
}

/// Where a tensor's bytes lie in another file.
#[derive(Clone, Debug, Default)]
struct External {
    location: String,
    offset: u64,
    length: Option<u64>,
}

impl OnnxModel {
    /// Reads `file` of `source` and maps its external data.
    ///
    /// # Errors
    /// [`FormatError`] if a file is missing, the message is damaged or larger than `limits` allow,
    /// or a tensor lies outside its file.
    pub fn open(source: &dyn Source, file: &str, limits: &Limits) -> Result<Self> {
        check_file_name(source.name(), file)?;
        let (bytes, guard) = source
            .map(file)?
            .ok_or_else(|| FormatError::missing(file, "is not in the checkpoint's folder"))?;
        let mut model = parse::model(file, bytes, limits)?;
        model.guards.push((file.to_owned(), guard));
        let mut files = ExternalFiles { source, limits, model: file, maps: BTreeMap::new() };
        files.resolve_graph(&mut model.graph)?;
        let external = files.maps.values().map(|(bytes, _)| bytes.len() as u64);
        model.bytes = external.fold(model.bytes, u64::saturating_add);
        model.guards.extend(files.maps.into_iter().map(|(name, (_, guard))| (name, guard)));
        Ok(model)
    }
}

impl Graph {
    /// Refuses names that are written twice, which the format forbids: what the graph means would
    /// depend on who reads it.
    fn check_names(&self, file: &str) -> Result<()> {
        let outputs = || self.nodes.iter().flat_map(|node| &node.outputs);
        let written = self.initializers.len().saturating_add(outputs().count());
        let mut seen = HashSet::with_capacity(written.max(self.inputs.len()));
        for name in &self.inputs {
            if !seen.insert(name.as_str()) {
                return Err(twice(file, "input", name));
            }
        }
        // An initializer may have an input's name: it is that input's default.
        seen.clear();
        for tensor in &self.initializers {
            if tensor.name.is_empty() {
                return Err(FormatError::malformed(file, "has an initializer without a name"));
            }
            if !seen.insert(tensor.name.as_str()) {
                return Err(twice(file, "initializer", &tensor.name));
            }
        }
        for name in outputs().filter(|name| !name.is_empty()) {
            if !seen.insert(name.as_str()) {
                return Err(twice(file, "value", name));
            }
        }
        Ok(())
    }
}

fn twice(file: &str, what: &str, name: &str) -> FormatError {
    FormatError::malformed(file, format!("defines the {what} {} twice", shown(name)))
}

/// The start of a name, quoted: names from files may be of any length and hold anything.
fn shown(name: &str) -> String {
    const CHARS: usize = 80;
    match name.char_indices().nth(CHARS) {
        Some((end, _)) => format!("{:?}…", name.get(..end).unwrap_or_default()),
        None => format!("{name:?}"),
    }
}

impl Node {
    /// What to call the node in messages: its name, or its first output's.
    #[must_use]
    pub fn label(&self) -> &str {
        let named = (!self.name.is_empty()).then_some(self.name.as_str());
        named.or(self.outputs.first().map(String::as_str)).unwrap_or("(unnamed)")
    }

    /// The name of input `index`, unless it is left out.
    #[must_use]
    pub fn input(&self, index: usize) -> Option<&str> {
        self.inputs.get(index).map(String::as_str).filter(|name| !name.is_empty())
    }

    /// The name of output `index`, unless it is left out.
    #[must_use]
    pub fn output(&self, index: usize) -> Option<&str> {
        self.outputs.get(index).map(String::as_str).filter(|name| !name.is_empty())
    }

    /// The attribute `name`.
    #[must_use]
    pub fn attribute(&self, name: &str) -> Option<&Attribute> {
        self.attributes.iter().find(|(found, _)| found == name).map(|(_, value)| value)
    }

    /// The integer attribute `name`; `None` if there is none, or not of that type.
    #[must_use]
    pub fn int(&self, name: &str) -> Option<i64> {
        match self.attribute(name) {
            Some(Attribute::Int(value)) => Some(*value),
            _ => None,
        }
    }

    /// The number attribute `name`; `None` if there is none, or not of that type.
    #[must_use]
    pub fn float(&self, name: &str) -> Option<f32> {
        match self.attribute(name) {
            Some(Attribute::Float(value)) => Some(*value),
            _ => None,
        }
    }

    /// The subgraph attribute `name`; `None` if there is none, or not of that type.
    #[must_use]
    pub fn graph(&self, name: &str) -> Option<&Graph> {
        match self.attribute(name) {
            Some(Attribute::Graph(graph)) => Some(graph),
            _ => None,
        }
    }

    /// The constant attribute `name`; `None` if there is none, or not of that type.
    #[must_use]
    pub fn tensor(&self, name: &str) -> Option<&Tensor> {
        match self.attribute(name) {
            Some(Attribute::Tensor(tensor)) => Some(tensor),
            _ => None,
        }
    }
}

impl Tensor {
    /// Number of elements.
    #[must_use]
    pub fn elements(&self) -> usize {
        // The product fits: parsing has checked it.
        self.dims.iter().product()
    }

    /// The elements as integers, if they are of an integer type of 8 bits or more.
    #[must_use]
    pub fn integers(&self) -> Option<Vec<i64>> {
        Some(match self.element {
            Element::U8 | Element::Bool => self.data.iter().map(|&b| i64::from(b)).collect(),
            Element::I8 => self.data.iter().map(|&b| i64::from(i8::from_le_bytes([b]))).collect(),
            Element::I32 => {
                let chunks = self.data.as_chunks::<4>().0;
                chunks.iter().map(|&b| i64::from(i32::from_le_bytes(b))).collect()
            }
            Element::I64 => {
                self.data.as_chunks::<8>().0.iter().map(|&b| i64::from_le_bytes(b)).collect()
            }
            _ => return None,
        })
    }

    /// The elements as `f32`, if they are floats.
    #[must_use]
    pub fn floats(&self) -> Option<Vec<f32>> {
        let Element::Float(dtype) = self.element else { return None };
        let mut out = vec![0.0; self.elements()];
        dtype.widen(&self.data, &mut out);
        Some(out)
    }

    /// Bytes that the shape needs; `None` if the type is never read.
    fn byte_len(&self) -> Option<usize> {
        let (elements, bits) = (self.elements(), self.element.bits()?);
        Some(if bits == 4 { elements.div_ceil(2) } else { elements.saturating_mul(bits / 8) })
    }
}

/// The files beside the model, each mapped once.
struct ExternalFiles<'a> {
    source: &'a dyn Source,
    limits: &'a Limits,
    model: &'a str,
    maps: BTreeMap<String, (Bytes, MapGuard)>,
}

impl ExternalFiles<'_> {
    fn resolve_graph(&mut self, graph: &mut Graph) -> Result<()> {
        for tensor in &mut graph.initializers {
            self.resolve(tensor)?;
        }
        let attributes = graph.nodes.iter_mut().flat_map(|node| &mut node.attributes);
        for (_, attribute) in attributes {
            match attribute {
                Attribute::Tensor(tensor) => self.resolve(tensor)?,
                Attribute::Graph(graph) => self.resolve_graph(graph)?,
                _ => {}
            }
        }
        Ok(())
    }

    fn resolve(&mut self, tensor: &mut Tensor) -> Result<()> {
        let Some(external) = tensor.external.take() else { return Ok(()) };
        let Some(needed) = tensor.byte_len() else { return Ok(()) };
        let subject = || format!("{}: tensor {}", self.model, shown(&tensor.name));
        check_file_name(&subject(), &external.location)?;
        if let Some(length) = external.length
            && usize::try_from(length) != Ok(needed)
        {
            return Err(FormatError::malformed(
                subject(),
                format!("its shape needs {needed} bytes, and its external data has {length}"),
            ));
        }
        if !self.maps.contains_key(&external.location) {
            if self.maps.len() >= self.limits.shards {
                let (limit, found) = (self.limits.shards, "more than that");
                return Err(FormatError::limit(self.model, "weight files", found, limit));
            }
            let map = self.source.map(&external.location)?.ok_or_else(|| {
                FormatError::missing(
                    external.location.as_str(),
                    format!("holds weights of {} and is not in its folder", self.model),
                )
            })?;
            self.maps.insert(external.location.clone(), map);
        }
        let Some((bytes, _)) = self.maps.get(&external.location) else { return Ok(()) };
        let range = usize::try_from(external.offset)
            .ok()
            .and_then(|start| Some(start..start.checked_add(needed)?))
            .filter(|range| range.end <= bytes.len());
        let Some(range) = range else {
            let asked = (external.offset, needed as u64);
            return Err(FormatError::truncated(
                external.location.as_str(),
                format_args!("the tensor {}", shown(&tensor.name)),
                asked,
                bytes.len() as u64,
            ));
        };
        tensor.data = bytes.slice(range);
        Ok(())
    }
}
