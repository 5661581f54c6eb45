//! Places for models in memory, and who keeps them: one per model, from the moment that it begins
//! to be loaded until nobody uses it any more.
//!
//! Whoever uses a model or waits for it has a [`Hold`], and so has its loading. Holds are taken and
//! given back under the lock of all slots, so that what has none can go, and what goes takes no
//! memory beside what comes.

use crate::error::ApiError;
use crate::loader::LoadAsk;
use crate::residents::Resident;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::{Notify, watch};

/// What became of loading a model; `None`: it is still loading.
pub(crate) type Outcome = Option<Result<Arc<Resident>, Failed>>;

/// Why a model could not be loaded.
#[derive(Clone, Debug)]
pub(crate) struct Failed {
    pub(crate) error: ApiError,
    /// Bytes that it lacked, if that is why.
    pub(crate) lacked: Option<u64>,
}

/// All slots, and who waits for them to change.
#[derive(Default)]
pub(crate) struct Table {
    slots: Mutex<Slots>,
    /// A model is loaded, became idle, or has gone.
    pub(crate) changed: Notify,
}

#[derive(Default)]
pub(crate) struct Slots {
    /// At most one of a model.
    pub(crate) all: Vec<Slot>,
    /// Counts uses, to tell which was the last.
    clock: u64,
}

pub(crate) struct Slot {
    pub(crate) id: String,
    pub(crate) pinned: bool,
    pub(crate) used: u64,
    pub(crate) ask: LoadAsk,
    pub(crate) then: Then,
    /// Holds that there are.
    pub(crate) uses: Arc<AtomicUsize>,
    pub(crate) outcome: watch::Receiver<Outcome>,
}

/// What becomes of a model when nobody uses it any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Then {
    /// It stays until others need the room.
    Stays,
    /// It goes, unless it is pinned or somebody asks for it before.
    Leaves,
    /// It goes; whoever asks for it meanwhile waits for that, and has it loaded again.
    Ends,
    /// It makes room for itself, loaded so; whoever asks for it meanwhile waits for that.
    Reloads(LoadAsk),
}

/// Keeps a model where it is, until it is dropped.
pub(crate) struct Hold {
    table: Arc<Table>,
    uses: Arc<AtomicUsize>,
}

impl Table {
    pub(crate) fn slots(&self) -> MutexGuard<'_, Slots> {
        // Whoever panicked while holding it has changed no part of it by halves.
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes what becomes of models: those that may go now do, and whoever waits looks again.
    pub(crate) fn change<T>(&self, change: impl FnOnce(&mut Slots) -> T) -> T {
        let mut slots = self.slots();
        let out = change(&mut slots);
        slots.let_go();
        drop(slots);
        self.changed.notify_waiters();
        out
    }
}

impl Slots {
    /// The time of the next use.
    pub(crate) fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }

    pub(crate) fn of(&mut self, id: &str) -> Option<&mut Slot> {
        self.all.iter_mut().find(|slot| slot.id == id)
    }

    /// Forgets models that could not be loaded.
    pub(crate) fn sweep(&mut self) {
        self.all.retain(|slot| !matches!(&*slot.outcome.borrow(), Some(Err(_))));
    }

    /// Of the models that may go at once, other than `but`, the one that is unused for longest.
    pub(crate) fn oldest_idle(&self, but: &str) -> Option<&Slot> {
        let others = self.all.iter().filter(|slot| slot.id != but);
        others.filter(|slot| slot.is_idle()).min_by_key(|slot| slot.used)
    }

    pub(crate) fn remove(&mut self, id: &str) -> Option<Slot> {
        let at = self.all.iter().position(|slot| slot.id == id)?;
        Some(self.all.remove(at))
    }

    /// Removes models that go and that nobody uses.
    fn let_go(&mut self) {
        self.all.retain(|slot| match slot.then {
            Then::Ends => slot.uses() > 0,
            Then::Leaves => slot.uses() > 0 || slot.pinned,
            Then::Stays | Then::Reloads(_) => true,
        });
    }
}

impl Slot {
    /// The model, if it is loaded.
    pub(crate) fn ready(&self) -> Option<Arc<Resident>> {
        self.outcome.borrow().as_ref()?.as_ref().ok().map(Arc::clone)
    }

    pub(crate) fn is_loading(&self) -> bool {
        self.outcome.borrow().is_none()
    }

    pub(crate) fn uses(&self) -> usize {
        self.uses.load(Ordering::Acquire)
    }

    /// Whether others may have its room now.
    pub(crate) fn is_idle(&self) -> bool {
        !self.pinned && self.uses() == 0
    }

    /// Bytes that it takes, once that is known.
    pub(crate) fn memory(&self) -> u64 {
        self.ready().map_or(0, |resident| resident.memory())
    }

    /// Has it loaded again where it cannot stay as it is: it was lost, or is wanted otherwise.
    pub(crate) fn settle(&mut self, ask: Option<&LoadAsk>) {
        let lost = self.ready().is_some_and(|resident| resident.is_lost());
        let otherwise = ask.filter(|ask| **ask != self.ask);
        if self.then != Then::Ends && (lost || otherwise.is_some()) {
            self.then = Then::Reloads(*otherwise.unwrap_or(&self.ask));
        }
    }

    pub(crate) fn hold(&self, table: &Arc<Table>) -> Hold {
        self.uses.fetch_add(1, Ordering::AcqRel);
        Hold { table: Arc::clone(table), uses: Arc::clone(&self.uses) }
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.table.change(|_| self.uses.fetch_sub(1, Ordering::AcqRel));
    }
}
