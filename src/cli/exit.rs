use std::process::{ExitCode, Termination};

use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use crate::invitation::Reason;

/// How a command ended, for scripts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// Done.
    Ok = 0,
    /// Not done now; the same command again is safe and may help.
    TryAgain = 1,
    /// Wrong flags or settings.
    Usage = 2,
    /// Refused, or the ledger is damaged: the same command again won't help.
    Refused = 3,
    /// The key is in doubt: a person has to look it up in SurveyLab.
    InDoubt = 4,
}

impl Exit {
    pub fn of(error: &Status) -> Self {
        let in_doubt = error.get_details_error_info().is_some_and(|info| {
            let state = info.metadata.get("state").map(String::as_str);
            info.reason == Reason::OutcomeInDoubt.as_str() || state == Some("IN_DOUBT")
        });
        if in_doubt {
            return Self::InDoubt;
        }
        match error.code() {
            Code::Unavailable
            | Code::ResourceExhausted
            | Code::DeadlineExceeded
            | Code::Cancelled
            | Code::Aborted
            | Code::Unknown => Self::TryAgain,
            _ => Self::Refused,
        }
    }
}

impl Termination for Exit {
    fn report(self) -> ExitCode {
        ExitCode::from(self as u8)
    }
}
