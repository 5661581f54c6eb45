//! The record of an installed model: the one file of an entry that readers trust.

use crate::digest::{Announced, Hasher, Sha256Digest, pump};
use crate::name::FileName;
use crate::sys::{self, Disk, Stamp};
use crate::{Origin, Result, StoreError};
use serde::{Deserialize, Serialize};
use std::fs;
use std::io;
use std::path::Path;

/// Version of the format, raised when an older program could misread it.
const VERSION: u32 = 1;
/// A manifest longer than this is damaged.
const MAX_BYTES: u64 = 8 << 20;

/// One file of an entry, as it was verified.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) path: String,
    pub(crate) bytes: u64,
    pub(crate) sha256: Sha256Digest,
    pub(crate) stamp: Stamp,
}

/// What an entry consists of. Written last, so an entry that has one is complete.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Manifest {
    version: u32,
    /// The model's name, as [`crate::ModelName`] displays it.
    pub(crate) name: String,
    pub(crate) origin: Origin,
    /// The file to open, or empty for the folder of all files.
    pub(crate) open: String,
    pub(crate) files: Vec<Record>,
    /// Seconds since 1970.
    pub(crate) pulled_at: u64,
    /// When the stamps were taken; nanoseconds since 1970.
    checked_at: u64,
}

/// A manifest and its digest, so that a damaged one cannot be mistaken for another.
#[derive(Serialize, Deserialize)]
struct Sealed {
    sha256: Sha256Digest,
    manifest: Manifest,
}

/// How thoroughly an entry is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Check {
    /// Lengths only.
    Lengths,
    /// Files whose stamp is not the recorded one are hashed.
    Stamps,
    /// Every file is hashed.
    Digests,
}

impl Manifest {
    /// The manifest of files that were verified just now.
    pub(crate) fn new(name: String, origin: Origin, open: String, files: Vec<Record>) -> Self {
        let now = now();
        let pulled_at = now / 1_000_000_000;
        Self { version: VERSION, name, origin, open, files, pulled_at, checked_at: now }
    }

    /// Reads the manifest of the entry `folder`; `None` if it has none. `name` is for messages.
    pub(crate) fn read(folder: &Path, name: &str) -> Result<Option<Self>> {
        let path = folder.join(FILE);
        let damaged = |why: &str| damaged(name, FILE, why);
        match fs::symlink_metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) if error.kind() == io::ErrorKind::NotADirectory => return Ok(None),
            Err(error) => return Err(StoreError::io("read", path, error)),
            Ok(meta) if !meta.is_file() => return Err(damaged("is not a regular file")),
            Ok(meta) if meta.len() > MAX_BYTES => return Err(damaged("is too long")),
            Ok(_) => {}
        }
        let text = fs::read(&path).map_err(|error| StoreError::io("read", &path, error))?;
        let sealed: Sealed =
            serde_json::from_slice(&text).map_err(|_| damaged("cannot be understood"))?;
        if sealed.manifest.seal() != Some(sealed.sha256) {
            return Err(damaged("does not have its recorded digest"));
        }
        if sealed.manifest.version != VERSION {
            return Err(damaged("was written by another version of the program"));
        }
        let names = sealed.manifest.files.iter().map(|file| &file.path);
        if names.chain([&sealed.manifest.open]).any(|n| !n.is_empty() && FileName::new(n).is_err())
        {
            return Err(damaged("names a file outside of the model"));
        }
        Ok(Some(sealed.manifest))
    }

    /// Puts the manifest in place, which is what makes an entry count.
    pub(crate) fn write(&self, disk: &dyn Disk, folder: &Path) -> Result<()> {
        let path = folder.join(FILE);
        let failed = |error: serde_json::Error| StoreError::io("write", &path, error.into());
        let body = serde_json::to_vec(self).map_err(failed)?;
        let sealed = Sealed { sha256: Sha256Digest::of(&body), manifest: self.clone() };
        let text = serde_json::to_vec_pretty(&sealed).map_err(failed)?;
        sys::write_small(disk, &path, &text)
    }

    /// Makes an entry count no more.
    pub(crate) fn remove(disk: &dyn Disk, folder: &Path) -> Result<()> {
        let path = folder.join(FILE);
        if fs::symlink_metadata(&path).is_err_and(|error| error.kind() == io::ErrorKind::NotFound) {
            return Ok(());
        }
        let failed = |error| StoreError::io("remove", &path, error);
        disk.remove_file(&path).map_err(failed)?;
        disk.sync_dir(folder).map_err(failed)
    }

    fn seal(&self) -> Option<Sha256Digest> {
        serde_json::to_vec(self).ok().map(|body| Sha256Digest::of(&body))
    }

    /// Looks whether every file is what was pulled. `each` hears of every piece that is hashed: the
    /// file, its bytes so far, and its length.
    ///
    /// Returns whether the stamps of files that were hashed are newer than the recorded ones, in
    /// which case `self` has the new ones.
    pub(crate) fn check(
        &mut self,
        files: &Path,
        check: Check,
        each: &mut dyn FnMut(&str, u64, u64) -> Result<()>,
    ) -> Result<bool> {
        let checked_at = now();
        let mut renewed = false;
        for record in &mut self.files {
            let damaged = |why: &str| damaged(&self.name, &record.path, why);
            let name = FileName::new(&record.path).map_err(|why| damaged(&why))?;
            let path = name.under(files);
            let file = match sys::open_regular(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    return Err(damaged("is missing"));
                }
                Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                    return Err(damaged("is not a regular file"));
                }
                opened => opened.map_err(|error| StoreError::io("read", &path, error))?,
            };
            let stamp = Stamp::of(&path).map_err(|error| StoreError::io("read", &path, error))?;
            let bytes = file.metadata().map_err(|e| StoreError::io("read", &path, e))?.len();
            if bytes != record.bytes {
                return Err(damaged(&format!("has {bytes} bytes instead of {}", record.bytes)));
            }
            let rested = stamp == record.stamp && stamp.settled(self.checked_at);
            if check == Check::Lengths || (check == Check::Stamps && rested) {
                continue;
            }
            let mut each = |done| each(&record.path, done, bytes);
            let found = hash(file, None, bytes, &mut each).map_err(|e| e.at("read", &path))?;
            if found.0 != record.sha256 {
                return Err(damaged("does not have the digest it was pulled with"));
            }
            record.stamp = stamp;
            renewed = true;
        }
        if renewed {
            self.checked_at = checked_at;
        }
        Ok(renewed)
    }
}

/// The manifest's file name in an entry.
pub(crate) const FILE: &str = "manifest.json";

/// Nanoseconds since 1970.
pub(crate) fn now() -> u64 {
    sys::nanos(std::time::SystemTime::now())
}

fn damaged(name: &str, file: &str, why: &str) -> StoreError {
    StoreError::Damaged { name: name.to_owned(), file: file.to_owned(), why: why.to_owned() }
}

/// Why hashing stopped.
pub(crate) enum HashError {
    Io(io::Error),
    Stopped(StoreError),
}

impl From<io::Error> for HashError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl HashError {
    pub(crate) fn at(self, action: &'static str, path: &Path) -> StoreError {
        match self {
            Self::Io(error) => StoreError::io(action, path, error),
            Self::Stopped(error) => error,
        }
    }
}

/// Hashes everything that `reader` has; `each` hears of the bytes so far.
pub(crate) fn hash(
    reader: impl io::Read,
    announced: Option<Announced>,
    bytes: u64,
    each: &mut dyn FnMut(u64) -> Result<()>,
) -> Result<(Sha256Digest, Announced), HashError> {
    let mut hasher = Hasher::new(announced, bytes);
    let mut done = 0;
    pump(reader, |piece| {
        hasher.update(piece);
        done += piece.len() as u64;
        each(done).map_err(HashError::Stopped)
    })?;
    Ok(hasher.finish())
}
