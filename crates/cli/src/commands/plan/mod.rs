//! `tangor plan`: what would run where, and why.

mod picture;
mod report;

use crate::args::{Global, ModelOptions, positive};
use crate::devices::{self, Opened};
use crate::error::{Failure, Outcome};
use crate::rates::{self, Measure};
use crate::{chart, load, terminal};
use clap::parser::ValueSource;
use clap::{ArgMatches, Args, Command, FromArgMatches, ValueEnum};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tangor_engine::device::Device;
use tangor_engine::plan::model::{Graph, Mixture, shapes};
use tangor_engine::plan::simulate::{self, Machine, Step};
use tangor_engine::plan::{Plan, PlanOptions, Policy as PlanPolicy, plan};
use tangor_engine::profiles;

const EXAMPLES: &str = "\
Examples:
  tangor plan smollm2
  tangor plan --shape mistral-7b -p 4096 -n 256 --chart plan.svg
  tangor plan smollm2 --device cpu --json
  tangor plan --shape llama-3-8b --profile strix-point --policy vendor
  tangor plan --all --profile krackan-point

Nothing is loaded: the plan follows from the model's shape and from what the devices can do, which
is measured for a second or two the first time and kept for this and every other command that has a
choice of devices. With --profile it is a simulation of another machine, whose numbers and their
sources `--json` lists.";

/// Explain what would run where, and how fast
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Options {
    // The first one, since the others take what was typed out of the matches.
    #[command(flatten)]
    of_this_machine: OfThisMachine,

    #[command(flatten)]
    which: load::Which,

    /// Every model of the list of supported ones, one line each
    #[arg(long, group = "OneOf")]
    all: bool,

    /// Tokens of the prompt that the prediction is for (1024, or what the context has room for)
    #[arg(short, long, value_name = "TOKENS", value_parser = positive)]
    prompt: Option<usize>,

    /// Tokens of the answer that the prediction is for (64, or what the context has room for)
    #[arg(short = 'n', long, value_name = "TOKENS", value_parser = positive)]
    new_tokens: Option<usize>,

    /// Simulate another machine: strix-point, krackan-point, or a file like theirs
    #[arg(long, value_name = "NAME", default_value = THIS_MACHINE)]
    profile: String,

    /// Who decides: the cost model, or the fixed rule of AMD's hybrid flow
    #[arg(long, value_enum, default_value_t = Policy::Ours, value_name = "POLICY")]
    policy: Policy,

    /// Take typical rates instead of measuring the devices
    #[arg(long)]
    no_measure: bool,

    /// Measure the devices again, as after a change of the power profile
    #[arg(long, conflicts_with = "no_measure")]
    remeasure: bool,

    /// Also draw who works when, into a file that ends in .svg or .png; may be given several times
    #[arg(long, value_name = "FILE", value_parser = chart::picture, conflicts_with = "all")]
    chart: Vec<PathBuf>,

    /// With --all and --profile: print the tables of docs/hybrid.md
    #[arg(long, requires = "all", conflicts_with = "json")]
    markdown: bool,

    /// Print one JSON object: predicted{ttft_s, decode_tps, weights_bytes, kv_bytes},
    /// stages[{stage, m, segments[{device, nodes, predicted_s, measured_s, why}]}], devices,
    /// memory, cooperative, considered, reasons, profile, policy, simulated, sensitivity, sources
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    model_options: ModelOptions,
}

/// Which options were typed that are for the devices of this machine alone.
#[derive(Debug)]
struct OfThisMachine(Vec<&'static str>);

impl FromArgMatches for OfThisMachine {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        const ALL: [&str; 6] = ["no_measure", "remeasure", "gpu", "npu", "threads", "isa"];
        let typed = |id: &&str| matches.value_source(id) == Some(ValueSource::CommandLine);
        Ok(Self(ALL.into_iter().filter(typed).collect()))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

impl Args for OfThisMachine {
    fn augment_args(command: Command) -> Command {
        command
    }

    fn augment_args_for_update(command: Command) -> Command {
        command
    }
}

/// The profile of the machine that we run on.
const THIS_MACHINE: &str = "this-machine";

/// Longest profile that is read, in bytes.
const PROFILE_BYTES: u64 = 1 << 20;

/// Who decides what runs where.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Policy {
    // The cost model.
    Ours,
    // The fixed rule of AMD's hybrid flow: prompts on the NPU, tokens on the iGPU.
    Vendor,
}

/// Where a plan is for.
enum Target {
    /// This machine, with what was measured of it.
    Here(Vec<Opened>, rates::Named),
    /// Another one.
    Simulated(Box<Machine>),
}

impl Target {
    fn machine(&self) -> Option<&Machine> {
        match self {
            Self::Here(..) => None,
            Self::Simulated(machine) => Some(machine),
        }
    }

    /// Takes what is measured of this machine, if it is that and the options allow it.
    fn measure(&mut self, options: &Options, global: &Global) -> Outcome<bool> {
        let Self::Here(devices, rates) = self else { return Ok(false) };
        if options.no_measure {
            return Ok(false);
        }
        let wanted = if options.remeasure { Measure::Again } else { Measure::Once };
        *rates = rates::all_measured(&load::store(global)?, devices, wanted)?;
        Ok(true)
    }

    fn plan(&self, graph: &Graph, asked: &PlanOptions) -> Outcome<Plan> {
        Ok(match self {
            Self::Here(opened, rates) => {
                let devices = opened.iter().map(|opened| Arc::clone(&opened.device));
                let devices: Vec<Arc<dyn Device>> = devices.collect();
                plan(graph, &profiles(graph, &devices, rates, &[]), asked)?
            }
            Self::Simulated(machine) => simulate::simulate(graph, machine, step(asked), asked)?,
        })
    }
}

/// The step that a policy stands for.
fn step(asked: &PlanOptions) -> Step {
    match asked.policy {
        PlanPolicy::Ours => Step::Cooperation,
        PlanPolicy::Vendor => Step::Vendor,
    }
}

pub(crate) fn run(options: &Options, global: &Global) -> Outcome {
    let machine = machine(&options.profile)?;
    if let (Some(_), Some(id)) = (&machine, options.of_this_machine.0.first()) {
        let name = id.replace('_', "-");
        return Err(Failure::Usage(format!(
            "--{name} is for this machine, and --profile {} for another one",
            options.profile
        )));
    }
    if options.markdown {
        let Some(machine) = machine else {
            return Err(Failure::Usage("--markdown needs a --profile to simulate".into()));
        };
        return terminal::write(&simulate::markdown(&machine)?);
    }
    let mut target = match machine {
        Some(machine) => Target::Simulated(Box::new(machine)),
        None => Target::Here(devices::opened(&options.model_options, global)?, Vec::new()),
    };
    let asked = asked(options, &target);
    if options.all {
        target.measure(options, global)?;
        return all(options, &target, &asked);
    }
    let graph = graph(options, &target, global)?;
    let asked = within(options, &graph, asked)?;
    // What cannot be planned is said before anything is measured.
    let mut plan = target.plan(&graph, &asked)?;
    if target.measure(options, global)? {
        plan = target.plan(&graph, &asked)?;
    }
    let sensitivity = target
        .machine()
        .map(|machine| simulate::sensitivity(&graph, machine, step(&asked), &asked))
        .transpose()?;
    let name = options.which.name();
    let report = report::Report { name, plan: &plan, asked: &asked, target: &target, sensitivity };
    for path in &options.chart {
        let lanes = picture::lanes(name, &plan, &asked, target.machine());
        chart::write(path, || lanes.svg(), || lanes.png())?;
    }
    if options.json { terminal::json(&report.json()) } else { report.print() }
}

/// The machine to simulate, if it is not this one.
fn machine(profile: &str) -> Outcome<Option<Machine>> {
    if profile == THIS_MACHINE {
        return Ok(None);
    }
    if let Some(machine) = Machine::built_in(profile) {
        return Ok(Some(machine?));
    }
    let path = Path::new(profile);
    let Ok(metadata) = fs::metadata(path) else {
        let there: Vec<&str> = [THIS_MACHINE].into_iter().chain(Machine::names()).collect();
        return Err(Failure::new(format!("there is no profile called {profile:?}"))
            .hint(format!("there is: {}, or a file like theirs", there.join(", "))));
    };
    if !metadata.is_file() || metadata.len() > PROFILE_BYTES {
        let message = format!("{profile}: a profile is a file of at most {PROFILE_BYTES} bytes");
        return Err(Failure::new(message));
    }
    let text = fs::read_to_string(path).map_err(|e| Failure::from(e).about(profile))?;
    Ok(Some(Machine::parse(&text).map_err(|e| Failure::from(e).about(profile))?))
}

/// What the options ask of the planner.
fn asked(options: &Options, target: &Target) -> PlanOptions {
    let model = &options.model_options;
    let load = load::load_options(model, 1);
    let usual = PlanOptions::default();
    let (prompt, answer) =
        (options.prompt.unwrap_or(usual.prompt), options.new_tokens.unwrap_or(usual.answer));
    let tokens = prompt.saturating_add(answer);
    let here = target.machine().is_none();
    PlanOptions {
        device: load.device,
        prefill_device: load.prefill_device,
        decode_device: load.decode_device,
        policy: match options.policy {
            Policy::Ours => PlanPolicy::Ours,
            Policy::Vendor => PlanPolicy::Vendor,
        },
        prefill_rows: if here { load.prefill_chunk } else { simulate::PREFILL_ROWS },
        max_sequences: load.max_sequences,
        context: load.context.or((!here).then_some(tokens.max(4096))),
        kv: load::plan_kv(model),
        prompt,
        answer,
        ..usual
    }
}

/// The same for a model, in whose context the prompt and the answer have to fit. Lengths that
/// nobody asked for are as much of the usual ones as do.
fn within(options: &Options, graph: &Graph, mut asked: PlanOptions) -> Outcome<PlanOptions> {
    let context = options.model_options.context.unwrap_or(graph.hyper.context);
    if options.new_tokens.is_none() {
        asked.answer = asked.answer.min(context / 2).max(1);
    }
    if options.prompt.is_none() {
        asked.prompt = asked.prompt.min(context.saturating_sub(asked.answer)).max(1);
    }
    let tokens = asked.prompt.saturating_add(asked.answer);
    if tokens > context {
        let what = "prompt + new tokens";
        let message = format!("{what} is {tokens} and must be at most {context}, the context");
        return Err(Failure::new(message));
    }
    Ok(asked)
}

/// How a shape's matrices are stored: on another machine as its vendor stores them.
fn mixture(options: &Options, target: &Target) -> Mixture {
    let usual = match target {
        Target::Here(..) => Mixture::default(),
        Target::Simulated(_) => Mixture::Int4 { group: 128 },
    };
    options.which.weights().unwrap_or(usual)
}

fn graph(options: &Options, target: &Target, global: &Global) -> Outcome<Graph> {
    match options.which.shape() {
        Some(shape) => shape_graph(shape, mixture(options, target)),
        None => load::graph_or_shape(&options.which, global),
    }
}

fn shape_graph(shape: &str, weights: Mixture) -> Outcome<Graph> {
    Ok(shapes::random_mixture(&shapes::config(shape)?, weights, 1)?)
}

/// Every model of the seed document.
fn all(options: &Options, target: &Target, asked: &PlanOptions) -> Outcome {
    let mut lines = Vec::new();
    for shape in simulate::seed_models() {
        let graph = shape_graph(shape, mixture(options, target))?;
        // A model may be too large for a machine: that is a line like any other.
        let context = asked.context.map(|context| context.min(graph.hyper.context));
        let asked = within(options, &graph, PlanOptions { context, ..asked.clone() });
        let steps = match (&asked, target.machine(), options.json) {
            (Ok(asked), Some(machine), true) => Some(simulate::row(shape, &graph, machine, asked)?),
            _ => None,
        };
        let plan = asked.and_then(|asked| target.plan(&graph, &asked));
        lines.push(report::Line { shape, plan, steps });
    }
    report::all(&lines, target, asked, options.json)
}
