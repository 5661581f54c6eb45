//! Constants of the file as weights: shared where two nodes read the same one, and with their bytes
//! as they are wherever the layout allows.

use super::{Importer, Val, names, refuse};
use crate::error::ImportError;
use crate::ir::{Op, ValueId, WeightId, free_name};
use tangor_formats::check_finite;
use tangor_formats::onnx::{Element, Node, Tensor};
use tangor_tensor::{Bytes, DType, Scales, Weight, WeightError, Zeros};

/// What makes two readings of constants the same weight.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key {
    /// Names of the constants.
    names: [String; 3],
    /// Rows, columns, bits and group, or what else tells readings apart.
    form: [usize; 4],
}

/// Shape and grouping of a quantised matrix.
#[derive(Clone, Copy, Debug)]
pub(super) struct Quantized {
    pub(super) rows: usize,
    pub(super) cols: usize,
    pub(super) bits: u8,
    pub(super) group: usize,
}

impl Quantized {
    /// Reads `N`, `K`, `bits` and `block_size`, whose names start with `prefix`.
    pub(super) fn attributes(node: &Node, prefix: &str) -> Result<Self, ImportError> {
        let read = |name: &str, default: Option<i64>| {
            let name = format!("{prefix}{name}");
            node.int(&name)
                .or(default)
                .and_then(|value| usize::try_from(value).ok())
                .filter(|&value| value > 0)
                .ok_or_else(|| refuse(node, format!("its attribute {name:?} must be positive")))
        };
        let (bits, group) = (read("bits", Some(4))?, read("block_size", None)?);
        if group > MAX_GROUP {
            return Err(refuse(node, format!("blocks of {group} (at most {MAX_GROUP})")));
        }
        if bits != 4 && bits != 8 {
            return Err(refuse(node, format!("weights of {bits} bits (4 and 8 are supported)")));
        }
        let bits = if bits == 4 { 4 } else { 8 };
        Ok(Self { rows: read("N", None)?, cols: read("K", None)?, bits, group })
    }
}

/// Largest group of weights with one scale: whole rows of any real matrix.
const MAX_GROUP: usize = 1 << 16;

fn weight_error(name: &str) -> impl Fn(WeightError) -> ImportError + '_ {
    move |source| ImportError::Weight { name: name.to_owned(), source }
}

impl<'a> Importer<'a> {
    /// Adds a weight under a Hugging Face name, once per key.
    pub(super) fn add_weight(
        &mut self,
        key: Key,
        name: &str,
        make: impl FnOnce() -> Result<Weight, ImportError>,
    ) -> Result<WeightId, ImportError> {
        if let Some(&id) = self.weights.get(&key) {
            return Ok(id);
        }
        let weight = make()?;
        if !self.model.finite {
            let stored = key.names.first().map_or(name, String::as_str);
            check_finite(&weight).map_err(weight_error(stored))?;
        }
        let name = free_name(&mut self.taken, name);
        let id = WeightId(self.graph.weights.len());
        self.graph.weights.push(crate::ir::NamedWeight { name, weight });
        self.weights.insert(key, id);
        Ok(id)
    }

    /// Makes room for a weight that is copied into another layout. Each is copied once, so the
    /// files' own size is enough, unless many tensors are the same bytes.
    fn copied(&mut self, node: &Node, bytes: usize) -> Result<(), ImportError> {
        self.allowance = self
            .allowance
            .checked_sub(bytes)
            .ok_or_else(|| refuse(node, "the file's tensors overlap too much"))?;
        Ok(())
    }

    /// A gain or a bias: one row.
    pub(super) fn vector(&mut self, node: &Node, tensor: &Tensor) -> Result<WeightId, ImportError> {
        let Element::Float(dtype) = tensor.element else {
            return Err(refuse(node, format!("{:?} must be floats", tensor.name)));
        };
        let key = Key {
            names: [tensor.name.clone(), String::new(), String::new()],
            form: [1, tensor.elements(), 0, 0],
        };
        let name = names::hugging_face(&tensor.name);
        let (len, data) = (tensor.elements(), tensor.data.clone());
        self.add_weight(key, &name, || {
            Weight::dense(dtype, 1, len, data).map_err(weight_error(&tensor.name))
        })
    }

    /// A matrix of floats, `(rows, cols)` as it is or `(cols, rows)` to be turned around.
    pub(super) fn matrix(
        &mut self,
        node: &Node,
        tensor: &Tensor,
        turn: bool,
        name: &str,
    ) -> Result<WeightId, ImportError> {
        let (Element::Float(dtype), &[first, second]) = (tensor.element, &tensor.dims[..]) else {
            return Err(refuse(node, format!("{:?} must be a matrix of floats", tensor.name)));
        };
        if tensor.elements() == 0 {
            return Err(refuse(node, format!("{:?} is empty", tensor.name)));
        }
        let (rows, cols) = if turn { (second, first) } else { (first, second) };
        let key = Key {
            names: [tensor.name.clone(), String::new(), String::new()],
            form: [rows, cols, usize::from(turn), 0],
        };
        if turn && !self.weights.contains_key(&key) {
            self.copied(node, tensor.data.len())?;
        }
        self.add_weight(key, name, || {
            let data = if turn {
                transposed(dtype, first, second, &tensor.data)
            } else {
                tensor.data.clone()
            };
            Weight::dense(dtype, rows, cols, data).map_err(weight_error(&tensor.name))
        })
    }

    /// Codes, scales and zero points as `MatMulNBits` has them, the bytes as they are.
    pub(super) fn grouped(
        &mut self,
        node: &Node,
        form: Quantized,
        (codes, scales, zeros): (&Tensor, &Tensor, Option<&Tensor>),
        name: &str,
    ) -> Result<WeightId, ImportError> {
        if codes.data.is_empty() {
            let why = "has no bytes: it was moved to a file for one kind of processor";
            return Err(refuse(node, format!("its weight {:?} {why}", codes.name)));
        }
        let Element::Float(scale_type) = scales.element else {
            return Err(refuse(node, "its scales must be floats"));
        };
        let zeros_val = match zeros.map(|zeros| (zeros.element, zeros.data.clone())) {
            None => Zeros::Middle,
            Some((Element::U8, data)) => Zeros::Packed(data),
            Some((Element::Float(dtype), data)) => Zeros::Float(dtype, data),
            Some(_) => return Err(refuse(node, "its zero points must be bytes or floats")),
        };
        let zeros_name = zeros.map_or("", |zeros| zeros.name.as_str());
        let key = Key {
            names: [codes.name.clone(), scales.name.clone(), zeros_name.to_owned()],
            form: [form.rows, form.cols, usize::from(form.bits), form.group],
        };
        let scales = Scales { dtype: scale_type, bytes: scales.data.clone() };
        self.add_weight(key, name, || {
            let (unit, shape) = ((form.bits, form.group), (form.rows, form.cols));
            Weight::grouped(unit, shape, codes.data.clone(), scales, zeros_val)
                .map_err(weight_error(&codes.name))
        })
    }

    /// `MatMulNBits`, Microsoft's (A, B, scales, zero points, group indices, bias) and AMD's (A, B,
    /// scales, zero points, bias, and a copy for the NPU).
    pub(super) fn matmul_nbits(&mut self, node: &'a Node) -> Result<(), ImportError> {
        let x = self.rows(node, 0)?;
        let form = Quantized::attributes(node, "")?;
        let bias = if node.domain == "com.ryzenai" {
            4
        } else {
            self.check_group_index(node, form)?;
            5
        };
        let y = self.quantized_linear(node, x, form, [1, 2, 3, bias])?;
        self.set_rows(node, 0, y);
        Ok(())
    }

    /// A linear whose codes, scales, zero points and bias are these inputs of a node.
    pub(super) fn quantized_linear(
        &mut self,
        node: &'a Node,
        x: ValueId,
        form: Quantized,
        [codes, scales, zeros, bias]: [usize; 4],
    ) -> Result<ValueId, ImportError> {
        let codes = self.constant(node, codes)?.clone();
        let scales = self.constant(node, scales)?.clone();
        let zeros = self.optional_constant(node, zeros)?.cloned();
        let bias = self.optional_constant(node, bias)?.cloned();
        let name = names::hugging_face(&codes.name);
        let weight = self.grouped(node, form, (&codes, &scales, zeros.as_ref()), &name)?;
        // AMD's tools give every linear a bias, of zeros where there was none.
        let bias = match bias.filter(|bias| bias.data.iter().any(|&byte| byte != 0)) {
            Some(bias) => Some(self.vector(node, &bias)?),
            None => None,
        };
        let name = self.module(weight);
        self.push1(&name, Op::Linear { weight, bias }, &[x])
    }

    /// Group indices may only say what the order of the columns says anyway.
    fn check_group_index(&self, node: &Node, form: Quantized) -> Result<(), ImportError> {
        let Some(index) = self.optional_constant(node, 4)? else { return Ok(()) };
        let trivial = index.integers().is_some_and(|groups| {
            groups.len() == form.cols
                && groups.iter().enumerate().all(|(column, &group)| {
                    i64::try_from(column / form.group).is_ok_and(|expected| expected == group)
                })
        });
        if trivial { Ok(()) } else { Err(refuse(node, "its columns are grouped in another order")) }
    }

    /// `DequantizeLinear` of a `(K, N)` matrix in blocks along K: turned around into the form of
    /// `MatMulNBits`.
    pub(super) fn dequantize_linear(&mut self, node: &'a Node) -> Result<(), ImportError> {
        let codes = self.constant(node, 0)?.clone();
        let scales = self.constant(node, 1)?.clone();
        let zeros = self.optional_constant(node, 2)?.cloned();
        let group = node.int("block_size").and_then(|size| usize::try_from(size).ok()).unwrap_or(0);
        let (&[cols, rows], Element::Float(dtype)) = (&codes.dims[..], scales.element) else {
            return Err(refuse(node, "it must turn a matrix into floats"));
        };
        let axis = node.int("axis").unwrap_or(1);
        let known = group.is_multiple_of(2) && (1..=MAX_GROUP).contains(&group);
        if !matches!(axis, 0 | -2) || !known || codes.elements() == 0 {
            return Err(refuse(node, "only blocks of an even size along axis 0 are supported"));
        }
        let (bits, signed) = match codes.element {
            Element::I4 => (4, true),
            Element::U4 => (4, false),
            Element::I8 => (8, true),
            Element::U8 => (8, false),
            _ => return Err(refuse(node, "its weights must be integers of 4 or 8 bits")),
        };
        let groups = cols.div_ceil(group);
        let fits = |tensor: &Tensor| tensor.dims == [groups, rows];
        if !fits(&scales) || zeros.as_ref().is_some_and(|z| !fits(z) || z.element != codes.element)
        {
            return Err(refuse(node, "its scales or zero points do not fit its weights"));
        }
        let form = Quantized { rows, cols, bits, group };
        let key = Key {
            names: [
                codes.name.clone(),
                scales.name.clone(),
                zeros.as_ref().map_or(String::new(), |zeros| zeros.name.clone()),
            ],
            form: [rows, cols, usize::from(bits), group],
        };
        let name = names::hugging_face(&codes.name);
        if !self.weights.contains_key(&key) {
            self.copied(node, groups * group * rows * usize::from(bits) / 8)?;
        }
        let id = self.add_weight(key, &name, || {
            let bytes = turned_codes(&codes.data, form, signed);
            let zeros = turned_zeros(zeros.as_ref(), form, groups, signed);
            let scales = Scales { dtype, bytes: transposed(dtype, groups, rows, &scales.data) };
            Weight::grouped((bits, group), (rows, cols), bytes, scales, zeros)
                .map_err(weight_error(&codes.name))
        })?;
        self.set(node, 0, Val::Dequantized(id));
        Ok(())
    }

    /// `GatherBlockQuantized`: an embedding whose table has the form of `MatMulNBits`.
    pub(super) fn gather_block_quantized(&mut self, node: &'a Node) -> Result<(), ImportError> {
        self.expect_tokens(node, 1)?;
        let mut codes = self.constant(node, 0)?.clone();
        let scales = self.constant(node, 2)?.clone();
        let zeros = self.optional_constant(node, 3)?.cloned();
        let axes = (node.int("gather_axis").unwrap_or(0), node.int("quantize_axis").unwrap_or(1));
        let group = node.int("block_size").unwrap_or(128);
        let bits = if codes.element == Element::U8 { node.int("bits").unwrap_or(4) } else { 4 };
        let (&[rows, stored], Ok(group)) = (&codes.dims[..], usize::try_from(group)) else {
            return Err(refuse(node, "its table must be a matrix"));
        };
        let cols = if codes.element == Element::U8 && bits == 4 { stored * 2 } else { stored };
        let whole = (1..=MAX_GROUP).contains(&group) && cols.is_multiple_of(group);
        if !matches!(axes, (0, 1 | -1)) || !whole {
            return Err(refuse(node, "its rows must be tokens, in whole blocks"));
        }
        match (codes.element, &zeros) {
            (Element::U8, _) | (Element::U4, Some(_)) => {}
            // Both halves of a byte from -8..8 to 0..16; without zero points 0 becomes the middle.
            (Element::I4, None) => {
                self.copied(node, codes.data.len())?;
                codes.data = codes.data.iter().map(|byte| byte ^ 0x88).collect::<Vec<u8>>().into();
            }
            _ => return Err(refuse(node, "its type of zero points is not supported")),
        }
        let bits = match bits {
            4 => 4,
            8 => 8,
            _ => return Err(refuse(node, format!("weights of {bits} bits"))),
        };
        let mut zeros = zeros;
        if let Some(zeros) = zeros.as_mut().filter(|zeros| zeros.element == Element::U4) {
            zeros.element = Element::U8;
        }
        let form = Quantized { rows, cols, bits, group };
        let parts = (&codes, &scales, zeros.as_ref());
        let table = self.grouped(node, form, parts, EMBEDDING)?;
        self.embed(node, table)
    }

    /// Looks up a row of `table` for each token.
    pub(super) fn embed(&mut self, node: &'a Node, table: WeightId) -> Result<(), ImportError> {
        let rows = self.push1("embed", Op::Embed { table }, &[])?;
        self.set_rows(node, 0, rows);
        Ok(())
    }
}

pub(super) const EMBEDDING: &str = "model.embed_tokens.weight";

/// `(cols, rows)` elements from `(rows, cols)`.
fn transposed(dtype: DType, rows: usize, cols: usize, data: &Bytes) -> Bytes {
    let mut out = vec![0; data.len()];
    match dtype {
        DType::F32 => transpose(data.as_chunks::<4>().0, rows, cols, out.as_chunks_mut::<4>().0),
        DType::F16 | DType::Bf16 => {
            transpose(data.as_chunks::<2>().0, rows, cols, out.as_chunks_mut::<2>().0);
        }
    }
    out.into()
}

/// In squares that stay in the cache: matrices of gigabytes come this way.
fn transpose<T: Copy>(from: &[T], rows: usize, cols: usize, to: &mut [T]) {
    const SIDE: usize = 64;
    for row in (0..rows).step_by(SIDE) {
        for col in (0..cols).step_by(SIDE) {
            for r in row..rows.min(row + SIDE) {
                for c in col..cols.min(col + SIDE) {
                    to[c * rows + r] = from[r * cols + c];
                }
            }
        }
    }
}

/// Element `index` of packed 4-bit or plain 8-bit integers, moved to start at 0 if `signed`.
fn code(data: &[u8], bits: u8, signed: bool, index: usize) -> u8 {
    if bits == 8 {
        data[index] ^ if signed { 0x80 } else { 0 }
    } else {
        let byte = data[index / 2];
        let code = if index.is_multiple_of(2) { byte & 15 } else { byte >> 4 };
        code ^ if signed { 8 } else { 0 }
    }
}

/// Packs codes two to a byte, the first low, where they have 4 bits.
fn packed(bits: u8, codes: &[u8]) -> Vec<u8> {
    if bits == 8 {
        return codes.to_vec();
    }
    codes.chunks(2).map(|pair| pair[0] | pair.get(1).map_or(0, |high| high << 4)).collect()
}

/// `(rows, groups, group)` codes from `(cols, rows)`, the last group of each row padded.
fn turned_codes(data: &[u8], form: Quantized, signed: bool) -> Bytes {
    let Quantized { rows, cols, bits, group } = form;
    let mut out = Vec::with_capacity(data.len());
    let mut row_codes = vec![0; cols.div_ceil(group) * group];
    for row in 0..rows {
        for (col, out) in row_codes.iter_mut().enumerate().take(cols) {
            *out = code(data, bits, signed, col * rows + row);
        }
        out.extend(packed(bits, &row_codes));
    }
    out.into()
}

/// `(rows, groups)` zero points from `(groups, rows)`. Without any, 0 is meant: the middle of the
/// signed types, and the least code of the others.
fn turned_zeros(zeros: Option<&Tensor>, form: Quantized, groups: usize, signed: bool) -> Zeros {
    if zeros.is_none() && signed {
        return Zeros::Middle;
    }
    let mut out = Vec::new();
    for row in 0..form.rows {
        let codes: Vec<u8> = (0..groups)
            .map(|group| {
                let index = group * form.rows + row;
                zeros.map_or(0, |zeros| code(&zeros.data, form.bits, signed, index))
            })
            .collect();
        out.extend(packed(form.bits, &codes));
    }
    Zeros::Packed(out.into())
}
