//! What the server counts: for Prometheus, under OpenTelemetry's names for generative models, and
//! for lemonade's `stats`.

use crate::residents::Residents;
use axum::body::{Body, Bytes, HttpBody};
use axum::response::Response;
use hyper::body::{Frame, SizeHint};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Instant;
use tangor_engine::{Timings, Usage};

/// Everything that is counted.
#[derive(Debug)]
pub(crate) struct Metrics {
    registry: Registry,
    ttft: Family<OfModel, Histogram>,
    per_token: Family<OfModel, Histogram>,
    input: Family<OfModel, Counter>,
    output: Family<OfModel, Counter>,
    cached: Family<OfModel, Counter>,
    answers: Family<OfModel, Counter>,
    requests: Family<OfRoute, Counter>,
    duration: Family<OfOperation, Histogram>,
    active: Gauge,
    models: Gauge,
    last: Mutex<Last>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfModel {
    gen_ai_request_model: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfRoute {
    route: &'static str,
    status: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfOperation {
    gen_ai_operation_name: &'static str,
}

/// The last answer, and totals.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Last {
    pub(crate) usage: Usage,
    pub(crate) timings: Timings,
    pub(crate) requests: u64,
    pub(crate) input: u64,
    pub(crate) output: u64,
    pub(crate) cached: u64,
}

/// The status of a request whose client left before there was one, as nginx counts it.
const LEFT: u16 = 499;

/// A request that is being answered.
pub(crate) struct Counted {
    metrics: Arc<Metrics>,
    route: &'static str,
    status: u16,
    begin: Instant,
}

impl Counted {
    /// Lives as long as the body of a response.
    pub(crate) fn until_the_end_of(mut self, response: Response) -> Response {
        self.status = response.status().as_u16();
        response.map(|body| Body::new(CountedBody { body, _counted: self }))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let Self { metrics, route, status, begin } = self;
        metrics.active.dec();
        let of = OfRoute { route, status: (*status).into() };
        metrics.requests.get_or_create(&of).inc();
        let operation = OfOperation { gen_ai_operation_name: route };
        metrics.duration.get_or_create(&operation).observe(begin.elapsed().as_secs_f64());
    }
}

/// A body whose request ends with it.
struct CountedBody {
    body: Body,
    _counted: Counted,
}

impl HttpBody for CountedBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Seconds, from a millisecond to about two minutes.
fn seconds() -> Histogram {
    Histogram::new(exponential_buckets(0.001, 2.0, 18))
}

impl Metrics {
    pub(crate) fn new() -> Self {
        let mut all = Self {
            registry: Registry::default(),
            ttft: Family::new_with_constructor(seconds),
            per_token: Family::new_with_constructor(seconds),
            input: Family::default(),
            output: Family::default(),
            cached: Family::default(),
            answers: Family::default(),
            requests: Family::default(),
            duration: Family::new_with_constructor(seconds),
            active: Gauge::default(),
            models: Gauge::default(),
            last: Mutex::default(),
        };
        all.register();
        all
    }

    fn register(&mut self) {
        let registry = &mut self.registry;
        let unit = Unit::Seconds;
        let ttft = "gen_ai_server_time_to_first_token";
        let help = "From a request to its first token";
        registry.register_with_unit(ttft, help, unit.clone(), self.ttft.clone());
        let per_token = "gen_ai_server_time_per_output_token";
        let help = "Between two tokens of an answer, after the first";
        registry.register_with_unit(per_token, help, unit.clone(), self.per_token.clone());
        let help = "From a request to the end of its answer";
        let duration = self.duration.clone();
        registry.register_with_unit("gen_ai_server_request_duration", help, unit, duration);
        let counters = [
            ("tangor_input_tokens", "Tokens of prompts", &self.input),
            ("tangor_output_tokens", "Tokens of answers", &self.output),
            ("tangor_cached_tokens", "Tokens of prompts that were in the cache", &self.cached),
            ("tangor_answers", "Answers that were completed", &self.answers),
        ];
        for (name, help, family) in counters {
            registry.register(name, help, family.clone());
        }
        registry.register("tangor_requests", "Requests by route and status", self.requests.clone());
        let help = "Requests whose answers have not ended";
        registry.register("tangor_active_requests", help, self.active.clone());
        registry.register("tangor_loaded_models", "Models in memory", self.models.clone());
    }

    /// An answer is complete.
    pub(crate) fn answered(&self, model: &str, usage: &Usage, timings: &Timings) {
        let of = OfModel { gen_ai_request_model: model.to_owned() };
        self.ttft.get_or_create(&of).observe(timings.ttft.as_secs_f64());
        if let Some(tps) = timings.decode_tps(usage) {
            self.per_token.get_or_create(&of).observe(tps.recip());
        }
        let counts = [
            (&self.input, usage.prompt),
            (&self.output, usage.completion),
            (&self.cached, usage.cached),
            (&self.answers, 1),
        ];
        for (family, count) in counts {
            family.get_or_create(&of).inc_by(count as u64);
        }
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        last.usage = *usage;
        last.timings = *timings;
        last.requests += 1;
        last.input += usage.prompt as u64;
        last.output += usage.completion as u64;
        last.cached += usage.cached as u64;
    }

    /// A text was embedded.
    pub(crate) fn embedded(&self, model: &str, usage: &Usage) {
        let of = OfModel { gen_ai_request_model: model.to_owned() };
        for (family, count) in [(&self.input, usage.prompt), (&self.cached, usage.cached)] {
            family.get_or_create(&of).inc_by(count as u64);
        }
    }

    /// A request has come; it ends when what is returned is dropped.
    pub(crate) fn request(self: &Arc<Self>, route: &'static str) -> Counted {
        self.active.inc();
        Counted { metrics: Arc::clone(self), route, status: LEFT, begin: Instant::now() }
    }

    /// The last answer, and totals.
    pub(crate) fn last(&self) -> Last {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Everything in Prometheus' text.
    pub(crate) fn text(&self, residents: &Residents) -> String {
        self.models.set(i64::try_from(residents.list().len()).unwrap_or(i64::MAX));
        let mut text = String::new();
        // Writing to a string does not fail.
        let _ = encode(&mut text, &self.registry);
        text
    }
}
