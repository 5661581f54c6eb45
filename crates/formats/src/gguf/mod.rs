//! GGUF, the file format of llama.cpp: metadata and tensors in one file, or split over several.
//!
//! Layout (little-endian, versions 2 and 3): `GGUF`, version, tensor count, metadata count,
//! metadata, tensor descriptions, padding, data. Offsets count from the start of the data, and
//! every tensor starts where the one before it ends, rounded up to the alignment. The format's
//! specification is `docs/gguf.md` of the ggml project.

mod metadata;
mod sanity;
mod split;

pub use self::metadata::{Elements, Kind, Metadata, Scalar, Value};
pub(crate) use self::split::split_set;

use self::metadata::read_str;
use crate::checkpoint::check_finite;
use crate::cursor::Cursor;
use crate::table::{Named, Table};
use crate::{FormatError, Limits, Result, Source};
use std::ops::Range;
use tangor_tensor::quant::{self, BlockFormat};
use tangor_tensor::{Bytes, DType, MapGuard, Weight};

const DEFAULT_ALIGNMENT: u32 = 32;
const MAX_ALIGNMENT: u32 = 1 << 20;

/// How a tensor's elements are stored.
#[derive(Clone, Copy, Debug)]
pub enum Encoding {
    /// Plain elements.
    Dense(DType),
    /// Quantised blocks.
    Blocks(&'static dyn BlockFormat),
}

impl Encoding {
    /// The field's name for it, as `F16` or `Q4_K`.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Dense(DType::F32) => "F32",
            Self::Dense(DType::F16) => "F16",
            Self::Dense(DType::Bf16) => "BF16",
            Self::Blocks(format) => format.name(),
        }
    }

    /// Elements and bytes of a block.
    fn block(&self) -> (usize, usize) {
        match self {
            Self::Dense(dtype) => (1, dtype.size()),
            Self::Blocks(format) => (format.block_len(), format.block_bytes()),
        }
    }
}

/// What a file says about one tensor.
#[derive(Debug)]
pub struct TensorInfo {
    name: String,
    dims: Box<[usize]>,
    encoding: Encoding,
    /// Index of the file.
    file: usize,
    /// Bytes within the file.
    extent: Range<usize>,
}

impl TensorInfo {
    /// The tensor's name in the file.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Dimensions, the fastest first: a matrix is `[columns, rows]`.
    #[must_use]
    pub fn dims(&self) -> &[usize] {
        &self.dims
    }

    /// How the elements are stored.
    #[must_use]
    pub fn encoding(&self) -> Encoding {
        self.encoding
    }

    /// Bytes in the file.
    #[must_use]
    pub fn byte_len(&self) -> usize {
        self.extent.len()
    }
}

impl Named for TensorInfo {
    fn name(&self) -> &str {
        &self.name
    }
}

/// A checked GGUF model: every tensor is known to lie inside its file.
#[derive(Debug)]
pub struct Gguf {
    name: String,
    metadata: Metadata,
    tensors: Table<TensorInfo>,
    files: Vec<Bytes>,
    guard: MapGuard,
    /// Whether every number is known to be finite.
    finite: bool,
}

/// One file of a model.
struct Part {
    metadata: Metadata,
    tensors: Vec<TensorInfo>,
}

impl Gguf {
    /// Reads the file `name` of `source`, and the other files of its set if it is one part of a
    /// split model.
    ///
    /// # Errors
    /// If a file is missing, damaged, over a limit, or stores tensors in a way that is not known.
    pub fn open(source: &dyn Source, name: &str, limits: &Limits) -> Result<Self> {
        let files = split_set(name, limits)?.unwrap_or_else(|| vec![name.to_owned()]);
        let mut maps = Vec::with_capacity(files.len());
        for file in files {
            let (bytes, guard) = source.map(&file)?.ok_or_else(|| {
                FormatError::missing(&file, "is not there")
                    .with_hint("all the files of a split model have to be in one folder")
            })?;
            maps.push((file, bytes, guard));
        }
        Self::from_maps(maps, limits)
    }

    /// Reads a model that is one file.
    ///
    /// # Errors
    /// As [`Gguf::open`].
    pub fn parse(name: &str, bytes: Bytes, limits: &Limits) -> Result<Self> {
        Self::from_maps(vec![(name.to_owned(), bytes, MapGuard::default())], limits)
    }

    fn from_maps(maps: Vec<(String, Bytes, MapGuard)>, limits: &Limits) -> Result<Self> {
        let mut parts = Vec::with_capacity(maps.len());
        for (index, (name, bytes, _)) in maps.iter().enumerate() {
            parts.push((name.as_str(), Part::read(name, bytes, index, limits)?));
        }
        let (metadata, tensors) = split::merge(parts, limits)?;
        let name = maps.first().map(|(name, ..)| name.clone()).unwrap_or_default();
        let tensors = Table::new(tensors).map_err(|tensor| {
            FormatError::malformed(&name, format!("tensor {tensor:?} occurs twice"))
        })?;
        let guard = MapGuard::join(maps.iter().map(|(.., guard)| guard));
        let files = maps.into_iter().map(|(_, bytes, _)| bytes).collect();
        let this = Self { name, metadata, tensors, files, guard, finite: false };
        sanity::check(&this, limits)?;
        Ok(this)
    }

    /// The (first) file's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The key-value pairs of the (first) file.
    #[must_use]
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// All tensors, in the order of the files.
    pub fn tensors(&self) -> impl ExactSizeIterator<Item = &TensorInfo> {
        self.tensors.iter()
    }

    /// What the file says about a tensor.
    #[must_use]
    pub fn tensor_info(&self, name: &str) -> Option<&TensorInfo> {
        self.tensors.get(name)
    }

    /// A tensor's weights, sharing the file's memory. Dimensions beyond the first count as rows; a
    /// vector is one row.
    ///
    /// # Errors
    /// If there is no such tensor, or its scales or elements are not finite.
    pub fn tensor(&self, name: &str) -> Result<Weight> {
        let info = self
            .tensors
            .get(name)
            .ok_or_else(|| FormatError::missing(&self.name, format!("has no tensor {name:?}")))?;
        let subject = || format!("{}: tensor {name:?}", self.name);
        let [cols, rest @ ..] = &*info.dims else {
            return Err(FormatError::malformed(subject(), "has no dimensions"));
        };
        let rows = rest.iter().try_fold(1usize, |rows, &dim| rows.checked_mul(dim));
        let bytes = self
            .files
            .get(info.file)
            .filter(|file| info.extent.start <= info.extent.end && info.extent.end <= file.len())
            .map(|file| file.slice(info.extent.clone()));
        let (Some(rows), Some(bytes)) = (rows, bytes) else {
            return Err(FormatError::malformed(subject(), "does not fit its file"));
        };
        let weight = match info.encoding {
            Encoding::Dense(dtype) => Weight::dense(dtype, rows, *cols, bytes),
            Encoding::Blocks(format) => Weight::blocks(format, rows, *cols, bytes),
        };
        let weight = weight.map_err(|error| FormatError::weight(subject(), error))?;
        if !self.finite {
            check_finite(&weight).map_err(|error| FormatError::weight(subject(), error))?;
        }
        Ok(weight)
    }

    pub(crate) fn assume_finite(&mut self) {
        self.finite = true;
    }

    /// Tells whether the files stayed as they were.
    #[must_use]
    pub fn guard(&self) -> &MapGuard {
        &self.guard
    }
}

impl Part {
    fn read(name: &str, bytes: &Bytes, file: usize, limits: &Limits) -> Result<Self> {
        let mut cursor = Cursor::new(name, bytes);
        let tensor_count = read_head(&mut cursor, limits)?;
        let metadata_count = cursor.u64("the number of metadata entries")?;
        let metadata = Metadata::read(&mut cursor, metadata_count, limits)?;
        let alignment = read_alignment(name, &metadata)?;
        // A description takes at least 8 + 4 + 8 + 4 + 8 bytes of the file.
        let fit = cursor.remaining() / 32;
        let mut tensors = Vec::with_capacity(usize::try_from(tensor_count).unwrap_or(fit).min(fit));
        let mut next_offset = 0;
        for _ in 0..tensor_count {
            tensors.push(read_tensor(&mut cursor, file, alignment, &mut next_offset, limits)?);
        }
        place(name, &mut tensors, cursor.position(), alignment, next_offset, bytes.len())?;
        Ok(Self { metadata, tensors })
    }
}

/// Reads up to the tensor count, which it returns.
fn read_head(cursor: &mut Cursor<'_>, limits: &Limits) -> Result<u64> {
    let subject = cursor.subject();
    let magic: [u8; 4] = cursor.array("the file's magic number")?;
    if &magic != b"GGUF" {
        return Err(FormatError::malformed(subject, "is not a GGUF file"));
    }
    let version = cursor.u32("the format's version")?;
    if version.swap_bytes() < 16 && version > 16 {
        return Err(FormatError::unsupported(subject, "is a big-endian GGUF file")
            .with_hint("convert the model for little-endian machines"));
    }
    if !(2..=3).contains(&version) {
        let message = format!("has version {version} of GGUF (2 and 3 are known)");
        return Err(FormatError::unsupported(subject, message));
    }
    let tensors = cursor.u64("the number of tensors")?;
    if tensors > limits.tensors {
        return Err(FormatError::limit(subject, "tensors", tensors, limits.tensors));
    }
    Ok(tensors)
}

fn read_alignment(subject: &str, metadata: &Metadata) -> Result<u64> {
    let alignment = metadata.opt_u32("general.alignment")?.unwrap_or(DEFAULT_ALIGNMENT);
    if !alignment.is_power_of_two() || !(8..=MAX_ALIGNMENT).contains(&alignment) {
        let message =
            format!("alignment {alignment} is not a power of two from 8 to {MAX_ALIGNMENT}");
        return Err(FormatError::malformed(subject, message));
    }
    Ok(alignment.into())
}

/// Reads one description; its extent counts from the start of the data until [`place`].
fn read_tensor(
    cursor: &mut Cursor<'_>,
    file: usize,
    alignment: u64,
    next_offset: &mut u64,
    limits: &Limits,
) -> Result<TensorInfo> {
    let name = read_str(cursor, limits)?.to_owned();
    let file_name = cursor.subject();
    let subject = || format!("{file_name}: tensor {name:?}");
    let malformed = |message: String| Err(FormatError::malformed(subject(), message));
    let (dims, id, offset) = read_shape(cursor, &name, limits)?;
    let encoding = encoding(id).map_err(|message| FormatError::unsupported(subject(), message))?;
    if dims.contains(&0) || dims.is_empty() {
        return malformed(format!("has no elements (dimensions {dims:?})"));
    }
    let (block_len, block_bytes) = encoding.block();
    let ragged = dims.first().is_none_or(|&cols| !cols.is_multiple_of(block_len as u64));
    if ragged {
        let (name, cols) = (encoding.name(), dims.first().unwrap_or(&0));
        return malformed(format!(
            "rows of {cols} do not divide into {name} blocks of {block_len}"
        ));
    }
    let bytes = dims
        .iter()
        .try_fold(1u64, |product, &dim| product.checked_mul(dim))
        .and_then(|elements| elements.checked_div(block_len as u64))
        .and_then(|blocks| blocks.checked_mul(block_bytes as u64));
    let end = bytes.and_then(|bytes| offset.checked_add(bytes));
    let next = end.and_then(|end| end.checked_next_multiple_of(alignment));
    let (Some(end), Some(next)) = (end, next) else {
        return malformed(format!("dimensions {dims:?} at offset {offset} overflow"));
    };
    if offset != *next_offset {
        return malformed(format!(
            "starts at offset {offset}, but the tensor before it ends at {next_offset}"
        ));
    }
    *next_offset = next;
    let dims: Option<Box<[usize]>> = dims.iter().map(|&dim| usize::try_from(dim).ok()).collect();
    let extent = usize::try_from(offset).ok().zip(usize::try_from(end).ok());
    let (Some(dims), Some((start, end))) = (dims, extent) else {
        return malformed("is larger than the address space".to_owned());
    };
    Ok(TensorInfo { name, dims, encoding, file, extent: start..end })
}

fn read_shape(
    cursor: &mut Cursor<'_>,
    name: &str,
    limits: &Limits,
) -> Result<(Vec<u64>, u32, u64)> {
    let rank = cursor.u32("the rank of a tensor")?;
    if rank > limits.gguf_dims {
        let subject = format!("{}: tensor {name:?}", cursor.subject());
        return Err(FormatError::limit(subject, "dimensions", rank, limits.gguf_dims));
    }
    let mut dims = Vec::with_capacity(4);
    for _ in 0..rank {
        dims.push(cursor.u64("a dimension")?);
    }
    Ok((dims, cursor.u32("a tensor's type")?, cursor.u64("a tensor's offset")?))
}

/// Moves the extents to where the data starts, now that this is known, and proves them inside the
/// file.
fn place(
    subject: &str,
    tensors: &mut [TensorInfo],
    header: usize,
    alignment: u64,
    data_len: u64,
    file_len: usize,
) -> Result<()> {
    let alignment = usize::try_from(alignment).unwrap_or(1);
    let overflow = || FormatError::malformed(subject, "is larger than the address space");
    let start = header.checked_next_multiple_of(alignment).ok_or_else(overflow)?;
    for tensor in tensors.iter_mut() {
        let from = start.checked_add(tensor.extent.start).ok_or_else(overflow)?;
        let to = start.checked_add(tensor.extent.end).ok_or_else(overflow)?;
        if to > file_len {
            let at = (from as u64, tensor.byte_len() as u64);
            let what = format!("tensor {:?}", tensor.name);
            return Err(FormatError::truncated(subject, what, at, file_len as u64));
        }
        tensor.extent = from..to;
    }
    let end = (start as u64).saturating_add(data_len);
    if file_len as u64 > end {
        let message = format!("has {file_len} bytes, but its tensors end at {end}");
        return Err(FormatError::malformed(subject, message)
            .with_hint("something was appended to the file: fetch it again"));
    }
    Ok(())
}

/// Tensor types by their number in the file (`enum ggml_type`); the ones without weights, or whose
/// blocks are not known here, have only a name.
const TYPES: [(u32, &str); 33] = [
    (0, "F32"),
    (1, "F16"),
    (2, "Q4_0"),
    (3, "Q4_1"),
    (6, "Q5_0"),
    (7, "Q5_1"),
    (8, "Q8_0"),
    (9, "Q8_1"),
    (10, "Q2_K"),
    (11, "Q3_K"),
    (12, "Q4_K"),
    (13, "Q5_K"),
    (14, "Q6_K"),
    (15, "Q8_K"),
    (16, "IQ2_XXS"),
    (17, "IQ2_XS"),
    (18, "IQ3_XXS"),
    (19, "IQ1_S"),
    (20, "IQ4_NL"),
    (21, "IQ3_S"),
    (22, "IQ2_S"),
    (23, "IQ4_XS"),
    (24, "I8"),
    (25, "I16"),
    (26, "I32"),
    (27, "I64"),
    (28, "F64"),
    (29, "IQ1_M"),
    (30, "BF16"),
    (34, "TQ1_0"),
    (35, "TQ2_0"),
    (39, "MXFP4"),
    (40, "NVFP4"),
];

fn encoding(id: u32) -> Result<Encoding, String> {
    let Some((_, name)) = TYPES.iter().find(|(known, _)| *known == id) else {
        return Err(format!("is of type {id}, which is not known"));
    };
    match *name {
        "F32" => Ok(Encoding::Dense(DType::F32)),
        "F16" => Ok(Encoding::Dense(DType::F16)),
        "BF16" => Ok(Encoding::Dense(DType::Bf16)),
        name => quant::by_name(name)
            .map(Encoding::Blocks)
            .ok_or_else(|| format!("is of type {name}, which is not supported")),
    }
}
