//! The models in memory: loaded when somebody asks for them, and let go when others need the room.
//!
//! A request holds a [`Lease`]; a model that is let go lives until its last lease ends, so that
//! loading and unloading lose no request. It counts until then, so that no second copy of it comes
//! beside it. A model that is lost is loaded again when somebody asks for it.

use crate::error::{ApiError, Kind, Result};
use crate::limits::Limits;
use crate::loader::{LoadAsk, LoadError, Loaded, Loader};
use crate::slots::{Failed, Hold, Outcome, Slot, Slots, Table, Then};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tangor_engine::text::{ChatTemplate, Grammars, Tokenizer};
use tangor_engine::{Model, SamplingParams};
use tangor_store::Installed;
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

/// All models in memory.
pub(crate) struct Residents {
    loader: Arc<dyn Loader>,
    table: Arc<Table>,
    models: usize,
    memory: Option<u64>,
    load_time: Duration,
    reload_pause: Duration,
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
    ready: Instant,
    /// `None` only while dropping.
    model: Option<Arc<Model>>,
    grammars: OnceLock<Result<Arc<Grammars>>>,
    uses: Arc<AtomicUsize>,
    used_at: Mutex<u64>,
}

/// The right to use a model, until it is dropped.
pub(crate) struct Lease {
    resident: Arc<Resident>,
    _hold: Hold,
}

/// A model in memory, for listings.
#[derive(Clone, Debug)]
pub(crate) struct Listed {
    pub(crate) resident: Arc<Resident>,
    pub(crate) pinned: bool,
}

/// What somebody wants.
struct Wish<'a> {
    id: &'a str,
    installed: &'a Installed,
    ask: Option<&'a LoadAsk>,
}

/// A model that somebody waits for.
struct Entered {
    hold: Hold,
    outcome: watch::Receiver<Outcome>,
    /// What is still to be started.
    load: Option<Load>,
}

/// A model that is to be loaded.
struct Load {
    loader: Arc<dyn Loader>,
    table: Arc<Table>,
    id: String,
    installed: Installed,
    ask: LoadAsk,
    /// Bytes that it may take; `None`: as much as there is.
    room: Option<u64>,
    hold: Hold,
    uses: Arc<AtomicUsize>,
    outcome: watch::Sender<Outcome>,
}

impl Residents {
    pub(crate) fn new(loader: Arc<dyn Loader>, limits: &Limits) -> Self {
        Self {
            loader,
            table: Arc::default(),
            models: limits.models.max(1),
            memory: limits.memory,
            load_time: limits.load_time,
            reload_pause: limits.reload_pause,
        }
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
        let until = Instant::now() + self.load_time;
        let wish = Wish { id, installed, ask };
        let mut made_way = false;
        loop {
            let entered = timeout_at(until, self.enter(&wish)).await;
            let (hold, mut outcome) = entered.unwrap_or_else(|_| Err(in_use()))?;
            let loaded = timeout_at(until, outcome.wait_for(Option::is_some)).await;
            let loaded = loaded.map_err(|_| still_loading(self.load_time))?;
            match loaded.ok().and_then(|loaded| loaded.clone()) {
                Some(Ok(resident)) => {
                    resident.touch();
                    return Ok(Lease { resident, _hold: hold });
                }
                // What it takes is only known by its plan.
                Some(Err(Failed { lacked: Some(bytes), .. }))
                    if !made_way && self.make_way(id, bytes) =>
                {
                    made_way = true;
                }
                Some(Err(failed)) => return Err(failed.error),
                None => return Err(ApiError::new(Kind::Internal, "loading was given up")),
            }
        }
    }

    /// How many models there is room for.
    pub(crate) fn most(&self) -> usize {
        self.models
    }

    /// The model that was used last, if there is one.
    pub(crate) fn last_used(&self) -> Option<String> {
        let slots = self.table.slots();
        let stay = slots.all.iter().filter(|slot| slot.then != Then::Ends);
        stay.max_by_key(|slot| slot.used).map(|slot| slot.id.clone())
    }

    /// A hold on a model, as it is or newly loaded.
    async fn enter(&self, wish: &Wish<'_>) -> Result<(Hold, watch::Receiver<Outcome>)> {
        loop {
            // Made before looking, so that no change is missed.
            let changed = self.table.changed.notified();
            let entered = self.try_enter(&mut self.table.slots(), wish)?;
            if let Some(Entered { hold, outcome, load }) = entered {
                if let Some(load) = load {
                    // It goes on, whoever still waits for it.
                    tokio::task::spawn_blocking(move || load.run());
                }
                return Ok((hold, outcome));
            }
            changed.await;
        }
    }

    /// `None` if that has to wait for others to end.
    fn try_enter(&self, slots: &mut Slots, wish: &Wish<'_>) -> Result<Option<Entered>> {
        slots.sweep();
        let clock = slots.tick();
        let Some(slot) = slots.of(wish.id) else {
            return self.begin(slots, wish, wish.ask.copied().unwrap_or_default());
        };
        slot.settle(wish.ask);
        match slot.then {
            Then::Stays | Then::Leaves => {
                (slot.then, slot.used) = (Then::Stays, clock);
                let (hold, outcome) = (slot.hold(&self.table), slot.outcome.clone());
                Ok(Some(Entered { hold, outcome, load: None }))
            }
            Then::Reloads(next) if slot.uses() == 0 => {
                // Unless it makes room, it stays as it is.
                slot.then = Then::Stays;
                self.check_pause(slot)?;
                let begun = self.begin(slots, wish, *wish.ask.unwrap_or(&next))?;
                if let (None, Some(slot)) = (&begun, slots.of(wish.id)) {
                    slot.then = Then::Reloads(next);
                }
                Ok(begun)
            }
            Then::Reloads(_) | Then::Ends => Ok(None),
        }
    }

    /// Begins to load a model; one that is there goes when there is room, and not before, and
    /// leaves its pin.
    fn begin(&self, slots: &mut Slots, wish: &Wish<'_>, ask: LoadAsk) -> Result<Option<Entered>> {
        let Some(left) = self.make_room(slots, wish)? else { return Ok(None) };
        let pinned = slots.remove(wish.id).is_some_and(|old| old.pinned);
        let (sender, outcome) = watch::channel(None);
        let used = slots.tick();
        let (id, then, uses) = (wish.id.to_owned(), Then::Stays, Arc::default());
        let slot = Slot { id, pinned, used, ask, then, uses, outcome: outcome.clone() };
        let load = Load {
            loader: Arc::clone(&self.loader),
            table: Arc::clone(&self.table),
            id: slot.id.clone(),
            installed: wish.installed.clone(),
            ask,
            room: self.memory.map(|_| left),
            hold: slot.hold(&self.table),
            uses: Arc::clone(&slot.uses),
            outcome: sender,
        };
        let hold = slot.hold(&self.table);
        slots.all.push(slot);
        Ok(Some(Entered { hold, outcome, load: Some(load) }))
    }

    /// Lets other idle models go, those unused for longest first, until there is room for this one;
    /// the bytes that it may take, or `None` if that has to wait for others to end.
    fn make_room(&self, slots: &mut Slots, wish: &Wish<'_>) -> Result<Option<u64>> {
        let (bytes, budget) = (wish.installed.bytes, self.memory.unwrap_or(u64::MAX));
        if bytes > budget {
            return Err(too_large(bytes, budget));
        }
        // What a model that is being loaded will leave is not known yet.
        if self.memory.is_some() && slots.all.iter().any(Slot::is_loading) {
            return Ok(None);
        }
        // Weights take about what their files do; keys, values and activations come on top.
        let wanted = bytes.saturating_add(bytes / 4);
        loop {
            let others = || slots.all.iter().filter(|slot| slot.id != wish.id);
            let taken: u64 = others().map(Slot::memory).sum();
            let left = budget.saturating_sub(taken);
            let alone = others().count() == 0;
            if alone || (others().count() < self.models && wanted <= left) {
                return Ok(Some(left));
            }
            let Some(oldest) = slots.oldest_idle(wish.id).map(|slot| slot.id.clone()) else {
                let all_pinned = others().all(|slot| slot.pinned);
                let crowded = others().count() >= self.models;
                return match all_pinned {
                    true if crowded => Err(in_use()),
                    true => Err(no_memory(wanted, left, budget)),
                    false => Ok(None),
                };
            };
            slots.remove(&oldest);
        }
    }

    /// Lets idle models go that have as many bytes as another one lacked, those unused for longest
    /// first; `false` if all of them together have fewer.
    fn make_way(&self, id: &str, bytes: u64) -> bool {
        let mut slots = self.table.slots();
        slots.sweep();
        // Somebody else is trying again already.
        if slots.of(id).is_some() {
            return true;
        }
        let idle: u64 = slots.all.iter().filter(|s| s.is_idle()).map(Slot::memory).sum();
        let mut freed = 0;
        while freed < bytes.min(idle) {
            let Some(oldest) = slots.oldest_idle(id).map(|slot| slot.id.clone()) else { break };
            freed += slots.remove(&oldest).map_or(0, |slot| slot.memory());
        }
        freed >= bytes
    }

    /// A model that is lost as soon as it is loaded is not to be loaded without end.
    fn check_pause(&self, slot: &Slot) -> Result<()> {
        let lost = slot.ready().filter(|resident| resident.is_lost());
        let since = lost.map_or(Duration::MAX, |resident| resident.ready.elapsed());
        match self.reload_pause.checked_sub(since).filter(|rest| !rest.is_zero()) {
            None => Ok(()),
            Some(rest) => {
                let message = "the model was lost soon after it was loaded: it is loaded again \
                               when it is next asked for, but not at once";
                let error = ApiError::new(Kind::Unavailable, message).code("model_lost");
                Err(ApiError { retry_after: Some(rest.as_secs() + 1), ..error })
            }
        }
    }

    /// Lets a model go; requests that use it go on, and later ones have it loaded again. `false` if
    /// it is not in memory.
    pub(crate) fn unload(&self, id: &str) -> bool {
        self.table.change(|slots| {
            let slot = slots.of(id).filter(|slot| slot.then != Then::Ends);
            slot.map(|slot| slot.then = Then::Ends).is_some()
        })
    }

    /// Lets a model go when nobody uses it, unless it is pinned or somebody asks for it before.
    pub(crate) fn leave(&self, id: &str) {
        self.table.change(|slots| {
            if let Some(slot) = slots.of(id).filter(|slot| slot.then == Then::Stays) {
                slot.then = Then::Leaves;
            }
        });
    }

    /// Keeps a model in memory, or no longer.
    pub(crate) fn pin(&self, id: &str, pinned: bool) {
        let mut slots = self.table.slots();
        if let Some(slot) = slots.of(id) {
            slot.pinned = pinned;
        }
        drop(slots);
        self.table.changed.notify_waiters();
    }

    /// The models that are ready, the one used last first.
    pub(crate) fn list(&self) -> Vec<Listed> {
        let mut slots = self.table.slots();
        slots.sweep();
        let stay = slots.all.iter().filter(|slot| slot.then != Then::Ends);
        let mut ready: Vec<(u64, Listed)> = stay
            .filter_map(|slot| Some((slot.used, slot.ready()?, slot.pinned)))
            .map(|(used, resident, pinned)| (used, Listed { resident, pinned }))
            .collect();
        ready.sort_by_key(|(used, _)| std::cmp::Reverse(*used));
        ready.into_iter().map(|(_, listed)| listed).collect()
    }

    /// Lets every model go.
    pub(crate) fn clear(&self) {
        self.table.change(|slots| slots.all.iter_mut().for_each(|slot| slot.then = Then::Ends));
    }
}

impl Load {
    fn run(self) {
        let Self { loader, table, id, installed, ask, room, hold, uses, outcome } = self;
        let load = || loader.load(&installed, &ask, room);
        let loaded = catch_unwind(AssertUnwindSafe(load)).unwrap_or_else(|_| {
            let why = "loading the model panicked: this is a defect";
            Err(LoadError::Other(why.to_owned()))
        });
        let loaded = loaded.map_err(Failed::from);
        let resident = |loaded| Arc::new(Resident::new(id, installed, loaded, uses));
        // Whoever waits holds it from here on. Nobody may be waiting any more.
        drop(hold);
        outcome.send_replace(Some(loaded.map(resident)));
        table.changed.notify_waiters();
    }
}

impl From<LoadError> for Failed {
    fn from(error: LoadError) -> Self {
        let lacked = error.lacked();
        let error = ApiError::from(error);
        Self { error, lacked }
    }
}

impl Resident {
    fn new(id: String, installed: Installed, loaded: Loaded, uses: Arc<AtomicUsize>) -> Self {
        Self {
            id,
            installed,
            recommended: loaded.recommended,
            loaded_at: now(),
            ready: Instant::now(),
            model: Some(loaded.model),
            grammars: OnceLock::new(),
            uses,
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
        self.uses.load(Ordering::Acquire)
    }

    /// Whether it cannot compute any more.
    pub(crate) fn is_lost(&self) -> bool {
        self.model().lost().is_some()
    }

    fn touch(&self) {
        *self.used_at.lock().unwrap_or_else(PoisonError::into_inner) = now();
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

fn unavailable(message: impl Into<String>, code: &'static str) -> ApiError {
    let error = ApiError::new(Kind::Unavailable, message).code(code);
    ApiError { retry_after: Some(1), ..error }
}

fn in_use() -> ApiError {
    let message = "there is no room to load the model: others are in use or pinned; try again \
                   later, unload one, or start the server with more --max-models";
    unavailable(message, "slots_pinned_error")
}

fn still_loading(waited: Duration) -> ApiError {
    let message =
        format!("the model is still being loaded after {} s: try again later", waited.as_secs());
    unavailable(message, "model_loading")
}

fn too_large(bytes: u64, budget: u64) -> ApiError {
    let message = format!(
        "the model's files have {bytes} bytes and all models together may take {budget}: start the \
         server with more --memory"
    );
    ApiError::new(Kind::Unavailable, message)
}

fn no_memory(wanted: u64, left: u64, budget: u64) -> ApiError {
    let message = format!(
        "the model needs about {wanted} bytes and pinned ones leave {left} of {budget}: unload \
         one, or start the server with more --memory"
    );
    unavailable(message, "slots_pinned_error")
}

/// Seconds since 1970.
pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
