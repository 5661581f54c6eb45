//! What the system says about GPUs, NPUs and what drives them. Nothing is loaded or started: files
//! and variables tell.

use crate::sys;
use serde::Serialize;
use std::env;
use std::fs;
use std::path::{Path, PathBuf};

/// Systems that differ in what they need.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum System {
    #[default]
    Linux,
    Windows,
    Other,
}

/// A device node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Node {
    /// As `/dev/accel/accel0`.
    pub(crate) path: PathBuf,
    /// Whether this process may open it.
    pub(crate) opens: bool,
}

/// What was found. Empty means that it is not there.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(crate) struct Facts {
    pub(crate) system: System,
    /// The processor's brand string.
    pub(crate) processor: Option<String>,
    /// Version of the kernel: 6.14.
    pub(crate) kernel: Option<(u32, u32)>,
    /// Library that finds Vulkan drivers.
    pub(crate) vulkan_loader: Option<PathBuf>,
    /// Manifests of Vulkan drivers.
    pub(crate) vulkan_drivers: Vec<PathBuf>,
    /// Library of Direct3D 12.
    pub(crate) direct3d: Option<PathBuf>,
    /// Nodes of GPUs.
    pub(crate) render_nodes: Vec<Node>,
    /// Nodes of accelerators.
    pub(crate) accel_nodes: Vec<Node>,
    /// Whether the NPU's driver is loaded or installed.
    pub(crate) npu_driver: bool,
    /// The NPU's run time.
    pub(crate) xrt: Option<PathBuf>,
    /// Bytes that this process may lock in memory; `None`: as many as it likes, or nobody knows.
    pub(crate) memlock_bytes: Option<u64>,
    /// `ORT_DYLIB_PATH`.
    pub(crate) ort_asked: Option<PathBuf>,
    /// ONNX Runtime's library.
    pub(crate) ort: Option<PathBuf>,
    /// `RYZENAI_EP_PATH`.
    pub(crate) provider_asked: Option<PathBuf>,
    /// Libraries of execution providers.
    pub(crate) providers: Vec<PathBuf>,
}

/// Looks at this system.
pub(crate) fn facts() -> Facts {
    let var = |name: &str| env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let (ort_asked, provider_asked) = (var("ORT_DYLIB_PATH"), var("RYZENAI_EP_PATH"));
    let facts = Facts {
        processor: sys::brand(),
        ort: found_ort(ort_asked.as_deref()),
        providers: providers(provider_asked.as_deref()),
        ort_asked,
        provider_asked,
        ..Facts::default()
    };
    if cfg!(windows) {
        windows(facts, var("SystemRoot"), var("RYZEN_AI_INSTALLATION_PATH"))
    } else if cfg!(target_os = "linux") {
        linux(facts)
    } else {
        Facts { system: System::Other, ..facts }
    }
}

/// Folders of libraries on Linux.
const LIBRARIES: &[&str] = &[
    "/usr/lib/x86_64-linux-gnu",
    "/usr/lib/aarch64-linux-gnu",
    "/usr/lib64",
    "/usr/lib",
    "/usr/local/lib",
    "/lib64",
];

/// Folders of manifests of Vulkan drivers (Vulkan-Loader, `LoaderDriverInterface.md`).
const DRIVERS: &[&str] =
    &["/usr/share/vulkan/icd.d", "/usr/local/share/vulkan/icd.d", "/etc/vulkan/icd.d"];

fn linux(facts: Facts) -> Facts {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let limits = fs::read_to_string("/proc/self/limits").unwrap_or_default();
    let (dri, accel) = (Path::new("/dev/dri"), [Path::new("/dev/accel"), Path::new("/dev")]);
    let accel = accel.into_iter().flat_map(|folder| nodes(folder, "accel"));
    let manifest = |path: &PathBuf| path.extension().is_some_and(|end| end == "json");
    let asked = ["VK_DRIVER_FILES", "VK_ICD_FILENAMES"].into_iter().find_map(env::var_os);
    let vulkan_drivers = match asked {
        Some(list) => env::split_paths(&list).filter(|path| path.is_file()).collect(),
        None => DRIVERS.iter().flat_map(|f| files(Path::new(f))).filter(manifest).collect(),
    };
    let xrt = [Path::new("/opt/xilinx/xrt/lib/libxrt_core.so").to_path_buf()];
    Facts {
        system: System::Linux,
        kernel: version(&release),
        vulkan_loader: library("libvulkan.so.1"),
        vulkan_drivers,
        render_nodes: nodes(dri, "renderD"),
        accel_nodes: accel.collect(),
        npu_driver: Path::new("/sys/module/amdxdna").exists(),
        xrt: xrt.into_iter().find(|p| p.exists()).or_else(|| library("libxrt_core.so")),
        memlock_bytes: memlock(&limits),
        ..facts
    }
}

fn windows(facts: Facts, root: Option<PathBuf>, ryzen_ai: Option<PathBuf>) -> Facts {
    let system = root.unwrap_or_else(|| PathBuf::from("C:\\Windows")).join("System32");
    let there = |name: &str| Some(system.join(name)).filter(|path| path.is_file());
    let smi = there("AMD\\xrt-smi.exe").or_else(|| there("xrt-smi.exe"));
    Facts {
        system: System::Windows,
        vulkan_loader: there("vulkan-1.dll"),
        direct3d: there("D3D12.dll"),
        npu_driver: smi.is_some(),
        xrt: smi.or(ryzen_ai),
        ..facts
    }
}

/// A library in one of the usual folders.
fn library(name: &str) -> Option<PathBuf> {
    let asked = env::var_os("LD_LIBRARY_PATH").unwrap_or_default();
    let folders = env::split_paths(&asked).chain(LIBRARIES.iter().map(PathBuf::from));
    folders.map(|folder| folder.join(name)).find(|path| path.is_file())
}

/// Names of ONNX Runtime's library.
const ORT: &[&str] = &["onnxruntime.dll", "libonnxruntime.so", "libonnxruntime.dylib"];

fn found_ort(asked: Option<&Path>) -> Option<PathBuf> {
    match asked {
        Some(path) if path.is_file() => Some(path.to_path_buf()),
        Some(folder) => ORT.iter().map(|name| folder.join(name)).find(|path| path.is_file()),
        None => ORT.iter().find_map(|name| library(name)),
    }
}

/// Libraries of providers at a path: itself, or what the folder holds.
fn providers(asked: Option<&Path>) -> Vec<PathBuf> {
    let Some(asked) = asked else { return Vec::new() };
    if asked.is_file() {
        return vec![asked.to_path_buf()];
    }
    let is_provider = |path: &PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let name = name.to_ascii_lowercase();
        let library = [".dll", ".so", ".dylib"].iter().any(|end| name.contains(end));
        library && ["provider", "_ep", "vitisai", "ryzenai"].iter().any(|part| name.contains(part))
    };
    files(asked).into_iter().filter(is_provider).collect()
}

/// What a folder holds, in order; nothing if it cannot be read.
fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    paths.sort();
    paths
}

/// Device nodes of a folder whose names begin so and end with a number.
fn nodes(folder: &Path, begin: &str) -> Vec<Node> {
    let is_node = |path: &PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let number = name.strip_prefix(begin).unwrap_or_default();
        !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit())
    };
    let opens = |path: &Path| fs::OpenOptions::new().read(true).write(true).open(path).is_ok();
    let paths = files(folder).into_iter().filter(is_node);
    paths.map(|path| Node { opens: opens(&path), path }).collect()
}

/// `6.14.0-15-generic` as 6 and 14.
fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.trim().split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// The soft limit of locked memory in `/proc/self/limits`.
fn memlock(limits: &str) -> Option<u64> {
    let line = limits.lines().find_map(|line| line.strip_prefix("Max locked memory"))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_linux_writes() {
        assert_eq!(version("6.14.0-15-generic\n"), Some((6, 14)));
        assert_eq!(version("5.10"), Some((5, 10)));
        assert_eq!(version("x"), None);
        let limits =
            "Max cpu time  unlimited\nMax locked memory         8388608   8388608   bytes\n";
        assert_eq!(memlock(limits), Some(8_388_608));
        assert_eq!(memlock("Max locked memory    unlimited   unlimited   bytes\n"), None);
    }

    #[test]
    fn finds_providers_in_a_folder_and_a_file() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["onnxruntime_providers_ryzenai.dll", "readme.txt", "libother.so"] {
            fs::write(folder.path().join(name), "").unwrap();
        }
        let found = providers(Some(folder.path()));
        assert_eq!(found, [folder.path().join("onnxruntime_providers_ryzenai.dll")]);
        let file = folder.path().join("libother.so");
        assert_eq!(providers(Some(&file)), std::slice::from_ref(&file));
        assert_eq!(providers(None), Vec::<PathBuf>::new());
        assert_eq!(found_ort(Some(folder.path())), None);
        assert_eq!(nodes(folder.path(), "renderD"), []);
    }

    #[test]
    fn finds_windows_drivers_below_its_root() {
        let root = tempfile::tempdir().unwrap();
        let system = root.path().join("System32");
        fs::create_dir_all(&system).unwrap();
        fs::write(system.join("vulkan-1.dll"), "").unwrap();
        let found = windows(Facts::default(), Some(root.path().to_path_buf()), None);
        assert_eq!((found.system, found.npu_driver), (System::Windows, false));
        assert!(found.vulkan_loader.is_some() && found.direct3d.is_none());
    }
}
