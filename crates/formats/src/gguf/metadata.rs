//! GGUF metadata: typed key-value pairs. Arrays stay in the file's bytes and are read as they are
//! iterated, so that a vocabulary costs no memory here.

use crate::cursor::Cursor;
use crate::table::{Named, Table};
use crate::{FormatError, Limits, Result};
use tangor_tensor::Bytes;

/// The type of a metadata value or of an array's elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Unsigned, 8 bits.
    U8,
    /// Signed, 8 bits.
    I8,
    /// Unsigned, 16 bits.
    U16,
    /// Signed, 16 bits.
    I16,
    /// Unsigned, 32 bits.
    U32,
    /// Signed, 32 bits.
    I32,
    /// binary32.
    F32,
    /// One byte, 0 or 1.
    Bool,
    /// UTF-8 with its length before it.
    Str,
    /// Elements of one type.
    Array,
    /// Unsigned, 64 bits.
    U64,
    /// Signed, 64 bits.
    I64,
    /// binary64.
    F64,
}

impl Kind {
    const ALL: [Self; 13] = [
        Self::U8,
        Self::I8,
        Self::U16,
        Self::I16,
        Self::U32,
        Self::I32,
        Self::F32,
        Self::Bool,
        Self::Str,
        Self::Array,
        Self::U64,
        Self::I64,
        Self::F64,
    ];

    fn from_id(id: u32) -> Option<Self> {
        Self::ALL.get(usize::try_from(id).ok()?).copied()
    }

    /// Bytes of one value, where that is the same for all.
    const fn size(self) -> Option<usize> {
        match self {
            Self::U8 | Self::I8 | Self::Bool => Some(1),
            Self::U16 | Self::I16 => Some(2),
            Self::U32 | Self::I32 | Self::F32 => Some(4),
            Self::U64 | Self::I64 | Self::F64 => Some(8),
            Self::Str | Self::Array => None,
        }
    }
}

/// A metadata value that is not an array.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Scalar<'a> {
    /// Any integer type.
    Int(i128),
    /// Either floating-point type.
    Float(f64),
    /// A truth value.
    Bool(bool),
    /// Text.
    Str(&'a str),
}

/// A value as stored: its type and its bytes (without lengths, for text).
#[derive(Clone, Debug)]
pub struct Value {
    kind: Kind,
    /// For arrays: the elements' type and number.
    elements: Option<(Kind, usize)>,
    bytes: Bytes,
}

#[derive(Debug)]
struct Entry {
    key: String,
    value: Value,
}

impl Named for Entry {
    fn name(&self) -> &str {
        &self.key
    }
}

/// The key-value pairs of a GGUF file.
///
/// Numbers are found by value, not by width: a count that a converter stored as `i32` or `u64`
/// reads as `u32` if it fits. Accessors fail with the key's name if it is missing or of another
/// type; those that start with `opt_` return `None` if it is missing.
#[derive(Debug)]
pub struct Metadata {
    subject: String,
    entries: Table<Entry>,
}

impl Value {
    /// The value's type.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// An array's element type and length.
    #[must_use]
    pub fn elements(&self) -> Option<(Kind, usize)> {
        self.elements
    }

    /// The value, if it is not an array.
    #[must_use]
    pub fn scalar(&self) -> Option<Scalar<'_>> {
        if self.kind == Kind::Array { None } else { scalar(self.kind, &self.bytes) }
    }

    /// The elements of an array (nothing for other values).
    #[must_use]
    pub fn iter(&self) -> Elements<'_> {
        let (kind, left) = self.elements.unwrap_or((Kind::U8, 0));
        Elements { kind, left, bytes: &self.bytes }
    }

    fn read(cursor: &mut Cursor<'_>, limits: &Limits) -> Result<Self> {
        let kind = read_kind(cursor)?;
        match kind {
            Kind::Str => {
                let len = read_str(cursor, limits)?.len();
                Ok(Self { kind, elements: None, bytes: cursor.last(len) })
            }
            Kind::Array => Self::read_array(cursor, limits),
            _ => {
                let len = kind.size().unwrap_or(0);
                let bytes = cursor.take(len as u64, "a metadata value")?;
                check_bools(cursor, kind, bytes)?;
                Ok(Self { kind, elements: None, bytes: cursor.last(len) })
            }
        }
    }

    fn read_array(cursor: &mut Cursor<'_>, limits: &Limits) -> Result<Self> {
        let element = read_kind(cursor)?;
        let count = cursor.u64("the length of an array")?;
        if count > limits.gguf_array_elements {
            let limit = limits.gguf_array_elements;
            return Err(FormatError::limit(cursor.subject(), "elements of an array", count, limit));
        }
        let start = cursor.position();
        match element {
            Kind::Array => {
                let message = "metadata has arrays of arrays";
                return Err(FormatError::unsupported(cursor.subject(), message));
            }
            Kind::Str => {
                for _ in 0..count {
                    read_str(cursor, limits)?;
                }
            }
            _ => {
                let size = element.size().unwrap_or(0) as u64;
                cursor.take(count.saturating_mul(size), "an array")?;
            }
        }
        let bytes = cursor.last(cursor.position().saturating_sub(start));
        check_bools(cursor, element, &bytes)?;
        let count = usize::try_from(count).unwrap_or(0);
        Ok(Self { kind: Kind::Array, elements: Some((element, count)), bytes })
    }
}

/// The elements of an array, read from the file's bytes as they are asked for.
#[derive(Clone, Debug)]
pub struct Elements<'a> {
    kind: Kind,
    left: usize,
    bytes: &'a [u8],
}

impl<'a> Iterator for Elements<'a> {
    type Item = Scalar<'a>;

    fn next(&mut self) -> Option<Scalar<'a>> {
        self.left = self.left.checked_sub(1)?;
        let len = match self.kind.size() {
            Some(size) => size,
            None => {
                let (len, rest) = self.bytes.split_first_chunk::<8>()?;
                self.bytes = rest;
                usize::try_from(u64::from_le_bytes(*len)).ok()?
            }
        };
        let (value, rest) = self.bytes.split_at_checked(len)?;
        self.bytes = rest;
        scalar(self.kind, value)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (0, Some(self.left))
    }
}

impl Metadata {
    /// Reads `count` pairs.
    pub(super) fn read(cursor: &mut Cursor<'_>, count: u64, limits: &Limits) -> Result<Self> {
        let subject = cursor.subject();
        if count > limits.gguf_metadata_entries {
            let limit = limits.gguf_metadata_entries;
            return Err(FormatError::limit(subject, "metadata entries", count, limit));
        }
        // A pair takes at least 8 + 4 + 1 bytes of the file.
        let fit = cursor.remaining() / 13;
        let mut entries = Vec::with_capacity(usize::try_from(count).unwrap_or(fit).min(fit));
        for _ in 0..count {
            let key = read_str(cursor, limits)?.to_owned();
            let value = Value::read(cursor, limits)
                .map_err(|error| error.about(&format!("metadata {key:?}")))?;
            entries.push(Entry { key, value });
        }
        let entries = Table::new(entries).map_err(|key| {
            FormatError::malformed(subject, format!("metadata key {key:?} occurs twice"))
        })?;
        Ok(Self { subject: subject.to_owned(), entries })
    }

    /// The file's name.
    pub(super) fn subject(&self) -> &str {
        &self.subject
    }

    /// Keys and values in the order of the file.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.entries.iter().map(|entry| (entry.key.as_str(), &entry.value))
    }

    /// The value of a key, whatever its type.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.entries.get(key).map(|entry| &entry.value)
    }

    /// Text, or `None` if the key is missing.
    ///
    /// # Errors
    /// If the value is not text.
    pub fn opt_str(&self, key: &str) -> Result<Option<&str>> {
        self.scalar(key, "text", |value| match value {
            Scalar::Str(text) => Some(text),
            _ => None,
        })
    }

    /// A whole number, or `None` if the key is missing.
    ///
    /// # Errors
    /// If the value is not a whole number, or does not fit `u32`.
    pub fn opt_u32(&self, key: &str) -> Result<Option<u32>> {
        self.scalar(key, "a number of 0 to 4294967295", int)
    }

    /// A count, or `None` if the key is missing.
    ///
    /// # Errors
    /// If the value is not a whole number, or does not fit `usize`.
    pub fn opt_usize(&self, key: &str) -> Result<Option<usize>> {
        self.scalar(key, "a count", int)
    }

    /// A number, or `None` if the key is missing.
    ///
    /// # Errors
    /// If the value is not a finite floating-point number.
    pub fn opt_f32(&self, key: &str) -> Result<Option<f32>> {
        self.scalar(key, "a finite number", float)
    }

    /// A truth value, or `None` if the key is missing.
    ///
    /// # Errors
    /// If the value is of another type.
    pub fn opt_bool(&self, key: &str) -> Result<Option<bool>> {
        self.scalar(key, "true or false", |value| match value {
            Scalar::Bool(flag) => Some(flag),
            _ => None,
        })
    }

    /// The texts of an array, or `None` if the key is missing.
    ///
    /// # Errors
    /// If the value is not an array of texts.
    pub fn opt_strings(&self, key: &str) -> Result<Option<impl Iterator<Item = &str> + Clone>> {
        let elements = self.elements(key, "a list of texts", |kind| kind == Kind::Str)?;
        Ok(elements.map(|elements| {
            elements.map(|element| if let Scalar::Str(text) = element { text } else { "" })
        }))
    }

    /// The numbers of an array, or `None` if the key is missing.
    ///
    /// # Errors
    /// If the value is not an array of floating-point numbers.
    pub fn opt_f32s(&self, key: &str) -> Result<Option<impl Iterator<Item = f32> + Clone>> {
        let is = |kind| matches!(kind, Kind::F32 | Kind::F64);
        let elements = self.elements(key, "a list of numbers", is)?;
        #[allow(clippy::cast_possible_truncation)]
        Ok(elements.map(|elements| {
            elements.map(|e| if let Scalar::Float(value) = e { value as f32 } else { f32::NAN })
        }))
    }

    /// The whole numbers of an array, or `None` if the key is missing.
    ///
    /// # Errors
    /// If the value is not an array of whole numbers that fit `i32`.
    pub fn opt_i32s(&self, key: &str) -> Result<Option<impl Iterator<Item = i32> + Clone>> {
        let is =
            |kind| !matches!(kind, Kind::Str | Kind::Array | Kind::Bool | Kind::F32 | Kind::F64);
        let Some(elements) = self.elements(key, "a list of whole numbers", is)? else {
            return Ok(None);
        };
        if elements.clone().any(|element| int::<i32>(element).is_none()) {
            return Err(self.wrong(key, "a list of whole numbers of 32 bits"));
        }
        Ok(Some(elements.map(|element| int(element).unwrap_or(0))))
    }

    /// Text.
    ///
    /// # Errors
    /// If the key is missing or of another type.
    pub fn str(&self, key: &str) -> Result<&str> {
        self.opt_str(key)?.ok_or_else(|| self.missing(key))
    }

    /// A whole number.
    ///
    /// # Errors
    /// If the key is missing, of another type, or does not fit.
    pub fn u32(&self, key: &str) -> Result<u32> {
        self.opt_u32(key)?.ok_or_else(|| self.missing(key))
    }

    /// A count.
    ///
    /// # Errors
    /// If the key is missing, of another type, or does not fit.
    pub fn usize(&self, key: &str) -> Result<usize> {
        self.opt_usize(key)?.ok_or_else(|| self.missing(key))
    }

    /// A finite number.
    ///
    /// # Errors
    /// If the key is missing, of another type, or not finite.
    pub fn f32(&self, key: &str) -> Result<f32> {
        self.opt_f32(key)?.ok_or_else(|| self.missing(key))
    }

    /// A truth value.
    ///
    /// # Errors
    /// If the key is missing or of another type.
    pub fn bool(&self, key: &str) -> Result<bool> {
        self.opt_bool(key)?.ok_or_else(|| self.missing(key))
    }

    /// The texts of an array.
    ///
    /// # Errors
    /// If the key is missing or of another type.
    pub fn strings(&self, key: &str) -> Result<impl Iterator<Item = &str> + Clone> {
        self.opt_strings(key)?.ok_or_else(|| self.missing(key))
    }

    /// The numbers of an array.
    ///
    /// # Errors
    /// If the key is missing or of another type.
    pub fn f32s(&self, key: &str) -> Result<impl Iterator<Item = f32> + Clone> {
        self.opt_f32s(key)?.ok_or_else(|| self.missing(key))
    }

    /// The whole numbers of an array.
    ///
    /// # Errors
    /// If the key is missing, of another type, or an element does not fit.
    pub fn i32s(&self, key: &str) -> Result<impl Iterator<Item = i32> + Clone> {
        self.opt_i32s(key)?.ok_or_else(|| self.missing(key))
    }

    /// Length of an array; 0 if the key is missing or not an array.
    #[must_use]
    pub fn len_of(&self, key: &str) -> usize {
        self.get(key).and_then(Value::elements).map_or(0, |(_, len)| len)
    }

    /// The error for a key that has to be there and is not.
    #[must_use]
    pub fn missing(&self, key: &str) -> FormatError {
        FormatError::missing(&self.subject, format!("has no metadata {key:?}"))
    }

    /// The error for a key whose value is not `what` it should be.
    #[must_use]
    pub fn wrong(&self, key: &str, what: &str) -> FormatError {
        FormatError::malformed(&self.subject, format!("metadata {key:?} is not {what}"))
    }

    fn scalar<'a, T>(
        &'a self,
        key: &str,
        what: &str,
        read: impl Fn(Scalar<'a>) -> Option<T>,
    ) -> Result<Option<T>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        value.scalar().and_then(read).map(Some).ok_or_else(|| self.wrong(key, what))
    }

    fn elements(
        &self,
        key: &str,
        what: &str,
        is: impl Fn(Kind) -> bool,
    ) -> Result<Option<Elements<'_>>> {
        match self.get(key) {
            None => Ok(None),
            Some(value) if value.elements.is_some_and(|(kind, _)| is(kind)) => {
                Ok(Some(value.iter()))
            }
            Some(_) => Err(self.wrong(key, what)),
        }
    }
}

fn int<T: TryFrom<i128>>(value: Scalar<'_>) -> Option<T> {
    if let Scalar::Int(value) = value { T::try_from(value).ok() } else { None }
}

fn float(value: Scalar<'_>) -> Option<f32> {
    let Scalar::Float(value) = value else { return None };
    #[allow(clippy::cast_possible_truncation)]
    let value = value as f32;
    value.is_finite().then_some(value)
}

fn scalar(kind: Kind, bytes: &[u8]) -> Option<Scalar<'_>> {
    Some(match kind {
        Kind::U8 => Scalar::Int(u8::from_le_bytes(bytes.try_into().ok()?).into()),
        Kind::I8 => Scalar::Int(i8::from_le_bytes(bytes.try_into().ok()?).into()),
        Kind::U16 => Scalar::Int(u16::from_le_bytes(bytes.try_into().ok()?).into()),
        Kind::I16 => Scalar::Int(i16::from_le_bytes(bytes.try_into().ok()?).into()),
        Kind::U32 => Scalar::Int(u32::from_le_bytes(bytes.try_into().ok()?).into()),
        Kind::I32 => Scalar::Int(i32::from_le_bytes(bytes.try_into().ok()?).into()),
        Kind::U64 => Scalar::Int(u64::from_le_bytes(bytes.try_into().ok()?).into()),
        Kind::I64 => Scalar::Int(i64::from_le_bytes(bytes.try_into().ok()?).into()),
        Kind::F32 => Scalar::Float(f32::from_le_bytes(bytes.try_into().ok()?).into()),
        Kind::F64 => Scalar::Float(f64::from_le_bytes(bytes.try_into().ok()?)),
        Kind::Bool => Scalar::Bool(bytes.first().is_some_and(|&byte| byte != 0)),
        Kind::Str => Scalar::Str(std::str::from_utf8(bytes).ok()?),
        Kind::Array => return None,
    })
}

fn read_kind(cursor: &mut Cursor<'_>) -> Result<Kind> {
    let id = cursor.u32("the type of a metadata value")?;
    Kind::from_id(id).ok_or_else(|| {
        FormatError::malformed(cursor.subject(), format!("metadata type {id} does not exist"))
    })
}

/// Text with its length before it: proven to be UTF-8.
pub(super) fn read_str<'a>(cursor: &mut Cursor<'a>, limits: &Limits) -> Result<&'a str> {
    let len = cursor.u64("the length of a string")?;
    if len > limits.gguf_string_bytes {
        let limit = limits.gguf_string_bytes;
        return Err(FormatError::limit(cursor.subject(), "bytes of a string", len, limit));
    }
    let bytes = cursor.take(len, "a string")?;
    std::str::from_utf8(bytes)
        .map_err(|_| FormatError::malformed(cursor.subject(), "holds text that is not UTF-8"))
}

fn check_bools(cursor: &Cursor<'_>, kind: Kind, bytes: &[u8]) -> Result<()> {
    if kind == Kind::Bool && bytes.iter().any(|&byte| byte > 1) {
        let message = "holds a truth value that is neither 0 nor 1";
        return Err(FormatError::malformed(cursor.subject(), message));
    }
    Ok(())
}
