//! Clients that leave or dawdle, the end of the server under load, disks that lose or lack.

use crate::support::*;
use serde_json::{Value, json};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tangor_store::{Disk, DiskFile, Patience, RealDisk};

/// Tokens that a sequence may have here: little enough for pages to run out soon if any are lost.
const SHORT: usize = 256;

/// Numbers that look random and are the same every time.
struct Dice(u64);

impl Dice {
    /// A number below `n`.
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % n as u64) as usize
    }
}

/// A request as bytes, and where its body begins.
fn request(path: &str, body: &Value) -> (Vec<u8>, usize) {
    let body = body.to_string();
    let head = format!(
        "POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n\
         Connection: close\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    ((head.clone() + &body).into_bytes(), head.len())
}

/// An answer that nobody waits for to the end.
fn ask(dice: &mut Dice) -> (&'static str, Value) {
    let stream = dice.below(2) == 0;
    let text = "x".repeat(1 + dice.below(100));
    match dice.below(3) {
        0 => (
            "/api/chat",
            json!({"messages": said(&text), "stream": stream,
                                  "options": {"num_predict": 100}}),
        ),
        1 => (
            "/v1/messages",
            json!({"messages": said(&text), "stream": stream,
                                     "max_tokens": 100}),
        ),
        _ => (
            "/v1/chat/completions",
            json!({"messages": said(&text), "stream": stream,
                                             "max_tokens": 100, "ignore_eos": true, "n": 2}),
        ),
    }
}

/// Connects, and leaves at some moment.
fn leave(address: &str, dice: &mut Dice) {
    let mut stream = TcpStream::connect(address).unwrap();
    let (path, body) = ask(dice);
    let (bytes, head) = request(path, &body);
    // A server that has refused the request already is none of a client's errors.
    let mut send = |bytes: &[u8]| drop(stream.write_all(bytes));
    match dice.below(5) {
        // In the middle of the head, and of the body
        0 => send(&bytes[..dice.below(head)]),
        1 => send(&bytes[..head + dice.below(bytes.len() - head)]),
        // Before there is an answer
        2 => send(&bytes),
        3 => {
            send(&bytes);
            std::thread::sleep(Duration::from_micros(dice.below(20_000) as u64));
        }
        // In the middle of the answer
        _ => {
            send(&bytes);
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            let mut answer = vec![0; 1 + dice.below(6_000)];
            let _ = stream.read(&mut answer);
        }
    }
}

/// Answers that together need all pages that the model has.
fn fill(server: &Running) -> Vec<Value> {
    let long = |n: usize| json!({"messages": said(&format!("No {n}")), "max_tokens": SHORT - 40, "ignore_eos": true});
    std::thread::scope(|scope| {
        let ask = |n| move || server.post_when_free("/v1/chat/completions", &long(n)).json();
        let all: Vec<_> = (0..4).map(|n| scope.spawn(ask(n))).collect();
        let texts = all.into_iter().map(|one| one.join().unwrap()["choices"][0]["message"].clone());
        texts.collect()
    })
}

#[test]
fn clients_that_leave_at_any_moment_leave_nothing_behind() {
    let times = std::env::var("TANGOR_TEST_LEAVES").map_or(1_000, |text| text.parse().unwrap());
    let loader = OnOracle { context: Some(SHORT), ..OnOracle::default() };
    let server = Running::with(&["tiny"], loader, |_| {});
    let expected = fill(&server);
    let address = server.base.trim_start_matches("http://");
    let left = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for seed in 1..=8 {
            let left = &left;
            scope.spawn(move || {
                let mut dice = Dice(seed << 32 | 0x9e37_79b9);
                while left.fetch_add(1, Ordering::Relaxed) < times {
                    leave(address, &mut dice);
                }
            });
        }
    });
    let idle = || {
        let slot = server.get("/v1/slots").json()[0].clone();
        (&slot["requests"], &slot["is_processing"]) == (&json!(0), &json!(false))
    };
    wait_until(idle);
    // A page that is still in use, or a place, would be missing now.
    assert_eq!(fill(&server), expected);
    wait_until(idle);
}

/// What came back of a request: nothing, or an answer that says itself that it is complete.
fn is_whole(answer: &[u8]) -> bool {
    let Some(end) = answer.windows(4).position(|four| four == b"\r\n\r\n") else {
        return answer.is_empty();
    };
    let head = String::from_utf8_lossy(&answer[..end]).to_lowercase();
    let body = &answer[end + 4..];
    match head.split("content-length: ").nth(1) {
        Some(length) => length.lines().next().unwrap().parse() == Ok(body.len()),
        None => body.ends_with(b"\r\n0\r\n\r\n"),
    }
}

#[test]
fn a_server_that_ends_under_load_answers_what_it_has_taken() {
    for round in 0..5 {
        let mut server = Running::new(|options| options.limits.grace = PATIENCE);
        let address = server.base.trim_start_matches("http://").to_owned();
        server.post("/v1/load", json!({"model_name": "tiny"})).json();
        let answered = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for seed in 1..=8 {
                let (address, answered) = (&address, &answered);
                scope.spawn(move || {
                    let mut dice = Dice(seed + round * 100);
                    // Until it takes no more.
                    while let Ok(mut stream) = TcpStream::connect(address) {
                        let body = json!({"messages": said("Hi"), "max_tokens": 1 + dice.below(40),
                                          "stream": dice.below(2) == 0});
                        let (bytes, _) = request("/v1/chat/completions", &body);
                        let mut answer = Vec::new();
                        let sent = stream.write_all(&bytes);
                        let read = sent.and_then(|()| stream.read_to_end(&mut answer));
                        // A connection that it never accepted is reset.
                        assert!(
                            is_whole(&answer),
                            "{read:?}: {}",
                            String::from_utf8_lossy(&answer)
                        );
                        answered.fetch_add(usize::from(!answer.is_empty()), Ordering::Relaxed);
                    }
                });
            }
            wait_until(|| answered.load(Ordering::Relaxed) > 20);
            server.ask_to_stop();
        });
        let begin = Instant::now();
        server.ended().unwrap();
        assert!(begin.elapsed() < PATIENCE / 2, "it waits for nothing");
    }
}

#[test]
fn a_client_that_dawdles_is_not_waited_for_and_keeps_nobody_waiting() {
    let server = Running::new(|options| {
        // Long enough for who does not dawdle, on a machine that is busy.
        options.limits.head_time = Duration::from_secs(3);
        options.limits.body_time = Duration::from_millis(400);
    });
    let address = server.base.trim_start_matches("http://");
    let ask = json!({"messages": said(&"Hi".repeat(50_000))});
    let (bytes, head) = request("/v1/chat/completions", &ask);
    // So many bytes at once, and from then on these, whose end never comes.
    let slow = |from: usize, rest: Range<usize>| {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        let begin = Instant::now();
        let mut answer = Vec::new();
        stream.write_all(&bytes[..from]).unwrap();
        // A byte at a time, as long as the server listens.
        for byte in bytes[rest].iter().cycle() {
            let mut piece = [0; 1024];
            match stream.read(&mut piece) {
                Ok(0) => break,
                Ok(read) => answer.extend(&piece[..read]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => break,
            }
            if stream.write_all(&[*byte]).is_err() {
                break;
            }
            assert!(begin.elapsed() < PATIENCE, "it is still waited for");
        }
        String::from_utf8(answer).unwrap()
    };
    std::thread::scope(|scope| {
        let heads: Vec<_> = (0..20).map(|_| scope.spawn(|| slow(10, 10..20))).collect();
        let bodies: Vec<_> = (0..20).map(|_| scope.spawn(|| slow(head, head..head + 20))).collect();
        for _ in 0..10 {
            assert_eq!(server.get("/live").status, 200);
        }
        heads.into_iter().for_each(|head| drop(head.join().unwrap()));
        for body in bodies {
            let answer = body.join().unwrap();
            assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 504"), "{answer}");
        }
    });
}

#[test]
fn a_model_whose_files_are_gone_answers_until_it_is_let_go() {
    let server = Running::new(|_| {});
    let ask = || json!({"messages": said("Hi"), "max_tokens": 12});
    let before = server.post("/v1/chat/completions", ask()).json()["choices"].clone();
    std::fs::remove_dir_all(server.folder.path().join("tiny")).unwrap();
    assert_eq!(server.post("/v1/chat/completions", ask()).json()["choices"], before);
    assert_eq!(server.get("/v1/models").json()["data"], json!([]));
    server.post("/v1/unload", json!({"model_name": "tiny"})).json();
    let gone = server.post("/v1/chat/completions", ask());
    assert_eq!(gone.status, 404, "{}", gone.text);
    assert!(!gone.text.contains(&*server.folder.path().to_string_lossy()), "{}", gone.text);
    assert_eq!(server.get("/live").status, 200);
}

/// A disk on which no file grows beyond so many bytes, while that is wanted.
#[derive(Debug)]
struct FullDisk(Arc<AtomicBool>);

const ROOM: u64 = 100_000;

struct FullFile {
    file: Box<dyn DiskFile>,
    written: u64,
    full: Arc<AtomicBool>,
}

impl Write for FullFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.full.load(Ordering::SeqCst) && self.written + bytes.len() as u64 > ROOM {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let written = self.file.write(bytes)?;
        self.written += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl DiskFile for FullFile {
    fn sync(&mut self) -> io::Result<()> {
        self.file.sync()
    }
}

impl Disk for FullDisk {
    fn create_dir(&self, path: &Path) -> io::Result<()> {
        RealDisk.create_dir(path)
    }

    fn append(&self, path: &Path, keep: u64) -> io::Result<Box<dyn DiskFile>> {
        let file = RealDisk.append(path, keep)?;
        Ok(Box::new(FullFile { file, written: keep, full: Arc::clone(&self.0) }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        RealDisk.rename(from, to)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        RealDisk.sync_dir(path)
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        RealDisk.remove_file(path)
    }

    fn remove_dir_all(&self, path: &Path) -> io::Result<()> {
        RealDisk.remove_dir_all(path)
    }

    fn free_space(&self, _: &Path) -> Option<u64> {
        None
    }
}

/// A hub with a repository of one file, as long as the test runs.
fn hub() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let content = vec![7_u8; 300_000];
    // SHA-256 of these bytes.
    let digest = "08f166476de183f7a1b2874d544d37912aaf8d19b92013e1aafe233ba231024a";
    let file = json!({"rfilename": "m.gguf", "size": content.len(), "blobId": "0".repeat(40),
                      "lfs": {"sha256": digest, "size": content.len(), "pointerSize": 133}});
    let about = json!({"id": "org/repo", "sha": "0123456789abcdef0123456789abcdef01234567",
                       "siblings": [file]});
    let answer = move |stream: TcpStream| -> io::Result<()> {
        let mut lines = BufReader::new(stream.try_clone()?).lines();
        let first = lines.next().unwrap_or_else(|| Ok(String::new()))?;
        let mut from = 0;
        for line in lines {
            let line = line?.to_lowercase();
            if let Some(range) = line.strip_prefix("range: bytes=") {
                from = range.trim_end_matches('-').parse().unwrap();
            }
            if line.is_empty() {
                break;
            }
        }
        let whole = content.len();
        let (status, more, body) = match first.contains("/api/models/") {
            true => (200, String::new(), about.to_string().into_bytes()),
            false if from == 0 => (200, format!("ETag: \"{digest}\"\r\n"), content.clone()),
            false => {
                let range = format!("Content-Range: bytes {from}-{}/{whole}\r\n", whole - 1);
                (206, format!("ETag: \"{digest}\"\r\n{range}"), content[from..].to_vec())
            }
        };
        let length = body.len();
        let head = format!(
            "HTTP/1.1 {status} Status\r\nConnection: close\r\nContent-Length: {length}\r\n{more}\r\n"
        );
        (&stream).write_all(head.as_bytes())?;
        (&stream).write_all(&body)
    };
    std::thread::spawn(move || {
        // A client that hangs up early is none of a server's errors.
        listener.incoming().flatten().for_each(|stream| drop(answer(stream)));
    });
    url
}

#[test]
fn a_disk_that_is_full_ends_a_pull_with_a_word_and_the_next_one_goes_on() {
    let full = Arc::new(AtomicBool::new(true));
    let (disk, url) = (Arc::new(FullDisk(Arc::clone(&full))), hub());
    let server = Running::with_store(
        &["tiny"],
        OnOracle::default(),
        |store| {
            store.offline = false;
            store.endpoint = url;
            store.disk = disk;
            let (stall, pause) = (PATIENCE, Duration::from_millis(1));
            store.patience = Patience { stall, attempts: 2, pause };
        },
        |_| {},
    );
    let ask = |stream: bool| json!({"model": "org/repo", "stream": stream});
    for path in ["/v1/pull", "/api/pull"] {
        let reply = server.post(path, ask(false));
        assert_eq!(reply.status, 503, "{}", reply.text);
        assert!(reply.text.contains("disk") && !reply.text.contains("home"), "{}", reply.text);
    }
    let lines = server.post("/api/pull", ask(true)).lines();
    assert!(lines.last().unwrap()["error"].as_str().unwrap().contains("full"), "{lines:?}");
    let listed = || server.get("/v1/models").json()["data"].as_array().unwrap().len();
    assert_eq!(listed(), 1, "what is not whole is not listed");
    let chat = json!({"messages": said("Hi"), "max_tokens": 2});
    assert_eq!(server.post("/v1/chat/completions", chat).status, 200);
    full.store(false, Ordering::SeqCst);
    assert_eq!(server.post("/api/pull", ask(false)).json(), json!({"status": "success"}));
    assert_eq!(listed(), 2);
}
