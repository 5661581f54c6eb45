//! Pulls from hubs, honest and otherwise.

use crate::server::{
    Body, COMMIT, Files, Reply, Server, description, git_blob, honest, hub, sha256,
};
use crate::{impatient, name, noise, options, pull, store, temp, watched};
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tangor_store::{Origin, Phase, Store, StoreError, StoreOptions, Token};

const MODEL: &str = "org/repo";

fn gguf(content: &[u8]) -> Files {
    vec![("m.gguf", content.to_vec(), true)]
}

/// Everything below a folder that is not a lock.
fn residue(root: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let Ok(entries) = fs::read_dir(root) else { return found };
    for path in entries.map(|entry| entry.unwrap().path()) {
        if path.is_dir() {
            found.extend(residue(&path));
        } else if path.extension().is_none_or(|extension| extension != "lock") {
            found.push(path.display().to_string());
        }
    }
    found
}

#[test]
fn pulls_finds_verifies_lists_and_removes() {
    let content = noise(500_000, 1);
    let (root, server) = (temp(), hub(gguf(&content)));
    let store = store(root.path(), &server.url);
    assert_eq!(store.resolve(&name(MODEL)).unwrap(), None);
    assert_eq!(store.list().unwrap(), []);
    let (pulled, steps) = watched(&store, MODEL);
    let pulled = pulled.unwrap();
    assert_eq!(fs::read(&pulled.path).unwrap(), content);
    assert_eq!(pulled.origin, Origin::Hub { repo: MODEL.into(), commit: COMMIT.into() });
    assert_eq!(pulled.digest.unwrap().to_string(), sha256(&content));
    assert_eq!(steps.first().unwrap().0, Phase::Resolving);
    assert!(steps.contains(&(Phase::Downloading, "m.gguf".into(), 0)));
    assert!(steps.contains(&(Phase::Downloading, "m.gguf".into(), 500_000)));
    assert_eq!(store.resolve(&name(MODEL)).unwrap().as_ref(), Some(&pulled));
    assert_eq!(store.list().unwrap(), std::slice::from_ref(&pulled));
    let cancel = AtomicBool::new(false);
    assert_eq!(store.verify(&name(MODEL), &mut |_| {}, &cancel).unwrap(), pulled);
    pull(&store, MODEL).unwrap();
    assert_eq!(server.requests("").len(), 2, "an installed model is not fetched again");
    store.remove(&name(MODEL), &cancel).unwrap();
    assert_eq!(residue(root.path()), Vec::<String>::new());
    assert!(matches!(
        store.remove(&name(MODEL), &cancel),
        Err(StoreError::NotInstalled(model)) if model == MODEL
    ));
}

#[test]
fn pulls_a_folder_of_safetensors_and_checks_small_files_as_git_names_them() {
    let files: Files = vec![
        ("config.json", b"{}".to_vec(), false),
        ("tokenizer.json", noise(9000, 1), false),
        ("model.safetensors", noise(90_000, 2), true),
        ("README.md", b"no".to_vec(), false),
    ];
    let (root, server) = (temp(), hub(files.clone()));
    let model = pull(&store(root.path(), &server.url), MODEL).unwrap();
    assert_eq!(model.files.len(), 3);
    for (file, bytes, _) in &files[..3] {
        assert_eq!(fs::read(model.path.join(file)).unwrap(), *bytes);
    }
    let wrong = Server::start(move |request| {
        if request.path.ends_with("tokenizer.json") {
            return Reply::ok(&noise(9000, 3));
        }
        honest(request, &files)
    });
    let root = temp();
    let error = pull(&store(root.path(), &wrong.url), MODEL).unwrap_err();
    let expected = git_blob(&noise(9000, 1));
    assert!(
        matches!(&error, StoreError::Mismatch { file, expected: e, .. }
        if file == "tokenizer.json" && e.contains(&expected)),
        "{error}"
    );
}

#[test]
fn a_name_with_a_revision_and_a_part_asks_for_both() {
    let content = noise(100, 9);
    let files: Files =
        vec![("q/m-q8_0.gguf", content.clone(), true), ("m-q4_0.gguf", vec![], true)];
    let (root, server) = (
        temp(),
        Server::start(move |request| {
            if request.path.starts_with("/api/models/org/repo/revision/refs%2Fpr%2F1?") {
                return description(&files);
            }
            honest(request, &files)
        }),
    );
    let model = pull(&store(root.path(), &server.url), "org/repo:Q8_0@refs/pr/1").unwrap();
    assert_eq!(model.name, "org/repo:Q8_0@refs/pr/1");
    assert_eq!(fs::read(&model.path).unwrap(), content);
    assert!(model.path.ends_with("files/m-q8_0.gguf"));
}

#[test]
fn goes_on_where_a_broken_connection_ended() {
    let content = noise(20 << 20, 2);
    let (files, times) = (gguf(&content), AtomicUsize::new(0));
    let (root, server) = (
        temp(),
        Server::start(move |request| {
            let reply = honest(request, &files);
            match reply.body {
                // Breaks after six megabytes, every time.
                Body::All(bytes) if request.path.contains("/resolve/") => {
                    times.fetch_add(1, Ordering::SeqCst);
                    Reply { body: Body::Cut(bytes, 6 << 20), ..reply }
                }
                body => Reply { body, ..reply },
            }
        }),
    );
    let (model, steps) = watched(&store(root.path(), &server.url), MODEL);
    assert_eq!(fs::read(model.unwrap().path).unwrap(), content);
    let starts: Vec<usize> = server.requests("/resolve/").iter().map(|r| r.from()).collect();
    assert_eq!(starts, [0, 6 << 20, 12 << 20, 18 << 20]);
    let downloading = steps.iter().filter(|(phase, ..)| *phase == Phase::Downloading);
    assert!(downloading.map(|(.., done)| done).is_sorted());
}

#[test]
fn goes_on_where_a_cancelled_pull_ended() {
    let content = noise(20 << 20, 3);
    let (root, server) = (temp(), hub(gguf(&content)));
    let store = store(root.path(), &server.url);
    let cancel = AtomicBool::new(false);
    let mut stop = |progress: &tangor_store::Progress<'_>| {
        if progress.phase == Phase::Downloading && progress.done >= 17 << 20 {
            cancel.store(true, Ordering::Relaxed);
        }
    };
    let error = store.pull(&name(MODEL), &mut stop, &cancel).unwrap_err();
    assert!(matches!(error, StoreError::Cancelled));
    assert_eq!(store.resolve(&name(MODEL)).unwrap(), None);
    assert_eq!(store.list().unwrap(), []);
    let [left] = &store.unfinished().unwrap()[..] else { panic!("one") };
    assert_eq!(left.name.as_deref(), Some(MODEL));
    assert!(left.bytes >= 17 << 20, "{left:?}");
    assert_eq!(fs::read(pull(&store, MODEL).unwrap().path).unwrap(), content);
    assert!(server.requests("/resolve/")[1].from() >= 17 << 20);
    assert_eq!(store.unfinished().unwrap(), []);
}

#[test]
fn keeps_of_a_damaged_part_what_its_journal_vouches_for() {
    let content = noise(20 << 20, 4);
    // What is overwritten in the part, and where the next request starts: the chunks before it.
    for (damage, from, requests) in
        [(9 << 20, 8 << 20, 2), (3 << 20, 0, 2), (17 << 20, 18 << 20, 3)]
    {
        let files = gguf(&content);
        let broken = AtomicBool::new(false);
        let (root, server) = (
            temp(),
            Server::start(move |request| {
                let reply = honest(request, &files);
                let first =
                    request.path.contains("/resolve/") && !broken.swap(true, Ordering::SeqCst);
                match reply.body {
                    Body::All(bytes) if first => {
                        Reply { body: Body::Stall(bytes, 18 << 20), ..reply }
                    }
                    body => Reply { body, ..reply },
                }
            }),
        );
        let cancel = AtomicBool::new(false);
        let store = store(root.path(), &server.url);
        let mut stop = |progress: &tangor_store::Progress<'_>| {
            if progress.done >= 18 << 20 {
                cancel.store(true, Ordering::Relaxed);
            }
        };
        store.pull(&name(MODEL), &mut stop, &cancel).unwrap_err();
        let part = residue(root.path()).into_iter().find(|path| path.ends_with(".part")).unwrap();
        let mut bytes = fs::read(&part).unwrap();
        assert_eq!(bytes.len(), 18 << 20);
        bytes[damage] ^= 1;
        fs::write(&part, bytes).unwrap();
        assert_eq!(fs::read(pull(&store, MODEL).unwrap().path).unwrap(), content);
        let log = server.requests("/resolve/");
        assert_eq!((log[1].from(), log.len()), (from, requests), "damage at {damage}");
    }
}

#[test]
fn starts_anew_when_the_file_has_changed_or_the_server_cannot_go_on() {
    let (old, new) = (noise(3 << 20, 5), noise(3 << 20, 6));
    for ranges in [true, false] {
        let root = temp();
        let first = gguf(&old);
        let server = Server::start(move |request| {
            let reply = honest(request, &first);
            match reply.body {
                Body::All(bytes) if request.path.contains("/resolve/") => {
                    Reply { body: Body::Cut(bytes, 100_000), ..reply }
                }
                body => Reply { body, ..reply },
            }
        });
        pull(&store(root.path(), &server.url), MODEL).unwrap_err();
        assert!(!residue(root.path()).is_empty());
        let content = if ranges { &new } else { &old };
        let second = gguf(content);
        let server = Server::start(move |request| {
            if !ranges && request.path.contains("/resolve/") {
                return Reply::ok(&second[0].1);
            }
            honest(request, &second)
        });
        let model = pull(&store(root.path(), &server.url), MODEL).unwrap();
        assert_eq!(fs::read(model.path).unwrap(), *content);
    }
}

#[test]
fn refuses_bytes_that_are_not_what_was_announced() {
    let content = noise(50_000, 7);
    let cases: Vec<(&str, Reply)> = vec![
        ("another content", Reply::ok(&noise(50_000, 8))),
        ("a shorter file", Reply::ok(&content[..49_999])),
        ("a longer file", Reply::ok(&noise(50_001, 7))),
        ("no end", Reply::new(200, Body::Endless)),
        ("another digest", Reply::ok(&content).with("ETag", format!("\"{}\"", sha256(b"")))),
    ];
    for (what, reply) in cases {
        let (files, reply) = (gguf(&content), std::sync::Mutex::new(Some(reply)));
        let (root, server) = (
            temp(),
            Server::start(move |request| {
                if request.path.contains("/resolve/") {
                    return reply.lock().unwrap().take().expect("one attempt only");
                }
                honest(request, &files)
            }),
        );
        let store = store(root.path(), &server.url);
        let error = pull(&store, MODEL).unwrap_err();
        assert!(matches!(error, StoreError::Mismatch { .. }), "{what}: {error}");
        assert_eq!(store.resolve(&name(MODEL)).unwrap(), None, "{what}");
    }
}

#[test]
fn a_part_of_the_wrong_range_is_refused() {
    let content = noise(3 << 20, 10);
    let files = gguf(&content);
    let (root, server) = (
        temp(),
        Server::start(move |request| {
            let reply = honest(request, &files);
            match reply.body {
                Body::All(bytes) if request.from() > 0 => {
                    Reply::new(206, Body::All(bytes)).with("Content-Range", "bytes 5-9/3145728")
                }
                Body::All(bytes) if request.path.contains("/resolve/") => {
                    Reply { body: Body::Cut(bytes, 2 << 20), ..reply }
                }
                body => Reply { body, ..reply },
            }
        }),
    );
    let error = pull(&store(root.path(), &server.url), MODEL).unwrap_err();
    assert!(matches!(error, StoreError::BadAnswer { .. }), "{error}");
}

/// A hub that falls silent after `len` bytes of a file.
fn silent(content: &[u8], len: usize) -> Server {
    let files = gguf(content);
    Server::start(move |request| {
        let reply = honest(request, &files);
        match reply.body {
            Body::All(bytes) if request.path.contains("/resolve/") => {
                Reply { body: Body::Stall(bytes, len), ..reply }
            }
            body => Reply { body, ..reply },
        }
    })
}

#[test]
fn a_server_that_stalls_is_asked_again_for_the_rest_and_given_up_in_the_end() {
    let content = noise(100_000, 11);
    let starts = |server: &Server| -> Vec<usize> {
        server.requests("/resolve/").iter().map(|request| request.from()).collect()
    };
    let (root, server) = (temp(), silent(&content, 60_000));
    let model = pull(&impatient(root.path(), &server.url), MODEL).unwrap();
    assert_eq!(fs::read(model.path).unwrap(), content);
    assert_eq!(starts(&server), [0, 60_000]);
    let (root, server) = (temp(), silent(&content, 2000));
    let start = Instant::now();
    let error = pull(&impatient(root.path(), &server.url), MODEL).unwrap_err();
    assert!(matches!(error, StoreError::Stalled { .. }), "{error}");
    assert!(start.elapsed() < Duration::from_secs(100));
    assert_eq!(starts(&server), [0, 2000, 4000]);
}

#[test]
fn a_pull_that_waits_for_a_server_can_be_cancelled() {
    let (root, server) = (temp(), silent(&noise(100_000, 12), 10));
    let mut patient = options(root.path(), &server.url);
    patient.patience.stall = Duration::from_secs(3600);
    let cancel = AtomicBool::new(false);
    let mut stop = |progress: &tangor_store::Progress<'_>| {
        cancel.fetch_or(progress.done >= 10, Ordering::Relaxed);
    };
    let error = Store::open(patient).unwrap().pull(&name(MODEL), &mut stop, &cancel).unwrap_err();
    assert!(matches!(error, StoreError::Cancelled));
}

#[test]
fn the_token_is_shown_to_the_hub_alone() {
    let content = noise(10_000, 13);
    let sent = content.clone();
    let cdn = Server::start(move |request| Reply::part(request, &sent));
    let (to, files) = (format!("{}/blob?signature=1", cdn.url), gguf(&content));
    let (root, server) = (
        temp(),
        Server::start(move |request| {
            if request.header("authorization") != Some("Bearer hf_secret") {
                return Reply::status(401).with("X-Error-Message", "Invalid credentials");
            }
            if request.path.contains("/resolve/") {
                return Reply::redirect(&to)
                    .with("X-Linked-ETag", format!("\"{}\"", sha256(&files[0].1)))
                    .with("X-Linked-Size", files[0].1.len());
            }
            honest(request, &files)
        }),
    );
    let error = pull(&store(root.path(), &server.url), MODEL).unwrap_err();
    assert!(matches!(error, StoreError::Status { status: 401, .. }), "{error}");
    assert!(error.hint().unwrap().contains("HF_TOKEN"));
    let known =
        StoreOptions { token: Some(Token::new("hf_secret")), ..options(root.path(), &server.url) };
    let model = pull(&Store::open(known).unwrap(), MODEL).unwrap();
    assert_eq!(fs::read(model.path).unwrap(), content);
    let seen = cdn.requests("/blob");
    assert_eq!(seen.len(), 1);
    assert!(seen.iter().all(|request| request.header("authorization").is_none()));
}

#[test]
fn digests_come_from_the_headers_where_the_description_has_none() {
    let content = noise(70_000, 14);
    for (tag, good) in [
        (Some(sha256(&content)), true),
        (Some(git_blob(&content)), true),
        (Some("not-a-digest".to_owned()), true),
        (None, true),
        (Some(sha256(b"")), false),
        (Some(git_blob(b"")), false),
    ] {
        let (sent, announced) = (content.clone(), tag.clone());
        let (root, server) = (
            temp(),
            Server::start(move |request| {
                if request.path.starts_with("/api/") {
                    return Reply::ok(br#"{"siblings":[{"rfilename":"m.gguf"}]}"#);
                }
                let reply = Reply::part(request, &sent);
                match &announced {
                    Some(tag) => reply.with("ETag", format!("\"{tag}\"")),
                    None => reply,
                }
            }),
        );
        let result = pull(&store(root.path(), &server.url), MODEL);
        match result {
            Ok(model) if good => assert_eq!(fs::read(model.path).unwrap(), content),
            Err(StoreError::Mismatch { .. }) if !good => {}
            other => panic!("{tag:?}: {other:?}"),
        }
        assert!(server.requests("/org/repo/resolve/main/m.gguf").len() == 1);
    }
}

#[test]
fn redirects_are_bounded_and_keep_to_their_rules() {
    let loops = Server::start(|request| Reply::redirect(&format!("{}x", request.path)));
    let root = temp();
    let error = pull(&store(root.path(), &loops.url), MODEL).unwrap_err();
    assert!(matches!(&error, StoreError::Redirect { why, .. } if why.contains("5 times")));
    assert_eq!(loops.requests("").len(), 6);
    for to in ["file:///etc/passwd", "ftp://127.0.0.1/", "gopher://x/"] {
        let server = Server::start(move |_| Reply::redirect(to));
        let error = pull(&store(root.path(), &server.url), MODEL).unwrap_err();
        assert!(matches!(error, StoreError::Redirect { .. }), "{to}: {error}");
    }
    // A relative redirect stays at the hub.
    let files = gguf(b"GGUF");
    let server = Server::start(move |request| match request.path.strip_prefix("/moved") {
        Some(path) => {
            honest(&crate::server::Request { path: path.into(), ..request.clone() }, &files)
        }
        None => Reply::redirect(&format!("/moved{}", request.path)),
    });
    assert_eq!(
        fs::read(pull(&store(root.path(), &server.url), MODEL).unwrap().path).unwrap(),
        b"GGUF"
    );
}

#[test]
fn names_that_would_leave_the_store_or_upset_a_system_are_refused() {
    let long = format!("{}.gguf", "a".repeat(300));
    for bad in [
        "../../evil.gguf",
        "/etc/evil.gguf",
        "..\\evil.gguf",
        "C:\\evil.gguf",
        "nul.gguf",
        "a:b.gguf",
        "x\u{1}.gguf",
        &long,
        "COM1.gguf",
        ".gguf",
    ] {
        let text =
            serde_json::json!({ "sha": COMMIT, "siblings": [{ "rfilename": bad, "size": 4 }] });
        let text = text.to_string();
        let (root, server) = (
            temp(),
            Server::start(move |request| {
                if request.path.starts_with("/api/") {
                    Reply::ok(text.as_bytes())
                } else {
                    Reply::ok(b"evil")
                }
            }),
        );
        // The folder around the store shows what would leave it.
        let store_root = root.path().join("a/b/store");
        let result = pull(&store(&store_root, &server.url), MODEL);
        match result {
            Err(StoreError::UnsafeName { .. }) => {}
            // What is a name once its folder is gone is harmless: the store keeps the name alone.
            Ok(model) => assert!(model.path.starts_with(&store_root), "{bad}"),
            Err(other) => panic!("{bad}: {other}"),
        }
        let outside = residue(root.path())
            .into_iter()
            .filter(|path| !Path::new(path).starts_with(&store_root));
        assert_eq!(outside.count(), 0, "{bad}");
    }
    let twice = gguf(b"1").into_iter().chain([("M.gguf", b"2".to_vec(), true)]);
    let folder: Files = twice.map(|(_, bytes, large)| ("", bytes, large)).collect();
    assert_eq!(folder.len(), 2);
    let text = serde_json::json!({ "sha": COMMIT, "siblings": [
        { "rfilename": "config.json" }, { "rfilename": "m.safetensors" }, { "rfilename": "M.safetensors" },
    ] });
    let text = text.to_string();
    let (root, server) = (temp(), Server::start(move |_| Reply::ok(text.as_bytes())));
    let error = pull(&store(root.path(), &server.url), MODEL).unwrap_err();
    assert!(
        matches!(&error, StoreError::UnsafeName { why, .. } if why.contains("case")),
        "{error}"
    );
}

#[test]
fn answers_that_make_no_sense_are_errors_that_say_so() {
    for (what, body) in [
        ("no JSON", Body::All(b"<html>".to_vec())),
        ("another JSON", Body::All(b"[1]".to_vec())),
        ("no end", Body::Endless),
        ("a commit with a line break", Body::All(br#"{"sha":"a\nb","siblings":[]}"#.to_vec())),
    ] {
        let body = std::sync::Mutex::new(Some(body));
        let server = Server::start(move |_| {
            Reply::new(200, body.lock().unwrap().take().expect("asked once"))
        });
        let root = temp();
        let error = pull(&store(root.path(), &server.url), MODEL).unwrap_err();
        assert!(matches!(error, StoreError::BadAnswer { .. }), "{what}: {error}");
        assert_eq!(residue(root.path()), Vec::<String>::new());
    }
    for (status, attempts) in [(404, 1), (403, 1), (503, 3), (429, 3)] {
        let server = Server::start(move |_| Reply::status(status).with("X-Error-Message", "Nope"));
        let error = pull(&store(temp().path(), &server.url), MODEL).unwrap_err();
        assert!(error.to_string().contains("Nope"), "{error}");
        assert!(matches!(error, StoreError::Status { status: s, .. } if s == status));
        assert_eq!(server.requests("").len(), attempts);
    }
}

#[test]
fn nothing_is_fetched_offline() {
    let server = hub(gguf(b"GGUF"));
    let root = temp();
    let offline = StoreOptions { offline: true, ..options(root.path(), &server.url) };
    let offline = Store::open(offline).unwrap();
    let error = pull(&offline, MODEL).unwrap_err();
    assert!(matches!(error, StoreError::Offline(_)), "{error}");
    assert!(error.hint().unwrap().contains("tangor pull org/repo"));
    assert_eq!(server.requests("").len(), 0);
    assert!(residue(root.path()).is_empty());
    pull(&store(root.path(), &server.url), MODEL).unwrap();
    pull(&offline, MODEL).unwrap();
}

#[test]
fn a_hub_that_is_not_there_is_an_error_that_says_so() {
    let url = Server::start(|_| Reply::status(500)).url.clone();
    let error = pull(&store(temp().path(), &url), MODEL).unwrap_err();
    assert!(matches!(error, StoreError::Unreachable { .. }), "{error}");
    for endpoint in ["", "hub", "ftp://hub", "http://"] {
        let error = pull(&store(temp().path(), endpoint), MODEL).unwrap_err();
        assert!(error.to_string().contains("HF_ENDPOINT"), "{endpoint}: {error}");
    }
}

#[test]
fn what_was_pulled_and_is_no_model_is_refused_by_what_reads_it() {
    let (root, server) = (temp(), hub(gguf(b"GGUF but not one")));
    let store = store(root.path(), &server.url);
    let model = pull(&store, MODEL).unwrap();
    let error = store.open_checkpoint(&model, &tangor_formats::Limits::default()).unwrap_err();
    assert!(matches!(&error, StoreError::Format(_)), "{error}");
    assert!(error.to_string().contains("m.gguf"), "{error}");
}
