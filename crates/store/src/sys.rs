//! Everything that differs between systems: the disk as the store writes it, locks, stamps of
//! files, and where models are kept.

use crate::{Result, StoreError};
use serde::{Deserialize, Serialize};
use std::fmt::Debug;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Every way in which the store changes a disk, so that tests can make any of them fail.
///
/// The store reads through `std::fs`; reading changes nothing.
pub trait Disk: Debug + Send + Sync {
    /// Creates a folder whose parent exists; fine if it is there already.
    ///
    /// # Errors
    /// What the system says.
    fn create_dir(&self, path: &Path) -> io::Result<()>;

    /// Opens a file for appending, having cut it to its first `keep` bytes; creates it if absent.
    ///
    /// # Errors
    /// What the system says.
    fn append(&self, path: &Path, keep: u64) -> io::Result<Box<dyn DiskFile>>;

    /// Gives a file another name, in place of whatever has that name.
    ///
    /// # Errors
    /// What the system says.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Makes the names in a folder durable.
    ///
    /// # Errors
    /// What the system says.
    fn sync_dir(&self, path: &Path) -> io::Result<()>;

    /// Removes a file; fine if there is none.
    ///
    /// # Errors
    /// What the system says.
    fn remove_file(&self, path: &Path) -> io::Result<()>;

    /// Removes a folder with everything in it, following no links; fine if there is none.
    ///
    /// # Errors
    /// What the system says.
    fn remove_dir_all(&self, path: &Path) -> io::Result<()>;

    /// Bytes that may still be written below `path`, if the system tells.
    fn free_space(&self, path: &Path) -> Option<u64>;

    /// Names the time since the machine was started, if the system does: as long as it stays the
    /// same, what was written is there, made durable or not.
    fn boot(&self) -> Option<String> {
        None
    }
}

/// A file that is being written.
pub trait DiskFile: Write + Send {
    /// Makes the file's bytes durable.
    ///
    /// # Errors
    /// What the system says.
    fn sync(&mut self) -> io::Result<()>;
}

/// The disk of the machine.
#[derive(Clone, Copy, Debug, Default)]
pub struct RealDisk;

impl Disk for RealDisk {
    fn create_dir(&self, path: &Path) -> io::Result<()> {
        match fs::create_dir(path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
            other => other,
        }
    }

    fn append(&self, path: &Path, keep: u64) -> io::Result<Box<dyn DiskFile>> {
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(false);
        let mut file = no_follow(&mut options).open(path)?;
        file.set_len(keep)?;
        file.seek(SeekFrom::Start(keep))?;
        Ok(Box::new(RealFile(file)))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        // Windows has no such operation, and its file system journals names by itself.
        if cfg!(unix) { File::open(path)?.sync_all() } else { Ok(()) }
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        absent_is_fine(fs::remove_file(path))
    }

    fn remove_dir_all(&self, path: &Path) -> io::Result<()> {
        absent_is_fine(fs::remove_dir_all(path))
    }

    fn free_space(&self, path: &Path) -> Option<u64> {
        free_space(path)
    }

    fn boot(&self) -> Option<String> {
        let id = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
        Some(id.trim().to_owned()).filter(|id| !id.is_empty())
    }
}

struct RealFile(File);

impl Write for RealFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

impl DiskFile for RealFile {
    fn sync(&mut self) -> io::Result<()> {
        self.0.sync_all()
    }
}

fn absent_is_fine(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Creates a folder and its parents, and makes their names durable.
pub(crate) fn create_dirs(disk: &dyn Disk, path: &Path) -> Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    let failed = |error| StoreError::io("create the folder", path, error);
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => {
            create_dirs(disk, parent)?;
            disk.create_dir(path).map_err(failed)?;
            disk.sync_dir(parent).map_err(failed)
        }
        _ => disk.create_dir(path).map_err(failed),
    }
}

/// Puts a small file in place so that it is, at any time, either absent, old or complete.
pub(crate) fn write_small(disk: &dyn Disk, path: &Path, bytes: &[u8]) -> Result<()> {
    let failed = |error| StoreError::io("write", path, error);
    let new = path.with_extension("new");
    let mut file = disk.append(&new, 0).map_err(failed)?;
    file.write_all(bytes).map_err(failed)?;
    file.sync().map_err(failed)?;
    drop(file);
    disk.rename(&new, path).map_err(failed)?;
    path.parent().map_or(Ok(()), |folder| disk.sync_dir(folder)).map_err(failed)
}

/// Opens a regular file for reading; anything else, a symbolic link included, is refused without
/// waiting for it.
pub(crate) fn open_regular(path: &Path) -> io::Result<File> {
    let refuse = || io::Error::new(io::ErrorKind::InvalidInput, "not a regular file");
    if !fs::symlink_metadata(path)?.is_file() {
        return Err(refuse());
    }
    let file = no_follow(OpenOptions::new().read(true)).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(refuse());
    }
    Ok(file)
}

/// Follows no link in the last component, and does not wait for the other end of a pipe.
#[cfg(unix)]
fn no_follow(options: &mut OpenOptions) -> &mut OpenOptions {
    use std::os::unix::fs::OpenOptionsExt;
    let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
    options.custom_flags(flags.bits().cast_signed())
}

#[cfg(not(unix))]
fn no_follow(options: &mut OpenOptions) -> &mut OpenOptions {
    options
}

#[cfg(unix)]
fn free_space(path: &Path) -> Option<u64> {
    let stat = rustix::fs::statvfs(path).ok()?;
    stat.f_bavail.checked_mul(stat.f_frsize)
}

/// The standard library does not tell; a full disk shows when it is full.
#[cfg(not(unix))]
fn free_space(_path: &Path) -> Option<u64> {
    None
}

/// What tells, without reading it, that a file is still the one that was hashed.
///
/// On Unix this includes the time of the last change of the inode, which no ordinary program can
/// set back; elsewhere it is as good as the modification time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Stamp {
    bytes: u64,
    /// Nanoseconds since 1970.
    modified: u64,
    /// Nanoseconds since 1970; 0 where there is no such time.
    changed: u64,
    /// 0 where files have no number.
    inode: u64,
}

impl Stamp {
    /// The stamp of a regular file.
    pub(crate) fn of(path: &Path) -> io::Result<Self> {
        let meta = fs::symlink_metadata(path)?;
        if !meta.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
        }
        let (changed, inode) = change(&meta);
        Ok(Self { bytes: meta.len(), modified: nanos(meta.modified()?), changed, inode })
    }

    /// The file's length.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Whether the file had rested at `now`: a file that is written twice within one tick of the
    /// file system's clock has the same stamp both times.
    pub(crate) fn settled(&self, now: u64) -> bool {
        let tick = u64::try_from(self.tick().as_nanos()).unwrap_or(u64::MAX);
        self.modified.max(self.changed).saturating_add(tick) < now
    }

    /// Of file systems that keep every other second.
    pub(crate) const LONGEST_TICK: Duration = Duration::from_secs(2);

    /// How far the file system's clock goes at once. Times with fractions of a second are the
    /// system's own, which goes on every 16 ms at least.
    fn tick(&self) -> Duration {
        const SECOND: u64 = 1_000_000_000;
        let known = [self.modified, self.changed].into_iter().filter(|time| *time > 0);
        let fine = known.clone().all(|time| time % SECOND > 0) && known.count() > 0;
        if fine { Duration::from_millis(20) } else { Self::LONGEST_TICK }
    }
}

#[cfg(unix)]
fn change(meta: &fs::Metadata) -> (u64, u64) {
    use std::os::unix::fs::MetadataExt;
    let seconds = u64::try_from(meta.ctime()).unwrap_or(0);
    let nanos = u64::try_from(meta.ctime_nsec()).unwrap_or(0);
    (seconds.saturating_mul(1_000_000_000).saturating_add(nanos), meta.ino())
}

#[cfg(not(unix))]
fn change(_meta: &fs::Metadata) -> (u64, u64) {
    (0, 0)
}

/// Nanoseconds since 1970; 0 before.
pub(crate) fn nanos(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

/// A lock between processes, held until it is dropped, a crash included.
#[derive(Debug)]
pub(crate) struct Lock(#[expect(dead_code, reason = "closing the file ends the lock")] File);

impl Lock {
    /// Takes the lock; `None` if another process has it.
    pub(crate) fn take(path: &Path) -> Result<Option<Self>> {
        let failed = |error| StoreError::io("lock", path, error);
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(false);
        let file = no_follow(&mut options).open(path).map_err(failed)?;
        match file.try_lock() {
            Ok(()) => Ok(Some(Self(file))),
            Err(fs::TryLockError::WouldBlock) => Ok(None),
            Err(fs::TryLockError::Error(error)) => Err(failed(error)),
        }
    }
}

/// Whether an operation failed because another program has the file open, or mapped. Only Windows
/// minds, and the standard library has no name for it there.
pub(crate) fn in_use(error: &io::Error) -> bool {
    const SHARING_VIOLATION: i32 = 32;
    const USER_MAPPED_FILE: i32 = 1224;
    let windows = matches!(error.raw_os_error(), Some(SHARING_VIOLATION | USER_MAPPED_FILE));
    (cfg!(windows) && windows)
        || matches!(error.kind(), io::ErrorKind::ResourceBusy | io::ErrorKind::ExecutableFileBusy)
}

/// What went wrong with renaming a folder. Windows calls it a denied access where a file in the
/// folder is open or mapped.
pub(crate) fn of_open_folder(error: io::Error) -> io::Error {
    const ACCESS_DENIED: i32 = 5;
    match error.raw_os_error() {
        Some(ACCESS_DENIED) if cfg!(windows) => io::Error::new(io::ErrorKind::ResourceBusy, error),
        _ => error,
    }
}

/// Where models are kept unless told otherwise: the user's data folder, and on Windows the one
/// that does not travel with the user.
pub(crate) fn default_root() -> Result<PathBuf> {
    use etcetera::BaseStrategy;
    let base =
        etcetera::choose_base_strategy().map_err(|error| StoreError::NoHome(error.to_string()))?;
    let folder = if cfg!(windows) { base.cache_dir() } else { base.data_dir() };
    Ok(folder.join("tangor"))
}

/// Ends a program and whatever it started.
pub(crate) fn kill(child: &mut std::process::Child) {
    #[cfg(unix)]
    if let Some(group) = i32::try_from(child.id()).ok().and_then(rustix::process::Pid::from_raw) {
        let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
    }
    // Neither failing to end what has ended, nor failing to wait for it, matters any more.
    let _ = child.kill();
    let _ = child.wait();
}

/// Makes [`kill`] reach what the program starts.
pub(crate) fn own_group(command: &mut std::process::Command) {
    #[cfg(unix)]
    {
        use std::os::unix::process::CommandExt;
        command.process_group(0);
    }
    #[cfg(not(unix))]
    let _ = command;
}
