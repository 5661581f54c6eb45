//! `tangor plan`: machines that are not here, pictures, lists.

use crate::{Place, Written, keys};
use serde_json::Value;

const SEGMENT: [&str; 5] = ["device", "nodes", "predicted_s", "measured_s", "why"];

fn simulate(place: &Place, more: &[&str]) -> Written {
    let args = ["plan", "--shape", "deepseek-r1-distill-qwen-1.5b", "--profile", "strix-point"];
    Written::of(place.tangor(&[&args, more].concat()))
}

#[test]
fn another_machine_is_simulated_and_labelled_so() {
    let place = Place::new();
    let json = simulate(&place, &["--policy", "vendor", "--json"]).json();
    assert_eq!((&json["simulated"], &json["policy"]), (&Value::Bool(true), &"vendor".into()));
    let ttft = json["predicted"]["ttft_s"].as_f64().unwrap();
    assert!((ttft / 0.68 - 1.0).abs() < 0.03, "{ttft}");
    let tps = json["predicted"]["decode_tps"].as_f64().unwrap();
    assert!((tps / 60.0 - 1.0).abs() < 0.03, "{tps}");
    assert_eq!(keys(&json["stages"][0]["segments"][0]), SEGMENT);
    assert_eq!(json["sensitivity"]["cases"].as_array().unwrap().len(), 8);
    for source in json["sources"].as_array().unwrap() {
        assert_eq!(keys(source), ["what", "value", "grade", "source"]);
    }
    let text = simulate(&place, &[]);
    assert_eq!((text.code, text.stderr.as_str()), (0, ""));
    for word in ["(simulated)", "together", "rows split", "MEMORY", "simulated  first token"] {
        assert!(text.stdout.contains(word), "{word}: {}", text.stdout);
    }
}

#[test]
fn pictures_are_drawn_as_their_names_say() {
    let place = Place::new();
    let drawn = simulate(&place, &["--chart", "plan.svg", "--chart", "plan.PNG"]);
    assert_eq!(drawn.code, 0, "{}", drawn.stderr);
    let svg = std::fs::read_to_string(place.folder.path().join("plan.svg")).unwrap();
    assert!(svg.contains("on strix-point: simulated") && svg.contains(">npu<"), "{svg}");
    let png = std::fs::read(place.folder.path().join("plan.PNG")).unwrap();
    assert!(png.starts_with(b"\x89PNG"));
}

#[test]
fn all_supported_models_are_listed() {
    let place = Place::new();
    let args = ["plan", "--all", "--profile", "krackan-point"];
    let text = Written::of(place.tangor(&args));
    assert_eq!(text.code, 0, "{}", text.stderr);
    assert_eq!(text.stdout.lines().filter(|line| line.ends_with("gpu")).count(), 13);
    let json = Written::of(place.tangor(&[&args[..], &["--json"]].concat())).json();
    let models = json["models"].as_array().unwrap();
    assert_eq!(models.len(), 13);
    assert_eq!(models[0]["steps"].as_array().unwrap().len(), 6);
    let args = ["plan", "--all", "--markdown"];
    assert_eq!(Written::of(place.tangor(&args)).code, 2, "there is nothing to simulate");
    let both = Written::of(place.tangor(&["plan", "--all", "--shape", "llama-3-8b"]));
    assert_eq!(both.code, 2, "{}", both.stdout);
}

#[test]
fn a_profile_of_ones_own_is_read_and_a_broken_one_is_named() {
    let place = Place::new();
    let built_in = include_str!("../../../plan/profiles/strix-point.json");
    let folder = place.folder.path();
    std::fs::write(folder.join("mine.json"), built_in.replace("89800000000", "179600000000"))
        .unwrap();
    std::fs::write(folder.join("broken.json"), built_in.replace("\"gpu\"", "\"abacus\"")).unwrap();
    std::fs::write(folder.join("long.json"), " ".repeat(2 << 20)).unwrap();
    let plan = |profile: &str| {
        let args = ["plan", "--shape", "llama-3-8b", "--json", "--profile", profile];
        Written::of(place.tangor(&args))
    };
    let mine = plan("mine.json").json();
    assert!(mine["predicted"]["decode_tps"].as_f64().unwrap() > 30.0);
    for profile in ["broken.json", "long.json", "."] {
        let written = plan(profile);
        assert_eq!((written.code, written.stdout.as_str()), (1, ""));
        assert!(written.stderr.starts_with(&format!("error: {profile}: ")), "{}", written.stderr);
    }
}

#[test]
fn another_machine_takes_no_options_of_this_one() {
    let place = Place::new();
    for more in [
        &["--remeasure"][..],
        &["--no-measure"],
        &["--gpu", "0"],
        &["--npu", "x"],
        &["--threads", "2"],
        &["--isa", "avx2"],
    ] {
        let written = simulate(&place, more);
        assert_eq!((written.code, written.stdout.as_str()), (2, ""), "{more:?}");
        assert!(written.stderr.contains(more[0]), "{}", written.stderr);
    }
    // What the environment says of this machine is not asked of the other one.
    let args = ["plan", "--shape", "llama-3-8b", "--profile", "strix-point"];
    let mut plan = place.tangor(&args);
    plan.env("TANGOR_THREADS", "2");
    assert_eq!(Written::of(plan).code, 0);
}

#[test]
fn this_machine_has_no_devices_for_the_vendors_rule() {
    let place = Place::new();
    let args = ["plan", "--shape", "llama-3.2-1b", "--no-measure", "--policy", "vendor"];
    let written = Written::of(place.tangor(&args));
    assert_eq!(written.code, 1);
    assert!(written.stderr.contains("npu"), "{}", written.stderr);
}

#[test]
fn prompt_and_answer_have_to_fit_the_context() {
    let place = Place::new();
    let shape = ["plan", "--shape", "llama-3.2-1b"];
    let here = &["--no-measure", "--device", "cpu"][..];
    let most = usize::MAX.to_string();
    for (whose, more, context) in [
        (here, &["-p", &most][..], "131072"),
        (here, &["-n", &most], "131072"),
        (here, &["-p", &most, "-n", &most], "131072"),
        (here, &["-p", "131072", "-n", "1"], "131072"),
        (here, &["-p", "1000", "-n", "25", "--context", "1024"], "1024"),
        (&["--profile", "strix-point"], &["-p", &most], "131072"),
    ] {
        let written = Written::of(place.tangor(&[&shape[..], whose, more].concat()));
        assert_eq!(written.code, 1, "{more:?}");
        let said = format!("must be at most {context}, the context");
        assert!(written.stderr.contains(&said), "{more:?}: {}", written.stderr);
    }
    // Nobody asked for the usual lengths, and they are shortened.
    let tiny = place.tiny();
    let args = ["plan", tiny.to_str().unwrap(), "--device", "cpu", "--no-measure"];
    let written = Written::of(place.tangor(&args));
    assert!(written.stdout.contains("64 tokens read, 64 written"), "{}", written.stderr);
}

#[test]
fn what_was_measured_is_kept_until_it_is_measured_again() {
    let place = Place::new();
    let tiny = place.tiny();
    let device = |more: &[&str]| {
        let args = ["plan", tiny.to_str().unwrap(), "--device", "cpu", "--json"];
        let json = Written::of(place.tangor(&[&args, more].concat())).json();
        json["devices"][0].clone()
    };
    // Of two instruction sets that are about as fast, every process may find another one faster.
    let usual = device(&["--no-measure"])["description"].as_str().unwrap().to_owned();
    let isa = usual.rsplit(", ").nth(1).unwrap();
    let rates = |more: &[&str]| device(&[&["--isa", isa], more].concat())["rates"].clone();
    let first = rates(&[]);
    assert_eq!(first["measured"], true);
    assert_eq!(rates(&[]), first);
    assert_eq!(rates(&["--no-measure"])["measured"], false);
    let again = rates(&["--remeasure"]);
    assert_ne!(again, first, "two measurements agree in no digit");
    assert_eq!(rates(&[]), again);
    // With other threads it is another device.
    let other = if usual.ends_with(", 1 threads") { "2" } else { "1" };
    assert_ne!(rates(&["--threads", other]), again);
}
