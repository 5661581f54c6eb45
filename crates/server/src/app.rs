//! What every handler works with.

use crate::answers::{Answers, Until};
use crate::ask::Ask;
use crate::catalog::Catalog;
use crate::client;
use crate::error::{ApiError, Kind, Result};
use crate::limits::Limits;
use crate::loader::LoadAsk;
use crate::metrics::Metrics;
use crate::options::Options;
use crate::prepare::{Prepared, prepare};
use crate::residents::{Lease, Resident, Residents};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;
use tangor_store::Store;
use tokio::sync::{Semaphore, watch};

/// The server's state.
pub(crate) struct App {
    pub(crate) options: Options,
    pub(crate) catalog: Catalog,
    pub(crate) residents: Residents,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) started: Instant,
    /// Places for work that keeps a thread busy before a request is admitted.
    preparing: Arc<Semaphore>,
    /// One place, for loading again what was lost.
    reloading: Arc<Semaphore>,
    /// Whether the server is to end.
    stop: watch::Sender<bool>,
    /// Whether the models that were named are loaded.
    ready: AtomicBool,
    /// Whether what still runs is to end.
    abort: watch::Sender<bool>,
    /// What `params` holds: kept for clients that read back what they wrote.
    params: Mutex<serde_json::Map<String, serde_json::Value>>,
}

impl App {
    pub(crate) fn new(options: Options, store: Store) -> Self {
        let limits = &options.limits;
        Self {
            catalog: Catalog::new(store, options.models.clone()),
            residents: Residents::new(Arc::clone(&options.loader), limits),
            metrics: Arc::new(Metrics::new()),
            started: Instant::now(),
            preparing: Arc::new(Semaphore::new(limits.preparing)),
            reloading: Arc::new(Semaphore::new(1)),
            stop: watch::Sender::new(false),
            ready: AtomicBool::new(false),
            abort: watch::Sender::new(false),
            params: Mutex::default(),
            options,
        }
    }

    pub(crate) fn limits(&self) -> &Limits {
        &self.options.limits
    }

    /// Ends the server as SIGTERM does.
    pub(crate) fn stop(&self) {
        self.stop.send_replace(true);
    }

    /// Ends every answer.
    pub(crate) fn abort(&self) {
        self.abort.send_replace(true);
    }

    /// The models that were named are loaded.
    pub(crate) fn set_ready(&self) {
        self.ready.store(true, Ordering::Release);
    }

    /// Whether the models that were named are loaded.
    pub(crate) fn is_ready(&self) -> bool {
        self.ready.load(Ordering::Acquire)
    }

    /// Becomes true when the server is to end.
    pub(crate) fn stopping(&self) -> watch::Receiver<bool> {
        self.stop.subscribe()
    }

    /// The parameters that clients have set.
    pub(crate) fn params(
        &self,
    ) -> std::sync::MutexGuard<'_, serde_json::Map<String, serde_json::Value>> {
        self.params.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A model by the name that a client gave it, loaded first where it has to be; without a name,
    /// the one that was used last.
    ///
    /// # Errors
    /// If there is no such model, or it cannot be loaded.
    pub(crate) async fn model(self: &Arc<Self>, name: Option<&str>) -> Result<Lease> {
        self.model_as(name, None).await
    }

    /// The same, loaded as the client wants it.
    ///
    /// # Errors
    /// As [`App::model`].
    pub(crate) async fn model_as(
        self: &Arc<Self>,
        name: Option<&str>,
        how: Option<&LoadAsk>,
    ) -> Result<Lease> {
        let default = || self.residents.last_used().or_else(|| self.first_served());
        let named = name.filter(|name| !name.is_empty()).map(str::to_owned);
        let name = match self.options.one_model {
            true => self.first_served(),
            false => named.or_else(default),
        };
        let name = name.ok_or_else(|| {
            let message = "model is missing, and the server was started without one";
            ApiError::field("model", message)
        })?;
        // A model in memory needs no look at the disk, and not even its files.
        if let Some(resident) = self.in_memory(&name) {
            return self.residents.acquire(&resident.id, &resident.installed, how).await;
        }
        let entry = self.blocking(move |app| app.catalog.find(&name)).await?;
        self.residents.acquire(&entry.id, &entry.installed, how).await
    }

    fn first_served(&self) -> Option<String> {
        self.catalog.served().next().map(str::to_owned)
    }

    /// A model that is in memory, in the spellings that clients have.
    pub(crate) fn in_memory(&self, name: &str) -> Option<Arc<Resident>> {
        let wanted = name.strip_suffix(":latest").unwrap_or(name);
        let all = self.residents.list().into_iter().map(|listed| listed.resident);
        all.into_iter().find(|resident| resident.id.eq_ignore_ascii_case(wanted))
    }

    /// Has models loaded again that are lost; whether there are any, or some are on their way.
    pub(crate) fn reload_lost(self: &Arc<Self>) -> bool {
        let all = self.residents.list().into_iter().map(|listed| listed.resident);
        let lost: Vec<Arc<Resident>> = all.filter(|resident| resident.is_lost()).collect();
        let any = !lost.is_empty();
        // However many ask, one of them does it.
        if any && let Ok(turn) = Arc::clone(&self.reloading).try_acquire_owned() {
            let models = lost.iter().map(|lost| (lost.id.clone(), lost.installed.clone()));
            let (app, models) = (Arc::clone(self), models.collect::<Vec<_>>());
            tokio::spawn(async move {
                let _turn = turn;
                for (id, installed) in models {
                    // Whoever asks for the model next hears why that fails.
                    drop(app.residents.acquire(&id, &installed, None).await);
                }
            });
        }
        // What is on its way is not listed.
        any || self.reloading.available_permits() == 0
    }

    /// Starts to answer.
    ///
    /// # Errors
    /// Whatever is wrong with what is asked; or that there is no room.
    pub(crate) async fn answer(self: &Arc<Self>, mut ask: Ask) -> Result<Answers> {
        self.check(&mut ask)?;
        let lease = self.model(ask.model.as_deref()).await?;
        self.begin(lease, ask).await
    }

    /// Starts to answer with a model that the caller has.
    ///
    /// # Errors
    /// As [`App::answer`].
    pub(crate) async fn answer_with(
        self: &Arc<Self>,
        lease: Lease,
        mut ask: Ask,
    ) -> Result<Answers> {
        self.check(&mut ask)?;
        self.begin(lease, ask).await
    }

    fn check(&self, ask: &mut Ask) -> Result<()> {
        ask.knobs.default_to(&self.params());
        ask.check(self.limits())?;
        self.check_open()
    }

    async fn begin(self: &Arc<Self>, lease: Lease, ask: Ask) -> Result<Answers> {
        let resident = Arc::clone(lease.resident());
        let client = client::number(ask.user.as_deref());
        let mut prepared = self.prepared(resident, ask).await?;
        prepared.requests.iter_mut().for_each(|request| request.client = client);
        let until = Until { within: self.limits().answer_time, abort: self.aborting() };
        Answers::start(lease, prepared, Arc::clone(&self.metrics), until)
    }

    /// Whether requests are still taken.
    ///
    /// # Errors
    /// If the server is to end.
    pub(crate) fn check_open(&self) -> Result<()> {
        match *self.stop.borrow() {
            true => Err(ApiError::new(Kind::Unavailable, "the server is stopping")),
            false => Ok(()),
        }
    }

    /// Becomes true when what still runs is to end.
    pub(crate) fn aborting(&self) -> watch::Receiver<bool> {
        self.abort.subscribe()
    }

    /// What is asked, ready for the engine.
    ///
    /// # Errors
    /// Whatever is wrong with it.
    pub(crate) async fn prepared(
        self: &Arc<Self>,
        resident: Arc<Resident>,
        ask: Ask,
    ) -> Result<Prepared> {
        self.preparing(move |_| prepare(&resident, &ask)).await
    }

    /// Does something that keeps a thread busy before a request is admitted, when there is a place
    /// for it.
    ///
    /// # Errors
    /// What it returns.
    pub(crate) async fn preparing<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Arc<Self>) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let place = Arc::clone(&self.preparing).acquire_owned().await;
        // The place is taken as long as the thread is busy, whether the client waits or not.
        let work = move |app: &Arc<Self>| {
            let _place = place;
            work(app)
        };
        self.blocking(work).await
    }

    /// Does something that keeps a thread busy.
    ///
    /// # Errors
    /// What it returns.
    pub(crate) async fn blocking<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Arc<Self>) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let app = Arc::clone(self);
        let done = tokio::task::spawn_blocking(move || work(&app)).await;
        let defect = |_| Err(ApiError::new(Kind::Internal, "internal error: this is a defect"));
        done.unwrap_or_else(defect)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::loader::{LoadError, Loaded, Loader};
    use std::sync::mpsc;
    use std::time::Duration;
    use tangor_store::{Installed, StoreOptions};

    #[derive(Debug)]
    struct Nothing;

    impl Loader for Nothing {
        fn load(&self, _: &Installed, _: &LoadAsk, _: Option<u64>) -> Result<Loaded, LoadError> {
            Err(LoadError::Other("there are no models".to_owned()))
        }
    }

    #[test]
    fn a_client_that_leaves_keeps_the_place_of_its_work_until_that_is_done() {
        let folder = tempfile::tempdir().unwrap();
        let home = StoreOptions { root: Some(folder.path().into()), ..StoreOptions::default() };
        let mut options = Options::new(Vec::new(), Arc::new(Nothing));
        options.limits.preparing = 1;
        let app = Arc::new(App::new(options, Store::open(home).unwrap()));
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_time().build().unwrap();
        let (begun, begins) = mpsc::channel();
        let (ends, end) = mpsc::channel::<()>();
        let work = move |_: &Arc<App>| {
            begun.send(()).unwrap();
            Ok(end.recv().is_ok())
        };
        let first = Arc::clone(&app);
        let client = runtime.spawn(async move { first.preparing(work).await });
        begins.recv().unwrap();
        client.abort();
        runtime.block_on(async {
            let while_busy = app.preparing(|_| Ok(()));
            tokio::time::timeout(Duration::from_millis(100), while_busy).await.unwrap_err();
            ends.send(()).unwrap();
            app.preparing(|_| Ok(())).await.unwrap();
        });
    }
}
