//! Packed weights: what a device made of a model's weights, kept for the next start.
//!
//! ```text
//! root/packed/MODEL-FORM.packed   an entry: the data, which is mapped; what it is; a foot
//! root/packed/MODEL-FORM.part     an entry that is being written, under its lock
//! root/packed/MODEL-FORM.seen     the state in which the entry was found good; its age is the use
//! root/locks/packed-MODEL-FORM.lock
//! ```
//! An entry gets its name when it is complete, and its parts are checksummed. What it says about
//! itself is checked at every start. The data is as large as the model, so it is checked only when
//! its file is not in the state in which it was found good, or the machine was started since: then
//! it has to be read from the disk anyhow. So a torn, truncated, exchanged or edited entry is found
//! before it is used, and a start costs no reading of what is in memory already.
//!
//! Nothing here is needed: whatever fails, the weights are packed again.

mod file;

use crate::digest::Sha256Digest;
use crate::sys::{self, DiskFile, Lock};
use crate::{Installed, Result, Store, StoreError};
use file::{CHUNK, Tail};
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::SystemTime;
use tangor_formats::tensor::{Bytes, MapGuard, Stamp};

/// Bytes of the disk that are left to others.
const RESERVE: u64 = 256 << 20;

/// Packed weights that were kept.
#[derive(Clone, Debug)]
pub struct PackedEntry {
    /// What the device wrote about the data.
    pub index: String,
    /// The data, mapped.
    pub data: Bytes,
    /// Fails once part of the data is lost.
    pub guard: MapGuard,
}

/// An entry, as it is listed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PackedInfo {
    /// Its file.
    pub path: PathBuf,
    /// Bytes on the disk.
    pub bytes: u64,
    /// When it was used last.
    pub used: SystemTime,
}

/// Writes an entry. Dropping it keeps nothing.
#[derive(Debug)]
pub struct PackedWriter {
    store: Store,
    place: Place,
    file: Option<Open>,
    tail: Tail,
    /// The beginning of a chunk.
    buffer: Vec<u8>,
    _lock: Lock,
}

/// Where an entry and its companions are.
#[derive(Debug)]
struct Place {
    entry: PathBuf,
    part: PathBuf,
    seen: PathBuf,
    lock: String,
}

struct Open(Box<dyn DiskFile>);

impl std::fmt::Debug for Open {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Open")
    }
}

impl Store {
    /// The entry of these weights in this form; `None` if there is none that can be used. One that
    /// is damaged is removed.
    #[must_use]
    pub fn find_packed(&self, model: &str, form: &str) -> Option<PackedEntry> {
        if self.options.packed_bytes == 0 {
            return None;
        }
        let place = self.place(model, form);
        let file = sys::open_regular(&place.entry).ok()?;
        let map = tangor_formats::tensor::map_file_in_large_pages(&file).ok()?;
        let found = self.read(&place, &file, map, (model, form));
        if found.is_none() {
            self.forget(&place);
        }
        found
    }

    fn read(
        &self,
        place: &Place,
        file: &fs::File,
        (bytes, guard): (Bytes, MapGuard),
        key: (&str, &str),
    ) -> Option<PackedEntry> {
        let tail = Tail::read(file)?;
        if (tail.model.as_str(), tail.form.as_str()) != key {
            return None;
        }
        let state = self.state(file)?;
        let len = usize::try_from(tail.data).ok().filter(|&len| len <= bytes.len())?;
        let data = bytes.slice(..len);
        let good = fs::read_to_string(&place.seen).is_ok_and(|seen| seen == state)
            || (tail.is_of(&data) && guard.check().is_ok());
        if !good {
            return None;
        }
        self.mark(place, &state);
        Some(PackedEntry { index: tail.index, data, guard })
    }

    /// Removes the entry of these weights in this form, if there is one.
    pub fn discard_packed(&self, model: &str, form: &str) {
        self.forget(&self.place(model, form));
    }

    /// Begins to write about `bytes` bytes; the entries that were not used for longest make room.
    /// `None` if another process is doing it or has done it.
    ///
    /// # Errors
    /// [`StoreError::NoSpace`] if the disk or the cache is too small, [`StoreError::Io`].
    pub fn create_packed(
        &self,
        model: &str,
        form: &str,
        bytes: u64,
    ) -> Result<Option<PackedWriter>> {
        if self.options.packed_bytes == 0 {
            return Ok(None);
        }
        let place = self.place(model, form);
        let disk = &*self.options.disk;
        let folder = self.root.join(FOLDER);
        sys::create_dirs(disk, &folder)?;
        let Some(lock) = self.lock_packed(&place)? else { return Ok(None) };
        if place.entry.exists() {
            return Ok(None);
        }
        self.make_room(&folder, bytes)?;
        let failed = |error| StoreError::io("write", &place.part, error);
        let file = disk.append(&place.part, 0).map_err(failed)?;
        Ok(Some(PackedWriter {
            store: self.clone(),
            place,
            file: Some(Open(file)),
            tail: Tail::new(model, form),
            buffer: Vec::with_capacity(CHUNK),
            _lock: lock,
        }))
    }

    /// Bytes that all entries together may take on the disk.
    #[must_use]
    pub fn packed_limit(&self) -> u64 {
        self.options.packed_bytes
    }

    /// All entries, those that were used longest ago first.
    #[must_use]
    pub fn packed(&self) -> Vec<PackedInfo> {
        let Ok(entries) = fs::read_dir(self.root.join(FOLDER)) else { return Vec::new() };
        let info = |path: PathBuf| {
            let meta = fs::symlink_metadata(&path).ok().filter(fs::Metadata::is_file)?;
            let seen = fs::symlink_metadata(path.with_extension(SEEN)).ok();
            let used = seen.unwrap_or_else(|| meta.clone()).modified().ok()?;
            Some(PackedInfo { path, bytes: meta.len(), used })
        };
        let of_entries = |path: &PathBuf| path.extension().is_some_and(|kind| kind == ENTRY);
        let paths = entries.flatten().map(|entry| entry.path()).filter(of_entries);
        let mut all: Vec<PackedInfo> = paths.filter_map(info).collect();
        all.sort_by(|a, b| (a.used, &a.path).cmp(&(b.used, &b.path)));
        all
    }

    /// The entries that were made from a model's files, as these are now.
    #[must_use]
    pub fn packed_of(&self, model: &Installed) -> Vec<PackedInfo> {
        let mut folder = model.path.clone();
        if folder.is_file() {
            folder.pop();
        }
        let stamp = |file: &crate::FileInfo| {
            let path = file.path.split('/').fold(folder.clone(), |path, part| path.join(part));
            Some(Stamp::of(&fs::metadata(path).ok()?)?.to_string())
        };
        let stamps: Vec<String> = model.files.iter().filter_map(stamp).collect();
        let made_of = |info: &PackedInfo| {
            let tail = sys::open_regular(&info.path).ok().and_then(|file| Tail::read(&file));
            tail.is_some_and(|tail| stamps.iter().any(|stamp| tail.model.contains(stamp)))
        };
        self.packed().into_iter().filter(made_of).collect()
    }

    /// Removes entries; programs that use them go on undisturbed. Returns their bytes.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn remove_packed(&self, entries: &[PackedInfo]) -> Result<u64> {
        for entry in entries {
            let failed = |error| StoreError::io("remove", &entry.path, error);
            self.options.disk.remove_file(&entry.path).map_err(failed)?;
            let _ = self.options.disk.remove_file(&entry.path.with_extension(SEEN));
        }
        Ok(entries.iter().map(|entry| entry.bytes).sum())
    }

    /// Reads all of an entry. One that is not what was written is removed.
    ///
    /// # Errors
    /// [`StoreError::Damaged`], [`StoreError::Io`].
    pub fn verify_packed(&self, info: &PackedInfo) -> Result<()> {
        let failed = |error| StoreError::io("read", &info.path, error);
        let file = sys::open_regular(&info.path).map_err(failed)?;
        let (bytes, guard) = tangor_formats::tensor::map_file(&file).map_err(failed)?;
        let good = Tail::read(&file).is_some_and(|tail| {
            let data = usize::try_from(tail.data).ok().and_then(|len| bytes.get(..len));
            data.is_some_and(|data| tail.is_of(data))
        });
        guard.release();
        if good && guard.check().is_ok() {
            return Ok(());
        }
        self.remove_packed(std::slice::from_ref(info))?;
        Err(StoreError::Damaged {
            name: "the cache of packed weights".into(),
            file: info.path.display().to_string(),
            why: "was not what had been written, and was removed".into(),
        })
    }

    /// Whether weights of this identity were packed before.
    pub(crate) fn has_packed(&self, model: &str) -> bool {
        let Ok(entries) = fs::read_dir(self.root.join(FOLDER)) else { return false };
        let begin = short(model);
        let is_of = |path: &Path| {
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            let tail = || Tail::read(&sys::open_regular(path).ok()?);
            name.starts_with(&begin)
                && path.extension().is_some_and(|kind| kind == ENTRY)
                && tail().is_some_and(|tail| tail.model == model)
        };
        entries.flatten().any(|entry| is_of(&entry.path()))
    }

    fn place(&self, model: &str, form: &str) -> Place {
        let name = format!("{}-{}", short(model), short(form));
        let file = |kind: &str| self.root.join(FOLDER).join(format!("{name}.{kind}"));
        let (entry, part, seen) = (file(ENTRY), file(PART), file(SEEN));
        Place { entry, part, seen, lock: format!("packed-{name}.lock") }
    }

    fn lock_packed(&self, place: &Place) -> Result<Option<Lock>> {
        let folder = self.root.join("locks");
        sys::create_dirs(&*self.options.disk, &folder)?;
        Lock::take(&folder.join(&place.lock))
    }

    fn forget(&self, place: &Place) {
        // What cannot be removed is found to be no good again the next time.
        let _ = self.options.disk.remove_file(&place.entry);
        let _ = self.options.disk.remove_file(&place.seen);
    }

    /// What has to stay the same for an entry that was good to be good.
    fn state(&self, file: &fs::File) -> Option<String> {
        let stamp = Stamp::of(&file.metadata().ok()?)?;
        let boot = self.options.disk.boot().unwrap_or_default();
        Some(format!("{stamp} {boot}\n"))
    }

    /// Notes that an entry is good, and in use. If that fails it is read again the next time.
    fn mark(&self, place: &Place, state: &str) {
        let disk = &*self.options.disk;
        let new = place.seen.with_extension(format!("{SEEN}-{}", std::process::id()));
        let written = disk.append(&new, 0).and_then(|mut file| file.write_all(state.as_bytes()));
        if written.and_then(|()| disk.rename(&new, &place.seen)).is_err() {
            let _ = disk.remove_file(&new);
        }
    }

    /// Removes what was not used for longest until `bytes` more are allowed and fit.
    fn make_room(&self, folder: &Path, bytes: u64) -> Result<()> {
        let (limit, disk) = (self.options.packed_bytes, &*self.options.disk);
        self.sweep(folder);
        let mut entries = self.packed().into_iter();
        let mut total: u64 = entries.as_slice().iter().map(|entry| entry.bytes).sum();
        loop {
            let (need, have) = (bytes.saturating_add(RESERVE), disk.free_space(folder));
            let allowed = total.saturating_add(bytes) <= limit;
            if allowed && have.is_none_or(|have| have >= need) {
                return Ok(());
            }
            let Some(oldest) = entries.next() else {
                let path = folder.to_path_buf();
                let have = if allowed { have } else { Some(limit) };
                return Err(StoreError::NoSpace { path, need: Some(need), have });
            };
            self.remove_packed(std::slice::from_ref(&oldest))?;
            total -= oldest.bytes;
        }
    }

    /// Removes what processes that were killed have left half written.
    fn sweep(&self, folder: &Path) {
        let Ok(entries) = fs::read_dir(folder) else { return };
        for path in entries.flatten().map(|entry| entry.path()) {
            let kind = path.extension().and_then(|kind| kind.to_str()).unwrap_or_default();
            let name = path.file_stem().and_then(|name| name.to_str()).unwrap_or_default();
            if kind == PART {
                let lock = self.root.join("locks").join(format!("packed-{name}.lock"));
                if let Ok(Some(_lock)) = Lock::take(&lock) {
                    let _ = self.options.disk.remove_file(&path);
                }
            } else if kind.starts_with(SEEN) && !path.with_extension(ENTRY).exists() {
                let _ = self.options.disk.remove_file(&path);
            }
        }
    }
}

impl PackedWriter {
    /// Appends to the data.
    ///
    /// # Errors
    /// [`StoreError::NoSpace`], [`StoreError::Io`]; nothing can be written after that.
    pub fn write(&mut self, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            if self.buffer.is_empty() && bytes.len() >= CHUNK {
                let (chunk, rest) = bytes.split_at(CHUNK);
                self.chunk(chunk)?;
                bytes = rest;
                continue;
            }
            let (some, rest) = bytes.split_at(bytes.len().min(CHUNK - self.buffer.len()));
            self.buffer.extend_from_slice(some);
            bytes = rest;
            if self.buffer.len() == CHUNK {
                self.flush()?;
            }
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        let mut buffer = std::mem::take(&mut self.buffer);
        if !buffer.is_empty() {
            self.chunk(&buffer)?;
        }
        buffer.clear();
        self.buffer = buffer;
        Ok(())
    }

    /// Writes a chunk with one call of the system: what is written in whole large pages is mapped
    /// in large pages.
    fn chunk(&mut self, bytes: &[u8]) -> Result<()> {
        self.tail.add(bytes);
        self.put(bytes)
    }

    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        let failed = |error| StoreError::io("write", &self.place.part, error);
        match &mut self.file {
            Some(file) => file.0.write_all(bytes).map_err(failed),
            None => Ok(()),
        }
    }

    /// Completes the entry.
    ///
    /// # Errors
    /// As [`PackedWriter::write`].
    pub fn finish(mut self, index: String) -> Result<()> {
        self.flush()?;
        self.tail.index = index;
        let end = self.tail.to_bytes();
        self.put(&end)?;
        let disk = std::sync::Arc::clone(&self.store.options.disk);
        let Some(mut file) = self.file.take() else { return Ok(()) };
        let failed = |error| StoreError::io("write", &self.place.part, error);
        // Where a power cut would not show, nothing may depend on there being none.
        if disk.boot().is_none() {
            file.0.sync().map_err(failed)?;
        }
        drop(file);
        disk.rename(&self.place.part, &self.place.entry).map_err(failed)?;
        let state = sys::open_regular(&self.place.entry).ok();
        if let Some(state) = state.and_then(|file| self.store.state(&file)) {
            self.store.mark(&self.place, &state);
        }
        Ok(())
    }
}

impl Drop for PackedWriter {
    fn drop(&mut self) {
        if self.file.take().is_some() {
            let _ = self.store.options.disk.remove_file(&self.place.part);
        }
    }
}

/// Folder of the entries, in the root.
const FOLDER: &str = "packed";
/// File name extensions of an entry and its companions.
const ENTRY: &str = "packed";
const PART: &str = "part";
const SEEN: &str = "seen";

/// A name for a text.
fn short(text: &str) -> String {
    let mut name = Sha256Digest::of(text.as_bytes()).to_string();
    name.truncate(20);
    name
}
