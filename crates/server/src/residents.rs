//! The models in memory: loaded when somebody asks for them, and let go when others need the room.
//!
//! A request holds a [`Lease`]; a model that is let go lives until its last lease ends, so that
//! loading and unloading lose no request.

use crate::error::{ApiError, Kind, Result};
use crate::limits::Limits;
use crate::loader::{LoadAsk, Loaded, Loader};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};
use tangor_engine::text::{ChatTemplate, Grammars, Tokenizer};
use tangor_engine::{Model, SamplingParams};
use tangor_store::Installed;
use tokio::sync::{Notify, watch};

/// What became of loading a model; `None`: it is still loading.
type Outcome = Option<Result<Arc<Resident>>>;

/// All models in memory.
pub(crate) struct Residents {
    loader: Arc<dyn Loader>,
    slots: Mutex<Slots>,
    /// A model became idle, or has gone.
    changed: Arc<Notify>,
    models: usize,
    memory: Option<u64>,
    load_time: std::time::Duration,
}

#[derive(Default)]
struct Slots {
    all: Vec<Slot>,
    /// Counts uses, to tell which was the last.
    clock: u64,
}

struct Slot {
    id: String,
    pinned: bool,
    used: u64,
    ask: LoadAsk,
    /// Bytes of its files, until its memory is known.
    bytes: u64,
    outcome: watch::Receiver<Outcome>,
}

/// A model in memory.
#[derive(Debug)]
pub(crate) struct Resident {
    /// What clients call it.
    pub(crate) id: String,
    pub(crate) installed: Installed,
    /// How its publisher wants tokens to be chosen.
    pub(crate) recommended: SamplingParams,
    pub(crate) loaded_at: u64,
    /// `None` only while dropping.
    model: Option<Arc<Model>>,
    grammars: OnceLock<Result<Arc<Grammars>>>,
    leases: AtomicUsize,
    used_at: Mutex<u64>,
}

/// The right to use a model, until it is dropped.
pub(crate) struct Lease {
    resident: Arc<Resident>,
    changed: Arc<Notify>,
}

/// A model in memory, for listings.
#[derive(Clone, Debug)]
pub(crate) struct Listed {
    pub(crate) resident: Arc<Resident>,
    pub(crate) pinned: bool,
}

impl Residents {
    pub(crate) fn new(loader: Arc<dyn Loader>, limits: &Limits) -> Self {
        Self {
            loader,
            slots: Mutex::default(),
            changed: Arc::default(),
            models: limits.models.max(1),
            memory: limits.memory,
            load_time: limits.load_time,
        }
    }

    fn slots(&self) -> MutexGuard<'_, Slots> {
        // Whoever panicked while holding it has changed no part of it by halves.
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A model by its id, loaded first where it has to be.
    ///
    /// # Errors
    /// Why it cannot be loaded.
    pub(crate) async fn acquire(
        &self,
        id: &str,
        installed: &Installed,
        ask: Option<&LoadAsk>,
    ) -> Result<Lease> {
        let waiting = async {
            let mut outcome = self.enter(id, installed, ask).await?;
            let loaded = outcome.wait_for(Option::is_some).await;
            let loaded = loaded.ok().and_then(|loaded| loaded.clone());
            loaded.unwrap_or_else(|| Err(ApiError::new(Kind::Internal, "loading was given up")))
        };
        let waited = tokio::time::timeout(self.load_time, waiting).await;
        let resident = waited.unwrap_or_else(|_| Err(no_room()))?;
        Ok(self.lease(resident))
    }

    /// How many models there is room for.
    pub(crate) fn most(&self) -> usize {
        self.models
    }

    /// The model that was used last, if there is one.
    pub(crate) fn last_used(&self) -> Option<String> {
        self.slots().all.iter().max_by_key(|slot| slot.used).map(|slot| slot.id.clone())
    }

    fn lease(&self, resident: Arc<Resident>) -> Lease {
        resident.leases.fetch_add(1, Ordering::AcqRel);
        *resident.used_at.lock().unwrap_or_else(PoisonError::into_inner) = now();
        Lease { resident, changed: Arc::clone(&self.changed) }
    }

    /// The slot of a model, as it is or newly made.
    async fn enter(
        &self,
        id: &str,
        installed: &Installed,
        ask: Option<&LoadAsk>,
    ) -> Result<watch::Receiver<Outcome>> {
        loop {
            // Made before looking, so that no change is missed.
            let changed = self.changed.notified();
            {
                let mut slots = self.slots();
                Self::sweep(&mut slots);
                slots.clock += 1;
                let clock = slots.clock;
                let at = slots.all.iter().position(|slot| slot.id == id);
                let mut loading = false;
                if let Some(at) = at {
                    let slot = &mut slots.all[at];
                    if ask.is_none_or(|ask| slot.ask == *ask) {
                        slot.used = clock;
                        return Ok(slot.outcome.clone());
                    }
                    // What is being loaded otherwise is waited for, since it cannot be stopped.
                    loading = slot.outcome.borrow().is_none();
                    if !loading {
                        slots.all.remove(at);
                    }
                }
                if !loading && self.make_room(&mut slots, installed.bytes)? {
                    let ask = ask.cloned().unwrap_or_default();
                    let outcome = self.start(id.to_owned(), installed.clone(), ask);
                    slots.all.push(Slot {
                        id: id.to_owned(),
                        pinned: false,
                        used: clock,
                        ask,
                        bytes: installed.bytes,
                        outcome: outcome.clone(),
                    });
                    return Ok(outcome);
                }
            }
            changed.await;
        }
    }

    /// Lets idle models go, those unused for longest first, until there is room for one of `bytes`;
    /// `false` if that has to wait for others to end.
    fn make_room(&self, slots: &mut Slots, bytes: u64) -> Result<bool> {
        if let Some(budget) = self.memory.filter(|budget| bytes > *budget) {
            let message = format!(
                "the model needs about {bytes} bytes and all models together may take {budget}: \
                 start the server with more --memory"
            );
            return Err(ApiError::new(Kind::Unavailable, message));
        }
        loop {
            let taken: u64 = slots.all.iter().map(Slot::memory).sum();
            let fits = self.memory.is_none_or(|budget| taken + bytes <= budget);
            if slots.all.len() < self.models && fits {
                return Ok(true);
            }
            let idle = slots.all.iter().enumerate().filter(|(_, slot)| slot.is_idle());
            let Some((oldest, _)) = idle.min_by_key(|(_, slot)| slot.used) else {
                let all_pinned = slots.all.iter().all(|slot| slot.pinned);
                return if all_pinned { Err(no_room()) } else { Ok(false) };
            };
            slots.all.remove(oldest);
        }
    }

    /// Begins to load a model, whoever still waits for it.
    fn start(&self, id: String, installed: Installed, ask: LoadAsk) -> watch::Receiver<Outcome> {
        let (sender, receiver) = watch::channel(None);
        let loader = Arc::clone(&self.loader);
        let changed = Arc::clone(&self.changed);
        tokio::task::spawn_blocking(move || {
            let loaded = loader
                .load(&installed, &ask)
                .map(|loaded| Arc::new(Resident::new(id, installed, loaded)));
            let loaded = loaded
                .map_err(|message| ApiError::new(Kind::Internal, message).code("model_load_error"));
            // Nobody may be waiting any more.
            sender.send_replace(Some(loaded));
            changed.notify_waiters();
        });
        receiver
    }

    /// Forgets models that could not be loaded.
    fn sweep(slots: &mut Slots) {
        slots.all.retain(|slot| !matches!(&*slot.outcome.borrow(), Some(Err(_))));
    }

    /// Lets a model go; requests that use it go on. `false` if it is not in memory.
    pub(crate) fn unload(&self, id: &str) -> bool {
        let mut slots = self.slots();
        let before = slots.all.len();
        slots.all.retain(|slot| slot.id != id);
        let gone = slots.all.len() < before;
        drop(slots);
        self.changed.notify_waiters();
        gone
    }

    /// Keeps a model in memory, or no longer.
    pub(crate) fn pin(&self, id: &str, pinned: bool) {
        if let Some(slot) = self.slots().all.iter_mut().find(|slot| slot.id == id) {
            slot.pinned = pinned;
        }
    }

    /// The models that are ready, the one used last first.
    pub(crate) fn list(&self) -> Vec<Listed> {
        let mut slots = self.slots();
        Self::sweep(&mut slots);
        let ready = slots.all.iter().filter_map(|slot| match &*slot.outcome.borrow() {
            Some(Ok(resident)) => {
                Some((slot.used, Listed { resident: Arc::clone(resident), pinned: slot.pinned }))
            }
            _ => None,
        });
        let mut ready: Vec<(u64, Listed)> = ready.collect();
        ready.sort_by_key(|(used, _)| std::cmp::Reverse(*used));
        ready.into_iter().map(|(_, listed)| listed).collect()
    }

    /// Lets every model go.
    pub(crate) fn clear(&self) {
        self.slots().all.clear();
    }
}

impl Slot {
    fn memory(&self) -> u64 {
        match &*self.outcome.borrow() {
            Some(Ok(resident)) => resident.memory(),
            Some(Err(_)) => 0,
            None => self.bytes,
        }
    }

    /// Whether it can go: ready and unused, or failed.
    fn is_idle(&self) -> bool {
        match &*self.outcome.borrow() {
            Some(Ok(resident)) => !self.pinned && resident.leases() == 0,
            Some(Err(_)) => true,
            None => false,
        }
    }
}

impl Resident {
    fn new(id: String, installed: Installed, loaded: Loaded) -> Self {
        Self {
            id,
            installed,
            recommended: loaded.recommended,
            loaded_at: now(),
            model: Some(loaded.model),
            grammars: OnceLock::new(),
            leases: AtomicUsize::new(0),
            used_at: Mutex::new(now()),
        }
    }

    /// The model.
    #[allow(clippy::expect_used, reason = "it is taken out in `drop` alone")]
    pub(crate) fn model(&self) -> &Arc<Model> {
        self.model.as_ref().expect("a model that is not being dropped")
    }

    /// Bytes that it takes.
    pub(crate) fn memory(&self) -> u64 {
        let memory = self.model().memory();
        memory.weights + memory.kv
    }

    /// Requests that use it.
    pub(crate) fn leases(&self) -> usize {
        self.leases.load(Ordering::Acquire)
    }

    /// When it was last used, in seconds since 1970.
    pub(crate) fn used_at(&self) -> u64 {
        *self.used_at.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Its tokenizer.
    ///
    /// # Errors
    /// If it has none.
    pub(crate) fn tokenizer(&self) -> Result<&Arc<Tokenizer>> {
        let none = || ApiError::field("model", "the model has no tokenizer: it takes no text");
        self.model().text().tokenizer.as_ref().ok_or_else(none)
    }

    /// Its chat template.
    ///
    /// # Errors
    /// If it has none, or a broken one.
    pub(crate) fn template(&self) -> Result<&ChatTemplate> {
        let text = self.model().text();
        text.template.as_deref().ok_or_else(|| {
            let why = text.template_error.as_deref().unwrap_or("it came without one");
            let message = format!("the model has no chat template ({why}): use /v1/completions");
            ApiError::field("model", message)
        })
    }

    /// What makes grammars for its vocabulary: built when first asked for.
    ///
    /// # Errors
    /// If the vocabulary cannot be used for that.
    pub(crate) fn grammars(&self) -> Result<Arc<Grammars>> {
        let build = || {
            let tokenizer = Arc::clone(self.tokenizer()?);
            Ok(Arc::new(Grammars::new(tokenizer, self.model().hyper().vocab)?))
        };
        self.grammars.get_or_init(build).clone()
    }
}

impl Drop for Resident {
    fn drop(&mut self) {
        // Freeing a model waits for its thread, which no request should have to.
        if let Some(model) = self.model.take() {
            std::thread::spawn(move || drop(model));
        }
    }
}

impl Lease {
    /// The model.
    pub(crate) fn resident(&self) -> &Arc<Resident> {
        &self.resident
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.resident.leases.fetch_sub(1, Ordering::AcqRel);
        self.changed.notify_waiters();
    }
}

fn no_room() -> ApiError {
    let message = "there is no room to load the model: others are in use or pinned; try again \
                   later, unload one, or start the server with more --max-models";
    let error = ApiError::new(Kind::Unavailable, message).code("slots_pinned_error");
    ApiError { retry_after: Some(1), ..error }
}

/// Seconds since 1970.
pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
