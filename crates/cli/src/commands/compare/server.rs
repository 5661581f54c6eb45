//! `tangor compare server`: servers under the same load, taking turns.

use crate::args::{Global, SpeculateChoice, positive};
use crate::commands::bench::server::{Load, under_load};
use crate::error::{Failure, Outcome};
use crate::peers::{Argv, Form, Served, Subject, Tools, argv};
use crate::{load, sys, terminal};
use clap::builder::TypedValueParser;
use clap::{Args, ValueEnum};
use serde::Serialize;
use std::path::Path;
use tangor_engine::plan::model::Mixture;
use tangor_eval::{LoadReport, Spread};

const EXAMPLES: &str = "\
Examples:
  tangor compare server smollm2
  tangor compare server smollm2 --weights q4_0 --speculate off
  tangor compare server ./model.gguf --streams 8 --seconds 30 --rounds 5 --json

`tangor serve` and llama.cpp's `llama-server` read the same GGUF file with the same number of
threads. Answers go on after the model is done and then repeat themselves, which Tangor proposes
ahead unless --speculate is off. Each is started for its turn, put under the load of `tangor bench
server`, and ended. Of the numbers of all turns the medians are compared.";

/// Measure Tangor's server beside llama.cpp's, under load
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Options {
    /// A GGUF model: a name, or a path
    #[arg(value_name = "MODEL")]
    model: String,

    #[command(flatten)]
    load: Load,

    /// Store the model so, for both [default: the file as it is]
    #[arg(long, value_name = "FORMAT",
          value_parser = load::mixture_names().try_map(|name| name.parse::<Mixture>()))]
    weights: Option<Mixture>,

    /// Whether Tangor proposes tokens ahead [default: as `tangor serve`]
    #[arg(long, value_enum, value_name = "HOW")]
    speculate: Option<SpeculateChoice>,

    /// Turns of each server
    #[arg(short, long, value_name = "TURNS", default_value_t = 3, value_parser = positive)]
    rounds: usize,

    /// Threads of each server [default: as many as this process may use]
    #[arg(long, env = "TANGOR_THREADS", hide_env_values = true, value_name = "N", value_parser = positive)]
    threads: Option<usize>,

    /// Print one JSON object: threads, servers[{name, turns[{the report of `bench server`,
    /// peak_rss_bytes}], new_tps, ttft_s, gap_p99_s (each median, min, max)}]
    #[arg(long)]
    json: bool,
}

/// A server and its turns.
#[derive(Debug, Serialize)]
struct Contender {
    name: String,
    #[serde(skip)]
    argv: Argv,
    turns: Vec<Turn>,
    new_tps: Option<Spread>,
    ttft_s: Option<Spread>,
    gap_p99_s: Option<Spread>,
}

/// What a server did in one turn.
#[derive(Debug, Serialize)]
struct Turn {
    #[serde(flatten)]
    load: LoadReport,
    peak_rss_bytes: Option<u64>,
}

/// What `--json` prints.
#[derive(Debug, Serialize)]
struct Report {
    threads: usize,
    servers: Vec<Contender>,
}

pub(super) fn run(options: &Options, global: &Global) -> Outcome {
    let tools = Tools::open(global)?;
    let threads = options.threads.unwrap_or_else(|| sys::processor().usable_threads);
    let (installed, checkpoint) = load::open(&options.model, global)?;
    let subject = Subject::model(&installed, &checkpoint, options.weights)?;
    let version = tools.install_llama_cpp()?;
    let model = tools.make(&subject, Form::Gguf)?;
    let mut servers = vec![
        Contender::new("tangor".into(), tangor(&model, threads, options, global)?),
        Contender::new(version, llama_server(&tools, &model, threads, &options.load)),
    ];
    for round in 1..=options.rounds {
        for server in &mut servers {
            let what = format!("turn {round} of {}: {}", options.rounds, server.name);
            server.take_turn(&what, &options.load)?;
        }
    }
    servers.iter_mut().for_each(Contender::sum_up);
    let report = Report { threads, servers };
    if options.json { terminal::json(&report) } else { report.print(&options.load) }
}

fn tangor(model: &Path, threads: usize, options: &Options, global: &Global) -> Outcome<Argv> {
    let load = &options.load;
    let program = std::env::current_exe()?;
    let mut serve = argv([&program, &"serve", &model, &"--log", &"off", &"--threads", &threads]);
    serve.extend(argv([&"--sequences", &load.streams(), &"--context", &load.context()]));
    if let Some(how) = options.speculate.and_then(|how| how.to_possible_value()) {
        serve.extend(argv([&"--speculate", &how.get_name()]));
    }
    serve.extend(super::home(global));
    Ok(serve)
}

/// With as many places as there are streams, each with room for a prompt and its answer.
fn llama_server(tools: &Tools, model: &Path, threads: usize, load: &Load) -> Argv {
    let context = load.streams() * load.context();
    let mut serve = argv([&tools.llama_cpp("llama-server"), &"-m", &model, &"-t", &threads]);
    serve.extend(argv([&"-np", &load.streams(), &"-c", &context, &"--no-webui"]));
    serve
}

impl Contender {
    fn new(name: String, argv: Argv) -> Self {
        Self { name, argv, turns: Vec::new(), new_tps: None, ttft_s: None, gap_p99_s: None }
    }

    fn take_turn(&mut self, what: &str, load: &Load) -> Outcome {
        let served = Served::start(&self.argv)?;
        let report = under_load(&load.of(served.url()), what)?;
        if let Some(error) = report.errors.first() {
            return Err(Failure::new(error.clone()).about(what));
        }
        self.turns.push(Turn { load: report, peak_rss_bytes: served.peak_rss_bytes() });
        Ok(())
    }

    fn sum_up(&mut self) {
        let spread =
            |of: fn(&Turn) -> f64| Spread::of(&self.turns.iter().map(of).collect::<Vec<f64>>());
        self.new_tps = spread(|turn| turn.load.new_tps);
        self.ttft_s = spread(|turn| turn.load.ttft_s.p50);
        self.gap_p99_s = spread(|turn| turn.load.gap_s.p99);
    }
}

impl Report {
    fn print(&self, load: &Load) -> Outcome {
        let ms = |of: Option<Spread>| of.map_or("-".into(), |of| format!("{:.1}", of.median * 1e3));
        let headings = ["SERVER", "NEW TOKENS/S", "FIRST TOKEN MS", "GAP P99 MS", "MEMORY"];
        let mut table = terminal::columns(&headings, &[2, 3, 4]);
        for server in &self.servers {
            let memory = server.turns.iter().filter_map(|turn| turn.peak_rss_bytes).max();
            let tps = server.new_tps.map_or("-".into(), |of| {
                format!("{:.1} ({:.1} to {:.1})", of.median, of.min, of.max)
            });
            table.add_row([
                server.name.clone(),
                tps,
                ms(server.ttft_s),
                ms(server.gap_p99_s),
                memory.map_or("-".into(), terminal::bytes),
            ]);
        }
        terminal::table(&table)?;
        if let [ours, theirs] = self.servers.as_slice()
            && let (Some(a), Some(b)) = (ours.new_tps, theirs.new_tps)
            && let (Some(c), Some(d)) = (ours.ttft_s, theirs.ttft_s)
        {
            let (tps, ttft) = (a.median / b.median, d.median / c.median);
            let (streams, threads) = (load.streams(), self.threads);
            terminal::line(&format!(
                "{streams} streams, {threads} threads: {tps:.2} times the tokens, the first one \
                 {ttft:.2} times as soon"
            ))?;
        }
        Ok(())
    }
}
