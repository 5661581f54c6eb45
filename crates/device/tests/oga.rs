//! OGA folders made by the real model builder give, on the oracle, the logits that their graphs
//! compute by the operators' definitions (`tools/goldens/oga.py`), before and after the passes.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests stop at what is unexpected")]

use std::fs;
use std::path::{Path, PathBuf};
use tangor_device::oracle;
use tangor_model::formats::{self, Checkpoint, Limits, MemorySource};
use tangor_model::{Graph, import};

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../model/tests/fixtures/oga")
}

fn open(folder: &Path) -> Checkpoint {
    let mut source = MemorySource::new(folder.file_name().unwrap().to_string_lossy());
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let bytes = fs::read(&path).unwrap();
        source = source.with(path.file_name().unwrap().to_string_lossy(), bytes);
    }
    Checkpoint::open(&source, None, &Limits::default()).expect("a checkpoint")
}

struct Case {
    tokens: Vec<u32>,
    logits: Vec<f32>,
}

#[allow(clippy::cast_possible_truncation)]
fn cases(folder: &Path) -> Vec<Case> {
    let text = fs::read(folder.join("expected.json")).unwrap();
    let json = formats::json::parse("expected.json", &text, &Limits::default()).unwrap();
    let cases = json["cases"].as_array().unwrap().iter();
    cases
        .map(|case| {
            let tokens = case["tokens"].as_array().unwrap().iter();
            let logits = case["logits"].as_array().unwrap().iter();
            Case {
                tokens: tokens.map(|id| u32::try_from(id.as_u64().unwrap()).unwrap()).collect(),
                logits: logits.map(|logit| logit.as_f64().unwrap() as f32).collect(),
            }
        })
        .collect()
}

fn check(name: &str, which: &str, graph: &Graph, cases: &[Case]) {
    for case in cases {
        let found = oracle::logits(graph, &case.tokens).expect("the oracle runs everything");
        assert_eq!(found.len(), case.logits.len(), "{name}, {which}");
        let scale = case.logits.iter().fold(0f32, |most, x| most.max(x.abs()));
        let off = found.iter().zip(&case.logits).fold(0f32, |most, (a, b)| most.max((a - b).abs()));
        let tokens = case.tokens.len();
        assert!(off < 1e-5 * scale, "{name}, {which}: {tokens} tokens are {:e} off", off / scale);
    }
}

#[test]
fn every_flavour_of_the_builder_gives_the_logits_of_its_graph() {
    let mut folders: Vec<PathBuf> =
        fs::read_dir(fixtures()).unwrap().map(|entry| entry.unwrap().path()).collect();
    folders.sort();
    assert!(folders.len() >= 15, "fixtures are missing");
    for folder in folders {
        let name = folder.file_name().unwrap().to_string_lossy().into_owned();
        let (checkpoint, cases) = (open(&folder), cases(&folder));
        let plain = import::as_written(&checkpoint).unwrap_or_else(|e| panic!("{name}: {e}"));
        check(&name, "as written", &plain, &cases);
        let fused = import::import(&checkpoint).unwrap_or_else(|e| panic!("{name}: {e}"));
        check(&name, "fused", &fused, &cases);
    }
}
