//! Graphics adapters: which there are, and what they can do.

use crate::error::GpuError;
use std::fmt;
use tangor_device::MemoryKind;
use wgpu::{Backends, DeviceType, Features};

/// Kinds of adapters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AdapterKind {
    /// Shares the host's memory.
    Integrated,
    /// Has memory of its own.
    Discrete,
    /// Belongs to another machine.
    Virtual,
    /// The central processor, driven as if it were a graphics processor: for tests.
    Software,
    /// Nothing is known.
    Other,
}

impl AdapterKind {
    /// Whose memory its buffers take.
    pub(crate) fn memory(self) -> MemoryKind {
        match self {
            Self::Integrated | Self::Software => MemoryKind::HostBuffers,
            Self::Discrete | Self::Virtual | Self::Other => MemoryKind::Own,
        }
    }
}

impl fmt::Display for AdapterKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Integrated => "integrated",
            Self::Discrete => "discrete",
            Self::Virtual => "virtual",
            Self::Software => "software",
            Self::Other => "other",
        })
    }
}

/// An adapter as its driver describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdapterFacts {
    /// As `AMD Radeon 890M Graphics (RADV GFX1150)`.
    pub name: String,
    /// Integrated, discrete, software.
    pub kind: AdapterKind,
    /// The driver's name and version.
    pub driver: String,
    /// `vulkan`, `dx12`, `metal`.
    pub backend: String,
    /// Bytes of the largest buffer.
    pub max_buffer_bytes: u64,
    /// Bytes of a buffer that a kernel can see.
    pub max_binding_bytes: u64,
    /// Bytes of memory that the lanes of a workgroup can share.
    pub max_shared_bytes: u32,
    /// Fewest and most lanes of a subgroup.
    pub subgroup_lanes: (u32, u32),
    /// Whether lanes of a subgroup can exchange values.
    pub subgroups: bool,
    /// Whether kernels can compute with IEEE halves.
    pub f16: bool,
    /// Whether there is a dot product of four 8-bit integers.
    pub integer_dot: bool,
    /// Whether there are products of small matrices.
    pub cooperative_matrix: bool,
    /// Whether the host can read and write buffers that kernels use.
    pub mappable: bool,
    /// Whether kernels can be timed.
    pub timestamps: bool,
    /// What names compiled kernels, if the driver hands them over.
    pub kernels: Option<String>,
}

impl AdapterFacts {
    fn of(adapter: &wgpu::Adapter, instance: &wgpu::Instance) -> Self {
        let (info, limits) = (adapter.get_info(), adapter.limits());
        let has = |feature| adapter.features().contains(feature);
        let dot = wgpu::WgslLanguageFeatures::Packed4x8IntegerDotProduct;
        Self {
            kind: match info.device_type {
                DeviceType::IntegratedGpu => AdapterKind::Integrated,
                DeviceType::DiscreteGpu => AdapterKind::Discrete,
                DeviceType::VirtualGpu => AdapterKind::Virtual,
                DeviceType::Cpu => AdapterKind::Software,
                DeviceType::Other => AdapterKind::Other,
            },
            driver: format!("{} {}", info.driver, info.driver_info).trim().to_owned(),
            backend: info.backend.to_string(),
            kernels: wgpu::util::pipeline_cache_key(&info)
                .filter(|_| has(Features::PIPELINE_CACHE)),
            name: info.name,
            max_buffer_bytes: limits.max_buffer_size,
            max_binding_bytes: limits.max_storage_buffer_binding_size,
            max_shared_bytes: limits.max_compute_workgroup_storage_size,
            subgroup_lanes: (info.subgroup_min_size, info.subgroup_max_size),
            subgroups: has(Features::SUBGROUP),
            f16: has(Features::SHADER_F16),
            integer_dot: instance.wgsl_language_features().contains(dot),
            cooperative_matrix: has(Features::EXPERIMENTAL_COOPERATIVE_MATRIX),
            mappable: has(Features::MAPPABLE_PRIMARY_BUFFERS),
            timestamps: has(Features::TIMESTAMP_QUERY),
        }
    }
}

impl fmt::Display for AdapterFacts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}", self.name, self.backend)?;
        if !self.driver.is_empty() {
            write!(f, ", {}", self.driver)?;
        }
        write!(f, ", {})", self.kind)?;
        if self.kind == AdapterKind::Software {
            write!(f, ": software that runs on the central processor")?;
        }
        Ok(())
    }
}

/// Which adapter to open.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum AdapterChoice {
    /// The first discrete one, else an integrated one, else any: software comes last.
    #[default]
    Best,
    /// By its place in [`adapters`].
    Index(usize),
    /// By part of its name, in letters of any case.
    Name(String),
}

/// Adapters by their place, with what they can do.
fn all() -> Vec<(wgpu::Adapter, AdapterFacts)> {
    let mut descriptor = wgpu::InstanceDescriptor::new_without_display_handle();
    descriptor.backends = Backends::VULKAN | Backends::DX12 | Backends::METAL;
    descriptor.flags = wgpu::InstanceFlags::empty();
    let instance = wgpu::Instance::new(descriptor);
    let found = pollster::block_on(instance.enumerate_adapters(Backends::all()));
    found
        .into_iter()
        .map(|adapter| {
            let facts = AdapterFacts::of(&adapter, &instance);
            (adapter, facts)
        })
        .collect()
}

/// Every adapter that a driver offers; none if there is no driver.
#[must_use]
pub fn adapters() -> Vec<AdapterFacts> {
    all().into_iter().map(|(_, facts)| facts).collect()
}

/// The adapter that was asked for.
pub(crate) fn choose(choice: &AdapterChoice) -> Result<(wgpu::Adapter, AdapterFacts), GpuError> {
    let mut all = all();
    if all.is_empty() {
        return Err(GpuError::NoAdapter);
    }
    let names: Vec<&str> = all.iter().map(|(_, facts)| facts.name.as_str()).collect();
    let available = names.join(", ");
    let rank = |kind: AdapterKind| match kind {
        AdapterKind::Discrete => 0,
        AdapterKind::Integrated => 1,
        AdapterKind::Virtual => 2,
        AdapterKind::Other => 3,
        AdapterKind::Software => 4,
    };
    let (index, wanted) = match choice {
        AdapterChoice::Best => {
            ((0..all.len()).min_by_key(|&i| rank(all[i].1.kind)), "best".to_owned())
        }
        AdapterChoice::Index(index) => (Some(*index).filter(|&i| i < all.len()), index.to_string()),
        AdapterChoice::Name(name) => {
            let part = name.to_lowercase();
            let found = all.iter().position(|(_, f)| f.name.to_lowercase().contains(&part));
            (found, name.clone())
        }
    };
    match index {
        Some(index) => Ok(all.swap_remove(index)),
        None => Err(GpuError::Unknown { wanted, available }),
    }
}
