//! From the domain's failures to gRPC's: one exhaustive match, so that a new reason can't be forgotten.

use std::collections::HashMap;

use prost::Message as _;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, FieldViolation, StatusExt as _};

use crate::{
    dispatch::LATER,
    invitation::{Failure, Reason, Sent, Violation},
    ledger::{LastError, State},
};

/// `google.rpc.ErrorInfo`'s domain where the gateway decided.
const GATEWAY: &str = "surveylab-gateway";
/// The domain where SurveyLab's answer decided.
const SURVEYLAB: &str = "surveylab.com";

/// The code, the domain, and what is said to the caller. Never holds a value of the request.
fn row(failure: &Failure) -> (Code, &'static str, &'static str) {
    match failure.reason {
        Reason::SurveylabActionFailed => (
            Code::FailedPrecondition,
            SURVEYLAB,
            "SurveyLab refused the respondent and gives no reason; a common one is a crk that the collector already has",
        ),
        Reason::SurveylabBadRequest => (
            Code::InvalidArgument,
            SURVEYLAB,
            "SurveyLab answered 400: a bad request, or a wrong API token",
        ),
        Reason::SurveylabUnauthorized => (
            Code::Unauthenticated,
            SURVEYLAB,
            "SurveyLab answered 401: the gateway's API token is wrong",
        ),
        Reason::SurveylabForbidden => (
            Code::PermissionDenied,
            SURVEYLAB,
            "SurveyLab answered 403: the gateway's account may not do this",
        ),
        Reason::SurveylabNotFound => (
            Code::NotFound,
            SURVEYLAB,
            "SurveyLab answered 404: no such collector in the gateway's account",
        ),
        Reason::SurveylabRateLimited => (
            Code::ResourceExhausted,
            SURVEYLAB,
            "SurveyLab answered 429: too many requests; nothing was processed",
        ),
        Reason::SurveylabInternalError => (
            Code::Unavailable,
            SURVEYLAB,
            "SurveyLab answered 500 and asks to try again",
        ),
        Reason::SurveylabUnavailable => (
            Code::Unavailable,
            SURVEYLAB,
            "SurveyLab answered 503: it is not available now; nothing was processed",
        ),
        Reason::SurveylabUnexpectedStatus => (
            Code::Internal,
            SURVEYLAB,
            "SurveyLab answered with a status that is not part of its interface",
        ),
        Reason::SurveylabUnreachable if failure.sent == Sent::No => (
            Code::Unavailable,
            GATEWAY,
            "SurveyLab could not be reached; nothing was sent",
        ),
        Reason::SurveylabUnreachable => (
            Code::Unavailable,
            GATEWAY,
            "SurveyLab did not process the request, and then could not be reached to try again",
        ),
        Reason::OutcomeInDoubt => (
            Code::FailedPrecondition,
            GATEWAY,
            "a request went out and its outcome is unknown: the respondent may have been added. The key is held until \
             someone looks it up in SurveyLab and resolves it, or a call sets resend_in_doubt",
        ),
        Reason::CrkReused if failure.sent == Sent::No => (
            Code::AlreadyExists,
            GATEWAY,
            "this crk was used in this collector with other data; nothing was sent",
        ),
        Reason::CrkReused => (
            Code::AlreadyExists,
            GATEWAY,
            "SurveyLab did not process the request, and before it was sent again another call used this crk in this \
             collector with other data",
        ),
        Reason::WaitTooLong if failure.deadline_passed => (
            Code::DeadlineExceeded,
            GATEWAY,
            "the deadline passed while the request waited for its turn; nothing was sent",
        ),
        Reason::WaitTooLong => (
            Code::ResourceExhausted,
            GATEWAY,
            "the wait for its turn would be too long; nothing was sent",
        ),
        Reason::QueueFull => (
            Code::ResourceExhausted,
            GATEWAY,
            "too many requests wait already; nothing was sent",
        ),
        Reason::DeadlineAfterSend => (
            Code::DeadlineExceeded,
            GATEWAY,
            "the deadline passed while the request was on the wire; its outcome will be recorded: the same call \
             again tells it",
        ),
        Reason::ShuttingDown if failure.sent == Sent::No => (
            Code::Unavailable,
            GATEWAY,
            "the gateway is shutting down; the request was not sent",
        ),
        Reason::ShuttingDown => (
            Code::Unavailable,
            GATEWAY,
            "the gateway is shutting down; SurveyLab did not process the request, and it was not sent again",
        ),
        Reason::LedgerUnavailable if failure.sent == Sent::No => {
            (Code::Unavailable, GATEWAY, "the ledger can't be used; nothing was sent")
        }
        Reason::LedgerUnavailable => (
            Code::Unavailable,
            GATEWAY,
            "the request was sent, but the ledger could not record its outcome yet; the gateway keeps trying",
        ),
    }
}

/// A failure as callers see it, with `ErrorInfo`, and `RetryInfo` where a later try can help.
pub fn status(failure: &Failure) -> Status {
    let (code, domain, message) = row(failure);
    let mut metadata = HashMap::from([("sent".to_string(), sent(failure.sent).to_string())]);
    if let Some(http_status) = failure.http_status {
        metadata.insert("http_status".into(), http_status.to_string());
    }
    if failure.still_in_doubt {
        metadata.insert("state".into(), "IN_DOUBT".into());
    }
    if failure.turned_away_after.is_some() {
        metadata.insert("breaker".into(), "open".into());
    }
    let mut details = ErrorDetails::with_error_info(failure.reason.as_str(), domain, metadata);
    // No program is to try a key in doubt again by itself.
    let in_doubt = failure.reason == Reason::OutcomeInDoubt;
    if let Some(after) = failure.retry_after.filter(|_| !in_doubt) {
        details.set_retry_info(Some(after));
    }
    let mut message = message.to_string();
    if let Some(words) = failure.notification.as_deref().filter(|words| !words.is_empty()) {
        message = format!("{message}. It said: {words}");
    }
    if let Some(refusals) = failure.turned_away_after {
        message.push_str(&format!(
            ". Nothing was sent for this call: the last {refusals} answers were like that, and one call at a time is sent as a \
             probe until that changes"
        ));
    }
    if failure.still_in_doubt {
        message.push_str(". The key stays in doubt: an earlier request may have added the respondent");
    }
    Status::with_error_details(code, message, details)
}

/// Bad input: all that is wrong with it, at once.
pub fn invalid(violations: &[Violation]) -> Status {
    let named: Vec<String> = violations
        .iter()
        .map(|violation| format!("{} {}", violation.field, violation.description))
        .collect();
    let mut details = info("INVALID_REQUEST");
    details.set_bad_request(
        violations
            .iter()
            .map(|violation| FieldViolation::new(violation.field, violation.description.clone()))
            .collect::<Vec<_>>(),
    );
    Status::with_error_details(Code::InvalidArgument, named.join("; "), details)
}

/// A request, or a message of a stream, that can't be decoded or is too large. Nothing after it can be read.
pub fn unreadable(error: &Status) -> Status {
    match error.code() {
        // tonic's codes for them.
        Code::Internal | Code::OutOfRange => {
            let message = format!("a request can't be read: {}", error.message());
            Status::with_error_details(Code::InvalidArgument, message, info("INVALID_REQUEST"))
        }
        _ => error.clone(),
    }
}

/// A request, or a message of a stream, that began and did not come to its end in time.
pub fn receive_timeout() -> Status {
    let message = "the request did not arrive completely in time; nothing was sent";
    Status::with_error_details(Code::DeadlineExceeded, message, info("RECEIVE_TIMEOUT"))
}

/// A message that begins while too many others of its connection are half there.
pub fn too_many_unfinished() -> Status {
    let mut details = info("TOO_MANY_UNFINISHED");
    details.set_retry_info(Some(LATER));
    let message = "too many large requests are half received on this connection; nothing was sent";
    Status::with_error_details(Code::ResourceExhausted, message, details)
}

/// The end of a stream whose deadline has passed. Each item was told its own error.
pub fn stream_deadline() -> Status {
    let message = "the stream's deadline passed; what was not answered before was not sent";
    Status::with_error_details(Code::DeadlineExceeded, message, info(Reason::WaitTooLong.as_str()))
}

/// A question about a key that the ledger does not know.
pub fn not_found() -> Status {
    let details = info("INVITATION_NOT_FOUND");
    Status::with_error_details(Code::NotFound, "no invitation with this key was ever claimed", details)
}

/// A resolution of what needs none.
pub fn not_in_doubt() -> Status {
    let details = info("NOT_IN_DOUBT");
    let message = "only an invitation that is in doubt can be resolved";
    Status::with_error_details(Code::FailedPrecondition, message, details)
}

/// A call that does not show whose it is. One text for every way of that: it must not help who tries.
pub fn unauthenticated() -> Status {
    let message = "valid credentials are needed: a token in the metadata, as authorization: Bearer TOKEN, or a client \
                   certificate; nothing was sent";
    Status::with_error_details(Code::Unauthenticated, message, info("CALLER_UNAUTHENTICATED"))
}

/// What a caller may not do.
#[derive(Clone, Copy, Debug)]
pub enum Forbidden {
    Method,
    Collector,
}

impl Forbidden {
    /// Its name in logs.
    pub fn name(self) -> &'static str {
        match self {
            Self::Method => "method",
            Self::Collector => "collector",
        }
    }
}

/// A call that is its caller's, who has not the right to it.
pub fn forbidden(what: Forbidden) -> Status {
    let message = match what {
        Forbidden::Method => "this caller may not call this method; nothing was sent",
        Forbidden::Collector => "this caller may not use this collector; nothing was sent",
    };
    Status::with_error_details(Code::PermissionDenied, message, info("CALLER_FORBIDDEN"))
}

/// What the last attempt of a key failed with, as the call itself was told.
pub fn last_error(error: LastError, state: State) -> tonic_types::Status {
    let sent = match error.reason {
        Reason::OutcomeInDoubt => Sent::Unknown,
        Reason::SurveylabUnreachable => Sent::No,
        _ => Sent::Yes,
    };
    let mut failure = Failure::new(error.reason, sent);
    failure.http_status = error.http_status;
    let mut status = rpc_status(&status(&failure));
    if error.reason == Reason::OutcomeInDoubt && state != State::InDoubt {
        status.message = "a request went out and its outcome was unknown; the doubt has ended since".into();
    }
    status
}

/// The same as `google.rpc.Status`, for answers that carry an error inside.
pub fn rpc_status(status: &Status) -> tonic_types::Status {
    // The details are such a message already.
    tonic_types::Status::decode(status.details()).unwrap_or_else(|_| tonic_types::Status {
        code: status.code().into(),
        message: status.message().into(),
        details: Vec::new(),
    })
}

/// The `reason` of an error and what it says of `sent`, for the access log.
pub fn reason_and_sent(status: &Status) -> (String, Option<String>) {
    match status.get_details_error_info() {
        Some(mut info) => (info.reason, info.metadata.remove("sent")),
        None => (String::new(), None),
    }
}

/// The `reason` of an error, for metrics and logs; empty if it has none.
pub fn reason(status: &Status) -> String {
    status
        .get_details_error_info()
        .map_or_else(String::new, |info| info.reason)
}

fn info(reason: &str) -> ErrorDetails {
    let metadata = HashMap::from([("sent".to_string(), sent(Sent::No).to_string())]);
    ErrorDetails::with_error_info(reason, GATEWAY, metadata)
}

fn sent(sent: Sent) -> &'static str {
    match sent {
        Sent::No => "no",
        Sent::Unknown => "unknown",
        Sent::Yes => "yes",
    }
}
