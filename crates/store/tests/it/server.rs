//! A hub on the loopback interface, whose misbehaviour a test chooses.

use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

/// A request, as far as tests care.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) path: String,
    pub(crate) headers: BTreeMap<String, String>,
}

impl Request {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }

    /// First byte that is asked for.
    pub(crate) fn from(&self) -> usize {
        let range = self.header("range").and_then(|r| r.strip_prefix("bytes=")?.strip_suffix('-'));
        range.map_or(0, |from| from.parse().unwrap())
    }
}

/// What follows the headers.
pub(crate) enum Body {
    /// These bytes.
    All(Vec<u8>),
    /// Only so many of these bytes, and then the connection ends.
    Cut(Vec<u8>, usize),
    /// Only so many of these bytes, and then nothing until the server ends.
    Stall(Vec<u8>, usize),
    /// Chunks without an end.
    Endless,
}

pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Body,
}

impl Reply {
    pub(crate) fn new(status: u16, body: Body) -> Self {
        Self { status, headers: Vec::new(), body }
    }

    pub(crate) fn ok(bytes: &[u8]) -> Self {
        Self::new(200, Body::All(bytes.to_vec()))
    }

    pub(crate) fn status(status: u16) -> Self {
        Self::new(status, Body::All(Vec::new()))
    }

    pub(crate) fn redirect(to: &str) -> Self {
        Self::status(302).with("Location", to)
    }

    pub(crate) fn with(mut self, name: &str, value: impl ToString) -> Self {
        self.headers.push((name.to_owned(), value.to_string()));
        self
    }

    /// The part of `bytes` that a request asks for.
    pub(crate) fn part(request: &Request, bytes: &[u8]) -> Self {
        let (from, whole) = (request.from(), bytes.len());
        if request.header("range").is_none() {
            return Self::ok(bytes);
        }
        if from >= whole {
            return Self::status(416);
        }
        Self::new(206, Body::All(bytes[from..].to_vec()))
            .with("Content-Range", format!("bytes {from}-{}/{whole}", whole - 1))
    }
}

/// A server that runs until it is dropped.
pub(crate) struct Server {
    pub(crate) url: String,
    log: Arc<Mutex<Vec<Request>>>,
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    pub(crate) fn start(answer: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (log, over) = (Arc::default(), Arc::new(AtomicBool::new(false)));
        let (log_to, is_over, answer) = (Arc::clone(&log), Arc::clone(&over), Arc::new(answer));
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming() {
                if is_over.load(Ordering::SeqCst) {
                    break;
                }
                let (log, over) = (Arc::clone(&log_to), Arc::clone(&is_over));
                let answer = Arc::clone(&answer);
                // A client that hangs up early is none of a server's errors.
                std::thread::spawn(move || stream.map(|s| serve(s, &*answer, &log, &over)));
            }
        });
        Self { url, log, over, thread: Some(thread) }
    }

    /// Requests so far whose path contains `text`.
    pub(crate) fn requests(&self, text: &str) -> Vec<Request> {
        let log = self.log.lock().unwrap();
        log.iter().filter(|request| request.path.contains(text)).cloned().collect()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.over.store(true, Ordering::SeqCst);
        // Wakes the thread that waits for connections.
        let _ = TcpStream::connect(self.url.trim_start_matches("http://"));
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn serve(
    stream: TcpStream,
    answer: &(impl Fn(&Request) -> Reply + ?Sized),
    log: &Mutex<Vec<Request>>,
    over: &AtomicBool,
) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let first = lines.next().unwrap_or_else(|| Ok(String::new()))?;
    let path = first.split(' ').nth(1).unwrap_or_default().to_owned();
    let mut headers = BTreeMap::new();
    for line in lines {
        let line = line?;
        let Some((name, value)) = line.split_once(':') else { break };
        headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
    }
    let request = Request { path, headers };
    log.lock().unwrap().push(request.clone());
    let reply = answer(&request);
    send(stream, reply, over)
}

fn send(mut stream: TcpStream, reply: Reply, over: &AtomicBool) -> std::io::Result<()> {
    let mut head = format!("HTTP/1.1 {} Status\r\nConnection: close\r\n", reply.status);
    match &reply.body {
        Body::Endless => head.push_str("Transfer-Encoding: chunked\r\n"),
        Body::All(bytes) | Body::Cut(bytes, _) | Body::Stall(bytes, _) => {
            if !reply.headers.iter().any(|(name, _)| name == "Content-Length") {
                head.push_str(&format!("Content-Length: {}\r\n", bytes.len()));
            }
        }
    }
    for (name, value) in &reply.headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str("\r\n");
    stream.write_all(head.as_bytes())?;
    match reply.body {
        Body::All(bytes) => stream.write_all(&bytes),
        Body::Cut(bytes, len) => stream.write_all(&bytes[..len.min(bytes.len())]),
        Body::Stall(bytes, len) => {
            stream.write_all(&bytes[..len.min(bytes.len())])?;
            // Until the client hangs up or the server ends.
            stream.set_read_timeout(Some(std::time::Duration::from_millis(50)))?;
            while !over.load(Ordering::SeqCst) {
                match std::io::Read::read(&mut stream, &mut [0]) {
                    Ok(0) => break,
                    _ => continue,
                }
            }
            Ok(())
        }
        Body::Endless => {
            while !over.load(Ordering::SeqCst) {
                stream.write_all(b"1000\r\n")?;
                stream.write_all(&[b'x'; 0x1000])?;
                stream.write_all(b"\r\n")?;
            }
            Ok(())
        }
    }
}

/// The commit that every repository is at.
pub(crate) const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

pub(crate) fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// How git names `bytes`.
pub(crate) fn git_blob(bytes: &[u8]) -> String {
    let mut hasher = <sha1::Sha1 as sha1::Digest>::new();
    sha1::Digest::update(&mut hasher, format!("blob {}\0", bytes.len()));
    sha1::Digest::update(&mut hasher, bytes);
    sha1::Digest::finalize(hasher).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What the repository `org/repo` has: names, and bytes that are large files (`true`) or small.
pub(crate) type Files = Vec<(&'static str, Vec<u8>, bool)>;

/// The description of a repository.
pub(crate) fn description(files: &Files) -> Reply {
    let siblings: Vec<serde_json::Value> = files
        .iter()
        .map(|(name, bytes, large)| {
            let lfs = large.then(|| {
                serde_json::json!({ "sha256": sha256(bytes), "size": bytes.len(), "pointerSize": 133 })
            });
            let blob = if *large { "0".repeat(40) } else { git_blob(bytes) };
            serde_json::json!({ "rfilename": name, "size": bytes.len(), "blobId": blob, "lfs": lfs })
        })
        .collect();
    let text = serde_json::json!({ "id": "org/repo", "sha": COMMIT, "siblings": siblings });
    Reply::ok(text.to_string().as_bytes())
}

/// A well-behaved hub that sends large files from its own address.
pub(crate) fn hub(files: Files) -> Server {
    Server::start(move |request| honest(request, &files))
}

/// The answer of a well-behaved hub.
pub(crate) fn honest(request: &Request, files: &Files) -> Reply {
    if request.path.starts_with("/api/models/org/repo/revision/main") {
        return description(files);
    }
    let prefix = format!("/org/repo/resolve/{COMMIT}/");
    let path = request.path.strip_prefix(&prefix);
    match files.iter().find(|(name, ..)| Some(*name) == path) {
        Some((_, bytes, large)) => {
            let tag = if *large { sha256(bytes) } else { git_blob(bytes) };
            Reply::part(request, bytes).with("ETag", format!("\"{tag}\""))
        }
        None => Reply::status(404).with("X-Error-Message", "Entry not found"),
    }
}
