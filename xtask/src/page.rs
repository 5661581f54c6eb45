//! What the tests of the server's page need: Chromium, and packages for node.

use crate::command::{Outcome, output, run};
use crate::{debian, root};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Where the tests look for the browser.
const CHROMIUM: &str = "/usr/bin/chromium";

/// The Debian packages of the browser and of letters for it.
const PACKAGES: &[&str] = &["chromium", "fonts-dejavu-core"];

/// The oldest node that the packages run in.
const NODE: u32 = 20;

/// What says which packages, in which versions.
const LISTS: [&str; 2] = ["package.json", "package-lock.json"];

/// The folder with the packages (`TANGOR_TEST_PAGE`), fetched unless they are there; nothing where
/// the browser is no package of the system's.
pub(crate) fn packages() -> Outcome<Option<PathBuf>> {
    if !cfg!(target_os = "linux") {
        return Ok(None);
    }
    if !Path::new(CHROMIUM).exists() {
        debian::install("browser", PACKAGES)
            .map_err(|error| format!("{error}: install {}", PACKAGES[0]))?;
    }
    node()?;
    let (from, to) = (root().join("crates/server/web"), root().join("target/page"));
    let failed = |error: std::io::Error| format!("cannot fill {}: {error}", to.display());
    let read = |name: &str| fs::read(from.join(name)).map_err(failed);
    let wanted = [read(LISTS[0])?, read(LISTS[1])?];
    // Written last, so that what was interrupted is done again.
    let done = to.join("fetched");
    if fs::read(&done).is_ok_and(|fetched| fetched == wanted.concat()) {
        return Ok(Some(to));
    }
    fs::create_dir_all(&to).map_err(failed)?;
    for (name, list) in LISTS.iter().zip(&wanted) {
        fs::write(to.join(name), list).map_err(failed)?;
    }
    let mut install = Command::new("npm");
    install.current_dir(&to).args(["ci", "--ignore-scripts", "--no-audit", "--no-fund"]);
    run("packages for node", install.arg("--loglevel=error"))?;
    fs::write(&done, wanted.concat()).map_err(failed)?;
    Ok(Some(to))
}

/// Looks for a node that is new enough.
fn node() -> Outcome {
    let wanted = format!("install node {NODE} or newer, with npm");
    let version = output(Command::new("node").arg("--version"))
        .map_err(|error| format!("{error}: {wanted}"))?;
    let major = version.trim().trim_start_matches('v').split('.').next();
    match major.and_then(|major| major.parse::<u32>().ok()) {
        Some(major) if major >= NODE => Ok(()),
        _ => Err(format!("node is {}: {wanted}", version.trim())),
    }
}
