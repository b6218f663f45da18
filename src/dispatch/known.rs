//! What the ledger's word on a key means to a call.

use super::{Added, Answer, LATER, Outcome};
use crate::{
    invitation::{Failure, Fingerprint, Reason, Sent},
    ledger::{self, Doubt, Record, State},
};

/// May this be a claim of another process, whose outcome is to be waited for? One that was waited for, and is still the same
/// one, is this process's own: its outcome was lost on the way to the ledger.
pub(super) fn is_of_another(record: &Record, fingerprint: Fingerprint, seen: Option<&Record>) -> bool {
    record.state == State::Pending && record.fingerprint == fingerprint && seen != Some(record)
}

/// What the ledger's record of a key says to a call, or `None` if the key is free to be sent.
pub(super) fn known(record: Option<&Record>, fingerprint: Fingerprint, doubt: Doubt) -> Option<Answer> {
    let record = record?;
    match record.state {
        State::Failed => None,
        _ if record.fingerprint != fingerprint => Some(Err(reused())),
        State::Added => Some(Ok(Outcome::Duplicate(Added {
            at: record.added_at.unwrap_or(record.updated_at),
            notification: record.notification.clone().unwrap_or_default(),
            attempts: record.attempts,
        }))),
        State::InDoubt if doubt == Doubt::Resend => None,
        // Pending without a flight in this process: its outcome was lost on the way to the ledger.
        State::InDoubt | State::Pending => {
            let mut failure = Failure::new(Reason::OutcomeInDoubt, Sent::Unknown);
            failure.http_status = record.last_error.and_then(|error| error.http_status);
            Some(Err(failure))
        }
    }
}

pub(super) fn reused() -> Failure {
    Failure::new(Reason::CrkReused, Sent::No)
}

pub(super) fn ledger_unavailable(error: &ledger::Error, sent: Sent) -> Failure {
    // The ledger itself tells of its failure, once; this is one of many calls that meet it.
    tracing::debug!(%error, "the ledger is unavailable");
    Failure::new(Reason::LedgerUnavailable, sent).retry_after(LATER)
}
