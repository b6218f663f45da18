//! What each step does to a record, the same for every backend.

use super::{Claim, Doubt, LastError, Record, Resolution, Settlement, State};
use crate::{clock::Timestamp, invitation::Reason};

/// What a claim may take over of what was known of its key.
pub(super) struct Grant {
    pub attempts: u32,
    pub created_at: Timestamp,
    pub was_in_doubt: bool,
}

/// Grants a claim if the key is free, or gives back what is known of it.
pub(super) fn grant<'a>(known: Option<&'a Record>, claim: &Claim) -> Result<Grant, &'a Record> {
    let Some(record) = known else {
        return Ok(Grant {
            attempts: 1,
            created_at: claim.at,
            was_in_doubt: false,
        });
    };
    let was_in_doubt = match record.state {
        State::Failed => false,
        State::InDoubt if claim.doubt == Doubt::Resend && claim.fingerprint == record.fingerprint => true,
        State::InDoubt | State::Pending | State::Added => return Err(record),
    };
    Ok(Grant {
        attempts: record.attempts.saturating_add(1),
        created_at: created_at(record.created_at, claim.at),
        was_in_doubt,
    })
}

/// When a record that changes `at` counts as created. The wall clock may have been set back since; then it is believed
/// as it is now, so that an outcome is never dated by an error that was put right.
pub(super) fn created_at(known: Timestamp, at: Timestamp) -> Timestamp {
    known.min(at)
}

/// The parts of a record that a settlement decides.
pub(super) struct Settled {
    pub state: State,
    pub last_error: Option<LastError>,
    pub notification: Option<String>,
}

impl From<Settlement> for Settled {
    fn from(settlement: Settlement) -> Self {
        let (state, last_error, notification) = match settlement {
            Settlement::Added { notification } => (State::Added, None, Some(notification)),
            Settlement::Failed { error, notification } => (State::Failed, Some(error), notification),
            Settlement::InDoubt { error } => (State::InDoubt, Some(error), None),
        };
        Self {
            state,
            last_error,
            notification,
        }
    }
}

/// What becomes of a claim whose process died: nobody knows whether its request went out.
pub(super) const ORPHANED: Settlement = Settlement::InDoubt {
    error: LastError {
        reason: Reason::OutcomeInDoubt,
        http_status: None,
    },
};

/// Ends the doubt of `record`, which is in doubt.
pub(super) fn resolve(record: &mut Record, resolution: Resolution, at: Timestamp) {
    record.created_at = created_at(record.created_at, at);
    record.updated_at = at;
    match resolution {
        Resolution::Added => {
            record.state = State::Added;
            record.added_at = Some(at);
            record.last_error = None;
        }
        Resolution::NotAdded => record.state = State::Failed,
    }
}
