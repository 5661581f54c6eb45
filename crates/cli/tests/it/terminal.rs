//! A conversation with a person: at a pseudo-terminal.

use crate::Place;
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Child, Command};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// What a person waits for at most.
const PATIENCE: Duration = Duration::from_secs(600);

/// Somebody who types, and what the terminal shows.
struct Person {
    child: Child,
    keyboard: File,
    screen: Arc<Mutex<String>>,
    /// Bytes of the screen that were read.
    read: usize,
}

impl Person {
    /// Starts a conversation with the tiny model.
    fn new(place: &Place, more: &[&str]) -> Self {
        let terminal =
            openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
        grantpt(&terminal).unwrap();
        unlockpt(&terminal).unwrap();
        let name = ptsname(&terminal, Vec::new()).unwrap().into_string().unwrap();
        let side = || File::options().read(true).write(true).open(&name).unwrap();
        // Who converses already has the model's files mapped.
        let model = place.folder.path().join("tiny");
        let model = if model.exists() { model } else { place.tiny() };
        let child = Command::new(env!("CARGO_BIN_EXE_tangor"))
            .arg("chat")
            .arg(model)
            .args(more)
            .env("TANGOR_HOME", place.folder.path().join("home"))
            .env("TANGOR_OFFLINE", "1")
            .env("TERM", "xterm")
            .env("NO_COLOR", "1")
            .env("XDG_RUNTIME_DIR", place.folder.path())
            .current_dir(place.folder.path())
            .stdin(side())
            .stdout(side())
            .stderr(side())
            .spawn()
            .unwrap();
        let keyboard = File::from(terminal);
        let screen = Arc::new(Mutex::new(String::new()));
        let (mut output, shown) = (keyboard.try_clone().unwrap(), Arc::clone(&screen));
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            // It fails once nobody has the terminal any more.
            while let Ok(length @ 1..) = output.read(&mut bytes) {
                shown.lock().unwrap().push_str(&String::from_utf8_lossy(&bytes[..length]));
            }
        });
        let mut person = Self { child, keyboard, screen, read: 0 };
        person.reads(">>> ");
        person
    }

    /// Types a line.
    fn types(&mut self, line: &str) {
        self.read = self.screen.lock().unwrap().len();
        self.keyboard.write_all(format!("{line}\r").as_bytes()).unwrap();
    }

    /// Waits for a text behind what was read.
    fn reads(&mut self, text: &str) {
        self.waits(|unread| unread.find(text).map(|at| at + text.len()), text);
    }

    fn waits(&mut self, found: impl Fn(&str) -> Option<usize>, what: &str) {
        let begin = Instant::now();
        while begin.elapsed() < PATIENCE {
            if let Some(more) = found(&self.screen.lock().unwrap()[self.read..]) {
                self.read += more;
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        panic!("no {what:?} in {:?}", self.screen.lock().unwrap());
    }

    /// Types a line and waits for what it leads to, and for the next prompt.
    fn tells(&mut self, line: &str, expected: &str) {
        self.types(line);
        self.reads(expected);
        self.reads(">>> ");
    }

    fn signals(&self, signal: &str) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args([signal, &pid]).status().unwrap().success());
    }

    /// The exit code, once the program has ended by itself.
    fn code(mut self) -> Option<i32> {
        let begin = Instant::now();
        while begin.elapsed() < PATIENCE {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code();
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        panic!("it goes on: {:?}", self.screen.lock().unwrap());
    }
}

impl Drop for Person {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn text(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap()
}

#[test]
fn a_full_context_is_told_with_what_makes_room() {
    let place = Place::new();
    let mut person = Person::new(&place, &["--context", "48"]);
    person.tells("hello", "the context of 48 tokens is full; /undo and /clear make room");
    person.tells("again", "hint: /undo and /clear make room");
    person.tells("/clear", "forgotten");
    person.tells("again", "the context of 48 tokens is full");
    person.types("/exit");
    assert_eq!(person.code(), Some(0));
}

#[test]
fn an_answer_stays_if_there_is_no_other() {
    let place = Place::new();
    let talk = place.folder.path().join("talk.json");
    let question = "x".repeat(100);
    let said = format!(
        r#"[{{"role":"user","content":"{question}"}},{{"role":"assistant","content":"kept"}}]"#
    );
    std::fs::write(&talk, said).unwrap();
    let mut person = Person::new(&place, &["--context", "48", "--load", "talk.json"]);
    person.tells("/retry", "error:");
    person.tells("/save talk.json", "saved in talk.json");
    assert!(text(&talk).contains(&question) && text(&talk).contains("kept"), "{}", text(&talk));
}

#[test]
fn conversations_at_the_same_time_keep_what_was_typed_in_each() {
    let place = Place::new();
    let history = place.folder.path().join("home/chat-history");
    let mut people = [(); 2].map(|()| Person::new(&place, &["-n", "2"]));
    for (who, line) in [(0, "first"), (1, "second"), (0, "third")] {
        people[who].tells(line, "cut at 2 tokens");
        assert!(text(&history).contains(line), "{line} is not kept at once");
    }
    let [one, mut other] = people;
    one.signals("-TERM");
    assert_eq!(one.code(), Some(130));
    other.types("/exit");
    assert_eq!(other.code(), Some(0));
    let kept = text(&history);
    assert_eq!(kept.lines().skip(1).collect::<Vec<_>>(), ["first", "second", "third", "/exit"]);
}

#[test]
fn a_request_to_terminate_ends_the_conversation_with_the_answer() {
    for signal in ["-TERM", "-HUP"] {
        let place = Place::new();
        let mut person = Person::new(&place, &["--context", "100000"]);
        person.types("hello");
        person.waits(|unread| (unread.len() > 500).then_some(unread.len()), "answer");
        person.signals(signal);
        assert_eq!(person.code(), Some(130), "{signal}");
    }
}

#[test]
fn ctrl_c_ends_the_answer_alone() {
    let place = Place::new();
    let mut person = Person::new(&place, &["--context", "100000"]);
    person.types("hello");
    person.waits(|unread| (unread.len() > 500).then_some(unread.len()), "answer");
    person.signals("-INT");
    person.reads("(stopped)");
    person.reads(">>> ");
    person.types("/exit");
    assert_eq!(person.code(), Some(0));
}
