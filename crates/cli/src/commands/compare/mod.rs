//! `tangor compare`: Tangor and other programs side by side, taking turns.

mod child;
mod peers;
mod tools;

use crate::args::{Global, positive};
use crate::error::{Failure, Outcome};
use crate::{interrupt, load, sys, terminal};
use child::{Argv, argv};
use clap::Args;
use clap::builder::PossibleValuesParser;
use peers::{PEERS, Peer, SHALLOW, Spec};
use serde::Serialize;
use serde_json::{Value, json};
use std::path::PathBuf;
use tangor_engine::plan::model::formats::Checkpoint;
use tangor_engine::plan::model::shapes;
use tangor_eval::{Contender, MachineLimits, Metric, Panel, Turn, chart};
use tools::{Subject, Tools};

const EXAMPLES: &str = "\
Examples:
  tangor compare smollm2
  tangor compare ./model-q4_0.gguf --peers llama.cpp,openvino --chart speed.svg
  tangor compare --shape llama-3.2-1b --rounds 3 --json

Every program runs in a process of its own with the same number of threads and its best settings;
they take turns, and medians are compared. Peers are installed once, with pip and cmake, into the
folder `peers` of the store (transformers and onnxruntime-genai need several gigabytes), which can
be deleted at any time. One that cannot be installed is left out.";

/// Measure other programs beside Tangor, taking turns
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Options {
    #[command(flatten)]
    which: load::Which,

    /// Programs to compare with [default: all but llama.cpp-q4km]
    #[arg(long, value_name = "NAMES", value_delimiter = ',', value_parser = peer_names())]
    peers: Vec<String>,

    /// Tokens of the prompt
    #[arg(short, long, value_name = "TOKENS", default_value_t = 1024, value_parser = positive)]
    prompt: usize,

    /// Tokens of the answer
    #[arg(short = 'n', long, value_name = "TOKENS", default_value_t = 64, value_parser = positive)]
    new_tokens: usize,

    /// Turns of each program
    #[arg(short, long, value_name = "TURNS", default_value_t = 5, value_parser = positive)]
    rounds: usize,

    /// Threads of each program [default: as many as this process may use]
    #[arg(long, env = "TANGOR_THREADS", hide_env_values = true, value_name = "N", value_parser = positive)]
    threads: Option<usize>,

    /// Also draw bars
    #[arg(long, value_name = "FILE.svg", value_parser = svg)]
    chart: Option<PathBuf>,

    /// Print one JSON object: prompt_tokens, new_tokens, threads, limits, contenders[{name,
    /// settings, turns[{prefill_tps, ttft_s, decode_tps, decode_deep_tps}], medians, times}],
    /// left_out[{name, why}]
    #[arg(long)]
    json: bool,
}

fn peer_names() -> PossibleValuesParser {
    PossibleValuesParser::new(PEERS.iter().map(|peer| peer.name))
}

fn svg(path: &str) -> Result<PathBuf, String> {
    match path.to_ascii_lowercase().ends_with(".svg") {
        true => Ok(path.into()),
        false => Err("charts are written as SVG: name a file that ends in .svg".to_owned()),
    }
}

/// A program that is ready to take its turns.
struct Ready {
    contender: Contender,
    turn: Vec<Argv>,
    read: fn(&Value, &Spec, &mut Turn),
    /// What its processes wrote.
    wrote: Vec<Value>,
}

/// A program that does not take part.
#[derive(Debug, Serialize)]
struct LeftOut {
    name: String,
    why: String,
}

/// What the machine could do at most: of its own, and as tokens per second of this model.
#[derive(Debug, Serialize)]
struct Limits {
    machine: MachineLimits,
    prefill_tps: Option<f64>,
    decode_tps: Option<f64>,
    decode_deep_tps: Option<f64>,
}

/// Everything that there is to say.
struct Report {
    model: String,
    spec: Spec,
    contenders: Vec<Contender>,
    limits: Limits,
    left_out: Vec<LeftOut>,
}

pub(crate) fn run(options: &Options, global: &Global) -> Outcome {
    let ctrl_c = interrupt::listen();
    let store = load::store(global)?;
    let tools = Tools { folder: store.root().join("peers"), offline: global.offline, ctrl_c };
    let spec = Spec {
        prompt: options.prompt,
        new: options.new_tokens.max(2),
        threads: options.threads.unwrap_or_else(|| sys::processor().usable_threads),
    };
    let subject = subject(options, global)?;
    let mut left_out = Vec::new();
    let mut ready = vec![tangor(options, &spec, &subject, global)?];
    for peer in PEERS.iter().filter(|peer| options.wants(peer)) {
        let one = prepare(peer, &tools, &subject, &spec);
        ready.extend(unless_left_out(one, peer.name, &mut left_out)?);
    }
    take_turns(&mut ready, options.rounds, &spec, &tools, &mut left_out)?;
    let limits = limits(&ready[0].wrote, &spec);
    let report = Report {
        model: options.which.name().to_owned(),
        spec,
        contenders: ready.into_iter().map(|one| one.contender).collect(),
        limits,
        left_out,
    };
    if let Some(path) = &options.chart {
        let picture = report.chart();
        std::fs::write(path, picture).map_err(|e| Failure::from(e).about(path.display()))?;
    }
    if options.json { terminal::json(&report.json()?) } else { report.print() }
}

impl Options {
    fn wants(&self, peer: &Peer) -> bool {
        match self.peers.as_slice() {
            [] => peer.usual,
            names => names.iter().any(|name| name == peer.name),
        }
    }
}

/// What is measured, in the form that it has.
fn subject(options: &Options, global: &Global) -> Outcome<Subject> {
    if let Some(name) = options.which.shape() {
        return Ok(Subject::Shape(name.to_owned(), config_json(name)?));
    }
    let (installed, checkpoint) = load::open(options.which.name(), global)?;
    Ok(match checkpoint {
        Checkpoint::Gguf(_) => Subject::Gguf(installed.path),
        Checkpoint::Hf(_) => Subject::Folder(installed.path),
        Checkpoint::Oga(_) => Subject::Oga(installed.path),
    })
}

/// A `config.json` of a published shape, with what speed depends on.
fn config_json(name: &str) -> Outcome<Value> {
    let config = shapes::config(name)?;
    let hyper = &config.hyper;
    Ok(json!({
        "model_type": hyper.arch,
        "vocab_size": hyper.vocab,
        "hidden_size": hyper.hidden,
        "intermediate_size": hyper.ffn,
        "num_hidden_layers": hyper.layers,
        "num_attention_heads": hyper.heads,
        "num_key_value_heads": hyper.kv_heads,
        "head_dim": hyper.head_dim,
        "max_position_embeddings": hyper.context,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "sliding_window": config.windows.first().copied().flatten(),
        "tie_word_embeddings": config.tied,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }))
}

/// This very program, measured from outside as the others are.
fn tangor(options: &Options, spec: &Spec, subject: &Subject, global: &Global) -> Outcome<Ready> {
    let program = std::env::current_exe()?;
    let bench = |prompt: usize| {
        let mut bench = argv([&program, &"bench", &"--json", &"--quiet", &"--runs", &"1"]);
        bench.extend(argv([&"--threads", &spec.threads, &"-p", &prompt, &"-n", &spec.new]));
        if let Some(home) = &global.home {
            bench.extend(argv([&"--home", &home.as_path()]));
        }
        match subject {
            Subject::Shape(name, _) => bench.extend(argv([&"--shape", &name.as_str()])),
            Subject::Gguf(path) | Subject::Folder(path) | Subject::Oga(path) => {
                bench.extend(argv([&path.as_path()]));
            }
        }
        bench
    };
    let mut prompts = vec![SHALLOW, spec.prompt];
    prompts.dedup();
    let version = env!("CARGO_PKG_VERSION");
    let format = if options.which.shape().is_some() { "w4 g32" } else { "its weights" };
    Ok(Ready {
        contender: Contender {
            name: "tangor".into(),
            settings: format!("tangor {version}: {format}, 8-bit activations"),
            turns: Vec::new(),
        },
        turn: prompts.into_iter().map(bench).collect(),
        read: peers::read_tangor,
        wrote: Vec::new(),
    })
}

/// Installs a peer and its model.
fn prepare(peer: &Peer, tools: &Tools, subject: &Subject, spec: &Spec) -> Outcome<Ready> {
    let version = (peer.install)(tools)?;
    let model = (peer.prepare)(tools, subject)?;
    Ok(Ready {
        contender: Contender {
            name: peer.name.into(),
            settings: format!("{version}: {}", peer.settings),
            turns: Vec::new(),
        },
        turn: (peer.measure)(tools, &model, spec),
        read: peer.read,
        wrote: Vec::new(),
    })
}

/// What came of a peer; if it failed, it is left out with a word on stderr.
fn unless_left_out<T>(
    result: Outcome<T>,
    name: &str,
    left_out: &mut Vec<LeftOut>,
) -> Outcome<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(Failure::Error { message, hint }) => {
            let why = hint.map_or(message.clone(), |hint| format!("{message} ({hint})"));
            terminal::note(&format!("{name} is left out: {}", terminal::one_line(&why)));
            left_out.push(LeftOut { name: name.to_owned(), why });
            Ok(None)
        }
        Err(other) => Err(other),
    }
}

/// A B C, A B C, …. A peer that fails is out from then on; without Tangor there is nothing to
/// compare.
fn take_turns(
    ready: &mut [Ready],
    rounds: usize,
    spec: &Spec,
    tools: &Tools,
    left_out: &mut Vec<LeftOut>,
) -> Outcome {
    for round in 1..=rounds {
        for (index, one) in ready.iter_mut().enumerate() {
            let name = one.contender.name.clone();
            if left_out.iter().any(|out| out.name == name) {
                continue;
            }
            let what = format!("turn {round} of {rounds}: {name}");
            let outcome = one.take_turn(&what, spec, tools);
            match (index, outcome) {
                (0, outcome) => outcome?,
                (_, outcome) => drop(unless_left_out(outcome, &name, left_out)?),
            }
        }
    }
    Ok(())
}

impl Ready {
    fn take_turn(&mut self, what: &str, spec: &Spec, tools: &Tools) -> Outcome {
        let mut turn = Turn::default();
        for argv in &self.turn {
            for value in objects(&child::step(what, argv, &tools.ctrl_c)?) {
                (self.read)(&value, spec, &mut turn);
                self.wrote.push(value);
            }
        }
        if Metric::ALL.iter().all(|metric| metric.of(&turn).is_none()) {
            return Err(Failure::new("it ran and measured nothing"));
        }
        self.contender.turns.push(turn);
        Ok(())
    }
}

/// The JSON objects that a program wrote: one, or one per line among other lines.
fn objects(text: &str) -> Vec<Value> {
    match serde_json::from_str(text) {
        Ok(value) => vec![value],
        Err(_) => text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect(),
    }
}

/// The machine's limits as Tangor has measured them: the best of all turns.
fn limits(reports: &[Value], spec: &Spec) -> Limits {
    let best = |of: &dyn Fn(&Value) -> Option<f64>| {
        reports.iter().filter_map(of).filter(|value| value.is_finite()).reduce(f64::max)
    };
    let tps = |prompt: usize, rate: &str, share: &str| {
        let (rate, share) = (format!("{rate}_tps"), share.to_owned());
        best(&|report: &Value| {
            let here = report["prompt_tokens"].as_u64() == Some(prompt as u64);
            let rate = report[&rate].as_f64().filter(|_| here)?;
            Some(rate / report["of_limit"][&share].as_f64()?)
        })
    };
    let machine = |name: &str| best(&|report: &Value| report["limits"][name].as_f64());
    Limits {
        machine: MachineLimits {
            int8_ops_per_s: machine("int8_ops_per_s").unwrap_or(f64::NAN),
            read_bytes_per_s: machine("read_bytes_per_s").unwrap_or(f64::NAN),
        },
        prefill_tps: tps(spec.prompt, "prefill", "prefill"),
        decode_tps: tps(SHALLOW, "decode", "decode"),
        decode_deep_tps: tps(spec.prompt, "decode", "decode"),
    }
}

impl Report {
    fn json(&self) -> Outcome<Value> {
        let ours = &self.contenders[0];
        let contenders = self.contenders.iter().map(|one| {
            let mut json = serde_json::to_value(one)?;
            for (name, metric) in NAMES {
                json["medians"][name] = serde_json::to_value(one.spread(metric))?;
                json["times"][name] = ours.times(one, metric).into();
            }
            Ok(json)
        });
        Ok(json!({
            "model": self.model,
            "prompt_tokens": self.spec.prompt,
            "new_tokens": self.spec.new,
            "threads": self.spec.threads,
            "limits": self.limits,
            "contenders": contenders.collect::<Outcome<Vec<Value>>>()?,
            "left_out": self.left_out,
        }))
    }

    fn print(&self) -> Outcome {
        let Spec { prompt, new, threads } = self.spec;
        let machine = &self.limits.machine;
        terminal::facts([
            ("model", self.model.clone()),
            ("requests", format!("{prompt} tokens read, {new} written, {threads} threads")),
            (
                "limits",
                format!(
                    "{:.2} T int8 operations/s, {:.1} GB/s read",
                    machine.int8_ops_per_s / 1e12,
                    machine.read_bytes_per_s / 1e9
                ),
            ),
        ])?;
        terminal::line("")?;
        let deep = format!("DECODE AT {prompt}");
        let headings = ["MEDIAN (RANGE)", "PREFILL", "TTFT", "DECODE AT 0", &deep];
        let mut table = terminal::columns(&headings, &[1, 2, 3, 4]);
        for one in &self.contenders {
            let cells = Metric::ALL.map(|metric| cell(one, metric));
            table.add_row(std::iter::once(one.name.clone()).chain(cells));
        }
        let limits = &self.limits;
        let of = |limit: Option<f64>| limit.map_or_else(String::new, rate);
        table.add_row([
            "limit of the machine".to_owned(),
            of(limits.prefill_tps),
            of(limits.prefill_tps.map(|tps| prompt as f64 / tps)),
            of(limits.decode_tps),
            of(limits.decode_deep_tps),
        ]);
        let ours = &self.contenders[0];
        for one in self.contenders.iter().skip(1) {
            let cells = Metric::ALL.map(|metric| {
                let times = ours.times(one, metric);
                times.map_or_else(String::new, |times| format!("{times:.2} x"))
            });
            let name = format!("tangor / {}", one.name);
            table.add_row(std::iter::once(name).chain(cells));
        }
        terminal::table(&table)?;
        terminal::line("")?;
        terminal::line("prefill and decode in tokens/s, the time to the first token in s")?;
        for one in &self.contenders {
            terminal::line(&format!("{}: {}", one.name, one.settings))?;
        }
        for out in &self.left_out {
            terminal::line(&format!("left out: {}: {}", out.name, terminal::one_line(&out.why)))?;
        }
        Ok(())
    }

    fn chart(&self) -> String {
        let Spec { prompt, threads, .. } = self.spec;
        let panel = |title: String, metric, limit| Panel { title, metric, limit };
        let panels = [
            panel(
                format!("prefill of {prompt} tokens, tokens/s"),
                Metric::Prefill,
                self.limits.prefill_tps,
            ),
            panel("decode, tokens/s".into(), Metric::Decode, self.limits.decode_tps),
            panel(
                format!("decode after {prompt} tokens, tokens/s"),
                Metric::DecodeDeep,
                self.limits.decode_deep_tps,
            ),
        ];
        let model = terminal::one_line(&self.model);
        chart(&format!("{model}, {threads} threads"), &self.contenders, &panels)
    }
}

/// The metrics by their keys in JSON.
const NAMES: [(&str, Metric); 4] = [
    ("prefill_tps", Metric::Prefill),
    ("ttft_s", Metric::Ttft),
    ("decode_tps", Metric::Decode),
    ("decode_deep_tps", Metric::DecodeDeep),
];

/// `median (least..greatest)`.
fn cell(one: &Contender, metric: Metric) -> String {
    one.spread(metric).map_or_else(String::new, |spread| {
        format!("{} ({}..{})", rate(spread.median), rate(spread.min), rate(spread.max))
    })
}

/// A number with three digits or so.
fn rate(value: f64) -> String {
    let digits = match value {
        v if v >= 100.0 => 0,
        v if v >= 10.0 => 1,
        _ => 2,
    };
    format!("{value:.digits$}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_are_found_among_other_lines() {
        assert_eq!(objects("{\n  \"a\": 1\n}\n"), [json!({"a": 1})]);
        assert_eq!(objects("loading…\n{\"a\": 1}\n{\"a\": 2}\n").len(), 2);
        assert_eq!(objects("no"), Vec::<Value>::new());
    }

    #[test]
    fn limits_follow_from_rates_and_their_shares() {
        let report = |prompt: usize, share: f64| {
            json!({
                "prompt_tokens": prompt, "prefill_tps": 50.0, "decode_tps": 8.0,
                "limits": {"int8_ops_per_s": 1e12, "read_bytes_per_s": 2e10},
                "of_limit": {"prefill": share, "decode": share},
            })
        };
        let spec = Spec { prompt: 100, new: 4, threads: 1 };
        let limits = limits(&[report(100, 0.5), report(100, 0.25), report(SHALLOW, 0.1)], &spec);
        assert_eq!(limits.prefill_tps, Some(200.0));
        assert_eq!((limits.decode_tps, limits.decode_deep_tps), (Some(80.0), Some(32.0)));
        assert_eq!(limits.machine.read_bytes_per_s, 2e10);
    }

    #[test]
    fn every_published_shape_has_a_config() {
        for name in shapes::names() {
            assert!(config_json(name).unwrap()["hidden_size"].as_u64() > Some(0), "{name}");
        }
    }
}
