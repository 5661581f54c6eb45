//! Devices that fail when a test wants it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tangor_device::oracle::OracleDevice;
use tangor_device::{
    Batch, Descriptor, Device, DeviceError, DeviceKind, KvCache, KvSpec, MemoryKind, Prepare,
    Runnable, Segment,
};

/// What a device does about a batch that contains [`POISON`], where nothing else is said.
#[derive(Clone, Copy, Debug)]
pub enum Fault {
    /// Nothing: it computes what the oracle does.
    Nothing,
    /// It says that it took too long.
    Fails,
    /// It panics.
    Panics,
    /// It is lost.
    GetsLost,
    /// It computes what are not numbers.
    NotNumbers,
    /// Whatever the batch: it takes at least so long.
    Slow(Duration),
    /// Whatever the batch: it has no room for weights.
    Full,
    /// Whatever the batch: it is lost after so many runs, for good.
    Dies {
        /// Runs that go well.
        after: usize,
    },
}

/// The token that brings a fault about.
pub const POISON: u32 = 13;

/// The oracle under another name, with a fault and memory of its own.
#[derive(Debug)]
pub struct Faulty {
    inner: OracleDevice,
    descriptor: Descriptor,
    fault: Fault,
    runs: Arc<AtomicUsize>,
    prepared: Arc<AtomicUsize>,
    most: AtomicUsize,
}

impl Faulty {
    /// A device by this name.
    #[must_use]
    pub fn new(name: &str, kind: DeviceKind, fault: Fault) -> Arc<Self> {
        let inner = OracleDevice::new();
        let descriptor = Descriptor {
            name: name.into(),
            kind,
            memory: MemoryKind::Own,
            ..inner.descriptor().clone()
        };
        let (runs, prepared, most) = Default::default();
        Arc::new(Self { inner, descriptor, fault, runs, prepared, most })
    }

    /// Runs that it was asked for so far, of all that it has prepared.
    #[must_use]
    pub fn runs(&self) -> usize {
        self.runs.load(Ordering::Relaxed)
    }

    /// The most segments that it had prepared at the same time.
    #[must_use]
    pub fn most_prepared(&self) -> usize {
        self.most.load(Ordering::Relaxed)
    }
}

impl Device for Faulty {
    fn descriptor(&self) -> &Descriptor {
        &self.descriptor
    }

    fn kv_cache(&self, spec: &KvSpec) -> Result<Box<dyn KvCache>, DeviceError> {
        self.inner.kv_cache(spec)
    }

    fn prepare(
        &self,
        segment: &Segment<'_>,
        options: Prepare,
        progress: &mut dyn FnMut(f32),
    ) -> Result<Box<dyn Runnable>, DeviceError> {
        if matches!(self.fault, Fault::Full) {
            let device = self.descriptor.name.clone();
            return Err(DeviceError::OutOfMemory { device, what: "weights", bytes: 1 << 30 });
        }
        let inner = self.inner.prepare(segment, options, progress)?;
        let prepared = self.prepared.fetch_add(1, Ordering::Relaxed) + 1;
        self.most.fetch_max(prepared, Ordering::Relaxed);
        Ok(Box::new(FaultyRunnable {
            inner,
            name: self.descriptor.name.clone(),
            fault: self.fault,
            runs: Arc::clone(&self.runs),
            prepared: Arc::clone(&self.prepared),
        }))
    }
}

#[derive(Debug)]
struct FaultyRunnable {
    inner: Box<dyn Runnable>,
    name: String,
    fault: Fault,
    runs: Arc<AtomicUsize>,
    prepared: Arc<AtomicUsize>,
}

impl Drop for FaultyRunnable {
    fn drop(&mut self) {
        self.prepared.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Runnable for FaultyRunnable {
    fn run(
        &mut self,
        batch: &Batch<'_>,
        kv: &mut dyn KvCache,
        inputs: &[&[f32]],
        outputs: &mut [Vec<f32>],
    ) -> Result<(), DeviceError> {
        let runs = self.runs.fetch_add(1, Ordering::Relaxed);
        let lost = || DeviceError::Lost { device: self.name.clone(), why: "unplugged".into() };
        let poisoned = batch.tokens.contains(&POISON);
        match self.fault {
            Fault::Fails if poisoned => {
                return Err(DeviceError::Timeout { device: self.name.clone() });
            }
            Fault::GetsLost if poisoned => return Err(lost()),
            Fault::Dies { after } if runs >= after => return Err(lost()),
            Fault::Panics if poisoned => panic!("poisoned"),
            Fault::Slow(time) => std::thread::sleep(time),
            _ => {}
        }
        self.inner.run(batch, kv, inputs, outputs)?;
        if poisoned && matches!(self.fault, Fault::NotNumbers) {
            outputs.iter_mut().for_each(|output| output.fill(f32::NAN));
        }
        Ok(())
    }

    fn memory_bytes(&self) -> u64 {
        self.inner.memory_bytes()
    }
}
