//! Packed weights on a disk that fails, forgets and is shared.

use crate::disk::{Fault, FaultyDisk, HeldDisk};
use crate::server::{Server, hub};
use crate::{SharedDisk, name, noise, options, pull, store, temp};
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};
use tangor_store::{Disk, DiskFile, RealDisk, Store, StoreError, StoreOptions};

/// A machine: its disk, and how often it was started.
#[derive(Debug)]
struct Machine {
    disk: SharedDisk,
    boots: AtomicUsize,
    free: Option<u64>,
}

impl Machine {
    fn of(disk: SharedDisk) -> Self {
        Self { disk, boots: AtomicUsize::new(1), free: None }
    }

    fn with(disk: SharedDisk) -> Arc<Self> {
        Arc::new(Self::of(disk))
    }

    fn restart(&self) {
        self.boots.fetch_add(1, Ordering::Relaxed);
    }
}

impl Disk for Machine {
    fn create_dir(&self, path: &Path) -> std::io::Result<()> {
        self.disk.create_dir(path)
    }
    fn append(&self, path: &Path, keep: u64) -> std::io::Result<Box<dyn DiskFile>> {
        self.disk.append(path, keep)
    }
    fn rename(&self, from: &Path, to: &Path) -> std::io::Result<()> {
        self.disk.rename(from, to)
    }
    fn sync_dir(&self, path: &Path) -> std::io::Result<()> {
        self.disk.sync_dir(path)
    }
    fn remove_file(&self, path: &Path) -> std::io::Result<()> {
        self.disk.remove_file(path)
    }
    fn remove_dir_all(&self, path: &Path) -> std::io::Result<()> {
        self.disk.remove_dir_all(path)
    }
    fn free_space(&self, _: &Path) -> Option<u64> {
        self.free
    }
    fn boot(&self) -> Option<String> {
        // A machine that never was started is one that cannot tell.
        let boots = self.boots.load(Ordering::Relaxed);
        (boots > 0).then(|| boots.to_string())
    }
}

fn on(machine: &Arc<Machine>, root: &Path) -> Store {
    let disk: SharedDisk = Arc::clone(machine) as SharedDisk;
    Store::open(StoreOptions { disk, ..options(root, "") }).unwrap()
}

/// Writes an entry in uneven pieces.
fn write(store: &Store, (model, form): (&str, &str), data: &[u8]) -> Result<bool, StoreError> {
    let Some(mut writer) = store.create_packed(model, form, data.len() as u64)? else {
        return Ok(false);
    };
    let (some, rest) = data.split_at(data.len() / 3);
    writer.write(some)?;
    writer.write(rest)?;
    writer.finish(format!("index of {form}"))?;
    Ok(true)
}

/// The data of an entry, if there is one; its index has to be the one that was written.
fn found(store: &Store, (model, form): (&str, &str)) -> Option<Vec<u8>> {
    let entry = store.find_packed(model, form)?;
    assert_eq!(entry.index, format!("index of {form}"));
    assert_eq!(entry.guard.check(), Ok(()));
    Some(entry.data.to_vec())
}

const KEY: (&str, &str) = ("a model", "a form");

/// The only entry's file.
fn entry(root: &Path) -> PathBuf {
    let mut paths = fs::read_dir(root.join("packed")).unwrap().map(|entry| entry.unwrap().path());
    paths.find(|path| path.extension().is_some_and(|kind| kind == "packed")).unwrap()
}

#[test]
fn what_was_written_is_found_under_its_own_key_only() {
    let root = temp();
    let store = store(root.path(), "");
    for len in [0, 1, 64, 2 << 20, (2 << 20) + 1, (5 << 20) + 12_345] {
        let (data, form) = (noise(len, len as u64), format!("{len} bytes"));
        assert_eq!(found(&store, ("m", &form)), None);
        assert!(write(&store, ("m", &form), &data).unwrap());
        assert_eq!(found(&store, ("m", &form)), Some(data));
        assert!(!write(&store, ("m", &form), b"other").unwrap(), "it is there already");
    }
    assert_eq!(found(&store, ("n", "64 bytes")), None);
    assert_eq!(found(&store, ("m", "65 bytes")), None);
    assert_eq!(store.packed().len(), 6);
    store.discard_packed("m", "64 bytes");
    assert_eq!(found(&store, ("m", "64 bytes")), None);
    assert!(store.remove_packed(&store.packed()).unwrap() > 9 << 20);
    assert_eq!(fs::read_dir(root.path().join("packed")).unwrap().count(), 0);
}

#[test]
fn a_writer_that_is_dropped_leaves_nothing() {
    let root = temp();
    let store = store(root.path(), "");
    let mut writer = store.create_packed("m", "f", 10).unwrap().unwrap();
    writer.write(&noise(3 << 20, 1)).unwrap();
    drop(writer);
    assert_eq!(fs::read_dir(root.path().join("packed")).unwrap().count(), 0);
    assert!(write(&store, ("m", "f"), b"x").unwrap());
}

#[test]
fn one_writes_and_the_others_do_without() {
    let root = temp();
    let (one, other) = (store(root.path(), ""), store(root.path(), ""));
    let mut writer = one.create_packed("m", "f", 10).unwrap().unwrap();
    writer.write(b"first").unwrap();
    assert!(other.create_packed("m", "f", 10).unwrap().is_none());
    assert!(other.find_packed("m", "f").is_none(), "half of it is nothing");
    assert!(write(&other, ("m", "g"), b"another form").unwrap());
    writer.finish("index of f".into()).unwrap();
    assert_eq!(found(&other, ("m", "f")), Some(b"first".to_vec()));
}

#[test]
fn survives_a_kill_and_an_error_at_every_operation() {
    let data = noise((4 << 20) + 999, 2);
    for fault in [
        Fault::Forever(ErrorKind::Other),
        Fault::Once(ErrorKind::StorageFull),
        Fault::Once(ErrorKind::ReadOnlyFilesystem),
        Fault::Once(ErrorKind::Interrupted),
    ] {
        for at in 0.. {
            let root = temp();
            let disk = FaultyDisk::new(at, fault);
            let written = write(&on(&Machine::with(disk.shared()), root.path()), KEY, &data);
            let sound = on(&Machine::with(FaultyDisk::sound().shared()), root.path());
            if let Some(found) = found(&sound, KEY) {
                assert!(found == data, "operation {at}: other bytes");
            } else {
                assert!(written.is_err(), "operation {at}");
                assert!(write(&sound, KEY, &data).unwrap(), "operation {at}");
                assert!(found_is(&sound, &data));
            }
            let left = fs::read_dir(root.path().join("packed")).unwrap().count();
            assert!(left <= 3, "{left} files are left");
            if !disk.reached() {
                assert!(written.unwrap() && at > 6);
                break;
            }
        }
    }
}

fn found_is(store: &Store, data: &[u8]) -> bool {
    found(store, KEY).is_some_and(|found| found == data)
}

#[test]
fn survives_a_power_cut_at_every_operation() {
    let data = noise((2 << 20) + 999, 3);
    for seed in 0..6_u64 {
        let mut random = noise(1 << 16, seed + 100).into_iter();
        let mut choose = |below: u64| {
            let bytes = [(); 4].map(|()| random.next().unwrap());
            u64::from(u32::from_le_bytes(bytes)) % below
        };
        for boots in [0, 1] {
            for at in 0.. {
                let root = temp();
                let disk = FaultyDisk::new(at, Fault::Forever(ErrorKind::Other));
                let machine = Machine::with(disk.shared());
                machine.boots.store(boots, Ordering::Relaxed);
                let _ = write(&on(&machine, root.path()), KEY, &data);
                disk.power_cut(&mut choose);
                let again = Machine::with(FaultyDisk::sound().shared());
                again.boots.store(2 * boots, Ordering::Relaxed);
                let store = on(&again, root.path());
                let kept = found(&store, KEY);
                assert!(kept.is_none_or(|kept| kept == data), "operation {at}: other bytes");
                if !disk.reached() {
                    break;
                }
            }
        }
    }
}

#[test]
fn a_changed_byte_is_found_out_wherever_it_is() {
    let data = noise(5000, 4);
    let root = temp();
    let machine = Machine::with(FaultyDisk::sound().shared());
    let store = on(&machine, root.path());
    assert!(write(&store, KEY, &data).unwrap());
    let path = entry(root.path());
    let whole = fs::read(&path).unwrap();
    let step = if cfg!(debug_assertions) { 7 } else { 1 };
    for at in (0..whole.len()).step_by(step) {
        let mut bytes = whole.clone();
        bytes[at] ^= 1 << (at % 8);
        fs::write(&path, &bytes).unwrap();
        assert_eq!(found(&store, KEY), None, "byte {at} of {}", whole.len());
        assert!(!path.exists(), "what is damaged is removed");
    }
    fs::write(&path, &whole).unwrap();
    assert_eq!(found(&store, KEY), Some(data), "written anew, it is read again and found good");
}

#[test]
fn a_file_of_another_length_is_found_out() {
    let data = noise(3000, 5);
    let root = temp();
    let store = store(root.path(), "");
    assert!(write(&store, KEY, &data).unwrap());
    let path = entry(root.path());
    let whole = fs::read(&path).unwrap();
    for len in (0..whole.len()).step_by(13) {
        fs::write(&path, &whole[..len]).unwrap();
        assert_eq!(found(&store, KEY), None, "{len} bytes");
    }
    for more in [&[0; 1][..], &[0; 4096], &whole] {
        fs::write(&path, [&whole[..], more].concat()).unwrap();
        let found = found(&store, KEY);
        assert!(found.is_none(), "{} bytes more", more.len());
        fs::write(&path, [more, &whole[..]].concat()).unwrap();
        assert!(store.find_packed(KEY.0, KEY.1).is_none(), "{} bytes before", more.len());
    }
}

#[test]
fn another_version_and_another_file_are_no_entry() {
    let data = noise(3000, 6);
    let root = temp();
    let store = store(root.path(), "");
    let foreign: &[fn(&mut Vec<u8>)] = &[
        // The version, with its checksum mended.
        |bytes| {
            let foot = bytes.len() - 32;
            bytes[foot + 8] = 2;
            let check = crc32fast::hash(&bytes[foot..foot + 24]);
            bytes[foot + 24..foot + 28].copy_from_slice(&check.to_le_bytes());
        },
        // A tail that is longer than the file.
        |bytes| {
            let foot = bytes.len() - 32;
            bytes[foot + 16..foot + 24].copy_from_slice(&u64::MAX.to_le_bytes());
            let check = crc32fast::hash(&bytes[foot..foot + 24]);
            bytes[foot + 24..foot + 28].copy_from_slice(&check.to_le_bytes());
        },
        |bytes| bytes.clear(),
        |bytes| bytes.fill(0),
    ];
    for change in foreign {
        assert!(write(&store, KEY, &data).unwrap());
        let path = entry(root.path());
        let mut bytes = fs::read(&path).unwrap();
        change(&mut bytes);
        fs::write(&path, bytes).unwrap();
        assert_eq!(found(&store, KEY), None);
    }
    // The entry of another key under this one's name.
    assert!(write(&store, KEY, &data).unwrap());
    let path = entry(root.path());
    let other = temp();
    let elsewhere = crate::store(other.path(), "");
    assert!(write(&elsewhere, ("another model", KEY.1), &data).unwrap());
    fs::copy(entry(other.path()), &path).unwrap();
    assert_eq!(found(&store, KEY), None);
}

#[test]
fn data_is_read_again_after_a_start_of_the_machine_and_only_then() {
    let data = noise(3 << 20, 7);
    let root = temp();
    let machine = Machine::with(FaultyDisk::sound().shared());
    let store = on(&machine, root.path());
    assert!(write(&store, KEY, &data).unwrap());
    let seen = entry(root.path()).with_extension("seen");
    let first = fs::read_to_string(&seen).unwrap();
    assert!(found_is(&store, &data));
    assert_eq!(fs::read_to_string(&seen).unwrap(), first);
    machine.restart();
    assert!(found_is(&store, &data));
    assert_ne!(fs::read_to_string(&seen).unwrap(), first, "it was read, and found good");
    // Without the note it is read, and noted again.
    fs::remove_file(&seen).unwrap();
    assert!(found_is(&store, &data));
    assert!(seen.exists());
}

#[test]
fn what_was_not_used_for_longest_makes_room_and_what_is_mapped_stays_readable() {
    let root = temp();
    let disk: SharedDisk = Machine::with(FaultyDisk::sound().shared());
    let limited = |packed_bytes| {
        let disk = Arc::clone(&disk);
        Store::open(StoreOptions { disk, packed_bytes, ..options(root.path(), "") }).unwrap()
    };
    let store = limited(3_500_000);
    let data = |seed| noise(1_000_000, seed);
    for (seed, form) in ["a", "b", "c"].into_iter().enumerate() {
        assert!(write(&store, ("m", form), &data(seed as u64)).unwrap());
        let old = SystemTime::now() - Duration::from_secs(1000 - 100 * seed as u64);
        for info in store.packed() {
            let file = fs::File::options().write(true).open(info.path.with_extension("seen"));
            if info.used > old + Duration::from_secs(900) {
                file.unwrap().set_modified(old).unwrap();
            }
        }
    }
    let held = store.find_packed("m", "a").unwrap();
    assert!(write(&store, ("m", "d"), &data(3)).unwrap());
    assert!(found(&store, ("m", "b")).is_none(), "a was used after b");
    assert!(found(&store, ("m", "a")).is_some() && found(&store, ("m", "c")).is_some());
    assert!(write(&store, ("m", "e"), &noise(3_400_000, 9)).unwrap());
    assert_eq!(store.packed().len(), 1);
    assert!(held.data[..] == data(0)[..] && held.guard.check().is_ok(), "removed, and in use");
    assert!(matches!(
        write(&store, ("m", "f"), &noise(4_000_000, 9)),
        Err(StoreError::NoSpace { .. })
    ));
    let off = limited(0);
    assert!(found(&off, ("m", "e")).is_none() && !write(&off, ("m", "g"), b"x").unwrap());
}

#[test]
fn a_full_disk_is_told_and_keeps_nothing() {
    let root = temp();
    let machine = Machine { free: Some(1_000_000), ..Machine::of(FaultyDisk::sound().shared()) };
    let store = on(&Arc::new(machine), root.path());
    let error = write(&store, KEY, &noise(10, 1)).unwrap_err();
    assert!(matches!(error, StoreError::NoSpace { have: Some(1_000_000), .. }), "{error}");
    assert!(store.packed().is_empty());
}

#[test]
fn what_a_killed_process_left_is_swept_away() {
    let root = temp();
    let store = store(root.path(), "");
    fs::create_dir_all(root.path().join("packed")).unwrap();
    let file = |name: &str| root.path().join("packed").join(name);
    for name in ["x-y.part", "x-y.seen", "x-y.seen-123"] {
        fs::write(file(name), b"left").unwrap();
    }
    let writer = store.create_packed("m", "f", 10).unwrap().unwrap();
    for name in ["x-y.part", "x-y.seen", "x-y.seen-123"] {
        assert!(!file(name).exists(), "{name}");
    }
    // That of a process that lives stays.
    assert!(write(&store, ("m", "g"), b"x").unwrap());
    writer.finish("index of f".into()).unwrap();
    assert_eq!(found(&store, ("m", "f")), Some(Vec::new()));
}

#[test]
fn removing_a_model_removes_what_was_packed_of_it() {
    let content = noise(100_000, 8);
    let server: Server = hub(vec![("m.gguf", content, true)]);
    let root = temp();
    let store = store(root.path(), &server.url);
    let model = pull(&store, "org/repo").unwrap();
    std::thread::sleep(Duration::from_millis(2100));
    let map = || tangor_formats::tensor::map_file(&fs::File::open(&model.path).unwrap()).unwrap();
    let identity = map().1.identity().unwrap();
    assert!(write(&store, (&identity, "f"), b"packed").unwrap());
    assert!(write(&store, ("another model", "f"), b"packed").unwrap());
    assert_eq!(store.packed_of(&model).len(), 1);
    // A model that another program holds stays whole.
    let held = StoreOptions { disk: Arc::new(HeldDisk), ..options(root.path(), &server.url) };
    let held = Store::open(held).unwrap();
    let error = held.remove(&name("org/repo"), &Default::default()).unwrap_err();
    assert!(error.hint().unwrap().contains("end the programs"), "{error}");
    assert_eq!(store.resolve(&name("org/repo")).unwrap().as_ref(), Some(&model));
    assert_eq!(store.packed_of(&model).len(), 1);
    store.remove(&name("org/repo"), &Default::default()).unwrap();
    assert_eq!(store.packed().len(), 1);
    assert!(found(&store, ("another model", "f")).is_some());
}

#[test]
fn verifying_finds_what_a_start_would_believe() {
    let root = temp();
    let store = Store::open(StoreOptions { disk: Arc::new(RealDisk), ..options(root.path(), "") });
    let store = store.unwrap();
    assert!(write(&store, KEY, &noise(10_000, 9)).unwrap());
    let [info] = &store.packed()[..] else { panic!("one entry") };
    store.verify_packed(info).unwrap();
    let mut bytes = fs::read(&info.path).unwrap();
    bytes[5000] ^= 1;
    fs::write(&info.path, bytes).unwrap();
    let error = store.verify_packed(info).unwrap_err();
    assert!(matches!(error, StoreError::Damaged { .. }), "{error}");
    assert!(store.packed().is_empty());
}
