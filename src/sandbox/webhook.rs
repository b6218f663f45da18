//! The way of one request to `api.php`: received, checked, faulted, answered.

use std::{
    borrow::Cow,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use bytes::Bytes;
use governor::clock::{Clock as _, DefaultClock};
use hyper::{
    Response, StatusCode,
    header::{CONTENT_TYPE, HeaderValue, LOCATION, RETRY_AFTER},
};
use secrecy::ExposeSecret;

use super::{
    Core, State,
    account::{Call, Verdict},
    body::Body,
    faults::{Applied, Effect, Outcome},
    journal::Ticket,
};

/// How a connection ends in place of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Cut {
    #[error("closed on demand")]
    Close,
    #[error("reset on demand")]
    Reset,
}

/// The parameters that decide. Of several with one name the last counts, as in PHP.
#[derive(Default)]
pub(super) struct Parameters<'q> {
    pub(super) token: Cow<'q, str>,
    pub(super) collector_id: Cow<'q, str>,
    pub(super) email: Cow<'q, str>,
    pub(super) crk: Cow<'q, str>,
}

impl<'q> Parameters<'q> {
    pub(super) fn parse(query: &'q str) -> Self {
        let mut parameters = Self::default();
        for (name, value) in form_urlencoded::parse(query.as_bytes()) {
            match &*name {
                "apiToken" => parameters.token = value,
                "cId" => parameters.collector_id = value,
                "email" => parameters.email = value,
                "crk" => parameters.crk = value,
                _ => {}
            }
        }
        parameters
    }

    fn call(&self) -> Call<'_> {
        Call {
            collector_id: &self.collector_id,
            email: &self.email,
            crk: &self.crk,
        }
    }
}

/// What was decided about a request at its arrival.
struct Plan {
    ticket: Ticket,
    applied: Option<Applied>,
    verdict: Option<Verdict>,
    /// Still to come.
    late_effect: Option<Duration>,
    /// Its status is recorded. Of the usual answer, given at once, it is at arrival: one lock for a request. Where
    /// something is waited for, only then: the client may leave.
    is_settled: bool,
}

/// Receives one request, and answers it or says how its connection is to end.
pub(super) async fn receive(core: &Arc<Core>, query: &str) -> Result<Response<Body>, Cut> {
    let _open = Open::new(core);
    let parameters = Parameters::parse(query);
    let plan = core.lock().arrive(core, query, &parameters);
    core.changed.notify_waiters();
    if let Some(delay) = plan.late_effect {
        let (core, ticket) = (core.clone(), plan.ticket);
        let (collector_id, crk) = (parameters.collector_id.into_owned(), parameters.crk.into_owned());
        core.clone().spawn(async move {
            tokio::time::sleep(delay).await;
            core.lock().take_effect(ticket, &collector_id, &crk);
            core.changed.notify_waiters();
        });
    }
    wait(core, &plan).await;
    let answer = answer(&plan);
    if !plan.is_settled
        && let Ok(answer) = &answer
    {
        core.lock().answered(plan.ticket, answer.status());
    }
    answer
}

impl State {
    /// All that happens to a request at its arrival, in one step.
    fn arrive(&mut self, core: &Core, query: &str, parameters: &Parameters<'_>) -> Plan {
        let call = parameters.call();
        self.account.count_request(&call);
        let applied = self.rules.apply(call.collector_id, call.crk);
        let fault = applied.as_ref().map(|applied| &*applied.fault);
        let ticket = self
            .journal
            .push(core.started.elapsed(), query, fault.map(|fault| fault.name()));
        let effect = fault.map_or(Effect::AtOnce, |fault| fault.effect());
        // A fault that neither takes effect nor shows the usual answer stands before the checks: it spends no rate.
        let is_checked = effect != Effect::Never || fault.is_none_or(|fault| fault.outcome.shows_answer());
        let verdict = is_checked.then(|| match self.admit(core, &parameters.token) {
            Some(refusal) => refusal,
            None => self.account.check(&call),
        });
        let mut late_effect = None;
        if verdict == Some(Verdict::Processed) {
            match effect {
                Effect::Never => {}
                Effect::AtOnce => self.take_effect(ticket, call.collector_id, call.crk),
                Effect::After(delay) => late_effect = Some(delay),
            }
        }
        let mut is_settled = false;
        if let (None, true, Some(verdict)) = (&applied, core.latency.is_zero(), verdict) {
            self.answered(ticket, verdict.status());
            is_settled = true;
        }
        Plan {
            ticket,
            applied,
            verdict,
            late_effect,
            is_settled,
        }
    }

    fn take_effect(&mut self, ticket: Ticket, collector_id: &str, crk: &str) {
        if !self.journal.is_forgotten(ticket) && self.account.take_effect(collector_id, crk) {
            self.journal.set_effect(ticket);
        }
    }

    fn answered(&mut self, ticket: Ticket, status: StatusCode) {
        if !self.journal.is_forgotten(ticket) {
            self.account.count_status(status.as_u16());
            self.journal.set_status(ticket, status.as_u16());
        }
    }

    /// The checks of token and rate, in this order: a wrong token spends nothing.
    fn admit(&self, core: &Core, token: &str) -> Option<Verdict> {
        let mut right = self.api_tokens.iter();
        let is_right = self.api_tokens.is_empty() || right.any(|right| right.expose_secret() == token);
        if token.is_empty() || !is_right {
            return Some(Verdict::WrongToken);
        }
        let denied = core.limiter.as_ref()?.check().err()?;
        let wait = denied.wait_time_from(DefaultClock::default().now());
        // Whole seconds, rounded up: a client that waits so long is let in.
        Some(Verdict::TooFast(
            wait.as_nanos()
                .div_ceil(1_000_000_000)
                .max(1)
                .try_into()
                .unwrap_or(u64::MAX),
        ))
    }
}

/// What keeps the answer back: gate, hanging, latency.
async fn wait(core: &Core, plan: &Plan) {
    let mut latency = core.latency;
    if let Some(Applied { fault, hanging }) = &plan.applied {
        if let Some(gate) = &fault.gate {
            gate.pass().await;
        }
        if let Some(hanging) = hanging {
            hanging.pass().await;
        }
        latency = latency.saturating_add(fault.latency);
    }
    if !latency.is_zero() {
        tokio::time::sleep(latency).await;
    }
}

impl Outcome {
    /// Whether the client gets to see some of the usual answer.
    fn shows_answer(&self) -> bool {
        match self {
            Outcome::Answer | Outcome::ResetWithin | Outcome::HalfBody | Outcome::Hang => true,
            Outcome::Status { .. } | Outcome::Body(_) | Outcome::Redirect(_) | Outcome::Reset | Outcome::Close => false,
        }
    }
}

fn answer(plan: &Plan) -> Result<Response<Body>, Cut> {
    let usual = || plan.verdict.unwrap_or(Verdict::Processed).answer();
    let Some(Applied { fault, .. }) = &plan.applied else {
        return Ok(usual());
    };
    Ok(match &fault.outcome {
        Outcome::Answer | Outcome::Hang => usual(),
        Outcome::Status {
            status,
            retry_after,
            body,
        } => {
            let mut response = response(*status, body.clone());
            if let Some(retry_after) = retry_after {
                response.headers_mut().insert(RETRY_AFTER, retry_after.clone());
            }
            response
        }
        Outcome::Body(body) => response(StatusCode::OK, body.clone()),
        Outcome::Redirect(location) => {
            let mut response = response(StatusCode::FOUND, Bytes::new());
            response.headers_mut().insert(LOCATION, location.clone());
            response
        }
        Outcome::Reset => return Err(Cut::Reset),
        Outcome::Close => return Err(Cut::Close),
        Outcome::ResetWithin => usual().map(|body| body.halved(Cut::Reset)),
        Outcome::HalfBody => usual().map(|body| body.halved(Cut::Close)),
    })
}

impl Verdict {
    fn status(self) -> StatusCode {
        match self {
            Verdict::Processed | Verdict::Repeated => StatusCode::OK,
            Verdict::WrongToken | Verdict::MissingParameter => StatusCode::BAD_REQUEST,
            Verdict::UnknownCollector => StatusCode::NOT_FOUND,
            Verdict::TooFast(_) => StatusCode::TOO_MANY_REQUESTS,
        }
    }

    /// The bodies of a 200 are SurveyLab's, word for word; it documents no others.
    fn body(self) -> &'static str {
        match self {
            Verdict::Processed => r#"{"status":true,"notification":"Action processed correctly"}"#,
            Verdict::Repeated => r#"{"status":false,"notification":"Action failed"}"#,
            Verdict::WrongToken => r#"{"status":false,"notification":"Invalid token"}"#,
            Verdict::MissingParameter => r#"{"status":false,"notification":"Bad request"}"#,
            Verdict::UnknownCollector => r#"{"status":false,"notification":"Not found"}"#,
            Verdict::TooFast(_) => r#"{"status":false,"notification":"Too many requests"}"#,
        }
    }

    fn answer(self) -> Response<Body> {
        let mut response = response(self.status(), Bytes::from_static(self.body().as_bytes()));
        if let Verdict::TooFast(seconds) = self {
            response.headers_mut().insert(RETRY_AFTER, seconds.into());
        }
        response
    }
}

fn response(status: StatusCode, body: Bytes) -> Response<Body> {
    let mut response = Response::new(Body::whole(body));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// A request under way, counted for as long as it lives.
struct Open<'a>(&'a Core);

impl<'a> Open<'a> {
    fn new(core: &'a Core) -> Self {
        let open = core.open.fetch_add(1, Ordering::Relaxed) + 1;
        core.most_at_once.fetch_max(open, Ordering::Relaxed);
        Self(core)
    }
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        if self.0.open.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.0.changed.notify_waiters();
        }
    }
}
