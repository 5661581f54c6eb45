//! What tells files and their states apart without reading them.

use std::fmt;
use std::fs::Metadata;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Stands between the stamps of several files.
pub(crate) const JOINT: &str = "+";

/// How coarse the clocks of file systems are: a file that is written to twice within a tick has the
/// same times both times.
const TICK: Duration = Duration::from_secs(2);

/// A file and its last change: length, times, and what the system numbers files by.
///
/// On Unix this includes the time of the last change of the inode, which no ordinary program can
/// set back; elsewhere it is as good as the times of creation and modification.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    bytes: u64,
    /// Since 1970.
    modified: Duration,
    /// Of the inode where there are inodes, else the creation; since 1970.
    changed: Duration,
    /// Device and inode; zeros where files have no such numbers.
    number: (u64, u64),
}

impl Stamp {
    /// The stamp of a regular file. `None` if the system does not tell enough.
    #[must_use]
    pub fn of(metadata: &Metadata) -> Option<Self> {
        let modified = metadata.modified().ok()?.duration_since(UNIX_EPOCH).ok()?;
        let (changed, number) = change(metadata)?;
        Some(Self { bytes: metadata.len(), modified, changed, number })
    }

    /// Whether the file had rested for a while at `now`: if not, another write might not show.
    #[must_use]
    pub fn rested(&self, now: SystemTime) -> bool {
        let last = self.modified.max(self.changed);
        now.duration_since(UNIX_EPOCH).is_ok_and(|now| last + TICK < now)
    }
}

impl fmt::Display for Stamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { bytes, modified, changed, number: (device, inode) } = self;
        let (modified, changed) = (modified.as_nanos(), changed.as_nanos());
        write!(f, "{device:x}-{inode:x}-{bytes:x}-{modified:x}-{changed:x}")
    }
}

#[cfg(unix)]
fn change(metadata: &Metadata) -> Option<(Duration, (u64, u64))> {
    use std::os::unix::fs::MetadataExt;
    let seconds = u64::try_from(metadata.ctime()).ok()?;
    let nanos = u32::try_from(metadata.ctime_nsec()).ok()?;
    Some((Duration::new(seconds, nanos), (metadata.dev(), metadata.ino())))
}

#[cfg(not(unix))]
fn change(metadata: &Metadata) -> Option<(Duration, (u64, u64))> {
    Some((metadata.created().ok()?.duration_since(UNIX_EPOCH).ok()?, (0, 0)))
}
