//! A loaded model: what every request, session and face holds on to.

use crate::checkpoint_text::{Decoder, Text};
use crate::driver::Driver;
use crate::executor::Executor;
use crate::fallback::{Fallback, Prepared};
use crate::generation::{Cancel, Generation, Sink};
use crate::pool::Pool;
use crate::profiles::{plan_options, profiles};
use crate::propose::{DraftModel, Ngram};
use crate::sample::MAX_LOGPROBS;
use crate::sequence::Job;
use crate::session::{Session, SessionOptions};
use crate::speculate::{Speculation, Speculator};
use crate::step::{Core, Limits};
use crate::stop::StopMatcher;
use crate::{EngineError, Event, Request, Usage};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::{Arc, mpsc};
use tangor_device::tensor::MapGuard;
use tangor_device::{Activations, Descriptor, Device, DeviceError, KvType, PackedCache, Prepare};
use tangor_plan::model::formats::Checkpoint;
use tangor_plan::model::ir::Hyper;
use tangor_plan::model::{Graph, import};
use tangor_plan::{DeviceChoice, Plan, Rates, replan};

/// What a checkpoint is loaded into, and whether its files are still what they were.
type Parts = (Graph, Text, MapGuard);

/// Most stop strings of a request.
const MAX_STOPS: usize = 64;
/// Longest stop string, in bytes.
const MAX_STOP_BYTES: usize = 4096;

/// Whether tokens are proposed that the model checks several of in one step. Answers are the same
/// to the bit; only their speed differs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Speculate {
    /// What followed the same tokens before is proposed, as far as that is measured to pay.
    #[default]
    Auto,
    /// Nothing is proposed.
    Off,
    /// What followed the same tokens before is proposed always, whether it pays or not.
    Ngram,
}

/// What happens to requests when a device is lost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnLost {
    /// The model is planned anew for the devices that are left, and every request goes on there.
    #[default]
    Continue,
    /// Every request fails with [`EngineError::Lost`].
    Fail,
}

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
    /// Bytes that other models take of that already, by the names of devices.
    pub taken: Vec<(String, u64)>,
    /// Whether requests share the KV of equal beginnings. Never changes a result where one device
    /// runs both stages; where another one decodes, a page that it wrote, found in place of one of
    /// a prompt, may differ by how it rounds.
    pub prefix_cache: bool,
    /// Which devices may take part.
    pub device: DeviceChoice,
    /// Restricts prefill further: a device's name, or a kind.
    pub prefill_device: Option<String>,
    /// Restricts decode further: a device's name, or a kind.
    pub decode_device: Option<String>,
    /// What was measured of devices, by name; others are assumed to be typical of their kind.
    pub rates: Vec<(String, Rates)>,
    /// Whether tokens are proposed. Never changes a result.
    pub speculate: Speculate,
    /// Keeps packed weights for the next load. Never changes a result.
    pub packed: Option<Arc<dyn PackedCache>>,
    /// What happens to requests when a device is lost.
    pub on_lost: OnLost,
}

impl Default for LoadOptions {
    fn default() -> Self {
        Self {
            activations: Activations::Int8,
            kv: None,
            context: None,
            max_sequences: 16,
            max_alive: 256,
            prefill_chunk: 256,
            kv_bytes: None,
            memory_limit: None,
            taken: Vec::new(),
            prefix_cache: true,
            device: DeviceChoice::Auto,
            prefill_device: None,
            decode_device: None,
            rates: Vec::new(),
            speculate: Speculate::Auto,
            packed: None,
            on_lost: OnLost::Continue,
        }
    }
}

impl LoadOptions {
    /// The same for a model beside another one that runs as `plan` says.
    fn beside(&self, plan: &Plan) -> Self {
        let mut options = self.clone();
        let taken = plan.devices.iter().enumerate();
        let taken = taken.map(|(index, device)| (device.name.clone(), plan.taken_bytes(index)));
        options.taken.extend(taken);
        options
    }
}

/// How far loading is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Progress<'a> {
    /// The device whose weights are being packed.
    pub device: &'a str,
    /// Share of the whole that is done, 0 to 1.
    pub share: f32,
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
    hyper: Hyper,
    text: Text,
    devices: Vec<Descriptor>,
    eos: Arc<[u32]>,
    driver: Arc<Driver>,
}

impl Model {
    /// Loads a checkpoint: imports its graph and its text files, plans, packs weights.
    ///
    /// # Errors
    /// [`EngineError::Import`], [`EngineError::Text`], and as [`Model::from_graph`].
    pub fn load(
        checkpoint: &Checkpoint,
        devices: &[Arc<dyn Device>],
        options: &LoadOptions,
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<Arc<Self>, EngineError> {
        let of_import = |error: &dyn std::fmt::Display| EngineError::Import(error.to_string());
        let text = Text::of(checkpoint)?;
        let graph = import(checkpoint).map_err(|error| of_import(&error))?;
        let speculator = Self::speculator(options);
        let guard = checkpoint.guard().clone();
        let parts = (graph, text, guard);
        let model = Self::with_speculator(parts, devices, options, speculator, progress)?;
        checkpoint.guard().release();
        checkpoint.check_unchanged().map_err(|error| of_import(&error))?;
        Ok(model)
    }

    /// Loads a checkpoint and a second, smaller one that proposes tokens to it, in the place of
    /// what [`LoadOptions::speculate`] says: as many as are measured to pay.
    ///
    /// # Errors
    /// As [`Model::load`], of either; [`EngineError::DraftVocabulary`] if their token ids differ.
    pub fn load_with_draft(
        checkpoint: &Checkpoint,
        draft: &Checkpoint,
        devices: &[Arc<dyn Device>],
        options: &LoadOptions,
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<Arc<Self>, EngineError> {
        let of_import = |error: &dyn std::fmt::Display| EngineError::Import(error.to_string());
        let parts = |checkpoint: &Checkpoint| -> Result<Parts, EngineError> {
            let text = Text::of(checkpoint)?;
            let graph = import(checkpoint).map_err(|error| of_import(&error))?;
            Ok((graph, text, checkpoint.guard().clone()))
        };
        let (small, model) = (parts(draft)?, parts(checkpoint)?);
        let model = Self::with_draft(model, small, devices, options, progress)?;
        for checkpoint in [checkpoint, draft] {
            checkpoint.guard().release();
            checkpoint.check_unchanged().map_err(|error| of_import(&error))?;
        }
        Ok(model)
    }

    /// As [`Model::load_with_draft`], from a graph each.
    ///
    /// # Errors
    /// As there.
    pub fn from_graphs(
        (graph, text): (Graph, Text),
        (draft, draft_text): (Graph, Text),
        devices: &[Arc<dyn Device>],
        options: &LoadOptions,
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<Arc<Self>, EngineError> {
        let unguarded = |graph, text| (graph, text, MapGuard::default());
        let (model, draft) = (unguarded(graph, text), unguarded(draft, draft_text));
        Self::with_draft(model, draft, devices, options, progress)
    }

    fn with_draft(
        (graph, text, guard): Parts,
        (draft, draft_text, draft_guard): Parts,
        devices: &[Arc<dyn Device>],
        options: &LoadOptions,
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<Arc<Self>, EngineError> {
        check_same_ids((&graph, &text), (&draft, &draft_text))?;
        // How much of the whole each is: the loading of weights is most of it.
        let size = |graph: &Graph| -> f32 {
            graph.weights.iter().map(|named| named.weight.stored_bytes() as f32).sum()
        };
        let share = size(&graph) / (size(&draft) + size(&graph)).max(1.0);
        let mut first =
            |step: Progress<'_>| progress(Progress { share: step.share * share, ..step });
        let prepared = Self::prepare(&graph, (devices, &[]), options, &mut first)?;
        // What the model leaves is the draft's.
        let rest = options.beside(&prepared.plan);
        let mut then = |step: Progress<'_>| {
            progress(Progress { share: share + step.share * (1.0 - share), ..step });
        };
        let small = Self::prepare(&draft, (devices, &[]), &rest, &mut then)?;
        let options = &options.beside(&small.plan);
        let fallback = Fallback::if_wanted(draft, devices, &rest, draft_guard);
        let proposer = DraftModel::new(Core::new(small.limits), small.executor, fallback);
        let speculator = Some(Speculator::new(Box::new(proposer), false));
        Self::start((graph, text, guard), prepared, devices, options, speculator)
    }

    /// Loads a graph. Its weights are dropped when they are packed, unless there are other devices
    /// to go on with when one is lost.
    ///
    /// # Errors
    /// [`EngineError::Plan`] if no plan fits, [`EngineError::Device`] if a device refuses,
    /// [`EngineError::Thread`].
    pub fn from_graph(
        graph: Graph,
        text: Text,
        devices: &[Arc<dyn Device>],
        options: &LoadOptions,
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<Arc<Self>, EngineError> {
        let speculator = Self::speculator(options);
        let parts = (graph, text, MapGuard::default());
        Self::with_speculator(parts, devices, options, speculator, progress)
    }

    fn speculator(options: &LoadOptions) -> Option<Speculator> {
        let ngram = |always| Some(Speculator::new(Box::new(Ngram), always));
        match options.speculate {
            Speculate::Off => None,
            Speculate::Auto => ngram(false),
            Speculate::Ngram => ngram(true),
        }
    }

    /// Loads a graph, to run it with proposals of any kind.
    pub(crate) fn with_speculator(
        (graph, text, guard): Parts,
        devices: &[Arc<dyn Device>],
        options: &LoadOptions,
        speculator: Option<Speculator>,
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<Arc<Self>, EngineError> {
        let prepared = Self::prepare(&graph, (devices, &[]), options, progress)?;
        Self::start((graph, text, guard), prepared, devices, options, speculator)
    }

    /// Starts the thread of a model that is prepared.
    fn start(
        (graph, text, guard): Parts,
        prepared: Prepared,
        devices: &[Arc<dyn Device>],
        options: &LoadOptions,
        speculator: Option<Speculator>,
    ) -> Result<Arc<Self>, EngineError> {
        let hyper = graph.hyper.clone();
        let fallback = Fallback::if_wanted(graph, devices, options, guard);
        let driver = Driver::start(prepared, speculator, fallback, options.max_alive)?;
        Ok(Arc::new(Self {
            hyper,
            devices: devices.iter().map(|device| device.descriptor().clone()).collect(),
            eos: text.end_tokens().into(),
            text,
            driver,
        }))
    }

    /// Plans a graph and packs its weights; devices `without`, by index, take no part. Where nobody
    /// asked for certain devices, one that turns out to be full, or to refuse, takes none either.
    pub(crate) fn prepare(
        graph: &Graph,
        (devices, without): (&[Arc<dyn Device>], &[usize]),
        options: &LoadOptions,
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<Prepared, EngineError> {
        let result = Self::prepare_once(graph, (devices, without), options, progress);
        let Err(EngineError::Device(error)) = &result else { return result };
        let mut fewer = without.to_vec();
        let failed = dispensable(error, devices, options);
        fewer.extend(failed.filter(|device| !without.contains(device)));
        if fewer.len() == without.len() {
            return result;
        }
        match Self::prepare(graph, (devices, &fewer), options, progress) {
            Ok(mut prepared) => {
                prepared.plan.reasons.push(format!("planned anew: {error}"));
                Ok(prepared)
            }
            // What went wrong first is what there is to say.
            Err(EngineError::Plan(_)) => result,
            Err(other) => Err(other),
        }
    }

    fn prepare_once(
        graph: &Graph,
        (devices, without): (&[Arc<dyn Device>], &[usize]),
        options: &LoadOptions,
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<Prepared, EngineError> {
        let kv = options.kv.unwrap_or(match options.activations {
            Activations::F32 => KvType::F32,
            Activations::Int8 => KvType::Bf16,
        });
        let profiles = profiles(graph, devices, &options.rates, &options.taken);
        let plan = replan(graph, &profiles, &plan_options(options, kv), without)?;
        let mut limits = Limits::of(&plan, graph);
        limits.prefix_cache = options.prefix_cache;
        let prepare = Prepare {
            activations: options.activations,
            context: plan.kv.context,
            max_rows: limits.max_rows,
        };
        let packed = options.packed.as_deref();
        let executor = Executor::new(graph, &plan, devices, (prepare, packed), kv, progress)?;
        Ok(Prepared { plan, executor, limits })
    }

    /// Starts to answer a request.
    ///
    /// # Errors
    /// Everything that is wrong with the request: [`EngineError::EmptyPrompt`],
    /// [`EngineError::PromptTooLong`] (there must be room for one more token, if any is wanted),
    /// [`EngineError::UnknownToken`], [`EngineError::Parameter`], [`EngineError::NoEmbeddings`]; or
    /// [`EngineError::Busy`], or [`EngineError::Lost`].
    pub fn generate(&self, request: Request) -> Result<Generation, EngineError> {
        let (sender, events) = mpsc::channel();
        let handle = self.generate_with(request, move |event| {
            // A reader that is gone has cancelled already.
            let _ = sender.send(event);
        })?;
        Ok(Generation { handle, events })
    }

    /// Starts to answer a request; events go to `sink`, the last of which is [`Event::Done`] or an
    /// error. It is called on the model's thread and must return quickly. The request lives as long
    /// as the model or the returned handle.
    ///
    /// # Errors
    /// As [`Model::generate`].
    pub fn generate_with(
        &self,
        request: Request,
        sink: impl FnMut(Result<Event, EngineError>) + Send + 'static,
    ) -> Result<Cancel, EngineError> {
        self.check(&request)?;
        let tokenizer = self.text.tokenizer.as_ref();
        let decode = tokenizer.map(|tokenizer| Decoder::boxed(tokenizer, &request));
        let prompt = request.prompt;
        // The context may have become shorter since the check: the model's thread says so.
        let room = self.context().saturating_sub(prompt.len()).max(1);
        let job = Job {
            seed: request.sampling.seed.unwrap_or_else(random_seed),
            sampling: request.sampling,
            max_tokens: request.max_tokens.unwrap_or(room).min(room),
            logprobs: request.logprobs,
            score_prompt: request.score_prompt,
            pool: request.embed.map(Pool::new),
            client: request.client,
            constraint: request.constraint,
            eos: if request.ignore_eos { Arc::default() } else { Arc::clone(&self.eos) },
            stop: StopMatcher::new(request.stop),
            decode,
            usage: Usage { prompt: prompt.len(), ..Usage::default() },
            speculation: Speculation::default(),
        };
        let sink: Sink = Box::new(sink);
        let id = self.driver.generate(prompt, job, sink)?;
        Ok(Cancel { id, driver: Arc::clone(&self.driver) })
    }

    /// Opens a session.
    ///
    /// # Errors
    /// [`EngineError::Busy`], [`EngineError::Lost`].
    pub fn session(&self, options: SessionOptions) -> Result<Session, EngineError> {
        Session::new(self, Arc::clone(&self.driver), options)
    }

    fn check(&self, request: &Request) -> Result<(), EngineError> {
        let (tokens, context) = (request.prompt.len(), self.context());
        if tokens == 0 {
            return Err(EngineError::EmptyPrompt);
        }
        let generates = request.embed.is_none() && request.max_tokens != Some(0);
        if tokens + usize::from(generates) > context {
            return Err(EngineError::PromptTooLong { tokens, context });
        }
        check_tokens(&request.prompt, self.hyper.vocab)?;
        if request.embed.is_some() && !self.driver.setup().embeds {
            return Err(EngineError::NoEmbeddings);
        }
        request.sampling.check(self.hyper.vocab)?;
        let refuse = |field, value: usize, allowed| {
            Err(EngineError::Parameter { field, value: value.to_string(), allowed })
        };
        if let Some(top) = request.logprobs.filter(|top| *top > MAX_LOGPROBS) {
            return refuse("logprobs", top, "at most 64");
        }
        if request.stop.len() > MAX_STOPS {
            return refuse("stop", request.stop.len(), "at most 64 strings");
        }
        match request.stop.iter().map(String::len).max() {
            Some(longest) if longest > MAX_STOP_BYTES => {
                refuse("stop", longest, "strings of at most 4096 bytes")
            }
            _ => Ok(()),
        }
    }

    /// The model's dimensions.
    #[must_use]
    pub fn hyper(&self) -> &Hyper {
        &self.hyper
    }

    /// What runs where, and why: as it is now, with what runs took so far.
    #[must_use]
    pub fn plan(&self) -> Plan {
        self.driver.setup().plan.clone()
    }

    /// Tokenizer and chat template.
    #[must_use]
    pub fn text(&self) -> &Text {
        &self.text
    }

    /// Tokens that end an answer.
    #[must_use]
    pub fn end_tokens(&self) -> &[u32] {
        &self.eos
    }

    /// Longest sequence, prompt and answer.
    #[must_use]
    pub fn context(&self) -> usize {
        self.driver.setup().plan.kv.context
    }

    /// Why it cannot compute any more; `None` as long as it can. A model that is lost stays lost:
    /// every request fails with this error, and it is to be loaded again.
    #[must_use]
    pub fn lost(&self) -> Option<&EngineError> {
        self.driver.lost()
    }

    /// Bytes that it takes.
    #[must_use]
    pub fn memory(&self) -> Memory {
        self.driver.setup().memory
    }

    /// The devices that it was loaded with.
    #[must_use]
    pub fn devices(&self) -> &[Descriptor] {
        &self.devices
    }
}

/// The device that an error says cannot run the model, if it was left to the plan whether it does.
fn dispensable(
    error: &DeviceError,
    devices: &[Arc<dyn Device>],
    options: &LoadOptions,
) -> Option<usize> {
    use DeviceError::{Lost, OutOfMemory, Refused};
    let asked = [&options.prefill_device, &options.decode_device].into_iter().any(Option::is_some);
    match error {
        OutOfMemory { device, .. } | Refused { device, .. } | Lost { device, .. }
            if options.device == DeviceChoice::Auto && !asked =>
        {
            devices.iter().position(|other| other.descriptor().name == *device)
        }
        _ => None,
    }
}

/// Whether all tokens are in the vocabulary.
pub(crate) fn check_tokens(tokens: &[u32], vocab: usize) -> Result<(), EngineError> {
    match tokens.iter().find(|&&token| token as usize >= vocab) {
        Some(&token) => Err(EngineError::UnknownToken { token, vocab }),
        None => Ok(()),
    }
}

/// Whether two models mean the same by every token id that both have. Outputs may be padded to
/// different widths.
fn check_same_ids(
    (graph, text): (&Graph, &Text),
    (draft, draft_text): (&Graph, &Text),
) -> Result<(), EngineError> {
    let refuse = |why: String| Err(EngineError::DraftVocabulary(why));
    let (vocab, draft_vocab) = (graph.hyper.vocab, draft.hyper.vocab);
    let (mine, other) = match (&text.tokenizer, &draft_text.tokenizer) {
        (Some(mine), Some(other)) => (mine, other),
        (None, None) if vocab == draft_vocab => return Ok(()),
        (None, None) => return refuse(format!("it has {draft_vocab} tokens and not {vocab}")),
        _ => return refuse("only one of the two has a tokenizer".into()),
    };
    let both = mine.vocab_size().min(other.vocab_size());
    let id = |index: usize| u32::try_from(index).unwrap_or(u32::MAX);
    match (0..both).map(id).find(|&id| mine.token_text(id) != other.token_text(id)) {
        None => Ok(()),
        Some(id) => {
            let text = |of: &tangor_text::Tokenizer| format!("{:?}", of.token_text(id));
            refuse(format!("token {id} is {} and not {}", text(other), text(mine)))
        }
    }
}

/// A seed that nobody asked for.
pub(crate) fn random_seed() -> u64 {
    // Every `RandomState` has new keys, which come from the operating system.
    RandomState::new().build_hasher().finish()
}
