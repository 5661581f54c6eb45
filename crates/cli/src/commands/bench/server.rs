//! `tangor bench server`: a server under load, as its clients see it.

use crate::args::positive;
use crate::error::{Failure, Outcome};
use crate::progress::Progress;
use crate::{interrupt, terminal};
use clap::Args;
use std::ops::ControlFlow;
use std::time::Duration;
use tangor_eval::{LoadReport, LoadSpec, Quantiles, load};

const EXAMPLES: &str = "\
Examples:
  tangor bench server http://localhost:13305
  tangor bench server http://localhost:13305 --streams 32 --seconds 600 --check --leave 10
  tangor bench server http://localhost:8080 --json     any server with OpenAI's completions

Each prompt begins as no other does, so that no cache helps. With --check most questions are asked
alone first, and every answer must be the same under load, chosen at random or not; the others are
answers that a JSON schema holds to a number of their own. A wrong or missing answer is an error.";

/// Measure a server under load
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Options {
    /// Where the server is
    #[arg(value_name = "URL")]
    url: String,

    /// Name of the model [default: the server's own]
    #[arg(short, long, value_name = "NAME")]
    model: Option<String>,

    #[command(flatten)]
    load: Load,

    /// The server's API key
    #[arg(long, env = "TANGOR_API_KEY", hide_env_values = true, value_name = "KEY")]
    key: Option<String>,

    /// Compare answers with what the server says when it is asked nothing else
    #[arg(long)]
    check: bool,

    /// Of a hundred clients, how many leave in the middle of their answer
    #[arg(long, value_name = "PERCENT", default_value_t = 0)]
    leave: usize,

    /// Print one JSON object: answers, checked, wrong, failed, left, prompt_tokens, new_tokens,
    /// seconds, new_tps, ttft_s{p50, p99, max}, gap_s{the same}, errors
    #[arg(long)]
    json: bool,
}

/// How much is asked of a server.
#[derive(Clone, Debug, Args)]
pub(crate) struct Load {
    /// Answers at the same time
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = positive)]
    streams: usize,

    /// How long new answers are asked for
    #[arg(long, value_name = "SECONDS", default_value_t = 20, value_parser = positive)]
    seconds: usize,

    /// Words of each prompt, about as many tokens
    #[arg(short, long, value_name = "WORDS", default_value_t = 96, value_parser = positive)]
    prompt: usize,

    /// Tokens of each answer
    #[arg(short = 'n', long, value_name = "TOKENS", default_value_t = 64, value_parser = positive)]
    new_tokens: usize,
}

impl Load {
    /// What is asked of the server at `url`.
    pub(crate) fn of(&self, url: &str) -> LoadSpec {
        LoadSpec {
            url: url.to_owned(),
            model: None,
            key: None,
            streams: self.streams,
            lasting: Duration::from_secs(self.seconds as u64),
            words: self.prompt,
            new_tokens: self.new_tokens,
            check: false,
            leaving: 0,
        }
    }

    /// Answers at the same time.
    pub(crate) fn streams(&self) -> usize {
        self.streams
    }

    /// More tokens than one prompt and its answer have.
    pub(crate) fn context(&self) -> usize {
        4 * self.prompt + self.new_tokens + 64
    }
}

pub(super) fn run(options: &Options) -> Outcome {
    let spec = LoadSpec {
        model: options.model.clone(),
        key: options.key.clone(),
        check: options.check,
        leaving: options.leave,
        ..options.load.of(&options.url)
    };
    let report = under_load(&spec, "asking")?;
    if options.json {
        terminal::json(&report)?;
    } else {
        print(&report)?;
    }
    match report.failed + report.wrong {
        0 => Ok(()),
        bad => Err(Failure::new(format!("{bad} answers were wrong or missing"))),
    }
}

/// Puts a server under load, with a bar; Ctrl-C ends it.
pub(crate) fn under_load(spec: &LoadSpec, what: &str) -> Outcome<LoadReport> {
    let ctrl_c = interrupt::listen();
    let mut progress = Progress::share(what);
    let report = load(spec, &mut |gone, whole| {
        progress.set(gone as u64, whole as u64);
        if ctrl_c.pressed() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    Ok(report?)
}

fn print(report: &LoadReport) -> Outcome {
    let times = |of: &Quantiles| {
        let ms = |seconds: f64| format!("{:.1} ms", seconds * 1e3);
        format!("{} (p50), {} (p99), {} (most)", ms(of.p50), ms(of.p99), ms(of.max))
    };
    let mut answers = format!("{} in {}", report.answers, terminal::seconds(report.seconds));
    if report.checked > 0 {
        let (checked, wrong) = (report.checked, report.wrong);
        answers.push_str(&format!(", {checked} compared, {wrong} wrong"));
    }
    if report.failed > 0 {
        answers.push_str(&format!(", {} failed", report.failed));
    }
    if report.left > 0 {
        answers.push_str(&format!(", {} clients left", report.left));
    }
    let (read, new, tps) = (report.prompt_tokens, report.new_tokens, report.new_tps);
    terminal::facts(vec![
        ("answers", answers),
        ("tokens", format!("{new} new ({tps:.1} per second), {read} of prompts")),
        ("first token", times(&report.ttft_s)),
        ("between two", times(&report.gap_s)),
    ])?;
    report.errors.iter().for_each(|error| terminal::note(error));
    Ok(())
}
