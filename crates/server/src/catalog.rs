//! The models that clients may name: those in the store, and those that the server was started
//! with. A request can name no path.

use crate::card::Card;
use crate::error::{ApiError, Kind, Result};
use std::collections::HashMap;
use std::path::Component;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::UNIX_EPOCH;
use tangor_engine::plan::model::formats::Limits;
use tangor_store::{Installed, ModelName, Sha256Digest, Store, StoreError};

/// Cards that are kept.
const CARDS: usize = 1024;
/// Folders of a path that are looked at to tell models of one name apart.
const FOLDERS: usize = 64;

/// Names of models.
#[derive(Debug)]
pub(crate) struct Catalog {
    store: Store,
    /// Models that were named when the server was started, by their ids.
    served: Vec<(String, ModelName)>,
    /// Cards that were read, by their models' digests.
    cards: Mutex<HashMap<Sha256Digest, Arc<Card>>>,
}

/// A model that is on this machine.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    /// What clients call it.
    pub(crate) id: String,
    pub(crate) installed: Installed,
}

impl Catalog {
    pub(crate) fn new(store: Store, served: Vec<ModelName>) -> Self {
        let served = told_apart(served);
        Self { store, served, cards: Mutex::default() }
    }

    /// The store behind it.
    pub(crate) fn store(&self) -> &Store {
        &self.store
    }

    /// Ids of the models that the server was started with.
    pub(crate) fn served(&self) -> impl Iterator<Item = &str> {
        self.served.iter().map(|(id, _)| id.as_str())
    }

    /// Every model, those that the server was started with first. Reads the disk.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub(crate) fn list(&self) -> Result<Vec<Entry>> {
        let mut all = Vec::new();
        for (id, name) in &self.served {
            if let Some(installed) = self.present(name)? {
                all.push(Entry { id: id.clone(), installed });
            }
        }
        for installed in self.store.list()?.into_iter().filter(|model| model.damage.is_none()) {
            let known = |entry: &Entry| {
                entry.installed.path == installed.path || entry.id == installed.name
            };
            if !all.iter().any(known) {
                all.push(Entry { id: installed.name.clone(), installed });
            }
        }
        Ok(all)
    }

    /// A model that the server was started with, if its files are there still.
    fn present(&self, name: &ModelName) -> Result<Option<Installed>> {
        match self.store.resolve(name) {
            Err(StoreError::NotFound(_) | StoreError::NotAModel { .. }) => Ok(None),
            found => Ok(found?),
        }
    }

    /// The model of a name, in the spellings that clients have: any case, with or without
    /// `:latest`. Reads the disk.
    ///
    /// # Errors
    /// If there is none.
    pub(crate) fn find(&self, name: &str) -> Result<Entry> {
        let wanted = name.strip_suffix(":latest").unwrap_or(name);
        let same = |id: &str| id.eq_ignore_ascii_case(wanted);
        if let Some((id, model)) = self.served.iter().find(|(id, _)| same(id)) {
            let installed = self.present(model)?.ok_or_else(|| ApiError::no_model(name))?;
            return Ok(Entry { id: id.clone(), installed });
        }
        let listed = self.store.list()?.into_iter().find(|model| same(&model.name));
        let listed = listed.ok_or_else(|| ApiError::no_model(name))?;
        let parsed = ModelName::parse(&listed.name)?;
        let installed = self.store.resolve(&parsed)?.ok_or_else(|| ApiError::no_model(name))?;
        Ok(Entry { id: installed.name.clone(), installed })
    }

    /// What the files of a model, with this digest, say of its shape; nothing where they cannot be
    /// read. Reads the disk once per model, and every time where that fails.
    pub(crate) fn card(&self, entry: &Entry, digest: Sha256Digest) -> Arc<Card> {
        let cards = || self.cards.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(card) = cards().get(&digest) {
            return Arc::clone(card);
        }
        let checkpoint = self.store.open_checkpoint(&entry.installed, &Limits::default());
        let Ok(card) = checkpoint.map(|checkpoint| Arc::new(Card::of(&checkpoint))) else {
            return Arc::default();
        };
        let mut cards = cards();
        if cards.len() >= CARDS {
            cards.clear();
        }
        cards.insert(digest, Arc::clone(&card));
        card
    }

    /// The name of a model that is to be fetched or removed: one of the store's.
    ///
    /// # Errors
    /// If it is no name, or a path.
    pub(crate) fn pullable(&self, name: &str) -> Result<ModelName> {
        let wanted = name.strip_suffix(":latest").unwrap_or(name);
        match ModelName::parse(wanted)? {
            ModelName::Path(_) => {
                let message = "models are named `smollm2` or `org/repo[:file]`, not by path";
                Err(ApiError {
                    param: Some("model".into()),
                    ..ApiError::new(Kind::Invalid, message)
                })
            }
            name => Ok(name),
        }
    }
}

impl Entry {
    /// What tells these files from others: their digest, and of the user's own files that of their
    /// places, lengths and times, since reading them all takes long. Reads the disk.
    pub(crate) fn digest(&self) -> Sha256Digest {
        let Installed { path, files, digest, .. } = &self.installed;
        if let Some(digest) = digest {
            return *digest;
        }
        let mut told = path.display().to_string();
        for file in files {
            let at = if path.is_dir() { path.join(&file.path) } else { path.clone() };
            let changed = at.metadata().and_then(|metadata| metadata.modified()).ok();
            let changed = changed.and_then(|time| time.duration_since(UNIX_EPOCH).ok());
            let nanos = changed.unwrap_or_default().as_nanos();
            told.push_str(&format!("\n{} {} {nanos}", file.path, file.bytes));
        }
        Sha256Digest::of(told.as_bytes())
    }
}

/// Models and what clients call them. Of files or folders of one name, as every export calls them,
/// the names begin with as many folders as tell them apart; one that was named twice is one.
fn told_apart(names: Vec<ModelName>) -> Vec<(String, ModelName)> {
    let mut served: Vec<(String, ModelName)> = Vec::new();
    for name in names {
        if !served.iter().any(|(_, known)| *known == name) {
            served.push((id_of(&name, 0), name));
        }
    }
    for folders in 1..=FOLDERS {
        let ids: Vec<String> = served.iter().map(|(id, _)| id.to_lowercase()).collect();
        let shared = |id: &str| ids.iter().filter(|other| **other == id.to_lowercase()).count() > 1;
        for (id, name) in &mut served {
            if shared(id) {
                *id = id_of(name, folders);
            }
        }
    }
    served
}

/// What clients call a model: its name, or the file's without ending and with so many folders.
fn id_of(name: &ModelName, folders: usize) -> String {
    let ModelName::Path(path) = name else { return name.to_string() };
    let whole = if folders > 0 { std::path::absolute(path).ok() } else { None };
    let parts = whole.as_ref().unwrap_or(path).components().filter_map(|part| match part {
        Component::Normal(part) => Some(part.to_string_lossy().into_owned()),
        _ => None,
    });
    let parts: Vec<String> = parts.collect();
    let last = parts.get(parts.len().saturating_sub(folders + 1)..).unwrap_or_default();
    let id = if last.is_empty() { "model".to_owned() } else { last.join("/") };
    id.strip_suffix(".gguf").map_or(id.clone(), str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_called_by_its_name_alone() {
        for (name, id) in [("/a/b/model.Q4_0.gguf", "model.Q4_0"), ("./folder", "folder")] {
            assert_eq!(id_of(&ModelName::Path(name.into()), 0), id);
        }
        assert_eq!(id_of(&ModelName::parse("smollm2").unwrap(), 0), "smollm2");
    }

    #[test]
    fn models_of_one_name_are_told_apart_by_their_folders() {
        for (paths, ids) in [
            (&["/q4/model.gguf", "/q8/model.gguf"][..], &["q4/model", "q8/model"][..]),
            (&["/a/cpu-int4", "/b/CPU-int4", "/c/x"], &["a/cpu-int4", "b/CPU-int4", "x"]),
            (&["/a/v1/m", "/b/v1/m", "/b/v2/m"], &["a/v1/m", "b/v1/m", "v2/m"]),
            (&["/a/m", "/a/m"], &["m"]),
            (&["/m", "/a/m"], &["m", "a/m"]),
        ] {
            let names = paths.iter().map(|path| ModelName::Path(path.into())).collect();
            let served: Vec<String> = told_apart(names).into_iter().map(|(id, _)| id).collect();
            assert_eq!(served, ids);
        }
    }
}
