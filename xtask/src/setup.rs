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

/// Variables of tests, files that they name, and the packages that these come from.
const ONNXRUNTIME: &[(&str, &str, &str)] = &[
    ("TANGOR_TEST_ONNXRUNTIME", "onnxruntime/capi/libonnxruntime.so.1.32.0", "onnxruntime==1.32.0"),
    (
        "TANGOR_TEST_EP_WEBGPU",
        "onnxruntime_ep_webgpu/libonnxruntime_providers_webgpu.so",
        "onnxruntime-ep-webgpu==0.4.0",
    ),
    (
        "TANGOR_TEST_EP_OPENVINO",
        "onnxruntime_ep_openvino/libonnxruntime_providers_openvino_plugin.so",
        "onnxruntime-ep-openvino==1.8.1",
    ),
];

/// The clients that the server is tested with.
const CLIENTS: &[&str] = &[
    "openai==3.57.0",
    "ollama==0.6.3",
    "anthropic==2.14.0",
    "langchain-openai==1.7.4",
    // What says whether an answer is valid.
    "jsonschema==4.26.0",
];

/// What makes requests from the server's OpenAPI document.
const SCHEMATHESIS: &[&str] = &["schemathesis==4.32.5"];

/// Where the fetched things are.
#[derive(Debug)]
pub(crate) struct Inputs {
    /// The model store of the tests (`TANGOR_HOME`).
    pub(crate) home: PathBuf,
    /// The real model (`TANGOR_TEST_GGUF`).
    pub(crate) gguf: PathBuf,
    /// llama.cpp's `models` folder (`TANGOR_LLAMA_CPP_MODELS`).
    pub(crate) llama_cpp_models: PathBuf,
    /// A Python that has [`CLIENTS`] (`TANGOR_TEST_CLIENTS`).
    pub(crate) clients: PathBuf,
    /// Packages that the server's page is tested with (`TANGOR_TEST_PAGE`), on Linux.
    pub(crate) page: Option<PathBuf>,
    /// A Python that has [`SCHEMATHESIS`] (`TANGOR_TEST_SCHEMATHESIS`).
    pub(crate) schemathesis: PathBuf,
    /// ONNX Runtime and providers, by the variables that tests read.
    pub(crate) onnxruntime: Vec<(&'static str, PathBuf)>,
}

impl Inputs {
    /// The variables that tests read.
    pub(crate) fn variables(&self) -> Vec<(&'static str, &Path)> {
        let mut all: Vec<(&str, &Path)> = vec![
            ("TANGOR_HOME", &self.home),
            ("TANGOR_TEST_GGUF", &self.gguf),
            ("TANGOR_LLAMA_CPP_MODELS", &self.llama_cpp_models),
            ("TANGOR_TEST_CLIENTS", &self.clients),
            ("TANGOR_TEST_SCHEMATHESIS", &self.schemathesis),
        ];
        all.extend(self.page.iter().map(|page| ("TANGOR_TEST_PAGE", page.as_path())));
        all.extend(self.onnxruntime.iter().map(|(name, path)| (*name, path.as_path())));
        all
    }
}

impl fmt::Display for Inputs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines = self.variables().into_iter();
        let lines = lines.map(|(name, path)| format!("export {name}='{}'", path.display()));
        f.write_str(&lines.collect::<Vec<_>>().join("\n"))
    }
}

/// Fetches what is not there yet.
pub(crate) fn setup() -> Outcome<Inputs> {
    crate::vulkan::driver()?;
    let llama_cpp_models = llama_cpp()?.join("models");
    Ok(Inputs {
        home: home(),
        gguf: model()?,
        llama_cpp_models,
        clients: python("clients-venv", CLIENTS)?,
        page: crate::page::packages()?,
        schemathesis: schemathesis()?,
        onnxruntime: onnxruntime()?,
    })
}

/// A Python that has schemathesis.
pub(crate) fn schemathesis() -> Outcome<PathBuf> {
    python("schemathesis-venv", SCHEMATHESIS)
}

/// The model store of the tests.
pub(crate) fn home() -> PathBuf {
    root().join("target/test-home")
}

/// The real model, fetched unless it is there, by the program that the tests run: compiled as they
/// are, since any other set of features would compile most of it once more.
pub(crate) fn model() -> Outcome<PathBuf> {
    run("compile", &mut cargo(&["test", "--workspace", "--all-features", "--no-run"]))?;
    let tangor =
        root().join("target/debug").join(format!("tangor{}", std::env::consts::EXE_SUFFIX));
    let mut pull = Command::new(tangor);
    let pulled = output(pull.args(["pull", "smollm2", "--json"]).env("TANGOR_HOME", home()))?;
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

/// ONNX Runtime and two providers that come as packages, and a Vulkan in software that the WebGPU
/// provider accepts: by the variables that the tests of `device-npu` read, which are Linux's alone.
pub(crate) fn onnxruntime() -> Outcome<Vec<(&'static str, PathBuf)>> {
    if !cfg!(target_os = "linux") {
        return Ok(Vec::new());
    }
    let name = "onnxruntime-venv";
    let site = |python: &Path| -> Outcome<PathBuf> {
        let code = "import sysconfig; print(sysconfig.get_path('purelib'))";
        Ok(output(Command::new(python).args(["-c", code]))?.trim().into())
    };
    let mut packages = site(&python(name, &[])?)?;
    if ONNXRUNTIME.iter().any(|(_, file, _)| !packages.join(file).exists()) {
        let wanted: Vec<&str> = ONNXRUNTIME.iter().map(|(.., package)| *package).collect();
        // Their own dependencies are for Python, which never runs here.
        let no_dependencies = [&["--no-deps"][..], &wanted].concat();
        packages = site(&python(name, &no_dependencies)?)?;
    }
    let mut all = Vec::new();
    for (variable, file, package) in ONNXRUNTIME {
        let path = packages.join(file);
        if !path.exists() {
            return Err(format!("{package} holds no {file} for this system"));
        }
        all.push((*variable, path));
    }
    all.push(("TANGOR_TEST_VULKAN_ICD", swiftshader()?));
    Ok(all)
}

/// SwiftShader, the Vulkan in software of Debian's Chromium: the WebGPU provider refuses Mesa's
/// before version 25. Unpacked here, not installed.
fn swiftshader() -> Outcome<PathBuf> {
    let folder = root().join("target/swiftshader");
    let icd = folder.join("usr/lib/chromium/vk_swiftshader_icd.json");
    if !icd.exists() {
        let failed = |error: std::io::Error| format!("cannot make {}: {error}", folder.display());
        fs::create_dir_all(&folder).map_err(failed)?;
        let mut fetch = Command::new("apt-get");
        fetch.current_dir(&folder).args(["--quiet", "download", "chromium-common"]);
        if run("SwiftShader", &mut fetch).is_err() {
            // A machine that is new has no list of packages yet.
            run("list of packages", Command::new("apt-get").args(["--quiet", "update"]))?;
            run("SwiftShader", &mut fetch)?;
        }
        let unpack = "dpkg --fsys-tarfile chromium-common_*.deb \
                      | tar -x --wildcards '*swiftshader*' && rm chromium-common_*.deb";
        run("unpack", Command::new("sh").current_dir(&folder).args(["-c", unpack]))?;
    }
    if icd.exists() { Ok(icd) } else { Err("Debian's chromium-common has no SwiftShader".into()) }
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
