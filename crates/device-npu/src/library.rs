//! Finding what the user has installed: the library of ONNX Runtime, and those of providers.

use crate::error::NpuError;
use std::env;
use std::path::{Path, PathBuf};

/// A provider's library.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProviderLibrary {
    /// The name to register it under: free to choose, except that a name that ends in `.virtual`
    /// asks the library for devices that need not be there.
    pub name: String,
    /// The library.
    pub path: PathBuf,
}

impl ProviderLibrary {
    /// Reads `NAME=PATH`, as command lines give it; a path alone is named after its file.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        match text.split_once('=') {
            Some((name, path)) if !name.is_empty() => {
                Self { name: name.to_owned(), path: path.into() }
            }
            _ => {
                let path = PathBuf::from(text);
                let stem = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
                Self { name: stem, path }
            }
        }
    }
}

/// Providers that are looked for: the name under which their makers register them, the variable
/// that names the library, the wheel's folder, and the library without prefix and suffix.
const KNOWN: &[(&str, Option<&str>, &str, &str)] = &[
    (
        "RyzenAILightExecutionProvider",
        Some("RYZENAI_EP_PATH"),
        "onnxruntime_ep_ryzenai",
        "onnxruntime_providers_ryzenai",
    ),
    ("VitisAIExecutionProvider", None, "onnxruntime_ep_vitisai", "onnxruntime_providers_vitisai"),
    (
        "OpenVINOExecutionProvider",
        None,
        "onnxruntime_ep_openvino",
        "onnxruntime_providers_openvino_plugin",
    ),
    ("QNNExecutionProvider", None, "onnxruntime_qnn", "onnxruntime_providers_qnn"),
    ("WebGpuExecutionProvider", None, "onnxruntime_ep_webgpu", "onnxruntime_providers_webgpu"),
];

/// The file name of a shared library.
fn file_name(stem: &str) -> String {
    format!("{}{stem}{}", env::consts::DLL_PREFIX, env::consts::DLL_SUFFIX)
}

/// A folder or file named by a variable, if it is set.
fn variable(name: &str) -> Option<PathBuf> {
    env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from)
}

/// Finds the library of ONNX Runtime: `given`, else what `TANGOR_ONNXRUNTIME` or `ORT_DYLIB_PATH`
/// names, else what lies beside the program, in the active Python environment, where Ryzen AI is
/// installed, or where the system keeps its libraries.
///
/// # Errors
/// [`NpuError::Missing`] if what is named is not there, [`NpuError::NoLibrary`] if none is found.
pub fn find(given: Option<&Path>) -> Result<PathBuf, NpuError> {
    let named = [
        ("the option", given.map(Path::to_path_buf)),
        ("TANGOR_ONNXRUNTIME", variable("TANGOR_ONNXRUNTIME")),
        ("ORT_DYLIB_PATH", variable("ORT_DYLIB_PATH")),
    ];
    for (given_by, path) in named {
        let Some(path) = path else { continue };
        let inside = if path.is_dir() { newest(&path) } else { None };
        let found = inside.or_else(|| path.is_file().then(|| path.clone()));
        return found.ok_or(NpuError::Missing { given_by, path });
    }
    let looked = folders();
    let found = looked.iter().find_map(|folder| newest(folder));
    found.ok_or(NpuError::NoLibrary { looked })
}

/// Folders that may hold the library, in order.
fn folders() -> Vec<PathBuf> {
    let mut out = Vec::new();
    if let Some(program) = env::current_exe().ok().and_then(|exe| Some(exe.parent()?.to_path_buf()))
    {
        out.extend([program.clone(), program.join("lib"), program.join("../lib")]);
    }
    out.extend(site_packages().into_iter().map(|site| site.join("onnxruntime/capi")));
    if let Some(ryzen) = variable("RYZEN_AI_INSTALLATION_PATH") {
        out.extend([ryzen.join("deployment"), ryzen.join("lib"), ryzen]);
    }
    if !cfg!(windows) {
        // What lies in Windows' system folder is the system's own, and too old.
        let system = ["/usr/local/lib", "/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu"];
        let more = ["/usr/lib64", "/usr/lib", "/opt/onnxruntime/lib", "/opt/homebrew/lib"];
        out.extend(system.into_iter().chain(more).map(PathBuf::from));
    }
    out
}

/// The library in a folder, of several versions the one whose name sorts last.
fn newest(folder: &Path) -> Option<PathBuf> {
    let stem = format!("{}onnxruntime", env::consts::DLL_PREFIX);
    let is_library = |name: &str| {
        let Some(rest) = name.strip_prefix(&stem) else { return false };
        let numbers = |text: &str| text.chars().all(|c| c.is_ascii_digit() || c == '.');
        let suffix = env::consts::DLL_SUFFIX;
        // `.so`, `.so.1.32.0`; `.1.32.0.dylib`; `.dll`.
        rest.strip_prefix(suffix).is_some_and(numbers)
            || rest.strip_suffix(suffix).is_some_and(|middle| {
                middle.is_empty() || (middle.starts_with('.') && numbers(middle))
            })
    };
    let entries = std::fs::read_dir(folder).ok()?;
    let paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
    let named = paths
        .filter(|path| path.file_name().and_then(|name| name.to_str()).is_some_and(is_library));
    named.max()
}

/// Where the active Python environment keeps packages.
fn site_packages() -> Vec<PathBuf> {
    let Some(venv) = variable("VIRTUAL_ENV") else { return Vec::new() };
    let mut out = vec![venv.join("Lib/site-packages")];
    let versions = std::fs::read_dir(venv.join("lib")).into_iter().flatten();
    out.extend(versions.filter_map(|entry| Some(entry.ok()?.path().join("site-packages"))));
    out.retain(|folder| folder.is_dir());
    out
}

/// Provider libraries that are installed: named by a variable, beside the program or beside
/// ONNX Runtime's own library, or in a wheel of their own in the same Python environment.
#[must_use]
pub fn providers(onnxruntime: &Path) -> Vec<ProviderLibrary> {
    let beside = onnxruntime.parent().map(Path::to_path_buf);
    let program = env::current_exe().ok().and_then(|exe| Some(exe.parent()?.to_path_buf()));
    // `site-packages/onnxruntime/capi/libonnxruntime.so`
    let wheels = onnxruntime.ancestors().nth(3).map(Path::to_path_buf);
    let sites: Vec<PathBuf> = wheels.into_iter().chain(site_packages()).collect();
    let find = |&(name, by, wheel, stem): &(&str, Option<&str>, &str, &str)| {
        let file = file_name(stem);
        let named =
            by.and_then(variable).map(|path| if path.is_dir() { path.join(&file) } else { path });
        let folders = program.iter().chain(&beside).map(|folder| folder.join(&file));
        let wheels = sites.iter().map(|site| site.join(wheel).join(&file));
        let found = named.into_iter().chain(folders).chain(wheels).find(|path| path.is_file())?;
        Some(ProviderLibrary { name: name.to_owned(), path: found })
    };
    KNOWN.iter().filter_map(find).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests stop at what is unexpected")]
    use super::*;

    #[test]
    fn options_name_a_provider_and_its_library() {
        let parsed = ProviderLibrary::parse("QNN.virtual=/a/b=c.so");
        assert_eq!((parsed.name.as_str(), parsed.path), ("QNN.virtual", "/a/b=c.so".into()));
        let parsed = ProviderLibrary::parse("/lib/libfoo.so");
        assert_eq!((parsed.name.as_str(), parsed.path), ("libfoo", "/lib/libfoo.so".into()));
    }

    #[test]
    fn what_is_named_has_to_be_there() {
        let error = find(Some(Path::new("/nowhere/libonnxruntime.so"))).unwrap_err();
        assert!(matches!(&error, NpuError::Missing { given_by: "the option", .. }), "{error}");
        assert!(error.to_string().contains("/nowhere/libonnxruntime.so"), "{error}");
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn the_newest_library_of_a_folder_is_taken() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        for name in ["libonnxruntime.so.1.30.0", "libonnxruntime.so.1.32.0"] {
            std::fs::write(folder.join(name), "").unwrap();
        }
        std::fs::write(folder.join("libonnxruntime_providers_shared.so"), "").unwrap();
        assert_eq!(newest(folder), Some(folder.join("libonnxruntime.so.1.32.0")));
    }
}
