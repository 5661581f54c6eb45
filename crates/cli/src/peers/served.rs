//! A server as a process of its own: started on a free port, waited for, ended with its owner.

use super::argv;
use super::child::{Argv, keep, last_words, spawn};
use crate::error::{Failure, Outcome};
use crate::interrupt;
use crate::sys::{self, Group};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::Stdio;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long a server may take to load its model.
const PATIENCE: Duration = Duration::from_secs(600);
/// What to do about one that has not.
const HINT: &str = "a smaller model, fewer --streams or shorter prompts need less memory";
/// How often it is asked whether it has.
const LOOK: Duration = Duration::from_millis(50);

/// A server that runs.
#[derive(Debug)]
pub(crate) struct Served {
    child: Group,
    words: Option<JoinHandle<Vec<u8>>>,
    url: String,
}

impl Served {
    /// Starts a server, which is told its port with `--port`, and waits until `GET /health` says
    /// that its model is loaded.
    pub(crate) fn start(server: &Argv) -> Outcome<Self> {
        let ctrl_c = interrupt::listen();
        // Free now; whoever takes it first from here on has it.
        let address = TcpListener::bind(("127.0.0.1", 0))?.local_addr()?;
        let mut server = server.clone();
        server.extend(argv([&"--port", &usize::from(address.port())]));
        let mut child = spawn(&server, Stdio::null())?;
        // What it says must not fill the pipe.
        drop(child.stdout.take().map(keep));
        let words = child.stderr.take().map(keep);
        let mut served = Self { child, words, url: format!("http://{address}") };
        let begin = Instant::now();
        while !is_ready(address) {
            if ctrl_c.pressed() {
                return Err(Failure::Interrupted);
            }
            if served.child.try_wait()?.is_some() {
                return Err(served.failure("it ended before its model was loaded"));
            }
            if begin.elapsed() > PATIENCE {
                return Err(Failure::new("its model was not loaded in ten minutes").hint(HINT));
            }
            std::thread::sleep(LOOK);
        }
        Ok(served)
    }

    /// Where it is.
    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// Most memory that it has had resident, in bytes.
    pub(crate) fn peak_rss_bytes(&self) -> Option<u64> {
        sys::peak_rss_bytes_of(self.child.id())
    }

    fn failure(&mut self, usual: &str) -> Failure {
        let words = self.words.take().and_then(|reader| reader.join().ok()).unwrap_or_default();
        Failure::new(last_words(&String::from_utf8_lossy(&words)).unwrap_or(usual.to_owned()))
            .hint(HINT)
    }
}

/// Whether `GET /health` says 200.
fn is_ready(address: SocketAddr) -> bool {
    let ask = || -> std::io::Result<bool> {
        let mut stream = TcpStream::connect_timeout(&address, LOOK)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream
            .write_all(b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
        let mut head = [0; 12];
        stream.read_exact(&mut head)?;
        Ok(head.ends_with(b" 200"))
    };
    // A server that does not listen yet is no error.
    ask().unwrap_or(false)
}
