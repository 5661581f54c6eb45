//! Fetching and removing models, whoever asks for it.

use crate::app::App;
use crate::error::{ApiError, Result};
use crate::reply::{Frame, Frames};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tangor_store::{Installed, ModelName};

/// Between two words about progress.
const PACE: Duration = Duration::from_millis(100);

/// What becomes of a pull.
pub(crate) enum Arrival<'a> {
    Begun,
    More { file: &'a str, done: u64, total: Option<u64> },
    Complete,
    Failed(&'a ApiError),
}

/// Ends a pull when nobody waits for it any more; what has arrived is kept for the next one.
struct Ends(Arc<AtomicBool>);

impl Drop for Ends {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Fetches a model.
///
/// # Errors
/// Why it cannot be fetched.
pub(crate) async fn pull(app: &Arc<App>, name: ModelName) -> Result<Installed> {
    let ends = Ends(Arc::default());
    let cancel = Arc::clone(&ends.0);
    let pulling =
        move |app: &Arc<App>| Ok(app.catalog.store().pull(&name, &mut |_| {}, &cancel)?);
    app.blocking(pulling).await
}

/// Fetches a model and tells how far it is. The pull ends when the client leaves.
pub(crate) fn stream(
    app: &Arc<App>,
    name: ModelName,
    frames: Frames,
    word: impl Fn(Arrival<'_>) -> Frame + Send + 'static,
) {
    let app = Arc::clone(app);
    tokio::task::spawn_blocking(move || {
        frames.send_blocking(&word(Arrival::Begun));
        let cancel = AtomicBool::new(false);
        let mut told: Option<(String, Instant)> = None;
        let mut tell = |step: &tangor_store::Progress<'_>| {
            if frames.is_gone() {
                cancel.store(true, Ordering::Relaxed);
            }
            let fresh = |(file, at): &(String, Instant)| file == step.file && at.elapsed() < PACE;
            let complete = step.total == Some(step.done);
            if !complete && told.as_ref().is_some_and(fresh) {
                return;
            }
            told = Some((step.file.to_owned(), Instant::now()));
            let arrival = Arrival::More { file: step.file, done: step.done, total: step.total };
            frames.send_blocking(&word(arrival));
        };
        let pulled = app.catalog.store().pull(&name, &mut tell, &cancel);
        let last = match pulled.map_err(ApiError::from) {
            Ok(_) => word(Arrival::Complete),
            Err(error) => word(Arrival::Failed(&error)),
        };
        frames.send_blocking(&last);
    });
}

/// Removes a model of the store, and lets it go; requests that use it go on.
///
/// # Errors
/// If there is no such model, or it cannot be removed.
pub(crate) async fn remove(app: &Arc<App>, name: &str) -> Result<()> {
    let found = app.catalog.pullable(name);
    let name = found.map_err(|_| ApiError::no_model(name))?;
    let id = name.to_string();
    app.blocking(move |app| Ok(app.catalog.store().remove(&name, &AtomicBool::new(false))?))
        .await?;
    app.residents.unload(&id);
    Ok(())
}
