//! Named places at which tests have the process end as SIGKILL would end it: between two lines where a crash by chance
//! hardly ever comes. Only builds with debug assertions have them; in a release build they are nothing.

/// A place that the process can be told not to get past.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// A permit is given; the key is not claimed yet.
    BeforeClaim,
    /// The claim is durable; no token is taken yet.
    AfterClaim,
    /// The token is taken, and the request is about to go out.
    BeforeSend,
    /// SurveyLab has answered; the outcome is not recorded yet.
    AfterAnswer,
    /// The outcome is durable; nobody has been told.
    AfterSettle,
    /// The ledger's writer has run a batch, and not committed it.
    BeforeCommit,
    /// The batch is committed; nobody has been told.
    AfterCommit,
    /// A ledger is opened; what a dead process had claimed is still pending.
    BeforeRecovery,
    /// It was put in doubt, in a transaction that is not committed.
    WithinRecovery,
    /// It is committed; nothing is served yet.
    AfterRecovery,
}

impl Place {
    pub const ALL: [Self; 10] = [
        Self::BeforeClaim,
        Self::AfterClaim,
        Self::BeforeSend,
        Self::AfterAnswer,
        Self::AfterSettle,
        Self::BeforeCommit,
        Self::AfterCommit,
        Self::BeforeRecovery,
        Self::WithinRecovery,
        Self::AfterRecovery,
    ];
}

/// Ends the process here if [`VARIABLE`] says so: `AfterClaim:3` means when this place is reached the third time.
pub fn reached(place: Place) {
    if cfg!(debug_assertions) {
        armed::reached(place);
    }
}

pub const VARIABLE: &str = "SURVEYLAB_GATEWAY_END_AT";

mod armed {
    use std::{
        env, process,
        sync::{
            LazyLock,
            atomic::{AtomicU64, Ordering},
        },
    };

    use super::{Place, VARIABLE};

    static PLAN: LazyLock<Option<(String, AtomicU64)>> = LazyLock::new(|| {
        let plan = env::var(VARIABLE).ok()?;
        let (place, times) = plan.split_once(':')?;
        Some((place.into(), AtomicU64::new(times.parse().ok()?)))
    });

    pub fn reached(place: Place) {
        let Some((planned, left)) = &*PLAN else { return };
        if *planned == format!("{place:?}") && left.fetch_sub(1, Ordering::SeqCst) == 1 {
            // Like SIGKILL: no destructor runs, no buffer is written.
            process::abort();
        }
    }
}
