//! The store against a disk that fails, processes that die, and servers that lie.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout)]

mod damage;
mod disk;
mod faults;
mod hub;
mod local;
mod packed;
#[cfg(unix)]
mod process;
mod server;
#[cfg(unix)]
mod wheel;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;
use tangor_store::{
    Installed, ModelName, Patience, Phase, Progress, Result, Store, StoreError, StoreOptions,
};

/// A folder of its own for one test.
fn temp() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

/// Options that reach nothing but this machine, and lose no time. Only tests of servers that stall
/// are [`impatient`]: a machine that is busy is slow to answer, too.
fn options(root: &Path, endpoint: &str) -> StoreOptions {
    StoreOptions {
        root: Some(root.to_path_buf()),
        endpoint: endpoint.to_owned(),
        pip: Vec::new(),
        patience: Patience {
            stall: Duration::from_secs(120),
            attempts: 3,
            pause: Duration::from_millis(1),
        },
        disk: disk::FaultyDisk::sound().shared(),
        ..StoreOptions::default()
    }
}

fn store(root: &Path, endpoint: &str) -> Store {
    Store::open(options(root, endpoint)).unwrap()
}

/// A store that soon gives up waiting for a server that says nothing.
fn impatient(root: &Path, endpoint: &str) -> Store {
    let mut options = options(root, endpoint);
    options.patience.stall = Duration::from_secs(2);
    Store::open(options).unwrap()
}

fn name(text: &str) -> ModelName {
    ModelName::parse(text).unwrap()
}

/// A pull that nobody watches.
fn pull(store: &Store, model: &str) -> Result<Installed> {
    store.pull(&name(model), &mut |_| {}, &AtomicBool::new(false))
}

/// A pull, with every step that it takes.
fn watched(store: &Store, model: &str) -> (Result<Installed>, Vec<(Phase, String, u64)>) {
    let mut steps = Vec::new();
    let mut note = |p: &Progress<'_>| steps.push((p.phase, p.file.to_owned(), p.done));
    let result = store.pull(&name(model), &mut note, &AtomicBool::new(false));
    (result, steps)
}

/// Bytes that look random and are the same every time.
fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut byte = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 24) as u8
    };
    (0..len).map(|_| byte()).collect()
}

/// What has to hold whatever has happened: a model that is ready has the right bytes, and one that
/// is not can be pulled.
fn assert_sound(root: &Path, endpoint: &str, model: &str, content: &[u8]) {
    let store = store(root, endpoint);
    match store.resolve(&name(model)) {
        Ok(Some(ready)) => assert_eq!(std::fs::read(&ready.path).unwrap(), content),
        Ok(None) | Err(StoreError::Damaged { .. }) => {}
        Err(other) => panic!("{other}"),
    }
    for listed in store.list().unwrap().iter().filter(|listed| listed.damage.is_none()) {
        assert_eq!(std::fs::metadata(&listed.path).unwrap().len(), content.len() as u64);
    }
    let pulled = pull(&store, model).unwrap();
    assert_eq!(std::fs::read(&pulled.path).unwrap(), content);
    let ready = store.resolve(&name(model)).unwrap().unwrap();
    assert_eq!((ready.path, ready.digest), (pulled.path, pulled.digest));
    assert!(!root.join("models").read_dir().unwrap().any(|entry| {
        let part = entry.unwrap().path().join("part");
        part.exists()
    }));
}

/// A disk, as options take it.
type SharedDisk = Arc<dyn tangor_store::Disk>;
