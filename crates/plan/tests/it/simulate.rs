//! Machines that are not here: what was published comes out again, and what a file may say.

use std::fmt::Write;
use tangor_plan::simulate::{
    Grade, Machine, ProfileError, Step, markdown, residuals, row, seed_graph, seed_models,
    seed_options, sensitivity, simulate,
};
use tangor_plan::{DeviceChoice, Kind, PlanOptions, Stage};

fn machine(name: &str) -> Machine {
    Machine::built_in(name).unwrap().unwrap()
}

const QWEN_7B: &str = "deepseek-r1-distill-qwen-7b";
const LLAMA_8B: &str = "deepseek-r1-distill-llama-8b";

#[test]
fn the_vendors_six_figures_come_out_within_three_percent() {
    let residuals = residuals(&machine("strix-point")).unwrap();
    assert_eq!(residuals.len(), 3);
    for residual in residuals {
        for error in [residual.ttft_error(), residual.decode_error()] {
            assert!(error.abs() < 0.03, "{residual:?}");
        }
    }
}

/// Users of a 7B model report about 700 ms for any short prompt, which nothing was fitted to.
#[test]
fn the_floor_of_short_prompts_comes_out_too() {
    let graph = seed_graph("qwen1.5-7b").unwrap();
    for prompt in [2, 32, 200] {
        let options = PlanOptions { prompt, ..seed_options() };
        let plan = simulate(&graph, &machine("strix-point"), Step::Vendor, &options).unwrap();
        let ttft = plan.predicted.ttft_s;
        assert!((0.65..0.75).contains(&ttft), "{prompt}: {ttft}");
    }
}

#[test]
fn every_model_has_its_figures_on_both_machines() {
    let mut text = String::new();
    for name in Machine::names() {
        let machine = machine(name);
        for model in seed_models() {
            let graph = seed_graph(model).unwrap();
            for step in [Step::Vendor, Step::Cooperation] {
                let plan = simulate(&graph, &machine, step, &seed_options()).unwrap();
                let p = &plan.predicted;
                writeln!(
                    text,
                    "{name} {:13} {model:29} {:.3} s {:6.2} tokens/s, weights {} kv {} MB{}",
                    step.name(),
                    p.ttft_s,
                    p.decode_tps,
                    p.weights_bytes / 1_000_000,
                    p.kv_bytes / 1_000_000,
                    plan.cooperative.map_or_else(String::new, |both| format!(
                        ", {} {} and {} {} rows",
                        plan.devices[both.devices[0]].name,
                        both.rows[0],
                        plan.devices[both.devices[1]].name,
                        both.rows[1]
                    )),
                )
                .unwrap();
            }
        }
    }
    assert_eq!(seed_models().count(), 13);
    insta::assert_snapshot!(text);
}

#[test]
fn no_step_makes_anything_slower() {
    let graph = seed_graph(LLAMA_8B).unwrap();
    let row = row(LLAMA_8B, &graph, &machine("strix-point"), &seed_options()).unwrap();
    assert_eq!((row.steps.len(), row.missing.len()), (Step::ALL.len(), 0));
    for pair in row.steps.windows(2) {
        assert!(pair[1].ttft_s <= pair[0].ttft_s * 1.001, "{pair:?}");
        assert!(pair[1].short_ttft_s <= pair[0].short_ttft_s * 1.001, "{pair:?}");
        assert!(pair[1].decode_tps >= pair[0].decode_tps * 0.999, "{pair:?}");
    }
    // Two copies of 4.17 GB, one of them in the NPU's wider form, become one.
    let bytes = row.steps.iter().map(|figures| figures.weights_bytes).collect::<Vec<_>>();
    assert!(bytes[0] > 8_000_000_000 && bytes[3] < 4_300_000_000, "{bytes:?}");
}

#[test]
fn sensitivity_encloses_the_prediction() {
    let (graph, strix) = (seed_graph(QWEN_7B).unwrap(), machine("strix-point"));
    let predicted = simulate(&graph, &strix, Step::Cooperation, &seed_options()).unwrap().predicted;
    let range = sensitivity(&graph, &strix, Step::Cooperation, &seed_options()).unwrap();
    let [fast, slow] = range.ttft_s;
    assert!(fast < predicted.ttft_s && predicted.ttft_s < slow, "{range:?}");
    let [low, high] = range.decode_tps;
    assert!(low < predicted.decode_tps && predicted.decode_tps < high, "{range:?}");
    assert_eq!(range.cases.len(), 8);
}

#[test]
fn the_vendors_modes_stay_on_their_device() {
    let graph = seed_graph("llama-3.2-1b").unwrap();
    for (device, kind) in [(DeviceChoice::Npu, Kind::Npu), (DeviceChoice::Cpu, Kind::Cpu)] {
        let options = PlanOptions { device, ..seed_options() };
        let plan = simulate(&graph, &machine("strix-point"), Step::Vendor, &options).unwrap();
        assert!(plan.used().iter().all(|&used| plan.devices[used].kind == kind), "{device}");
    }
    let plan = simulate(&graph, &machine("strix-point"), Step::Vendor, &seed_options()).unwrap();
    let head = plan.stage(Stage::Prefill, 1024).unwrap().segments.last().unwrap();
    assert_eq!(plan.devices[head.device].kind, Kind::Gpu, "the head is one row");
}

#[test]
fn the_tables_are_labelled_as_simulated() {
    let text = markdown(&machine("krackan-point")).unwrap();
    assert!(text.contains("krackan-point (simulated)"));
    assert!(text.contains("Nobody has published measurements"));
    assert!(text.contains("| npu.int8_ops_per_s |"));
}

#[test]
fn every_number_of_a_built_in_profile_has_a_source() {
    for name in Machine::names() {
        let machine = machine(name);
        assert_eq!(machine.name, name);
        assert!(machine.sources.len() > 25);
        assert!(machine.sources.iter().all(|source| source.source.len() > 5));
        let fitted = machine.sources.iter().filter(|s| s.grade == Grade::Fitted).count();
        assert!(fitted >= 4, "{name}");
    }
    assert!(Machine::built_in("abacus").is_none());
}

/// A small profile as a user might write one.
fn profile() -> serde_json::Value {
    let number = |value: f64| serde_json::json!({"value": value, "grade": "guess", "source": "me"});
    serde_json::json!({
        "name": "mine", "title": "My laptop",
        "devices": [{
            "name": "gpu", "kind": "gpu", "description": "a GPU", "host_memory": true,
            "layout": "gpu",
            "numbers": {"memory_bytes": number(8e9), "int8_ops_per_s": number(1e12)}
        }]
    })
}

/// Attacks: a change of the profile, and the field that the error must name.
#[test]
fn a_profile_that_makes_no_sense_is_refused_by_name() {
    assert!(Machine::parse(&profile().to_string()).is_ok());
    let number = |value: f64| serde_json::json!({"value": value, "grade": "guess", "source": "me"});
    let changes: Vec<(&str, serde_json::Value, &str)> = vec![
        ("/devices", serde_json::json!([]), "devices"),
        ("/name", "two\nlines".into(), "name"),
        ("/title", "x".repeat(2000).into(), "title"),
        ("/devices/0/name", "".into(), "name"),
        ("/devices/0/kind", "abacus".into(), "abacus"),
        ("/devices/0/numbers/memory_bytes", number(-1.0), "gpu.memory_bytes"),
        ("/devices/0/numbers/memory_bytes", number(1e300), "gpu.memory_bytes"),
        ("/devices/0/numbers/int8_ops_per_s", number(0.0), "gpu.int8_ops_per_s"),
        ("/devices/0/numbers/int8_ops_per_s", number(-1e12), "gpu.int8_ops_per_s"),
        ("/devices/0/numbers", serde_json::json!({}), "gpu.memory_bytes"),
    ];
    for (pointer, value, named) in changes {
        let mut changed = profile();
        *changed.pointer_mut(pointer).unwrap() = value;
        let error = Machine::parse(&changed.to_string()).unwrap_err().to_string();
        assert!(error.contains(named), "{pointer}: {error}");
    }
    for (key, value) in [
        ("nonsense", 1.0),
        ("matrix_tile_inputs", 0.0),
        ("matrix_tile_outputs", 1.5),
        ("row_tile", 1e9),
        ("together", 0.0),
        ("node_s", -1.0),
        ("layout_bytes", 1e9),
    ] {
        let mut changed = profile();
        changed["devices"][0]["numbers"][key] = number(value);
        let error = Machine::parse(&changed.to_string()).unwrap_err();
        assert!(matches!(&error, ProfileError::Field { field, .. } if field.contains(key)));
    }
    let mut twice = profile();
    let first = twice["devices"][0].clone();
    twice["devices"].as_array_mut().unwrap().push(first);
    assert!(Machine::parse(&twice.to_string()).is_err());
    for counts in [serde_json::json!([2, 1]), serde_json::json!([0]), serde_json::json!([1e10])] {
        let mut changed = profile();
        changed["devices"][0]["row_counts"] = counts;
        assert!(Machine::parse(&changed.to_string()).is_err());
    }
    for text in ["", "{", "[]", "null", "{\"name\":1}", &"[".repeat(100_000)] {
        assert!(matches!(Machine::parse(text), Err(ProfileError::Json(_))), "{text:.20}");
    }
    let long = " ".repeat(2 << 20);
    assert!(matches!(Machine::parse(&long), Err(ProfileError::TooLong { .. })));
}

#[test]
fn the_documented_tables_are_the_ones_that_come_out() {
    let documented = include_str!("../../../../docs/hybrid.md");
    for name in Machine::names() {
        let text = markdown(&machine(name)).unwrap();
        for table in text.split("\n\n").map(str::trim).filter(|table| !table.is_empty()) {
            assert!(documented.contains(table), "docs/hybrid.md lacks of {name}:\n{table}");
        }
    }
}
