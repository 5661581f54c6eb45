//! `tangor compare`: Tangor and other programs side by side, taking turns.

mod report;
mod server;

use crate::args::{Global, positive};
use crate::error::{Failure, Outcome};
use crate::peers::{self, Argv, Memory, PEERS, Peer, SHALLOW, Spec, Subject, Tools, argv};
use crate::{chart, load, sys, terminal};
use clap::builder::PossibleValuesParser;
use clap::{Args, Subcommand};
use report::{Limits, Report};
use serde::Serialize;
use serde_json::Value;
use std::fmt;
use std::path::PathBuf;
use tangor_eval::{Contender, Metric, Turn};

const EXAMPLES: &str = "\
Examples:
  tangor compare smollm2
  tangor compare smollm2 --weights q4_0 --peers llama.cpp,mistral.rs --chart speed.png
  tangor compare --shape llama-3.2-1b --rounds 3 --json
  tangor compare --shape mistral-7b -p 512 --peers all --chart speed.svg
  tangor compare server smollm2 --streams 8    servers, under load

Every program runs in a process of its own with the same number of threads and its best settings;
they take turns, and medians are compared. A MODEL is read as it is, or, if it is a GGUF file,
stored as --weights says; the matrices of a --shape are random. Programs that cannot read such
weights read the nearest that they can; what each of them ran is printed.

Peers are installed once, with pip and cmake, into the folder `peers` of the store (transformers and
onnxruntime-genai need several gigabytes), which can be deleted at any time. One that cannot be
installed, fails or needs more memory than there is, is left out.";

/// Measure other programs beside Tangor, taking turns
#[derive(Debug, Args)]
#[command(
    after_help = EXAMPLES,
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true
)]
pub(crate) struct Options {
    #[command(subcommand)]
    what: Option<What>,

    #[command(flatten)]
    which: load::Which,

    /// Programs to compare with, or `all` [default: those without a format in their names]
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

    /// Also draw bars, into a file that ends in .svg or .png; may be given several times
    #[arg(long, value_name = "FILE", value_parser = chart::picture)]
    chart: Vec<PathBuf>,

    /// Only install the peers and make their models
    #[arg(long, conflicts_with_all = ["chart", "json"])]
    prepare: bool,

    /// Print one JSON object: prompt_tokens, new_tokens, threads, limits, contenders[{name,
    /// settings, turns[{prefill_tps, ttft_s, decode_tps, decode_deep_tps}], medians, times}],
    /// left_out[{name, reason, why}]
    #[arg(long)]
    json: bool,
}

/// What is compared if not programs that answer one prompt.
#[derive(Debug, Subcommand)]
enum What {
    Server(server::Options),
}

/// The name that stands for all others.
const ALL: &str = "all";

fn peer_names() -> PossibleValuesParser {
    PossibleValuesParser::new(PEERS.iter().map(|peer| peer.name).chain([ALL]))
}

/// A program that is ready to take its turns.
struct Ready {
    contender: Contender,
    /// `None`: Tangor itself.
    peer: Option<&'static Peer>,
    turn: Vec<Argv>,
    /// What its processes wrote.
    wrote: Vec<Value>,
}

/// A program that does not take part.
#[derive(Debug, Serialize)]
struct LeftOut {
    name: String,
    #[serde(flatten)]
    reason: Reason,
    /// The same in words.
    why: String,
}

/// Why a program does not take part.
#[derive(Debug, Serialize)]
#[serde(tag = "reason", rename_all = "snake_case")]
enum Reason {
    /// It needs more memory than there is.
    Memory(Memory),
    /// It could not be installed, could not read the model, or failed.
    Failed,
}

impl fmt::Display for LeftOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} is left out: {}", self.name, terminal::one_line(&self.why))
    }
}

pub(crate) fn run(options: &Options, global: &Global) -> Outcome {
    if let Some(What::Server(options)) = &options.what {
        return server::run(options, global);
    }
    let tools = Tools::open(global)?;
    let spec = Spec {
        prompt: options.prompt,
        new: options.new_tokens.max(2),
        threads: options.threads.unwrap_or_else(|| sys::processor().usable_threads),
    };
    let subject = subject(options, global)?;
    let mut left_out = Vec::new();
    let mut ready = vec![tangor(&tools, &spec, &subject, global)?];
    for peer in PEERS.iter().filter(|peer| options.wants(peer)) {
        if let Some(lack) = subject.too_large(peer.bytes_per_weight) {
            leave_out(peer.name, Reason::Memory(lack), memory_words(lack), &mut left_out);
            continue;
        }
        let one = prepare(peer, &tools, &subject, &spec);
        ready.extend(unless_left_out(one, peer.name, &mut left_out)?);
    }
    if options.prepare {
        for one in &ready {
            terminal::line(&format!("{}: {}", one.contender.name, one.contender.settings))?;
        }
        return Ok(());
    }
    take_turns(&mut ready, options.rounds, &spec, &tools, &mut left_out)?;
    let limits = Limits::of(&ready[0].wrote, &spec);
    let contenders = ready.into_iter().map(|one| one.contender).collect();
    let report =
        Report { model: options.which.name().to_owned(), spec, contenders, limits, left_out };
    for path in &options.chart {
        let bars = report.chart();
        chart::write(path, || bars.svg(), || bars.png())?;
    }
    if options.json { terminal::json(&report.json()?) } else { report.print() }
}

impl Options {
    fn wants(&self, peer: &Peer) -> bool {
        match self.peers.as_slice() {
            [] => peer.usual,
            names => names.iter().any(|name| name == peer.name || name == ALL),
        }
    }
}

/// What is measured.
fn subject(options: &Options, global: &Global) -> Outcome<Subject> {
    let which = &options.which;
    if let Some(name) = which.shape() {
        return Subject::shape(name, which.weights().unwrap_or_default());
    }
    let (installed, checkpoint) = load::open(which.name(), global)?;
    Subject::model(&installed, &checkpoint, which.weights())
}

/// Has this program look into the same store.
fn home(global: &Global) -> Argv {
    global.home.as_ref().map(|home| argv([&"--home", &home.as_path()])).unwrap_or_default()
}

/// This very program, measured from outside as the others are.
fn tangor(tools: &Tools, spec: &Spec, subject: &Subject, global: &Global) -> Outcome<Ready> {
    let program = std::env::current_exe()?;
    let model = tools.ours(subject)?;
    let bench = |prompt: usize| {
        let mut bench = argv([&program, &"bench", &"--json", &"--quiet", &"--runs", &"1"]);
        bench.extend(argv([&"--threads", &spec.threads, &"-p", &prompt, &"-n", &spec.new]));
        bench.extend(home(global));
        bench.extend(model.iter().cloned());
        bench
    };
    let mut prompts = vec![SHALLOW, spec.prompt];
    prompts.dedup();
    let version = env!("CARGO_PKG_VERSION");
    let settings = format!("tangor {version}: {}, 8-bit activations", subject.ours());
    Ok(Ready {
        contender: Contender { name: "tangor".into(), settings, turns: Vec::new() },
        peer: None,
        turn: prompts.into_iter().map(bench).collect(),
        wrote: Vec::new(),
    })
}

/// Installs a peer and makes its model.
fn prepare(peer: &'static Peer, tools: &Tools, subject: &Subject, spec: &Spec) -> Outcome<Ready> {
    let (settings, turn) = peer.prepare(tools, subject, spec)?;
    let contender = Contender { name: peer.name.into(), settings, turns: Vec::new() };
    Ok(Ready { contender, peer: Some(peer), turn, wrote: Vec::new() })
}

fn memory_words(lack: Memory) -> String {
    let (needed, there) = (lack.needed_bytes, lack.available_bytes);
    let (needed, there) = (terminal::bytes(needed), terminal::bytes(there));
    format!("it needs about {needed} of memory, and {there} are free")
}

/// Notes that a program does not take part, with a word on stderr.
fn leave_out(name: &str, reason: Reason, why: String, left_out: &mut Vec<LeftOut>) {
    let out = LeftOut { name: name.to_owned(), reason, why };
    terminal::note(&out.to_string());
    left_out.push(out);
}

/// What came of a peer; if it failed, it is left out.
fn unless_left_out<T>(
    result: Outcome<T>,
    name: &str,
    left_out: &mut Vec<LeftOut>,
) -> Outcome<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(Failure::Error { message, hint }) => {
            let why = hint.map_or(message.clone(), |hint| format!("{message} ({hint})"));
            leave_out(name, Reason::Failed, why, left_out);
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
        for one in ready.iter_mut() {
            let name = one.contender.name.clone();
            if left_out.iter().any(|out| out.name == name) {
                continue;
            }
            let what = format!("turn {round} of {rounds}: {name}");
            let outcome = one.take_turn(&what, spec, tools);
            match one.peer {
                None => outcome?,
                Some(_) => drop(unless_left_out(outcome, &name, left_out)?),
            }
        }
    }
    Ok(())
}

impl Ready {
    fn take_turn(&mut self, what: &str, spec: &Spec, tools: &Tools) -> Outcome {
        let mut turn = Turn::default();
        for argv in &self.turn {
            for value in objects(&tools.step(what, argv)?) {
                match self.peer {
                    None => peers::read_tangor(&value, spec, &mut turn),
                    Some(peer) => peer.read(&value, spec, &mut turn),
                }
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

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn objects_are_found_among_other_lines() {
        assert_eq!(objects("{\n  \"a\": 1\n}\n"), [json!({"a": 1})]);
        assert_eq!(objects("loading…\n{\"a\": 1}\n{\"a\": 2}\n").len(), 2);
        assert_eq!(objects("no"), Vec::<Value>::new());
    }

    #[test]
    fn the_reason_to_leave_a_program_out_is_told_in_numbers_too() {
        let lack = Memory { needed_bytes: 2_000_000_000, available_bytes: 1_000_000_000 };
        let mut out = Vec::new();
        leave_out("peer", Reason::Memory(lack), memory_words(lack), &mut out);
        let failed = Outcome::<()>::Err(Failure::new("no\nway").hint("try again"));
        unless_left_out(failed, "other", &mut out).unwrap();
        let json = serde_json::to_value(&out).unwrap();
        assert_eq!(json[0]["reason"], "memory");
        assert_eq!(json[0]["needed_bytes"], 2_000_000_000_u64);
        assert_eq!(
            (json[1]["reason"].as_str(), json[1]["why"].as_str()),
            (Some("failed"), Some("no\nway (try again)"))
        );
        assert_eq!(out[1].to_string(), "other is left out: no\\nway (try again)");
        let interrupted = Outcome::<()>::Err(Failure::Interrupted);
        assert!(unless_left_out(interrupted, "third", &mut out).is_err());
    }
}
