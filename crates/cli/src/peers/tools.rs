//! What peers need on this machine: private Python environments, and llama.cpp from source. All of
//! it stands in one folder of the store and is made once, by the ordinary package clients.

use super::child::{self, Argv, argv};
use crate::args::Global;
use crate::error::{Failure, Outcome};
use crate::interrupt::{self, Listening};
use crate::{load, sys, terminal};
use std::env::consts::EXE_SUFFIX;
use std::path::{Path, PathBuf};

/// The source package that carries llama.cpp.
const LLAMA_CPP_SDIST: &str = "llama-cpp-python==0.3.36";

/// Prints the versions of packages; fails if one is missing.
const VERSIONS: &str = "import sys, importlib.metadata as m\n\
                        print(*(f'{p} {m.version(p)}' for p in sys.argv[1:]), sep=', ')";

/// Python programs, which are handed to the interpreter as they are.
pub(crate) mod scripts {
    macro_rules! script {
        ($name:literal) => {
            include_str!(concat!("../../../../tools/peers/", $name))
        };
    }

    pub(crate) const GENAI: &str = script!("genai_peer.py");
    pub(crate) const LLAMA_LOGITS: &str = script!("llama_logits.py");
    pub(crate) const MAKE_GGUF: &str = script!("make_gguf.py");
    pub(crate) const MAKE_HF: &str = script!("make_hf.py");
    pub(crate) const MAKE_OGA: &str = script!("make_oga.py");
    pub(crate) const MISTRALRS: &str = script!("mistralrs_peer.py");
    pub(crate) const OPENVINO: &str = script!("openvino_peer.py");
    pub(crate) const TORCH: &str = script!("torch_peer.py");
    pub(super) const UNPACK: &str = script!("unpack.py");
    /// What other scripts import.
    pub(super) const MODULES: [(&str, &str); 2] =
        [("turn", script!("turn.py")), ("make_hf", MAKE_HF)];
}

/// A private Python environment.
#[derive(Debug)]
pub(crate) struct Venv {
    /// Its folder.
    pub(crate) name: &'static str,
    /// What it is for: packages whose versions are told.
    pub(crate) packages: &'static [&'static str],
    /// Other packages that are installed into it.
    pub(crate) besides: &'static [&'static str],
    /// Room that it takes, in bytes.
    pub(crate) bytes: u64,
}

/// What is built of llama.cpp.
const LLAMA_CPP_PROGRAMS: [&str; 3] = ["llama-bench", "llama-quantize", "llama-server"];

/// For writing GGUF files, and what llama.cpp's Python binding needs.
pub(crate) static GGUF: Venv = Venv {
    name: "gguf",
    packages: &["gguf"],
    besides: &["numpy", "diskcache", "jinja2", "typing-extensions"],
    bytes: 200 << 20,
};
/// For building llama.cpp.
static CMAKE: Venv = Venv {
    name: "cmake",
    packages: &["cmake"],
    besides: &["ninja", "scikit-build-core"],
    bytes: 800 << 20,
};
/// OpenVINO GenAI.
pub(crate) static OPENVINO: Venv =
    Venv { name: "openvino", packages: &["openvino-genai"], besides: &[], bytes: 600 << 20 };
/// mistral.rs.
pub(crate) static MISTRALRS: Venv =
    Venv { name: "mistralrs", packages: &["mistralrs"], besides: &[], bytes: 200 << 20 };
/// transformers; on Linux torch comes with libraries for graphics cards.
pub(crate) static TORCH: Venv = Venv {
    name: "torch",
    packages: &["transformers", "torch"],
    besides: &["accelerate", "gguf", "sentencepiece"],
    bytes: 8 << 30,
};
/// onnxruntime-genai and its model builder, which needs torch too.
pub(crate) static GENAI: Venv = Venv {
    name: "torch",
    packages: &["onnxruntime-genai", "onnxruntime"],
    besides: &["onnx", "onnx_ir", "torch", "transformers", "gguf", "sentencepiece"],
    bytes: 8 << 30,
};

/// The folder of peers, and the way to fill it.
#[derive(Debug)]
pub(crate) struct Tools {
    /// Where everything stands.
    pub(crate) folder: PathBuf,
    /// Whether nothing may be fetched.
    pub(crate) offline: bool,
    /// Ends whatever runs.
    pub(crate) ctrl_c: Listening,
}

impl Tools {
    /// The tools in the store that the global options name.
    pub(crate) fn open(global: &Global) -> Outcome<Self> {
        let ctrl_c = interrupt::listen();
        let folder = load::store(global)?.root().join("peers");
        Ok(Self { folder, offline: global.offline, ctrl_c })
    }

    /// Installs a Python environment unless it is there; says what is in it.
    pub(crate) fn install(&self, venv: &Venv) -> Outcome<String> {
        let python = self.python(venv);
        let versions = |packages: &[&str]| {
            let mut versions = argv([&python, &"-c", &VERSIONS]);
            versions.extend(packages.iter().map(Into::into));
            self.quiet(&versions).map(|versions| versions.trim().to_owned())
        };
        if python.exists()
            && let (Ok(told), Ok(_)) = (versions(venv.packages), versions(venv.besides))
        {
            return Ok(told);
        }
        self.may_fetch(venv.name, venv.bytes)?;
        let name = venv.name;
        if !python.exists() {
            let (system, _) = sys::python().ok_or_else(|| {
                Failure::new("no Python was found").hint("install Python 3.11 or newer with pip")
            })?;
            let folder = self.folder.join(name);
            let make = argv([&system.as_str(), &"-m", &"venv", &folder]);
            self.step(&format!("making the Python environment {name}"), &make)?;
        }
        let packages = || venv.packages.iter().chain(venv.besides);
        let what = format!("installing {}", venv.packages.join(", "));
        let mut pip = argv([&python, &"-m", &"pip", &"install", &"--disable-pip-version-check"]);
        pip.extend(packages().map(Into::into));
        self.step(&what, &pip)?;
        versions(venv.packages)
    }

    /// The interpreter of an environment.
    pub(crate) fn python(&self, venv: &Venv) -> PathBuf {
        let bin = if cfg!(windows) { "Scripts" } else { "bin" };
        self.folder.join(venv.name).join(bin).join(format!("python{EXE_SUFFIX}"))
    }

    /// One of [`scripts`], to be run in an environment; its arguments follow.
    pub(crate) fn script(&self, venv: &Venv, script: &str) -> Argv {
        let import = |(name, text): (&str, &str)| {
            // A JSON string is a string of Python too.
            let (name, text) = (serde_json::json!(name), serde_json::json!(text));
            format!(
                "m = sys.modules[{name}] = types.ModuleType({name})\n\
                 exec(compile({text}, {name}, 'exec'), m.__dict__)\n"
            )
        };
        let modules: String = scripts::MODULES.into_iter().map(import).collect();
        let program = format!("import sys, types\n{modules}{script}");
        argv([&self.python(venv), &"-c", &program.as_str()])
    }

    /// A program of llama.cpp.
    pub(crate) fn llama_cpp(&self, program: &str) -> PathBuf {
        self.folder.join("llama.cpp/build/bin").join(format!("{program}{EXE_SUFFIX}"))
    }

    /// Builds llama.cpp for this machine's processor unless it is there.
    pub(crate) fn install_llama_cpp(&self) -> Outcome<String> {
        let version = LLAMA_CPP_SDIST.replace("==", " ");
        let built = LLAMA_CPP_PROGRAMS.map(|program| self.llama_cpp(program));
        if built.iter().all(|program| program.exists()) {
            return Ok(version);
        }
        self.may_fetch("llama.cpp", 1 << 30)?;
        self.install(&CMAKE)?;
        let source = self.llama_cpp_source()?;
        let python = self.python(&CMAKE);
        let build = self.folder.join("llama.cpp/build");
        let (cmake, ninja) = (python.with_file_name("cmake"), python.with_file_name("ninja"));
        let vendored = source.join("vendor/llama.cpp");
        let make_program = format!("-DCMAKE_MAKE_PROGRAM={}", ninja.display());
        let mut configure = argv([&cmake, &"-G", &"Ninja", &"-S", &vendored, &"-B", &build]);
        configure.push(make_program.into());
        let settings = [
            "-DCMAKE_BUILD_TYPE=Release",
            "-DGGML_NATIVE=ON",
            "-DLLAMA_CURL=OFF",
            "-DLLAMA_OPENSSL=OFF",
            "-DLLAMA_BUILD_TESTS=OFF",
            "-DLLAMA_BUILD_SERVER=ON",
        ];
        configure.extend(settings.map(Into::into));
        self.step("configuring llama.cpp", &configure)?;
        let mut make = argv([&cmake, &"--build", &build, &"--target"]);
        make.extend(LLAMA_CPP_PROGRAMS.map(Into::into));
        self.step("building llama.cpp (minutes)", &make)?;
        Ok(version)
    }

    /// The source package of llama.cpp's Python binding, unpacked; fetched unless it is there.
    pub(crate) fn llama_cpp_source(&self) -> Outcome<PathBuf> {
        let folder = self.folder.join("llama.cpp");
        if let Some(source) = unpacked(&folder) {
            return Ok(source);
        }
        self.may_fetch("llama.cpp's source", 500 << 20)?;
        self.install(&CMAKE)?;
        let python = self.python(&CMAKE);
        // Asking pip for a source package makes it ask the package's build back end, which is
        // installed for that.
        let fetch: [&dyn child::AsArg; 12] = [
            &python,
            &"-m",
            &"pip",
            &"download",
            &"--disable-pip-version-check",
            &"--no-deps",
            &"--no-build-isolation",
            &"--no-binary",
            &"llama-cpp-python",
            &"--dest",
            &folder,
            &LLAMA_CPP_SDIST,
        ];
        self.step("fetching llama.cpp's source", &argv(fetch))?;
        let mut unpack = self.script(&CMAKE, scripts::UNPACK);
        unpack.push(folder.clone().into());
        self.step("unpacking llama.cpp's source", &unpack)?;
        unpacked(&folder)
            .ok_or_else(|| Failure::new(format!("{LLAMA_CPP_SDIST} holds no llama.cpp source")))
    }

    /// Runs a step that takes long, and says so.
    pub(crate) fn step(&self, what: &str, argv: &Argv) -> Outcome<String> {
        child::step(what, argv, &self.ctrl_c)
    }

    fn quiet(&self, argv: &Argv) -> Outcome<String> {
        child::run(argv, &self.ctrl_c)
    }

    /// Whether something of this size may be fetched.
    fn may_fetch(&self, what: &str, bytes: u64) -> Outcome {
        if self.offline {
            let hint = "run it once without --offline";
            return Err(Failure::new(format!("{what} is not installed")).hint(hint));
        }
        self.disk_has(what, bytes)
    }

    /// Whether the disk has room for something of this size.
    pub(crate) fn disk_has(&self, what: &str, bytes: u64) -> Outcome {
        match sys::disk_free_bytes(&self.folder) {
            Some(free) if free < bytes => Err(Failure::new(format!(
                "{what} takes about {}, and the disk has {} free",
                terminal::bytes(bytes),
                terminal::bytes(free)
            ))),
            _ => Ok(()),
        }
    }
}

/// Where the package of llama.cpp's Python binding was unpacked in this folder.
fn unpacked(folder: &Path) -> Option<PathBuf> {
    std::fs::read_dir(folder)
        .ok()?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|source| source.join("vendor/llama.cpp/CMakeLists.txt").is_file())
}
