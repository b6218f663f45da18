//! How long this process may count on being taken for alive.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use super::id::Id;
use crate::{
    clock::{Clock, Instant},
    ledger::Fence,
};

/// A moment by both clocks. The monotonic one may stand still while a machine sleeps, the wall clock may be set back:
/// what has passed is the more of both. A wall clock that was set forward costs a lease, and nothing else.
#[derive(Clone, Copy)]
pub(super) struct Moment {
    monotonic: Instant,
    wall: SystemTime,
}

/// How much of a lease is left at least when a request may go out: for what lies between that answer and the request's first
/// byte, and for clocks that drift.
pub fn margin(lease: Duration) -> Duration {
    lease / 5
}

/// The process's lease on its claims, as far as the process itself can know it.
pub(super) struct Lease {
    clock: Clock,
    /// How long the database lets it run after each heartbeat.
    pub length: Duration,
    held: Mutex<Held>,
}

/// Who this process is to the others, for as long as it keeps one lease.
#[derive(Clone, Copy)]
pub(super) struct Holder {
    pub replica: Id,
    /// Counts the names that this process has had.
    pub fence: Fence,
}

struct Held {
    holder: Holder,
    since: Option<Moment>,
}

impl Lease {
    pub(super) fn new(clock: Clock, length: Duration) -> Self {
        let holder = Holder {
            replica: Id::random(),
            fence: Fence::default(),
        };
        let held = Mutex::new(Held { holder, since: None });
        Self { clock, length, held }
    }

    pub(super) fn moment(&self) -> Moment {
        Moment {
            monotonic: self.clock.now(),
            wall: self.clock.wall(),
        }
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        // No step leaves it half changed, even if it panics.
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The database has confirmed the lease by a heartbeat that was sent at `since`, and so runs it from then or later.
    pub(super) fn hold(&self, replica: Id, since: Moment) {
        let mut held = self.held();
        if held.holder.replica != replica {
            let fence = Fence(held.holder.fence.0 + 1);
            held.holder = Holder { replica, fence };
        }
        held.since = Some(since);
    }

    /// Who this process was when it last knew, whether or not it still is.
    pub(super) fn last(&self) -> Holder {
        self.held().holder
    }

    /// Who this process is; `None` once others may take it for dead.
    pub(super) fn holder(&self) -> Option<Holder> {
        let held = self.held();
        let passed = self.passed(held.since?);
        (passed < self.length - margin(self.length)).then_some(held.holder)
    }

    fn passed(&self, since: Moment) -> Duration {
        let monotonic = self.clock.now().saturating_duration_since(since.monotonic);
        let wall = self.clock.wall().duration_since(since.wall).unwrap_or_default();
        monotonic.max(wall)
    }

    /// Nothing is sent or claimed any more.
    pub(super) fn give_up(&self) {
        self.held().since = None;
    }
}
