//! The durable memory of keys: what was claimed, what became of it.
//!
//! [`Ledger`] is the contract; its documentation binds every backend, and `conformance` holds each to it.

pub mod memory;
pub mod moving;
pub mod postgres;
pub mod sqlite;

mod census;
#[cfg(test)]
mod conformance;
mod rules;

pub use census::Census;

use std::{future::ready, time::Duration};

use futures_util::future::BoxFuture;

use crate::{
    clock::Timestamp,
    invitation::{Fingerprint, Key, Reason},
};

/// Where a key stands. The numbers are kept on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum State {
    /// Claimed: a request may be on the wire, nothing else.
    Pending = 1,
    /// Confirmed by SurveyLab. Final.
    Added = 2,
    /// Refused or never processed. The key is free, also for other data.
    Failed = 3,
    /// A request may have had an effect and nobody knows. Held until a caller resends on purpose or a person resolves it.
    InDoubt = 4,
}

/// The last failure of a key, as much of it as is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LastError {
    pub reason: Reason,
    pub http_status: Option<u16>,
}

/// All that is known of one key. Holds no personal data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    pub key: Key,
    pub fingerprint: Fingerprint,
    pub state: State,
    /// Claims so far, the present one included: requests made to SurveyLab for this key.
    pub attempts: u32,
    /// When the key was first claimed. Never after `updated_at`: where the clock was set back in between, the same.
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
    /// Set exactly when `Added`.
    pub added_at: Option<Timestamp>,
    /// Set when `Failed` or `InDoubt`, unless a later version of the gateway wrote a reason that this one doesn't know.
    pub last_error: Option<LastError>,
    /// SurveyLab's words with the answer that made the key `Added` or `Failed`, free of personal data.
    pub notification: Option<String>,
}

/// What to do with a key that is in doubt when it is claimed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Doubt {
    Hold,
    Resend,
}

/// A wish to send a request.
#[derive(Clone, Debug)]
pub struct Claim {
    pub key: Key,
    pub fingerprint: Fingerprint,
    pub doubt: Doubt,
    pub at: Timestamp,
}

/// Which of its process's leases a claim was made under. A ledger that has one process to itself has one for all claims.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fence(u64);

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Claimed {
    /// The key is `Pending` and the caller's to settle or release.
    Yes {
        attempts: u32,
        /// The key was in doubt before, so an earlier request may have had an effect.
        was_in_doubt: bool,
        /// What [`Ledger::may_send`] is asked with.
        fence: Fence,
    },
    /// Nothing changed: the key is not free. The record says why.
    No(Record),
}

/// How a claimed key is to stand from now on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Settlement {
    Added {
        notification: String,
    },
    Failed {
        error: LastError,
        notification: Option<String>,
    },
    InDoubt {
        error: LastError,
    },
}

/// What a person found out about a key in doubt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resolution {
    Added,
    NotAdded,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Resolved {
    Done(Record),
    NotInDoubt(Record),
    NotFound,
}

/// Which records a listing is to hold: those after `after` in the order of keys, that match.
#[derive(Clone, Debug, Default)]
pub struct Query {
    pub collector_id: Option<String>,
    pub state: Option<State>,
    pub after: Option<Key>,
    pub limit: usize,
}

/// One of the processes that share a ledger.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Replica {
    pub id: String,
    /// What people know it by: its host and process.
    pub name: String,
    pub started_at: Timestamp,
    /// What is left of its lease, by the ledger's clock; zero once the others may take it for dead.
    pub lease_left: Duration,
    /// It is this process.
    pub is_own: bool,
}

/// The ledger could not do what it was asked; nothing changed, as far as it can tell.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It can't read or write now: disk full, read-only, database away. A later try can help.
    #[error("the ledger is unavailable: {0}")]
    Unavailable(String),
    /// Another process owns it.
    #[error("{0}")]
    InUse(String),
    /// It can't be opened as it is: another version wrote it, it is not a ledger, there is no such directory.
    #[error("{0}")]
    Unusable(String),
}

impl Error {
    fn closed() -> Self {
        Self::Unavailable("it is closed".into())
    }
}

/// The contract of every backend.
///
/// - **Atomic.** Each method is one step: it happens whole or not at all, and in some order with all others.
/// - **Durable.** `claim`, `settle`, `release` and `resolve` answer `Ok` only when their effect would survive a crash
///   and a loss of power (`memory` excepted). A `look_up` or `list` that begins after such an answer sees its effect.
/// - **Errors change nothing,** as far as the process that got them can tell: what was claimed stays claimed. After a
///   crash, an operation that had failed may turn out done; that is safe for `claim` (the key comes back in doubt),
///   and a failed `settle` is to be called again until it answers.
/// - **Cancelling** a returned future does not cancel a step that was begun: once polled, it may happen or not, whole.
///   Who must know waits for the answer.
/// - **Crash.** Opening a ledger turns each `Pending` key of a dead process into `InDoubt` with
///   [`Reason::OutcomeInDoubt`], before anything else is answered. Where several processes share a ledger, one is dead
///   when its lease has run out; whichever of the others notices does this, within a second.
/// - **Leases.** Where several processes share a ledger, each may send only while it holds the lease that the claim was made
///   under: right before a request goes out, [`may_send`](Ledger::may_send) is asked. A claim whose lease was lost may be
///   in doubt by now, and sent again by others, also if its process has a new lease; settling it then ends that doubt,
///   unless a person or another claim came first. `Added` goes before a person's "not added", where no claim came since.
///   Releasing it makes the key unknown again if this was its first claim, and else leaves the doubt.
/// - **Backpressure.** Callers wait; no method fails for load alone.
pub trait Ledger: Send + Sync + 'static {
    /// What is known of a key; `None` if it was never claimed.
    fn look_up(&self, key: &Key) -> BoxFuture<'_, Result<Option<Record>, Error>>;

    /// Makes the key `Pending` and counts an attempt, if the key is free: unknown, `Failed` (then with any data), or
    /// `InDoubt` with the same fingerprint and [`Doubt::Resend`]. Otherwise changes nothing and tells the record.
    fn claim(&self, claim: Claim) -> BoxFuture<'_, Result<Claimed, Error>>;

    /// Ends a claim with its outcome. The caller holds the claim. A key that is not `Pending` stays as it is, so that
    /// calling again does no harm.
    fn settle(&self, key: &Key, settlement: Settlement, at: Timestamp) -> BoxFuture<'_, Result<(), Error>>;

    /// Ends a claim under which nothing was sent: the key is again what it was before, attempts included. A key that is
    /// not `Pending` stays as it is.
    fn release(&self, key: &Key) -> BoxFuture<'_, Result<(), Error>>;

    /// Ends a doubt: `Added` (with `added_at` = `at`) or `Failed` (which keeps the error that led to the doubt). Any other
    /// state stays as it is.
    fn resolve(&self, key: &Key, resolution: Resolution, at: Timestamp) -> BoxFuture<'_, Result<Resolved, Error>>;

    /// Records in the order of [`Key`], at most `limit`. Paging by the last key seen survives inserts: no record is
    /// shown twice, and none that was there all the time is passed over.
    fn list(&self, query: Query) -> BoxFuture<'_, Result<Vec<Record>, Error>>;

    /// Could a claim be made durable now? Tells what a monitor asks; may try a write that changes no record.
    fn check(&self) -> BoxFuture<'_, Result<(), Error>>;

    /// How many keys stand in which state. Answers at once, from what this process keeps: it asks neither the disk nor another
    /// process, so it also answers while those hang.
    ///
    /// Exact, with all steps that were answered before, where one process has the ledger to itself; what was there at its start
    /// is counted in the background, and not told before. Where several processes share a ledger, it is as of some time ago,
    /// 20 s at most while the ledger answers; `added` and `failed` are estimates then.
    fn census(&self) -> Census;

    /// May a request go out now under a claim of this process that has this fence? False once others may take this process
    /// for dead, and the claim be in doubt: by clocks of this process alone, so that the answer costs nothing, and with a
    /// margin. It may turn true again while nobody has taken it for dead, and never after. A ledger that has one process
    /// to itself always says yes.
    fn may_send(&self, _fence: Fence) -> bool {
        true
    }

    /// Waits until the claim that another process has on the key has ended, however that is; returns at once if there is
    /// none. Then a `look_up` tells what became of it. Waits for as long as that takes, so a caller bounds it.
    fn settled(&self, _key: &Key) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(ready(Ok(())))
    }

    /// The processes that share the ledger, the longest-running first, and not more than a few dozen of them; none where it
    /// has one process to itself.
    fn replicas(&self) -> BoxFuture<'_, Result<Vec<Replica>, Error>> {
        Box::pin(ready(Ok(Vec::new())))
    }

    /// Ends what runs in the background and gives the ledger free for another process. Steps begun before are finished;
    /// later ones answer [`Error::Unavailable`] where there is something to close. `Pending` keys stay `Pending` until the
    /// ledger is opened again, which puts them in doubt; where other processes use it they are put in doubt now.
    fn close(&self) -> BoxFuture<'_, ()>;
}
