//! A server on a port of its own, and a client.

use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tangor_engine::device::oracle::OracleDevice;
use tangor_engine::device::{Activations, Device, DeviceKind};
use tangor_engine::plan::model::formats;
use tangor_engine::{LoadOptions, Model, SamplingParams};
use tangor_server::{LoadAsk, LoadError, Loaded, Loader, Options, ServeError, Server, Stopper};
use tangor_store::{Installed, ModelName, Store, StoreOptions};
use tangor_testkit::faulty::{Fault, Faulty};
use tempfile::TempDir;

/// Loads onto the oracle, and counts.
#[derive(Debug, Default)]
pub(crate) struct OnOracle {
    pub(crate) loads: AtomicUsize,
    /// Loads wait while a test holds this.
    pub(crate) held: Arc<Mutex<()>>,
    /// Longest sequence; `None`: [`CONTEXT`].
    pub(crate) context: Option<usize>,
    /// What the device does about a batch with [`POISON`]; `None`: nothing.
    pub(crate) fault: Option<Fault>,
    /// Whether the next load panics.
    pub(crate) panics: AtomicBool,
    /// Whether it takes what it wants, and not what it may.
    pub(crate) heedless: bool,
    /// Bytes that each model might take.
    pub(crate) rooms: Mutex<Vec<Option<u64>>>,
}

/// Loads onto an oracle that is so slow that a long answer goes on for half a minute: whatever a
/// test does meanwhile, on whatever machine, the answer has not ended yet.
pub(crate) fn slow() -> OnOracle {
    let fault = Some(Fault::Slow(Duration::from_millis(15)));
    OnOracle { fault, ..OnOracle::default() }
}

/// A text whose token brings a [`Fault`] about.
pub(crate) const POISON: &str = "\r";

impl Loader for OnOracle {
    fn load(
        &self,
        installed: &Installed,
        ask: &LoadAsk,
        memory_limit: Option<u64>,
    ) -> Result<Loaded, LoadError> {
        self.loads.fetch_add(1, Ordering::SeqCst);
        self.rooms.lock().unwrap().push(memory_limit);
        drop(self.held.lock().unwrap_or_else(PoisonError::into_inner));
        assert!(!self.panics.swap(false, Ordering::SeqCst), "a load panics");
        let source = tangor_store::DirSource::open(&installed.path)?;
        let checkpoint =
            formats::Checkpoint::open(&source, source.file(), &formats::Limits::default());
        let checkpoint = checkpoint.map_err(|error| LoadError::Other(error.to_string()))?;
        let device: Arc<dyn Device> = match self.fault {
            None => Arc::new(OracleDevice::new()),
            Some(fault) => Faulty::new("bad", DeviceKind::Cpu, fault),
        };
        let options = LoadOptions {
            activations: Activations::F32,
            context: ask.context.or(self.context),
            max_sequences: 4,
            max_alive: 8,
            memory_limit: memory_limit.filter(|_| !self.heedless),
            ..LoadOptions::default()
        };
        let model = Model::load(&checkpoint, &[device], &options, &mut |_| {})?;
        Ok(Loaded { model, recommended: SamplingParams::default() })
    }
}

/// A server with models, and what stops it.
pub(crate) struct Running {
    pub(crate) folder: TempDir,
    pub(crate) base: String,
    pub(crate) loader: Arc<OnOracle>,
    stopper: Stopper,
    thread: Option<JoinHandle<Result<(), ServeError>>>,
}

/// Longest sequence of the models of tests.
pub(crate) const CONTEXT: usize = 2048;

/// Lets a model have [`CONTEXT`]: its words are as random there as before.
fn lengthen(config: &std::path::Path) {
    let text = std::fs::read_to_string(config).unwrap();
    let mut value: Value = text.parse().unwrap();
    value["max_position_embeddings"] = CONTEXT.into();
    std::fs::write(config, value.to_string()).unwrap();
}

/// An answer over HTTP.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) text: String,
}

impl Running {
    /// With one model, `tiny`, and what the test wants otherwise.
    pub(crate) fn new(change: impl FnOnce(&mut Options)) -> Self {
        Self::with(&["tiny"], OnOracle::default(), change)
    }

    pub(crate) fn with(
        models: &[&str],
        loader: OnOracle,
        change: impl FnOnce(&mut Options),
    ) -> Self {
        Self::with_store(models, loader, |_| {}, change)
    }

    /// The same, with what the test wants of the store.
    pub(crate) fn with_store(
        models: &[&str],
        loader: OnOracle,
        store: impl FnOnce(&mut StoreOptions),
        change: impl FnOnce(&mut Options),
    ) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let names = models.iter().map(|name| {
            let path = folder.path().join(name);
            tangor_testkit::tiny::write_with_text(&path);
            lengthen(&path.join("config.json"));
            ModelName::Path(path)
        });
        let loader = Arc::new(loader);
        let loading = Arc::clone(&loader) as Arc<dyn Loader>;
        let mut options = Options::new(names.collect(), loading);
        options.limits.grace = Duration::from_secs(5);
        change(&mut options);
        let mut home = StoreOptions {
            root: Some(folder.path().join("home")),
            offline: true,
            ..StoreOptions::default()
        };
        store(&mut home);
        let server = Server::bind(options, Store::open(home).unwrap()).unwrap();
        let (base, stopper) = (format!("http://{}", server.address()), server.stopper());
        let (is_ready, ready) = std::sync::mpsc::channel();
        let run = move || server.run(move || drop(is_ready));
        let thread = Some(std::thread::spawn(run));
        // Before that, what a test asks for may go again to make room for the models of the start.
        let holds_loads = loader.held.try_lock().is_err();
        if !holds_loads {
            let _: Result<(), _> = ready.recv();
        }
        Self { folder, base, loader, stopper, thread }
    }

    /// Ends the server and says how that went.
    pub(crate) fn stop(&mut self) -> Result<(), ServeError> {
        self.stopper.stop();
        self.thread.take().unwrap().join().unwrap()
    }

    /// Waits until the server has ended by itself, and says how that went.
    pub(crate) fn ended(&mut self) -> Result<(), ServeError> {
        self.thread.take().unwrap().join().unwrap()
    }

    /// Asks it to end.
    pub(crate) fn ask_to_stop(&self) {
        self.stopper.stop();
    }

    pub(crate) fn get(&self, path: &str) -> Reply {
        self.get_with(path, &[])
    }

    pub(crate) fn get_with(&self, path: &str, headers: &[(&str, &str)]) -> Reply {
        let mut request = agent().get(format!("{}{path}", self.base));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        reply(request.call().unwrap())
    }

    pub(crate) fn post(&self, path: &str, body: Value) -> Reply {
        self.post_with(path, &[], &body.to_string())
    }

    pub(crate) fn post_with(&self, path: &str, headers: &[(&str, &str)], body: &str) -> Reply {
        reply(self.send(path, headers, body))
    }

    /// Asks until there is a place: the engine hears of clients that left after its step.
    pub(crate) fn post_when_free(&self, path: &str, body: &Value) -> Reply {
        let begin = Instant::now();
        loop {
            let reply = self.post_with(path, &[], &body.to_string());
            if reply.status != 429 {
                return reply;
            }
            assert!(begin.elapsed() < PATIENCE, "no place has become free");
        }
    }

    /// The beginning of an answer, whose body is still to be read.
    pub(crate) fn send(
        &self,
        path: &str,
        headers: &[(&str, &str)],
        body: &str,
    ) -> ureq::http::Response<ureq::Body> {
        let mut request = agent().post(format!("{}{path}", self.base));
        for (name, value) in [("content-type", "application/json")].iter().chain(headers) {
            request = request.header(*name, *value);
        }
        request.send(body).unwrap()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stopper.stop();
        if let Some(thread) = self.thread.take() {
            // A test that fails says so itself.
            let _ = thread.join();
        }
    }
}

fn agent() -> ureq::Agent {
    let config = ureq::Agent::config_builder().http_status_as_error(false);
    config.timeout_global(Some(PATIENCE)).build().into()
}

fn reply(response: ureq::http::Response<ureq::Body>) -> Reply {
    let status = response.status().as_u16();
    let headers = response.headers().iter();
    let headers = headers
        .map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned()))
        .collect();
    let mut text = String::new();
    response.into_body().into_reader().read_to_string(&mut text).unwrap();
    Reply { status, headers, text }
}

impl Reply {
    /// The JSON of an answer that went well.
    pub(crate) fn json(&self) -> Value {
        assert_eq!(self.status, 200, "{}", self.text);
        self.any_json()
    }

    pub(crate) fn any_json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|e| panic!("{e}: {}", self.text))
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(own, _)| own == name).map(|(_, value)| value.as_str())
    }

    /// Names and data of the events of a stream; keep-alives are left out.
    pub(crate) fn events(&self) -> Vec<(Option<String>, Value)> {
        assert_eq!(self.status, 200, "{}", self.text);
        let frames = self.text.split("\n\n").filter(|frame| !frame.trim().is_empty());
        let event = |frame: &str| {
            let line = |key: &str| frame.lines().find_map(|line| line.strip_prefix(key));
            let data = line("data: ")?;
            let data = if data == "[DONE]" { json!("[DONE]") } else { data.parse().unwrap() };
            Some((line("event: ").map(str::to_owned), data))
        };
        frames.filter_map(event).collect()
    }

    /// The lines of a stream.
    pub(crate) fn lines(&self) -> Vec<Value> {
        assert_eq!(self.status, 200, "{}", self.text);
        self.text.lines().map(|line| line.parse().unwrap()).collect()
    }
}

/// How long what is bound to happen may take: a machine that is busy is slow.
pub(crate) const PATIENCE: Duration = Duration::from_secs(300);

/// Waits for what is bound to happen.
pub(crate) fn wait_until(happened: impl Fn() -> bool) {
    let begin = Instant::now();
    while !happened() {
        assert!(begin.elapsed() < PATIENCE, "it does not happen");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A conversation of one message.
pub(crate) fn said(text: &str) -> Value {
    json!([{"role": "user", "content": text}])
}

/// A connection whose every byte is the test's own.
pub(crate) struct Wire(BufReader<TcpStream>);

impl Wire {
    pub(crate) fn new(base: &str) -> Self {
        let stream = TcpStream::connect(base.trim_start_matches("http://")).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Self(BufReader::new(stream))
    }

    /// The stream below.
    pub(crate) fn stream(&mut self) -> &mut TcpStream {
        self.0.get_mut()
    }

    /// Sends a request and reads its answer, whose length is known; the connection stays open.
    pub(crate) fn ask(
        &mut self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &str,
    ) -> Reply {
        let mut head = format!("{method} {path} HTTP/1.1\r\nContent-Length: {}\r\n", body.len());
        headers.iter().for_each(|(name, value)| head.push_str(&format!("{name}: {value}\r\n")));
        self.stream().write_all(format!("{head}\r\n{body}").as_bytes()).unwrap();
        self.reply()
    }

    /// Reads an answer whose length is known.
    pub(crate) fn reply(&mut self) -> Reply {
        let mut line = || {
            let mut line = String::new();
            self.0.read_line(&mut line).unwrap();
            line.trim_end().to_owned()
        };
        let status = line().split(' ').nth(1).unwrap().parse().unwrap();
        let mut headers = Vec::new();
        while let Some((name, value)) = line().split_once(": ") {
            headers.push((name.to_lowercase(), value.to_owned()));
        }
        let mut reply = Reply { status, headers, text: String::new() };
        let length = reply.header("content-length").map_or(0, |length| length.parse().unwrap());
        let mut bytes = vec![0; length];
        self.0.read_exact(&mut bytes).unwrap();
        reply.text = String::from_utf8(bytes).unwrap();
        reply
    }
}
