//! A loaded model: what every request, session and face holds on to.

use crate::driver::Driver;
use crate::executor::Executor;
use crate::generation::{Generation, Sink};
use crate::session::{Session, SessionOptions};
use crate::step::Limits;
use crate::{EngineError, Event, Request};
use std::sync::Arc;
use tangor_device::{Activations, Descriptor, Device, KvType};
use tangor_plan::model::Graph;
use tangor_plan::model::formats::Checkpoint;
use tangor_plan::model::ir::Hyper;
use tangor_plan::{DeviceChoice, Plan, Rates};
use tangor_text::{Template, Tokenizer};

/// How a model is to be loaded.
#[derive(Clone, Debug)]
pub struct LoadOptions {
    /// How activations enter linear operations.
    pub activations: Activations,
    /// Element type of the KV cache; `None`: `F32` in exact mode, else `F16`.
    pub kv: Option<KvType>,
    /// Longest sequence, prompt and answer; `None`: the model's own, or as much of it as fits.
    pub context: Option<usize>,
    /// Sequences that run at once; more wait.
    pub max_sequences: usize,
    /// Sequences that may be alive at once: running, waiting, and idle sessions.
    pub max_alive: usize,
    /// Most rows of prompts per step: more is faster, fewer interrupt running answers for shorter.
    pub prefill_chunk: usize,
    /// Bytes that the KV cache may take; `None`: what the plan finds reasonable.
    pub kv_bytes: Option<u64>,
    /// Bytes that weights and KV may take together; `None`: what the device has.
    pub memory_limit: Option<u64>,
    /// Whether requests share the KV of equal beginnings. Never changes a result.
    pub prefix_cache: bool,
    /// Which devices may take part.
    pub device: DeviceChoice,
    /// Restricts prefill further: a device's name, or a kind.
    pub prefill_device: Option<String>,
    /// Restricts decode further: a device's name, or a kind.
    pub decode_device: Option<String>,
    /// What was measured of devices, by name; others are assumed to be typical of their kind.
    pub rates: Vec<(String, Rates)>,
}

impl Default for LoadOptions {
    fn default() -> Self {
        Self {
            activations: Activations::Int8,
            kv: None,
            context: None,
            max_sequences: 16,
            max_alive: 256,
            prefill_chunk: 512,
            kv_bytes: None,
            memory_limit: None,
            prefix_cache: true,
            device: DeviceChoice::Auto,
            prefill_device: None,
            decode_device: None,
            rates: Vec::new(),
        }
    }
}

/// What text is made of, where a model has it.
#[derive(Clone, Debug, Default)]
pub struct Text {
    /// Turns text into tokens and back.
    pub tokenizer: Option<Arc<Tokenizer>>,
    /// Turns a conversation into text.
    pub template: Option<Arc<Template>>,
}

/// Bytes that a model takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// Packed weights and scratch buffers of all devices.
    pub weights: u64,
    /// KV pages of all devices.
    pub kv: u64,
}

/// A model that can generate.
///
/// Every model has a thread of its own that runs it; requests and sessions from any thread are
/// batched together there. Dropping the last handle, generation and session ends the thread.
#[derive(Debug)]
pub struct Model {
    graph: Graph,
    plan: Plan,
    text: Text,
    devices: Vec<Descriptor>,
    memory: Memory,
    limits: Limits,
    driver: Arc<Driver>,
}
// impl Model
// load(checkpoint: &Checkpoint, devices: &[Arc<dyn Device>], options: &LoadOptions,
//      progress: &mut dyn FnMut(Progress)) -> Result<Arc<Model>, EngineError>
// from_graph(graph: Graph, text: Text, devices, options, progress) -> Result<Arc<Model>, EngineError>
// generate(self: &Arc<Self>, request: Request) -> Result<Generation, EngineError>
// generate_with(request, sink: impl FnMut(Result<Event, EngineError>) + Send + 'static)
//      -> Result<Cancel, EngineError>       callback on the model's thread, for async servers
// session(&self, SessionOptions) -> Result<Session, EngineError>
// graph() -> &Graph, hyper() -> &Hyper, plan() -> &Plan, tokenizer() -> Option<&Arc<Tokenizer>>,
// template() -> Option<&Arc<Template>>, context() -> usize, memory() -> Memory,
// devices() -> &[Descriptor], prefill_device()/decode_device() -> &Descriptor
