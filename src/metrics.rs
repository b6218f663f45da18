//! All metric names, and nothing else that names one.

use std::{sync::OnceLock, time::Duration};

use metrics::{counter, gauge, histogram};
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};
use tonic::Code;

use crate::limiter::Snapshot;

const CALLS: &str = "surveylab_gateway_calls_total";
const CALL_SECONDS: &str = "surveylab_gateway_call_duration_seconds";
const REQUESTS: &str = "surveylab_gateway_surveylab_requests_total";
const REQUEST_SECONDS: &str = "surveylab_gateway_surveylab_request_duration_seconds";
const RATE: &str = "surveylab_gateway_rate_per_second";
const PAUSE: &str = "surveylab_gateway_pause_seconds";
const WAITING: &str = "surveylab_gateway_waiting_requests";
const IN_FLIGHT: &str = "surveylab_gateway_requests_in_flight";

const BUCKETS: [f64; 14] = [
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 30.0, 120.0,
];

static PROMETHEUS: OnceLock<PrometheusHandle> = OnceLock::new();

/// Installs the process's recorder. Metrics recorded without it go nowhere.
pub fn install() -> Result<(), BuildError> {
    let handle = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".into()), &BUCKETS)?
        .install_recorder()?;
    metrics::describe_counter!(
        CALLS,
        "Calls answered, stream items included, by method, code and reason."
    );
    metrics::describe_histogram!(CALL_SECONDS, "From a call's arrival to its answer.");
    metrics::describe_counter!(REQUESTS, "Requests made to SurveyLab, by what they came to.");
    metrics::describe_histogram!(REQUEST_SECONDS, "From a request's first byte to its classified answer.");
    metrics::describe_gauge!(RATE, "Requests a second: as configured, and as learned from 429s.");
    metrics::describe_gauge!(PAUSE, "What is left of the pause after a 429.");
    metrics::describe_gauge!(WAITING, "Requests waiting for a permit, by lane.");
    metrics::describe_gauge!(IN_FLIGHT, "Requests between permit and answer.");
    let _first_wins = PROMETHEUS.set(handle);
    Ok(())
}

/// The text that Prometheus scrapes.
pub fn render(limiter: &Snapshot) -> String {
    gauge!(RATE, "kind" => "configured").set(limiter.configured_rate);
    gauge!(RATE, "kind" => "learned").set(limiter.learned_rate);
    gauge!(PAUSE).set(limiter.pause.as_secs_f64());
    gauge!(WAITING, "lane" => "unary").set(limiter.waiting_unary as f64);
    gauge!(WAITING, "lane" => "stream").set(limiter.waiting_streams as f64);
    gauge!(IN_FLIGHT).set(limiter.in_flight as f64);
    PROMETHEUS.get().map_or_else(String::new, |prometheus| {
        prometheus.run_upkeep();
        prometheus.render()
    })
}

/// Counts a call, or an item of a stream, that was answered.
pub fn call(method: &'static str, code: Code, reason: String, took: Duration) {
    counter!(CALLS, "method" => method, "code" => code_name(code), "reason" => reason).increment(1);
    histogram!(CALL_SECONDS, "method" => method).record(took);
}

/// Counts a request that was made to SurveyLab.
pub fn request(answer: &'static str, took: Duration) {
    counter!(REQUESTS, "answer" => answer).increment(1);
    histogram!(REQUEST_SECONDS).record(took);
}

/// The name of a code as gRPC's documentation writes it.
pub fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}
