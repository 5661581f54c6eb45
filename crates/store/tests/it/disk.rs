//! Disks that fail, die, and forget.

use crate::SharedDisk;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use tangor_store::{Disk, DiskFile, RealDisk};

/// What a disk does at the chosen operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Fails once.
    Once(io::ErrorKind),
    /// Fails from then on. As nothing is written any more, this is also what the disk sees of a
    /// process that is killed.
    Forever(io::ErrorKind),
}

/// A disk that counts its operations and fails at one of them. A write that fails has written half,
/// unless it was only interrupted. Nothing is made durable in earnest, which would take most of the
/// time of the tests; what was asked to be is remembered for [`FaultyDisk::power_cut`].
#[derive(Debug)]
pub(crate) struct FaultyDisk {
    state: Arc<Mutex<State>>,
}

#[derive(Debug)]
struct State {
    at: usize,
    fault: Fault,
    operations: usize,
    /// Files with bytes that are not durable, and how many bytes of them are.
    unsynced: Vec<(PathBuf, u64)>,
    /// Renames that are not durable, the oldest first.
    renamed: Vec<(PathBuf, PathBuf)>,
}

impl State {
    fn step(&mut self) -> io::Result<()> {
        let now = self.operations;
        self.operations += 1;
        match self.fault {
            Fault::Once(kind) if now == self.at => Err(kind.into()),
            Fault::Forever(kind) if now >= self.at => Err(kind.into()),
            _ => Ok(()),
        }
    }
}

impl FaultyDisk {
    pub(crate) fn new(at: usize, fault: Fault) -> Arc<Self> {
        let (unsynced, renamed) = (Vec::new(), Vec::new());
        let state = State { at, fault, operations: 0, unsynced, renamed };
        Arc::new(Self { state: Arc::new(Mutex::new(state)) })
    }

    /// A disk that does not fail.
    pub(crate) fn sound() -> Arc<Self> {
        Self::new(usize::MAX, Fault::Once(io::ErrorKind::Other))
    }

    pub(crate) fn shared(self: &Arc<Self>) -> SharedDisk {
        Arc::clone(self) as SharedDisk
    }

    /// Whether the operation at which to fail has been reached.
    pub(crate) fn reached(&self) -> bool {
        let state = self.state.lock().unwrap();
        state.operations > state.at
    }

    /// Cuts the power: of whatever was not made durable, some is lost. `choose(n)` is below `n`.
    pub(crate) fn power_cut(&self, mut choose: impl FnMut(u64) -> u64) {
        let mut state = self.state.lock().unwrap();
        for (path, durable) in std::mem::take(&mut state.unsynced) {
            let Ok(mut bytes) = fs::read(&path) else { continue };
            let len = bytes.len() as u64;
            let kept = durable.min(len) + choose(len - durable.min(len) + 1);
            match choose(3) {
                0 => {}
                1 => bytes.truncate(kept as usize),
                _ => bytes[kept as usize..].fill(0),
            }
            fs::write(&path, bytes).unwrap();
        }
        for (from, to) in std::mem::take(&mut state.renamed).into_iter().rev() {
            if choose(2) == 0 && to.exists() {
                fs::rename(&to, &from).unwrap();
            }
        }
    }
}

impl Disk for FaultyDisk {
    fn create_dir(&self, path: &Path) -> io::Result<()> {
        self.state.lock().unwrap().step()?;
        RealDisk.create_dir(path)
    }

    fn append(&self, path: &Path, keep: u64) -> io::Result<Box<dyn DiskFile>> {
        let mut state = self.state.lock().unwrap();
        state.step()?;
        let inner = RealDisk.append(path, keep)?;
        state.unsynced.push((path.to_path_buf(), 0));
        let state = Arc::clone(&self.state);
        Ok(Box::new(FaultyFile { inner, path: path.to_path_buf(), state }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.state.lock().unwrap();
        state.step()?;
        RealDisk.rename(from, to)?;
        for (path, _) in state.unsynced.iter_mut().filter(|(path, _)| path == from) {
            *path = to.to_path_buf();
        }
        state.renamed.push((from.to_path_buf(), to.to_path_buf()));
        Ok(())
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        let mut state = self.state.lock().unwrap();
        state.step()?;
        state.renamed.retain(|(_, to)| to.parent() != Some(path));
        Ok(())
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.state.lock().unwrap().step()?;
        RealDisk.remove_file(path)
    }

    fn remove_dir_all(&self, path: &Path) -> io::Result<()> {
        self.state.lock().unwrap().step()?;
        RealDisk.remove_dir_all(path)
    }

    fn free_space(&self, path: &Path) -> Option<u64> {
        RealDisk.free_space(path)
    }
}

/// A disk that lets go of no folder, as Windows does where a file in it is open.
#[derive(Debug)]
pub(crate) struct HeldDisk;

impl Disk for HeldDisk {
    fn create_dir(&self, path: &Path) -> io::Result<()> {
        RealDisk.create_dir(path)
    }

    fn append(&self, path: &Path, keep: u64) -> io::Result<Box<dyn DiskFile>> {
        RealDisk.append(path, keep)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        if from.is_dir() {
            Err(io::ErrorKind::ResourceBusy.into())
        } else {
            RealDisk.rename(from, to)
        }
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        RealDisk.sync_dir(path)
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        RealDisk.remove_file(path)
    }

    fn remove_dir_all(&self, path: &Path) -> io::Result<()> {
        if path.is_dir() { Err(io::ErrorKind::ResourceBusy.into()) } else { Ok(()) }
    }

    fn free_space(&self, path: &Path) -> Option<u64> {
        RealDisk.free_space(path)
    }
}

struct FaultyFile {
    inner: Box<dyn DiskFile>,
    path: PathBuf,
    state: Arc<Mutex<State>>,
}

impl Write for FaultyFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut state = self.state.lock().unwrap();
        let dead = state.operations > state.at;
        if let Err(error) = state.step() {
            if !dead && error.kind() != io::ErrorKind::Interrupted {
                self.inner.write_all(&bytes[..bytes.len() / 2])?;
            }
            return Err(error);
        }
        self.inner.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

impl DiskFile for FaultyFile {
    fn sync(&mut self) -> io::Result<()> {
        let mut state = self.state.lock().unwrap();
        state.step()?;
        state.unsynced.retain(|(path, _)| *path != self.path);
        Ok(())
    }
}
