//! Compiled kernels from one start to the next, where a driver hands them over (Vulkan's do).
//!
//! Most drivers of desktops keep what they compiled by themselves. In a container, without a home,
//! or with another kind of driver a first prompt would wait for every kernel again.

use crate::adapter::AdapterFacts;
use crate::context::lock;
use std::hash::{DefaultHasher, Hasher};
use std::sync::{Arc, Mutex};
use tangor_device::{PackedCache, PackedKey};

/// Raised whenever entries of before are of no use.
const VERSION: u32 = 1;

/// What the driver has compiled for an adapter, and where it is kept.
#[derive(Debug)]
pub(crate) struct Kernels {
    /// What the driver finds compiled kernels in, and adds them to.
    pub(crate) compiled: wgpu::PipelineCache,
    cache: Arc<dyn PackedCache>,
    key: PackedKey,
    kept: Mutex<Kept>,
}

/// What there was when it was looked at last.
#[derive(Debug, Default)]
struct Kept {
    pipelines: usize,
    /// A hash of the bytes.
    content: u64,
}

impl Kernels {
    /// With those of an earlier start, if there are any; `None` if the driver hands nothing over.
    pub(crate) fn open(
        cache: &Arc<dyn PackedCache>,
        device: &wgpu::Device,
        facts: &AdapterFacts,
    ) -> Option<Self> {
        let adapter = facts.kernels.as_ref()?;
        let form = format!("{VERSION} {adapter} {}", facts.driver);
        let key = PackedKey { model: "gpu kernels".into(), form };
        // Copied, since its file may become shorter while the driver reads it.
        let found = cache.find(&key).map(|entry| (entry.data.to_vec(), entry.guard));
        let data = found.filter(|(_, guard)| guard.check().is_ok()).map(|(data, _)| data);
        let compiled = compiled(device, data.as_deref())?;
        let content = data.map_or(0, |data| content(&data));
        let kept = Mutex::new(Kept { pipelines: 0, content });
        Some(Self { compiled, cache: Arc::clone(cache), key, kept })
    }

    /// There are so many pipelines now: keeps what was compiled for them, if the driver did not
    /// have it before.
    pub(crate) fn keep(&self, pipelines: usize) {
        let mut kept = lock(&self.kept);
        if std::mem::replace(&mut kept.pipelines, pipelines) == pipelines {
            return;
        }
        let Some(data) = self.compiled.get_data() else { return };
        let content = content(&data);
        if std::mem::replace(&mut kept.content, content) == content {
            return;
        }
        self.cache.discard(&self.key);
        if let Some(mut writer) = self.cache.create(&self.key, data.len() as u64)
            && writer.write(&data)
        {
            writer.finish(String::new());
        }
    }
}

fn content(data: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write(data);
    hasher.finish()
}

/// A cache of the driver's, with what it once held.
#[allow(unsafe_code)]
fn compiled(device: &wgpu::Device, data: Option<&[u8]>) -> Option<wgpu::PipelineCache> {
    let scope = device.push_error_scope(wgpu::ErrorFilter::Validation);
    let descriptor = wgpu::PipelineCacheDescriptor { label: None, data, fallback: true };
    // SAFETY: the bytes are what `get_data` returned: a `PackedCache` promises that, and has
    // checksums to keep the promise. What other adapters or drivers compiled has another key.
    let cache = unsafe { device.create_pipeline_cache(&descriptor) };
    pollster::block_on(scope.pop()).is_none().then_some(cache)
}
