//! A fork-join pool: threads that are started once and wait, spinning, for the next loop.
//!
//! A token takes a few hundred parallel loops of some microseconds each. So handing one out costs
//! no allocation and no system call: the caller publishes a job, takes part in it, and everybody
//! draws tiles from one counter. A worker that is not there in time (asleep, or without a
//! processor) does not take part, and nobody waits for it.
//!
//! Workers spin for a moment, then yield, then sleep until the next job wakes them.

use crate::system;
use std::any::Any;
use std::cell::UnsafeCell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle, Thread};

/// Rounds of spinning before a waiting thread offers its processor to others.
const SPINS: u32 = 400;
/// Rounds of offering before a waiting worker sleeps.
const YIELDS: u32 = 2_000;

/// The state of the current job: `epoch << 32 | open << 31 | workers inside`.
const OPEN: u64 = 1 << 31;
const INSIDE: u64 = OPEN - 1;
const EPOCH: u64 = 1 << 32;

/// What one loop does: `(tile, thread)`.
type Body<'a> = dyn Fn(usize, usize) + Sync + 'a;

/// Threads for parallel loops.
#[derive(Debug)]
pub struct Pool {
    shared: Arc<Shared>,
    /// Held while a loop runs: loops do not nest and do not overlap.
    turn: Mutex<()>,
    workers: Vec<JoinHandle<()>>,
}

struct Shared {
    state: AtomicU64,
    /// Written by the caller while no job is open, read by workers inside one.
    job: UnsafeCell<Option<Job>>,
    /// The next tile.
    next: AtomicUsize,
    /// Whether a tile has panicked.
    broken: AtomicBool,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    /// Whom to wake, by worker; set while it sleeps.
    sleepers: Vec<Sleeper>,
    stop: AtomicBool,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("workers", &self.sleepers.len()).finish_non_exhaustive()
    }
}

#[derive(Debug, Default)]
struct Sleeper {
    asleep: AtomicBool,
    thread: Mutex<Option<Thread>>,
}

#[derive(Clone, Copy)]
struct Job {
    /// Lives until the call that published it returns, which is after the last worker left.
    body: *const Body<'static>,
    tiles: usize,
}

// SAFETY: `job` is written only by the thread that holds `turn` while no job is open and no worker
// is inside (both acquired through `state`), and read only by workers that are inside. Its pointer
// is to a `Sync` closure.
unsafe impl Sync for Shared {}
// SAFETY: as above; a `Job` is plain data.
unsafe impl Send for Shared {}

impl Pool {
    /// A pool of `threads` threads in all, the caller of [`Pool::run`] included; `pin` keeps each
    /// worker on one processor, if there are enough of them.
    #[must_use]
    pub fn new(threads: usize, pin: bool) -> Self {
        let workers = threads.max(1) - 1;
        let shared = Arc::new(Shared {
            state: AtomicU64::new(0),
            job: UnsafeCell::new(None),
            next: AtomicUsize::new(0),
            broken: AtomicBool::new(false),
            panic: Mutex::new(None),
            sleepers: (0..workers).map(|_| Sleeper::default()).collect(),
            stop: AtomicBool::new(false),
        });
        let pin = pin && system::parallelism() > workers;
        let start = |index: usize| {
            let shared = Arc::clone(&shared);
            let body = move || {
                if pin {
                    system::pin(index + 1);
                }
                shared.work(index);
            };
            thread::Builder::new().name(format!("tangor-{}", index + 1)).spawn(body).ok()
        };
        // A thread that the system refuses is one that does not take part.
        let workers = (0..workers).filter_map(start).collect();
        Self { shared, turn: Mutex::new(()), workers }
    }

    /// Threads, the caller included.
    #[must_use]
    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Calls `body(tile, thread)` for every `tile` in `0..tiles`, on any thread and in any order.
    /// Threads are numbered from 0; the caller is thread 0.
    ///
    /// # Panics
    /// If `body` does: with the payload of the first panic, after every thread has stopped.
    pub fn run(&self, tiles: usize, body: impl Fn(usize, usize) + Sync) {
        if tiles == 0 {
            return;
        }
        if tiles == 1 || self.workers.is_empty() {
            (0..tiles).for_each(|tile| body(tile, 0));
            return;
        }
        let turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        self.shared.publish(&body, tiles);
        self.shared.draw(Job { body: erase(&body), tiles }, 0);
        self.shared.close();
        let panicked = self.shared.broken.load(Ordering::Relaxed);
        let payload = panicked
            .then(|| self.shared.panic.lock().unwrap_or_else(PoisonError::into_inner).take());
        drop(turn);
        if let Some(payload) = payload.flatten() {
            resume_unwind(payload);
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        for sleeper in &self.shared.sleepers {
            sleeper.wake();
        }
        for worker in self.workers.drain(..) {
            // A worker catches the panics of its tiles: there is no result to look at.
            let _ = worker.join();
        }
    }
}

/// Forgets how long a body lives.
fn erase<'a>(body: &'a Body<'a>) -> *const Body<'static> {
    let body: *const Body<'a> = body;
    // SAFETY: only the lifetime changes; `Pool::run` keeps the body alive while it can be called.
    unsafe { std::mem::transmute::<*const Body<'a>, *const Body<'static>>(body) }
}

impl Shared {
    fn publish(&self, body: &Body<'_>, tiles: usize) {
        self.broken.store(false, Ordering::Relaxed);
        self.next.store(0, Ordering::Relaxed);
        // SAFETY: the caller holds `turn`, and the last job was closed with nobody inside.
        unsafe { *self.job.get() = Some(Job { body: erase(body), tiles }) };
        // Sequentially consistent against `Sleeper::sleep`: either the worker sees the new epoch
        // before it sleeps, or we see that it sleeps.
        let epoch = self.state.load(Ordering::Relaxed) & !(OPEN | INSIDE);
        self.state.store(epoch.wrapping_add(EPOCH) | OPEN, Ordering::SeqCst);
        for sleeper in &self.sleepers {
            if sleeper.asleep.load(Ordering::SeqCst) {
                sleeper.wake();
            }
        }
    }

    /// Lets nobody in any more and waits until everybody is out.
    fn close(&self) {
        let mut state = self.state.fetch_and(!OPEN, Ordering::AcqRel);
        let mut rounds = 0;
        while state & INSIDE != 0 {
            wait(&mut rounds);
            state = self.state.load(Ordering::Acquire);
        }
    }

    /// Draws tiles until there are none left.
    fn draw(&self, job: Job, thread: usize) {
        let tiles = || {
            loop {
                let tile = self.next.fetch_add(1, Ordering::Relaxed);
                if tile >= job.tiles {
                    break;
                }
                // SAFETY: the body lives until `Pool::run` has closed the job.
                unsafe { (*job.body)(tile, thread) };
            }
        };
        if let Err(payload) = catch_unwind(AssertUnwindSafe(tiles)) {
            self.next.store(job.tiles, Ordering::Relaxed);
            let mut first = self.panic.lock().unwrap_or_else(PoisonError::into_inner);
            if !self.broken.swap(true, Ordering::Relaxed) {
                *first = Some(payload);
            }
        }
    }

    /// The life of a worker.
    fn work(&self, index: usize) {
        let mut seen = 0;
        let mut rounds = 0;
        loop {
            let state = self.state.load(Ordering::SeqCst);
            let epoch = state & !(OPEN | INSIDE);
            if self.stop.load(Ordering::SeqCst) {
                return;
            }
            if epoch == seen || state & OPEN == 0 {
                if rounds > SPINS + YIELDS {
                    self.sleepers[index].sleep(|| {
                        let now = self.state.load(Ordering::SeqCst);
                        now == state && !self.stop.load(Ordering::SeqCst)
                    });
                    rounds = 0;
                } else {
                    wait(&mut rounds);
                }
                continue;
            }
            let entered =
                self.state.compare_exchange(state, state + 1, Ordering::AcqRel, Ordering::Relaxed);
            if entered.is_err() {
                continue;
            }
            // SAFETY: we are inside, so the caller waits for us and nobody writes.
            if let Some(job) = unsafe { *self.job.get() } {
                self.draw(job, index + 1);
            }
            self.state.fetch_sub(1, Ordering::AcqRel);
            seen = epoch;
            rounds = 0;
        }
    }
}

impl Sleeper {
    fn wake(&self) {
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(thread) = &*thread {
            thread.unpark();
        }
    }

    /// Sleeps while `idle`, until woken.
    fn sleep(&self, idle: impl Fn() -> bool) {
        *self.thread.lock().unwrap_or_else(PoisonError::into_inner) = Some(thread::current());
        self.asleep.store(true, Ordering::SeqCst);
        if idle() {
            thread::park();
        }
        self.asleep.store(false, Ordering::SeqCst);
    }
}

/// One round of waiting: a pause at first, then an offer of the processor.
fn wait(rounds: &mut u32) {
    *rounds = rounds.saturating_add(1);
    if *rounds < SPINS {
        std::hint::spin_loop();
    } else {
        thread::yield_now();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_every_tile_once_whatever_the_number_of_threads() {
        for threads in [1, 2, 3, 8] {
            let pool = Pool::new(threads, false);
            for tiles in [0, 1, 2, 7, 1000] {
                let counts: Vec<AtomicUsize> = (0..tiles).map(|_| AtomicUsize::new(0)).collect();
                pool.run(tiles, |tile, thread| {
                    assert!(thread < threads);
                    counts[tile].fetch_add(1, Ordering::Relaxed);
                });
                assert!(counts.iter().all(|c| c.load(Ordering::Relaxed) == 1), "{threads} {tiles}");
            }
        }
    }

    #[test]
    fn a_loop_sees_what_the_loop_before_it_wrote() {
        let pool = Pool::new(3, false);
        let cells: Vec<AtomicUsize> = (0..64).map(|_| AtomicUsize::new(0)).collect();
        for round in 0..2_000 {
            pool.run(cells.len(), |tile, _| {
                let other = cells[(tile + round) % 64].load(Ordering::Relaxed);
                assert!(other == round || other == round + 1);
                cells[tile].store(round + 1, Ordering::Relaxed);
            });
        }
    }

    #[test]
    fn panics_reach_the_caller_and_the_pool_lives_on() {
        let pool = Pool::new(2, false);
        let result = catch_unwind(AssertUnwindSafe(|| {
            pool.run(100, |tile, _| assert!(tile != 57, "tile 57 is broken"));
        }));
        let message = result.unwrap_err();
        assert_eq!(message.downcast_ref::<&str>(), Some(&"tile 57 is broken"));
        let count = AtomicUsize::new(0);
        pool.run(10, |_, _| {
            count.fetch_add(1, Ordering::Relaxed);
        });
        assert_eq!(count.into_inner(), 10);
    }

    #[test]
    fn loops_from_several_threads_take_turns() {
        let pool = Pool::new(2, false);
        let count = AtomicUsize::new(0);
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..100 {
                        pool.run(5, |_, _| {
                            count.fetch_add(1, Ordering::Relaxed);
                        });
                    }
                });
            }
        });
        assert_eq!(count.into_inner(), 4 * 100 * 5);
    }
}
