//! All metric names, and nothing else that names one.

use std::{
    sync::{LazyLock, OnceLock},
    time::Duration,
};

use metrics::{Counter, Histogram, counter, gauge, histogram};
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};
use tokio::time::interval;
use tokio_util::sync::CancellationToken;
use tonic::Code;

use crate::limiter::Snapshot;

const CALLS: &str = "surveylab_gateway_calls_total";
const CALL_SECONDS: &str = "surveylab_gateway_call_duration_seconds";
const REQUESTS: &str = "surveylab_gateway_surveylab_requests_total";
const REQUEST_SECONDS: &str = "surveylab_gateway_surveylab_request_duration_seconds";
const TLS_FAILED: &str = "surveylab_gateway_tls_handshakes_failed_total";
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
    metrics::describe_counter!(
        TLS_FAILED,
        "Connections to the gRPC port that ended within their TLS handshake: no client, or one with the wrong certificate."
    );
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

/// Until `stop`, has the recorder work off what was recorded: until then it keeps every single duration, and a gateway that
/// nobody scrapes must not grow by each call.
pub async fn upkeep(stop: CancellationToken) {
    const EVERY: Duration = Duration::from_secs(5);
    let work = async {
        let mut every = interval(EVERY);
        loop {
            every.tick().await;
            if let Some(prometheus) = PROMETHEUS.get() {
                prometheus.run_upkeep();
            }
        }
    };
    let _stopped = stop.run_until_cancelled(work).await;
}

/// By which method a call came.
#[derive(Clone, Copy)]
pub enum Method {
    Add,
    Stream,
    Get,
    List,
    Resolve,
    Status,
}

impl Method {
    const ALL: [Self; 6] = [
        Self::Add,
        Self::Stream,
        Self::Get,
        Self::List,
        Self::Resolve,
        Self::Status,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Add => "AddRespondent",
            Self::Stream => "StreamAddRespondent",
            Self::Get => "GetInvitation",
            Self::List => "ListInvitations",
            Self::Resolve => "ResolveInvitation",
            Self::Status => "GetStatus",
        }
    }
}

/// What is counted with every call and every request that go well. To look a metric up by its labels takes a microsecond.
struct Usual {
    /// In the order of `Method::ALL`.
    calls: [(Counter, Histogram); 6],
    added: Counter,
    request_seconds: Histogram,
}

/// Used only once there is a recorder.
static USUAL: LazyLock<Usual> = LazyLock::new(|| Usual {
    calls: Method::ALL.map(|method| {
        (
            calls(method, Code::Ok, String::new()),
            histogram!(CALL_SECONDS, "method" => method.name()),
        )
    }),
    added: requests("added"),
    request_seconds: histogram!(REQUEST_SECONDS),
});

fn calls(method: Method, code: Code, reason: String) -> Counter {
    counter!(CALLS, "method" => method.name(), "code" => code_name(code), "reason" => reason)
}

fn requests(answer: &'static str) -> Counter {
    counter!(REQUESTS, "answer" => answer)
}

/// Counts a call, or an item of a stream, that went well or failed with a code and a reason.
pub fn call(method: Method, failed: Option<(Code, String)>, took: Duration) {
    if PROMETHEUS.get().is_none() {
        return;
    }
    let (good, seconds) = &USUAL.calls[method as usize];
    match failed {
        None => good.increment(1),
        Some((code, reason)) => calls(method, code, reason).increment(1),
    }
    seconds.record(took);
}

/// Counts a request that was made to SurveyLab, by what it came to.
pub fn request(answer: &'static str, took: Duration) {
    if PROMETHEUS.get().is_none() {
        return;
    }
    match answer {
        "added" => USUAL.added.increment(1),
        other => requests(other).increment(1),
    }
    USUAL.request_seconds.record(took);
}

/// Counts a connection that ended within its TLS handshake.
pub fn tls_handshake_failed() {
    counter!(TLS_FAILED).increment(1);
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
