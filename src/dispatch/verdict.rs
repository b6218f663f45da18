//! What an answer of SurveyLab means for the key, for the caller, and for trying again.

use std::time::Duration;

use crate::{
    invitation::{Failure, Reason, Sent},
    ledger::{LastError, Settlement},
    surveylab,
};

/// What a 500 means; SurveyLab's page says to try again, and does not say whether it had an effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum OnServerError {
    /// Not processed: try again.
    Retry,
    /// It may have had an effect: the key is in doubt.
    Hold,
}

/// What one request came to.
pub enum Verdict {
    Added { notification: String },
    Failed { failure: Failure, again: Again },
    InDoubt { failure: Failure },
}

/// May the gateway itself try again?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Again {
    No,
    /// After a backoff, not before SurveyLab asked for.
    After(Option<Duration>),
    /// As soon as the limiter's pause is over.
    AfterPause,
}

impl Verdict {
    pub fn of(answer: surveylab::Answer, on_server_error: OnServerError) -> Self {
        use surveylab::Answer;
        match answer {
            Answer::Added { notification } => Self::Added { notification },
            Answer::ActionFailed {
                http_status,
                notification,
            } => {
                let mut failure = Failure::new(Reason::SurveylabActionFailed, Sent::Yes).http_status(http_status);
                failure.notification = Some(notification);
                Self::Failed {
                    failure,
                    again: Again::No,
                }
            }
            Answer::BadRequest => refused(Reason::SurveylabBadRequest, 400),
            Answer::Unauthorized => refused(Reason::SurveylabUnauthorized, 401),
            Answer::Forbidden => refused(Reason::SurveylabForbidden, 403),
            Answer::NotFound => refused(Reason::SurveylabNotFound, 404),
            Answer::UnexpectedStatus { http_status } => refused(Reason::SurveylabUnexpectedStatus, http_status),
            Answer::RateLimited { retry_after } => {
                let mut failure = Failure::new(Reason::SurveylabRateLimited, Sent::Yes).http_status(429);
                failure.retry_after = retry_after;
                Self::Failed {
                    failure,
                    again: Again::AfterPause,
                }
            }
            Answer::InternalError => match on_server_error {
                OnServerError::Retry => not_processed(Reason::SurveylabInternalError, 500, None),
                OnServerError::Hold => in_doubt(Some(500)),
            },
            Answer::Unavailable { retry_after } => not_processed(Reason::SurveylabUnavailable, 503, retry_after),
            Answer::Unreachable { .. } => Self::Failed {
                failure: Failure::new(Reason::SurveylabUnreachable, Sent::No).retry_after(LATER),
                again: Again::After(None),
            },
            Answer::InDoubt { http_status, .. } => in_doubt(http_status),
        }
    }

    /// How the key is to stand. A key that was in doubt before this attempt stays so, whatever SurveyLab answered but
    /// "added": that this request had no effect does not tell what the earlier one had. A refusal may even be the sign
    /// that it had one, as a crk can be used once.
    pub fn settlement(&self, was_in_doubt: bool) -> Settlement {
        match self {
            Self::Added { notification } => Settlement::Added {
                notification: notification.clone(),
            },
            Self::Failed { failure, .. } if was_in_doubt => Settlement::InDoubt {
                error: LastError {
                    reason: Reason::OutcomeInDoubt,
                    http_status: failure.http_status,
                },
            },
            Self::Failed { failure, .. } => Settlement::Failed {
                error: last_error(failure),
                notification: failure.notification.clone(),
            },
            Self::InDoubt { failure } => Settlement::InDoubt {
                error: last_error(failure),
            },
        }
    }

    pub fn sent(&self) -> Sent {
        match self {
            Self::Added { .. } => Sent::Yes,
            Self::Failed { failure, .. } | Self::InDoubt { failure } => failure.sent,
        }
    }
}

/// What a caller is told to wait where SurveyLab says nothing.
pub const LATER: Duration = Duration::from_secs(1);

fn refused(reason: Reason, http_status: u16) -> Verdict {
    Verdict::Failed {
        failure: Failure::new(reason, Sent::Yes).http_status(http_status),
        again: Again::No,
    }
}

fn not_processed(reason: Reason, http_status: u16, asked: Option<Duration>) -> Verdict {
    Verdict::Failed {
        failure: Failure::new(reason, Sent::Yes)
            .http_status(http_status)
            .retry_after(asked.unwrap_or(LATER).max(LATER)),
        again: Again::After(asked),
    }
}

fn in_doubt(http_status: Option<u16>) -> Verdict {
    let mut failure = Failure::new(Reason::OutcomeInDoubt, Sent::Unknown);
    failure.http_status = http_status;
    Verdict::InDoubt { failure }
}

fn last_error(failure: &Failure) -> LastError {
    LastError {
        reason: failure.reason,
        http_status: failure.http_status,
    }
}
