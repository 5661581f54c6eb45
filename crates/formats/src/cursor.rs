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

    /// The next `len` bytes, sharing the file's memory.
    pub(crate) fn take(&mut self, len: u64, what: &str) -> Result<Bytes> {
        let range = self.advance(len, what)?;
        Ok(self.bytes.slice(range))
    }

    /// What has been read since the cursor was at `start`.
    pub(crate) fn since(&self, start: usize) -> Bytes {
        self.bytes.slice(start.min(self.position)..self.position)
    }

    /// Passes over `len` bytes.
    pub(crate) fn skip(&mut self, len: u64, what: &str) -> Result<()> {
        self.advance(len, what).map(|_| ())
    }

    /// The next `N` bytes.
    pub(crate) fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N]> {
        let range = self.advance(N as u64, what)?;
        let read = self.bytes.get(range).and_then(|bytes| bytes.try_into().ok());
        read.ok_or_else(|| self.past_end(N as u64, what))
    }

    pub(crate) fn u32(&mut self, what: &str) -> Result<u32> {
        Ok(u32::from_le_bytes(self.array(what)?))
    }

    pub(crate) fn u64(&mut self, what: &str) -> Result<u64> {
        Ok(u64::from_le_bytes(self.array(what)?))
    }

    fn advance(&mut self, len: u64, what: &str) -> Result<std::ops::Range<usize>> {
        let end = usize::try_from(len)
            .ok()
            .and_then(|len| self.position.checked_add(len))
            .filter(|&end| end <= self.bytes.len())
            .ok_or_else(|| self.past_end(len, what))?;
        let start = std::mem::replace(&mut self.position, end);
        Ok(start..end)
    }

    fn past_end(&self, len: u64, what: &str) -> FormatError {
        let at = (self.position as u64, len);
        FormatError::truncated(self.subject, what, at, self.bytes.len() as u64)
    }
}
