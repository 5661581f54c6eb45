//! `tangor plan`: what would run where, and why.

use crate::args::{Global, ModelOptions, positive};
use crate::error::{Failure, Outcome};
use crate::{load, terminal};
use clap::{Args, ValueEnum};
use tangor_engine::plan::{PlanOptions, plan};

const EXAMPLES: &str = "\
Examples:
  tangor plan smollm2
  tangor plan --shape mistral-7b -p 4096 -n 256
  tangor plan smollm2 --device cpu --json

Nothing is loaded: the plan follows from the model's shape and from what the devices can do, which
is measured for a second unless --no-measure is given.";

/// Explain what would run where, and how fast
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Options {
    #[command(flatten)]
    which: load::Which,

    /// Tokens of the prompt that the prediction is for
    #[arg(short, long, value_name = "TOKENS", default_value_t = 1024, value_parser = positive)]
    prompt: usize,

    /// Tokens of the answer that the prediction is for
    #[arg(short = 'n', long, value_name = "TOKENS", default_value_t = 64, value_parser = positive)]
    new_tokens: usize,

    /// Plan for another machine instead of this one
    #[arg(long, value_name = "NAME", default_value = THIS_MACHINE)]
    profile: String,

    /// Who decides
    #[arg(long, value_enum, default_value_t = Policy::Ours, value_name = "POLICY")]
    policy: Policy,

    /// Take typical rates instead of measuring the devices
    #[arg(long)]
    no_measure: bool,

    /// Print one JSON object: predicted{ttft_s, decode_tps, weights_bytes, kv_bytes},
    /// stages[{stage, m, segments[{device, nodes, predicted_s, measured_s, why}]}]
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    model_options: ModelOptions,
}

/// The profile of the machine that we run on.
const THIS_MACHINE: &str = "this-machine";

/// Every profile there is.
const PROFILES: &[&str] = &[THIS_MACHINE];

/// Who decides what runs where.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Policy {
    // The cost model.
    Ours,
    // The fixed rule of AMD's hybrid flow: prompts on the NPU, tokens on the iGPU.
    Vendor,
}

pub(crate) fn run(options: &Options, global: &Global) -> Outcome {
    if options.profile != THIS_MACHINE {
        let message = format!("there is no profile called {:?}", options.profile);
        return Err(Failure::new(message).hint(format!("there is: {}", PROFILES.join(", "))));
    }
    let graph = load::graph_or_shape(&options.which, global)?;
    let devices = load::profiles(&options.model_options, !options.no_measure)?;
    let model = &options.model_options;
    let asked = load::load_options(model, 1);
    if options.policy == Policy::Vendor {
        return Err(Failure::new(
            "the vendor's policy needs an NPU and a GPU, and there is neither",
        )
        .hint("use --policy ours"));
    }
    let plan = plan(
        &graph,
        &devices,
        &PlanOptions {
            device: asked.device,
            prefill_device: asked.prefill_device,
            decode_device: asked.decode_device,
            max_sequences: asked.max_sequences,
            context: asked.context,
            kv: load::plan_kv(model),
            prompt: options.prompt,
            answer: options.new_tokens,
            ..PlanOptions::default()
        },
    )?;
    match options.json {
        true => terminal::json(&plan.to_json()),
        false => terminal::write(&plan.explain()),
    }
}
