//! How long this process may count on being taken for alive.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use super::id::Id;
use crate::clock::{Clock, Instant};

/// A moment by both clocks. The monotonic one may stand still while a machine sleeps, the wall clock may be set back:
/// what has passed is the more of both. A wall clock that was set forward costs a lease, and nothing else.
#[derive(Clone, Copy)]
pub(super) struct Moment {
    monotonic: Instant,
    wall: SystemTime,
}

/// The process's lease on its claims, as far as the process itself can know it.
pub(super) struct Lease {
    clock: Clock,
    /// How long the database lets it run after each heartbeat.
    pub length: Duration,
    held: Mutex<Held>,
}

struct Held {
    replica: Id,
    since: Option<Moment>,
}

impl Lease {
    pub(super) fn new(clock: Clock, length: Duration) -> Self {
        let held = Mutex::new(Held {
            replica: Id::random(),
            since: None,
        });
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
        *self.held() = Held {
            replica,
            since: Some(since),
        };
    }

    /// Who this process was when it last knew, whether or not it still is.
    pub(super) fn last(&self) -> Id {
        self.held().replica
    }

    /// Who this process is; `None` once others may take it for dead.
    pub(super) fn replica(&self) -> Option<Id> {
        let held = self.held();
        let passed = self.passed(held.since?);
        // A fifth of it for what lies between this answer and a request's first byte, and for clocks that drift.
        (passed < self.length - self.length / 5).then_some(held.replica)
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
