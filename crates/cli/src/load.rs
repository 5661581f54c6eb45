//! From a MODEL argument to a loaded model: the store, the files, the devices, the options.

use crate::args::{
    ActivationsChoice, DeviceChoice, Global, KvChoice, ModelOptions, OnLostChoice, SamplingOptions,
    SpeculateChoice, SpeculationOptions,
};
use crate::error::{Failure, Outcome};
use crate::packed::Packed;
use crate::progress::Progress;
use crate::prompt::Turn;
use crate::{devices, interrupt, rates, sampling, terminal};
use clap::Args;
use clap::builder::PossibleValuesParser;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tangor_device_cpu::{CpuDevice, CpuOptions, Isa};
use tangor_engine::device::{Activations, Device, KvType};
use tangor_engine::plan::model::formats::{Checkpoint, Limits};
use tangor_engine::plan::model::{Graph, Mixture, shapes};
use tangor_engine::plan::{self, DeviceProfile, Stage};
use tangor_engine::text::{ChatTemplate, Message, Tokenizer};
use tangor_engine::{
    EngineError, LoadOptions, Model, OnLost, Request, SamplingParams, Speculate, Text,
};
use tangor_eval::{BenchSpec, MachineLimits, Work};
use tangor_server::LoadError;
use tangor_store::{Installed, ModelName, Phase, Store, StoreError, StoreOptions};

/// A model by name, or the shape of a published one.
#[derive(Clone, Debug, Args)]
pub(crate) struct Which {
    #[command(flatten)]
    one: OneOf,

    /// How the matrices of a --shape are stored [default: q4_0]
    #[arg(long, value_name = "FORMAT", value_parser = mixture_names())]
    weights: Option<String>,
}

/// One of the two.
#[derive(Clone, Debug, Args)]
#[group(required = true, multiple = false)]
struct OneOf {
    /// Name, file or folder of the model
    #[arg(value_name = "MODEL")]
    model: Option<String>,

    /// A published model's shape with random weights instead, as llama-3.2-1b
    #[arg(long, value_name = "NAME", value_parser = shape_names())]
    shape: Option<String>,
}

fn shape_names() -> PossibleValuesParser {
    PossibleValuesParser::new(shapes::names())
}

/// Of the ways to store matrices.
pub(crate) fn mixture_names() -> PossibleValuesParser {
    PossibleValuesParser::new(Mixture::ALL.map(Mixture::name))
}

impl Which {
    /// What it is called.
    pub(crate) fn name(&self) -> &str {
        self.one.model.as_deref().or(self.one.shape.as_deref()).unwrap_or_default()
    }

    /// The published shape, if it is one.
    pub(crate) fn shape(&self) -> Option<&str> {
        self.one.shape.as_deref()
    }

    /// How matrices are to be stored, if that was said.
    pub(crate) fn weights(&self) -> Option<Mixture> {
        self.weights.as_deref().and_then(|name| name.parse().ok())
    }

    /// A published shape, and how its matrices are stored; `None` of a model, which has weights of
    /// its own.
    pub(crate) fn random(&self) -> Outcome<Option<(&str, Mixture)>> {
        match (self.shape(), self.weights()) {
            (Some(name), weights) => Ok(Some((name, weights.unwrap_or_default()))),
            (None, None) => Ok(None),
            (None, Some(_)) => {
                Err(Failure::Usage("--weights is for a --shape: a MODEL has its own".into()))
            }
        }
    }
}

/// The store that the global options name.
pub(crate) fn store(global: &Global) -> Result<Store, StoreError> {
    let mut options = StoreOptions::from_env();
    if let Some(home) = &global.home {
        options.root = Some(home.clone());
    }
    options.offline |= global.offline;
    Store::open(options)
}

/// Fetches a model, with progress; Ctrl-C ends it, and what has arrived stays.
pub(crate) fn pull(store: &Store, name: &ModelName) -> Outcome<Installed> {
    let cancel = Arc::new(AtomicBool::new(false));
    let hear = Arc::clone(&cancel);
    let _ctrl_c = interrupt::listen_and(move || hear.store(true, Ordering::SeqCst));
    let mut shown: Option<(Phase, String, Progress)> = None;
    let installed = store.pull(
        name,
        &mut |step| {
            let same = matches!(&shown, Some((phase, file, _))
                if *phase == step.phase && file == step.file);
            if !same {
                drop(shown.take());
                let progress = announce(step);
                shown = Some((step.phase, step.file.to_owned(), progress));
            }
            if let Some((_, _, progress)) = &mut shown {
                progress.set(step.done, step.total.unwrap_or(0));
            }
        },
        &cancel,
    )?;
    Ok(installed)
}

/// A new phase of a pull: a bar on a terminal, a line elsewhere.
fn announce(step: &tangor_store::Progress<'_>) -> Progress {
    let file = step.file;
    let (doing, transfer) = match step.phase {
        Phase::Resolving => (format!("looking for {file}"), false),
        Phase::Waiting => (format!("waiting for another process that changes {file}"), false),
        Phase::Downloading => (format!("fetching {file}"), true),
        Phase::Verifying => (format!("verifying {file}"), true),
        Phase::Unpacking => (format!("unpacking {file}"), true),
    };
    if !terminal::stderr_is_terminal() {
        let size =
            step.total.map_or(String::new(), |total| format!(", {}", terminal::bytes(total)));
        terminal::note(&format!("{doing}{size}"));
    }
    if transfer { Progress::transfer(doing) } else { Progress::spinner(doing) }
}

/// A model's files, fetched first where they have to be.
pub(crate) fn open(model: &str, global: &Global) -> Outcome<(Installed, Checkpoint)> {
    let (installed, checkpoint, _) = open_timed(model, global)?;
    Ok((installed, checkpoint))
}

/// The same, and how long it took, fetching not counted.
fn open_timed(model: &str, global: &Global) -> Outcome<(Installed, Checkpoint, Duration)> {
    let mut begin = Instant::now();
    let store = store(global)?;
    let name = ModelName::parse(model)?;
    let installed = match store.resolve(&name)? {
        Some(installed) => installed,
        None => {
            let installed = pull(&store, &name)?;
            begin = Instant::now();
            installed
        }
    };
    let checkpoint = store.open_checkpoint(&installed, &Limits::default())?;
    Ok((installed, checkpoint, begin.elapsed()))
}

/// The graph of a model's files.
pub(crate) fn graph(checkpoint: &Checkpoint) -> Outcome<Graph> {
    Ok(tangor_engine::plan::model::import::import(checkpoint)?)
}

/// The graph of a model or of a published shape.
pub(crate) fn graph_or_shape(which: &Which, global: &Global) -> Outcome<Graph> {
    match which.random()? {
        Some(random) => random_graph(random),
        None => graph(&open(which.name(), global)?.1),
    }
}

/// A published shape with random weights.
fn random_graph((name, weights): (&str, Mixture)) -> Outcome<Graph> {
    Ok(shapes::random_mixture(&shapes::config(name)?, weights, 1)?)
}

/// A model that is ready to generate.
#[derive(Debug)]
pub(crate) struct Loaded {
    /// The model.
    pub(crate) model: Arc<Model>,
    /// Seconds from the name to a model that is ready, fetching not counted.
    pub(crate) load_s: f64,
    /// How its publisher wants tokens to be chosen.
    pub(crate) recommended: SamplingParams,
}

/// Loads a model by name, with progress.
pub(crate) fn model(model: &str, options: &ModelOptions, global: &Global) -> Outcome<Loaded> {
    speculative(model, options, &SpeculationOptions::default(), global)
}

/// Loads a model by name, with progress, and what proposes tokens to it.
pub(crate) fn speculative(
    model: &str,
    options: &ModelOptions,
    speculation: &SpeculationOptions,
    global: &Global,
) -> Outcome<Loaded> {
    let (_, checkpoint, opened) = open_timed(model, global)?;
    let drafts = Drafts::open(speculation, Speculate::Auto, global)?;
    let mut loaded = load(model, &checkpoint, (options, &drafts), 1, global)?;
    loaded.load_s += opened.as_secs_f64();
    Ok(loaded)
}

/// Loads an installed model for the server: for `asked`, which says how many sequences run at once.
pub(crate) fn for_server(
    installed: &Installed,
    options: &ModelOptions,
    asked: LoadOptions,
    global: &Global,
) -> Result<Loaded, LoadError> {
    let checkpoint = store(global)?.open_checkpoint(installed, &Limits::default())?;
    load_as(&installed.name, &checkpoint, (options, &None), asked, global)
}

/// What proposes tokens.
struct Drafts {
    speculate: Speculate,
    model: Option<Checkpoint>,
}

impl Drafts {
    fn open(options: &SpeculationOptions, usual: Speculate, global: &Global) -> Outcome<Self> {
        let speculate = options.speculate.map_or(usual, |choice| match choice {
            SpeculateChoice::Auto => Speculate::Auto,
            SpeculateChoice::Off => Speculate::Off,
            SpeculateChoice::Ngram => Speculate::Ngram,
        });
        let model = options.draft.as_deref().map(|name| open(name, global)).transpose()?;
        Ok(Self { speculate, model: model.map(|(_, checkpoint)| checkpoint) })
    }
}

fn load(
    name: &str,
    checkpoint: &Checkpoint,
    (options, drafts): (&ModelOptions, &Drafts),
    sequences: usize,
    global: &Global,
) -> Outcome<Loaded> {
    let asked = LoadOptions { speculate: drafts.speculate, ..load_options(options, sequences) };
    load_as(name, checkpoint, (options, &drafts.model), asked, global)
}

/// Loads a model onto the devices of the options, in every other respect as `asked`.
fn load_as<E: From<Failure> + From<EngineError>>(
    name: &str,
    checkpoint: &Checkpoint,
    (options, draft): (&ModelOptions, &Option<Checkpoint>),
    asked: LoadOptions,
    global: &Global,
) -> Result<Loaded, E> {
    let begin = Instant::now();
    let (devices, rates) = devices_and_rates(options, global)?;
    let packed = Packed::new(global)?;
    let mut progress = Progress::share(format!("loading {name}"));
    let options = LoadOptions { packed: Some(packed.clone()), rates, ..asked };
    let mut watch = |step: tangor_engine::Progress<'_>| progress.set_share(step.share);
    let model = match draft {
        None => Model::load(checkpoint, &devices, &options, &mut watch)?,
        Some(draft) => Model::load_with_draft(checkpoint, draft, &devices, &options, &mut watch)?,
    };
    let load_s = begin.elapsed().as_secs_f64();
    drop(progress);
    packed.report();
    let kv = model.plan().kv;
    if kv.context > kv.model_context {
        terminal::note(&format!(
            "the context of {} tokens is longer than the {} that the model was made for: it may \
             write nonsense beyond them",
            kv.context, kv.model_context
        ));
    }
    Ok(Loaded { model, load_s, recommended: sampling::recommended(checkpoint) })
}

/// Loads a model by name, or a published shape with random weights, for a measurement; and says how
/// much work its tokens are.
pub(crate) fn model_or_shape(
    which: &Which,
    options: &ModelOptions,
    speculation: &SpeculationOptions,
    spec: &BenchSpec,
    global: &Global,
) -> Outcome<(Loaded, Work)> {
    // Random prompts are answered with endless repetitions: proposing these would measure nothing
    // that a user sees.
    let drafts = Drafts::open(speculation, Speculate::Off, global)?;
    let random = which.random()?;
    if random.is_some() && drafts.model.is_some() {
        return Err(Failure::Usage("--draft needs a MODEL, not a --shape".into()));
    }
    let Some((shape, weights)) = random else {
        let (_, checkpoint, opened) = open_timed(which.name(), global)?;
        let work = Work::of(&graph(&checkpoint)?);
        let drafts = (options, &drafts);
        let mut loaded = load(which.name(), &checkpoint, drafts, spec.streams, global)?;
        loaded.load_s += opened.as_secs_f64();
        return Ok((loaded, work));
    };
    let begin = Instant::now();
    let (devices, rates) = devices_and_rates(options, global)?;
    let packed = Packed::new(global)?;
    let graph = random_graph((shape, weights))?;
    let work = Work::of(&graph);
    let tokens = spec.depth.saturating_add(spec.prompt_tokens).saturating_add(spec.new_tokens);
    let asked = LoadOptions {
        context: options.context.or(Some(tokens.min(graph.hyper.context))),
        speculate: drafts.speculate,
        packed: Some(packed.clone()),
        rates,
        ..load_options(options, spec.streams)
    };
    let mut progress = Progress::share(format!("loading {shape}"));
    let model = Model::from_graph(graph, Text::default(), &devices, &asked, &mut |step| {
        progress.set_share(step.share);
    })?;
    let load_s = begin.elapsed().as_secs_f64();
    drop(progress);
    packed.report();
    Ok((Loaded { model, load_s, recommended: SamplingParams::default() }, work))
}

/// The name of the instruction set that the options lead to, and the speeds that it was chosen by:
/// none if it was asked for.
pub(crate) fn isa(options: &ModelOptions) -> Outcome<(&'static str, IsaSpeeds)> {
    let asked: Option<Isa> = options.isa.as_deref().map(str::parse).transpose()?;
    Ok(match asked {
        Some(isa) => (isa.name(), IsaSpeeds::new()),
        None => (Isa::best().name(), isa_speeds()),
    })
}

/// Measured speeds of instruction sets, by name: 8-bit operations per second of one thread in the
/// kernel of prompts. Sets that were not measured are missing.
pub(crate) type IsaSpeeds = BTreeMap<&'static str, f64>;

/// Those that this process has chosen by.
pub(crate) fn isa_speeds() -> IsaSpeeds {
    let named = |speed: &tangor_device_cpu::Speed| Some((speed.isa.name(), speed.ops_per_s?));
    tangor_device_cpu::speeds().iter().filter_map(named).collect()
}

/// What the processor and its memory can do at most, measured in about a second.
pub(crate) fn measure(options: &ModelOptions) -> Outcome<MachineLimits> {
    Ok(limits_of(&devices::cpu(options)?))
}

/// The same, with the processor's own number of threads.
pub(crate) fn measure_default() -> Outcome<MachineLimits> {
    Ok(limits_of(&CpuDevice::new(CpuOptions::default())?))
}

/// What this processor can do at most.
pub(crate) fn limits_of(cpu: &CpuDevice) -> MachineLimits {
    let _progress = Progress::spinner("measuring the processor and its memory");
    MachineLimits {
        int8_ops_per_s: tangor_device_cpu::limits::int8_ops_per_s(cpu.pool(), cpu.isa()),
        read_bytes_per_s: tangor_device_cpu::limits::read_bytes_per_s(cpu.pool(), cpu.isa()),
    }
}

/// The devices to load a model on, and what was measured of them before.
fn devices_and_rates(
    options: &ModelOptions,
    global: &Global,
) -> Outcome<(Vec<Arc<dyn Device>>, rates::Named)> {
    let opened = devices::opened(options, global)?;
    let rates = rates::all_kept(&store(global)?, &opened);
    Ok((opened.into_iter().map(|opened| opened.device).collect(), rates))
}

/// What the options ask of the engine, for so many sequences at once: more would only take memory.
pub(crate) fn load_options(options: &ModelOptions, sequences: usize) -> LoadOptions {
    let one = |choice: Option<DeviceChoice>| {
        choice.and_then(|choice| match plan_device(choice) {
            plan::DeviceChoice::Auto | plan::DeviceChoice::Hybrid => None,
            device => Some(device.to_string()),
        })
    };
    LoadOptions {
        activations: match options.activations {
            ActivationsChoice::Int8 => Activations::Int8,
            ActivationsChoice::F32 => Activations::F32,
        },
        kv: options.kv.map(|kv| match kv {
            KvChoice::F16 => KvType::F16,
            KvChoice::Bf16 => KvType::Bf16,
            KvChoice::Int8 => KvType::Int8,
            KvChoice::F32 => KvType::F32,
        }),
        context: options.context,
        device: plan_device(options.device),
        prefill_device: one(options.prefill_device),
        decode_device: one(options.decode_device),
        max_sequences: sequences,
        on_lost: match options.on_lost {
            OnLostChoice::Continue => OnLost::Continue,
            OnLostChoice::Fail => OnLost::Fail,
        },
        ..LoadOptions::default()
    }
}

/// The KV type that the engine will choose, as the planner calls it.
pub(crate) fn plan_kv(options: &ModelOptions) -> plan::KvType {
    match (options.kv, options.activations) {
        (Some(KvChoice::F32), _) | (None, ActivationsChoice::F32) => plan::KvType::F32,
        (Some(KvChoice::Bf16), _) | (None, ActivationsChoice::Int8) => plan::KvType::Bf16,
        (Some(KvChoice::F16), _) => plan::KvType::F16,
        (Some(KvChoice::Int8), _) => plan::KvType::Int8,
    }
}

fn plan_device(choice: DeviceChoice) -> plan::DeviceChoice {
    match choice {
        DeviceChoice::Auto => plan::DeviceChoice::Auto,
        DeviceChoice::Hybrid => plan::DeviceChoice::Hybrid,
        DeviceChoice::Npu => plan::DeviceChoice::Npu,
        DeviceChoice::Gpu => plan::DeviceChoice::Gpu,
        DeviceChoice::Cpu => plan::DeviceChoice::Cpu,
    }
}

impl Loaded {
    /// Tokens of a conversation in the model's own template, up to where the answer begins.
    pub(crate) fn chat_tokens(&self, turns: &[Turn]) -> Outcome<Vec<u32>> {
        let messages: Vec<Message> =
            turns.iter().map(|turn| Message::new(turn.role.name(), turn.content.clone())).collect();
        let template = self.require_template()?;
        let rendered = template.render(&messages, None, true, &serde_json::Map::new())?;
        Ok(self.tokenizer()?.encode_spans(&rendered.spans)?)
    }

    /// The model's chat template.
    pub(crate) fn require_template(&self) -> Outcome<&ChatTemplate> {
        let text = self.model.text();
        text.template.as_deref().ok_or_else(|| {
            let failure = match &text.template_error {
                Some(why) => Failure::new(format!("the model's chat template is broken: {why}")),
                None => Failure::new("the model has no chat template"),
            };
            failure.hint("`tangor run --raw` gives it the prompt as it is")
        })
    }

    pub(crate) fn tokenizer(&self) -> Outcome<&Tokenizer> {
        self.model.text().tokenizer.as_deref().ok_or_else(|| {
            Failure::new("the model has no tokenizer")
                .hint("a Hugging Face folder needs its tokenizer.json or tokenizer.model")
        })
    }

    /// A request for an answer.
    pub(crate) fn request(&self, prompt: Vec<u32>, options: &SamplingOptions) -> Request {
        Request {
            prompt,
            sampling: sampling::chosen(&self.recommended, options),
            max_tokens: options.max_tokens,
            stop: options.stop.clone(),
            ..Request::default()
        }
    }

    /// Names of the devices that run a stage, as `cpu`.
    pub(crate) fn device_of(&self, stage: Stage) -> String {
        self.devices_of(stage, |device| &device.name).join("+")
    }

    /// The devices of both phases as a person would call them.
    pub(crate) fn device_names(&self) -> String {
        let names = |stage| self.devices_of(stage, |device| &device.description).join(" and ");
        let (prefill, decode) = (names(Stage::Prefill), names(Stage::Decode));
        if prefill == decode { prefill } else { format!("{prefill} (prefill), {decode} (decode)") }
    }

    fn devices_of(&self, stage: Stage, text: fn(&DeviceProfile) -> &str) -> Vec<String> {
        let plan = self.model.plan();
        let mut names = Vec::new();
        for segment in plan.stage(stage, 1).iter().flat_map(|stage| &stage.segments) {
            let name = plan.devices.get(segment.device).map_or("unknown", text);
            if !names.iter().any(|other| other == name) {
                names.push(name.to_owned());
            }
        }
        names
    }
}
