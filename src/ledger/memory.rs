//! A ledger that forgets everything with its process: for tests and trials.

use std::{
    collections::BTreeMap,
    future::ready,
    ops::Bound,
    sync::{Mutex, MutexGuard, PoisonError},
};

use futures_util::future::{BoxFuture, FutureExt};

use super::{
    Census, Claim, Claimed, Error, Fence, Ledger, Query, Record, Resolution, Resolved, Settlement, State,
    census::{Change, Tally},
    rules,
};
use crate::{clock::Timestamp, invitation::Key};

/// Every method is done under one lock, which no future holds across an await.
pub struct Memory {
    entries: Mutex<BTreeMap<Key, Entry>>,
    tally: Tally,
}

impl Default for Memory {
    fn default() -> Self {
        Self {
            entries: Mutex::default(),
            tally: Tally::of_nothing(),
        }
    }
}

/// A claim lies over what was known before it, so that a release uncovers that again. At least one of both is there.
#[derive(Default)]
struct Entry {
    settled: Option<Record>,
    pending: Option<Record>,
}

impl Entry {
    fn shown(&self) -> Option<&Record> {
        self.pending.as_ref().or(self.settled.as_ref())
    }
}

impl Memory {
    pub fn new() -> Self {
        Self::default()
    }

    fn entries(&self) -> MutexGuard<'_, BTreeMap<Key, Entry>> {
        // No step leaves an entry half changed, even if it panics.
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn claim_now(&self, claim: Claim) -> Claimed {
        let mut entries = self.entries();
        let known = entries.get(&claim.key).and_then(Entry::shown);
        let grant = match rules::grant(known, &claim) {
            Ok(grant) => grant,
            Err(record) => return Claimed::No(record.clone()),
        };
        let mut change = Change::default();
        if let Some(known) = known {
            change.goes(known.state, known.updated_at);
        }
        change.comes(State::Pending, claim.at);
        self.tally.apply(&change);
        let record = Record {
            key: claim.key.clone(),
            fingerprint: claim.fingerprint,
            state: State::Pending,
            attempts: grant.attempts,
            created_at: grant.created_at,
            updated_at: claim.at,
            added_at: None,
            last_error: None,
            notification: None,
        };
        entries.entry(claim.key).or_default().pending = Some(record);
        Claimed::Yes {
            attempts: grant.attempts,
            was_in_doubt: grant.was_in_doubt,
            fence: Fence::default(),
        }
    }

    fn settle_now(&self, key: &Key, settlement: Settlement, at: Timestamp) {
        let mut entries = self.entries();
        let Some(entry) = entries.get_mut(key) else { return };
        let Some(pending) = entry.pending.take() else { return };
        let settled = rules::Settled::from(settlement);
        let mut change = Change::default();
        change.goes(State::Pending, pending.updated_at);
        change.comes(settled.state, at);
        self.tally.apply(&change);
        entry.settled = Some(Record {
            state: settled.state,
            created_at: rules::created_at(pending.created_at, at),
            updated_at: at,
            added_at: (settled.state == State::Added).then_some(at),
            last_error: settled.last_error,
            notification: settled.notification,
            ..pending
        });
    }

    fn release_now(&self, key: &Key) {
        let mut entries = self.entries();
        let Some(entry) = entries.get_mut(key) else { return };
        let Some(pending) = entry.pending.take() else { return };
        let mut change = Change::default();
        change.goes(State::Pending, pending.updated_at);
        match &entry.settled {
            Some(settled) => change.comes(settled.state, settled.updated_at),
            None => drop(entries.remove(key)),
        }
        self.tally.apply(&change);
    }

    fn resolve_now(&self, key: &Key, resolution: Resolution, at: Timestamp) -> Resolved {
        let mut entries = self.entries();
        let Some(entry) = entries.get_mut(key) else {
            return Resolved::NotFound;
        };
        match (&entry.pending, &mut entry.settled) {
            (None, Some(record)) if record.state == State::InDoubt => {
                let mut change = Change::default();
                change.goes(record.state, record.updated_at);
                rules::resolve(record, resolution, at);
                change.comes(record.state, at);
                self.tally.apply(&change);
                Resolved::Done(record.clone())
            }
            (Some(record), _) => Resolved::NotInDoubt(record.clone()),
            (None, Some(record)) => Resolved::NotInDoubt(record.clone()),
            (None, None) => Resolved::NotFound,
        }
    }

    fn list_now(&self, query: &Query) -> Vec<Record> {
        let first = query.collector_id.as_deref().map(|id| Key::new(id, ""));
        let start = match (&query.after, &first) {
            (Some(after), Some(first)) if after < first => Bound::Included(first),
            (Some(after), _) => Bound::Excluded(after),
            (None, Some(first)) => Bound::Included(first),
            (None, None) => Bound::Unbounded,
        };
        self.entries()
            .range((start, Bound::Unbounded))
            .take_while(|(key, _)| query.collector_id.as_deref().is_none_or(|id| key.collector_id() == id))
            .filter_map(|(_, entry)| entry.shown())
            .filter(|record| query.state.is_none_or(|state| record.state == state))
            .take(query.limit)
            .cloned()
            .collect()
    }
}

impl Ledger for Memory {
    fn look_up(&self, key: &Key) -> BoxFuture<'_, Result<Option<Record>, Error>> {
        let key = key.clone();
        async move { Ok(self.entries().get(&key).and_then(Entry::shown).cloned()) }.boxed()
    }

    fn claim(&self, claim: Claim) -> BoxFuture<'_, Result<Claimed, Error>> {
        async move { Ok(self.claim_now(claim)) }.boxed()
    }

    fn settle(&self, key: &Key, settlement: Settlement, at: Timestamp) -> BoxFuture<'_, Result<(), Error>> {
        let key = key.clone();
        async move {
            self.settle_now(&key, settlement, at);
            Ok(())
        }
        .boxed()
    }

    fn release(&self, key: &Key) -> BoxFuture<'_, Result<(), Error>> {
        let key = key.clone();
        async move {
            self.release_now(&key);
            Ok(())
        }
        .boxed()
    }

    fn resolve(&self, key: &Key, resolution: Resolution, at: Timestamp) -> BoxFuture<'_, Result<Resolved, Error>> {
        let key = key.clone();
        async move { Ok(self.resolve_now(&key, resolution, at)) }.boxed()
    }

    fn list(&self, query: Query) -> BoxFuture<'_, Result<Vec<Record>, Error>> {
        async move { Ok(self.list_now(&query)) }.boxed()
    }

    fn check(&self) -> BoxFuture<'_, Result<(), Error>> {
        ready(Ok(())).boxed()
    }

    fn census(&self) -> Census {
        self.tally.census()
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        ready(()).boxed()
    }
}
