//! The store itself: what is there, whether it is intact, and how it goes away.

use crate::digest::Sha256Digest;
use crate::manifest::{Check, Manifest};
use crate::name;
use crate::options::Watch;
use crate::source::DirSource;
use crate::sys::{self, Lock};
use crate::{ModelName, Phase, Progress, Result, StoreError, StoreOptions};
use serde::{Deserialize, Serialize};
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::time::Duration;
use tangor_formats::{Checkpoint, Limits};

/// Models on disk.
#[derive(Clone, Debug)]
pub struct Store {
    pub(crate) root: PathBuf,
    pub(crate) options: StoreOptions,
}

/// A model whose files are there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Installed {
    /// Its name, which [`ModelName::parse`] understands.
    pub name: String,
    /// Where it came from.
    pub origin: Origin,
    /// The file or folder to open.
    pub path: PathBuf,
    /// Its files.
    pub files: Vec<FileInfo>,
    /// Bytes of all files.
    pub bytes: u64,
    /// The only file's digest, or the digest of the list of digests; none for local models.
    pub digest: Option<Sha256Digest>,
    /// Seconds since 1970; none for local models.
    pub pulled_at: Option<u64>,
    /// Why it cannot be used, as far as can be told without reading it.
    pub damage: Option<String>,
}

/// What is left of a model that was not pulled to the end, or whose manifest is broken. The next
/// pull goes on with it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Unfinished {
    /// The model's name, where it is known.
    pub name: Option<String>,
    /// Its folder in the store.
    pub path: PathBuf,
    /// Bytes of its files.
    pub bytes: u64,
}

/// A file of a model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FileInfo {
    /// Name relative to the model, with `/` between folders.
    pub path: String,
    /// Its length.
    pub bytes: u64,
    /// Its digest; none for local models.
    pub sha256: Option<Sha256Digest>,
}

/// Where a model came from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Origin {
    /// A Python package.
    Package {
        /// What pip was asked for.
        requirement: String,
    },
    /// A repository of a model hub.
    Hub {
        /// `org/repo`.
        repo: String,
        /// The commit that was fetched.
        commit: String,
    },
    /// The user's own files.
    Local,
}

impl Store {
    /// A store at the place that the options name. Touches no disk: a store that nothing was
    /// pulled to need not exist.
    ///
    /// # Errors
    /// [`StoreError::NoHome`] if no place is named and the user has no home;
    /// [`StoreError::Io`] if the place is relative and there is no current folder.
    pub fn open(options: StoreOptions) -> Result<Self> {
        let root = options.root.clone().map_or_else(sys::default_root, Ok)?;
        // Programs that the store starts have another current folder.
        let root = std::path::absolute(&root)
            .map_err(|error| StoreError::io("find the folder", root, error))?;
        Ok(Self { root, options })
    }

    /// Where models are kept: an absolute path.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Finds a model and makes sure that its files are what was pulled; files that look untouched
    /// are not read for that. `None`: it would have to be pulled first.
    ///
    /// # Errors
    /// [`StoreError::Damaged`]; for paths [`StoreError::NotFound`], [`StoreError::NotAModel`];
    /// [`StoreError::Io`].
    pub fn resolve(&self, name: &ModelName) -> Result<Option<Installed>> {
        match name {
            ModelName::Path(path) => local(path).map(Some),
            _ => self.installed(name, Check::Stamps, &mut |_, _, _| Ok(())),
        }
    }

    /// Reads every byte of a model again. Local models have no digests to compare with, and are
    /// always fine.
    ///
    /// # Errors
    /// [`StoreError::Damaged`], [`StoreError::NotInstalled`], [`StoreError::Cancelled`],
    /// [`StoreError::Io`].
    pub fn verify(
        &self,
        name: &ModelName,
        progress: &mut dyn FnMut(&Progress<'_>),
        cancel: &AtomicBool,
    ) -> Result<Installed> {
        if let ModelName::Path(path) = name {
            return local(path);
        }
        self.verified(name, &mut Watch::new(progress, cancel))?
            .ok_or_else(|| StoreError::NotInstalled(name.to_string()))
    }

    pub(crate) fn verified(
        &self,
        name: &ModelName,
        watch: &mut Watch<'_>,
    ) -> Result<Option<Installed>> {
        self.installed(name, Check::Digests, &mut |file, done, total| {
            watch.tick(Phase::Verifying, file, done, Some(total))
        })
    }

    /// The entry of `name`, if it has a manifest and passes the check.
    fn installed(
        &self,
        name: &ModelName,
        check: Check,
        each: &mut dyn FnMut(&str, u64, u64) -> Result<()>,
    ) -> Result<Option<Installed>> {
        let Some(entry) = self.entry(name) else { return Ok(None) };
        let text = name.to_string();
        let Some(mut manifest) = Manifest::read(&entry, &text)? else { return Ok(None) };
        if manifest.name != text {
            return Err(StoreError::Damaged {
                name: text,
                file: crate::manifest::FILE.to_owned(),
                why: format!("is that of {}", manifest.name),
            });
        }
        if manifest.check(&entry.join(FILES), check, each)? {
            // Saves the next look at it the hashing. A store that may not be written to is as good.
            self.renew(name, &entry, &manifest);
        }
        Ok(Some(installed(&entry, manifest, None)))
    }

    /// Records newer stamps, unless another process changes the entry.
    fn renew(&self, name: &ModelName, entry: &Path, checked: &Manifest) {
        let Ok(Some(_lock)) = self.try_lock(name) else { return };
        let Ok(Some(current)) = Manifest::read(entry, &checked.name) else { return };
        if current.pulled_at == checked.pulled_at {
            let _ = checked.write(&*self.options.disk, entry);
        }
    }

    /// Every installed model, by name. Looks at the lengths of files only; damaged models are
    /// listed with their damage.
    ///
    /// # Errors
    /// [`StoreError::Io`] if the store cannot be read.
    pub fn list(&self) -> Result<Vec<Installed>> {
        let mut models = Vec::new();
        for (entry, manifest) in self.entries()? {
            let Some(mut manifest) = manifest else { continue };
            let damage =
                match manifest.check(&entry.join(FILES), Check::Lengths, &mut |_, _, _| Ok(())) {
                    Ok(_) => None,
                    Err(StoreError::Damaged { file, why, .. }) => Some(format!("{file} {why}")),
                    Err(error) => Some(error.to_string()),
                };
            models.push(installed(&entry, manifest, damage));
        }
        models.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(models)
    }

    /// What pulls that have not ended have left, those that are still running included.
    ///
    /// # Errors
    /// [`StoreError::Io`] if the store cannot be read.
    pub fn unfinished(&self) -> Result<Vec<Unfinished>> {
        let left = |(path, manifest): (PathBuf, Option<Manifest>)| {
            manifest.is_none().then(|| {
                let (name, bytes) = (noted_name(&path), folder_bytes(&path));
                Unfinished { name, path, bytes }
            })
        };
        Ok(self.entries()?.into_iter().filter_map(left).collect())
    }

    /// Folders of all entries in order, with manifests of those that have one and can read it.
    fn entries(&self) -> Result<Vec<(PathBuf, Option<Manifest>)>> {
        let folder = self.root.join(MODELS);
        let failed = |error| StoreError::io("read the folder", &folder, error);
        let found = match fs::read_dir(&folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            found => found.map_err(failed)?,
        };
        let mut entries = Vec::new();
        for entry in found {
            let entry = entry.map_err(failed)?.path();
            match Manifest::read(&entry, &entry.display().to_string()) {
                Ok(manifest) => entries.push((entry, manifest)),
                Err(StoreError::Damaged { .. }) => entries.push((entry, None)),
                Err(error) => return Err(error),
            }
        }
        entries.sort_by(|(one, _), (other, _)| one.cmp(other));
        Ok(entries)
    }

    /// Removes a model, its packed weights, and what has arrived of one that is not complete.
    /// Programs that have it open go on undisturbed where the system allows that, and keep it from
    /// being removed where it does not. Returns the bytes of its files.
    ///
    /// # Errors
    /// [`StoreError::NotInstalled`], also for paths: the store does not touch what is not its own;
    /// [`StoreError::Io`].
    pub fn remove(&self, name: &ModelName, cancel: &AtomicBool) -> Result<u64> {
        let absent = || StoreError::NotInstalled(name.to_string());
        let entry = self.entry(name).filter(|entry| entry.is_dir()).ok_or_else(absent)?;
        let _lock = self.lock(name, &mut Watch::new(&mut |_| {}, cancel))?;
        let packed = Manifest::read(&entry, &name.to_string()).ok().flatten();
        let packed = packed
            .map_or_else(Vec::new, |manifest| self.packed_of(&installed(&entry, manifest, None)));
        let bytes = folder_bytes(&entry);
        let aside = self.set_aside(&entry)?;
        let packed = self.remove_packed(&packed).unwrap_or(0);
        let removed = self.options.disk.remove_dir_all(&aside);
        removed.map_err(|error| StoreError::io("remove the folder", &aside, error))?;
        self.clear_removed();
        Ok(bytes + packed)
    }

    /// Takes an entry out of the list in one step, which fails where a system does not let go of
    /// files that are open: then nothing of the model has changed. Returns where it is now.
    fn set_aside(&self, entry: &Path) -> Result<PathBuf> {
        let disk = &*self.options.disk;
        let folder = self.root.join(REMOVED);
        sys::create_dirs(disk, &folder)?;
        let aside = folder.join(entry.file_name().unwrap_or_default());
        let failed = |error| StoreError::io("remove the folder", entry, sys::of_open_folder(error));
        // What an earlier removal has left.
        disk.remove_dir_all(&aside).map_err(failed)?;
        disk.rename(entry, &aside).map_err(failed)?;
        entry.parent().map_or(Ok(()), |models| disk.sync_dir(models)).map_err(failed)?;
        Ok(aside)
    }

    /// Removes what removals that were cut off have left.
    pub(crate) fn clear_removed(&self) {
        for left in fs::read_dir(self.root.join(REMOVED)).into_iter().flatten().flatten() {
            // The next one tries again.
            let _ = self.options.disk.remove_dir_all(&left.path());
        }
    }

    /// Opens a model: checked descriptions, and weights that are mapped.
    ///
    /// # Errors
    /// [`StoreError::Format`], [`StoreError::Io`], [`StoreError::NotFound`].
    pub fn open_checkpoint(&self, model: &Installed, limits: &Limits) -> Result<Checkpoint> {
        let source = DirSource::open(&model.path)?;
        let mut checkpoint = Checkpoint::open(&source, source.file(), limits)?;
        // Weights that were packed were all read before.
        if checkpoint.guard().identity().is_some_and(|identity| self.has_packed(&identity)) {
            checkpoint.assume_finite();
        }
        Ok(checkpoint)
    }

    /// The model's folder in the store; none for paths.
    pub(crate) fn entry(&self, name: &ModelName) -> Option<PathBuf> {
        Some(self.root.join(MODELS).join(name.key()?))
    }

    fn try_lock(&self, name: &ModelName) -> Result<Option<Lock>> {
        let key = name.key().ok_or_else(|| StoreError::NotInstalled(name.to_string()))?;
        let folder = self.root.join("locks");
        sys::create_dirs(&*self.options.disk, &folder)?;
        Lock::take(&folder.join(format!("{key}.lock")))
    }

    /// Waits until no other process changes the model.
    pub(crate) fn lock(&self, name: &ModelName, watch: &mut Watch<'_>) -> Result<Lock> {
        const LOOK_AGAIN: Duration = Duration::from_millis(50);
        loop {
            if let Some(lock) = self.try_lock(name)? {
                return Ok(lock);
            }
            watch.tick(Phase::Waiting, &name.to_string(), 0, None)?;
            std::thread::park_timeout(LOOK_AGAIN);
        }
    }
}

/// Folder of the entries, in the root.
const MODELS: &str = "models";
/// Folder of entries that are being removed, in the root.
const REMOVED: &str = "removed";
/// Folder of the model's files, in an entry.
pub(crate) const FILES: &str = "files";
/// Folder of what has not arrived completely, in an entry.
pub(crate) const PART: &str = "part";
/// File with the model's name, in an entry.
pub(crate) const NAME: &str = "name";

/// The name that the beginning of a pull has noted in an entry.
fn noted_name(entry: &Path) -> Option<String> {
    const LONGEST: u64 = 4096;
    let mut name = String::new();
    let file = sys::open_regular(&entry.join(NAME)).ok()?;
    file.take(LONGEST).read_to_string(&mut name).ok()?;
    (entry.file_name()?.to_str()? == name::key(&name)).then_some(name)
}

pub(crate) fn installed(entry: &Path, manifest: Manifest, damage: Option<String>) -> Installed {
    let info = |record: &crate::manifest::Record| FileInfo {
        path: record.path.clone(),
        bytes: record.bytes,
        sha256: Some(record.sha256),
    };
    let files: Vec<FileInfo> = manifest.files.iter().map(info).collect();
    let digest = match manifest.files.as_slice() {
        [only] => only.sha256,
        files => {
            let line = |file: &crate::manifest::Record| format!("{}  {}\n", file.sha256, file.path);
            Sha256Digest::of(files.iter().map(line).collect::<String>().as_bytes())
        }
    };
    let mut path = entry.join(FILES);
    path.extend(manifest.open.split('/').filter(|part| !part.is_empty()));
    Installed {
        name: manifest.name,
        origin: manifest.origin,
        path,
        bytes: files.iter().map(|file| file.bytes).sum(),
        files,
        digest: Some(digest),
        pulled_at: Some(manifest.pulled_at),
        damage,
    }
}

/// The user's own file or folder.
fn local(path: &Path) -> Result<Installed> {
    let source = DirSource::open(path)?;
    let files: Vec<FileInfo> = source
        .lengths()?
        .into_iter()
        .map(|(path, bytes)| FileInfo { path, bytes, sha256: None })
        .collect();
    Ok(Installed {
        name: path.display().to_string(),
        origin: Origin::Local,
        path: path.to_path_buf(),
        bytes: files.iter().map(|file| file.bytes).sum(),
        files,
        digest: None,
        pulled_at: None,
        damage: None,
    })
}

/// Bytes of the regular files below a folder, as far as they can be seen; follows no links.
pub(crate) fn folder_bytes(folder: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(folder) else { return 0 };
    let size = |entry: fs::DirEntry| match entry.file_type() {
        Ok(kind) if kind.is_dir() => folder_bytes(&entry.path()),
        Ok(kind) if kind.is_file() => entry.metadata().map_or(0, |meta| meta.len()),
        _ => 0,
    };
    entries.flatten().map(size).sum()
}
