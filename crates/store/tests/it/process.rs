//! Several processes, and processes that are killed.

use crate::server::{Body, Files, Reply, Server, honest, hub};
use crate::{assert_sound, name, noise, options, temp};
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::AtomicBool;
use tangor_store::{Phase, RealDisk, Store};

const MODEL: &str = "org/repo";
const CHILD: &str = "TANGOR_STORE_TEST_CHILD";

/// What the other tests start as a process of its own: a pull that prints its steps.
#[test]
fn child_process() {
    let Ok(text) = std::env::var(CHILD) else { return };
    let (root, endpoint) = text.split_once('|').unwrap();
    let mut options = options(Path::new(root), endpoint);
    options.patience.stall = std::time::Duration::from_secs(600);
    options.disk = std::sync::Arc::new(RealDisk);
    let store = Store::open(options).unwrap();
    let mut last = 0;
    let pulled = store.pull(
        &name(MODEL),
        &mut |progress| {
            if progress.done != last || progress.phase == Phase::Waiting {
                println!("\n{:?} {}", progress.phase, progress.done);
            }
            last = progress.done;
        },
        &AtomicBool::new(false),
    );
    println!("\n{}", if pulled.is_ok() { "ready" } else { "failed" });
}

fn start(root: &Path, server: &Server) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "process::child_process", "--nocapture"])
        .env(CHILD, format!("{}|{}", root.display(), server.url))
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

/// Reads what a child prints up to a line that `stop` accepts; `None` if there is none.
fn until(child: &mut Child, stop: impl Fn(&str) -> bool) -> Option<String> {
    let lines = BufReader::new(child.stdout.as_mut().unwrap()).lines();
    lines.map(Result::unwrap).find(|line| stop(line))
}

fn files(content: &[u8]) -> Files {
    vec![("m.gguf", content.to_vec(), true)]
}

#[test]
fn a_killed_pull_leaves_nothing_ready_and_its_bytes_are_kept() {
    let content = noise(12 << 20, 1);
    for kill_at in [0, 100_000, 5 << 20, 9 << 20, 12 << 20] {
        let sent = files(&content);
        let (root, server) = (
            temp(),
            Server::start(move |request| {
                let reply = honest(request, &sent);
                match reply.body {
                    Body::All(bytes)
                        if request.path.contains("/resolve/") && request.from() == 0 =>
                    {
                        Reply { body: Body::Stall(bytes, kill_at), ..reply }
                    }
                    body => Reply { body, ..reply },
                }
            }),
        );
        let mut child = start(root.path(), &server);
        if kill_at > 0 {
            let line = format!("Downloading {kill_at}");
            assert!(until(&mut child, |text| text == line).is_some());
        }
        child.kill().unwrap();
        child.wait().unwrap();
        let honest = hub(files(&content));
        assert_sound(root.path(), &honest.url, MODEL, &content);
        let from: Vec<usize> = honest.requests("/resolve/").iter().map(|r| r.from()).collect();
        if kill_at > 0 && kill_at < content.len() {
            assert_eq!(from, [kill_at]);
        }
    }
}

#[test]
fn of_many_pulls_of_a_model_one_fetches_and_the_others_wait() {
    let content = noise(4 << 20, 2);
    let (root, server) = (temp(), hub(files(&content)));
    let mut children: Vec<Child> = (0..6).map(|_| start(root.path(), &server)).collect();
    for child in &mut children {
        assert!(until(child, |line| line == "ready").is_some());
        assert!(child.wait().unwrap().success());
    }
    assert_eq!(server.requests("/resolve/").len(), 1);
    assert_sound(root.path(), &server.url, MODEL, &content);
}

#[test]
fn whoever_waits_takes_over_when_the_one_that_fetches_is_killed() {
    let content = noise(3 << 20, 3);
    let sent = files(&content);
    let (root, server) = (
        temp(),
        Server::start(move |request| {
            let reply = honest(request, &sent);
            match reply.body {
                Body::All(bytes) if request.path.contains("/resolve/") && request.from() == 0 => {
                    Reply { body: Body::Stall(bytes, 1 << 20), ..reply }
                }
                body => Reply { body, ..reply },
            }
        }),
    );
    let mut first = start(root.path(), &server);
    assert!(until(&mut first, |line| line == "Downloading 1048576").is_some());
    let mut second = start(root.path(), &server);
    assert!(until(&mut second, |line| line.starts_with("Waiting")).is_some());
    first.kill().unwrap();
    first.wait().unwrap();
    assert!(until(&mut second, |line| line == "ready").is_some());
    second.wait().unwrap();
    assert_eq!(server.requests("/resolve/").last().unwrap().from(), 1 << 20);
    assert_sound(root.path(), &server.url, MODEL, &content);
}
