//! A file on its way into the store: written piece by piece, resumable, hashed while it passes, and
//! given its name only once it is proven to be what was announced and is durable.
//!
//! Beside the bytes (`X.part`) lies a journal (`X.journal`): a first line that says what they are a
//! part of, and then the SHA-256 of every complete chunk. Whoever goes on reads the bytes again
//! (their digest is needed anyway), and keeps them up to the first chunk that a crash has torn.

use crate::digest::{Announced, Hasher, Sha256Digest, pump};
use crate::manifest::{HashError, Manifest, Record};
use crate::name::FileName;
use crate::options::{Phase, Watch};
use crate::sys::{self, Disk, DiskFile, Stamp};
use crate::{Result, StoreError};
use serde::{Deserialize, Serialize};
use std::fs;
use std::io::{self, BufRead, Read, Write};
use std::path::{Path, PathBuf};

/// Bytes per line of the journal.
const CHUNK: u64 = 8 << 20;

/// What a file will be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Wanted {
    /// Name in the model.
    pub(crate) path: String,
    /// Length.
    pub(crate) bytes: u64,
    /// How its bytes can be checked, if its publisher tells.
    pub(crate) announced: Option<Announced>,
}

/// Where the pieces of a model are put.
#[derive(Clone, Copy)]
pub(crate) struct Place<'a> {
    pub(crate) disk: &'a dyn Disk,
    /// Folder of the entry.
    pub(crate) entry: &'a Path,
    /// Folder for what has not arrived completely.
    pub(crate) part: &'a Path,
    /// Folder of the finished files.
    pub(crate) files: &'a Path,
}

impl Place<'_> {
    /// The file, if it has arrived already: a pull may have been interrupted after it, or only
    /// another file of the model may be damaged.
    pub(crate) fn finished(
        &self,
        wanted: &Wanted,
        watch: &mut Watch<'_>,
    ) -> Result<Option<Record>> {
        let (name, path) = self.target(wanted)?;
        let Ok(file) = sys::open_regular(&path) else { return Ok(None) };
        let failed = |error| StoreError::io("read", &path, error);
        let stamp = Stamp::of(&path).map_err(failed)?;
        let len = file.metadata().map_err(failed)?.len();
        // Without a digest there is nothing to recognise it by.
        let Some(announced) = wanted.announced.filter(|_| len == wanted.bytes) else {
            return Ok(None);
        };
        let mut tick = |done| watch.tick(Phase::Verifying, name.as_str(), done, Some(len));
        let (sha256, got) = crate::manifest::hash(file, Some(announced), len, &mut tick)
            .map_err(|error| error.at("read", &path))?;
        if got != announced {
            return Ok(None);
        }
        // The pull that put it here may have been cut off before this.
        let folder = path.parent().unwrap_or(self.files);
        self.disk.sync_dir(folder).map_err(failed)?;
        Ok(Some(Record { path: wanted.path.clone(), bytes: len, sha256, stamp }))
    }

    /// Removes what is in a file's place. The entry counts no more from now on, and not before: a
    /// damaged model is there to be seen until something comes in its place.
    pub(crate) fn clear(&self, path: &Path) -> Result<()> {
        Manifest::remove(self.disk, self.entry)?;
        let is_dir = fs::symlink_metadata(path).is_ok_and(|meta| meta.is_dir());
        let gone =
            if is_dir { self.disk.remove_dir_all(path) } else { self.disk.remove_file(path) };
        gone.map_err(|error| StoreError::io("remove", path, error))
    }

    fn target(&self, wanted: &Wanted) -> Result<(FileName, PathBuf)> {
        let name = FileName::new(&wanted.path).map_err(|why| StoreError::UnsafeName {
            of: "the model".into(),
            name: wanted.path.clone(),
            why,
        })?;
        let path = name.under(self.files);
        Ok((name, path))
    }
}

/// A file that is arriving.
pub(crate) struct Incoming<'a> {
    place: Place<'a>,
    wanted: Wanted,
    part: PathBuf,
    file: Box<dyn DiskFile>,
    journal: Box<dyn DiskFile>,
    whole: Hasher,
    chunk: Hasher,
    done: u64,
}

impl<'a> Incoming<'a> {
    /// Starts a file, or goes on with what an earlier attempt has left of the same one.
    pub(crate) fn open(place: Place<'a>, wanted: Wanted, watch: &mut Watch<'_>) -> Result<Self> {
        sys::create_dirs(place.disk, place.part)?;
        // Names in the model may be deeper or longer than a name here may be.
        let digest = Sha256Digest::of(wanted.path.as_bytes()).to_string();
        let stem = digest.get(..16).unwrap_or_default();
        let part = place.part.join(format!("{stem}.part"));
        let kept = Kept::read(&part, &wanted, watch)?;
        place.clear(&place.target(&wanted)?.1)?;
        let open = |path: &Path, keep| {
            let failed = |error| StoreError::io("write", path, error);
            place.disk.append(path, keep).map_err(failed)
        };
        let file = open(&part, kept.bytes)?;
        let journal = open(&part.with_extension("journal"), kept.journal)?;
        let Kept { whole, chunk, bytes: done, unwritten, .. } = kept;
        let mut this = Self { place, wanted, part, file, journal, whole, chunk, done };
        this.log(&unwritten)?;
        Ok(this)
    }

    /// Bytes that are here already.
    pub(crate) fn done(&self) -> u64 {
        self.done
    }

    pub(crate) fn wanted(&self) -> &Wanted {
        &self.wanted
    }

    /// Forgets what has arrived, and what was announced if there is news about that.
    pub(crate) fn restart(&mut self, wanted: Wanted) -> Result<()> {
        let failed = |error| StoreError::io("write", &self.part, error);
        self.file = self.place.disk.append(&self.part, 0).map_err(failed)?;
        let journal = self.part.with_extension("journal");
        self.journal = self.place.disk.append(&journal, 0).map_err(failed)?;
        self.whole = Hasher::new(wanted.announced, wanted.bytes);
        self.chunk = Hasher::new(None, CHUNK);
        self.done = 0;
        self.wanted = wanted;
        self.log(&first_line(&self.wanted)?)
    }

    /// Takes the next bytes. More than were announced are refused.
    pub(crate) fn write(&mut self, mut bytes: &[u8]) -> Result<()> {
        if bytes.len() as u64 > self.wanted.bytes - self.done {
            let got = format!("more than {} bytes", self.wanted.bytes);
            return Err(self.mismatch(format!("{} bytes", self.wanted.bytes), got));
        }
        while !bytes.is_empty() {
            let room = usize::try_from(CHUNK - self.done % CHUNK).unwrap_or(usize::MAX);
            let (now, later) = bytes.split_at(room.min(bytes.len()));
            let failed = |error| StoreError::io("write", &self.part, error);
            self.file.write_all(now).map_err(failed)?;
            self.whole.update(now);
            self.chunk.update(now);
            self.done += now.len() as u64;
            bytes = later;
            if self.done.is_multiple_of(CHUNK) {
                let chunk = std::mem::replace(&mut self.chunk, Hasher::new(None, CHUNK));
                self.log(&format!("{}\n", chunk.finish().0))?;
            }
        }
        Ok(())
    }

    fn log(&mut self, line: &str) -> Result<()> {
        let failed = |error| StoreError::io("write", self.part.with_extension("journal"), error);
        self.journal.write_all(line.as_bytes()).map_err(failed)
    }

    fn mismatch(&self, expected: String, got: String) -> StoreError {
        StoreError::Mismatch { file: self.wanted.path.clone(), expected, got }
    }

    /// Makes the file one of the model's, if it is what was announced. Otherwise nothing of it is
    /// kept.
    pub(crate) fn commit(mut self) -> Result<Record> {
        let (sha256, got) = self.whole.clone().finish();
        let expected = self.wanted.announced.unwrap_or(got);
        if self.done != self.wanted.bytes || got != expected {
            let error = if self.done == self.wanted.bytes {
                self.mismatch(expected.to_string(), got.to_string())
            } else {
                self.mismatch(format!("{} bytes", self.wanted.bytes), format!("{}", self.done))
            };
            self.discard()?;
            return Err(error);
        }
        let disk = self.place.disk;
        let (_, target) = self.place.target(&self.wanted)?;
        let failed = |error| StoreError::io("write", &target, error);
        self.file.sync().map_err(failed)?;
        drop((self.file, self.journal));
        let written = Stamp::of(&self.part).map_err(failed)?;
        if written.bytes() != self.wanted.bytes {
            let error = io::Error::other("the disk has another length than was written");
            return Err(failed(error));
        }
        let folder = target.parent().unwrap_or(self.place.files);
        sys::create_dirs(disk, folder)?;
        disk.rename(&self.part, &target).map_err(failed)?;
        disk.sync_dir(folder).map_err(failed)?;
        let journal = self.part.with_extension("journal");
        disk.remove_file(&journal).map_err(|error| StoreError::io("remove", &journal, error))?;
        let stamp = Stamp::of(&target).map_err(failed)?;
        Ok(Record { path: self.wanted.path, bytes: self.wanted.bytes, sha256, stamp })
    }

    /// Removes what has arrived.
    pub(crate) fn discard(self) -> Result<()> {
        let Self { place, part, file, journal, .. } = self;
        drop((file, journal));
        for path in [part.with_extension("journal"), part] {
            let failed = |error| StoreError::io("remove", &path, error);
            place.disk.remove_file(&path).map_err(failed)?;
        }
        Ok(())
    }
}

fn first_line(wanted: &Wanted) -> Result<String> {
    let failed = |error: serde_json::Error| StoreError::io("write", &wanted.path, error.into());
    Ok(format!("{}\n", serde_json::to_string(wanted).map_err(failed)?))
}

/// What of an earlier attempt can be gone on with.
struct Kept {
    whole: Hasher,
    /// Of the last chunk, which is not complete.
    chunk: Hasher,
    bytes: u64,
    /// Bytes of the journal that hold.
    journal: u64,
    /// What is to follow them.
    unwritten: String,
}

impl Kept {
    /// Nothing.
    fn none(wanted: &Wanted) -> Result<Self> {
        let whole = Hasher::new(wanted.announced, wanted.bytes);
        let chunk = Hasher::new(None, CHUNK);
        Ok(Self { whole, chunk, bytes: 0, journal: 0, unwritten: first_line(wanted)? })
    }

    /// Reads `part` and its journal. Without a digest to check the whole by there is no going on.
    fn read(part: &Path, wanted: &Wanted, watch: &mut Watch<'_>) -> Result<Self> {
        let none = Self::none(wanted)?;
        let (Ok(file), Ok(journal)) =
            (sys::open_regular(part), sys::open_regular(&part.with_extension("journal")))
        else {
            return Ok(none);
        };
        let mut lines = io::BufReader::new(journal.take(64 << 20)).lines().map_while(Result::ok);
        let first = none.unwritten.trim_end();
        if wanted.announced.is_none() || lines.next().as_deref() != Some(first) {
            return Ok(none);
        }
        let journal = none.unwritten.len() as u64;
        let mut kept = Self { journal, unwritten: String::new(), ..none };
        // What has come after the last complete chunk.
        let (mut pending, mut torn) = (Vec::new(), false);
        let read = pump(file.take(wanted.bytes), |mut piece| {
            while !piece.is_empty() && !torn {
                let room = usize::try_from(CHUNK).unwrap_or(usize::MAX) - pending.len();
                let (now, later) = piece.split_at(room.min(piece.len()));
                pending.extend_from_slice(now);
                piece = later;
                if pending.len() as u64 == CHUNK {
                    torn = !kept.chunk_holds(&pending, lines.next().as_deref());
                    pending.clear();
                }
            }
            watch
                .tick(Phase::Verifying, &wanted.path, kept.bytes, Some(wanted.bytes))
                .map_err(HashError::Stopped)
        });
        read.map_err(|error| error.at("read", part))?;
        if !torn {
            // No line vouches for the rest; the digest of the whole will.
            kept.chunk.update(&pending);
            kept.take(&pending);
        }
        Ok(kept)
    }

    /// Takes a complete chunk, unless its line says that it is damaged. One without a line was
    /// written just before the end, and gets its line now.
    fn chunk_holds(&mut self, chunk: &[u8], line: Option<&str>) -> bool {
        let digest = Sha256Digest::of(chunk).to_string();
        let written = line == Some(&digest);
        // A line that was being written is as good as none.
        if !written && line.is_some_and(|line| !digest.starts_with(line)) {
            return false;
        }
        if written && self.unwritten.is_empty() {
            self.journal += digest.len() as u64 + 1;
        } else {
            self.unwritten.push_str(&digest);
            self.unwritten.push('\n');
        }
        self.take(chunk);
        true
    }

    fn take(&mut self, bytes: &[u8]) {
        self.whole.update(bytes);
        self.bytes += bytes.len() as u64;
    }
}
