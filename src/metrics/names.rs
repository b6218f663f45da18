//! All names: what is counted, and what is said of it beside the numbers. docs/metrics.md is the same for people.

pub(super) const CALLS: &str = "surveylab_gateway_calls_total";
pub(super) const CALL_SECONDS: &str = "surveylab_gateway_call_duration_seconds";
pub(super) const OUTCOMES: &str = "surveylab_gateway_outcomes_total";
pub(super) const REQUESTS: &str = "surveylab_gateway_surveylab_requests_total";
pub(super) const REQUEST_SECONDS: &str = "surveylab_gateway_surveylab_request_duration_seconds";
pub(super) const RESPONSES: &str = "surveylab_gateway_surveylab_responses_total";

pub(super) const BREAKER_OPEN: &str = "surveylab_gateway_breaker_open";
pub(super) const BREAKER_REJECTIONS: &str = "surveylab_gateway_breaker_rejections_total";

pub(super) const AUTHENTICATION_FAILURES: &str = "surveylab_gateway_authentication_failures_total";
pub(super) const TLS_FAILED: &str = "surveylab_gateway_tls_handshakes_failed_total";
pub(super) const FORBIDDEN: &str = "surveylab_gateway_forbidden_total";

pub(super) const RATE: &str = "surveylab_gateway_rate_per_second";
pub(super) const BURST: &str = "surveylab_gateway_burst";
pub(super) const TOKENS: &str = "surveylab_gateway_tokens_available";
pub(super) const PAUSE: &str = "surveylab_gateway_pause_seconds";
pub(super) const PAUSES: &str = "surveylab_gateway_pauses_total";
pub(super) const PAUSED_SECONDS: &str = "surveylab_gateway_paused_seconds_total";
pub(super) const WAIT_SECONDS: &str = "surveylab_gateway_wait_seconds";
pub(super) const EXPECTED_WAIT: &str = "surveylab_gateway_expected_wait_seconds";
pub(super) const WAITING: &str = "surveylab_gateway_waiting_requests";
pub(super) const MAX_QUEUE: &str = "surveylab_gateway_max_waiting_requests";
pub(super) const IN_FLIGHT: &str = "surveylab_gateway_requests_in_flight";
pub(super) const MAX_IN_FLIGHT: &str = "surveylab_gateway_max_requests_in_flight";

pub(super) const READY: &str = "surveylab_gateway_ready";
pub(super) const LEDGER_UP: &str = "surveylab_gateway_ledger_up";
pub(super) const BATCH_SIZE: &str = "surveylab_gateway_ledger_batch_size";
pub(super) const COMMIT_SECONDS: &str = "surveylab_gateway_ledger_commit_seconds";
pub(super) const LEDGER_ERRORS: &str = "surveylab_gateway_ledger_errors_total";
pub(super) const KEYS: &str = "surveylab_gateway_ledger_keys";
pub(super) const DOUBTS: &str = "surveylab_gateway_doubts_open";
pub(super) const OLDEST_DOUBT: &str = "surveylab_gateway_oldest_doubt_age_seconds";
pub(super) const REPLICAS: &str = "surveylab_gateway_replicas";

pub(super) const STREAMS: &str = "surveylab_gateway_streams_open";
pub(super) const STREAMS_BEGUN: &str = "surveylab_gateway_streams_total";
pub(super) const CONNECTIONS: &str = "surveylab_gateway_connections_open";
pub(super) const CONNECTIONS_MADE: &str = "surveylab_gateway_connections_total";
pub(super) const BUILD: &str = "surveylab_gateway_build_info";

const WAITS: [f64; 13] = [
    0.001, 0.01, 0.1, 0.5, 1.0, 5.0, 15.0, 30.0, 60.0, 300.0, 900.0, 3600.0, 14400.0,
];
const ANSWERS: [f64; 14] = [
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 30.0, 120.0,
];
const COMMITS: [f64; 14] = [
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0, 15.0,
];
const BATCHES: [f64; 11] = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0];

pub(super) enum Kind {
    Counter,
    Gauge,
    /// With the upper bounds of its buckets.
    Histogram(&'static [f64]),
}
use Kind::{Counter, Gauge, Histogram};

/// Every metric of the gateway's own, with its HELP.
pub(super) const ALL: [(&str, Kind, &str); 37] = [
    (
        CALLS,
        Counter,
        "Calls answered, stream items included, by method, code and reason.",
    ),
    (
        CALL_SECONDS,
        Histogram(&ANSWERS),
        "From a call's arrival to its answer.",
    ),
    (
        OUTCOMES,
        Counter,
        "Calls and stream items that went well, by what they came to.",
    ),
    (REQUESTS, Counter, "Requests made to SurveyLab, by what they came to."),
    (
        REQUEST_SECONDS,
        Histogram(&ANSWERS),
        "From a request's first byte to its classified answer.",
    ),
    (RESPONSES, Counter, "Answers of SurveyLab, by HTTP status."),
    (
        AUTHENTICATION_FAILURES,
        Counter,
        "Calls without valid credentials, by what was wrong with them.",
    ),
    (
        FORBIDDEN,
        Counter,
        "Calls and stream items that their caller may not make, by caller and method.",
    ),
    (
        TLS_FAILED,
        Counter,
        "Connections to the gRPC port that ended within their TLS handshake: no client, or one with the wrong certificate.",
    ),
    (
        BREAKER_OPEN,
        Gauge,
        "1 while calls fail because SurveyLab refuses every request, else 0.",
    ),
    (
        BREAKER_REJECTIONS,
        Counter,
        "Requests not made because the breaker was open, by reason.",
    ),
    (
        RATE,
        Gauge,
        "Requests a second: as configured, and as learned from 429s.",
    ),
    (BURST, Gauge, "Requests that may go out at once after a rest."),
    (TOKENS, Gauge, "Requests that could go out at once now."),
    (PAUSE, Gauge, "What is left of the pause after a 429."),
    (PAUSES, Counter, "Pauses that 429s began."),
    (PAUSED_SECONDS, Counter, "Time spent in pauses, in whole seconds."),
    (
        WAIT_SECONDS,
        Histogram(&WAITS),
        "How long requests that went out had waited for their permit, by lane.",
    ),
    (
        EXPECTED_WAIT,
        Gauge,
        "How long a request that came now would wait by the rate alone, by lane.",
    ),
    (WAITING, Gauge, "Requests waiting for a permit, by lane."),
    (
        MAX_QUEUE,
        Gauge,
        "Most requests that may wait, of all lanes together (--max-queue).",
    ),
    (IN_FLIGHT, Gauge, "Requests between permit and answer."),
    (
        MAX_IN_FLIGHT,
        Gauge,
        "Most requests that may be in flight (--max-in-flight).",
    ),
    (READY, Gauge, "1 if a call could be sent now, as /readyz tells; else 0."),
    (LEDGER_UP, Gauge, "1 if the ledger can write, else 0."),
    (
        BATCH_SIZE,
        Histogram(&BATCHES),
        "Steps of the ledger that shared a commit.",
    ),
    (
        COMMIT_SECONDS,
        Histogram(&COMMITS),
        "From the beginning of a batch's transaction to its commit.",
    ),
    (
        LEDGER_ERRORS,
        Counter,
        "Batches of steps of the ledger that failed, by operation.",
    ),
    (
        KEYS,
        Gauge,
        "Keys in the ledger by state; on PostgreSQL added and failed are estimates.",
    ),
    (DOUBTS, Gauge, "Keys in doubt, which wait for a person."),
    (
        OLDEST_DOUBT,
        Gauge,
        "Age of the doubt that has been open for longest; 0 if there is none.",
    ),
    (REPLICAS, Gauge, "Gateways alive on the same PostgreSQL ledger."),
    (STREAMS, Gauge, "Streams under way."),
    (STREAMS_BEGUN, Counter, "Streams begun."),
    (CONNECTIONS, Gauge, "gRPC connections open."),
    (CONNECTIONS_MADE, Counter, "gRPC connections accepted."),
    (
        BUILD,
        Gauge,
        "1, labelled with the version, its commit, and the kind of ledger.",
    ),
];

/// The statuses that have a series of their own: SurveyLab's, and what stands in front of such servers. So a server that answers
/// anything at all makes no more than these.
pub(super) const STATUSES: [(u16, &str); 27] = [
    (200, "200"),
    (201, "201"),
    (202, "202"),
    (204, "204"),
    (301, "301"),
    (302, "302"),
    (303, "303"),
    (307, "307"),
    (308, "308"),
    (400, "400"),
    (401, "401"),
    (403, "403"),
    (404, "404"),
    (405, "405"),
    (408, "408"),
    (409, "409"),
    (413, "413"),
    (414, "414"),
    (422, "422"),
    (429, "429"),
    (431, "431"),
    (500, "500"),
    (501, "501"),
    (502, "502"),
    (503, "503"),
    (504, "504"),
    (520, "520"),
];
