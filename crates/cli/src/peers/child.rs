//! Running other programs: quietly, with their last words when they fail, and gone with Ctrl-C.

use crate::error::{Failure, Outcome};
use crate::interrupt::Listening;
use crate::progress::Progress;
use crate::sys::Group;
use crate::terminal;
use std::ffi::OsString;
use std::io::Read;
use std::process::{Command, Stdio};
use std::thread::JoinHandle;
use std::time::Duration;

/// A program and its arguments.
pub(crate) type Argv = Vec<OsString>;

/// How often a child is looked after: seldom enough to leave its measurement alone.
const LOOK: Duration = Duration::from_millis(25);

/// What is kept of each output: the end of it.
const KEPT: usize = 1 << 20;

/// Words as a program and its arguments.
pub(crate) fn argv<const N: usize>(words: [&dyn AsArg; N]) -> Argv {
    words.into_iter().map(AsArg::arg).collect()
}

/// Whatever can be an argument.
pub(crate) trait AsArg {
    /// The argument.
    fn arg(&self) -> OsString;
}

impl AsArg for &str {
    fn arg(&self) -> OsString {
        (*self).into()
    }
}

impl AsArg for usize {
    fn arg(&self) -> OsString {
        self.to_string().into()
    }
}

impl AsArg for std::path::PathBuf {
    fn arg(&self) -> OsString {
        self.clone().into()
    }
}

impl AsArg for &std::path::Path {
    fn arg(&self) -> OsString {
        self.into()
    }
}

/// Runs a step that takes long, and says so.
pub(crate) fn step(what: &str, argv: &Argv, ctrl_c: &Listening) -> Outcome<String> {
    if !terminal::stderr_is_terminal() {
        terminal::note(what);
    }
    let _progress = Progress::spinner(what);
    run(argv, ctrl_c).map_err(|failure| failure.about(what))
}

/// Runs a program and returns what it wrote; Ctrl-C ends it.
pub(crate) fn run(argv: &Argv, ctrl_c: &Listening) -> Outcome<String> {
    let mut child = spawn(argv, Stdio::null())?;
    let (out, err) = (child.stdout.take().map(keep), child.stderr.take().map(keep));
    let status = loop {
        if ctrl_c.pressed() {
            return Err(Failure::Interrupted);
        }
        if let Some(status) = child.try_wait()? {
            break status;
        }
        std::thread::sleep(LOOK);
    };
    let text = |reader: Option<JoinHandle<Vec<u8>>>| {
        let bytes = reader.and_then(|reader| reader.join().ok()).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    };
    let (out, err) = (text(out), text(err));
    if status.success() {
        return Ok(out);
    }
    Err(Failure::new(last_words(&err).or_else(|| last_words(&out)).unwrap_or(status.to_string())))
}

/// Starts a program whose outputs are read, in a group of its own.
pub(super) fn spawn(argv: &Argv, stdin: Stdio) -> Outcome<Group> {
    let Some((program, args)) = argv.split_first() else {
        return Err(Failure::new("no program to start"));
    };
    let mut command = Command::new(program);
    command.args(args).stdin(stdin).stdout(Stdio::piped()).stderr(Stdio::piped());
    Group::start(&mut command).map_err(|error| {
        Failure::from(error).about(format!("{} cannot be started", program.display()))
    })
}

/// Reads a stream to its end, on a thread of its own, and keeps the last [`KEPT`] bytes.
pub(super) fn keep(mut stream: impl Read + Send + 'static) -> JoinHandle<Vec<u8>> {
    std::thread::spawn(move || {
        let (mut kept, mut chunk) = (Vec::new(), [0; 8192]);
        while let Ok(count @ 1..) = stream.read(&mut chunk) {
            kept.extend_from_slice(&chunk[..count]);
            if kept.len() > 2 * KEPT {
                kept.drain(..kept.len() - KEPT);
            }
        }
        kept
    })
}

/// The line that says what went wrong: the last one that names an error, or the last one.
pub(super) fn last_words(text: &str) -> Option<String> {
    let lines = || text.lines().map(str::trim).filter(|line| !line.is_empty()).rev();
    let error = lines().find(|line| line.to_ascii_lowercase().contains("error"));
    error.or_else(|| lines().next()).map(|line| line.chars().take(300).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_error_is_what_a_program_failed_with() {
        let text = "Traceback\n  File x\nValueError: no such model\n\n[notice] a new pip\n";
        assert_eq!(last_words(text).as_deref(), Some("ValueError: no such model"));
        assert_eq!(last_words("a\nb\n").as_deref(), Some("b"));
        assert_eq!(last_words(" \n"), None);
    }
}
