//! `/status.json`: what the page shows, in one answer.

use std::{net::SocketAddr, time::Duration};

use axum::{
    extract::State,
    http::{HeaderValue, StatusCode, Uri, header},
    response::{IntoResponse, Response},
};
use serde::Serialize;

use super::{
    Admin,
    history::{Sample, millis},
    holdings::{Found, Holdings},
    shell,
};
use crate::{
    clock::Clock,
    dispatch::{BreakerStanding, Serving, Standing},
    grpc,
    ledger::Record,
    limiter::{PausedBy, Snapshot},
};

/// What never changes.
#[derive(Clone)]
pub struct About {
    pub gateway: grpc::About,
    /// Where the commands reach the gateway; `None` with TLS, whose names nobody knows here.
    pub grpc: Option<SocketAddr>,
    pub clock: Clock,
}

#[derive(Serialize)]
struct Status {
    version: &'static str,
    /// Another number is another process, whose history begins anew.
    instance: i64,
    ledger: &'static str,
    sandbox: bool,
    /// Dates are milliseconds since 1970-01-01 UTC.
    now_ms: i64,
    uptime_ms: u64,
    condition: Condition,
    limiter: Limits,
    /// Time between two samples.
    sample_every_ms: u64,
    samples: Vec<Sample>,
    /// The sample that is being made.
    running: Option<Sample>,
    /// Why what follows is not fresh, or not there.
    problem: Option<String>,
    /// `None` while nothing could be read.
    doubts: Option<Doubts>,
    replicas: Vec<Replica>,
}

/// Does anything go out?
#[derive(Serialize)]
struct Condition {
    state: Name,
    /// In words, where something is wrong.
    why: Option<String>,
    /// When it ends by itself, if that is known.
    left_ms: Option<u64>,
}

#[derive(Serialize)]
#[serde(rename_all = "snake_case")]
enum Name {
    Serving,
    Paused,
    /// SurveyLab refuses every request, or every one of a collector: nothing is sent but probes.
    BreakerOpen,
    LedgerUnavailable,
    Draining,
}

#[derive(Serialize)]
struct Limits {
    configured_rate: f64,
    learned_rate: f64,
    burst: u32,
    tokens: f64,
    waiting_unary: usize,
    waiting_streams: usize,
    max_queue: usize,
    in_flight: usize,
    max_in_flight: usize,
    unary_wait_ms: u64,
    stream_wait_ms: u64,
}

#[derive(Serialize)]
struct Doubts {
    /// As many as were looked at.
    count: usize,
    /// There are more; the oldest of all may be among those.
    more: bool,
    oldest: Vec<OpenDoubt>,
}

#[derive(Serialize)]
struct OpenDoubt {
    collector_id: String,
    crk: String,
    since_ms: i64,
    attempts: u32,
    http_status: Option<u16>,
    /// The commands that settle it.
    added: String,
    not_added: String,
}

#[derive(Serialize)]
struct Replica {
    id: String,
    name: String,
    started_ms: i64,
    lease_left_ms: u64,
    own: bool,
}

/// Answers within a second or so, whatever the ledger does. `?after=NUMBER` leaves out the samples that the page has.
pub async fn status(State(admin): State<Admin>, uri: Uri) -> Response {
    let query = uri.query().unwrap_or_default();
    let mut parameters = form_urlencoded::parse(query.as_bytes());
    let after = parameters.find_map(|(name, number)| (name == "after").then(|| number.parse().ok())?);
    let after = after.unwrap_or_default();
    let (standing, holdings) = tokio::join!(admin.dispatcher.standing(), admin.reading.now());
    let status = Status::of(&admin, standing, &holdings, after);
    match serde_json::to_vec(&status) {
        Ok(body) => {
            let headers = [
                (header::CONTENT_TYPE, HeaderValue::from_static("application/json")),
                (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
            ];
            (headers, body).into_response()
        }
        // Of its fields none can fail to be written.
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

impl Status {
    fn of(admin: &Admin, standing: Standing, holdings: &Holdings, after: u64) -> Self {
        let about = &admin.about;
        let (samples, running) = admin.history.after(after);
        let found = holdings.found.as_deref();
        Self {
            version: env!("CARGO_PKG_VERSION"),
            instance: about.gateway.started_at.0,
            ledger: about.gateway.ledger,
            sandbox: about.gateway.sandbox,
            now_ms: about.clock.timestamp().0 / 1000,
            uptime_ms: millis(admin.history.uptime()),
            limiter: Limits::of(&standing.limiter),
            condition: Condition::of(standing),
            sample_every_ms: millis(super::history::EVERY),
            samples,
            running,
            problem: holdings.problem.clone(),
            doubts: found.map(|found| Doubts::of(found, about.grpc)),
            replicas: found.map(replicas).unwrap_or_default(),
        }
    }
}

impl Condition {
    /// What keeps requests from going out; of several things the one that outlasts the others.
    fn of(standing: Standing) -> Self {
        let because = |state, why| Self {
            state,
            why: Some(why),
            left_ms: None,
        };
        let pause = standing.limiter.pause;
        match standing.serving {
            Serving::Draining => because(Name::Draining, "the gateway is shutting down".into()),
            Serving::LedgerUnavailable(why) => because(Name::LedgerUnavailable, why),
            Serving::Yes if pause > Duration::ZERO => Self {
                left_ms: Some(millis(pause)),
                ..because(
                    Name::Paused,
                    match standing.limiter.paused_by {
                        PausedBy::Own => "SurveyLab answered 429".into(),
                        PausedBy::AnotherReplica => "SurveyLab answered 429 to another replica".into(),
                    },
                )
            },
            Serving::Yes if let Some(breaker) = &standing.breaker => Self {
                left_ms: Some(millis(breaker.next_probe)),
                ..because(Name::BreakerOpen, refusals(breaker))
            },
            Serving::Yes => Self {
                state: Name::Serving,
                why: None,
                left_ms: None,
            },
        }
    }
}

/// Why the breaker is open.
fn refusals(breaker: &BreakerStanding) -> String {
    let of = breaker
        .collector_id
        .as_ref()
        .map_or_else(String::new, |id| format!(" for collector {id}"));
    let (count, reason) = (breaker.refusals, breaker.reason.as_str());
    format!("SurveyLab refused the last {count} requests{of}: {reason}")
}

impl Limits {
    fn of(limiter: &Snapshot) -> Self {
        Self {
            configured_rate: limiter.configured_rate,
            learned_rate: limiter.learned_rate,
            burst: limiter.burst,
            tokens: limiter.tokens,
            waiting_unary: limiter.waiting_unary,
            waiting_streams: limiter.waiting_streams,
            max_queue: limiter.max_queue,
            in_flight: limiter.in_flight,
            max_in_flight: limiter.max_in_flight,
            unary_wait_ms: millis(limiter.unary_wait),
            stream_wait_ms: millis(limiter.stream_wait),
        }
    }
}

impl Doubts {
    fn of(found: &Found, grpc: Option<SocketAddr>) -> Self {
        let open = |record: &Record| OpenDoubt {
            collector_id: record.key.collector_id().into(),
            crk: record.key.crk().into(),
            since_ms: record.updated_at.0 / 1000,
            attempts: record.attempts,
            http_status: record.last_error.and_then(|error| error.http_status),
            added: shell::resolve(&record.key, "added", grpc),
            not_added: shell::resolve(&record.key, "not-added", grpc),
        };
        Self {
            count: found.doubts_read,
            more: found.more_doubts,
            oldest: found.doubts.iter().map(open).collect(),
        }
    }
}

fn replicas(found: &Found) -> Vec<Replica> {
    let since = found.at.elapsed();
    found
        .replicas
        .iter()
        .map(|replica| Replica {
            id: replica.id.clone(),
            name: replica.name.clone(),
            started_ms: replica.started_at.0 / 1000,
            lease_left_ms: millis(replica.lease_left.saturating_sub(since)),
            own: replica.is_own,
        })
        .collect()
}
