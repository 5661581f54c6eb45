//! Why there is no graphics processor to work with.

/// A device could not be opened.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum GpuError {
    /// No driver offers an adapter, or there is no loader that would find one.
    #[error("no graphics adapter was found: {}", missing_hint())]
    NoAdapter,
    /// None has that number or name.
    #[error("no graphics adapter is {wanted:?} (there are: {available})")]
    Unknown {
        /// The number, or part of the name, that was asked for.
        wanted: String,
        /// Those that there are, separated by commas.
        available: String,
    },
    /// The driver does not let the adapter be used.
    #[error("{adapter} cannot be used: {why}")]
    Driver {
        /// The adapter's name.
        adapter: String,
        /// What the driver said.
        why: String,
    },
    /// The adapter lacks what every kernel needs.
    #[error("{adapter} cannot run these kernels: {why}")]
    Unfit {
        /// The adapter's name.
        adapter: String,
        /// What it lacks.
        why: String,
    },
}

/// What to install for an adapter to be found.
fn missing_hint() -> &'static str {
    if cfg!(target_os = "windows") {
        "install the driver of the graphics card's maker"
    } else if cfg!(target_os = "macos") {
        "this system offers no Metal device"
    } else {
        "install the Vulkan loader and a driver (Debian: libvulkan1 and mesa-vulkan-drivers, which \
         also drives plain processors)"
    }
}
