//! Reading little-endian numbers and byte runs from a file, each proven to lie inside it.

use crate::{FormatError, Result};
use tangor_tensor::Bytes;

/// A position in the bytes of one file.
#[derive(Debug)]
pub(crate) struct Cursor<'a> {
    subject: &'a str,
    bytes: &'a Bytes,
    position: usize,
}

impl<'a> Cursor<'a> {
    /// At the start of `bytes`; `subject` names the file in errors.
    pub(crate) fn new(subject: &'a str, bytes: &'a Bytes) -> Self {
        Self { subject, bytes, position: 0 }
    }

    pub(crate) fn subject(&self) -> &'a str {
        self.subject
    }

    pub(crate) fn position(&self) -> usize {
        self.position
    }

    pub(crate) fn remaining(&self) -> usize {
        self.bytes.len().saturating_sub(self.position)
    }

    /// The next `len` bytes.
    pub(crate) fn take(&mut self, len: u64, what: &str) -> Result<&'a [u8]> {
        let end = usize::try_from(len).ok().and_then(|len| self.position.checked_add(len));
        let bytes: &'a [u8] = self.bytes;
        let taken = end.and_then(|end| bytes.get(self.position..end));
        let (Some(taken), Some(end)) = (taken, end) else {
            let at = (self.position as u64, len);
            return Err(FormatError::truncated(self.subject, what, at, bytes.len() as u64));
        };
        self.position = end;
        Ok(taken)
    }

    /// The `len` bytes before the position, sharing the file's memory.
    pub(crate) fn last(&self, len: usize) -> Bytes {
        self.bytes.slice(self.position.saturating_sub(len)..self.position)
    }

    /// The next `N` bytes.
    pub(crate) fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N]> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N as u64, what)?);
        Ok(array)
    }

    pub(crate) fn u32(&mut self, what: &str) -> Result<u32> {
        Ok(u32::from_le_bytes(self.array(what)?))
    }

    pub(crate) fn u64(&mut self, what: &str) -> Result<u64> {
        Ok(u64::from_le_bytes(self.array(what)?))
    }
}
