//! `tangor serve`: the server, on the devices and models that the options name.

use crate::args::{Global, ModelOptions, SpeculateChoice, positive};
use crate::error::{Failure, Outcome};
use crate::{interrupt, load, terminal};
use clap::Args;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tangor_engine::{LoadOptions, Speculate};
use tangor_server::{Key, Limits, LoadAsk, Loaded, Loader, ServeError, Server};
use tangor_store::{Installed, ModelName};

const EXAMPLES: &str = "\
Examples:
  tangor serve smollm2
  tangor serve smollm2 --port 11434                 where clients of Ollama look
  tangor serve ./model.gguf --sequences 8 --context 4096
  TANGOR_API_KEY=secret tangor serve smollm2 --host 0.0.0.0

Clients of OpenAI use http://localhost:PORT/v1, those of Ollama http://localhost:PORT, those of
Anthropic the same. Models that are in the store and not named here are loaded when a client asks
for them. Ctrl-C ends the server when the answers that it writes are complete.

Other machines can reach the server only on an address of --host that they can reach, and only with
the key in TANGOR_API_KEY.";

/// Serve models to clients of OpenAI, Ollama, Anthropic and lemonade
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Options {
    /// Models to load first: names, files or folders
    #[arg(value_name = "MODEL")]
    models: Vec<String>,

    /// Address to listen on
    #[arg(
        long,
        env = "TANGOR_HOST",
        hide_env_values = true,
        value_name = "ADDRESS",
        default_value = "127.0.0.1"
    )]
    host: String,

    /// Port to listen on; 0 takes a free one
    #[arg(
        long,
        env = "TANGOR_PORT",
        hide_env_values = true,
        value_name = "PORT",
        default_value_t = 13305
    )]
    port: u16,

    /// Key that clients must show
    #[arg(long, env = "TANGOR_API_KEY", hide_env_values = true, value_name = "KEY")]
    api_key: Option<String>,

    /// Key for loading, pulling and removing models, and for ending the server [default: the same]
    #[arg(long, env = "TANGOR_ADMIN_API_KEY", hide_env_values = true, value_name = "KEY")]
    admin_api_key: Option<String>,

    /// Web pages that may ask, as https://chat.example; may be given several times, `*` is any
    #[arg(
        long,
        env = "TANGOR_CORS",
        value_delimiter = ',',
        hide_env_values = true,
        value_name = "ORIGIN"
    )]
    cors: Vec<String>,

    /// A name of this machine that clients may use; may be given several times
    #[arg(long, value_name = "NAME")]
    allow_host: Vec<String>,

    /// Answers that are written at once per model; more wait
    #[arg(long, value_name = "N", value_parser = positive, default_value_t = 16)]
    sequences: usize,

    /// Models in memory; the one unused for longest makes room
    #[arg(long, value_name = "N", value_parser = positive)]
    max_models: Option<usize>,

    /// Gigabytes that all models may take together
    #[arg(long, value_name = "GB", value_parser = crate::args::above_zero)]
    memory: Option<f32>,

    /// Most seconds from a request to the end of its answer
    #[arg(long, value_name = "SECONDS", value_parser = positive)]
    answer_time: Option<usize>,

    /// Seconds that answers have to become complete when the server is ended
    #[arg(long, value_name = "SECONDS", value_parser = positive)]
    grace: Option<usize>,

    /// Propose what followed the same words before: `auto` where that pays
    #[arg(long, value_enum, value_name = "HOW")]
    speculate: Option<SpeculateChoice>,

    #[command(flatten)]
    model_options: ModelOptions,
}

pub(crate) fn run(options: Options, global: &Global) -> Outcome {
    let store = load::store(global)?;
    let names: Vec<ModelName> =
        options.models.iter().map(|name| ModelName::parse(name)).collect::<Result<_, _>>()?;
    for name in &names {
        if store.resolve(name)?.is_none() {
            load::pull(&store, name)?;
        }
    }
    let limits = limits(&options);
    let loader = FromStore {
        global: Global { home: global.home.clone(), offline: global.offline, quiet: global.quiet },
        speculate: match options.speculate {
            None | Some(SpeculateChoice::Auto) => Speculate::Auto,
            Some(SpeculateChoice::Off) => Speculate::Off,
            Some(SpeculateChoice::Ngram) => Speculate::Ngram,
        },
        sequences: options.sequences,
        queue: limits.queue,
        options: options.model_options.clone(),
    };
    let options = tangor_server::Options {
        address: address(&options.host, options.port)?,
        models: names,
        loader: Arc::new(loader),
        key: options.api_key.and_then(Key::new),
        admin_key: options.admin_api_key.and_then(Key::new),
        origins: options.cors,
        hosts: options.allow_host,
        limits,
    };
    let server = Server::bind(options, store).map_err(|error| match error {
        ServeError::Exposed(_) => Failure::from(error)
            .hint("set TANGOR_API_KEY, or leave --host out to serve this machine alone"),
        ServeError::Address { .. } => {
            Failure::from(error).hint("another program may listen there: choose another --port")
        }
        error => error.into(),
    })?;
    let (address, stopper) = (server.address(), server.stopper());
    let _ctrl_c = interrupt::listen_and(move || stopper.stop());
    server.run(move || terminal::note(&format!("serving on http://{address}")))?;
    Ok(())
}

/// The address to listen on.
fn address(host: &str, port: u16) -> Outcome<SocketAddr> {
    let ip = match host {
        "localhost" => "127.0.0.1",
        host => host,
    };
    let ip: IpAddr = ip.trim_matches(['[', ']']).parse().map_err(|_| {
        Failure::Usage(format!("--host: {host:?} is no address: give one as 127.0.0.1 or 0.0.0.0"))
    })?;
    Ok(SocketAddr::new(ip, port))
}

fn limits(options: &Options) -> Limits {
    let usual = Limits::default();
    let seconds = |given: Option<usize>, usual| {
        given.map_or(usual, |seconds| Duration::from_secs(seconds as u64))
    };
    Limits {
        models: options.max_models.unwrap_or(usual.models),
        memory: options.memory.map(|gigabytes| (f64::from(gigabytes) * 1e9) as u64),
        answer_time: seconds(options.answer_time, usual.answer_time),
        grace: seconds(options.grace, usual.grace),
        ..usual
    }
}

/// Loads models of the store onto the devices of the options.
#[derive(Debug)]
struct FromStore {
    global: Global,
    options: ModelOptions,
    speculate: Speculate,
    sequences: usize,
    queue: usize,
}

impl Loader for FromStore {
    fn load(&self, installed: &Installed, ask: &LoadAsk) -> Result<Loaded, String> {
        let usual = load::load_options(&self.options, self.sequences);
        let asked = LoadOptions {
            context: ask.context.or(usual.context),
            speculate: self.speculate,
            max_alive: self.queue,
            ..usual
        };
        let loaded = load::for_server(installed, &self.options, asked, &self.global);
        let loaded = loaded.map_err(|failure| failure.message())?;
        Ok(Loaded { model: loaded.model, recommended: loaded.recommended })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_an_address_or_this_machine() {
        for (host, expected) in [
            ("localhost", "127.0.0.1:80"),
            ("0.0.0.0", "0.0.0.0:80"),
            ("::1", "[::1]:80"),
            ("[::]", "[::]:80"),
        ] {
            assert_eq!(address(host, 80).unwrap().to_string(), expected);
        }
        assert!(address("example.org", 80).is_err());
    }
}
