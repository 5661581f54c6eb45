//! What the server itself costs: `cargo run --release -p tangor-server --example load -- [SECONDS]`
//! has more and more connections ask for short answers of a tiny model on the oracle, and prints
//! requests per second, the time to the first byte of an answer, and how much of that the engine
//! does not account for.
#![allow(clippy::print_stdout, reason = "an example talks to whoever runs it")]

use serde_json::{Value, json};
use std::error::Error;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tangor_engine::device::oracle::OracleDevice;
use tangor_engine::device::{Activations, Device};
use tangor_engine::plan::model::formats;
use tangor_engine::{LoadOptions, Model, SamplingParams};
use tangor_server::{LoadAsk, LoadError, Loaded, Loader, Options, Server};
use tangor_store::{DirSource, Installed, ModelName, Store, StoreOptions};

type Outcome<T = ()> = Result<T, Box<dyn Error + Send + Sync>>;

#[derive(Debug)]
struct OnOracle;

impl Loader for OnOracle {
    fn load(
        &self,
        installed: &Installed,
        _: &LoadAsk,
        memory_limit: Option<u64>,
    ) -> Result<Loaded, LoadError> {
        let load = || -> Result<Arc<Model>, Box<dyn Error>> {
            let source = DirSource::open(&installed.path)?;
            let limits = formats::Limits::default();
            let checkpoint = formats::Checkpoint::open(&source, source.file(), &limits)?;
            let devices: Vec<Arc<dyn Device>> = vec![Arc::new(OracleDevice::new())];
            let options = LoadOptions {
                activations: Activations::F32,
                max_sequences: 16,
                max_alive: 256,
                memory_limit,
                ..LoadOptions::default()
            };
            Ok(Model::load(&checkpoint, &devices, &options, &mut |_| {})?)
        };
        let model = load().map_err(|error| LoadError::Other(error.to_string()))?;
        Ok(Loaded { model, recommended: SamplingParams::default() })
    }
}

/// What a client saw of one answer.
struct Seen {
    first_byte: Duration,
    /// From the request's arrival at the engine to its first token, as the answer says.
    engine: Duration,
}

/// A connection that stays open.
struct Client(BufReader<TcpStream>);

impl Client {
    fn new(address: SocketAddr) -> Outcome<Self> {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        Ok(Self(BufReader::new(stream)))
    }

    /// Asks, and reads the stream to its end.
    fn ask(&mut self, request: &[u8]) -> Outcome<Seen> {
        let begin = Instant::now();
        self.0.get_mut().write_all(request)?;
        let mut line = String::new();
        // The head; then chunks, each after a line with its length.
        while line != "\r\n" {
            line.clear();
            self.0.read_line(&mut line)?;
        }
        let (mut text, mut first) = (Vec::new(), None);
        loop {
            line.clear();
            self.0.read_line(&mut line)?;
            let length = usize::from_str_radix(line.trim(), 16)?;
            let mut piece = vec![0; length + 2];
            self.0.read_exact(&mut piece)?;
            text.extend(&piece[..length]);
            if length == 0 {
                break;
            }
            // The first chunk says only that there is an answer.
            if first.is_none() && contains(&text, b"\"content\":\"") && text.len() > length {
                first = Some(begin.elapsed());
            }
        }
        let text = String::from_utf8(text)?;
        let frames = text.split("\n\n").filter_map(|frame| frame.strip_prefix("data: "));
        let frames = frames.filter_map(|frame| frame.parse::<Value>().ok());
        let timed = frames.filter_map(|frame| frame["timings"]["ttft_ms"].as_f64()).next();
        let engine = Duration::from_secs_f64(timed.ok_or("no timings")? / 1e3);
        Ok(Seen { first_byte: first.ok_or("no answer")?, engine })
    }
}

fn contains(text: &[u8], part: &[u8]) -> bool {
    text.windows(part.len()).any(|window| window == part)
}

fn median(mut all: Vec<f64>) -> f64 {
    all.sort_by(f64::total_cmp);
    all.get(all.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Has so many connections ask for so long, and prints a line.
fn measure(address: SocketAddr, connections: usize, lasting: Duration) -> Outcome {
    let messages = json!([{"role": "user", "content": "Hi"}]);
    let body = json!({"messages": messages, "max_tokens": 4, "stream": true}).to_string();
    let request = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let begin = Instant::now();
    let ask = || -> Outcome<Vec<Seen>> {
        let (mut client, mut seen) = (Client::new(address)?, Vec::new());
        while begin.elapsed() < lasting {
            seen.push(client.ask(request.as_bytes())?);
        }
        Ok(seen)
    };
    let all: Vec<Seen> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..connections).map(|_| scope.spawn(ask)).collect();
        let all = threads.into_iter().map(|thread| thread.join().map_err(|_| "a client ended")?);
        all.collect::<Outcome<Vec<_>>>()
    })?
    .into_iter()
    .flatten()
    .collect();
    let rate = all.len() as f64 / begin.elapsed().as_secs_f64();
    let ms =
        |of: fn(&Seen) -> Duration| all.iter().map(|one| of(one).as_secs_f64() * 1e3).collect();
    let (first, engine) = (median(ms(|one| one.first_byte)), median(ms(|one| one.engine)));
    let over = median(ms(|one| one.first_byte.saturating_sub(one.engine)));
    println!("{connections:11}  {rate:10.0}  {first:13.2}  {engine:9.2}  {over:11.2}");
    Ok(())
}

fn main() -> Outcome {
    let seconds = std::env::args().nth(1).map_or(Ok(5.0), |text| text.parse())?;
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("tiny");
    tangor_testkit::tiny::write_with_text(&path);
    let options = Options::new(vec![ModelName::Path(path)], Arc::new(OnOracle));
    let home = StoreOptions { root: Some(folder.path().join("home")), ..StoreOptions::default() };
    let server = Server::bind(options, Store::open(home)?)?;
    let (address, stopper) = (server.address(), server.stopper());
    let thread = std::thread::spawn(move || server.run(|| {}));
    println!("connections  requests/s  first token ms  engine ms  between, ms (medians)");
    for connections in [1, 4, 16, 64] {
        measure(address, connections, Duration::from_secs_f64(seconds))?;
    }
    stopper.stop();
    thread.join().map_err(|_| "the server ended")??;
    Ok(())
}
