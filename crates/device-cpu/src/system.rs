//! What depends on the operating system: how many processors there are for us, and which; how
//! memory is had.

use std::num::NonZero;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

/// Processors that this process may use at a time, quotas of containers included.
pub(crate) fn parallelism() -> usize {
    std::thread::available_parallelism().map_or(1, NonZero::get)
}

/// Keeps the calling thread on processor `index` of those that it may use. Does nothing where the
/// system does not let it.
pub(crate) fn pin(index: usize) {
    if let Some(core) = core_affinity::get_core_ids().and_then(|ids| ids.get(index).copied()) {
        core_affinity::set_for_current(core);
    }
}

/// Bytes of a page, of the usual size.
#[cfg(target_os = "linux")]
const PAGE: usize = 4096;

/// Asks for large pages behind memory that is about to be filled and then streamed: fewer
/// translations to miss. Does nothing where the system has no such wish.
pub(crate) fn prefer_large_pages(memory: &mut [u8]) {
    #[cfg(target_os = "linux")]
    {
        let skip = memory.as_ptr().align_offset(PAGE);
        if let Some(pages) = memory.get_mut(skip..).filter(|rest| rest.len() >= PAGE) {
            let len = pages.len() / PAGE * PAGE;
            // SAFETY: the pages are ours, and the advice changes nothing that can be seen. That it
            // may fail does no harm.
            unsafe { libc::madvise(pages.as_mut_ptr().cast(), len, libc::MADV_HUGEPAGE) };
        }
    }
    #[cfg(not(target_os = "linux"))]
    let _ = memory;
}

/// Memory that is being made ready to be written, until this is dropped: systems hand out pages,
/// and clear them, when they are first written to, and whoever writes would wait for that.
#[derive(Debug)]
pub(crate) struct Readying {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Readying {
    /// Begins, on a thread that gives way to others. Does nothing where the system cannot.
    ///
    /// # Safety
    /// The memory is there for longer than this.
    pub(crate) unsafe fn start(memory: &mut [u8]) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (range, stops) = (memory.as_mut_ptr_range(), Arc::clone(&stop));
        let (start, end) = (range.start.addr(), range.end.addr());
        let work = move || ready(start, end, &stops);
        let builder = std::thread::Builder::new().name("tangor-memory".into());
        let thread = cfg!(target_os = "linux").then(|| builder.spawn(work).ok()).flatten();
        Self { stop, thread }
    }
}

impl Drop for Readying {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // A panic there has nothing to say here.
        self.thread.take().map(JoinHandle::join);
    }
}

/// Has the whole pages between two addresses there, a large one at a time.
#[cfg(target_os = "linux")]
fn ready(start: usize, end: usize, stop: &AtomicBool) {
    const STEP: usize = 2 << 20;
    // SAFETY: it changes this thread's priority, and may fail.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, 19) };
    let (mut at, end) = (start.next_multiple_of(PAGE), end / PAGE * PAGE);
    while at < end && !stop.load(Ordering::Relaxed) {
        let next = (at + 1).next_multiple_of(STEP).min(end);
        let page = std::ptr::without_provenance_mut(at);
        // SAFETY: whoever started this vouches for the memory, and its contents stay as they are.
        if unsafe { libc::madvise(page, next - at, libc::MADV_POPULATE_WRITE) } != 0 {
            return;
        }
        at = next;
    }
}

#[cfg(not(target_os = "linux"))]
fn ready(_: usize, _: usize, _: &AtomicBool) {}

/// The processor's name, if the system tells.
pub(crate) fn processor_name() -> Option<String> {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::__cpuid;
        if __cpuid(0x8000_0000).eax < 0x8000_0004 {
            return None;
        }
        let leaves = [0x8000_0002, 0x8000_0003, 0x8000_0004].map(__cpuid);
        let bytes: Vec<u8> = leaves
            .iter()
            .flat_map(|leaf| [leaf.eax, leaf.ebx, leaf.ecx, leaf.edx])
            .flat_map(u32::to_le_bytes)
            .take_while(|&byte| byte != 0)
            .collect();
        let name = String::from_utf8_lossy(&bytes).split_whitespace().collect::<Vec<_>>().join(" ");
        (!name.is_empty()).then_some(name)
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        let text = std::fs::read_to_string("/proc/cpuinfo").ok()?;
        let line = text.lines().find(|line| line.to_lowercase().starts_with("model name"))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;
    use crate::buffer::Aligned;

    #[test]
    fn memory_is_there_before_it_is_written_to_and_keeps_what_is() {
        const LEN: usize = 6 << 20;
        let mut memory = Aligned::zeroed(LEN).unwrap();
        let bytes = memory.get_mut::<u8>(LEN);
        // SAFETY: it is dropped before the memory is.
        let readying = unsafe { Readying::start(bytes) };
        bytes[LEN / 2] = 7;
        while readying.thread.as_ref().is_some_and(|thread| !thread.is_finished()) {
            std::thread::yield_now();
        }
        let first = bytes.as_ptr().align_offset(PAGE);
        let mut there = [0_u8; LEN / PAGE - 1];
        // SAFETY: one byte is written for each of that many pages of our own.
        let asked = unsafe {
            let at = bytes.as_mut_ptr().add(first);
            libc::mincore(at.cast(), there.len() * PAGE, there.as_mut_ptr())
        };
        // Linux can since 5.14.
        let mut one = Aligned::zeroed(2 * PAGE).unwrap();
        let at = one.as_mut_ptr().wrapping_add(one.as_ptr().align_offset(PAGE));
        // SAFETY: a page of our own.
        let can = unsafe { libc::madvise(at.cast(), PAGE, libc::MADV_POPULATE_WRITE) } == 0;
        assert!(asked == 0 && (!can || there.iter().all(|page| page & 1 == 1)));
        assert!(bytes.iter().enumerate().all(|(at, &x)| x == if at == LEN / 2 { 7 } else { 0 }));
    }
}
