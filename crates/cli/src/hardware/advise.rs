//! What follows from what was found: what can be used, what is missing, how to get it.

use super::chip::Chip;
use super::facts::{Facts, Node, System};
use serde::Serialize;
use std::path::PathBuf;

/// Whether something is as it should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum State {
    /// It is there.
    Found,
    /// It is not there, and something could be done about it.
    Missing,
    /// It is not there, and nothing can or need be done about it.
    Absent,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Finding {
    /// `processor`, `gpu`, `npu` or `onnxruntime`.
    pub(crate) area: &'static str,
    pub(crate) state: State,
    pub(crate) what: String,
    /// How to get what is missing.
    pub(crate) todo: Option<String>,
}

/// First kernel that AMD's NPU driver can be built for, and the first one that has it.
const KERNEL_FOR_DRIVER: (u32, u32) = (6, 10);
const KERNEL_WITH_DRIVER: (u32, u32) = (6, 14);

/// Bytes that must be lockable for the weights of a model to be handed to an NPU.
const MEMLOCK_BYTES: u64 = 16 << 30;

/// What there is to say, area by area.
pub(crate) fn advise(facts: &Facts) -> Vec<Finding> {
    let chip = Chip::of(facts.processor.as_deref().unwrap_or_default());
    let mut findings = vec![processor(facts, chip)];
    findings.extend(gpu(facts));
    findings.extend(npu(facts, chip));
    findings.extend(onnxruntime(facts, chip));
    findings
}

fn found(area: &'static str, what: String) -> Finding {
    Finding { area, state: State::Found, what, todo: None }
}

fn absent(area: &'static str, what: String) -> Finding {
    Finding { area, state: State::Absent, what, todo: None }
}

fn missing(area: &'static str, what: impl Into<String>, todo: impl Into<String>) -> Finding {
    Finding { area, state: State::Missing, what: what.into(), todo: Some(todo.into()) }
}

fn processor(facts: &Facts, chip: Chip) -> Finding {
    let brand = facts.processor.as_deref().unwrap_or("a processor that does not say its name");
    let what = format!("{brand}: {}; {}", chip.name(), chip.support());
    match chip {
        Chip::Other => absent("processor", what),
        _ => found("processor", what),
    }
}

fn paths(paths: &[PathBuf]) -> String {
    paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ")
}

/// A node that somebody may not open.
fn locked(nodes: &[Node]) -> Option<&Node> {
    nodes.iter().find(|node| !node.opens)
}

fn gpu(facts: &Facts) -> Vec<Finding> {
    const AREA: &str = "gpu";
    let mut findings = Vec::new();
    if let Some(path) = &facts.direct3d {
        findings.push(found(AREA, format!("Direct3D 12: {}", path.display())));
    }
    findings.push(match (&facts.vulkan_loader, facts.system) {
        (Some(path), _) => found(AREA, format!("Vulkan loader: {}", path.display())),
        (None, System::Windows) if facts.direct3d.is_some() => {
            absent(AREA, "no Vulkan loader: Direct3D 12 is used".into())
        }
        (None, System::Windows) => missing(
            AREA,
            "neither Direct3D 12 nor a Vulkan loader",
            "install the graphics driver of the GPU's maker",
        ),
        (None, System::Other) => absent(AREA, "no Vulkan loader; macOS has Metal instead".into()),
        (None, System::Linux) => missing(
            AREA,
            "no Vulkan loader (libvulkan.so.1)",
            "install it: apt install libvulkan1, dnf install vulkan-loader",
        ),
    });
    if facts.system != System::Linux {
        return findings;
    }
    findings.push(match facts.vulkan_drivers.as_slice() {
        [] => missing(
            AREA,
            "no Vulkan driver",
            "install one: apt install mesa-vulkan-drivers, dnf install mesa-vulkan-drivers",
        ),
        drivers => found(AREA, format!("Vulkan drivers: {}", paths(drivers))),
    });
    let nodes: Vec<PathBuf> = facts.render_nodes.iter().map(|node| node.path.clone()).collect();
    findings.push(match (nodes.as_slice(), locked(&facts.render_nodes)) {
        ([], _) => absent(AREA, "no GPU: there is no /dev/dri/renderD*".into()),
        (_, Some(node)) => missing(
            AREA,
            format!("{} may not be opened", node.path.display()),
            "join the group: sudo usermod -aG render,video $USER, then log in again",
        ),
        (nodes, None) => found(AREA, format!("GPU nodes: {}", paths(nodes))),
    });
    findings
}

fn npu(facts: &Facts, chip: Chip) -> Vec<Finding> {
    const AREA: &str = "npu";
    if !chip.has_npu() && facts.accel_nodes.is_empty() && !facts.npu_driver {
        return vec![absent(AREA, "this processor has no NPU that runs language models".into())];
    }
    match facts.system {
        System::Linux => npu_on_linux(facts),
        System::Windows => vec![match &facts.xrt {
            Some(path) if facts.npu_driver => found(AREA, format!("driver: {}", path.display())),
            _ => missing(
                AREA,
                "the NPU's driver is not installed",
                "install the NPU driver of the Ryzen AI Software (ryzenai.docs.amd.com), then \
                 look for \"NPU Compute Accelerator Device\" in the device manager",
            ),
        }],
        System::Other => vec![absent(AREA, "no NPU is used on this system".into())],
    }
}

fn npu_on_linux(facts: &Facts) -> Vec<Finding> {
    const AREA: &str = "npu";
    let mut findings = Vec::new();
    if let Some((major, minor)) = facts.kernel {
        let kernel = format!("kernel {major}.{minor}");
        findings.push(match (major, minor) {
            version if version >= KERNEL_WITH_DRIVER => {
                found(AREA, format!("{kernel} has the NPU's driver, amdxdna"))
            }
            version if version >= KERNEL_FOR_DRIVER => {
                found(AREA, format!("{kernel}: amdxdna is a module of its own"))
            }
            _ => missing(AREA, format!("{kernel} is too old for amdxdna"), "use 6.10 or newer"),
        });
    }
    let nodes: Vec<PathBuf> = facts.accel_nodes.iter().map(|node| node.path.clone()).collect();
    findings.push(match (facts.npu_driver, nodes.as_slice(), locked(&facts.accel_nodes)) {
        (_, _, Some(node)) => missing(
            AREA,
            format!("{} may not be opened", node.path.display()),
            "join the group: sudo usermod -aG render $USER, then log in again",
        ),
        (true, [], _) => missing(
            AREA,
            "amdxdna is loaded and has found no NPU (/dev/accel/accel0)",
            "turn the NPU (IPU) on in the firmware's setup; look into dmesg for amdxdna",
        ),
        (true, nodes, _) => found(AREA, format!("amdxdna with {}", paths(nodes))),
        (false, [], _) => missing(
            AREA,
            "amdxdna, the NPU's driver, is not loaded",
            "sudo modprobe amdxdna; kernels before 6.14 need it from github.com/amd/xdna-driver",
        ),
        (false, nodes, _) => absent(AREA, format!("{} of another driver", paths(nodes))),
    });
    findings.push(match &facts.xrt {
        Some(path) => found(AREA, format!("XRT: {}", path.display())),
        None => missing(
            AREA,
            "XRT, the NPU's run time, is not installed",
            "build and install xrt and xrt_plugin-amdxdna from github.com/amd/xdna-driver",
        ),
    });
    if let Some(bytes) = facts.memlock_bytes.filter(|&bytes| bytes < MEMLOCK_BYTES) {
        findings.push(missing(
            AREA,
            format!("only {bytes} bytes may be locked in memory: weights do not fit"),
            "put `* - memlock unlimited` into /etc/security/limits.d/99-npu.conf, log in again",
        ));
    }
    findings
}

fn onnxruntime(facts: &Facts, chip: Chip) -> Vec<Finding> {
    const AREA: &str = "onnxruntime";
    let mut findings = Vec::new();
    findings.push(match (&facts.ort, &facts.ort_asked) {
        (Some(path), _) => found(AREA, format!("ONNX Runtime: {}", path.display())),
        (None, Some(asked)) => missing(
            AREA,
            format!("ORT_DYLIB_PATH is {}, where no ONNX Runtime is", asked.display()),
            "set it to the library, or to the folder that holds it",
        ),
        (None, None) if chip.has_npu() => missing(
            AREA,
            "no ONNX Runtime, through which the NPU is used",
            "install the Ryzen AI Software, and set ORT_DYLIB_PATH to its onnxruntime library",
        ),
        (None, None) => absent(AREA, "no ONNX Runtime: only NPUs need it".into()),
    });
    findings.push(match (facts.providers.as_slice(), &facts.provider_asked) {
        ([], Some(asked)) => missing(
            AREA,
            format!("RYZENAI_EP_PATH is {}, where no provider is", asked.display()),
            "set it to the provider's library, or to the folder that holds it",
        ),
        ([], None) if chip.has_npu() => missing(
            AREA,
            "no execution provider for the NPU",
            "set RYZENAI_EP_PATH to the provider's library of the Ryzen AI Software",
        ),
        ([], None) => absent(AREA, "no execution provider is named by RYZENAI_EP_PATH".into()),
        (libraries, _) => found(AREA, format!("execution provider: {}", paths(libraries))),
    });
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    const STRIX: &str = "AMD Ryzen AI 9 HX 370 w/ Radeon 890M";
    const KRACKAN: &str = "AMD Ryzen AI 7 350 w/ Radeon 860M";

    fn laptop(system: System, processor: &str) -> Facts {
        Facts { system, processor: Some(processor.to_owned()), ..Facts::default() }
    }

    /// What is missing of an area, with what to do.
    fn todo(facts: &Facts, area: &str) -> Vec<String> {
        let findings = advise(facts).into_iter().filter(|finding| finding.area == area);
        let missing = findings.filter(|finding| finding.state == State::Missing);
        missing.map(|finding| format!("{}: {}", finding.what, finding.todo.unwrap())).collect()
    }

    fn node(path: &str, opens: bool) -> Node {
        Node { path: path.into(), opens }
    }

    /// A laptop on which all is well.
    fn complete() -> Facts {
        Facts {
            kernel: Some((6, 14)),
            vulkan_loader: Some("/usr/lib/libvulkan.so.1".into()),
            vulkan_drivers: vec!["/usr/share/vulkan/icd.d/radeon_icd.json".into()],
            render_nodes: vec![node("/dev/dri/renderD128", true)],
            accel_nodes: vec![node("/dev/accel/accel0", true)],
            npu_driver: true,
            xrt: Some("/opt/xilinx/xrt/lib/libxrt_core.so".into()),
            ort: Some("/opt/ort/libonnxruntime.so".into()),
            providers: vec!["/opt/ort/libonnxruntime_providers_ryzenai.so".into()],
            ..laptop(System::Linux, STRIX)
        }
    }

    #[test]
    fn a_complete_laptop_lacks_nothing() {
        let findings = advise(&complete());
        assert!(findings.iter().all(|finding| finding.state == State::Found), "{findings:#?}");
        assert!(findings[0].what.contains("Strix Point; supported for hybrid"), "{findings:?}");
    }

    #[test]
    fn everything_that_is_missing_on_linux_comes_with_what_to_do() {
        let bare = Facts {
            kernel: Some((6, 8)),
            memlock_bytes: Some(8 << 20),
            ..laptop(System::Linux, KRACKAN)
        };
        let npu = todo(&bare, "npu").join("\n");
        for word in ["6.10", "modprobe amdxdna", "XRT", "memlock unlimited"] {
            assert!(npu.contains(word), "{word}: {npu}");
        }
        let gpu = todo(&bare, "gpu").join("\n");
        assert!(gpu.contains("libvulkan1") && gpu.contains("mesa-vulkan-drivers"), "{gpu}");
        assert_eq!(todo(&bare, "onnxruntime").len(), 2);
    }

    #[test]
    fn nodes_that_may_not_be_opened_are_a_matter_of_groups() {
        let facts = Facts {
            render_nodes: vec![node("/dev/dri/renderD128", false)],
            accel_nodes: vec![node("/dev/accel/accel0", false)],
            ..complete()
        };
        assert!(todo(&facts, "gpu")[0].contains("usermod -aG render,video"));
        assert!(todo(&facts, "npu")[0].contains("/dev/accel/accel0 may not be opened"));
        let off = Facts { accel_nodes: vec![], ..complete() };
        assert!(todo(&off, "npu")[0].contains("firmware"));
    }

    #[test]
    fn windows_needs_a_driver_and_no_vulkan() {
        let bare = Facts {
            direct3d: Some("C:\\Windows\\System32\\D3D12.dll".into()),
            ..laptop(System::Windows, STRIX)
        };
        assert_eq!(todo(&bare, "gpu"), Vec::<String>::new());
        assert!(todo(&bare, "npu")[0].contains("NPU driver"));
        let smi = Some("C:\\Windows\\System32\\AMD\\xrt-smi.exe".into());
        let installed = Facts { npu_driver: true, xrt: smi, ..bare };
        assert_eq!(todo(&installed, "npu"), Vec::<String>::new());
    }

    #[test]
    fn machines_without_an_npu_are_not_told_to_install_one() {
        for brand in ["AMD EPYC 9554 64-Core Processor", "AMD Ryzen 7 8845HS w/ Radeon 780M"] {
            let facts = laptop(System::Linux, brand);
            assert_eq!(todo(&facts, "npu"), Vec::<String>::new());
            assert_eq!(todo(&facts, "onnxruntime"), Vec::<String>::new());
        }
        let ryzen = laptop(System::Linux, "AMD Ryzen 7 8845HS w/ Radeon 780M Graphics");
        assert!(advise(&ryzen)[0].what.contains("supported for CPU execution"));
    }

    #[test]
    fn paths_that_lead_nowhere_are_named() {
        let facts = Facts {
            ort: None,
            ort_asked: Some("/nowhere".into()),
            providers: vec![],
            provider_asked: Some("/nowhere/else".into()),
            ..complete()
        };
        let todo = todo(&facts, "onnxruntime");
        assert!(todo[0].contains("ORT_DYLIB_PATH is /nowhere"), "{todo:?}");
        assert!(todo[1].contains("RYZENAI_EP_PATH is /nowhere/else"), "{todo:?}");
    }
}
