//! The command line: what every command shares. Each command's own options stand in its file.

use crate::commands;
use clap::builder::FalseyValueParser;
use clap::{Arg, Args, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

/// What follows the list of commands in `tangor --help`.
const AFTER_HELP: &str = "\
MODEL is a name from the store (smollm2, org/repo, org/repo:file), a file (model.gguf) or a folder
(a Hugging Face checkpoint or an ONNX Runtime GenAI model).

Results go to stdout; progress, statistics and errors go to stderr. Long options may be shortened as
long as they stay unique. Exit codes: 0 success, 1 failure, 2 wrong usage, 130 interrupted.

Examples:
  tangor run smollm2 -p 'What is the capital of France?'
  git diff | tangor run smollm2 --system 'Summarise this change in one line.'
  tangor chat smollm2
  tangor bench smollm2 -p 512 -n 128";

/// Runs 4-bit language models on this PC's own processors.
#[derive(Debug, Parser)]
#[command(
    name = "tangor",
    version,
    infer_long_args = true,
    subcommand_required = true,
    arg_required_else_help = true,
    after_help = AFTER_HELP
)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// The name under which lemonade starts a program for its models.
pub(crate) const RYZENAI_SERVER: &str = "ryzenai-server";

/// The command line that a program of this one's name would have: as `ryzenai-server` it is the
/// server in that one's place, whose arguments then follow.
pub(crate) fn as_named(mut args: Vec<OsString>) -> Vec<OsString> {
    let stem = args.first().and_then(|name| Path::new(name).file_stem().map(OsStr::to_owned));
    if stem.is_some_and(|stem| stem.eq_ignore_ascii_case(RYZENAI_SERVER)) {
        let words = ["serve", "--compat", RYZENAI_SERVER].map(OsString::from);
        args.splice(1..1, words);
    }
    args
}

/// Parses a command line, or ends the program as clap does: with help, or what is wrong.
pub(crate) fn parse(args: Vec<OsString>) -> Cli {
    let matches = without_empty_variables(Cli::command()).get_matches_from(args);
    Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit())
}

/// A variable that is set to nothing is not set: compose files and units do so routinely.
fn without_empty_variables(command: clap::Command) -> clap::Command {
    let named = |arg: Arg| {
        let empty = arg
            .get_env()
            .is_some_and(|name| std::env::var_os(name).is_some_and(|value| value.is_empty()));
        if empty { arg.env(None::<&'static str>) } else { arg }
    };
    command.mut_args(named).mut_subcommands(without_empty_variables)
}

/// Options of every command.
#[derive(Debug, Args)]
pub(crate) struct Global {
    /// Folder of the model store [default: the user's data folder]
    #[arg(long, global = true, env = "TANGOR_HOME", value_name = "DIR", hide_env_values = true)]
    pub(crate) home: Option<PathBuf>,

    /// Use only what is on this machine: download nothing
    #[arg(
        long,
        global = true,
        env = "TANGOR_OFFLINE",
        hide_env_values = true,
        value_parser = FalseyValueParser::new()
    )]
    pub(crate) offline: bool,

    /// No progress and no remarks on stderr, only errors
    #[arg(short, long, global = true)]
    pub(crate) quiet: bool,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Run(commands::run::Options),
    Chat(commands::chat::Options),
    Serve(commands::serve::Options),
    Pull(commands::pull::Options),
    #[command(visible_alias = "ls")]
    List(commands::list::Options),
    Rm(commands::rm::Options),
    Show(commands::show::Options),
    Inspect(commands::inspect::Options),
    Plan(commands::plan::Options),
    Bench(commands::bench::Options),
    Compare(commands::compare::Options),
    Eval(commands::eval::Options),
    Doctor(commands::doctor::Options),
    Completions(commands::completions::Options),
}

/// Where and how a model runs: the same options wherever one does.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Where and how it runs")]
pub(crate) struct ModelOptions {
    /// Processor to use; `auto` and `hybrid` choose for each phase among those present
    #[arg(long, value_enum, default_value_t = DeviceChoice::Auto, value_name = "DEVICE")]
    pub(crate) device: DeviceChoice,

    /// Processor that reads the prompt [default: as --device]
    #[arg(long, value_enum, value_name = "DEVICE", hide_possible_values = true)]
    pub(crate) prefill_device: Option<DeviceChoice>,

    /// Processor that writes the answer [default: as --device]
    #[arg(long, value_enum, value_name = "DEVICE", hide_possible_values = true)]
    pub(crate) decode_device: Option<DeviceChoice>,

    /// Graphics processor: its number in `tangor doctor`, or part of its name [default: the best]
    #[arg(long, env = "TANGOR_GPU", hide_env_values = true, value_name = "ADAPTER")]
    pub(crate) gpu: Option<String>,

    /// ONNX Runtime's provider for the NPU, and the hardware behind it where it has several: what
    /// `tangor doctor` lists, as `OpenVINOExecutionProvider:npu` [default: the first NPU]
    #[arg(long, env = "TANGOR_NPU", hide_env_values = true, value_name = "PROVIDER[:KIND]")]
    pub(crate) npu: Option<String>,

    /// When a device is lost: `continue` on the others, or `fail`
    #[arg(long, value_enum, default_value_t = OnLostChoice::Continue, value_name = "HOW")]
    pub(crate) on_lost: OnLostChoice,

    /// Threads of the CPU [default: as many as this process may use]
    #[arg(long, env = "TANGOR_THREADS", hide_env_values = true, value_name = "N", value_parser = positive)]
    pub(crate) threads: Option<usize>,

    /// How activations enter matrix products: `f32` is exact, `int8` is fast
    #[arg(long, value_enum, default_value_t = ActivationsChoice::Int8, value_name = "TYPE")]
    pub(crate) activations: ActivationsChoice,

    /// Element type of cached keys and values [default: bf16, with --activations f32: f32]
    #[arg(long, value_enum, value_name = "TYPE")]
    pub(crate) kv: Option<KvChoice>,

    /// Longest sequence, prompt and answer together [default: the model's, as memory allows]
    #[arg(long, value_name = "TOKENS", value_parser = positive)]
    pub(crate) context: Option<usize>,

    /// Instruction set of the CPU kernels, for comparisons [default: the fastest, measured]
    #[arg(long, env = "TANGOR_ISA", hide_env_values = true, value_name = "ISA")]
    pub(crate) isa: Option<String>,
}

/// Whether tokens are proposed for the model to check: the same options wherever one answers.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Where and how it runs")]
pub(crate) struct SpeculationOptions {
    /// Propose what followed the same words before and check it in one step: `auto` where that
    /// pays, `ngram` always. Answers stay the same [default: auto; of a bench: off]
    #[arg(long, value_enum, value_name = "HOW")]
    pub(crate) speculate: Option<SpeculateChoice>,

    /// A smaller model of the same vocabulary that proposes tokens instead
    #[arg(long, value_name = "MODEL", conflicts_with = "speculate")]
    pub(crate) draft: Option<String>,
}

/// A choice of proposals.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum SpeculateChoice {
    // Where it pays
    Auto,
    // Never
    Off,
    // Always
    Ngram,
}

/// A choice of processor. Plain comments on the choices: help shows their names alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum DeviceChoice {
    // Whatever is fastest
    Auto,
    // Another processor for each phase where that pays
    Hybrid,
    // Neural processor
    Npu,
    // Graphics processor
    Gpu,
    // Central processor
    Cpu,
}

/// A choice of what happens when a device is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum OnLostChoice {
    // Answers go on, on the devices that are left
    Continue,
    // Answers fail
    Fail,
}

/// A choice of activations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ActivationsChoice {
    // Rounded to 8 bits per row and group
    Int8,
    // As they are: the exact mode
    F32,
}

/// A choice of KV cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum KvChoice {
    // 2 bytes per element, 8 of their bits significant: the fastest
    Bf16,
    // 2 bytes per element, 11 of their bits significant
    F16,
    // 1 byte per element: half the memory
    Int8,
    // 4 bytes per element: for the exact mode
    F32,
}

/// How the next token is chosen.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Sampling")]
pub(crate) struct SamplingOptions {
    /// Most tokens to generate [default: until the model stops or the context is full]
    #[arg(short = 'n', long, value_name = "N", value_parser = positive)]
    pub(crate) max_tokens: Option<usize>,

    /// 0 always takes the likeliest token; 1 samples as the model predicts [default: 0]
    #[arg(long, value_name = "T", value_parser = at_least_zero)]
    pub(crate) temperature: Option<f32>,

    /// Choose among the K likeliest tokens only; 0 is off
    #[arg(long, value_name = "K")]
    pub(crate) top_k: Option<usize>,

    /// Choose among the likeliest tokens that together have this probability; 1 is off
    #[arg(long, value_name = "P", value_parser = share)]
    pub(crate) top_p: Option<f32>,

    /// Leave out tokens less likely than this share of the likeliest; 0 is off
    #[arg(long, value_name = "P", value_parser = share)]
    pub(crate) min_p: Option<f32>,

    /// Seed of the random choices: the same seed gives the same answer
    #[arg(long, value_name = "SEED")]
    pub(crate) seed: Option<u64>,

    /// End the answer before this text; may be given several times
    #[arg(long, value_name = "TEXT")]
    pub(crate) stop: Vec<String>,

    /// Divide the score of tokens that occurred already by this; 1 is off
    #[arg(long, visible_alias = "repeat-penalty", value_name = "X", value_parser = above_zero)]
    pub(crate) repetition_penalty: Option<f32>,

    /// Subtract this from the score of tokens that occurred in the answer; 0 is off
    #[arg(long, value_name = "X", value_parser = finite, allow_negative_numbers = true)]
    pub(crate) presence_penalty: Option<f32>,

    /// Subtract this from a token's score for each time it occurred in the answer; 0 is off
    #[arg(long, value_name = "X", value_parser = finite, allow_negative_numbers = true)]
    pub(crate) frequency_penalty: Option<f32>,
}

/// A count of one or more.
pub(crate) fn positive(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) | Err(_) => Err("a whole number of 1 or more is expected".to_owned()),
        Ok(value) => Ok(value),
    }
}

/// A finite number.
pub(crate) fn finite(text: &str) -> Result<f32, String> {
    let value = text.parse().ok().filter(|value: &f32| value.is_finite());
    value.ok_or_else(|| "a number is expected".to_owned())
}

/// A number of 0 or more.
pub(crate) fn at_least_zero(text: &str) -> Result<f32, String> {
    finite(text)
        .ok()
        .filter(|value| *value >= 0.0)
        .ok_or("a number of 0 or more is expected".into())
}

/// A number above 0.
pub(crate) fn above_zero(text: &str) -> Result<f32, String> {
    finite(text).ok().filter(|value| *value > 0.0).ok_or("a number above 0 is expected".into())
}

/// A number from 0 to 1.
pub(crate) fn share(text: &str) -> Result<f32, String> {
    let value = finite(text).ok().filter(|value| (0.0..=1.0).contains(value));
    value.ok_or("a number from 0 to 1 is expected".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn under_another_programs_name_it_is_that_program() {
        let named = |line: &str| -> Vec<String> {
            let args = line.split(' ').map(OsString::from).collect();
            as_named(args).into_iter().map(|arg| arg.into_string().unwrap()).collect()
        };
        for name in ["ryzenai-server", "/opt/x/ryzenai-server.exe", "./RyzenAI-Server.exe"] {
            let args = named(&format!("{name} -m folder --port 8001 --ctx-size 4096 --verbose"));
            let rest =
                "serve --compat ryzenai-server -m folder --port 8001 --ctx-size 4096 --verbose";
            assert_eq!(args[1..].join(" "), rest);
            let Command::Serve(options) = Cli::try_parse_from(args).unwrap().command else {
                panic!("another command");
            };
            assert!(options.is_child());
        }
        assert_eq!(named("/bin/tangor serve -m x").len(), 4);
    }

    #[test]
    fn numbers_outside_their_range_are_refused() {
        for text in ["0", "-1", "x", "", "99999999999999999999999"] {
            assert!(positive(text).is_err(), "{text}");
        }
        for text in ["-0.1", "nan", "inf", ""] {
            assert!(at_least_zero(text).is_err(), "{text}");
        }
        assert!(share("1.01").is_err());
        assert!(above_zero("0").is_err());
        assert_eq!(finite("-1.5"), Ok(-1.5));
    }
}
