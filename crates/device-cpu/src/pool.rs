//! A fork-join pool: threads that are started once and wait, spinning, for the next loop.
//!
//! A token takes a few hundred parallel loops of some microseconds each. So handing one out costs
//! no allocation and no system call: the caller publishes a job and takes part in it. Every thread
//! begins with a share of its own, neighbouring tiles that lie side by side in memory, and then
//! takes from the ends of the others' shares. A worker that is not there in time (asleep, or
//! without a processor) does not take part, and nobody waits for it.
//!
//! Workers spin for a moment, then sleep until the next job wakes them. Where there are processors
//! enough they do not offer theirs meanwhile: Linux takes an offer for the rest of a time slice, so
//! any other program, however low its priority, would have the processor for the milliseconds in
//! which the next hundred loops run. Threads that have to share processors with each other do.

use crate::system;
use std::any::Any;
use std::cell::UnsafeCell;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle, Thread};
use std::time::{Duration, Instant};

/// How long a waiting thread spins: longer than most of what one thread does alone between two
/// loops. Whoever sleeps is woken at once, whoever spins on loses the processor amid a tile where
/// another program wants it, and all threads wait for that tile.
const PATIENCE: Duration = Duration::from_micros(20);
/// Rounds of spinning between two looks at the clock.
const ROUNDS: u32 = 16;
/// How often a waiting worker offers its processor to the other threads before it sleeps.
const OFFERS: u32 = 2_000;

/// The state of the current job: `epoch << 32 | open << 31 | workers inside`.
const OPEN: u64 = 1 << 31;
const INSIDE: u64 = OPEN - 1;
const EPOCH: u64 = 1 << 32;

/// What one loop does: `(tiles, thread)`.
type Body<'a> = dyn Fn(Range<usize>, usize) + Sync + 'a;

/// Starts a thread by a name, if the system has one left.
type Spawn = dyn Fn(String, Box<dyn FnOnce() + Send>) -> Option<JoinHandle<()>>;

/// Threads for parallel loops.
#[derive(Debug)]
pub struct Pool {
    shared: Arc<Shared>,
    /// Held while a loop runs: loops do not nest and do not overlap.
    turn: Mutex<()>,
    workers: Vec<JoinHandle<()>>,
}

/// Cache lines of its own, so that threads do not disturb each other.
#[repr(align(128))]
struct Apart<T>(T);

struct Shared {
    /// Side by side: whoever sees a new state reads the job next.
    head: Apart<Head>,
    /// What is left of every thread's share: `end << 32 | next`.
    shares: Vec<Apart<AtomicU64>>,
    /// Whether a tile has panicked.
    broken: AtomicBool,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    /// Whom to wake, by worker; set while it sleeps.
    sleepers: Vec<Sleeper>,
    /// Whether there are more threads than processors.
    crowded: bool,
    stop: AtomicBool,
}

struct Head {
    state: AtomicU64,
    /// Written by the caller while no job is open, read by workers inside one.
    job: UnsafeCell<Option<Job>>,
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
    /// Tiles that are handed out together, from a multiple of it on; at least 1.
    grain: usize,
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
        Self::spawned_by(threads, pin, &|name, body| {
            thread::Builder::new().name(name).spawn(body).ok()
        })
    }

    fn spawned_by(threads: usize, pin: bool, spawn: &Spawn) -> Self {
        let wanted = threads.max(1) - 1;
        let shared = Arc::new(Shared {
            head: Apart(Head { state: AtomicU64::new(0), job: UnsafeCell::new(None) }),
            shares: (0..=wanted).map(|_| Apart(AtomicU64::new(0))).collect(),
            broken: AtomicBool::new(false),
            panic: Mutex::new(None),
            sleepers: (0..wanted).map(|_| Sleeper::default()).collect(),
            crowded: system::parallelism() <= wanted,
            stop: AtomicBool::new(false),
        });
        let pin = pin && !shared.crowded;
        let start = |index: usize| {
            let shared = Arc::clone(&shared);
            let body = Box::new(move || {
                if pin {
                    system::pin(index + 1);
                }
                shared.work(index);
            });
            spawn(format!("tangor-{}", index + 1), body)
        };
        let workers: Vec<_> = (0..wanted).map_while(start).collect();
        let started = workers.len();
        let pool = Self { shared, turn: Mutex::new(()), workers };
        if started == wanted {
            return pool;
        }
        // The system refuses more threads: a pool of those that there are, with a share for each.
        drop(pool);
        Self::spawned_by(started + 1, pin, spawn)
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
        self.run_grains(tiles, 1, |range, thread| range.for_each(|tile| body(tile, thread)));
    }

    /// [`Pool::run`] with several tiles at a time: ranges that lie within an aligned `grain` of
    /// tiles, whole ones but where a share begins or ends.
    ///
    /// # Panics
    /// As [`Pool::run`].
    pub fn run_grains(
        &self,
        tiles: usize,
        grain: usize,
        body: impl Fn(Range<usize>, usize) + Sync,
    ) {
        let grain = grain.max(1);
        assert!(u32::try_from(tiles).is_ok(), "{tiles} tiles");
        if tiles <= 1 || self.workers.is_empty() {
            (0..tiles).step_by(grain).for_each(|tile| body(tile..(tile + grain).min(tiles), 0));
            return;
        }
        let turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let job = Job { body: erase(&body), grain };
        self.shared.publish(job, tiles);
        self.shared.draw(job, 0);
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
    fn publish(&self, job: Job, tiles: usize) {
        self.broken.store(false, Ordering::Relaxed);
        // Neighbouring tiles for every thread; `run_grains` sees to it that their number fits.
        let (tiles, threads) = (tiles as u64, self.shares.len() as u64);
        for (thread, share) in (0..).zip(&self.shares) {
            let (next, end) = (thread * tiles / threads, (thread + 1) * tiles / threads);
            share.0.store(end << 32 | next, Ordering::Relaxed);
        }
        let head = &self.head.0;
        // SAFETY: the caller holds `turn`, and the last job was closed with nobody inside.
        unsafe { *head.job.get() = Some(job) };
        // Sequentially consistent against `Sleeper::sleep`: either the worker sees the new epoch
        // before it sleeps, or we see that it sleeps.
        let epoch = head.state.load(Ordering::Relaxed) & !(OPEN | INSIDE);
        head.state.store(epoch.wrapping_add(EPOCH) | OPEN, Ordering::SeqCst);
        for sleeper in &self.sleepers {
            if sleeper.asleep.load(Ordering::SeqCst) {
                sleeper.wake();
            }
        }
    }

    /// Lets nobody in any more and waits until everybody is out.
    fn close(&self) {
        let state = &self.head.0.state;
        let mut now = state.fetch_and(!OPEN, Ordering::AcqRel);
        let mut wait = Wait::default();
        while now & INSIDE != 0 {
            if !wait.spin() {
                // A worker that takes so long may have no processor: perhaps this one.
                wait.offer();
            }
            now = state.load(Ordering::Acquire);
        }
    }

    /// Draws tiles until there are none left: the thread's own from the front, then the others'
    /// from behind.
    fn draw(&self, job: Job, thread: usize) {
        let threads = self.shares.len();
        let tiles = || {
            for turn in 0..threads {
                let share = &self.shares[(thread + turn) % threads].0;
                while let Some(range) = take(share, job.grain, turn == 0) {
                    // SAFETY: the body lives until `Pool::run_grains` has closed the job.
                    unsafe { (*job.body)(range, thread) };
                }
            }
        };
        if let Err(payload) = catch_unwind(AssertUnwindSafe(tiles)) {
            for share in &self.shares {
                share.0.store(0, Ordering::Relaxed);
            }
            let mut first = self.panic.lock().unwrap_or_else(PoisonError::into_inner);
            if !self.broken.swap(true, Ordering::Relaxed) {
                *first = Some(payload);
            }
        }
    }

    /// The life of a worker.
    fn work(&self, index: usize) {
        let mut seen = 0;
        let mut wait = Wait::default();
        let head = &self.head.0;
        loop {
            let state = head.state.load(Ordering::SeqCst);
            let epoch = state & !(OPEN | INSIDE);
            if self.stop.load(Ordering::SeqCst) {
                return;
            }
            if epoch == seen || state & OPEN == 0 {
                if wait.spin() {
                    continue;
                }
                if self.crowded && wait.offer() {
                    continue;
                }
                self.sleepers[index].sleep(|| {
                    let now = head.state.load(Ordering::SeqCst);
                    now == state && !self.stop.load(Ordering::SeqCst)
                });
                wait = Wait::default();
                continue;
            }
            let entered =
                head.state.compare_exchange(state, state + 1, Ordering::AcqRel, Ordering::Relaxed);
            if entered.is_err() {
                continue;
            }
            // SAFETY: we are inside, so the caller waits for us and nobody writes.
            if let Some(job) = unsafe { *head.job.get() } {
                self.draw(job, index + 1);
            }
            head.state.fetch_sub(1, Ordering::AcqRel);
            seen = epoch;
            wait = Wait::default();
        }
    }
}

/// Takes up to the next border of a grain from the front of a share or from its end.
fn take(share: &AtomicU64, grain: usize, front: bool) -> Option<Range<usize>> {
    let grain = grain as u64;
    let mut now = share.load(Ordering::Relaxed);
    loop {
        let (next, end) = (now & u64::from(u32::MAX), now >> 32);
        if next >= end {
            return None;
        }
        let (range, left) = if front {
            let to = ((next / grain + 1) * grain).min(end);
            (next..to, end << 32 | to)
        } else {
            let from = ((end - 1) / grain * grain).max(next);
            (from..end, from << 32 | next)
        };
        match share.compare_exchange_weak(now, left, Ordering::Relaxed, Ordering::Relaxed) {
            #[allow(clippy::cast_possible_truncation)]
            Ok(_) => return Some(range.start as usize..range.end as usize),
            Err(other) => now = other,
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

/// How long a thread has been waiting.
#[derive(Default)]
struct Wait {
    rounds: u32,
    since: Option<Instant>,
    impatient: bool,
    offers: u32,
}

impl Wait {
    /// One round of spinning; `false` once it has been [`PATIENCE`].
    fn spin(&mut self) -> bool {
        if self.impatient {
            return false;
        }
        std::hint::spin_loop();
        self.rounds = self.rounds.wrapping_add(1);
        if self.rounds.is_multiple_of(ROUNDS) {
            self.impatient = self.since.get_or_insert_with(Instant::now).elapsed() >= PATIENCE;
        }
        true
    }

    /// Offers the processor to whoever wants it; `false` once it did so often.
    fn offer(&mut self) -> bool {
        thread::yield_now();
        self.offers = self.offers.saturating_add(1);
        self.offers < OFFERS
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicUsize;

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
    fn threads_that_the_system_refuses_have_no_number_and_no_share() {
        for refused in 0..4 {
            let calls = AtomicUsize::new(0);
            let pool = Pool::spawned_by(4, false, &move |name, body| {
                let refuse = calls.fetch_add(1, Ordering::Relaxed) == refused;
                (!refuse).then(|| thread::Builder::new().name(name).spawn(body).unwrap())
            });
            let threads = if refused < 3 { refused + 1 } else { 4 };
            assert_eq!((pool.threads(), pool.shared.shares.len()), (threads, threads));
            for _ in 0..100 {
                pool.run(64, |_, thread| assert!(thread < threads, "{thread} of {threads}"));
            }
        }
    }

    #[test]
    fn grains_are_handed_out_whole_but_at_the_borders_of_shares() {
        for (threads, tiles, grain) in [(1, 7, 2), (2, 18, 2), (3, 100, 4), (3, 2, 8)] {
            let pool = Pool::new(threads, false);
            let counts: Vec<AtomicUsize> = (0..tiles).map(|_| AtomicUsize::new(0)).collect();
            pool.run_grains(tiles, grain, |range, _| {
                let last = range.end - 1;
                assert!(range.start / grain == last / grain, "{range:?} is not in one grain");
                range.for_each(|tile| {
                    counts[tile].fetch_add(1, Ordering::Relaxed);
                });
            });
            assert!(counts.iter().all(|count| count.load(Ordering::Relaxed) == 1));
        }
    }

    #[test]
    fn a_slow_thread_keeps_nobody_from_its_share() {
        let pool = Pool::new(2, false);
        let (tiles, held) = (64, AtomicBool::new(false));
        let (done, end) = (AtomicUsize::new(0), Instant::now() + Duration::from_secs(60));
        pool.run(tiles, |_, _| {
            if !held.swap(true, Ordering::SeqCst) {
                // Until all others are done, by the other thread.
                while done.load(Ordering::SeqCst) < tiles - 1 {
                    assert!(Instant::now() < end, "tiles wait for a thread that is held");
                    thread::yield_now();
                }
            }
            done.fetch_add(1, Ordering::SeqCst);
        });
        assert_eq!(done.into_inner(), tiles);
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
