//! safetensors: named arrays in one file, or in several with an index.
//!
//! Layout: the header's length (u64, little-endian), the header (JSON: name to dtype, shape and
//! offsets), the data. As the format demands, tensors neither overlap nor leave holes, so that a
//! file can hold nothing but what its header says.

use crate::cursor::Cursor;
use crate::json::invalid;
use crate::table::{Named, Table};
use crate::{FormatError, Limits, Result, Source, check_file_name};
use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, Visitor};
use std::fmt;
use std::ops::Range;
use tangor_tensor::{Bytes, MapGuard};

/// The index of a sharded checkpoint.
pub(crate) const INDEX: &str = "model.safetensors.index.json";
/// The file of one that is not.
pub(crate) const SINGLE: &str = "model.safetensors";

/// Element types, by their names in the header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[allow(missing_docs, non_camel_case_types)]
pub enum ElementType {
    BOOL,
    U8,
    I8,
    F8_E5M2,
    F8_E4M3,
    F8_E8M0,
    U16,
    I16,
    F16,
    BF16,
    U32,
    I32,
    F32,
    U64,
    I64,
    F64,
    C64,
}

impl ElementType {
    const fn size(self) -> u64 {
        match self {
            Self::BOOL | Self::U8 | Self::I8 | Self::F8_E5M2 | Self::F8_E4M3 | Self::F8_E8M0 => 1,
            Self::U16 | Self::I16 | Self::F16 | Self::BF16 => 2,
            Self::U32 | Self::I32 | Self::F32 => 4,
            Self::U64 | Self::I64 | Self::F64 | Self::C64 => 8,
        }
    }
}

/// What a file says about one array.
#[derive(Debug)]
pub struct ArrayInfo {
    name: String,
    element: ElementType,
    shape: Box<[usize]>,
    /// Index of the file.
    file: usize,
    /// Bytes within the file.
    extent: Range<usize>,
}

impl ArrayInfo {
    /// The array's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The type of its elements.
    #[must_use]
    pub fn element(&self) -> ElementType {
        self.element
    }

    /// Dimensions, the slowest first; none for a scalar.
    #[must_use]
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Bytes in the file.
    #[must_use]
    pub fn byte_len(&self) -> usize {
        self.extent.len()
    }
}

impl Named for ArrayInfo {
    fn name(&self) -> &str {
        &self.name
    }
}

/// The arrays of a checkpoint, in one file or in many: each is known to lie inside its file.
#[derive(Debug)]
pub struct SafeTensors {
    name: String,
    arrays: Table<ArrayInfo>,
    files: Vec<Bytes>,
    guard: MapGuard,
}

impl SafeTensors {
    /// Reads `model.safetensors.index.json` and the files it names, or else `model.safetensors`, or
    /// else the only file of that extension.
    ///
    /// # Errors
    /// If files are missing, damaged, over a limit, or contradict the index.
    pub fn open(source: &dyn Source, limits: &Limits) -> Result<Self> {
        let index = match source.read(INDEX, limits.safetensors_header_bytes)? {
            Some(bytes) => Some(Index::parse(&bytes, limits)?),
            None => None,
        };
        let files = match &index {
            Some(index) => index.files.clone(),
            None => vec![only_file(source)?],
        };
        let mut maps = Vec::with_capacity(files.len());
        for file in files {
            let (bytes, guard) = source.map(&file)?.ok_or_else(|| {
                FormatError::missing(&file, "is not there").with_hint("fetch the model again")
            })?;
            maps.push((file, bytes, guard));
        }
        let this = Self::from_maps(source.name(), &maps, limits)?;
        if let Some(index) = &index {
            index.check(&this)?;
        }
        Ok(this)
    }

    /// Reads a checkpoint that is one file.
    ///
    /// # Errors
    /// As [`SafeTensors::open`].
    pub fn parse(name: &str, bytes: Bytes, limits: &Limits) -> Result<Self> {
        Self::from_maps(name, &[(name.to_owned(), bytes, MapGuard::default())], limits)
    }

    fn from_maps(name: &str, maps: &[(String, Bytes, MapGuard)], limits: &Limits) -> Result<Self> {
        let mut arrays = Vec::new();
        for (index, (file, bytes, _)) in maps.iter().enumerate() {
            read_file(file, bytes, index, &mut arrays, limits)?;
        }
        let arrays = Table::new(arrays).map_err(|array| {
            FormatError::malformed(name, format!("tensor {array:?} occurs twice"))
        })?;
        Ok(Self {
            name: name.to_owned(),
            arrays,
            files: maps.iter().map(|(_, bytes, _)| bytes.clone()).collect(),
            guard: MapGuard::join(maps.iter().map(|(.., guard)| guard)),
        })
    }

    /// What to call the checkpoint in messages.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// All arrays, in the order of the headers.
    pub fn arrays(&self) -> impl ExactSizeIterator<Item = &ArrayInfo> {
        self.arrays.iter()
    }

    /// What a file says about an array.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&ArrayInfo> {
        self.arrays.get(name)
    }

    /// An array's elements, sharing the file's memory.
    #[must_use]
    pub fn bytes(&self, array: &ArrayInfo) -> Bytes {
        let Range { start, end } = array.extent;
        let file = self.files.get(array.file).filter(|file| start <= end && end <= file.len());
        file.map(|file| file.slice(start..end)).unwrap_or_default()
    }

    /// Tells whether the files stayed as they were.
    #[must_use]
    pub fn guard(&self) -> &MapGuard {
        &self.guard
    }
}

fn only_file(source: &dyn Source) -> Result<String> {
    let mut files: Vec<String> =
        source.list()?.into_iter().filter(|name| name.ends_with(".safetensors")).collect();
    files.sort_unstable();
    if files.iter().any(|file| file == SINGLE) {
        return Ok(SINGLE.to_owned());
    }
    match files.as_slice() {
        [file] => Ok(file.clone()),
        [] => Err(FormatError::missing(source.name(), "has no safetensors file")),
        files => {
            let message = format!("has {} safetensors files and no {INDEX}", files.len());
            Err(FormatError::missing(source.name(), message)
                .with_hint(format!("fetch {INDEX} too: it says which file holds what")))
        }
    }
}

/// Reads one file's header and appends its arrays.
fn read_file(
    name: &str,
    bytes: &Bytes,
    file: usize,
    arrays: &mut Vec<ArrayInfo>,
    limits: &Limits,
) -> Result<()> {
    let mut cursor = Cursor::new(name, bytes);
    let header_len = cursor.u64("the length of the header")?;
    if header_len > limits.safetensors_header_bytes {
        let limit = limits.safetensors_header_bytes;
        return Err(FormatError::limit(name, "bytes of the header", header_len, limit));
    }
    let header = cursor.take(header_len, "the header")?;
    if header.first() != Some(&b'{') {
        return Err(FormatError::malformed(name, "is not a safetensors file"));
    }
    let first = arrays.len();
    let mut over = false;
    let mut reader = serde_json::Deserializer::from_slice(header);
    let seed = Header { arrays, file, limit: limits.tensors, over: &mut over };
    let parsed = seed.deserialize(&mut reader).and_then(|()| reader.end());
    if over {
        let found = format!("more than {}", limits.tensors);
        return Err(FormatError::limit(name, "tensors", found, limits.tensors));
    }
    parsed.map_err(|error| invalid(name, &error))?;
    let arrays = arrays.get_mut(first..).unwrap_or_default();
    place(name, arrays, cursor.position(), bytes.len(), limits)
}

/// Checks shapes against extents, that extents cover the data exactly, and makes them count from
/// the start of the file.
fn place(
    name: &str,
    arrays: &mut [ArrayInfo],
    data: usize,
    file_len: usize,
    limits: &Limits,
) -> Result<()> {
    for array in arrays.iter_mut() {
        let subject = || format!("{name}: tensor {:?}", array.name);
        let Range { start, end } = array.extent;
        if array.shape.len() > limits.dims {
            let rank = array.shape.len();
            return Err(FormatError::limit(subject(), "dimensions", rank, limits.dims));
        }
        let size = array
            .shape
            .iter()
            .try_fold(array.element.size(), |size, &dim| size.checked_mul(dim as u64));
        let found = end.checked_sub(start);
        if size.is_none() || size != found.map(|found| found as u64) {
            let message = format!(
                "has shape {:?} of {:?}, but offsets {start} to {end}",
                array.shape, array.element
            );
            return Err(FormatError::malformed(subject(), message));
        }
        match (data.checked_add(start), data.checked_add(end)) {
            (Some(start), Some(end)) if end <= file_len => array.extent = start..end,
            _ => {
                let at = ((data as u64).saturating_add(start as u64), found.unwrap_or(0) as u64);
                return Err(FormatError::truncated(subject(), "its data", at, file_len as u64));
            }
        }
    }
    let mut extents: Vec<(usize, usize)> =
        arrays.iter().map(|array| (array.extent.start, array.extent.end)).collect();
    extents.sort_unstable();
    let mut next = data;
    for (start, end) in extents {
        if start != next {
            let what = if start < next { "overlap" } else { "leave a hole" };
            let message = format!("tensors {what} at byte {}", start.min(next));
            return Err(FormatError::malformed(name, message));
        }
        next = end;
    }
    if next != file_len {
        let message = format!("has {file_len} bytes, but its tensors end at {next}");
        return Err(FormatError::malformed(name, message));
    }
    Ok(())
}

/// Reads the header's object into `arrays`, one entry at a time.
struct Header<'a> {
    arrays: &'a mut Vec<ArrayInfo>,
    file: usize,
    limit: u64,
    /// Set when there are more arrays than `limit`.
    over: &'a mut bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    dtype: ElementType,
    shape: Shape,
    data_offsets: (usize, usize),
}

/// A list of dimensions, of which no more are kept than any tensor has.
struct Shape(Vec<usize>);

impl<'de> Deserialize<'de> for Shape {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Dims;
        impl<'de> Visitor<'de> for Dims {
            type Value = Shape;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of dimensions")
            }

            fn visit_seq<A: serde::de::SeqAccess<'de>>(
                self,
                mut list: A,
            ) -> Result<Shape, A::Error> {
                let mut dims = Vec::new();
                while let Some(dim) = list.next_element()? {
                    if dims.len() == 64 {
                        return Err(A::Error::custom("more than 64 dimensions"));
                    }
                    dims.push(dim);
                }
                Ok(Shape(dims))
            }
        }
        deserializer.deserialize_seq(Dims)
    }
}

impl<'de> DeserializeSeed<'de> for Header<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Header<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let mut described = false;
        while let Some(name) = map.next_key::<String>()? {
            if name == "__metadata__" {
                if std::mem::replace(&mut described, true) {
                    return Err(A::Error::custom("__metadata__ occurs twice"));
                }
                map.next_value::<Texts>()?;
                continue;
            }
            if self.arrays.len() as u64 >= self.limit {
                *self.over = true;
                return Err(A::Error::custom("too many tensors"));
            }
            let Entry { dtype, shape, data_offsets: (start, end) } = map.next_value()?;
            self.arrays.push(ArrayInfo {
                name,
                element: dtype,
                shape: shape.0.into(),
                file: self.file,
                extent: start..end,
            });
        }
        Ok(())
    }
}

/// An object whose values are all text; nothing is kept.
struct Texts;

impl<'de> Deserialize<'de> for Texts {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Pairs;
        impl<'de> Visitor<'de> for Pairs {
            type Value = Texts;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of texts")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Texts, A::Error> {
                while map.next_entry::<String, String>()?.is_some() {}
                Ok(Texts)
            }
        }
        deserializer.deserialize_map(Pairs)
    }
}

/// `model.safetensors.index.json`: which file holds which tensor.
#[derive(Debug, Default)]
struct Index {
    files: Vec<String>,
    /// Tensors and the positions of their files in `files`.
    tensors: Vec<(String, usize)>,
}

impl Index {
    fn parse(bytes: &[u8], limits: &Limits) -> Result<Self> {
        let mut index = Self::default();
        let mut over = None;
        let mut reader = serde_json::Deserializer::from_slice(bytes);
        let seed = IndexSeed { index: &mut index, limits, over: &mut over };
        let parsed = seed.deserialize(&mut reader).and_then(|()| reader.end());
        if let Some((what, limit)) = over {
            return Err(FormatError::limit(INDEX, what, format!("more than {limit}"), limit));
        }
        parsed.map_err(|error| invalid(INDEX, &error))?;
        if index.files.is_empty() {
            return Err(FormatError::malformed(INDEX, "names no files"));
        }
        for file in &index.files {
            check_file_name(INDEX, file)?;
        }
        Ok(index)
    }

    /// Every tensor is where the index says.
    fn check(&self, files: &SafeTensors) -> Result<()> {
        for (tensor, file) in &self.tensors {
            if files.get(tensor).is_none_or(|array| array.file != *file) {
                let file = self.files.get(*file).map_or("", String::as_str);
                let message =
                    format!("says that {file} holds tensor {tensor:?}, which it does not");
                return Err(FormatError::malformed(INDEX, message));
            }
        }
        Ok(())
    }
}

struct IndexSeed<'a> {
    index: &'a mut Index,
    limits: &'a Limits,
    over: &'a mut Option<(&'static str, u64)>,
}

impl<'de> DeserializeSeed<'de> for IndexSeed<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for IndexSeed<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with a weight_map")
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<(), A::Error> {
        while let Some(key) = map.next_key::<String>()? {
            if key != "weight_map" {
                map.next_value::<IgnoredAny>()?;
            } else if self.index.files.is_empty() {
                map.next_value_seed(WeightMap(&mut self))?;
            } else {
                return Err(A::Error::custom("weight_map occurs twice"));
            }
        }
        Ok(())
    }
}

struct WeightMap<'a, 'b>(&'a mut IndexSeed<'b>);

impl<'de> DeserializeSeed<'de> for WeightMap<'_, '_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for WeightMap<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of file names")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let IndexSeed { index, limits, over } = self.0;
        while let Some((tensor, file)) = map.next_entry::<String, String>()? {
            let known = index.files.iter().rposition(|known| *known == file);
            if known.is_none() && index.files.len() >= limits.shards {
                **over = Some(("files of weights", limits.shards as u64));
                return Err(A::Error::custom("too many files"));
            }
            if index.tensors.len() as u64 >= limits.tensors {
                **over = Some(("tensors", limits.tensors));
                return Err(A::Error::custom("too many tensors"));
            }
            let position = known.unwrap_or(index.files.len());
            if known.is_none() {
                index.files.push(file);
            }
            index.tensors.push((tensor, position));
        }
        Ok(())
    }
}
