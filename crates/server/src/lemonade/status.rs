//! What the server is doing, and what it runs on.

use crate::app::App;
use crate::catalog::Entry;
use crate::error::{ApiError, Kind, Result};
use crate::openai::models::checkpoint;
use crate::residents::Listed;
use axum::Json;
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use std::sync::Arc;
use tangor_engine::device::DeviceKind;
use tangor_engine::plan::Slot;

/// What counters are called over HTTP.
pub(crate) const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// What a server that runs says.
pub(crate) fn live_example() -> Value {
    json!({"status": "ok"})
}

/// Whether the models that the server was started with are loaded, and none is lost: what programs
/// wait for that start it. One that is lost is loaded again, since whoever asks this may keep the
/// requests away that would have it loaded.
pub(crate) async fn ready(State(app): State<Arc<App>>) -> Result<Json<Value>> {
    let message = match (app.is_ready(), app.reload_lost()) {
        (false, _) => "the model is being loaded",
        (true, true) => "a model was lost, and is loaded again",
        (true, false) => return Ok(Json(json!({"status": "ok"}))),
    };
    let error = ApiError::new(Kind::Unavailable, message);
    Err(ApiError { retry_after: Some(1), ..error })
}

/// What [`health`] looks like.
pub(crate) fn health_example() -> Value {
    json!({
        "status": "ok", "version": "", "uptime_s": 0,
        "model_loaded?": "", "checkpoint_loaded?": "",
        "all_models_loaded": [{
            "model_name": "", "checkpoint": "", "type": "", "recipe": "", "device": "",
            "last_use": 0, "loaded_at": 0, "pinned": true, "lost": true, "is_busy": true,
            "is_streaming": true,
            "recipe_options": {"ctx_size": 0}, "memory_bytes": 0,
        }],
        "max_models": {"llm": 0}, "pinned_models": {"llm": 0},
    })
}

/// What [`stats`] look like.
pub(crate) fn stats_example() -> Value {
    json!({
        "time_to_first_token": 0.5, "tokens_per_second": 0.5, "input_tokens": 0,
        "output_tokens": 0, "prompt_tokens": 0, "cache_tokens": 0, "decode_token_times": [0.5],
        "request_count_total": 0, "input_tokens_total": 0, "output_tokens_total": 0,
        "cache_tokens_total": 0,
    })
}

/// What [`system_info`] looks like.
pub(crate) fn system_info_example() -> Value {
    json!({
        "OS Version": "", "Processor?": "", "devices": {"*": {
            "available": true, "threads?": 0, "name?": "", "memory_bytes?": 0,
        }},
        "recipes": {"*": {"default_backend": "", "backends": {"*": {"state": "", "version": ""}}}},
    })
}

/// What [`slots`] look like.
pub(crate) fn slots_example() -> Value {
    json!([{"id": 0, "model": "", "n_ctx": 0, "is_processing": true, "requests": 0}])
}

/// What [`plan`] looks like: what plans consist of is the planner's to say.
pub(crate) fn plan_example() -> Value {
    json!({"object": "list", "data": [{}]})
}

/// What a server that ends says.
pub(crate) fn halt_example() -> Value {
    json!({"terminated": true})
}

/// Whether the server runs.
pub(crate) async fn live() -> Json<Value> {
    Json(json!({"status": "ok"}))
}

/// Counters for Prometheus.
pub(crate) async fn metrics(State(app): State<Arc<App>>) -> Response {
    ([(header::CONTENT_TYPE, OPENMETRICS)], app.metrics.text(&app.residents)).into_response()
}

/// Which models are in memory.
pub(crate) async fn health(State(app): State<Arc<App>>) -> Json<Value> {
    let all = app.residents.list();
    let models: Vec<Value> = all.iter().map(describe).collect();
    let pinned = all.iter().filter(|listed| listed.pinned).count();
    Json(json!({
        "status": "ok",
        "version": env!("CARGO_PKG_VERSION"),
        "uptime_s": app.started.elapsed().as_secs(),
        "model_loaded": all.first().map(|listed| &listed.resident.id),
        "checkpoint_loaded": models.first().map(|model| &model["checkpoint"]),
        "all_models_loaded": models,
        "max_models": {"llm": app.limits().models},
        "pinned_models": {"llm": pinned},
    }))
}

fn describe(listed: &Listed) -> Value {
    let resident = &listed.resident;
    let entry = Entry { id: resident.id.clone(), installed: resident.installed.clone() };
    let devices = resident.model().devices();
    let names: Vec<&str> = devices.iter().map(|device| device.name.as_str()).collect();
    json!({
        "model_name": resident.id,
        "checkpoint": checkpoint(&entry),
        "type": "llm",
        "recipe": "tangor",
        "device": names.join(" "),
        "last_use": resident.used_at(),
        "loaded_at": resident.loaded_at,
        "pinned": listed.pinned,
        "lost": resident.is_lost(),
        "is_busy": resident.leases() > 0,
        "is_streaming": resident.leases() > 0,
        "recipe_options": {"ctx_size": resident.model().context()},
        "memory_bytes": resident.memory(),
    })
}

/// What the last answer took, and totals.
pub(crate) async fn stats(State(app): State<Arc<App>>) -> Json<Value> {
    let last = app.metrics.last();
    Json(json!({
        "time_to_first_token": last.timings.ttft.as_secs_f64(),
        "tokens_per_second": last.timings.decode_tps(&last.usage).unwrap_or(0.0),
        "input_tokens": last.usage.prompt.saturating_sub(last.usage.cached),
        "output_tokens": last.usage.completion,
        "prompt_tokens": last.usage.prompt,
        "cache_tokens": last.usage.cached,
        "decode_token_times": [],
        "request_count_total": last.requests,
        "input_tokens_total": last.input,
        "output_tokens_total": last.output,
        "cache_tokens_total": last.cached,
    }))
}

/// What this machine is: what the loaded models see of it.
pub(crate) async fn system_info(State(app): State<Arc<App>>) -> Json<Value> {
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let mut devices = json!({"cpu": {"threads": threads, "available": true}});
    let mut processor = None;
    for listed in app.residents.list() {
        for device in listed.resident.model().devices() {
            let key = match device.kind {
                DeviceKind::Cpu => "cpu",
                DeviceKind::Gpu => "gpu",
                DeviceKind::Npu => "npu",
            };
            devices[key]["name"] = device.description.clone().into();
            devices[key]["available"] = true.into();
            devices[key]["memory_bytes"] = device.memory_bytes.into();
            if device.kind == DeviceKind::Cpu {
                processor = Some(device.description.clone());
            }
        }
    }
    Json(json!({
        "OS Version": format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
        "Processor": processor,
        "devices": devices,
        "recipes": {"tangor": {"default_backend": "tangor", "backends": {"tangor": {
            "state": "installed", "version": env!("CARGO_PKG_VERSION"),
        }}}},
    }))
}

/// How the models in memory run: of each what `tangor plan --json` says, as it is now and with what
/// runs took so far, and when which device should work.
pub(crate) async fn plan(State(app): State<Arc<App>>) -> Json<Value> {
    let plans = app.residents.list().into_iter().map(|listed| {
        let (resident, plan) = (&listed.resident, listed.resident.model().plan());
        let slot = |slot: &Slot| {
            json!({
                "device": plan.devices[slot.device].name,
                "start_s": slot.start_s,
                "end_s": slot.end_s,
                "label": slot.label,
                "measured_s": slot.measured_s,
            })
        };
        let slots = |slots: &[Slot]| slots.iter().map(slot).collect::<Vec<_>>();
        let mut described = plan.to_json();
        described["model"] = resident.id.clone().into();
        described["timeline"] = json!({
            "prefill": slots(&plan.timeline.prefill),
            "decode": slots(&plan.timeline.decode),
        });
        described["kv"] = json!(plan.kv);
        described
    });
    Json(json!({"object": "list", "data": plans.collect::<Vec<_>>()}))
}

/// What every model is doing.
pub(crate) async fn slots(State(app): State<Arc<App>>) -> Json<Value> {
    let slot = |(id, listed): (usize, Listed)| {
        let resident = listed.resident;
        json!({
            "id": id,
            "model": resident.id,
            "n_ctx": resident.model().context(),
            "is_processing": resident.leases() > 0,
            "requests": resident.leases(),
        })
    };
    Json(app.residents.list().into_iter().enumerate().map(slot).collect())
}

/// Ends the server.
pub(crate) async fn halt(State(app): State<Arc<App>>) -> Json<Value> {
    app.stop();
    Json(json!({"terminated": true}))
}
