//! Models that have changed since they were pulled.

use crate::server::{Files, hub};
use crate::{name, noise, pull, store, temp, watched};
use std::fs;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use tangor_store::{Installed, Phase, StoreError};

const MODEL: &str = "org/repo";

fn files() -> Files {
    vec![
        ("config.json", b"{\"a\":1}".to_vec(), false),
        ("model-1.safetensors", noise(30_000, 1), true),
        ("model-2.safetensors", noise(30_000, 2), true),
    ]
}

type Damage = Box<dyn Fn(&Installed)>;

fn flip(path: &Path, at: usize) {
    let mut bytes = fs::read(path).unwrap();
    let at = at % bytes.len();
    bytes[at] ^= 1 << (at % 8);
    fs::write(path, bytes).unwrap();
}

#[test]
fn damage_of_every_kind_is_found_before_use_and_repaired_by_a_pull() {
    let file = |model: &Installed, n: usize| model.path.join(format!("model-{n}.safetensors"));
    let mut kinds: Vec<(String, Damage)> = Vec::new();
    for at in (0..30_000).step_by(2501) {
        kinds.push((format!("a bit at {at}"), Box::new(move |m| flip(&file(m, 1), at))));
    }
    for len in [0, 1, 4096, 29_999, 30_001, 60_000] {
        kinds.push((
            format!("a length of {len}"),
            Box::new(move |m| {
                fs::File::options().write(true).open(file(m, 2)).unwrap().set_len(len).unwrap();
            }),
        ));
    }
    kinds.push((
        "a page of zeros".into(),
        Box::new(move |m| {
            let mut bytes = fs::read(file(m, 1)).unwrap();
            bytes[4096..8192].fill(0);
            fs::write(file(m, 1), bytes).unwrap();
        }),
    ));
    kinds.push((
        "two files in each other's place".into(),
        Box::new(move |m| {
            let aside = m.path.join("aside");
            fs::rename(file(m, 1), &aside).unwrap();
            fs::rename(file(m, 2), file(m, 1)).unwrap();
            fs::rename(&aside, file(m, 2)).unwrap();
        }),
    ));
    kinds.push((
        "a file that is gone".into(),
        Box::new(move |m| {
            fs::remove_file(file(m, 1)).unwrap();
        }),
    ));
    kinds.push((
        "a folder in the place of a file".into(),
        Box::new(move |m| {
            fs::remove_file(file(m, 1)).unwrap();
            fs::create_dir(file(m, 1)).unwrap();
        }),
    ));
    kinds.push((
        "a change that hides its time".into(),
        Box::new(move |m| {
            let time = fs::metadata(file(m, 1)).unwrap().modified().unwrap();
            flip(&file(m, 1), 77);
            fs::File::options().write(true).open(file(m, 1)).unwrap().set_modified(time).unwrap();
        }),
    ));
    let manifest = |m: &Installed| m.path.parent().unwrap().join("manifest.json");
    for at in (20..1500).step_by(97) {
        kinds
            .push((format!("bit {at} of the manifest"), Box::new(move |m| flip(&manifest(m), at))));
    }
    kinds.push((
        "an empty manifest".into(),
        Box::new(move |m| {
            fs::write(manifest(m), b"").unwrap();
        }),
    ));
    let server = hub(files());
    for (what, damage) in kinds {
        let root = temp();
        let store = store(root.path(), &server.url);
        let model = pull(&store, MODEL).unwrap();
        damage(&model);
        match store.resolve(&name(MODEL)) {
            Err(error @ StoreError::Damaged { .. }) => {
                assert!(error.hint().unwrap().contains("tangor pull org/repo"), "{what}");
            }
            // White space in the manifest means nothing.
            Ok(Some(found)) if what.contains("manifest") => assert_eq!(found, model, "{what}"),
            other => panic!("{what}: {other:?}"),
        }
        let repaired = pull(&store, MODEL).unwrap();
        for (file, bytes, _) in files() {
            assert_eq!(fs::read(repaired.path.join(file)).unwrap(), bytes, "{what}");
        }
        assert!(store.resolve(&name(MODEL)).unwrap().is_some(), "{what}");
        assert_eq!(fs::read_dir(&repaired.path).unwrap().count(), 3, "{what}");
    }
}

#[test]
fn what_was_just_pulled_is_not_read_again() {
    let (root, server) = (temp(), hub(files()));
    let store = store(root.path(), &server.url);
    let (model, steps) = watched(&store, MODEL);
    assert!(steps.iter().all(|(phase, ..)| *phase != Phase::Verifying), "{steps:?}");
    // Whoever reads a file again notes when.
    let manifest = model.as_ref().unwrap().path.parent().unwrap().join("manifest.json");
    let before = fs::read(&manifest).unwrap();
    assert_eq!(store.resolve(&name(MODEL)).unwrap(), model.ok());
    assert_eq!(fs::read(&manifest).unwrap(), before);
}

#[test]
fn a_repair_fetches_only_what_is_damaged() {
    let (root, server) = (temp(), hub(files()));
    let store = store(root.path(), &server.url);
    let model = pull(&store, MODEL).unwrap();
    flip(&model.path.join("model-1.safetensors"), 5);
    pull(&store, MODEL).unwrap();
    assert_eq!(server.requests("model-1").len(), 2);
    assert_eq!(server.requests("model-2").len(), 1);
    assert_eq!(server.requests("config.json").len(), 1);
}

#[test]
fn a_damaged_model_is_there_to_be_seen_while_the_network_is_down() {
    let (root, server) = (temp(), hub(files()));
    let model = pull(&store(root.path(), &server.url), MODEL).unwrap();
    fs::write(model.path.join("model-1.safetensors"), b"short").unwrap();
    let cut_off = store(root.path(), "http://127.0.0.1:1");
    let listed = cut_off.list().unwrap();
    assert!(listed[0].damage.is_some());
    pull(&cut_off, MODEL).unwrap_err();
    assert_eq!(cut_off.list().unwrap(), listed);
    assert_eq!(cut_off.unfinished().unwrap(), []);
}

#[test]
fn a_list_shows_damage_that_needs_no_reading() {
    let (root, server) = (temp(), hub(files()));
    let store = store(root.path(), &server.url);
    let model = pull(&store, MODEL).unwrap();
    fs::remove_file(model.path.join("model-2.safetensors")).unwrap();
    let listed = store.list().unwrap();
    assert_eq!(listed.len(), 1);
    assert!(listed[0].damage.as_ref().unwrap().contains("model-2.safetensors is missing"));
}

#[test]
fn a_manifest_of_another_model_is_refused() {
    let (root, server) = (temp(), hub(files()));
    let store = store(root.path(), &server.url);
    let one = pull(&store, MODEL).unwrap();
    let other = pull(&store, "org/repo@main").unwrap();
    let manifest = |m: &Installed| m.path.parent().unwrap().join("manifest.json");
    fs::copy(manifest(&one), manifest(&other)).unwrap();
    let error = store.resolve(&name("org/repo@main")).unwrap_err();
    assert!(matches!(error, StoreError::Damaged { .. }), "{error}");
    pull(&store, "org/repo@main").unwrap();
    assert_eq!(store.resolve(&name("org/repo@main")).unwrap().unwrap().name, "org/repo@main");
}

#[test]
fn verification_reads_everything_and_can_be_cancelled() {
    let (root, server) = (temp(), hub(files()));
    let store = store(root.path(), &server.url);
    pull(&store, MODEL).unwrap();
    let mut read = 0;
    let mut note = |p: &tangor_store::Progress<'_>| read += u64::from(p.done == p.total.unwrap());
    store.verify(&name(MODEL), &mut note, &AtomicBool::new(false)).unwrap();
    assert_eq!(read, 3);
    let cancelled = store.verify(&name(MODEL), &mut |_| {}, &AtomicBool::new(true));
    assert!(matches!(cancelled, Err(StoreError::Cancelled)));
}

#[cfg(unix)]
#[test]
fn a_store_that_cannot_be_written_to_can_be_read() {
    use std::os::unix::fs::PermissionsExt;
    let (root, server) = (temp(), hub(files()));
    let writable = store(root.path(), &server.url);
    let model = pull(&writable, MODEL).unwrap();
    let entry = model.path.parent().unwrap().to_path_buf();
    let locks = root.path().join("locks");
    let chmod = |mode: u32| {
        for folder in [&entry, &locks] {
            fs::set_permissions(folder, fs::Permissions::from_mode(mode)).unwrap();
        }
    };
    chmod(0o555);
    let found = writable.resolve(&name(MODEL));
    let listed = writable.list();
    chmod(0o755);
    assert_eq!(found.unwrap(), Some(model.clone()));
    assert_eq!(listed.unwrap(), [model]);
}
