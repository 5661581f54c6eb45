//! `tangor run`: one answer, streamed.

use crate::answer::{self, Answer};
use crate::args::{Global, ModelOptions, SamplingOptions, SpeculationOptions};
use crate::error::{Failure, Outcome};
use crate::load::{self, Loaded};
use crate::prompt::{Role, Turn};
use crate::terminal;
use clap::Args;
use serde::Serialize;
use std::io::Read;
use std::path::PathBuf;
use tangor_engine::plan::{Plan, SegmentPlan, Stage, StagePlan};

const EXAMPLES: &str = "\
Examples:
  tangor run smollm2 -p 'What is the capital of France?'
  tangor run smollm2 -f question.txt -n 200
  git diff | tangor run smollm2 --system 'Summarise this change in one line.'
  tangor run ./model.gguf --raw -p 'Once upon a time' --temperature 0.8 --seed 7
  tangor run smollm2 -p Hello --json

The prompt is -p, or the file -f, or standard input. It is put into the model's own chat template
unless --raw is given. A model that is not on this machine is fetched first.

Answers are the same every time: the likeliest token is taken, unless the model's publisher
recommends sampling (generation_config.json) or --temperature asks for it. With a --seed, sampled
answers are reproducible too.";

/// Answer one prompt
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Options {
    /// Name, file or folder of the model
    #[arg(value_name = "MODEL")]
    model: String,

    /// The prompt
    #[arg(short, long, value_name = "TEXT", conflicts_with = "file")]
    prompt: Option<String>,

    /// Read the prompt from a file (`-` is standard input)
    #[arg(short, long, value_name = "FILE")]
    file: Option<PathBuf>,

    /// Give the prompt to the model as it is, without its chat template; special tokens are written
    /// by name
    #[arg(long, conflicts_with = "system")]
    raw: bool,

    /// Instructions that stand before the prompt
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,

    /// Print one JSON object: text, token_ids, prompt_tokens, completion_tokens, drafted, accepted,
    /// finish_reason, ttft_s, decode_tps, devices{prefill, decode, segments[{stage, m, device,
    /// nodes, predicted_s, measured_s}]}
    #[arg(long)]
    json: bool,

    /// Say on stderr how long it took
    #[arg(long)]
    stats: bool,

    #[command(flatten)]
    sampling: SamplingOptions,

    #[command(flatten)]
    model_options: ModelOptions,

    #[command(flatten)]
    speculation: SpeculationOptions,
}

/// What `--json` prints. The keys are part of the command line's contract.
#[derive(Debug, Serialize)]
struct Report<'a> {
    text: &'a str,
    token_ids: &'a [u32],
    prompt_tokens: usize,
    completion_tokens: usize,
    /// Tokens that were proposed and run.
    drafted: usize,
    /// Of these, tokens of the answer.
    accepted: usize,
    finish_reason: &'a str,
    ttft_s: f64,
    decode_tps: Option<f64>,
    devices: Devices,
}

/// Names of the devices of both phases, and what ran where.
#[derive(Debug, Serialize)]
struct Devices {
    prefill: String,
    decode: String,
    /// Of every planned number of rows.
    segments: Vec<Ran>,
}

/// Nodes that a device runs in one go.
#[derive(Debug, Serialize)]
struct Ran {
    stage: &'static str,
    /// Rows that the stage is planned for.
    m: usize,
    device: String,
    /// The first and the last of them.
    nodes: [String; 2],
    predicted_s: f64,
    /// `None` if no batch had as many rows.
    measured_s: Option<f64>,
}

pub(crate) fn run(options: Options, global: &Global) -> Outcome {
    let text = prompt(&options)?;
    let loaded =
        load::speculative(&options.model, &options.model_options, &options.speculation, global)?;
    let tokens = match options.raw {
        true => loaded.tokenizer()?.prompt(&text)?,
        false => loaded.chat_tokens(&turns(options.system, text))?,
    };
    let mut request = loaded.request(tokens, &options.sampling);
    request.continues = options.raw;
    let answer = if options.json {
        answer::stream(&loaded, request, &mut |_| Ok(()))?
    } else {
        let answer = answer::stream(&loaded, request, &mut terminal::write)?;
        terminal::write("\n")?;
        let (most, context) = (options.sampling.max_tokens, loaded.model.context());
        answer::note_cut(&answer.summary, most, context, "--context makes it longer");
        answer
    };
    if options.stats {
        let line = answer::statistics(&loaded, &answer.summary);
        terminal::note_plain(&terminal::dim(&line));
    }
    if answer.interrupted {
        return Err(Failure::Interrupted);
    }
    if options.json {
        terminal::json(&report(&loaded, &answer))?;
    }
    Ok(())
}

fn turns(system: Option<String>, prompt: String) -> Vec<Turn> {
    let system = system.map(|content| Turn { role: Role::System, content });
    let user = Turn { role: Role::User, content: prompt };
    system.into_iter().chain([user]).collect()
}

/// The prompt, wherever it is.
fn prompt(options: &Options) -> Outcome<String> {
    if let Some(prompt) = &options.prompt {
        return Ok(prompt.clone());
    }
    match options.file.as_deref().filter(|path| path.as_os_str() != "-") {
        Some(path) => {
            let bytes = std::fs::read(path).map_err(|e| Failure::from(e).about(path.display()))?;
            text(bytes).map_err(|failure| failure.about(path.display()))
        }
        None if options.file.is_none() && terminal::stdin_is_terminal() => Err(Failure::Usage(
            "there is no prompt: give -p TEXT, -f FILE, or pipe it in; `tangor chat` converses"
                .into(),
        )),
        None => {
            let mut bytes = Vec::new();
            std::io::stdin()
                .read_to_end(&mut bytes)
                .map_err(|e| Failure::from(e).about("standard input"))?;
            text(bytes).map_err(|failure| failure.about("standard input"))
        }
    }
}

/// A file as a prompt: without the line end that editors and `echo` put behind the last line.
fn text(bytes: Vec<u8>) -> Outcome<String> {
    let mut text = String::from_utf8(bytes)
        .map_err(|_| Failure::new("is not UTF-8 text").hint("convert it first, as with iconv"))?;
    if text.ends_with('\n') {
        text.pop();
        if text.ends_with('\r') {
            text.pop();
        }
    }
    Ok(text)
}

fn report<'a>(loaded: &Loaded, answer: &'a Answer) -> Report<'a> {
    let (usage, timings) = (&answer.summary.usage, &answer.summary.timings);
    Report {
        text: &answer.text,
        token_ids: &answer.tokens,
        prompt_tokens: usage.prompt,
        completion_tokens: usage.completion,
        drafted: usage.drafted,
        accepted: usage.accepted,
        finish_reason: answer.summary.finish.as_str(),
        ttft_s: timings.ttft.as_secs_f64(),
        decode_tps: timings.decode_tps(usage),
        devices: Devices {
            prefill: loaded.device_of(Stage::Prefill),
            decode: loaded.device_of(Stage::Decode),
            segments: segments(&loaded.model.plan()),
        },
    }
}

fn segments(plan: &Plan) -> Vec<Ran> {
    let ran = |stage: &StagePlan, segment: &SegmentPlan| Ran {
        stage: stage.stage.name(),
        m: stage.m,
        device: plan.devices[segment.device].name.clone(),
        nodes: [segment.nodes.first(), segment.nodes.last()]
            .map(|node| node.cloned().unwrap_or_default()),
        predicted_s: segment.predicted_s,
        measured_s: segment.measured_s,
    };
    let of_stage = |stage| plan.stages.iter().filter(move |planned| planned.stage == stage);
    let ordered = [Stage::Prefill, Stage::Decode, Stage::Verify].into_iter().flat_map(of_stage);
    ordered.flat_map(|stage| stage.segments.iter().map(move |s| ran(stage, s))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_end_behind_the_prompt_is_not_part_of_it() {
        for (bytes, expected) in
            [("a\n", "a"), ("a\r\n", "a"), ("a\n\n", "a\n"), ("a", "a"), ("", ""), ("a ", "a ")]
        {
            assert_eq!(text(bytes.into()).unwrap(), expected);
        }
        assert!(text(vec![0xff]).is_err());
    }
}
