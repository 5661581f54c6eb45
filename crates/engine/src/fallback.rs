//! Going on without a device that was lost: another plan for the devices that are left.

use crate::executor::Executor;
use crate::model::{LoadOptions, Model, OnLost};
use crate::step::Limits;
use crate::{EngineError, Memory};
use std::sync::Arc;
use tangor_device::tensor::MapGuard;
use tangor_device::{Device, DeviceError};
use tangor_plan::Plan;
use tangor_plan::model::Graph;

/// A model that is ready to run: what a plan came to.
#[derive(Debug)]
pub(crate) struct Prepared {
    pub(crate) plan: Plan,
    pub(crate) executor: Executor,
    pub(crate) limits: Limits,
}

impl Prepared {
    pub(crate) fn memory(&self) -> Memory {
        self.executor.memory()
    }
}

/// What it takes to prepare a model anew. The graph's weights lie in mapped files as a rule, so
/// that keeping it takes no memory.
#[derive(Debug)]
pub(crate) struct Fallback {
    graph: Graph,
    devices: Vec<Arc<dyn Device>>,
    /// Indices of those that are gone.
    lost: Vec<usize>,
    options: LoadOptions,
    guard: MapGuard,
}

impl Fallback {
    /// `None` where nobody wants it, or there is no other device: then nothing need be kept.
    pub(crate) fn if_wanted(
        graph: Graph,
        devices: &[Arc<dyn Device>],
        options: &LoadOptions,
        guard: MapGuard,
    ) -> Option<Self> {
        let wanted = options.on_lost == OnLost::Continue && devices.len() > 1;
        let (devices, options) = (devices.to_vec(), options.clone());
        wanted.then(|| Self { graph, devices, lost: Vec::new(), options, guard })
    }

    /// The device that an error says is lost; `None` if the error is the batch's own.
    pub(crate) fn lost_by<'a>(&self, error: &'a DeviceError) -> Option<&'a str> {
        match error {
            DeviceError::Lost { device, .. } | DeviceError::OutOfMemory { device, .. } => {
                Some(device)
            }
            DeviceError::Timeout { device } if self.is_lost(device) => Some(device),
            _ => None,
        }
    }

    /// Whether a device is there by this name and cannot be used any more.
    fn is_lost(&self, name: &str) -> bool {
        use tangor_device::Health::Lost;
        let mut devices = self.devices.iter().filter(|device| device.descriptor().name == name);
        devices.any(|device| matches!(device.health(), Lost(_)))
    }

    /// Prepares the model for the devices that are left without the one called `lost`. What was
    /// asked for of devices holds as long as it can (see [`tangor_plan::replan`]).
    ///
    /// # Errors
    /// [`EngineError::Plan`] if nothing that is left can run the model, whatever a device says, and
    /// [`DeviceError::WeightsChanged`] if the files are not what they were.
    pub(crate) fn without(&mut self, lost: &str) -> Result<Prepared, EngineError> {
        let names = self.devices.iter().map(|device| &device.descriptor().name);
        self.lost.extend(names.enumerate().filter(|(_, name)| *name == lost).map(|(i, _)| i));
        let devices = (&self.devices[..], &self.lost[..]);
        let prepared = Model::prepare(&self.graph, devices, &self.options, &mut |_| {});
        self.guard.check().map_err(|_| DeviceError::WeightsChanged)?;
        prepared
    }
}
