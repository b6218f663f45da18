use std::time::Duration;

/// May a request of this call have reached SurveyLab?
///
/// Ordered: over several attempts of a call the greatest holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Sent {
    /// No byte of a request went out.
    No,
    /// Bytes may have gone out; nothing decisive came back.
    Unknown,
    /// SurveyLab answered, or its answer could not be recorded.
    Yes,
}

/// Why a call did not add its respondent. Closed: every reason has one code in `grpc/status.rs`, one row in the
/// README, and its `code()` is kept in ledgers, so a number is never used again for another reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    SurveylabActionFailed,
    SurveylabBadRequest,
    SurveylabUnauthorized,
    SurveylabForbidden,
    SurveylabNotFound,
    SurveylabRateLimited,
    SurveylabInternalError,
    SurveylabUnavailable,
    SurveylabUnexpectedStatus,
    SurveylabUnreachable,
    OutcomeInDoubt,
    CrkReused,
    WaitTooLong,
    QueueFull,
    DeadlineAfterSend,
    ShuttingDown,
    LedgerUnavailable,
}

impl Reason {
    const ALL: [(Reason, u8, &'static str); 17] = [
        (Reason::SurveylabActionFailed, 1, "SURVEYLAB_ACTION_FAILED"),
        (Reason::SurveylabBadRequest, 2, "SURVEYLAB_BAD_REQUEST"),
        (Reason::SurveylabUnauthorized, 3, "SURVEYLAB_UNAUTHORIZED"),
        (Reason::SurveylabForbidden, 4, "SURVEYLAB_FORBIDDEN"),
        (Reason::SurveylabNotFound, 5, "SURVEYLAB_NOT_FOUND"),
        (Reason::SurveylabRateLimited, 6, "SURVEYLAB_RATE_LIMITED"),
        (Reason::SurveylabInternalError, 7, "SURVEYLAB_INTERNAL_ERROR"),
        (Reason::SurveylabUnavailable, 8, "SURVEYLAB_UNAVAILABLE"),
        (Reason::SurveylabUnexpectedStatus, 9, "SURVEYLAB_UNEXPECTED_STATUS"),
        (Reason::SurveylabUnreachable, 10, "SURVEYLAB_UNREACHABLE"),
        (Reason::OutcomeInDoubt, 11, "OUTCOME_IN_DOUBT"),
        (Reason::CrkReused, 12, "CRK_REUSED"),
        (Reason::WaitTooLong, 13, "WAIT_TOO_LONG"),
        (Reason::QueueFull, 14, "QUEUE_FULL"),
        (Reason::DeadlineAfterSend, 15, "DEADLINE_AFTER_SEND"),
        (Reason::ShuttingDown, 16, "SHUTTING_DOWN"),
        (Reason::LedgerUnavailable, 17, "LEDGER_UNAVAILABLE"),
    ];

    /// The reason as callers see it in `google.rpc.ErrorInfo`.
    pub fn as_str(self) -> &'static str {
        self.row().2
    }

    /// The number under which ledgers keep it.
    pub fn code(self) -> u8 {
        self.row().1
    }

    pub fn from_code(code: u8) -> Option<Self> {
        Self::ALL.iter().find(|row| row.1 == code).map(|row| row.0)
    }

    fn row(self) -> &'static (Reason, u8, &'static str) {
        // The table is in the order of the variants; a test holds it there.
        &Self::ALL[self as usize]
    }

    pub fn all() -> impl Iterator<Item = Self> {
        Self::ALL.iter().map(|row| row.0)
    }
}

/// Why a call failed, with all that the caller is told of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    pub reason: Reason,
    pub sent: Sent,
    /// SurveyLab's HTTP status, where it answered.
    pub http_status: Option<u16>,
    /// When a later try can help, counted from now.
    pub retry_after: Option<Duration>,
    /// SurveyLab's own words, where it said any.
    pub notification: Option<String>,
    /// The caller's own deadline passed, rather than being foreseen to pass.
    pub deadline_passed: bool,
    /// The key was in doubt before this call resent it, and still is: what became of the earlier request stays unknown.
    pub still_in_doubt: bool,
    /// The breaker is open: nothing was sent for this call, as so many answers in a row had this reason.
    pub turned_away_after: Option<u32>,
}

impl Failure {
    pub fn new(reason: Reason, sent: Sent) -> Self {
        Self {
            reason,
            sent,
            http_status: None,
            retry_after: None,
            notification: None,
            deadline_passed: false,
            still_in_doubt: false,
            turned_away_after: None,
        }
    }

    pub fn http_status(mut self, status: u16) -> Self {
        self.http_status = Some(status);
        self
    }

    pub fn retry_after(mut self, after: Duration) -> Self {
        self.retry_after = Some(after);
        self
    }
}
