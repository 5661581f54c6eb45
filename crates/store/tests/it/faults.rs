//! A pull that is interrupted at every operation on the disk in turn.

use crate::disk::{Fault, FaultyDisk};
use crate::server::{Server, hub};
use crate::{assert_sound, name, noise, options, pull, store, temp};
use std::io::ErrorKind;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use tangor_store::{Installed, Result, Store, StoreError, StoreOptions};

const MODEL: &str = "org/repo";

fn small_hub(content: &[u8]) -> Server {
    hub(vec![("m.gguf", content.to_vec(), true), ("README.md", b"read me".to_vec(), false)])
}

fn on(disk: &Arc<FaultyDisk>, root: &Path, endpoint: &str) -> Store {
    Store::open(StoreOptions { disk: disk.shared(), ..options(root, endpoint) }).unwrap()
}

/// Pulls with a fault at operation 0, 1, 2, … until a pull is through before it; returns how many
/// operations a pull has.
fn sweep(
    fault: Fault,
    endpoint: &str,
    mut after: impl FnMut(&Path, &FaultyDisk, Result<Installed>),
) -> usize {
    for at in 0.. {
        let root = temp();
        let disk = FaultyDisk::new(at, fault);
        let result = pull(&on(&disk, root.path(), endpoint), MODEL);
        if !disk.reached() {
            assert!(result.is_ok());
            return at;
        }
        match &result {
            Ok(_) | Err(StoreError::Io { .. } | StoreError::NoSpace { .. }) => {}
            Err(other) => panic!("operation {at}: {other}"),
        }
        after(root.path(), &disk, result);
    }
    unreachable!("a pull has an end")
}

#[test]
fn survives_a_kill_at_every_operation() {
    let content = noise(300_000, 1);
    let server = small_hub(&content);
    let operations = sweep(Fault::Forever(ErrorKind::Other), &server.url, |root, _, _| {
        assert_sound(root, &server.url, MODEL, &content);
    });
    assert!(operations > 15, "only {operations} operations were swept");
}

#[test]
fn survives_every_operation_failing_once() {
    let content = noise(300_000, 2);
    let server = small_hub(&content);
    for kind in [ErrorKind::StorageFull, ErrorKind::ReadOnlyFilesystem, ErrorKind::Interrupted] {
        sweep(Fault::Once(kind), &server.url, |root, _, _| {
            assert_sound(root, &server.url, MODEL, &content);
        });
    }
}

#[test]
fn survives_a_power_cut_at_every_operation() {
    let content = noise(20_000, 3);
    let server = small_hub(&content);
    for seed in 0..8_u64 {
        let mut random = noise(1 << 16, seed + 100).into_iter();
        let mut choose = |below: u64| {
            let bytes = [(); 4].map(|()| random.next().unwrap());
            u64::from(u32::from_le_bytes(bytes)) % below
        };
        sweep(Fault::Forever(ErrorKind::Other), &server.url, |root, disk, _| {
            disk.power_cut(&mut choose);
            assert_sound(root, &server.url, MODEL, &content);
        });
    }
}

#[test]
fn survives_a_kill_at_every_operation_of_a_repair() {
    let content = noise(50_000, 4);
    let server = small_hub(&content);
    for at in 0.. {
        let root = temp();
        let model = pull(&store(root.path(), &server.url), MODEL).unwrap();
        std::fs::write(&model.path, &content[1..]).unwrap();
        let disk = FaultyDisk::new(at, Fault::Forever(ErrorKind::Other));
        let result = pull(&on(&disk, root.path(), &server.url), MODEL);
        assert_sound(root.path(), &server.url, MODEL, &content);
        if !disk.reached() {
            assert!(result.is_ok() && at > 10);
            break;
        }
    }
}

#[test]
fn survives_a_kill_at_every_operation_of_a_removal() {
    let content = noise(5_000, 5);
    let server = small_hub(&content);
    for at in 0.. {
        let root = temp();
        pull(&store(root.path(), &server.url), MODEL).unwrap();
        let disk = FaultyDisk::new(at, Fault::Forever(ErrorKind::Other));
        let removed =
            on(&disk, root.path(), &server.url).remove(&name(MODEL), &AtomicBool::new(false));
        assert_sound(root.path(), &server.url, MODEL, &content);
        if !disk.reached() {
            assert!(removed.unwrap() > content.len() as u64);
            break;
        }
    }
}

#[test]
fn what_a_removal_that_was_cut_off_has_left_goes_with_the_next_pull() {
    let (root, server) = (temp(), small_hub(&noise(5_000, 8)));
    let store = store(root.path(), &server.url);
    let left = root.path().join("removed/org-other-000000000000");
    std::fs::create_dir_all(left.join("files")).unwrap();
    std::fs::write(left.join("files/m.gguf"), [0; 100]).unwrap();
    pull(&store, MODEL).unwrap();
    assert!(!left.exists());
}

#[test]
fn a_full_disk_is_told_from_other_errors() {
    let server = small_hub(&noise(1000, 6));
    let mut told = 0;
    sweep(Fault::Forever(ErrorKind::StorageFull), &server.url, |_, _, result| {
        // Once the manifest is in place, what cannot be written any more does not matter.
        let Err(error) = result else { return };
        assert!(matches!(error, StoreError::NoSpace { .. }), "{error}");
        assert!(error.hint().unwrap().contains("TANGOR_HOME"));
        told += 1;
    });
    assert!(told > 10);
}

#[test]
fn a_disk_that_is_too_small_is_told_before_anything_is_fetched() {
    #[derive(Debug)]
    struct Tiny;
    impl tangor_store::Disk for Tiny {
        fn create_dir(&self, path: &Path) -> std::io::Result<()> {
            tangor_store::RealDisk.create_dir(path)
        }
        fn append(
            &self,
            path: &Path,
            keep: u64,
        ) -> std::io::Result<Box<dyn tangor_store::DiskFile>> {
            tangor_store::RealDisk.append(path, keep)
        }
        fn rename(&self, from: &Path, to: &Path) -> std::io::Result<()> {
            tangor_store::RealDisk.rename(from, to)
        }
        fn sync_dir(&self, path: &Path) -> std::io::Result<()> {
            tangor_store::RealDisk.sync_dir(path)
        }
        fn remove_file(&self, path: &Path) -> std::io::Result<()> {
            tangor_store::RealDisk.remove_file(path)
        }
        fn remove_dir_all(&self, path: &Path) -> std::io::Result<()> {
            tangor_store::RealDisk.remove_dir_all(path)
        }
        fn free_space(&self, _path: &Path) -> Option<u64> {
            Some(999_999)
        }
    }
    let (root, server) = (temp(), small_hub(&noise(1_000_001, 7)));
    let tiny = StoreOptions { disk: Arc::new(Tiny), ..options(root.path(), &server.url) };
    let error = pull(&Store::open(tiny).unwrap(), MODEL).unwrap_err();
    let StoreError::NoSpace { need: Some(need), have: Some(have), .. } = error else {
        panic!("{error}")
    };
    assert_eq!((need, have), (1_000_001, 999_999));
    assert_eq!(server.requests("/resolve/").len(), 0);
}
