//! Plans for machines that are not here.
//!
//! A [`Machine`] is read from a file. The vendor's policy on it must come out as the vendor has
//! published ([`residuals`]); what else follows, follows from the same constants, and is a
//! simulation: [`sensitivity`] says how much of it hangs on which of them.

mod machine;
mod published;
mod table;

pub use machine::{Assumed, Grade, Machine, ProfileError, Source};
pub use published::{
    PUBLISHED, Published, Residual, SimulateError, options as seed_options, residuals,
};
pub use table::{Figures, Row, SHORT, markdown, row, seed_models};

use crate::{
    DeviceChoice, DeviceProfile, MemoryKind, PackedWeights, Plan, PlanError, PlanOptions, Policy,
    plan,
};
use serde::Serialize;
use tangor_model::{Graph, ImportError, Mixture, shapes};

/// Rows of a prompt that go through a device at once: what AMD's flow calls its chunk size.
pub const PREFILL_ROWS: usize = 2048;

/// From the vendor's rule to ours, one step at a time: each keeps what the ones before it brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// More than one row on the NPU, one row on the GPU.
    Vendor,
    /// Every stage where the cost model says; one device at a time.
    Routing,
    /// Two devices read a long prompt together. This is `--policy ours`.
    Cooperation,
    /// NPU and GPU read one packed form of the weights. An assumption: our devices pack their own.
    OneCopy,
    /// The GPU replays recorded command lists. An assumption.
    Replay,
    /// A draft model proposes tokens. An assumption.
    Speculation,
}

impl Step {
    /// All of them, in order.
    pub const ALL: [Self; 6] = [
        Self::Vendor,
        Self::Routing,
        Self::Cooperation,
        Self::OneCopy,
        Self::Replay,
        Self::Speculation,
    ];

    /// What a table calls it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Vendor => "vendor's rule",
            Self::Routing => "+ routing",
            Self::Cooperation => "+ cooperation",
            Self::OneCopy => "+ one copy",
            Self::Replay => "+ replay",
            Self::Speculation => "+ speculation",
        }
    }
}

/// The graph of a published shape as the seed's models are stored: 4 bits in groups of 128 with
/// zero points.
///
/// # Errors
/// [`ImportError::UnknownShape`].
pub fn seed_graph(shape: &str) -> Result<Graph, ImportError> {
    shapes::random_mixture(&shapes::config(shape)?, Mixture::Int4 { group: 128 }, 1)
}

/// The devices of a machine after a step.
#[must_use]
pub fn devices(machine: &Machine, step: Step) -> Vec<DeviceProfile> {
    let mut devices = machine.devices.clone();
    for device in &mut devices {
        let kind = device.kind;
        if step >= Step::OneCopy && kind != crate::Kind::Cpu && device.memory == MemoryKind::Host {
            device.layout = "shared".to_owned();
            device.packed = PackedWeights::Times(1.0);
        }
        if let Some(seconds) = machine.assumed.gpu_node_row_s
            && step >= Step::Replay
            && kind == crate::Kind::Gpu
        {
            device.rates.node_row_s = seconds;
        }
    }
    devices
}

/// The plan of a model on a machine after a step. `options` say what is asked for; the policy
/// follows from the step.
///
/// # Errors
/// As [`plan`].
pub fn simulate(
    graph: &Graph,
    machine: &Machine,
    step: Step,
    options: &PlanOptions,
) -> Result<Plan, PlanError> {
    with_devices(graph, machine, &devices(machine, step), step, options)
}

fn with_devices(
    graph: &Graph,
    machine: &Machine,
    devices: &[DeviceProfile],
    step: Step,
    options: &PlanOptions,
) -> Result<Plan, PlanError> {
    let policy = if step == Step::Vendor { Policy::Vendor } else { Policy::Ours };
    let cooperative = step >= Step::Cooperation && options.cooperative;
    let options = PlanOptions { policy, cooperative, ..options.clone() };
    let mut plan = plan(graph, devices, &options)?;
    if let (Some([factor, low, high]), Step::Speculation) = (machine.assumed.speculation, step)
        && PackedWeights::Times(1.0).all_bytes(graph) as f64
            >= machine.assumed.speculation_least_weights
        && options.device != DeviceChoice::Npu
    {
        plan.predicted.decode_tps *= factor;
        plan.reasons
            .push(format!("a draft model is taken to give {low} to {high} times the tokens"));
    }
    Ok(plan)
}

/// What a prediction becomes when a constant is off.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Case {
    /// As `bandwidth -10 %`.
    pub what: &'static str,
    /// Seconds to the first token.
    pub ttft_s: f64,
    /// Tokens per second behind it.
    pub decode_tps: f64,
}

/// How much a prediction hangs on the constants.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Sensitivity {
    /// Least and greatest time to the first token.
    pub ttft_s: [f64; 2],
    /// Least and greatest tokens per second.
    pub decode_tps: [f64; 2],
    /// One constant at a time, then all of them at their worst and at their best.
    pub cases: Vec<Case>,
}

/// Bandwidth, arithmetic, synchronisation: what each is multiplied with.
const CASES: [(&str, [f64; 3]); 8] = [
    ("bandwidth -10 %", [0.9, 1.0, 1.0]),
    ("bandwidth +10 %", [1.1, 1.0, 1.0]),
    ("arithmetic -20 %", [1.0, 0.8, 1.0]),
    ("arithmetic +20 %", [1.0, 1.2, 1.0]),
    ("synchronisation x 2", [1.0, 1.0, 2.0]),
    ("synchronisation x 0.5", [1.0, 1.0, 0.5]),
    ("all at their worst", [0.9, 0.8, 2.0]),
    ("all at their best", [1.1, 1.2, 0.5]),
];

/// Plans again with every constant off by what it may well be off.
///
/// # Errors
/// As [`plan`].
pub fn sensitivity(
    graph: &Graph,
    machine: &Machine,
    step: Step,
    options: &PlanOptions,
) -> Result<Sensitivity, PlanError> {
    let mut cases = Vec::with_capacity(CASES.len());
    for (what, factors) in CASES {
        let mut devices = devices(machine, step);
        devices.iter_mut().for_each(|device| scale(device, factors));
        let predicted = with_devices(graph, machine, &devices, step, options)?.predicted;
        let (ttft_s, decode_tps) = (predicted.ttft_s, predicted.decode_tps);
        cases.push(Case { what, ttft_s, decode_tps });
    }
    let range = |of: fn(&Case) -> f64| {
        let values = cases.iter().map(of);
        values.fold([f64::INFINITY, 0.0], |[low, high], v| [v.min(low), v.max(high)])
    };
    Ok(Sensitivity { ttft_s: range(|c| c.ttft_s), decode_tps: range(|c| c.decode_tps), cases })
}

fn scale(device: &mut DeviceProfile, [read, arithmetic, sync]: [f64; 3]) {
    let rates = &mut device.rates;
    rates.read_bytes_per_s *= read;
    rates.shared_read_bytes_per_s = rates.shared_read_bytes_per_s.map(|bytes| bytes * read);
    for rate in [
        &mut rates.int8_ops_per_s,
        &mut rates.attention_ops_per_s,
        &mut rates.attention_row_ops_per_s,
    ] {
        *rate *= arithmetic;
    }
    rates.sync_s *= sync;
    rates.run_s *= sync;
}
