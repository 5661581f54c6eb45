//! What peers need on this machine: private Python environments, llama.cpp from source, and models
//! in the form that each of them reads. All of it stands in one folder of the store and is made
//! once, by the ordinary package clients.

use super::child::{self, argv};
use crate::error::{Failure, Outcome};
use crate::interrupt::Listening;
use crate::{sys, terminal};
use serde_json::Value;
use std::env::consts::EXE_SUFFIX;
use std::path::{Path, PathBuf};

/// The source package that carries llama.cpp.
const LLAMA_CPP_SDIST: &str = "llama-cpp-python==0.3.36";

/// Prints the versions of packages; fails if one is missing.
const VERSIONS: &str = "import sys, importlib.metadata as m\n\
                        print(', '.join(f'{p} {m.version(p)}' for p in sys.argv[1:]))";

/// Python programs, which are handed to the interpreter as they are.
pub(super) mod scripts {
    pub(in super::super) const OPENVINO: &str =
        include_str!("../../../../../tools/peers/openvino.py");
    pub(in super::super) const TORCH: &str =
        include_str!("../../../../../tools/peers/torch_peer.py");
    pub(in super::super) const GENAI: &str = include_str!("../../../../../tools/peers/genai.py");
    pub(super) const MAKE_GGUF: &str = include_str!("../../../../../tools/peers/make_gguf.py");
    pub(super) const MAKE_HF: &str = include_str!("../../../../../tools/peers/make_hf.py");
    pub(super) const MAKE_OGA: &str = include_str!("../../../../../tools/peers/make_oga.py");
    pub(super) const UNPACK: &str = include_str!("../../../../../tools/peers/unpack.py");
}

/// A private Python environment.
#[derive(Debug)]
pub(super) struct Venv {
    /// Its folder.
    pub(super) name: &'static str,
    /// What is installed into it.
    pub(super) packages: &'static [&'static str],
    /// Room that it takes, in bytes.
    pub(super) bytes: u64,
}

/// For reading and writing GGUF files.
const GGUF: Venv = Venv { name: "gguf", packages: &["gguf", "numpy"], bytes: 200 << 20 };
/// For building llama.cpp.
const CMAKE: Venv =
    Venv { name: "cmake", packages: &["cmake", "ninja", "scikit-build-core"], bytes: 800 << 20 };
/// OpenVINO GenAI.
pub(super) const OPENVINO: Venv =
    Venv { name: "openvino", packages: &["openvino-genai"], bytes: 600 << 20 };
/// transformers; on Linux torch comes with libraries for graphics cards.
pub(super) const TORCH: Venv = Venv {
    name: "torch",
    packages: &["torch", "transformers", "accelerate", "gguf", "sentencepiece"],
    bytes: 8 << 30,
};
/// onnxruntime-genai and its model builder, which needs torch too.
pub(super) const GENAI: Venv = Venv {
    name: "torch",
    packages: &["onnxruntime-genai", "onnxruntime", "onnx", "onnx_ir", "torch", "transformers"],
    bytes: 8 << 30,
};

/// What is measured.
#[derive(Debug)]
pub(super) enum Subject {
    /// A GGUF file.
    Gguf(PathBuf),
    /// A Hugging Face folder.
    Folder(PathBuf),
    /// An ONNX Runtime GenAI folder.
    Oga(PathBuf),
    /// A published shape with random weights: its name and `config.json`.
    Shape(String, Value),
}

impl Subject {
    /// A name for what is made of it.
    fn key(&self) -> String {
        let of = |path: &Path| {
            let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            let bytes = path.metadata().map_or(0, |metadata| metadata.len());
            format!("{name}-{bytes}")
        };
        match self {
            Self::Gguf(path) | Self::Folder(path) | Self::Oga(path) => of(path),
            Self::Shape(name, _) => name.clone(),
        }
    }
}

/// The folder of peers, and the way to fill it.
#[derive(Debug)]
pub(super) struct Tools {
    /// Where everything stands.
    pub(super) folder: PathBuf,
    /// Whether nothing may be fetched.
    pub(super) offline: bool,
    /// Ends whatever runs.
    pub(super) ctrl_c: Listening,
}

impl Tools {
    /// Installs a Python environment unless it is there; says what is in it.
    pub(super) fn install(&self, venv: &Venv) -> Outcome<String> {
        let python = self.python(venv);
        let mut versions = argv([&python, &"-c", &VERSIONS]);
        versions.extend(venv.packages.iter().map(Into::into));
        if python.exists()
            && let Ok(versions) = self.quiet(&versions)
        {
            return Ok(versions.trim().to_owned());
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
        let what = format!("installing {}", venv.packages.join(", "));
        let mut pip = argv([&python, &"-m", &"pip", &"install", &"--disable-pip-version-check"]);
        pip.extend(venv.packages.iter().map(Into::into));
        self.step(&what, &pip)?;
        self.quiet(&versions).map(|versions| versions.trim().to_owned())
    }

    /// The interpreter of an environment.
    pub(super) fn python(&self, venv: &Venv) -> PathBuf {
        let bin = if cfg!(windows) { "Scripts" } else { "bin" };
        self.folder.join(venv.name).join(bin).join(format!("python{EXE_SUFFIX}"))
    }

    /// A program of llama.cpp.
    pub(super) fn llama_cpp(&self, program: &str) -> PathBuf {
        self.folder.join("llama.cpp/build/bin").join(format!("{program}{EXE_SUFFIX}"))
    }

    /// Builds llama.cpp for this machine's processor unless it is there.
    pub(super) fn install_llama_cpp(&self) -> Outcome<String> {
        let version = LLAMA_CPP_SDIST.replace("==", " ");
        let built = ["llama-bench", "llama-quantize"].map(|program| self.llama_cpp(program));
        if built.iter().all(|program| program.exists()) {
            return Ok(version);
        }
        self.may_fetch("llama.cpp", 1 << 30)?;
        self.install(&CMAKE)?;
        let python = self.python(&CMAKE);
        let folder = self.folder.join("llama.cpp");
        let source = match unpacked(&folder) {
            Some(source) => source,
            None => self.fetch_llama_cpp(&python, &folder)?,
        };
        let (cmake, build) = (python.with_file_name("cmake"), folder.join("build"));
        let ninja = python.with_file_name("ninja");
        let make_program = format!("-DCMAKE_MAKE_PROGRAM={}", ninja.display());
        let mut configure = argv([&cmake, &"-G", &"Ninja", &"-S", &source, &"-B", &build]);
        configure.push(make_program.into());
        let settings = [
            "-DCMAKE_BUILD_TYPE=Release",
            "-DGGML_NATIVE=ON",
            "-DLLAMA_CURL=OFF",
            "-DLLAMA_OPENSSL=OFF",
            "-DLLAMA_BUILD_TESTS=OFF",
            "-DLLAMA_BUILD_SERVER=OFF",
        ];
        configure.extend(settings.map(Into::into));
        self.step("configuring llama.cpp", &configure)?;
        let targets: [&dyn child::AsArg; 6] =
            [&cmake, &"--build", &build, &"--target", &"llama-bench", &"llama-quantize"];
        self.step("building llama.cpp (minutes)", &argv(targets))?;
        Ok(version)
    }

    /// llama.cpp's source, from the source package of its Python binding.
    fn fetch_llama_cpp(&self, python: &Path, folder: &Path) -> Outcome<PathBuf> {
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
        let unpack = argv([&python, &"-c", &scripts::UNPACK, &folder]);
        self.step("unpacking llama.cpp's source", &unpack)?;
        unpacked(folder)
            .ok_or_else(|| Failure::new(format!("{LLAMA_CPP_SDIST} holds no llama.cpp source")))
    }

    /// The subject as a GGUF file.
    pub(super) fn gguf(&self, subject: &Subject) -> Outcome<PathBuf> {
        match subject {
            Subject::Gguf(path) => Ok(path.clone()),
            Subject::Shape(name, config) => {
                let path = self.model(subject, "q4_0.gguf");
                if !path.exists() {
                    self.install(&GGUF)?;
                    let (python, config) = (self.python(&GGUF), config.to_string());
                    let make = argv([&python, &"-c", &scripts::MAKE_GGUF, &config.as_str(), &path]);
                    self.step(&format!("writing a GGUF file of the shape {name}"), &make)?;
                }
                Ok(path)
            }
            Subject::Folder(_) | Subject::Oga(_) => Err(Failure::new("it reads GGUF files only")),
        }
    }

    /// The subject as a Hugging Face folder in bf16.
    pub(super) fn hf(&self, subject: &Subject) -> Outcome<PathBuf> {
        let source = match subject {
            Subject::Folder(path) => return Ok(path.clone()),
            Subject::Oga(_) => return Err(Failure::new("it does not read ONNX folders")),
            Subject::Gguf(path) => path.clone().into_os_string(),
            Subject::Shape(_, config) => config.to_string().into(),
        };
        let path = self.model(subject, "hf");
        if !path.exists() {
            self.install(&TORCH)?;
            let mut make = argv([&self.python(&TORCH), &"-c", &scripts::MAKE_HF]);
            make.extend([source, path.clone().into_os_string()]);
            self.step("writing the model as a Hugging Face folder in bf16", &make)?;
        }
        Ok(path)
    }

    /// The subject as an ONNX Runtime GenAI folder in int4.
    pub(super) fn oga(&self, subject: &Subject) -> Outcome<PathBuf> {
        if let Subject::Oga(path) = subject {
            return Ok(path.clone());
        }
        let path = self.model(subject, "oga");
        if !path.exists() {
            let hf = self.hf(subject)?;
            let make = argv([&self.python(&GENAI), &"-c", &scripts::MAKE_OGA, &hf, &path]);
            self.step("building the model for onnxruntime-genai (minutes)", &make)?;
        }
        Ok(path)
    }

    /// The subject as a `Q4_K_M` GGUF file.
    pub(super) fn q4_k_m(&self, subject: &Subject) -> Outcome<PathBuf> {
        let path = self.model(subject, "q4_k_m.gguf");
        if !path.exists() {
            let source = self.gguf(subject)?;
            let quantize = self.llama_cpp("llama-quantize");
            let make = argv([&quantize, &"--allow-requantize", &source, &path, &"Q4_K_M"]);
            self.step("quantising to Q4_K_M", &make)?;
        }
        Ok(path)
    }

    fn model(&self, subject: &Subject, form: &str) -> PathBuf {
        self.folder.join("models").join(format!("{}-{form}", subject.key()))
    }

    fn step(&self, what: &str, argv: &child::Argv) -> Outcome<String> {
        child::step(what, argv, &self.ctrl_c)
    }

    fn quiet(&self, argv: &child::Argv) -> Outcome<String> {
        child::run(argv, &self.ctrl_c)
    }

    /// Whether something of this size may be fetched.
    fn may_fetch(&self, what: &str, bytes: u64) -> Outcome {
        if self.offline {
            let hint = "run it once without --offline";
            return Err(Failure::new(format!("{what} is not installed")).hint(hint));
        }
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

/// Where llama.cpp's source is in the folder that its package was unpacked in.
fn unpacked(folder: &Path) -> Option<PathBuf> {
    std::fs::read_dir(folder)
        .ok()?
        .filter_map(|entry| Some(entry.ok()?.path().join("vendor/llama.cpp")))
        .find(|source| source.join("CMakeLists.txt").is_file())
}
