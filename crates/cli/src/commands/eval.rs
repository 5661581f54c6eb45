//! `tangor eval`: how well a model does, and what its fast configuration costs.

use crate::args::{ActivationsChoice, Global, KvChoice, ModelOptions, positive};
use crate::error::{Failure, Outcome};
use crate::load::{self, Loaded};
use crate::peers::Tools;
use crate::peers::logits::Mode;
use crate::progress::Progress;
use crate::{interrupt, sys, terminal};
use clap::{Args, Subcommand};
use serde_json::{Value, json};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use tangor_engine::plan::model::formats::Checkpoint;
use tangor_engine::text::Specials;
use tangor_eval::{Divergence, ENGLISH, ModelReader, Recorder, Windows, divergence, perplexity};

/// Measure how well a model does
#[derive(Debug, Args)]
pub(crate) struct Options {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    Perplexity(PerplexityOptions),
    Kl(KlOptions),
}

const PERPLEXITY_EXAMPLES: &str = "\
Examples:
  tangor eval perplexity smollm2
  tangor eval perplexity smollm2 --text wiki.test.raw --window 1024 --stride 512
  tangor eval perplexity smollm2 --activations f32 --json";

/// How well a model expects a text: exp of its mean negative log-likelihood per token
#[derive(Debug, Args)]
#[command(after_help = PERPLEXITY_EXAMPLES)]
struct PerplexityOptions {
    /// Name, file or folder of the model
    #[arg(value_name = "MODEL")]
    model: String,

    #[command(flatten)]
    text: TextOptions,

    /// Tokens per window [default: 1024, or the model's context if that is shorter]
    #[arg(long, value_name = "TOKENS", value_parser = positive)]
    window: Option<usize>,

    /// Tokens between the starts of windows [default: half of the window]
    #[arg(long, value_name = "TOKENS", value_parser = positive)]
    stride: Option<usize>,

    /// Also write the tokens of every window and the most likely token after each, as JSON
    #[arg(long, value_name = "FILE")]
    record: Option<PathBuf>,

    #[command(flatten)]
    model_options: ModelOptions,
}

const KL_EXAMPLES: &str = "\
Examples:
  tangor eval kl smollm2
  tangor eval kl smollm2 --kv int8
  tangor eval kl smollm2 --peers llama.cpp
  tangor eval kl smollm2 --text book.txt --tokens 10000 --json

The model is loaded twice: as the options say, and exactly (--activations f32 --kv f32). Both read
the same text, and after every token their expectations are compared. A peer reads the same tokens
in the same windows, as it does if it is not told otherwise and with f32 weights, keys and values.";

/// What 8-bit activations cost: how far a model strays from its own exact arithmetic
#[derive(Debug, Args)]
#[command(after_help = KL_EXAMPLES)]
struct KlOptions {
    /// Name, file or folder of the model
    #[arg(value_name = "MODEL")]
    model: String,

    #[command(flatten)]
    text: TextOptions,

    /// Tokens per window [default: 1024, or the model's context if that is shorter]
    #[arg(long, value_name = "TOKENS", value_parser = positive)]
    window: Option<usize>,

    /// Also measure what another program's arithmetic costs; it is installed if need be
    #[arg(long, value_name = "NAMES", value_delimiter = ',', value_parser = [LLAMA_CPP])]
    peers: Vec<String>,

    #[command(flatten)]
    model_options: ModelOptions,
}

/// The peer whose expectations can be read.
const LLAMA_CPP: &str = "llama.cpp";

/// What is read.
#[derive(Debug, Args)]
struct TextOptions {
    /// Text to read [default: 3,000 tokens of English prose that come with the program]
    #[arg(long, value_name = "FILE")]
    text: Option<PathBuf>,

    /// Read at most so many tokens of it
    #[arg(long, value_name = "N", value_parser = positive)]
    tokens: Option<usize>,

    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Tokens per window where the model's context allows it.
const WINDOW: usize = 1024;

pub(crate) fn run(options: &Options, global: &Global) -> Outcome {
    match &options.what {
        What::Perplexity(options) => run_perplexity(options, global),
        What::Kl(options) => run_kl(options, global),
    }
}

fn run_perplexity(options: &PerplexityOptions, global: &Global) -> Outcome {
    let loaded = load::model(&options.model, &options.model_options, global)?;
    let tokens = options.text.read(&loaded)?;
    let context = options.window.unwrap_or(WINDOW.min(loaded.model.context()));
    let windows = Windows { context, stride: options.stride.unwrap_or(context.div_ceil(2)) };
    let mut reader = Recorder::new(ModelReader::new(&loaded.model)?);
    let report = watched("reading", |watch| perplexity(&mut reader, &tokens, windows, watch))?;
    if let Some(path) = &options.record {
        let record = serde_json::to_string(&json!({ "windows": reader.windows }))?;
        std::fs::write(path, record).map_err(|e| Failure::from(e).about(path.display()))?;
    }
    if options.text.json {
        return terminal::json(&with_model(&report, &options.model)?);
    }
    terminal::facts([
        ("perplexity", format!("{:.4}", report.perplexity)),
        ("nll", format!("{:.5} nats per token", report.nll)),
        ("tokens", format!("{}, each after up to {} others", report.tokens, report.context - 1)),
        ("speed", format!("{:.0} tokens/s", report.tokens_per_s)),
    ])
}

fn run_kl(options: &KlOptions, global: &Global) -> Outcome {
    let exact = ModelOptions {
        activations: ActivationsChoice::F32,
        kv: Some(KvChoice::F32),
        ..options.model_options.clone()
    };
    let fast = load::model(&options.model, &options.model_options, global)?;
    let exact = load::model(&options.model, &exact, global)?;
    let tokens = options.text.read(&fast)?;
    let longest = fast.model.context().min(exact.model.context());
    let context = options.window.unwrap_or(WINDOW.min(longest));
    let (mut reference, mut other) =
        (ModelReader::new(&exact.model)?, ModelReader::new(&fast.model)?);
    let report = watched("comparing", |watch| {
        divergence(&mut reference, &mut other, &tokens, context, watch)
    })?;
    drop((reference, other, exact, fast));
    let peer = match options.peers.as_slice() {
        [] => None,
        _ => Some(llama_cpp(options, &tokens, context, global)?),
    };
    if options.text.json {
        let mut json = with_model(&report, &options.model)?;
        if let Some(peer) = &peer {
            json["peers"] = json!({ LLAMA_CPP: peer });
        }
        return terminal::json(&json);
    }
    let Some(peer) = peer else { return terminal::facts(kl_rows(&report)) };
    let mut table = terminal::columns(&["", "TANGOR", "LLAMA.CPP"], &[]);
    for ((name, ours), (_, theirs)) in kl_rows(&report).into_iter().zip(kl_rows(&peer)) {
        table.add_row([name.to_owned(), ours, theirs]);
    }
    terminal::table(&table)
}

/// What a divergence says, in lines.
fn kl_rows(report: &Divergence) -> [(&'static str, String); 8] {
    let percent = |share: f64| format!("{:.2} %", share * 100.0);
    [
        ("mean KL", format!("{:.3e} nats per token", report.mean_kl)),
        ("median KL", format!("{:.3e}", report.median_kl)),
        ("99 % below", format!("{:.3e}", report.p99_kl)),
        ("largest KL", format!("{:.3e}", report.max_kl)),
        ("same top 1", percent(report.top1_agreement)),
        ("common top 5", percent(report.top5_overlap)),
        (
            "perplexity",
            format!(
                "{:.4}, exact {:.4}, ratio {:.5}",
                report.perplexity, report.reference_perplexity, report.perplexity_ratio
            ),
        ),
        ("tokens", format!("{} in windows of {}", report.tokens, report.context)),
    ]
}

/// How far llama.cpp strays from its own f32 arithmetic over the same weights and tokens.
fn llama_cpp(
    options: &KlOptions,
    tokens: &[u32],
    context: usize,
    global: &Global,
) -> Outcome<Divergence> {
    let (installed, checkpoint) = load::open(&options.model, global)?;
    let Checkpoint::Gguf(_) = checkpoint else {
        return Err(Failure::new(format!("{LLAMA_CPP} reads GGUF files, and the model is none")));
    };
    let tools = Tools::open(global)?;
    tools.install_llama_cpp()?;
    let exact = tools.f32_gguf(&installed.path)?;
    let threads = options.model_options.threads;
    let threads = threads.unwrap_or_else(|| sys::processor().usable_threads);
    let start = |model: &Path, mode| tools.llama_cpp_reader(model, mode, threads, context);
    let mut reference = start(&exact, Mode::Exact)?;
    let mut other = start(&installed.path, Mode::Fast)?;
    watched("comparing llama.cpp", |watch| {
        divergence(&mut reference, &mut other, tokens, context, watch)
    })
}

impl TextOptions {
    /// The tokens to read.
    fn read(&self, loaded: &Loaded) -> Outcome<Vec<u32>> {
        let text = match &self.text {
            None => ENGLISH.to_owned(),
            Some(path) => {
                std::fs::read_to_string(path).map_err(|e| Failure::from(e).about(path.display()))?
            }
        };
        let tokenizer = loaded.tokenizer()?;
        let mut tokens = tokenizer.frame(tokenizer.encode(&text, Specials::AsText)?);
        tokens.truncate(self.tokens.unwrap_or(usize::MAX));
        Ok(tokens)
    }
}

/// Runs an evaluation with a progress bar that Ctrl-C ends.
fn watched<T>(
    what: &str,
    evaluate: impl FnOnce(tangor_eval::Watch<'_>) -> Result<T, tangor_eval::EvalError>,
) -> Outcome<T> {
    let mut progress = Progress::share(what);
    let ctrl_c = interrupt::listen();
    let result = evaluate(&mut |done, total| {
        progress.set(done as u64, total as u64);
        if ctrl_c.pressed() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    Ok(result?)
}

/// A report as JSON, with the model that it is about in front.
fn with_model<T: serde::Serialize>(report: &T, model: &str) -> Outcome<Value> {
    let mut json = json!({ "model": model });
    if let (Value::Object(to), Value::Object(from)) = (&mut json, serde_json::to_value(report)?) {
        to.extend(from);
    }
    Ok(json)
}
