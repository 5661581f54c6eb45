//! The models that clients may name: those in the store, and those that the server was started
//! with. A request can name no path.

use crate::error::{ApiError, Kind, Result};
use tangor_store::{Installed, ModelName, Store, StoreError};

/// Names of models.
#[derive(Debug)]
pub(crate) struct Catalog {
    store: Store,
    /// Models that were named when the server was started, by their ids.
    served: Vec<(String, ModelName)>,
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
        let served = served.into_iter().map(|name| (id_of(&name), name)).collect();
        Self { store, served }
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

/// What clients call a model: its name, or the file's without folder and ending.
fn id_of(name: &ModelName) -> String {
    match name {
        ModelName::Path(path) => {
            let stem = path.file_name().map(|name| name.to_string_lossy().into_owned());
            let stem = stem.unwrap_or_else(|| "model".to_owned());
            stem.strip_suffix(".gguf").map_or(stem.clone(), str::to_owned)
        }
        name => name.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_called_by_its_name_alone() {
        for (name, id) in [("/a/b/model.Q4_0.gguf", "model.Q4_0"), ("./folder", "folder")] {
            assert_eq!(id_of(&ModelName::Path(name.into())), id);
        }
        assert_eq!(id_of(&ModelName::parse("smollm2").unwrap()), "smollm2");
    }
}
