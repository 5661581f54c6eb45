//! AWQ, GPTQ and Quark: how `quantization_config` describes the arrays of a linear.
//!
//! All three store 4-bit codes eight to an `int32`, scales per group and output, and zero points
//! packed like the codes. They differ in names, in which dimension is packed, in the order within a
//! word, and in what a zero point of 0 means.

use super::config::Fields;
use super::packed::{self, Matrix};
use super::{CONFIG, float_type};
use crate::safetensors::{ArrayInfo, ElementType, SafeTensors};
use crate::{FormatError, Result};
use serde_json::{Map, Value};
use tangor_tensor::{Scales, Weight, Zeros};

/// Positions within a 32-bit word of the codes of eight neighbouring outputs: AWQ's interleaving.
const AWQ_ORDER: [u32; 8] = [0, 4, 1, 5, 2, 6, 3, 7];
const PLAIN_ORDER: [u32; 8] = [0, 1, 2, 3, 4, 5, 6, 7];

/// Which tool's arrays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    /// AutoAWQ's `gemm` version: `qweight (in, out/8)`, `qzeros (groups, out/8)`,
    /// `scales (groups, out)`; words interleaved.
    Awq,
    /// `qweight (in/8, out)`, `qzeros (groups, out/8)`, `scales (groups, out)`, `g_idx (in)`.
    Gptq {
        /// Whether zero points are stored less one: the first version of the format.
        zeros_less_one: bool,
    },
    /// AMD Quark: `weight (in, out/8)`, `weight_zero_point (groups, out/8)`,
    /// `weight_scale (groups, out)`.
    Quark {
        /// Whether words are interleaved as AWQ's.
        reorder: bool,
        /// Whether codes and zero points are two's complement.
        signed: bool,
    },
}

/// How a checkpoint's linears are quantised.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Quantization {
    /// Names and order of the arrays.
    pub scheme: Scheme,
    /// Bits per weight.
    pub bits: u8,
    /// Weights that share a scale; `None`: all of an output's.
    pub group: Option<usize>,
}

impl Quantization {
    /// Reads `quantization_config` of a `config.json`; `None` if there is none.
    ///
    /// # Errors
    /// If it is of a kind that is not known, or its numbers make no sense.
    pub fn from_config(config: &Value) -> Result<Option<Self>> {
        let Some(map) = config.as_object() else { return Ok(None) };
        let root = Fields { map, within: "" };
        let Some(fields) = root.object("quantization_config")? else { return Ok(None) };
        let method = fields.text("quant_method")?.unwrap_or_default();
        let this = match method.as_str() {
            "awq" => Self::awq(&fields)?,
            "gptq" => Self::gptq(&fields)?,
            "quark" => Self::quark(&fields)?,
            method => {
                let message = format!("weights quantised by {method:?} are not supported");
                return Err(FormatError::unsupported(CONFIG, message)
                    .with_hint("awq, gptq, quark and unquantised checkpoints are"));
            }
        };
        this.check()?;
        Ok(Some(this))
    }

    fn awq(fields: &Fields<'_>) -> Result<Self> {
        let version = fields.text("version")?.map(|version| version.to_ascii_lowercase());
        if let Some(version) = version.filter(|version| version != "gemm") {
            let message = format!("AWQ checkpoints of version {version:?} are not supported");
            return Err(FormatError::unsupported(CONFIG, message).with_hint("version gemm is"));
        }
        let bits = first_number(fields, &["bits", "w_bit"])?;
        let group = first_number(fields, &["group_size", "q_group_size"])?;
        Self::new(Scheme::Awq, bits, group)
    }

    fn gptq(fields: &Fields<'_>) -> Result<Self> {
        let zeros_less_one = match fields.text("checkpoint_format")?.as_deref() {
            None | Some("gptq") => true,
            Some("gptq_v2") => false,
            Some(format) => {
                let message = format!("GPTQ checkpoints of format {format:?} are not supported");
                return Err(FormatError::unsupported(CONFIG, message)
                    .with_hint("formats gptq and gptq_v2 are"));
            }
        };
        let bits = first_number(fields, &["bits"])?;
        Self::new(Scheme::Gptq { zeros_less_one }, bits, first_number(fields, &["group_size"])?)
    }

    fn quark(fields: &Fields<'_>) -> Result<Self> {
        let at = |path: &[&str]| {
            let mut map = Some(fields.map);
            for name in path {
                map = map.and_then(|map| map.get(*name)).and_then(Value::as_object);
            }
            map
        };
        let weight = at(&["global_quant_config", "weight"]).ok_or_else(|| {
            let message = "quantization_config.global_quant_config.weight is missing";
            FormatError::missing(CONFIG, message)
        })?;
        one_way(fields, weight)?;
        let weight =
            Fields { map: weight, within: "quantization_config.global_quant_config.weight." };
        let signed = match weight.text("dtype")?.as_deref() {
            Some("uint4") => false,
            Some("int4") => true,
            other => {
                let dtype = other.unwrap_or("no type");
                let message = format!("Quark weights of {dtype} are not supported");
                return Err(FormatError::unsupported(CONFIG, message)
                    .with_hint("uint4 and int4 per group are"));
            }
        };
        if weight.text("qscheme")?.is_some_and(|scheme| scheme != "per_group") {
            let message = "Quark weights that are not quantised per group are not supported";
            return Err(FormatError::unsupported(CONFIG, message));
        }
        let export = at(&["export"]).map(|map| Fields { map, within: "export." });
        let method = export.map_or(Ok(None), |export| export.text("pack_method"))?;
        let reorder = match method.as_deref() {
            None | Some("reorder") => true,
            Some("order") => false,
            Some(method) => {
                let message = format!("Quark pack_method {method:?} is not known");
                return Err(FormatError::unsupported(CONFIG, message));
            }
        };
        let group = first_number(&weight, &["group_size"])?;
        Self::new(Scheme::Quark { reorder, signed }, Some(4.0), group)
    }

    fn new(scheme: Scheme, bits: Option<f64>, group: Option<f64>) -> Result<Self> {
        let supported: &[u8] = if matches!(scheme, Scheme::Gptq { .. }) { &[4, 8] } else { &[4] };
        let bits = bits.unwrap_or(4.0);
        let Some(bits) = supported.iter().copied().find(|&known| f64::from(known) == bits) else {
            let message = format!("weights of {bits} bits are not supported");
            return Err(FormatError::unsupported(CONFIG, message)
                .with_hint(format!("{supported:?} bits are")));
        };
        let group = match group {
            Some(-1.0) => None,
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
            Some(group) if group.fract() == 0.0 && (0.0..=65_536.0).contains(&group) => {
                Some(group as usize)
            }
            group => {
                let group = group.map_or("missing".to_owned(), |group| group.to_string());
                let message = format!("quantization_config.group_size is {group}");
                return Err(FormatError::malformed(CONFIG, message));
            }
        };
        Ok(Self { scheme, bits, group })
    }

    fn check(&self) -> Result<()> {
        if self.group.is_some_and(|group| group == 0 || !group.is_multiple_of(2)) {
            let message = format!("group_size {:?} is not even and above 0", self.group);
            return Err(FormatError::malformed(CONFIG, message));
        }
        Ok(())
    }

    /// The array that holds the codes of the weight `name`, if it is quantised.
    pub(super) fn codes_of<'a>(
        &self,
        arrays: &'a SafeTensors,
        name: &str,
    ) -> Option<&'a ArrayInfo> {
        let prefix = name.strip_suffix(".weight")?;
        match self.scheme {
            Scheme::Awq | Scheme::Gptq { .. } => arrays.get(&format!("{prefix}.qweight")),
            Scheme::Quark { .. } => {
                arrays.get(name).filter(|array| float_type(array.element()).is_none())
            }
        }
    }

    /// What an array is called in a model that is not quantised; `None` for scales and the like.
    pub(super) fn logical_name(&self, arrays: &SafeTensors, name: &str) -> Option<String> {
        let (prefix, last) = name.rsplit_once('.')?;
        match last {
            "qweight" => Some(format!("{prefix}.weight")),
            "qzeros" | "scales" | "g_idx" | "weight_scale" | "weight_zero_point" => {
                let whole = self.codes_of(arrays, &format!("{prefix}.weight"));
                whole.is_none().then(|| name.to_owned())
            }
            _ => Some(name.to_owned()),
        }
    }

    /// Gathers the arrays of the weight `name`.
    pub(super) fn weight(
        &self,
        arrays: &SafeTensors,
        name: &str,
        codes: &ArrayInfo,
    ) -> Result<Weight> {
        let prefix = name.strip_suffix(".weight").unwrap_or(name);
        let (scales_name, zeros_name) = match self.scheme {
            Scheme::Awq | Scheme::Gptq { .. } => ("scales", "qzeros"),
            Scheme::Quark { .. } => ("weight_scale", "weight_zero_point"),
        };
        let part = |last: &str| arrays.get(&format!("{prefix}.{last}"));
        let scales = part(scales_name)
            .ok_or_else(|| FormatError::missing(scales_name, "is not in the file"))?;
        let zeros = part(zeros_name);
        let per_word = 32u32.checked_div(self.bits.into()).and_then(|n| usize::try_from(n).ok());
        let per_word = per_word.unwrap_or(8);
        let codes_matrix = Matrix::new(arrays, codes, "codes", ElementType::I32)?;
        let packed_rows = matches!(self.scheme, Scheme::Gptq { .. });
        let cols = if packed_rows {
            codes_matrix.rows.saturating_mul(per_word)
        } else {
            codes_matrix.rows
        };
        let group = self.group.unwrap_or(cols);
        let groups = cols.div_ceil(group.max(1));
        let (scales, rows) = self.scales(arrays, scales, groups, &codes_matrix)?;
        let words = if packed_rows { rows } else { rows.div_ceil(per_word) };
        codes_matrix.expect_cols("codes", words)?;
        if let Some(index) = part("g_idx").filter(|_| packed_rows) {
            check_order(arrays, index, cols, group)?;
        }
        let row_bytes = packed::row_bytes(self.bits, groups.saturating_mul(group));
        let mut bytes = if packed_rows {
            packed::transpose_words(&codes_matrix, rows, row_bytes)?
        } else {
            packed::transpose_codes(&codes_matrix, self.bits, self.order(), rows, row_bytes)?
        };
        self.flip_sign(&mut bytes);
        let zeros = self.zeros(arrays, zeros, groups, rows)?;
        Weight::grouped((self.bits, group), (rows, cols), bytes.into(), scales, zeros)
            .map_err(|error| FormatError::weight("codes", error))
    }

    fn order(&self) -> &'static [u32; 8] {
        match self.scheme {
            Scheme::Awq | Scheme::Quark { reorder: true, .. } => &AWQ_ORDER,
            Scheme::Gptq { .. } | Scheme::Quark { reorder: false, .. } => &PLAIN_ORDER,
        }
    }

    /// Makes two's complement nibbles unsigned, by adding 8 to each.
    fn flip_sign(&self, bytes: &mut [u8]) {
        if matches!(self.scheme, Scheme::Quark { signed: true, .. }) {
            bytes.iter_mut().for_each(|byte| *byte ^= 0x88);
        }
    }

    /// Scales as `(rows, groups)`, and the number of rows.
    fn scales(
        &self,
        arrays: &SafeTensors,
        array: &ArrayInfo,
        groups: usize,
        codes: &Matrix,
    ) -> Result<(Scales, usize)> {
        let dtype = float_type(array.element()).ok_or_else(|| {
            FormatError::unsupported("scales", format!("are of type {:?}", array.element()))
        })?;
        let matrix = Matrix::new(arrays, array, "scales", array.element())?;
        // Quark before 1.0 stored scales by output; codes tell which it is.
        let by_output = matches!(self.scheme, Scheme::Quark { .. })
            && matrix.rows != groups
            && matrix.cols == groups
            && matrix.rows.div_ceil(8) == codes.cols;
        if by_output {
            return Ok((Scales { dtype, bytes: matrix.bytes }, matrix.rows));
        }
        if matrix.rows != groups {
            let message = format!("are for {} groups, and the codes for {groups}", matrix.rows);
            return Err(FormatError::malformed("scales", message));
        }
        let bytes = packed::transpose_elements(&matrix, dtype.size())?;
        Ok((Scales { dtype, bytes: bytes.into() }, matrix.cols))
    }

    /// Zero points as `(rows, groups)`.
    fn zeros(
        &self,
        arrays: &SafeTensors,
        array: Option<&ArrayInfo>,
        groups: usize,
        rows: usize,
    ) -> Result<Zeros> {
        let Some(array) = array else {
            return match self.scheme {
                Scheme::Quark { signed: true, .. } => Ok(Zeros::Middle),
                _ => Err(FormatError::missing("zero points", "are not in the file")),
            };
        };
        let matrix = Matrix::new(arrays, array, "zero points", ElementType::I32)?;
        let per_word = 32usize.checked_div(self.bits.into()).unwrap_or(8);
        if matrix.rows != groups {
            let message = format!("are for {} groups, and the codes for {groups}", matrix.rows);
            return Err(FormatError::malformed("zero points", message));
        }
        matrix.expect_cols("zero points", rows.div_ceil(per_word))?;
        let row_bytes = packed::row_bytes(self.bits, groups);
        let mut bytes = packed::transpose_codes(&matrix, self.bits, self.order(), rows, row_bytes)?;
        self.flip_sign(&mut bytes);
        if self.scheme == (Scheme::Gptq { zeros_less_one: true }) {
            return packed::add_one(bytes, self.bits, groups);
        }
        Ok(packed::packed_zeros(bytes, self.bits, groups))
    }
}

/// Quark may quantise some layers, or kinds of layers, in a way of their own, which arrays of the
/// same shapes do not show: their weights must be as all are, or not quantised at all.
fn one_way(fields: &Fields<'_>, all: &Map<String, Value>) -> Result<()> {
    let own = ["layer_quant_config", "layer_type_quant_config"]
        .into_iter()
        .filter_map(|key| fields.map.get(key).and_then(Value::as_object))
        .flatten();
    for (layer, config) in own {
        let weight = config.get("weight").and_then(Value::as_object);
        let differs = |weight: &Map<String, Value>| {
            ["dtype", "qscheme", "group_size"].iter().any(|key| weight.get(*key) != all.get(*key))
        };
        if weight.is_some_and(differs) {
            let message = format!("quantises the weights of {layer:?} in a way of their own");
            return Err(FormatError::unsupported(CONFIG, message)
                .with_hint("use a checkpoint whose layers are all quantised alike"));
        }
    }
    Ok(())
}

/// The inputs of a GPTQ linear may have been quantised in another order ("act-order"); only the
/// order of the file is supported.
fn check_order(arrays: &SafeTensors, index: &ArrayInfo, cols: usize, group: usize) -> Result<()> {
    if index.shape() == [0] {
        return Ok(());
    }
    if index.element() != ElementType::I32 || index.shape() != [cols] {
        let message = format!("has shape {:?} of {:?}", index.shape(), index.element());
        return Err(FormatError::malformed("g_idx", message));
    }
    let bytes = arrays.bytes(index);
    let in_order = bytes.as_chunks::<4>().0.iter().enumerate().all(|(input, value)| {
        let expected = input.checked_div(group).and_then(|g| i32::try_from(g).ok());
        expected == Some(i32::from_le_bytes(*value))
    });
    if in_order {
        return Ok(());
    }
    Err(FormatError::unsupported("g_idx", "puts inputs into groups out of order (desc_act)")
        .with_hint("use a checkpoint that was quantised with desc_act = false"))
}

/// The first of several spellings of a number.
fn first_number(fields: &Fields<'_>, names: &[&str]) -> Result<Option<f64>> {
    for name in names {
        if let Some(value) = fields.number(name)? {
            return Ok(Some(value));
        }
    }
    Ok(None)
}
