//! A Vulkan driver for the tests of the graphics device: Mesa's, in software, where there is none.

use crate::command::Outcome;
use crate::debian;
use std::path::Path;

/// Where drivers announce themselves on Linux.
const MANIFESTS: &[&str] =
    &["/usr/share/vulkan/icd.d", "/usr/local/share/vulkan/icd.d", "/etc/vulkan/icd.d"];

/// The Debian packages of the loader and of Mesa's drivers.
const PACKAGES: &[&str] = &["libvulkan1", "mesa-vulkan-drivers"];

/// Installs a driver on Linux, if none is there; elsewhere the system brings its own.
pub(crate) fn driver() -> Outcome {
    if !cfg!(target_os = "linux") || named() || MANIFESTS.iter().any(|folder| announces(folder)) {
        return Ok(());
    }
    debian::install("Vulkan driver", PACKAGES).map_err(|error| {
        format!("{error}: install a Vulkan driver, as the package {}", PACKAGES[1])
    })
}

/// Whether the user names a driver.
fn named() -> bool {
    ["VK_DRIVER_FILES", "VK_ICD_FILENAMES"].iter().any(|name| std::env::var_os(name).is_some())
}

fn announces(folder: &str) -> bool {
    let files = Path::new(folder).read_dir().into_iter().flatten().flatten();
    files.into_iter().any(|file| file.path().extension().is_some_and(|end| end == "json"))
}
