use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::clock::Instant;

/// Where a request stands among all who came. It keeps that place when it comes back with it.
#[derive(Debug, Default)]
pub struct Arrival(Mutex<Option<Place>>);

#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pub number: u64,
    /// When its turn comes, going by the rate and those who went before it; where it had a bound to be held against that.
    pub expected: Option<Instant>,
}

impl Arrival {
    /// The next time it comes it stands behind all who wait then.
    pub fn forget(&self) {
        *self.lock() = None;
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Option<Place>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
