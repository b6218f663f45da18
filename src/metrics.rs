//! What is counted and measured. The names are in `names`, and nothing else names one.
//!
//! What changes by itself is read when somebody asks ([`show_limiter`] and the like, then [`render`]); the rest is counted as it
//! happens, by handles that are kept: to look a metric up by its labels takes a microsecond.

use std::{
    collections::BTreeSet,
    sync::{LazyLock, Mutex, OnceLock, PoisonError},
    time::Duration,
};

use metrics::{Counter, Gauge, Histogram, counter, gauge, histogram};
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};
use metrics_process::Collector;
use tokio::time::interval;
use tokio_util::sync::CancellationToken;

use crate::{
    callers::Failure,
    clock::Timestamp,
    dispatch::Serving,
    invitation::Reason,
    ledger::Census,
    limiter::{Lane, Snapshot},
    method::Method,
    proto,
    surveylab::Answer,
};
use names::{
    ALL, AUTHENTICATION_FAILURES, BATCH_SIZE, BREAKER_OPEN, BREAKER_REJECTIONS, BUILD, BURST, CALL_SECONDS, CALLS,
    COMMIT_SECONDS, CONNECTIONS, CONNECTIONS_MADE, DOUBTS, EXPECTED_WAIT, FORBIDDEN, IN_FLIGHT, KEYS, Kind,
    LEDGER_ERRORS, LEDGER_UP, MAX_IN_FLIGHT, MAX_QUEUE, OLDEST_DOUBT, OUTCOMES, PAUSE, PAUSED_SECONDS, PAUSES, RATE,
    READY, REPLICAS, REQUEST_SECONDS, REQUESTS, RESPONSES, STATUSES, STREAMS, STREAMS_BEGUN, TLS_FAILED, TOKENS,
    WAIT_SECONDS, WAITING,
};

mod names;

static PROMETHEUS: OnceLock<Prometheus> = OnceLock::new();

struct Prometheus {
    handle: PrometheusHandle,
    /// The process's own: CPU time, memory, open files, start.
    process: Collector,
}

/// Installs the process's recorder. Metrics recorded without it go nowhere.
pub fn install() -> Result<(), BuildError> {
    let mut builder = PrometheusBuilder::new();
    for (name, kind, _) in &ALL {
        if let Kind::Histogram(buckets) = kind {
            builder = builder.set_buckets_for_metric(Matcher::Full((*name).into()), buckets)?;
        }
    }
    let handle = builder.install_recorder()?;
    for (name, kind, help) in &ALL {
        match kind {
            Kind::Counter => metrics::describe_counter!(*name, *help),
            Kind::Gauge => metrics::describe_gauge!(*name, *help),
            Kind::Histogram(_) => metrics::describe_histogram!(*name, *help),
        }
    }
    let process = Collector::default();
    process.describe();
    let _first_wins = PROMETHEUS.set(Prometheus { handle, process });
    LazyLock::force(&USUAL);
    begin_at_zero();
    Ok(())
}

/// Counters of what seldom happens are there from the start, so that the first of its kind is a rise.
fn begin_at_zero() {
    for reason in [Reason::SurveylabUnauthorized, Reason::SurveylabBadRequest] {
        counter!(BREAKER_REJECTIONS, "reason" => reason.as_str()).increment(0);
    }
    for failure in Failure::ALL {
        counter!(AUTHENTICATION_FAILURES, "why" => failure.name()).increment(0);
    }
    counter!(TLS_FAILED).increment(0);
}

/// The text that Prometheus scrapes.
pub fn render() -> String {
    PROMETHEUS.get().map_or_else(String::new, |prometheus| {
        prometheus.process.collect();
        prometheus.handle.run_upkeep();
        prometheus.handle.render()
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
                prometheus.handle.run_upkeep();
            }
        }
    };
    let _stopped = stop.run_until_cancelled(work).await;
}

/// Tells which program this is. The commit is the build's to tell.
pub fn show_build(ledger: &'static str) {
    let version = env!("CARGO_PKG_VERSION");
    let commit = option_env!("GATEWAY_COMMIT").unwrap_or("unknown");
    gauge!(BUILD, "version" => version, "commit" => commit, "ledger" => ledger).set(1);
}

/// Shows how the limiter stands.
pub fn show_limiter(limiter: &Snapshot) {
    gauge!(RATE, "kind" => "configured").set(limiter.configured_rate);
    gauge!(RATE, "kind" => "learned").set(limiter.learned_rate);
    gauge!(BURST).set(limiter.burst);
    gauge!(TOKENS).set(limiter.tokens);
    gauge!(PAUSE).set(limiter.pause.as_secs_f64());
    counter!(PAUSES).absolute(limiter.pauses);
    counter!(PAUSED_SECONDS).absolute(limiter.paused.as_secs());
    gauge!(EXPECTED_WAIT, "lane" => "unary").set(limiter.unary_wait.as_secs_f64());
    gauge!(EXPECTED_WAIT, "lane" => "stream").set(limiter.stream_wait.as_secs_f64());
    gauge!(WAITING, "lane" => "unary").set(limiter.waiting_unary as f64);
    gauge!(WAITING, "lane" => "stream").set(limiter.waiting_streams as f64);
    gauge!(MAX_QUEUE).set(limiter.max_queue as f64);
    gauge!(IN_FLIGHT).set(limiter.in_flight as f64);
    gauge!(MAX_IN_FLIGHT).set(limiter.max_in_flight as f64);
}

/// Shows whether a call could be sent.
pub fn show_serving(serving: &Serving) {
    let (ready, ledger_up) = match serving {
        Serving::Yes => (1, Some(1)),
        // Then the ledger is not asked any more.
        Serving::Draining => (0, None),
        Serving::LedgerUnavailable(_) => (0, Some(0)),
    };
    gauge!(READY).set(ready);
    if let Some(up) = ledger_up {
        gauge!(LEDGER_UP).set(up);
    }
}

/// Shows what the ledger holds. What is not known is left out: a 0 would be taken for true.
pub fn show_ledger(census: &Census, now: Timestamp) {
    let number = |count: Option<u64>| count.map(|count| count as f64);
    for (state, keys) in [
        ("pending", census.pending),
        ("added", census.added),
        ("failed", census.failed),
        ("in_doubt", census.in_doubt),
    ] {
        show(KEYS, state, || gauge!(KEYS, "state" => state), number(keys));
    }
    show(DOUBTS, "", || gauge!(DOUBTS), number(census.in_doubt));
    let age = census.in_doubt.map(|_| {
        let age = census.oldest_doubt.map_or(0, |began| now.0.saturating_sub(began.0));
        // A clock that was set back since makes it young, not younger than that.
        Duration::from_micros(age.try_into().unwrap_or_default()).as_secs_f64()
    });
    show(OLDEST_DOUBT, "", || gauge!(OLDEST_DOUBT), age);
    show(REPLICAS, "", || gauge!(REPLICAS), number(census.replicas));
}

/// Left out until it is known; then, while it is not known any more, not a number, which no alert takes for one.
fn show(name: &'static str, label: &'static str, gauge: impl FnOnce() -> Gauge, value: Option<f64>) {
    static SHOWN: Mutex<BTreeSet<(&str, &str)>> = Mutex::new(BTreeSet::new());
    let mut shown = SHOWN.lock().unwrap_or_else(PoisonError::into_inner);
    if value.is_some() {
        shown.insert((name, label));
    }
    if shown.contains(&(name, label)) {
        gauge().set(value.unwrap_or(f64::NAN));
    }
}

/// Shows how many streams are under way, and how many there were.
pub fn show_streams(open: usize, begun: u64) {
    gauge!(STREAMS).set(open as f64);
    counter!(STREAMS_BEGUN).absolute(begun);
}

/// How the ledger is used.
#[derive(Clone, Copy)]
pub enum Access {
    Read,
    Write,
}

/// The handles of what is counted with every call.
struct Usual {
    /// In the order of `Method::ALL`.
    calls: [(Counter, Histogram); 6],
    /// In the order of `Answer::NAMES`. Each is there from the start, so that the first of its kind is a rise.
    requests: [Counter; Answer::NAMES.len()],
    request_seconds: Histogram,
    /// Of status 200.
    ok: Counter,
    outcomes: Outcomes,
    unary_wait: Histogram,
    stream_wait: Histogram,
    batch_size: Histogram,
    commit_seconds: Histogram,
    ledger_errors: [Counter; 2],
    connections: Gauge,
    connections_made: Counter,
}

struct Outcomes {
    added: Counter,
    duplicate: Counter,
    would_add: Counter,
}

/// Used only once there is a recorder.
static USUAL: LazyLock<Usual> = LazyLock::new(|| {
    let outcome = |outcome| counter!(OUTCOMES, "outcome" => outcome);
    let wait = |lane| histogram!(WAIT_SECONDS, "lane" => lane);
    Usual {
        calls: Method::ALL.map(|method| {
            (
                calls(method, "OK", String::new()),
                histogram!(CALL_SECONDS, "method" => method.name()),
            )
        }),
        requests: Answer::NAMES.map(|answer| counter!(REQUESTS, "answer" => answer)),
        request_seconds: histogram!(REQUEST_SECONDS),
        ok: responses("200"),
        outcomes: Outcomes {
            added: outcome("added"),
            duplicate: outcome("duplicate"),
            would_add: outcome("would_add"),
        },
        unary_wait: wait("unary"),
        stream_wait: wait("stream"),
        batch_size: histogram!(BATCH_SIZE),
        commit_seconds: histogram!(COMMIT_SECONDS),
        ledger_errors: ["read", "write"].map(|operation| counter!(LEDGER_ERRORS, "operation" => operation)),
        connections: gauge!(CONNECTIONS),
        connections_made: counter!(CONNECTIONS_MADE),
    }
});

fn usual() -> Option<&'static Usual> {
    PROMETHEUS.get().map(|_| &*USUAL)
}

fn calls(method: Method, code: &'static str, reason: String) -> Counter {
    counter!(CALLS, "method" => method.name(), "code" => code, "reason" => reason)
}

fn responses(status: &'static str) -> Counter {
    counter!(RESPONSES, "status" => status)
}

/// Counts a call, or an item of a stream, that went well or failed with a code, by its name, and a reason.
pub fn call(method: Method, failed: Option<(&'static str, String)>, took: Duration) {
    let Some(usual) = usual() else { return };
    let (good, seconds) = &usual.calls[method as usize];
    match failed {
        None => good.increment(1),
        Some((code, reason)) => calls(method, code, reason).increment(1),
    }
    seconds.record(took);
}

/// Counts what a call, or an item of a stream, came to that went well.
pub fn outcome(outcome: proto::Outcome) {
    let Some(Usual { outcomes, .. }) = usual() else { return };
    match outcome {
        proto::Outcome::Added => outcomes.added.increment(1),
        proto::Outcome::Duplicate => outcomes.duplicate.increment(1),
        proto::Outcome::WouldAdd => outcomes.would_add.increment(1),
        proto::Outcome::Unspecified => {}
    }
}

/// Counts a request that was made to SurveyLab, by what it came to.
pub fn request(answer: &'static str, took: Duration) {
    let Some(usual) = usual() else { return };
    if let Some(place) = Answer::NAMES.iter().position(|name| *name == answer) {
        usual.requests[place].increment(1);
    }
    usual.request_seconds.record(took);
}

/// Counts an answer of SurveyLab by its HTTP status.
pub fn response(http_status: u16) {
    let Some(usual) = usual() else { return };
    if http_status == 200 {
        return usual.ok.increment(1);
    }
    let known = STATUSES.iter().find(|(status, _)| *status == http_status);
    responses(known.map_or("other", |(_, text)| text)).increment(1);
}

/// Measures how long a request that goes out now waited for its permit.
pub fn waited(lane: Lane, wait: Duration) {
    let Some(usual) = usual() else { return };
    match lane {
        Lane::Unary => usual.unary_wait.record(wait),
        Lane::Stream(_) => usual.stream_wait.record(wait),
    }
}

/// Measures a batch of the ledger that was committed.
pub fn committed(steps: usize, took: Duration) {
    let Some(usual) = usual() else { return };
    usual.batch_size.record(steps as f64);
    usual.commit_seconds.record(took);
}

/// Counts a batch of the ledger that failed.
pub fn ledger_failed(access: Access) {
    if let Some(usual) = usual() {
        usual.ledger_errors[access as usize].increment(1);
    }
}

/// A gRPC connection, counted until this is dropped.
pub struct Connection(());

impl Connection {
    pub fn open() -> Self {
        if let Some(usual) = usual() {
            usual.connections.increment(1);
            usual.connections_made.increment(1);
        }
        Self(())
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        if let Some(usual) = usual() {
            usual.connections.decrement(1);
        }
    }
}

/// Tells whether the breaker is open.
pub fn breaker_open(is_open: bool) {
    gauge!(BREAKER_OPEN).set(f64::from(u8::from(is_open)));
}

/// Counts a request that was not made because the breaker is open.
pub fn turned_away(reason: &'static str) {
    counter!(BREAKER_REJECTIONS, "reason" => reason).increment(1);
}

/// Counts a call without valid credentials.
pub fn authentication_failed(why: &'static str) {
    counter!(AUTHENTICATION_FAILURES, "why" => why).increment(1);
}

/// Counts a call, or an item of a stream, that its caller may not make.
pub fn forbidden(caller: &str, method: &'static str) {
    counter!(FORBIDDEN, "caller" => caller.to_string(), "method" => method).increment(1);
}

/// Counts a connection that ended within its TLS handshake.
pub fn tls_handshake_failed() {
    counter!(TLS_FAILED).increment(1);
}
