//! Memory-mapped files that cannot kill the process.
//!
//! A mapped file that another process truncates raises SIGBUS on the next access. On Unix a handler
//! replaces the lost pages by zeros and marks the map as changed, so that whoever reads it finds
//! out from [`MapGuard::check`] instead of dying; Windows refuses to truncate a mapped file. Faults
//! anywhere else go to the handler that was there before.

use crate::stamp::{self, Stamp};
use bytes::Bytes;
use std::fs::File;
use std::io;
use std::sync::Arc;
use std::time::SystemTime;

/// The file behind a map was truncated or could not be read while it was mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the file changed or could not be read while it was in use")]
pub struct FileChanged;

/// Tells whether the files behind some maps have kept their promise. The default guards nothing.
#[derive(Clone, Debug, Default)]
pub struct MapGuard {
    maps: Vec<Guarded>,
}

/// A map, and the stamp of its file if that rested when it was mapped.
#[derive(Clone, Debug)]
struct Guarded {
    watch: Arc<sys::Watch>,
    stamp: Option<Stamp>,
}

impl MapGuard {
    /// Fails once any page of a map could not be read.
    ///
    /// # Errors
    /// [`FileChanged`] if a file shrank or its medium failed.
    pub fn check(&self) -> Result<(), FileChanged> {
        if self.maps.iter().any(|map| map.watch.changed()) { Err(FileChanged) } else { Ok(()) }
    }

    /// One guard for all the maps of `guards`.
    #[must_use]
    pub fn join<'a>(guards: impl IntoIterator<Item = &'a Self>) -> Self {
        Self { maps: guards.into_iter().flat_map(|guard| guard.maps.iter().cloned()).collect() }
    }

    /// What names the content of the mapped files without reading it: equal for the same files
    /// unchanged, on this machine. `None` if there are none, or one was written to so shortly
    /// before it was mapped that its times would not show another write.
    #[must_use]
    pub fn identity(&self) -> Option<String> {
        let names: Option<Vec<String>> =
            self.maps.iter().map(|map| Some(map.stamp?.to_string())).collect();
        names.filter(|names| !names.is_empty()).map(|names| names.join(stamp::JOINT))
    }

    /// Says that the mapped bytes will not be read again soon: they stop counting as this
    /// process's memory. Reading them stays possible, and brings them back.
    pub fn release(&self) {
        self.maps.iter().for_each(|map| map.watch.release());
    }
}

/// Says of `bytes` that they will not be read again soon (see [`MapGuard::release`]); does nothing
/// with bytes that are not of a map.
pub fn release(bytes: &[u8]) {
    sys::release(bytes);
}

/// Fails once any page of the map that `bytes` lie in could not be read; bytes that are not of a
/// map never do.
///
/// # Errors
/// As [`MapGuard::check`], for who has bytes and no guard.
pub fn check_mapped(bytes: &[u8]) -> Result<(), FileChanged> {
    if sys::changed(bytes) { Err(FileChanged) } else { Ok(()) }
}

/// What keeps a map alive.
struct Mapped {
    map: memmap2::Mmap,
    watch: Arc<sys::Watch>,
}

impl Drop for Mapped {
    /// Runs before the map goes, so that no address is watched that may become someone else's.
    fn drop(&mut self) {
        self.watch.retire();
    }
}

impl AsRef<[u8]> for Mapped {
    fn as_ref(&self) -> &[u8] {
        &self.map
    }
}

/// Maps a whole file for reading. An empty file is no bytes and needs no guard.
///
/// # Errors
/// If it is not a regular file, is larger than the address space, or the system refuses.
pub fn map_file(file: &File) -> io::Result<(Bytes, MapGuard)> {
    map(file, false)
}

/// As [`map_file`], of a file that is read from beginning to end again and again: in large pages,
/// where the system has such pages for files.
///
/// # Errors
/// As there.
pub fn map_file_in_large_pages(file: &File) -> io::Result<(Bytes, MapGuard)> {
    map(file, true)
}

#[allow(unsafe_code)]
fn map(file: &File, large: bool) -> io::Result<(Bytes, MapGuard)> {
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
    }
    if metadata.len() == 0 {
        return Ok((Bytes::new(), MapGuard::default()));
    }
    let len = usize::try_from(metadata.len()).map_err(|_| {
        io::Error::new(io::ErrorKind::FileTooLarge, "larger than the address space")
    })?;
    // SAFETY: the map is read-only and private to this process. That the file may change under it
    // is what `Watch` is for where its pages vanish; whoever reads bytes out of it treats them as
    // untrusted at every read, so other values do no harm.
    let map = unsafe { memmap2::MmapOptions::new().len(len).map(file)? };
    if large {
        // A wish, and one that older systems do not know.
        #[cfg(target_os = "linux")]
        let _ = map.advise(memmap2::Advice::HugePage);
    }
    let watch = Arc::new(sys::Watch::new(&map)?);
    let stamp = Stamp::of(&metadata).filter(|stamp| stamp.rested(SystemTime::now()));
    let guard = MapGuard { maps: vec![Guarded { watch: Arc::clone(&watch), stamp }] };
    Ok((Bytes::from_owner(Mapped { map, watch }), guard))
}

#[cfg(not(unix))]
mod sys {
    //! Nothing to watch: the system keeps mapped files as they are.

    #[derive(Debug)]
    pub(super) struct Watch;

    impl Watch {
        pub(super) fn new(_map: &[u8]) -> std::io::Result<Self> {
            Ok(Self)
        }

        pub(super) fn changed(&self) -> bool {
            false
        }

        pub(super) fn retire(&self) {}

        pub(super) fn release(&self) {}
    }

    pub(super) fn release(_bytes: &[u8]) {}

    pub(super) fn changed(_bytes: &[u8]) -> bool {
        false
    }
}

#[cfg(unix)]
#[allow(unsafe_code)]
mod sys {
    //! The table of live maps, and the SIGBUS handler that consults it.
    //!
    //! The handler may only touch atomics and make system calls. It reads the table without a lock:
    //! a slot's version is odd while the slot is being written, and a slot whose version changed
    //! under the reader is skipped. That cannot be the slot of the faulting address, because who
    //! faults holds the map, and a map that is held keeps its slot as it is.

    use std::io;
    use std::sync::atomic::Ordering::{Acquire, Relaxed, Release, SeqCst};
    use std::sync::atomic::{AtomicBool, AtomicUsize, fence};
    use std::sync::{Mutex, OnceLock, PoisonError};

    /// Maps that can be live at a time; more are refused.
    const SLOTS: usize = 4096;

    struct Slot {
        version: AtomicUsize,
        start: AtomicUsize,
        /// Zero where there is no map (any more).
        len: AtomicUsize,
        changed: AtomicBool,
    }

    static TABLE: [Slot; SLOTS] = [const { Slot::free() }; SLOTS];

    /// Slots from the first one that were ever used.
    static USED: AtomicUsize = AtomicUsize::new(0);

    /// Which slots belong to a [`Watch`]; held while a slot is written.
    static CLAIMED: Mutex<[bool; SLOTS]> = Mutex::new([false; SLOTS]);

    /// The handler that was there before ours, or why ours could not be installed.
    static PREVIOUS: OnceLock<Result<libc::sigaction, i32>> = OnceLock::new();

    impl Slot {
        const fn free() -> Self {
            Self {
                version: AtomicUsize::new(0),
                start: AtomicUsize::new(0),
                len: AtomicUsize::new(0),
                changed: AtomicBool::new(false),
            }
        }

        /// Only under [`CLAIMED`].
        fn set(&self, start: usize, len: usize) {
            self.version.fetch_add(1, Relaxed);
            fence(SeqCst);
            self.start.store(start, Relaxed);
            self.len.store(len, Relaxed);
            self.version.fetch_add(1, Release);
        }

        /// Start and length of a live map that `address` lies in.
        fn covers(&self, address: usize) -> Option<(usize, usize)> {
            let version = self.version.load(Acquire);
            let (start, len) = (self.start.load(Relaxed), self.len.load(Relaxed));
            fence(SeqCst);
            let stable = version.is_multiple_of(2) && self.version.load(Relaxed) == version;
            let inside = address.checked_sub(start).is_some_and(|offset| offset < len);
            (stable && inside).then_some((start, len))
        }
    }

    /// A claim on a slot of the table, for as long as it lives.
    #[derive(Debug)]
    pub(super) struct Watch {
        slot: usize,
    }

    impl Watch {
        pub(super) fn new(map: &[u8]) -> io::Result<Self> {
            install()?;
            let mut claimed = CLAIMED.lock().unwrap_or_else(PoisonError::into_inner);
            let slot = claimed
                .iter()
                .position(|claimed| !claimed)
                .ok_or_else(|| io::Error::other(format!("more than {SLOTS} mapped files")))?;
            claimed[slot] = true;
            USED.fetch_max(slot + 1, SeqCst);
            TABLE[slot].changed.store(false, SeqCst);
            TABLE[slot].set(map.as_ptr().addr(), map.len());
            Ok(Self { slot })
        }

        pub(super) fn changed(&self) -> bool {
            TABLE[self.slot].changed.load(SeqCst)
        }

        /// Gives all pages of the map back.
        pub(super) fn release(&self) {
            let _claimed = CLAIMED.lock().unwrap_or_else(PoisonError::into_inner);
            let slot = &TABLE[self.slot];
            let (start, len) = (slot.start.load(Relaxed), slot.len.load(Relaxed));
            // While the lock is held a map that has not retired cannot go.
            give_back(start, start + len);
        }

        /// Stops watching; what has happened so far is kept.
        pub(super) fn retire(&self) {
            let _claimed = CLAIMED.lock().unwrap_or_else(PoisonError::into_inner);
            TABLE[self.slot].set(0, 0);
        }
    }

    impl Drop for Watch {
        fn drop(&mut self) {
            let mut claimed = CLAIMED.lock().unwrap_or_else(PoisonError::into_inner);
            TABLE[self.slot].set(0, 0);
            claimed[self.slot] = false;
        }
    }

    /// Gives the pages of a part of a map back; bytes elsewhere stay as they are.
    pub(super) fn release(bytes: &[u8]) {
        let (from, to) = (bytes.as_ptr().addr(), bytes.as_ptr().addr() + bytes.len());
        let _claimed = CLAIMED.lock().unwrap_or_else(PoisonError::into_inner);
        // A map that is borrowed keeps its slot.
        let found = TABLE[..USED.load(SeqCst)].iter().find_map(|slot| slot.covers(from));
        if let Some((start, len)) = found.filter(|(start, len)| to <= start + len) {
            let page = page_bytes();
            give_back(from & !(page - 1), to.next_multiple_of(page).min(start + len));
        }
    }

    /// Whether a page of the map was lost that bytes lie in.
    pub(super) fn changed(bytes: &[u8]) -> bool {
        let at = bytes.as_ptr().addr();
        // A map that is borrowed keeps its slot.
        let slot = TABLE[..USED.load(SeqCst)].iter().find(|slot| slot.covers(at).is_some());
        slot.is_some_and(|slot| slot.changed.load(SeqCst))
    }

    /// Drops the pages `from..to` of a live map; `from` is where a page starts.
    fn give_back(from: usize, to: usize) {
        if from < to {
            let at = std::ptr::with_exposed_provenance_mut(from);
            // SAFETY: the range lies in a live read-only map of a file that stays alive during the
            // call. Its pages come back from the file, with what it holds, when they are read
            // again, so whoever reads them at the same time sees no difference.
            unsafe { libc::madvise(at, to - from, libc::MADV_DONTNEED) };
        }
    }

    fn page_bytes() -> usize {
        // SAFETY: has no preconditions.
        usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(4096)
    }

    fn install() -> io::Result<()> {
        let installed = PREVIOUS.get_or_init(|| {
            // SAFETY: both structures are plain data for which zeros are valid, `handle` has the
            // signature that SA_SIGINFO asks for, and it only does what a handler may do.
            unsafe {
                let mut action: libc::sigaction = std::mem::zeroed();
                let mut previous: libc::sigaction = std::mem::zeroed();
                let handler: extern "C" fn(i32, *mut libc::siginfo_t, *mut libc::c_void) = handle;
                action.sa_sigaction = handler as *const () as libc::sighandler_t;
                action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
                libc::sigemptyset(&raw mut action.sa_mask);
                if libc::sigaction(libc::SIGBUS, &raw const action, &raw mut previous) == 0 {
                    Ok(previous)
                } else {
                    Err(io::Error::last_os_error().raw_os_error().unwrap_or(0))
                }
            }
        });
        installed.as_ref().map(|_| ()).map_err(|&code| io::Error::from_raw_os_error(code))
    }

    extern "C" fn handle(signal: i32, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
        // SAFETY: the system passes a valid `siginfo_t` to a SA_SIGINFO handler.
        let address = unsafe { (*info).si_addr() }.addr();
        let found = TABLE.iter().find_map(|slot| Some((slot, slot.covers(address)?)));
        if let Some((slot, (start, len))) = found
            && replace_by_zeros(address, start + len)
        {
            slot.changed.store(true, SeqCst);
            return;
        }
        chain(signal, info, context);
    }

    /// Maps zeros over the pages from the one of `address` to `end`: what follows a page that is
    /// gone is gone too, or no longer to be trusted, and one call keeps the number of mappings low.
    fn replace_by_zeros(address: usize, end: usize) -> bool {
        // SAFETY: `address..end` lies in a live read-only map of this module, which nobody else
        // may unmap or write to; the new pages take its place in one step, with the same
        // protection. `errno` is put back as the interrupted code left it.
        unsafe {
            let errno = errno_location();
            let saved = *errno;
            let page = page_bytes();
            let first = address & !(page - 1);
            let at = std::ptr::with_exposed_provenance_mut(first);
            let flags = libc::MAP_FIXED | libc::MAP_PRIVATE | libc::MAP_ANON;
            let mapped = libc::mmap(at, end - first, libc::PROT_READ, flags, -1, 0);
            *errno = saved;
            mapped != libc::MAP_FAILED
        }
    }

    #[cfg(any(target_os = "linux", target_os = "emscripten"))]
    unsafe fn errno_location() -> *mut i32 {
        // SAFETY: always callable; the result points to this thread's errno.
        unsafe { libc::__errno_location() }
    }

    #[cfg(any(target_os = "android", target_os = "netbsd", target_os = "openbsd"))]
    unsafe fn errno_location() -> *mut i32 {
        // SAFETY: always callable; the result points to this thread's errno.
        unsafe { libc::__errno() }
    }

    #[cfg(any(target_vendor = "apple", target_os = "freebsd", target_os = "dragonfly"))]
    unsafe fn errno_location() -> *mut i32 {
        // SAFETY: always callable; the result points to this thread's errno.
        unsafe { libc::__error() }
    }

    /// Does what would have happened without our handler.
    fn chain(signal: i32, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
        let previous = match PREVIOUS.get() {
            Some(Ok(previous)) => *previous,
            // SAFETY: zeros are the default action.
            _ => unsafe { std::mem::zeroed() },
        };
        match previous.sa_sigaction {
            // SAFETY: restores the default action; the access is repeated and ends the process as
            // it would have without us. Ignoring a fault would repeat it for ever.
            libc::SIG_DFL | libc::SIG_IGN => unsafe {
                libc::signal(signal, libc::SIG_DFL);
            },
            // SAFETY: the address is that of the handler that was installed before, and the flag
            // says which of the two signatures it has.
            handler => unsafe {
                if previous.sa_flags & libc::SA_SIGINFO != 0 {
                    type Handler = extern "C" fn(i32, *mut libc::siginfo_t, *mut libc::c_void);
                    let handler: Handler = std::mem::transmute::<usize, Handler>(handler);
                    handler(signal, info, context);
                } else {
                    let handler = std::mem::transmute::<usize, extern "C" fn(i32)>(handler);
                    handler(signal);
                }
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn file_of(bytes: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        file
    }

    #[test]
    fn maps_what_the_file_holds() {
        let (bytes, guard) = map_file(&file_of(b"weights")).unwrap();
        assert_eq!(&bytes[..], b"weights");
        assert_eq!(guard.check(), Ok(()));
    }

    #[test]
    fn an_empty_file_is_no_bytes() {
        let (bytes, guard) = map_file(&file_of(b"")).unwrap();
        assert!(bytes.is_empty());
        assert_eq!(guard.check(), Ok(()));
    }

    #[cfg(unix)]
    #[test]
    fn a_truncated_file_reads_as_zeros_and_is_reported() {
        let file = file_of(&[7; 1 << 20]);
        let (bytes, guard) = map_file(&file).unwrap();
        let (other, other_guard) = map_file(&file_of(&[9; 1 << 16])).unwrap();
        assert_eq!((bytes[0], bytes[(1 << 20) - 1]), (7, 7));
        file.set_len(1 << 16).unwrap();
        assert_eq!(guard.check(), Ok(()), "nothing that was lost has been read yet");
        assert!(bytes[1 << 17..].iter().all(|&byte| byte == 0), "lost pages read as zeros");
        assert!(bytes[..1 << 16].iter().all(|&byte| byte == 7), "kept pages stay");
        assert_eq!(guard.check(), Err(FileChanged));
        assert_eq!(check_mapped(&bytes[1 << 15..1 << 16]), Err(FileChanged), "all of the file");
        assert_eq!(check_mapped(&other).and(check_mapped(&[7; 9])), Ok(()));
        assert!(other.iter().all(|&byte| byte == 9));
        assert_eq!(other_guard.check(), Ok(()), "another file is not blamed");
        assert_eq!(MapGuard::join([&other_guard, &guard]).check(), Err(FileChanged));
        drop(bytes);
        assert_eq!(guard.check(), Err(FileChanged), "the verdict outlives the map");
    }

    #[cfg(unix)]
    #[test]
    fn a_slot_that_is_used_again_forgets_its_past() {
        for _ in 0..3 {
            let file = file_of(&[1; 1 << 16]);
            let (bytes, guard) = map_file(&file).unwrap();
            file.set_len(0).unwrap();
            assert_eq!(bytes[5], 0);
            assert_eq!(guard.check(), Err(FileChanged));
        }
        let (bytes, guard) = map_file(&file_of(&[1; 1 << 16])).unwrap();
        assert_eq!(bytes[5], 1);
        assert_eq!(guard.check(), Ok(()));
    }

    #[cfg(unix)]
    #[test]
    fn many_threads_may_lose_the_same_file() {
        let file = file_of(&[3; 1 << 22]);
        let (bytes, guard) = map_file(&file).unwrap();
        file.set_len(4096).unwrap();
        std::thread::scope(|scope| {
            for thread in 1..5 {
                let bytes = bytes.clone();
                scope.spawn(move || {
                    let sum: usize = bytes[thread * 8192..].iter().map(|&b| usize::from(b)).sum();
                    assert_eq!(sum, 0);
                });
            }
        });
        assert_eq!(guard.check(), Err(FileChanged));
    }

    #[test]
    fn released_bytes_come_back() {
        let content: Vec<u8> = (0..1_u32 << 18).flat_map(u32::to_le_bytes).collect();
        let (bytes, guard) = map_file(&file_of(&content)).unwrap();
        let (large, _) = map_file_in_large_pages(&file_of(&content)).unwrap();
        assert_eq!((&bytes[..], &large[..]), (&content[..], &content[..]));
        release(&bytes[5000..700_000]);
        release(&bytes[bytes.len() - 1..]);
        release(&content);
        assert_eq!(&bytes[..], &content[..]);
        guard.release();
        assert_eq!(&bytes[..], &content[..]);
        drop(bytes);
        guard.release();
        assert_eq!(guard.check(), Ok(()));
    }

    #[test]
    fn only_files_that_rest_have_an_identity() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("weights");
        let map = || map_file(&File::open(&path).unwrap()).unwrap().1;
        // A machine that is busy may take so long that the file has rested: it is written again.
        let just_now = || {
            std::fs::write(&path, b"weights").unwrap();
            map().identity()
        };
        let identities = (0..20).map(|_| just_now());
        assert!(identities.into_iter().any(|one| one.is_none()), "it was written just now");
        assert_eq!(MapGuard::default().identity(), None);
        std::thread::sleep(std::time::Duration::from_millis(2100));
        let first = map();
        assert!(first.identity().is_some());
        assert_eq!(first.identity(), map().identity());
        let both = MapGuard::join([&first, &map()]).identity().unwrap();
        let one = first.identity().unwrap();
        assert_eq!(both.split(stamp::JOINT).collect::<Vec<_>>(), [&one, &one]);
        std::fs::write(&path, b"widgets").unwrap();
        std::thread::sleep(std::time::Duration::from_millis(2100));
        assert_ne!(first.identity(), map().identity());
    }

    #[cfg(unix)]
    #[test]
    fn refuses_what_is_not_a_regular_file() {
        for path in ["/dev/zero", "/"] {
            let error = map_file(&File::open(path).unwrap()).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{path}");
        }
    }
}
