//! A Vulkan driver for the tests of the graphics device: Mesa's, in software, where there is none.

use crate::command::{Outcome, output, run};
use std::path::Path;
use std::process::Command;

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
    let install = |update: bool| {
        let mut apt = as_root("apt-get");
        apt.env("DEBIAN_FRONTEND", "noninteractive").args(["-qq", "-y"]);
        match update {
            true => apt.arg("update"),
            false => apt.args(["install", "--no-install-recommends"]).args(PACKAGES),
        };
        run("Vulkan driver", &mut apt)
    };
    // The lists of packages may be missing or old.
    install(false).or_else(|_| install(true).and_then(|()| install(false))).map_err(|error| {
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

/// A command of the system's administrator.
fn as_root(program: &str) -> Command {
    let root = output(Command::new("id").arg("-u")).is_ok_and(|id| id.trim() == "0");
    if root {
        return Command::new(program);
    }
    let mut sudo = Command::new("sudo");
    sudo.args(["--non-interactive", program]);
    sudo
}
