//! The memory of the machine that this program runs on.

use serde::Serialize;
use sysinfo::{MemoryRefreshKind, System};

/// Memory of the machine, in bytes; what its system does not tell is `None`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct HostMemory {
    /// Built in.
    pub total_bytes: Option<u64>,
    /// Free to take without swapping.
    pub available_bytes: Option<u64>,
    /// Most that this process's control group may take, if that is less than there is.
    pub limit_bytes: Option<u64>,
}

impl HostMemory {
    /// As it is now.
    #[must_use]
    pub fn now() -> Self {
        let Ok(mut system) = System::new() else { return Self::default() };
        system.refresh_memory_specifics(MemoryRefreshKind::nothing().with_ram());
        let total = system.total_memory();
        let limit = system.cgroup_limits().map(|group| group.total_memory);
        let known = |bytes: u64| (bytes > 0).then_some(bytes);
        Self {
            total_bytes: known(total),
            available_bytes: known(system.available_memory()),
            limit_bytes: limit.filter(|&limit| limit < total),
        }
    }

    /// Bytes that this process may have at the most.
    #[must_use]
    pub fn size_bytes(&self) -> Option<u64> {
        self.limit_bytes.or(self.total_bytes)
    }

    /// Bytes that this process may still take.
    #[must_use]
    pub fn usable_bytes(&self) -> Option<u64> {
        [self.available_bytes, self.limit_bytes].into_iter().flatten().min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machine_has_memory_and_some_of_it_is_free() {
        let memory = HostMemory::now();
        let total = memory.total_bytes.expect("this system tells");
        assert!(total > 1 << 28, "{memory:?}");
        assert!(memory.available_bytes.is_some_and(|free| free <= total), "{memory:?}");
        assert!(memory.size_bytes().is_some_and(|size| size <= total), "{memory:?}");
    }

    #[test]
    fn a_control_group_bounds_what_may_be_taken() {
        let [total_bytes, available_bytes] = [Some(64 << 30), Some(40 << 30)];
        let free = HostMemory { total_bytes, available_bytes, limit_bytes: None };
        assert_eq!((free.size_bytes(), free.usable_bytes()), (total_bytes, available_bytes));
        let limited = HostMemory { limit_bytes: Some(8 << 30), ..free };
        assert_eq!((limited.size_bytes(), limited.usable_bytes()), (Some(8 << 30), Some(8 << 30)));
        assert_eq!(HostMemory::default().size_bytes(), None);
    }
}
