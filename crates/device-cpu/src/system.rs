//! What depends on the operating system: how many processors there are for us, and which.

use std::num::NonZero;

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

/// Asks for large pages behind memory that is about to be filled and then streamed: fewer
/// translations to miss. Does nothing where the system has no such wish.
pub(crate) fn prefer_large_pages(memory: &mut [u8]) {
    #[cfg(target_os = "linux")]
    {
        const PAGE: usize = 4096;
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
