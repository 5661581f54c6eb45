//! The user's own files, and links and pipes among them.

use crate::{name, store, temp};
use std::fs;
use tangor_formats::{ErrorKind, Source};
use tangor_store::{DirSource, ModelName, Origin, StoreError};

#[test]
fn finds_files_and_folders_by_path() {
    let root = temp();
    let folder = root.path().join("my model");
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("config.json"), b"{}").unwrap();
    fs::write(folder.join("a.gguf"), b"GGUF").unwrap();
    fs::create_dir(folder.join("sub")).unwrap();
    let store = store(&root.path().join("store"), "http://127.0.0.1:1");
    let found = store.resolve(&ModelName::Path(folder.clone())).unwrap().unwrap();
    assert_eq!((found.origin, found.bytes, found.files.len()), (Origin::Local, 6, 2));
    let file = store.resolve(&ModelName::Path(folder.join("a.gguf"))).unwrap().unwrap();
    assert_eq!((file.bytes, file.digest, file.pulled_at), (4, None, None));
    for absent in [folder.join("b.gguf"), folder.join("a.gguf/x")] {
        let error = store.resolve(&ModelName::Path(absent)).unwrap_err();
        assert!(matches!(error, StoreError::NotFound(_)), "{error}");
    }
    assert!(!root.path().join("store").exists(), "looking creates nothing");
}

#[test]
fn reads_only_plain_names_within_limits() {
    let root = temp();
    fs::write(root.path().join("secret"), b"secret").unwrap();
    let folder = root.path().join("model");
    fs::create_dir_all(folder.join("sub")).unwrap();
    fs::write(folder.join("sub/x"), b"x").unwrap();
    fs::write(folder.join("config.json"), b"{}").unwrap();
    fs::write(folder.join(".hidden"), b"x").unwrap();
    let source = DirSource::open(&folder).unwrap();
    assert_eq!(source.name(), "model");
    assert_eq!(source.list().unwrap(), ["config.json"]);
    assert_eq!(source.read("config.json", 2).unwrap().unwrap(), &b"{}"[..]);
    assert_eq!(source.read("config.json", 1).unwrap_err().kind(), ErrorKind::Limit);
    assert_eq!(source.read("absent", 9).unwrap(), None);
    assert!(source.map("absent").unwrap().is_none());
    for bad in ["../secret", "/etc/passwd", "sub/x", "sub\\x", "..", ".", "", "NUL", "a:b", "x\0y"]
    {
        assert!(source.read(bad, 99).is_err(), "{bad:?}");
        assert!(source.map(bad).is_err(), "{bad:?}");
    }
    assert!(source.read("sub", 99).is_err());
    assert!(source.map("sub").is_err());
}

#[cfg(unix)]
#[test]
fn links_may_not_leave_the_folder() {
    use std::os::unix::fs::symlink;
    let root = temp();
    let folder = root.path().join("model");
    let other = root.path().join("model-other");
    for folder in [&folder, &other] {
        fs::create_dir(folder).unwrap();
        fs::write(folder.join("real"), b"real").unwrap();
    }
    symlink("real", folder.join("inside")).unwrap();
    symlink("../model-other/real", folder.join("outside")).unwrap();
    symlink("/etc/hostname", folder.join("absolute")).unwrap();
    symlink("/dev/zero", folder.join("device")).unwrap();
    symlink("nowhere", folder.join("dangling")).unwrap();
    symlink("loop", folder.join("loop")).unwrap();
    symlink(&other, folder.join("sub")).unwrap();
    let source = DirSource::open(&folder).unwrap();
    assert_eq!(source.list().unwrap(), ["inside", "real"]);
    assert_eq!(source.read("inside", 9).unwrap().unwrap(), &b"real"[..]);
    for name in ["outside", "absolute", "device", "loop", "sub"] {
        assert_eq!(source.map(name).unwrap_err().kind(), ErrorKind::Io, "{name}");
        assert_eq!(source.read(name, 9).unwrap_err().kind(), ErrorKind::Io, "{name}");
    }
    assert!(source.map("dangling").unwrap().is_none());
    // A link to a whole folder, or to the one file that is meant, is what the user says it is.
    symlink(&folder, root.path().join("link")).unwrap();
    assert!(DirSource::open(&root.path().join("link")).unwrap().read("real", 9).unwrap().is_some());
    symlink(other.join("real"), root.path().join("m.gguf")).unwrap();
    let file = DirSource::open(&root.path().join("m.gguf")).unwrap();
    assert_eq!(file.file(), Some("m.gguf"));
    assert_eq!(file.read("m.gguf", 9).unwrap().unwrap(), &b"real"[..]);
}

#[cfg(unix)]
#[test]
fn pipes_and_devices_are_refused_without_waiting() {
    let root = temp();
    let pipe = root.path().join("pipe.gguf");
    let made = std::process::Command::new("mkfifo").arg(&pipe).status().unwrap();
    assert!(made.success());
    for path in [pipe.as_path(), std::path::Path::new("/dev/zero")] {
        let error = DirSource::open(path).unwrap_err();
        assert!(matches!(error, StoreError::NotAModel { .. }), "{error}");
        assert!(error.hint().is_some());
    }
    let source = DirSource::open(root.path()).unwrap();
    assert_eq!(source.list().unwrap(), Vec::<String>::new());
    assert_eq!(source.map("pipe.gguf").unwrap_err().kind(), ErrorKind::Io);
}

#[cfg(unix)]
#[test]
fn the_links_of_a_hub_cache_lead_to_its_blobs_and_nowhere_else() {
    use std::os::unix::fs::symlink;
    let root = temp();
    let repo = root.path().join("models--org--repo");
    let snapshot = repo.join("snapshots/0123");
    fs::create_dir_all(&snapshot).unwrap();
    for blobs in [repo.join("blobs"), root.path().join("models--org--other/blobs")] {
        fs::create_dir_all(&blobs).unwrap();
        fs::write(blobs.join("abc"), b"blob").unwrap();
    }
    symlink("../../blobs/abc", snapshot.join("config.json")).unwrap();
    symlink("../../../models--org--other/blobs/abc", snapshot.join("model.gguf")).unwrap();
    let source = DirSource::open(&snapshot).unwrap();
    assert_eq!(source.list().unwrap(), ["config.json"]);
    assert_eq!(source.read("config.json", 9).unwrap().unwrap(), &b"blob"[..]);
    assert_eq!(source.map("model.gguf").unwrap_err().kind(), ErrorKind::Io);
}

#[test]
fn a_part_of_a_split_model_brings_the_others_and_nothing_else() {
    let root = temp();
    for file in ["m-00001-of-00002.gguf", "m-00002-of-00002.gguf", "n-00001-of-00002.gguf", "x"] {
        fs::write(root.path().join(file), b"GGUF").unwrap();
    }
    let source = DirSource::open(&root.path().join("m-00001-of-00002.gguf")).unwrap();
    assert_eq!(source.list().unwrap(), ["m-00001-of-00002.gguf", "m-00002-of-00002.gguf"]);
    assert_eq!(source.map("m-00002-of-00002.gguf").unwrap().unwrap().0, &b"GGUF"[..]);
}

#[test]
fn a_path_is_never_pulled_nor_removed() {
    let root = temp();
    let file = root.path().join("m.gguf");
    fs::write(&file, b"GGUF").unwrap();
    let store = store(&root.path().join("store"), "http://127.0.0.1:1");
    let model = name(file.to_str().unwrap());
    let cancel = std::sync::atomic::AtomicBool::new(false);
    assert_eq!(store.pull(&model, &mut |_| {}, &cancel).unwrap().path, file);
    assert!(matches!(store.remove(&model, &cancel), Err(StoreError::NotInstalled(_))));
    assert!(file.exists());
}

#[test]
fn a_file_that_may_not_be_read_is_no_reason_for_another_store() {
    let denied = |action| StoreError::Io {
        action,
        path: "model.gguf".into(),
        source: std::io::ErrorKind::PermissionDenied.into(),
    };
    let hint = |action| denied(action).hint().unwrap();
    assert!(hint("open").contains("permissions"), "{}", hint("open"));
    assert!(hint("write").contains("TANGOR_HOME"), "{}", hint("write"));
}
