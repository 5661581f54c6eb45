//! What the tests need from outside, fetched once into `target/`: everything comes from the
//! ordinary package clients, and nothing has to be installed by hand.

use crate::command::{Outcome, output, run};
use crate::{cargo, root};
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The source package that carries llama.cpp: tokenizer vectors and chat templates.
pub(crate) const LLAMA_CPP_SDIST: &str = "llama-cpp-python==0.3.36";

/// Where the fetched things are.
#[derive(Debug)]
pub(crate) struct Inputs {
    /// The model store of the tests (`TANGOR_HOME`).
    pub(crate) home: PathBuf,
    /// The real model (`TANGOR_TEST_GGUF`).
    pub(crate) gguf: PathBuf,
    /// llama.cpp's `models` folder (`TANGOR_LLAMA_CPP_MODELS`).
    pub(crate) llama_cpp_models: PathBuf,
}

impl fmt::Display for Inputs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "export TANGOR_HOME='{}'", self.home.display())?;
        writeln!(f, "export TANGOR_TEST_GGUF='{}'", self.gguf.display())?;
        write!(f, "export TANGOR_LLAMA_CPP_MODELS='{}'", self.llama_cpp_models.display())
    }
}

/// Fetches what is not there yet.
pub(crate) fn setup() -> Outcome<Inputs> {
    let llama_cpp_models = llama_cpp()?.join("models");
    Ok(Inputs { home: home(), gguf: model()?, llama_cpp_models })
}

/// The model store of the tests.
fn home() -> PathBuf {
    root().join("target/test-home")
}

/// The real model, fetched unless it is there.
pub(crate) fn model() -> Outcome<PathBuf> {
    let tangor = ["run", "--quiet", "--package", "tangor-cli", "--", "pull", "smollm2", "--json"];
    let pulled = output(cargo(&tangor).env("TANGOR_HOME", home()))?;
    let pulled: serde_json::Value =
        serde_json::from_str(&pulled).map_err(|error| format!("pull wrote no JSON: {error}"))?;
    Ok(pulled["path"].as_str().ok_or("pull --json names no path")?.into())
}

/// A private Python environment, with `packages` installed.
pub(crate) fn python(name: &str, packages: &[&str]) -> Outcome<PathBuf> {
    let venv = root().join("target").join(name);
    let python = venv.join(if cfg!(windows) { "Scripts/python.exe" } else { "bin/python" });
    if !python.exists() {
        let system = ["python3", "python"]
            .into_iter()
            .find(|name| Command::new(name).arg("--version").output().is_ok())
            .ok_or("no Python found: install Python 3.11 or newer")?;
        run("python environment", Command::new(system).args(["-m", "venv"]).arg(&venv))?;
    }
    if !packages.is_empty() {
        let mut install = Command::new(&python);
        install.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check"]);
        run("python packages", install.args(packages))?;
    }
    Ok(python)
}

/// llama.cpp's source, from the source package of its Python binding.
pub(crate) fn llama_cpp() -> Outcome<PathBuf> {
    let folder = root().join("target/llama-cpp");
    if let Some(source) = unpacked(&folder) {
        return Ok(source);
    }
    // Asking pip for a source package makes it ask the package's build back end, which wants cmake.
    let python = python("venv", &["scikit-build-core", "cmake"])?;
    let mut download = Command::new(&python);
    download.args(["-m", "pip", "download", "--quiet", "--disable-pip-version-check"]);
    download.args(["--no-deps", "--no-binary", "llama-cpp-python", "--no-build-isolation"]);
    run("llama.cpp source", download.arg("--dest").arg(&folder).arg(LLAMA_CPP_SDIST))?;
    let unpack = "import sys, tarfile, glob\n\
                  for f in glob.glob(sys.argv[1] + '/*.tar.gz'):\n    \
                  tarfile.open(f).extractall(sys.argv[1], filter='data')";
    run("unpack", Command::new(&python).args(["-c", unpack]).arg(&folder))?;
    unpacked(&folder).ok_or_else(|| format!("{LLAMA_CPP_SDIST} holds no llama.cpp source"))
}

fn unpacked(folder: &Path) -> Option<PathBuf> {
    fs::read_dir(folder)
        .ok()?
        .filter_map(|entry| Some(entry.ok()?.path().join("vendor/llama.cpp")))
        .find(|source| source.join("models").is_dir())
}
