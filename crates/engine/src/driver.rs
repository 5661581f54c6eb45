//! The thread that runs a model: the only place that knows threads and time.
//!
//! It takes commands between steps, runs what the state machine asks for, and hands out what
//! happened. A panic while computing is caught: the sequences of the batch then run one by one, and
//! only the one that fails again gets the error. A device that is lost is left out of a new plan,
//! and every sequence starts over from its tokens. Where there is no other device, or nobody wants
//! that, after [`MAX_PANICS`] panics within [`PANIC_WINDOW`], and after any panic elsewhere, which
//! leaves nobody knows what behind, the model is lost: everything fails with [`EngineError::Lost`]
//! from then on.

use crate::executor::{Executor, Took};
use crate::fallback::{Fallback, Prepared};
use crate::generation::Sink;
use crate::sequence::{Job, Notice, SequenceId};
use crate::speculate::Speculator;
use crate::step::{Command, Core, Work};
use crate::{EngineError, Event, Memory, Summary, Timings, Token};
use std::collections::{BTreeMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, Sender, TryRecvError};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};
use tangor_device::DeviceError;
use tangor_plan::Plan;

const MAX_PANICS: usize = 3;
const PANIC_WINDOW: Duration = Duration::from_secs(60);
/// Why a panic loses a model. What it said may be about one request, and all of them hear this.
const DEFECT: &str = "it panicked, which is a defect";
/// Most messages between two steps: whoever sends them faster than this still delays nobody for
/// long.
const MAX_MESSAGES: usize = 1024;

/// What a session hears: the first token whose logits these are, and the logits.
pub(crate) type SessionReply = Result<(usize, Vec<f32>), EngineError>;

/// Where notices about a sequence go.
enum Endpoint {
    Request(Box<Request>),
    Session(Sender<SessionReply>),
}

struct Request {
    sink: Sink,
    prompt: usize,
    submitted: Instant,
    started: Option<Instant>,
    first: Option<Instant>,
    last: Option<Instant>,
}

type Message = (Command, Option<Endpoint>);

/// The owners' end of a model's thread.
pub(crate) struct Driver {
    /// `None` only while dropping.
    messages: Option<Sender<Message>>,
    next_id: AtomicU64,
    shared: Arc<Shared>,
    limit: usize,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// How a model runs.
#[derive(Debug)]
pub(crate) struct Setup {
    pub(crate) plan: Plan,
    pub(crate) memory: Memory,
    /// Whether there are hidden states to be had.
    pub(crate) embeds: bool,
}

#[derive(Debug)]
struct Shared {
    setup: Mutex<Setup>,
    /// Sequences that are alive.
    alive: AtomicUsize,
    /// Why the model cannot compute any more.
    lost: OnceLock<EngineError>,
}

impl Driver {
    /// Starts the thread. At most `limit` sequences will be alive at once.
    ///
    /// # Errors
    /// If the operating system gives no thread.
    pub(crate) fn start(
        prepared: Prepared,
        speculator: Option<Speculator>,
        fallback: Option<Fallback>,
        limit: usize,
    ) -> Result<Arc<Self>, EngineError> {
        let (sender, receiver) = mpsc::channel();
        let (memory, Prepared { plan, executor, limits }) = (prepared.memory(), prepared);
        let embeds = executor.embeds();
        let shared = Arc::new(Shared {
            setup: Mutex::new(Setup { plan, memory, embeds }),
            alive: AtomicUsize::new(0),
            lost: OnceLock::new(),
        });
        let mut core = Core::new(limits);
        core.speculator = speculator;
        let worker = Worker {
            core,
            executor: Some(executor),
            fallback,
            endpoints: BTreeMap::new(),
            messages: receiver,
            panics: VecDeque::new(),
            shared: Arc::clone(&shared),
        };
        let thread = thread::Builder::new()
            .name("tangor-engine".into())
            .spawn(move || worker.run())
            .map_err(|error| EngineError::Thread(error.to_string()))?;
        Ok(Arc::new(Self {
            messages: Some(sender),
            next_id: AtomicU64::new(0),
            shared,
            limit,
            thread: Mutex::new(Some(thread)),
        }))
    }

    /// Submits a request.
    ///
    /// # Errors
    /// [`EngineError::Busy`], or the reason why the model is lost.
    pub(crate) fn generate(
        &self,
        prompt: Vec<u32>,
        job: Job,
        sink: Sink,
    ) -> Result<SequenceId, EngineError> {
        let id = self.enter()?;
        let request = Request {
            sink,
            prompt: prompt.len(),
            submitted: Instant::now(),
            started: None,
            first: None,
            last: None,
        };
        let command = Command::Generate { id, prompt, job: Box::new(job) };
        self.begin(command, Endpoint::Request(Box::new(request)))?;
        Ok(id)
    }

    /// Opens a session; logits come by the channel.
    ///
    /// # Errors
    /// As [`Driver::generate`].
    pub(crate) fn open(&self) -> Result<(SequenceId, Receiver<SessionReply>), EngineError> {
        let id = self.enter()?;
        let (sender, receiver) = mpsc::channel();
        self.begin(Command::Open { id }, Endpoint::Session(sender))?;
        Ok((id, receiver))
    }

    /// Sends a command about a sequence that exists.
    ///
    /// # Errors
    /// If the thread has ended.
    pub(crate) fn command(&self, command: Command) -> Result<(), EngineError> {
        self.send(command, None)
    }

    /// Ends a request.
    pub(crate) fn cancel(&self, id: SequenceId) {
        // A thread that has ended has nothing left to cancel.
        let _ = self.send(Command::Cancel { id }, None);
    }

    /// Sends the command that a sequence begins with; its place is free again if nobody takes it.
    fn begin(&self, command: Command, endpoint: Endpoint) -> Result<(), EngineError> {
        self.send(command, Some(endpoint)).inspect_err(|_| self.shared.leave())
    }

    fn send(&self, command: Command, endpoint: Option<Endpoint>) -> Result<(), EngineError> {
        let sent = self.messages.as_ref().map(|messages| messages.send((command, endpoint)));
        match sent {
            Some(Ok(())) => Ok(()),
            _ => Err(self.ended()),
        }
    }

    /// How the model runs now.
    pub(crate) fn setup(&self) -> MutexGuard<'_, Setup> {
        self.shared.setup()
    }

    /// Why the model cannot compute any more, if it cannot.
    pub(crate) fn lost(&self) -> Option<&EngineError> {
        self.shared.lost.get()
    }

    /// Why nobody answers any more.
    pub(crate) fn ended(&self) -> EngineError {
        let unknown = || EngineError::Lost("its thread ended".into());
        self.lost().cloned().unwrap_or_else(unknown)
    }

    /// A place for one more sequence.
    fn enter(&self) -> Result<SequenceId, EngineError> {
        if let Some(lost) = self.lost() {
            return Err(lost.clone());
        }
        let limit = self.limit;
        let one_more = |alive: usize| (alive < limit).then_some(alive + 1);
        self.shared
            .alive
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, one_more)
            .map_err(|_| EngineError::Busy { limit })?;
        Ok(SequenceId(self.next_id.fetch_add(1, Ordering::Relaxed)))
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        // Without senders the thread ends; weights and caches are freed before this returns.
        self.messages = None;
        let thread = self.thread.get_mut().ok().and_then(Option::take);
        if let Some(thread) = thread
            && thread.thread().id() != thread::current().id()
        {
            // A panic has been reported by its hook already.
            let _ = thread.join();
        }
    }
}

impl std::fmt::Debug for Driver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Driver").field("shared", &self.shared).finish_non_exhaustive()
    }
}

impl Shared {
    fn setup(&self) -> MutexGuard<'_, Setup> {
        // Whoever panicked while holding it has changed no part of it by halves.
        self.setup.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A sequence is alive no longer.
    fn leave(&self) {
        self.alive.fetch_sub(1, Ordering::AcqRel);
    }
}

/// The thread's end.
struct Worker {
    core: Core,
    /// `None` while it is planned anew, and once the model is lost by that.
    executor: Option<Executor>,
    /// `None`: a lost device loses the model.
    fallback: Option<Fallback>,
    endpoints: BTreeMap<SequenceId, Endpoint>,
    messages: Receiver<Message>,
    /// When steps panicked, at most [`MAX_PANICS`].
    panics: VecDeque<Instant>,
    shared: Arc<Shared>,
}

impl Worker {
    /// Until the last owner is gone.
    fn run(mut self) {
        while catch_unwind(AssertUnwindSafe(|| self.serve())).is_err() {
            self.abandon();
        }
        self.core.fail_all(&EngineError::Lost("it was dropped".into()));
        self.announce();
    }

    fn serve(&mut self) {
        loop {
            for _ in 0..MAX_MESSAGES {
                match self.messages.try_recv() {
                    Ok(message) => self.take(message),
                    Err(TryRecvError::Empty) => break,
                    Err(TryRecvError::Disconnected) => return,
                }
            }
            if !self.step() {
                match self.messages.recv() {
                    Ok(message) => self.take(message),
                    Err(_) => return,
                }
            }
        }
    }

    /// The model is lost by a panic that came between steps: the sequences may be anything, so
    /// that their owners are told past them.
    fn abandon(&mut self) {
        self.core = Core::new(self.core.limits.clone());
        let lost = self.shared.lost.get_or_init(|| EngineError::Lost(DEFECT.into())).clone();
        for (_, mut endpoint) in std::mem::take(&mut self.endpoints) {
            self.shared.leave();
            let tell = || endpoint.hear(Notice::Failed(lost.clone()), Instant::now());
            // An owner that panicked itself has nobody else to tell.
            let _ = catch_unwind(AssertUnwindSafe(tell));
        }
    }

    fn take(&mut self, (command, endpoint): Message) {
        let id = match &command {
            Command::Generate { id, .. }
            | Command::Open { id }
            | Command::Extend { id, .. }
            | Command::Cancel { id }
            | Command::Close { id } => *id,
        };
        if let Some(endpoint) = endpoint {
            self.endpoints.insert(id, endpoint);
        }
        let closed = matches!(command, Command::Close { .. });
        self.core.handle(command);
        if closed {
            drop(self.leave(id));
        }
        if let Some(lost) = self.shared.lost.get() {
            self.core.fail_all(lost);
        }
        self.announce();
    }

    /// Runs one batch; `false` if there is nothing to run.
    fn step(&mut self) -> bool {
        let Some(work) = self.core.next_work() else { return false };
        self.announce();
        let Some(executor) = &mut self.executor else { return false };
        let begin = Instant::now();
        let result = catch_unwind(AssertUnwindSafe(|| executor.run(&work)));
        let seconds = begin.elapsed().as_secs_f64();
        let result = result.unwrap_or_else(|panic| Err(EngineError::Panicked(message(&*panic))));
        if let Err(EngineError::Device(error)) = &result
            && self.go_on_without(error)
        {
            return true;
        }
        let lost = match &result {
            Err(EngineError::Device(error @ DeviceError::Lost { .. })) => {
                Some(EngineError::Lost(error.to_string()))
            }
            // A panic of several sequences, or of proposals, shows again when each runs alone.
            Err(EngineError::Panicked(_)) if is_last_try(&work) => {
                let now = Instant::now();
                self.panics.retain(|then| now.duration_since(*then) < PANIC_WINDOW);
                self.panics.push_back(now);
                (self.panics.len() >= MAX_PANICS).then(|| EngineError::Lost(DEFECT.into()))
            }
            _ => None,
        };
        let Some(executor) = &self.executor else { return false };
        if result.is_ok() {
            self.core.measured(&work, seconds);
            note_times(&mut self.shared.setup().plan, executor.took());
        }
        self.core.finish(&work, result.map(|()| executor.rows(&work)));
        if let Some(lost) = lost {
            self.lose(lost);
        }
        self.announce();
        true
    }

    /// The model cannot compute any more.
    fn lose(&mut self, lost: EngineError) {
        // The first reason stays. It is known before anybody hears of it: who has heard is refused.
        let _ = self.shared.lost.set(lost.clone());
        self.core.fail_all(&lost);
    }

    /// If `error` means that a device is lost and there are others: plans anew for these and starts
    /// all sequences over. `false` if the error is the batch's own, or nothing can be done.
    fn go_on_without(&mut self, error: &DeviceError) -> bool {
        let Some(fallback) = &mut self.fallback else { return false };
        let Some(lost) = fallback.lost_by(error) else { return false };
        // Its memory may be what the new one needs: they are never there at the same time.
        self.executor = None;
        match fallback.without(lost) {
            Ok(prepared) => {
                let (memory, Prepared { mut plan, executor, limits }) =
                    (prepared.memory(), prepared);
                plan.reasons.push(format!("planned anew: {error}"));
                let embeds = executor.embeds();
                self.executor = Some(executor);
                self.core.restart(limits);
                self.core.tell_replanned(lost, &error.to_string());
                *self.shared.setup() = Setup { plan, memory, embeds };
            }
            Err(none) => {
                self.lose(EngineError::Lost(format!("{error}; and without it: {none}")));
            }
        }
        self.announce();
        true
    }

    /// Hands out what happened.
    fn announce(&mut self) {
        let now = Instant::now();
        for (id, notice) in self.core.take_notices() {
            if matches!(notice, Notice::Done { .. } | Notice::Failed(_)) {
                // Its place is free before its owner hears of it.
                if let Some(mut endpoint) = self.leave(id) {
                    endpoint.hear(notice, now);
                }
            } else if let Some(endpoint) = self.endpoints.get_mut(&id) {
                endpoint.hear(notice, now);
            }
        }
    }

    /// A sequence has ended.
    fn leave(&mut self, id: SequenceId) -> Option<Endpoint> {
        let endpoint = self.endpoints.remove(&id)?;
        self.shared.leave();
        Some(endpoint)
    }
}

impl Endpoint {
    fn hear(&mut self, notice: Notice, now: Instant) {
        let reply = match (self, notice) {
            (Self::Request(request), notice) => return request.hear(notice, now),
            (Self::Session(sender), Notice::Logits { first, logits }) => {
                (sender, Ok((first, logits)))
            }
            (Self::Session(sender), Notice::Failed(error)) => (sender, Err(error)),
            (Self::Session(_), _) => return,
        };
        // A session that does not listen any more is about to be closed.
        let _ = reply.0.send(reply.1);
    }
}

impl Request {
    fn hear(&mut self, notice: Notice, now: Instant) {
        let event = match notice {
            Notice::Started => {
                self.started.get_or_insert(now);
                return;
            }
            Notice::Logits { .. } => return,
            Notice::Prefill(done) => Ok(Event::Prefill { done, total: self.prompt }),
            Notice::Scored(logprobs) => Ok(Event::Scored(logprobs)),
            Notice::Embedding(vector) => Ok(Event::Embedding(vector)),
            Notice::Replanned { lost, why } => Ok(Event::Replanned { lost, why }),
            Notice::Token { id, text, logprobs } => {
                self.first.get_or_insert(now);
                self.last = Some(now);
                Ok(Event::Token(Token { id, text, logprobs }))
            }
            Notice::Done { text, finish, usage, seed } => {
                let since = |then: Option<Instant>, from: Instant| {
                    then.unwrap_or(now).saturating_duration_since(from)
                };
                let first = self.first.unwrap_or(now);
                let timings = Timings {
                    queue: since(self.started, self.submitted),
                    ttft: since(self.first, self.submitted),
                    decode: since(self.last, first),
                };
                Ok(Event::Done(Summary { text, finish, usage, timings, seed }))
            }
            Notice::Failed(error) => Err(error),
        };
        (self.sink)(event);
    }
}

/// Share of the newest run in what a segment is said to take.
const NEWEST: f64 = 0.25;

/// Takes down what a batch took, if it had about as many rows as the stage was planned for.
fn note_times(plan: &mut Plan, took: &Took) {
    let about = |m: usize| took.rows <= m && took.rows * 2 > m;
    let Some(stage) = plan.stages.get_mut(took.stage).filter(|stage| about(stage.m)) else {
        return;
    };
    for (segment, &seconds) in stage.segments.iter_mut().zip(&took.seconds) {
        let old = segment.measured_s.unwrap_or(seconds);
        segment.measured_s = Some(old + NEWEST * (seconds - old));
    }
}

/// Whether a batch that fails is not run again in parts.
fn is_last_try(work: &Work) -> bool {
    matches!(work.spans.as_slice(), [only] if only.proposed == 0)
}

/// What a panic said.
fn message(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(ToString::to_string);
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "panic".into())
}
