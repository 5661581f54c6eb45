//! `tangor serve`: the server, on the devices and models that the options name.

use crate::args::{Global, ModelOptions, SpeculateChoice, positive};
use crate::error::{Failure, Outcome};
use crate::service::{self, Service};
use crate::{interrupt, load, terminal};
use clap::{Args, ValueEnum};
use etcetera::BaseStrategy;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tangor_engine::device::HostMemory;
use tangor_engine::{LoadOptions, Speculate};
use tangor_server::{
    Key, Limits, LoadAsk, LoadError, Loaded, Loader, Log, LogForm, ServeError, Server,
};
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

In lemonade's place for its ryzenai-server (docs/server.md says how):
  tangor serve --compat ryzenai-server -m FOLDER --port 8001 --ctx-size 4096

Other machines can reach the server only on an address of --host that they can reach, and only with
the key in TANGOR_API_KEY.";

/// Serve models to clients of OpenAI, Ollama, Anthropic and lemonade
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Options {
    /// Models to load first: names, files or folders
    #[arg(value_name = "MODEL")]
    #[arg(conflicts_with = "model")]
    models: Vec<String>,

    /// Take the command line of another program, and its place
    #[arg(long, value_enum, value_name = "PROGRAM")]
    compat: Option<Compat>,

    /// The only model, whatever clients call it; with --compat
    #[arg(short, long, value_name = "FOLDER", requires = "compat")]
    model: Option<String>,

    /// Longest sequence, as --context; -1 is the model's; with --compat
    #[arg(
        long,
        value_name = "TOKENS",
        requires = "compat",
        conflicts_with = "context",
        allow_negative_numbers = true
    )]
    ctx_size: Option<i64>,

    /// Accepted and without a meaning, as what it asks for is written anyway; with --compat
    #[arg(long, requires = "compat", hide = true)]
    verbose: bool,

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

    /// Gigabytes that all models may take together [default: most of what is free at the start]
    #[arg(long, value_name = "GB", value_parser = crate::args::above_zero)]
    memory: Option<f32>,

    /// Most seconds from a request to the end of its answer
    #[arg(long, value_name = "SECONDS", value_parser = positive)]
    answer_time: Option<usize>,

    /// Seconds that answers have to become complete when the server is ended
    #[arg(long, value_name = "SECONDS", value_parser = positive)]
    grace: Option<usize>,

    /// How a line about every request is written to stderr
    #[arg(long, value_enum, default_value_t = LogChoice::Human, value_name = "FORM")]
    log: LogChoice,

    /// Write prompts and answers into those lines, too
    #[arg(long)]
    log_prompts: bool,

    /// Have systemd start this server whenever you log in, instead of starting it now
    #[arg(long, conflicts_with = "uninstall_service")]
    install_service: bool,

    /// Have systemd start it no longer
    #[arg(long)]
    uninstall_service: bool,

    /// Propose what followed the same words before: `auto` where that pays
    #[arg(long, value_enum, value_name = "HOW")]
    speculate: Option<SpeculateChoice>,

    #[command(flatten)]
    model_options: ModelOptions,
}

/// A program whose place the server can take.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Compat {
    // What lemonade starts for its recipe `ryzenai-llm`
    RyzenaiServer,
}

/// How lines about requests are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum LogChoice {
    // For people
    Human,
    // A JSON object each
    Json,
    // None
    Off,
}

impl Options {
    /// Whether another program starts the server, for one model.
    pub(crate) fn is_child(&self) -> bool {
        self.compat.is_some()
    }

    /// What a parent's words mean in those of the server.
    fn understood(mut self) -> Outcome<Self> {
        if !self.is_child() {
            return Ok(self);
        }
        let model = self.model.take().or_else(|| self.models.pop());
        let missing = || Failure::Usage("-m is missing: give the model's folder".to_owned());
        self.models = vec![model.ok_or_else(missing)?];
        self.max_models = Some(1);
        if self.ctx_size == Some(0) {
            return Err(Failure::Usage("--ctx-size is 0: give at least one token".to_owned()));
        }
        let size = self.ctx_size.and_then(|size| usize::try_from(size).ok());
        self.model_options.context = self.model_options.context.or(size);
        Ok(self)
    }

    fn log(&self) -> Option<Log> {
        let form = match self.log {
            LogChoice::Human => LogForm::Human,
            LogChoice::Json => LogForm::Json,
            LogChoice::Off => return None,
        };
        (!terminal::is_quiet() || form == LogForm::Json).then(|| Log {
            form,
            texts: self.log_prompts,
            write: Arc::new(terminal::note_plain),
        })
    }

    /// How long answers have when the server is ended.
    fn grace(&self) -> Duration {
        seconds(self.grace, Limits::default().grace)
    }
}

/// The folder of the user's configuration, where that has services.
fn service_folder() -> Outcome<PathBuf> {
    if !cfg!(target_os = "linux") {
        return Err(Failure::new("services are installed for systemd, which is Linux's").hint(
            "on Windows make a task that runs `tangor serve` when you log in (schtasks /Create /SC \
             ONLOGON), on macOS an agent of launchd",
        ));
    }
    let strategy = etcetera::choose_base_strategy();
    Ok(strategy.map_err(|error| Failure::new(error.to_string()))?.config_dir())
}

/// Takes the service away, and says what is next.
fn uninstall_service() -> Outcome {
    let Some(path) = service::uninstall(&service_folder()?)? else {
        return Err(Failure::new("there is no service to remove"));
    };
    terminal::note(&format!("removed {}", path.display()));
    terminal::line("systemctl --user disable --now tangor; systemctl --user daemon-reload")
}

/// Puts the service in its place, and says what is next.
fn install_service(options: &Options, address: SocketAddr, global: &Global) -> Outcome {
    let config = service_folder()?;
    let of = Service::of(std::env::args_os(), global.home.clone(), options.grace().as_secs())?;
    if !address.ip().is_loopback() && !service::has_key(&config) {
        return Err(Failure::from(ServeError::Exposed(address.ip()))
            .hint(format!("write TANGOR_API_KEY=… into {}", service::secrets(&config).display())));
    }
    let path = service::install(&config, &of.unit()?)?;
    terminal::note(&format!("wrote {}; next, start it with:", path.display()));
    terminal::line("systemctl --user daemon-reload && systemctl --user enable --now tangor")?;
    terminal::note("what it writes:                journalctl --user --unit tangor --follow");
    terminal::note("from boot on, without a login: loginctl enable-linger");
    Ok(())
}

pub(crate) fn run(options: Options, global: &Global) -> Outcome {
    if options.uninstall_service {
        return uninstall_service();
    }
    let options = options.understood()?;
    let address = address(&options.host, options.port)?;
    let store = load::store(global)?;
    let names: Vec<ModelName> =
        options.models.iter().map(|name| ModelName::parse(name)).collect::<Result<_, _>>()?;
    let mut absent = Vec::new();
    for name in &names {
        if store.resolve(name)?.is_none() {
            absent.push(name);
        }
    }
    if options.install_service {
        return install_service(&options, address, global);
    }
    for name in absent {
        load::pull(&store, name)?;
    }
    let (log, one_model) = (options.log(), options.is_child());
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
        address,
        models: names,
        loader: Arc::new(loader),
        key: options.api_key.and_then(Key::new),
        admin_key: options.admin_api_key.and_then(Key::new),
        origins: options.cors,
        hosts: options.allow_host,
        one_model,
        log,
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

/// What models may take of so many bytes that are free: requests take some, too.
fn most_of(free: u64) -> u64 {
    free / 10 * 9
}

/// So many seconds, a year at most: clocks end somewhere.
fn seconds(given: Option<usize>, usual: Duration) -> Duration {
    const YEAR: u64 = 365 * 24 * 60 * 60;
    given.map_or(usual, |seconds| Duration::from_secs((seconds as u64).min(YEAR)))
}

fn limits(options: &Options) -> Limits {
    let usual = Limits::default();
    Limits {
        models: options.max_models.unwrap_or(usual.models),
        memory: options
            .memory
            .map(|gigabytes| (f64::from(gigabytes) * 1e9) as u64)
            .or_else(|| HostMemory::now().usable_bytes().map(most_of)),
        answer_time: seconds(options.answer_time, usual.answer_time),
        grace: options.grace(),
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
    fn load(
        &self,
        installed: &Installed,
        ask: &LoadAsk,
        memory: Option<u64>,
    ) -> Result<Loaded, LoadError> {
        let usual = load::load_options(&self.options, self.sequences);
        let asked = LoadOptions {
            context: ask.context.or(usual.context),
            speculate: self.speculate,
            max_alive: self.queue,
            memory_limit: memory,
            ..usual
        };
        let loaded = load::for_server(installed, &self.options, asked, &self.global)?;
        Ok(Loaded { model: loaded.model, recommended: loaded.recommended })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    fn parsed(line: &str) -> Result<Options, clap::Error> {
        let args = ["tangor", "serve"].into_iter().chain(line.split_whitespace());
        match crate::args::Cli::try_parse_from(args)?.command {
            crate::args::Command::Serve(options) => Ok(options),
            _ => panic!("another command"),
        }
    }

    #[test]
    fn a_parent_gives_a_folder_a_port_and_a_context() {
        let line = "--compat ryzenai-server -m some/folder --port 8001 --ctx-size 4096 --verbose";
        let options = parsed(line).unwrap().understood().unwrap();
        assert_eq!((options.models.join(","), options.port), ("some/folder".to_owned(), 8001));
        assert_eq!(options.model_options.context, Some(4096));
        assert_eq!(options.max_models, Some(1));
        let line = "--compat ryzenai-server --model some/folder --ctx-size -1";
        assert_eq!(parsed(line).unwrap().understood().unwrap().model_options.context, None);
        for line in ["--compat ryzenai-server", "--compat ryzenai-server -m x --ctx-size 0"] {
            assert!(parsed(line).unwrap().understood().is_err(), "{line}");
        }
        for line in ["-m x", "smollm2 --ctx-size 5", "--compat other -m x", "smollm2 --verbose"] {
            assert!(parsed(line).is_err(), "{line}");
        }
    }

    #[test]
    fn requests_are_written_for_people_unless_asked_otherwise() {
        let form = |line: &str| parsed(line).unwrap().log().map(|log| (log.form, log.texts));
        assert_eq!(form("smollm2"), Some((LogForm::Human, false)));
        assert_eq!(form("smollm2 --log json --log-prompts"), Some((LogForm::Json, true)));
        assert_eq!(form("smollm2 --log off"), None);
    }

    #[test]
    fn models_take_no_more_together_than_what_is_free_unless_that_is_said() {
        let memory = |line: &str| limits(&parsed(line).unwrap()).memory;
        assert_eq!(memory("smollm2 --memory 1.5"), Some(1_500_000_000));
        let (usual, now) = (memory("smollm2"), HostMemory::now());
        assert_eq!(usual.is_some(), now.available_bytes.is_some());
        assert!(now.size_bytes().is_none_or(|all| usual.is_some_and(|usual| usual < all)));
    }

    #[test]
    fn times_without_an_end_are_a_year() {
        let limits = |line: &str| limits(&parsed(line).unwrap());
        let long =
            limits("smollm2 --answer-time 18446744073709551615 --grace 18446744073709551615");
        for time in [long.answer_time, long.grace] {
            assert!(std::time::Instant::now().checked_add(time).is_some());
        }
        assert_eq!(limits("smollm2 --answer-time 60").answer_time.as_secs(), 60);
    }

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
