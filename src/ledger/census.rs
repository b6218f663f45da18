//! How many keys stand in which state: kept by what each step changes, so that nobody has to count them again.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    sync::{Mutex, MutexGuard, PoisonError},
};

use super::State;
use crate::clock::Timestamp;

/// How many keys stand in which state, as [`Ledger::list`](super::Ledger::list) shows them. `None` is not known, or not yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Census {
    pub pending: Option<u64>,
    pub added: Option<u64>,
    pub failed: Option<u64>,
    pub in_doubt: Option<u64>,
    /// When the doubt began that has been open for longest; `None` also if there is none.
    pub oldest_doubt: Option<Timestamp>,
    /// Processes that share the ledger and are alive; `None` for a ledger that has one to itself.
    pub replicas: Option<u64>,
}

/// What one batch of steps changes.
#[derive(Debug, Default)]
pub(super) struct Change {
    pending: i64,
    added: i64,
    failed: i64,
    in_doubt: i64,
    /// Of each doubt: when it began, and whether it is one more or one less.
    doubts: Vec<(Timestamp, i64)>,
}

impl Change {
    /// A key that stands like this from now on. `since` counts where it is in doubt.
    pub(super) fn comes(&mut self, state: State, since: Timestamp) {
        self.step(state, since, 1);
    }

    /// A key that stands like this no more.
    pub(super) fn goes(&mut self, state: State, since: Timestamp) {
        self.step(state, since, -1);
    }

    fn step(&mut self, state: State, since: Timestamp, by: i64) {
        match state {
            State::Pending => self.pending += by,
            State::Added => self.added += by,
            State::Failed => self.failed += by,
            State::InDoubt => {
                self.in_doubt += by;
                self.doubts.push((since, by));
            }
        }
    }
}

/// The sums. Changes may come before what they change was counted.
#[derive(Debug, Default)]
pub(super) struct Tally {
    sums: Mutex<Sums>,
}

#[derive(Debug, Default)]
struct Sums {
    pending: i64,
    added: i64,
    failed: i64,
    in_doubt: i64,
    /// How many doubts began when. Less than none while the doubt itself is still to be counted.
    doubts: BTreeMap<Timestamp, i64>,
    /// What was there before the first change is counted: of those that failed or are in doubt, and of all.
    has_not_added: bool,
    has_all: bool,
}

impl Tally {
    /// Of a ledger that is empty.
    pub(super) fn of_nothing() -> Self {
        let tally = Self::default();
        tally.count_not_added(0, []);
        tally.count_added(0);
        tally
    }

    pub(super) fn apply(&self, change: &Change) {
        let mut sums = self.lock();
        sums.pending += change.pending;
        sums.added += change.added;
        sums.failed += change.failed;
        sums.in_doubt += change.in_doubt;
        for (began, by) in &change.doubts {
            sums.doubt(*began, *by);
        }
    }

    /// What had failed, and when the doubts began that were open, before the first change.
    pub(super) fn count_not_added(&self, failed: i64, doubts: impl IntoIterator<Item = Timestamp>) {
        let mut sums = self.lock();
        sums.failed += failed;
        for began in doubts {
            sums.in_doubt += 1;
            sums.doubt(began, 1);
        }
        sums.has_not_added = true;
    }

    /// What had been added before the first change.
    pub(super) fn count_added(&self, added: i64) {
        let mut sums = self.lock();
        sums.added += added;
        sums.has_all = true;
    }

    pub(super) fn census(&self) -> Census {
        let sums = self.lock();
        let known = |is_known: bool, sum: i64| is_known.then(|| u64::try_from(sum).unwrap_or_default());
        Census {
            pending: known(true, sums.pending),
            added: known(sums.has_all, sums.added),
            failed: known(sums.has_not_added, sums.failed),
            in_doubt: known(sums.has_not_added, sums.in_doubt),
            oldest_doubt: sums
                .doubts
                .first_key_value()
                .map(|(began, _)| *began)
                .filter(|_| sums.has_not_added),
            replicas: None,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Sums> {
        // Sums that a panic left half changed are off by one, and still better than none.
        self.sums.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Sums {
    fn doubt(&mut self, began: Timestamp, by: i64) {
        match self.doubts.entry(began) {
            Entry::Vacant(entry) => {
                entry.insert(by);
            }
            Entry::Occupied(mut entry) => {
                *entry.get_mut() += by;
                if *entry.get() == 0 {
                    entry.remove();
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ended(began: i64) -> Change {
        let mut change = Change::default();
        change.goes(State::InDoubt, Timestamp(began));
        change.comes(State::Added, Timestamp(99));
        change
    }

    #[test]
    fn nothing_is_told_before_it_is_counted() {
        let tally = Tally::default();
        // Of what is still to be counted.
        tally.apply(&ended(5));
        let expected = Census {
            pending: Some(0),
            ..Census::default()
        };
        assert_eq!(tally.census(), expected);
        tally.count_not_added(7, [5, 3, 3].map(Timestamp));
        let expected = Census {
            failed: Some(7),
            in_doubt: Some(2),
            oldest_doubt: Some(Timestamp(3)),
            ..expected
        };
        assert_eq!(tally.census(), expected);
        tally.count_added(1000);
        let expected = Census {
            added: Some(1001),
            ..expected
        };
        assert_eq!(tally.census(), expected);
    }

    #[test]
    fn the_oldest_doubt_is_the_oldest_that_is_left() {
        let tally = Tally::default();
        tally.count_not_added(0, [3, 3, 5].map(Timestamp));
        let oldest = || tally.census().oldest_doubt;
        for left in [Some(3), Some(5)] {
            tally.apply(&ended(3));
            assert_eq!(oldest(), left.map(Timestamp));
        }
        tally.apply(&ended(5));
        assert_eq!((oldest(), tally.census().in_doubt), (None, Some(0)));
    }
}
