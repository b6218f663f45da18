//! Between the contract's messages and the domain.

use std::time::{Duration, SystemTime};

use prost_types::{Duration as ProtoDuration, Timestamp as ProtoTimestamp};

use super::{page_token, service::About, status};
use crate::{
    clock::Timestamp,
    dispatch::{Added, BreakerStanding, Outcome, Serving, Standing},
    invitation::{Invitation, Key, Respondent, Violation, collector_id, violations_of_key},
    ledger::{Doubt, Query, Record, Resolution, State},
    proto,
};

/// ListInvitationsRequest.page_size: "At most 1000; 100 if 0".
const PAGE_MAX: usize = 1000;
const PAGE_DEFAULT: usize = 100;

pub fn invitation(request: proto::AddRespondentRequest) -> Invitation {
    Invitation::new(
        Key::new(request.collector_id, request.crk),
        Respondent {
            email: request.email,
            referrer: request.referrer,
            language: request.language,
            phone: request.phone,
            first_name: request.first_name,
            last_name: request.last_name,
            custom: [
                request.custom1,
                request.custom2,
                request.custom3,
                request.custom4,
                request.custom5,
                request.custom6,
                request.custom7,
                request.custom8,
            ],
        },
    )
}

pub fn doubt(resend_in_doubt: bool) -> Doubt {
    if resend_in_doubt { Doubt::Resend } else { Doubt::Hold }
}

pub fn response(crk: &str, outcome: Outcome) -> proto::AddRespondentResponse {
    let (outcome, added) = match outcome {
        Outcome::Added(added) => (proto::Outcome::Added, Some(added)),
        Outcome::Duplicate(added) => (proto::Outcome::Duplicate, Some(added)),
        Outcome::WouldAdd => (proto::Outcome::WouldAdd, None),
    };
    let mut response = proto::AddRespondentResponse {
        crk: crk.into(),
        outcome: outcome.into(),
        ..Default::default()
    };
    if let Some(Added {
        at,
        notification,
        attempts,
    }) = added
    {
        response.added_at = Some(timestamp(at));
        response.notification = notification;
        response.attempts = attempts;
    }
    response
}

pub fn record(record: Record) -> proto::Invitation {
    proto::Invitation {
        collector_id: record.key.collector_id().into(),
        crk: record.key.crk().into(),
        state: state(record.state).into(),
        attempts: record.attempts,
        created_at: Some(timestamp(record.created_at)),
        updated_at: Some(timestamp(record.updated_at)),
        added_at: record.added_at.map(timestamp),
        last_error: record.last_error.map(|error| status::last_error(error, record.state)),
    }
}

/// The key of a request, or all that is wrong with it.
pub fn key(collector_id: String, crk: String) -> Result<Key, Vec<Violation>> {
    let key = Key::new(collector_id, crk);
    let violations = violations_of_key(&key);
    if violations.is_empty() {
        Ok(key)
    } else {
        Err(violations)
    }
}

pub fn query(request: proto::ListInvitationsRequest) -> Result<Query, Vec<Violation>> {
    let mut violations = Vec::new();
    if !request.collector_id.is_empty() {
        violations.extend(collector_id(&request.collector_id).map(|wrong| Violation::new("collector_id", wrong)));
    }
    let state = match request.state.try_into() {
        Ok(proto::InvitationState::Unspecified) => None,
        Ok(proto::InvitationState::Pending) => Some(State::Pending),
        Ok(proto::InvitationState::Added) => Some(State::Added),
        Ok(proto::InvitationState::Failed) => Some(State::Failed),
        Ok(proto::InvitationState::InDoubt) => Some(State::InDoubt),
        Err(_) => {
            violations.push(Violation::new("state", "is not a state of an invitation"));
            None
        }
    };
    let limit = match usize::try_from(request.page_size) {
        Ok(0) => PAGE_DEFAULT,
        Ok(size) => size.min(PAGE_MAX),
        Err(_) => {
            violations.push(Violation::new("page_size", "must not be negative"));
            PAGE_DEFAULT
        }
    };
    let after = if request.page_token.is_empty() {
        None
    } else {
        let after = page_token::decode(&request.page_token);
        if after.is_none() {
            violations.push(Violation::new("page_token", "is not a token of an earlier answer"));
        }
        after
    };
    if !violations.is_empty() {
        return Err(violations);
    }
    Ok(Query {
        collector_id: Some(request.collector_id).filter(|id| !id.is_empty()),
        state,
        after,
        limit,
    })
}

pub fn resolution(resolution: i32) -> Result<Resolution, Violation> {
    match resolution.try_into() {
        Ok(proto::Resolution::Added) => Ok(Resolution::Added),
        Ok(proto::Resolution::NotAdded) => Ok(Resolution::NotAdded),
        Ok(proto::Resolution::Unspecified) => Err(Violation::new("resolution", "is required")),
        Err(_) => Err(Violation::new("resolution", "is not a resolution")),
    }
}

fn state(state: State) -> proto::InvitationState {
    match state {
        State::Pending => proto::InvitationState::Pending,
        State::Added => proto::InvitationState::Added,
        State::Failed => proto::InvitationState::Failed,
        State::InDoubt => proto::InvitationState::InDoubt,
    }
}

pub fn standing(about: About, open_streams: usize, standing: Standing) -> proto::GetStatusResponse {
    let Standing {
        serving,
        limiter,
        breaker,
    } = standing;
    let (state, state_reason) = match serving {
        Serving::Yes => (proto::ServingState::Serving, String::new()),
        Serving::Draining => (proto::ServingState::Draining, "shutting down".into()),
        Serving::LedgerUnavailable(why) => (proto::ServingState::LedgerUnavailable, why),
    };
    proto::GetStatusResponse {
        version: env!("CARGO_PKG_VERSION").into(),
        state: state.into(),
        state_reason,
        started_at: Some(timestamp(about.started_at)),
        configured_rate: limiter.configured_rate,
        learned_rate: limiter.learned_rate,
        burst: limiter.burst,
        pause: (!limiter.pause.is_zero()).then(|| span(limiter.pause)),
        tokens_available: limiter.tokens,
        waiting_unary: count(limiter.waiting_unary),
        waiting_streams: count(limiter.waiting_streams),
        max_queue: count(limiter.max_queue),
        in_flight: count(limiter.in_flight),
        max_in_flight: count(limiter.max_in_flight),
        open_streams: count(open_streams),
        unary_wait: Some(span(limiter.unary_wait)),
        stream_wait: Some(span(limiter.stream_wait)),
        ledger: about.ledger.into(),
        sandbox: about.sandbox,
        breaker: breaker.map(open_breaker),
    }
}

fn open_breaker(breaker: BreakerStanding) -> proto::OpenBreaker {
    proto::OpenBreaker {
        reason: breaker.reason.as_str().into(),
        refusals: breaker.refusals,
        collector_id: breaker.collector_id.unwrap_or_default(),
        since: Some(timestamp(breaker.since)),
        next_probe: Some(span(breaker.next_probe)),
    }
}

fn count(of: usize) -> u64 {
    u64::try_from(of).unwrap_or(u64::MAX)
}

/// The limiter tells no time beyond a year, which protobuf's can hold.
fn span(time: Duration) -> ProtoDuration {
    time.try_into().unwrap_or_default()
}

fn timestamp(at: Timestamp) -> ProtoTimestamp {
    SystemTime::from(at).into()
}
