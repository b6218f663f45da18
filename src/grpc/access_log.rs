//! One line in the log and one span for every call, at its end.

use std::{
    net::SocketAddr,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use hyper::{HeaderMap, Response, header::HeaderValue};
use tonic::{Code, Status, body::Body};

use super::{code::code_name, request_id, status};
use crate::{
    callers,
    clock::Instant,
    dispatch::{Role, Trail},
    method::Method,
    proto::{self, AddRespondentResponse, invitation_service_server::SERVICE_NAME},
    telemetry::{self, ACCESS},
    trace::{Caller, Trace},
};

/// What there is of a call before it is read.
pub struct Arrival {
    pub request_id: HeaderValue,
    /// `None` if nobody watches.
    pub record: Option<Arc<Record>>,
}

impl Arrival {
    pub fn of(path: &str, headers: &HeaderMap, peer: Option<SocketAddr>) -> Self {
        let caller = Caller::of(headers);
        // Of health and reflection there is neither a line nor a span: probes would be most of both.
        let method = Method::at(path);
        let trace = method.map_or_else(Trace::default, |method| of_call(method, &caller));
        let watched = method.filter(|_| telemetry::logs_calls() || trace.is_recorded());
        let trace_id = trace.id().or_else(|| caller.trace_id());
        let request_id = request_id::of(headers, trace_id.as_deref());
        let record = watched.map(|method| {
            trace.set(
                "surveylab_gateway.request_id",
                request_id::text(&request_id).to_string(),
            );
            Arc::new(Record {
                method,
                request_id: request_id.clone(),
                trace_id,
                peer,
                caller: OnceLock::new(),
                begin: Instant::now(),
                trail: Arc::new(Trail::new(trace)),
                result: OnceLock::new(),
                items: Items::default(),
            })
        });
        Self { request_id, record }
    }
}

/// By OpenTelemetry's conventions for gRPC.
fn of_call(method: Method, caller: &Caller) -> Trace {
    let trace = Trace::of_call(method.path().trim_start_matches('/'), caller);
    trace.set("rpc.system", "grpc");
    trace.set("rpc.service", SERVICE_NAME);
    trace.set("rpc.method", method.name());
    trace
}

/// What a call came to.
struct Outcome {
    code: Code,
    reason: String,
    /// May a request of the call have reached SurveyLab?
    sent: Option<String>,
    /// Of an AddRespondent that went well.
    outcome: Option<&'static str>,
}

impl Outcome {
    fn ok() -> Self {
        Self {
            code: Code::Ok,
            reason: String::new(),
            sent: None,
            outcome: None,
        }
    }

    fn of(answer: &Result<AddRespondentResponse, Status>) -> Self {
        match answer {
            Ok(response) => {
                let (outcome, sent) = match response.outcome() {
                    proto::Outcome::Added => ("ADDED", "yes"),
                    proto::Outcome::Duplicate => ("DUPLICATE", "no"),
                    proto::Outcome::WouldAdd => ("WOULD_ADD", "no"),
                    proto::Outcome::Unspecified => ("UNSPECIFIED", "no"),
                };
                Self {
                    outcome: Some(outcome),
                    sent: Some(sent.into()),
                    ..Self::ok()
                }
            }
            Err(error) => Self::error(error),
        }
    }

    fn error(error: &Status) -> Self {
        let (reason, sent) = status::reason_and_sent(error);
        Self {
            code: error.code(),
            reason,
            sent,
            outcome: None,
        }
    }

    fn tell(&self, trail: &Trail) {
        let trace = &trail.trace;
        if !trace.is_recorded() {
            return;
        }
        trace.set("rpc.grpc.status_code", i64::from(i32::from(self.code)));
        if let Some(outcome) = self.outcome {
            trace.set("surveylab_gateway.outcome", outcome);
        }
        if !self.reason.is_empty() {
            trace.set("surveylab_gateway.reason", self.reason.clone());
        }
        if let Some(spent) = trail.spent() {
            trace.set("surveylab_gateway.attempts", i64::from(spent.attempts));
            if spent.role == Role::Joins {
                trace.set("surveylab_gateway.joined", true);
            }
        }
        // What a server's span counts as an error, by the same conventions.
        if let Code::Unknown
        | Code::DeadlineExceeded
        | Code::Unimplemented
        | Code::Internal
        | Code::Unavailable
        | Code::DataLoss = self.code
        {
            trace.failed(self.reason.clone());
        }
        trace.end();
    }
}

/// A call under way. Its line is written and its span ends when the last one drops it, whatever became of the call.
pub struct Record {
    method: Method,
    request_id: HeaderValue,
    trace_id: Option<String>,
    peer: Option<SocketAddr>,
    /// Who made the call, where callers are known.
    caller: OnceLock<Arc<callers::Caller>>,
    begin: Instant,
    trail: Arc<Trail>,
    result: OnceLock<Outcome>,
    items: Items,
}

/// A stream's items by what they came to.
#[derive(Default)]
struct Items {
    added: AtomicU64,
    duplicates: AtomicU64,
    others: AtomicU64,
    failed: AtomicU64,
}

impl Record {
    pub fn trail(&self) -> Arc<Trail> {
        self.trail.clone()
    }

    pub fn called_by(&self, caller: &Arc<callers::Caller>) {
        self.caller.get_or_init(|| caller.clone());
    }

    /// An AddRespondent was answered.
    pub fn answered(&self, answer: &Result<AddRespondentResponse, Status>) {
        self.result.get_or_init(|| Outcome::of(answer));
    }

    /// An item of a stream was refused before it was looked at.
    pub fn refused_item(&self) {
        self.items.failed.fetch_add(1, Ordering::Relaxed);
    }

    /// A stream came to its end.
    pub fn ended(&self, error: Option<&Status>) {
        self.result
            .get_or_init(|| error.map_or_else(Outcome::ok, Outcome::error));
    }

    /// The response begins. What was told before says more; what became of a stream is to be told yet.
    pub fn responded(&self, response: &Response<Body>, is_stream: bool) {
        match response.extensions().get::<Status>() {
            Some(error) => self.ended(Some(error)),
            None if !is_stream => self.ended(None),
            None => {}
        }
    }

    /// Begins an item of a stream.
    pub fn item(self: &Arc<Self>, sequence: u64) -> Item {
        let trace = self.trail.trace.part("item");
        // OpenTelemetry has no unsigned numbers.
        trace.set(
            "surveylab_gateway.sequence",
            i64::try_from(sequence).unwrap_or(i64::MAX),
        );
        let is_watched = trace.is_recorded() || telemetry::logs_items();
        Item {
            record: self.clone(),
            sequence,
            begin: Instant::now(),
            trail: is_watched.then(|| Arc::new(Trail::new(trace))),
        }
    }
}

/// An item of a stream under way. One that is dropped without an answer was withdrawn.
pub struct Item {
    record: Arc<Record>,
    sequence: u64,
    begin: Instant,
    pub trail: Option<Arc<Trail>>,
}

impl Item {
    pub fn answered(self, answer: &Result<AddRespondentResponse, Status>) {
        let items = &self.record.items;
        let count = match answer.as_ref().map(AddRespondentResponse::outcome) {
            Ok(proto::Outcome::Added) => &items.added,
            Ok(proto::Outcome::Duplicate) => &items.duplicates,
            Ok(proto::Outcome::WouldAdd | proto::Outcome::Unspecified) => &items.others,
            Err(_) => &items.failed,
        };
        count.fetch_add(1, Ordering::Relaxed);
        let Some(trail) = &self.trail else { return };
        let result = Outcome::of(answer);
        result.tell(trail);
        let spent = trail.spent();
        tracing::debug!(
            target: ACCESS,
            method = "StreamAddRespondent/item",
            code = code_name(result.code),
            reason = said(&result.reason),
            request_id = request_id::text(&self.record.request_id),
            sequence = self.sequence,
            collector_id = trail.key().map(|key| key.collector_id()),
            crk = trail.key().map(|key| key.crk()),
            duration_ms = milliseconds(self.begin.elapsed()),
            wait_ms = spent.map(|spent| milliseconds(spent.wait)),
            attempts = spent.map(|spent| spent.attempts),
            joined = spent.map(|spent| spent.role == Role::Joins),
            sent = result.sent,
            outcome = result.outcome,
        );
    }
}

impl Drop for Item {
    fn drop(&mut self) {
        if let Some(trail) = &self.trail {
            trail.trace.end();
        }
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        let left = Outcome {
            code: Code::Cancelled,
            ..Outcome::ok()
        };
        let result = self.result.get().unwrap_or(&left);
        result.tell(&self.trail);
        let spent = self.trail.spent();
        let key = self.trail.key();
        let items = self.method.is_stream().then(|| self.items.counts());
        tracing::info!(
            target: ACCESS,
            method = self.method.name(),
            code = code_name(result.code),
            reason = said(&result.reason),
            request_id = request_id::text(&self.request_id),
            trace_id = self.trace_id,
            caller = self.caller.get().map(|caller| caller.name.as_str()),
            peer = self.peer.map(tracing::field::display),
            collector_id = key.map(|key| key.collector_id()),
            duration_ms = milliseconds(self.begin.elapsed()),
            wait_ms = spent.map(|spent| milliseconds(spent.wait)),
            attempts = spent.map(|spent| spent.attempts),
            joined = spent.map(|spent| spent.role == Role::Joins),
            sent = result.sent,
            outcome = result.outcome,
            items = items.map(|[items, ..]| items),
            added = items.map(|[_, added, ..]| added),
            duplicates = items.map(|[_, _, duplicates, _]| duplicates),
            failed = items.map(|[.., failed]| failed),
        );
        if let Some(key) = key {
            // The callers' own number of a person: only for those who ask for it.
            tracing::debug!(
                target: ACCESS,
                request_id = request_id::text(&self.request_id),
                collector_id = key.collector_id(),
                crk = key.crk(),
            );
        }
    }
}

impl Items {
    /// All of them, then those that were added, were so before, and failed.
    fn counts(&self) -> [u64; 4] {
        let [added, duplicates, others, failed] =
            [&self.added, &self.duplicates, &self.others, &self.failed].map(|count| count.load(Ordering::Relaxed));
        [added + duplicates + others + failed, added, duplicates, failed]
    }
}

fn said(reason: &str) -> Option<&str> {
    Some(reason).filter(|reason| !reason.is_empty())
}

/// To the microsecond.
fn milliseconds(span: Duration) -> f64 {
    span.as_micros() as f64 / 1000.0
}
