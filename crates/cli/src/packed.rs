//! The store's packed weights, as devices want them.

use crate::args::Global;
use crate::error::Outcome;
use crate::{load, terminal};
use std::sync::{Arc, Mutex, PoisonError};
use tangor_engine::device::{PackedBytes, PackedCache, PackedKey, PackedWriter};
use tangor_store::{Store, StoreError};

/// Packed weights of the store, and the first thing that went wrong with them.
#[derive(Debug)]
pub(crate) struct Packed {
    store: Store,
    trouble: Arc<Trouble>,
}

/// The first error.
#[derive(Debug, Default)]
struct Trouble(Mutex<Option<StoreError>>);

impl Trouble {
    fn note(&self, error: StoreError) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
    }
}

impl Packed {
    /// Those of the store that the global options name.
    pub(crate) fn new(global: &Global) -> Outcome<Arc<Self>> {
        Ok(Arc::new(Self { store: load::store(global)?, trouble: Arc::default() }))
    }

    /// Says what went wrong, if something did. Answers are the same without packed weights; only
    /// the next start is slower.
    pub(crate) fn report(&self) {
        let trouble = self.trouble.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(error) = trouble {
            terminal::note(&format!("packed weights are not kept for the next start: {error}"));
        }
    }
}

impl PackedCache for Packed {
    fn find(&self, key: &PackedKey) -> Option<PackedBytes> {
        let found = self.store.find_packed(&key.model, &key.form)?;
        Some(PackedBytes { index: found.index, data: found.data, guard: found.guard })
    }

    fn create(&self, key: &PackedKey, bytes: u64) -> Option<Box<dyn PackedWriter>> {
        match self.store.create_packed(&key.model, &key.form, bytes) {
            Ok(writer) => Some(Box::new(Writer { writer: writer?, trouble: self.trouble.clone() })),
            Err(error) => {
                self.trouble.note(error);
                None
            }
        }
    }

    fn discard(&self, key: &PackedKey) {
        self.store.discard_packed(&key.model, &key.form);
    }
}

#[derive(Debug)]
struct Writer {
    writer: tangor_store::PackedWriter,
    trouble: Arc<Trouble>,
}

impl PackedWriter for Writer {
    fn write(&mut self, bytes: &[u8]) -> bool {
        self.writer.write(bytes).map_err(|error| self.trouble.note(error)).is_ok()
    }

    fn finish(self: Box<Self>, index: String) {
        let Self { writer, trouble } = *self;
        if let Err(error) = writer.finish(index) {
            trouble.note(error);
        }
    }
}
