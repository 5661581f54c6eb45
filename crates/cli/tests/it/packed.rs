//! Packed weights as a user meets them: not at all, but for speed.

use crate::{Place, Written};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Files of the cache.
fn entries(place: &Place) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(place.folder.path().join("home/packed")) else {
        return Vec::new();
    };
    let paths = entries.map(|entry| entry.unwrap().path());
    paths.filter(|path| path.extension().is_some_and(|kind| kind == "packed")).collect()
}

/// A tiny model that rests: only then do its times tell whether it is the same.
fn rested(place: &Place) -> PathBuf {
    let tiny = place.tiny();
    std::thread::sleep(Duration::from_millis(2100));
    tiny
}

fn args(tiny: &Path) -> [&str; 7] {
    ["run", tiny.to_str().unwrap(), "-p", "hello", "-n", "12", "--json"]
}

fn ids(place: &Place, tiny: &Path) -> serde_json::Value {
    let written = Written::of(place.tangor(&args(tiny)));
    assert_eq!(written.stderr, "");
    written.json()["token_ids"].clone()
}

#[test]
fn answers_are_the_same_whatever_is_kept() {
    let place = Place::new();
    let tiny = rested(&place);
    let mut off = place.tangor(&args(&tiny));
    off.env("TANGOR_PACKED", "off");
    let plain = Written::of(off).json()["token_ids"].clone();
    assert!(entries(&place).is_empty());
    assert_eq!(ids(&place, &tiny), plain, "cold");
    let [entry] = &entries(&place)[..] else { panic!("one entry") };
    let written = fs::metadata(entry).unwrap().modified().unwrap();
    assert_eq!(ids(&place, &tiny), plain, "warm");
    assert_eq!(fs::metadata(entry).unwrap().modified().unwrap(), written);
    let bytes = fs::read(entry).unwrap();
    let mut flipped = bytes.clone();
    flipped[bytes.len() / 3] ^= 4;
    for damaged in [&bytes[..bytes.len() / 2], b"", &flipped] {
        fs::write(entry, damaged).unwrap();
        assert_eq!(ids(&place, &tiny), plain, "damaged");
        assert_eq!(fs::read(entry).unwrap().len(), bytes.len(), "written anew");
    }
}

#[test]
fn a_model_that_changed_is_packed_anew() {
    let place = Place::new();
    let tiny = rested(&place);
    let first = ids(&place, &tiny);
    let weights = tiny.join("model.safetensors");
    let mut bytes = fs::read(&weights).unwrap();
    let end = bytes.len();
    // Signs of the last weights, which are of the last layer or of its norms.
    bytes[end - 4000..].iter_mut().skip(3).step_by(4).for_each(|byte| *byte ^= 0x80);
    fs::write(&weights, bytes).unwrap();
    std::thread::sleep(Duration::from_millis(2100));
    assert_ne!(ids(&place, &tiny), first);
    assert_eq!(entries(&place).len(), 2);
}

#[test]
fn programs_that_start_at_once_do_not_disturb_each_other() {
    let place = Place::new();
    let tiny = rested(&place);
    let start = || {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_tangor"));
        command.args(args(&tiny)).env("TANGOR_HOME", place.folder.path().join("home"));
        command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
        command.spawn().unwrap()
    };
    for _ in 0..3 {
        let mut killed = start();
        let started: Vec<_> = (0..4).map(|_| start()).collect();
        killed.kill().unwrap();
        killed.wait().unwrap();
        for child in started {
            let output = child.wait_with_output().unwrap();
            let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
            assert_eq!(json["token_ids"], ids(&place, &tiny));
        }
        let entries = entries(&place);
        assert_eq!(entries.len(), 1);
        fs::remove_file(&entries[0]).unwrap();
    }
}

#[test]
fn packed_weights_can_be_removed() {
    let place = Place::new();
    let tiny = rested(&place);
    let _ = ids(&place, &tiny);
    assert_eq!(entries(&place).len(), 1);
    let tiny = tiny.to_str().unwrap();
    let removed = Written::of(place.tangor(&["rm", "--packed", tiny, "--json"])).json();
    assert!(removed["removed"][0]["bytes"].as_u64().unwrap() > 10_000);
    assert!(entries(&place).is_empty());
    let removed = Written::of(place.tangor(&["rm", "--packed"]));
    assert_eq!((removed.code, removed.stdout.as_str()), (0, "removed packed weights, 0 B\n"));
    let doctor = Written::of(place.tangor(&["doctor", "--verify", "--json"])).json();
    assert_eq!(doctor["store"]["packed"], 0);
}

#[test]
fn a_doctor_who_is_to_verify_fails_where_something_is_damaged() {
    let place = Place::new();
    let tiny = rested(&place);
    let _ = ids(&place, &tiny);
    let [entry] = &entries(&place)[..] else { panic!("one entry") };
    let mut bytes = fs::read(entry).unwrap();
    let third = bytes.len() / 3;
    bytes[third] ^= 4;
    fs::write(entry, bytes).unwrap();
    let verify = || Written::of(place.tangor(&["doctor", "--verify", "--json"]));
    let damaged = verify();
    assert_eq!(damaged.code, 1);
    assert!(damaged.stderr.contains("damaged in 1 place:"), "{}", damaged.stderr);
    let report: serde_json::Value = serde_json::from_str(&damaged.stdout).unwrap();
    let what = report["problems"][0]["what"].as_str().unwrap();
    assert!(what.contains("is damaged"), "{what}");
    assert_eq!(verify().code, 0, "what was damaged is gone");
}

#[test]
fn a_store_that_cannot_be_written_is_a_remark_and_no_failure() {
    let place = Place::new();
    let tiny = rested(&place);
    fs::write(place.folder.path().join("home"), b"a file").unwrap();
    let written = Written::of(place.tangor(&args(&tiny)));
    assert!(written.stderr.contains("packed weights are not kept"), "{}", written.stderr);
    assert_eq!(written.json()["completion_tokens"], 12);
    let mut quiet = place.tangor(&args(&tiny));
    quiet.arg("--quiet");
    assert_eq!(Written::of(quiet).stderr, "");
}
