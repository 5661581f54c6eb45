//! Ctrl-C and requests to terminate, in one place.
//!
//! Work that can stop at a good moment listens: the first Ctrl-C is then a request
//! ([`Listening::pressed`]) and the second one ends the program. Work that cannot is ended by the
//! first: everything on disk is written so that it may be cut off at any point. A request to
//! terminate is a Ctrl-C after which nobody goes on ([`terminated`]).

use crate::{sys, terminal};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Exit code of a program that Ctrl-C ended, as shells have it: 128 + SIGINT.
pub(crate) const EXIT_CODE: u8 = 130;

/// What a Ctrl-C does at once, on a thread of its own.
type Action = Box<dyn Fn() + Send>;

static PRESSED: AtomicBool = AtomicBool::new(false);
static TERMINATED: AtomicBool = AtomicBool::new(false);
/// Who listens, innermost last.
static LISTENERS: Mutex<Vec<Action>> = Mutex::new(Vec::new());

fn listeners() -> MutexGuard<'static, Vec<Action>> {
    LISTENERS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Takes over Ctrl-C and requests to terminate for the whole program.
///
/// Where the system does not let us, they end the program at once, as they do anywhere.
pub(crate) fn install() {
    if let Err(error) = ctrlc::set_handler(pressed) {
        terminal::note(&format!("Ctrl-C will not be handled: {error}"));
    }
    #[cfg(unix)]
    if let Err(error) = await_termination() {
        terminal::note(&format!("requests to terminate will not be handled: {error}"));
    }
}

/// Awaits what ends sessions and services: SIGTERM, and SIGHUP of a terminal that is gone.
#[cfg(unix)]
fn await_termination() -> std::io::Result<()> {
    use signal_hook::consts::{SIGHUP, SIGTERM};
    let mut signals = signal_hook::iterator::Signals::new([SIGTERM, SIGHUP])?;
    let wait = move || {
        for _ in signals.forever() {
            TERMINATED.store(true, Ordering::SeqCst);
            pressed();
        }
    };
    std::thread::Builder::new().name("termination".to_owned()).spawn(wait).map(drop)
}

/// Tells those who listen; ends the program if nobody does, or if they were told before.
fn pressed() {
    let listeners = listeners();
    if !listeners.is_empty() && !PRESSED.swap(true, Ordering::SeqCst) {
        listeners.iter().for_each(|action| action());
        return;
    }
    terminal::clear_line();
    terminal::note_plain("interrupted");
    exit_now();
}

/// Whether the program was asked to end, and not only what it does.
pub(crate) fn terminated() -> bool {
    TERMINATED.load(Ordering::SeqCst)
}

#[allow(clippy::exit, reason = "nothing listens that could unwind, and no destructor must run")]
fn exit_now() -> ! {
    let _groups = sys::end_groups();
    std::process::exit(i32::from(EXIT_CODE))
}

/// As long as it lives, Ctrl-C is a request.
#[derive(Debug)]
pub(crate) struct Listening(());

/// Starts to listen; a Ctrl-C before is forgotten.
pub(crate) fn listen() -> Listening {
    listen_and(|| {})
}

/// Starts to listen, and does `action` at once when Ctrl-C is pressed.
pub(crate) fn listen_and(action: impl Fn() + Send + 'static) -> Listening {
    let mut listeners = listeners();
    if listeners.is_empty() {
        PRESSED.store(false, Ordering::SeqCst);
    }
    listeners.push(Box::new(action));
    Listening(())
}

impl Listening {
    /// Whether Ctrl-C was pressed since listening began.
    pub(crate) fn pressed(&self) -> bool {
        PRESSED.load(Ordering::SeqCst)
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        listeners().pop();
    }
}
