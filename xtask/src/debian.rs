//! Packages of Debian's that tests need and that have to be installed.

use crate::command::{Outcome, output, run};
use std::process::Command;

/// Installs packages for a step of the set-up.
pub(crate) fn install(step: &str, packages: &[&str]) -> Outcome {
    let apt = |update: bool| {
        let mut apt = as_root("apt-get");
        apt.env("DEBIAN_FRONTEND", "noninteractive").args(["-qq", "-y"]);
        match update {
            true => apt.arg("update"),
            false => apt.args(["install", "--no-install-recommends"]).args(packages),
        };
        run(step, &mut apt)
    };
    // The lists of packages may be missing or old.
    apt(false).or_else(|_| apt(true).and_then(|()| apt(false)))
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
