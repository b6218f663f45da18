//! What the status page shows of the ledger: open doubts, and who shares it.
//!
//! However many pages are open, and however long the ledger takes: one read at a time, and none while a late one is fresh.
//! A ledger that hangs leaves the page with what was read before, and the page says so.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::{Notify, watch},
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use crate::{
    clock::Instant,
    ledger::{self, Ledger, Query, Record, Replica, State},
};

/// A read is shown for so long before another one is made.
const FRESH: Duration = Duration::from_secs(3);
/// Who asks waits for so long for a read that is under way, counted from its beginning.
const PATIENCE: Duration = Duration::from_secs(1);
/// As many doubts are read; whether there are more is known, but not how many.
const READ: usize = 1000;
/// As many are shown.
const SHOWN: usize = 20;

/// What one read found.
#[derive(Clone, Debug)]
pub struct Found {
    pub at: Instant,
    /// The oldest of those that were read, the oldest first.
    pub doubts: Vec<Record>,
    /// As many as were read.
    pub doubts_read: usize,
    /// There are more than those.
    pub more_doubts: bool,
    pub replicas: Vec<Replica>,
}

/// What is to be shown now.
#[derive(Clone, Debug)]
pub struct Holdings {
    /// `None` until a read has succeeded.
    pub found: Option<Arc<Found>>,
    /// Why it is not fresh, for people.
    pub problem: Option<String>,
}

/// Cheap to clone: all clones are one.
#[derive(Clone)]
pub struct Reading {
    shared: Arc<Shared>,
}

struct Shared {
    ledger: Arc<dyn Ledger>,
    wanted: Notify,
    /// Of the read that is under way.
    begun: Mutex<Option<Instant>>,
    latest: watch::Sender<Latest>,
}

#[derive(Clone, Default)]
struct Latest {
    /// When the last read ended, whatever it came to.
    at: Option<Instant>,
    found: Option<Arc<Found>>,
    failed: Option<String>,
}

impl Latest {
    fn is_fresh(&self) -> bool {
        self.at.is_some_and(|at| at.elapsed() < FRESH)
    }
}

impl Reading {
    pub fn new(ledger: Arc<dyn Ledger>) -> Self {
        Self {
            shared: Arc::new(Shared {
                ledger,
                wanted: Notify::new(),
                begun: Mutex::new(None),
                latest: watch::Sender::new(Latest::default()),
            }),
        }
    }

    /// Reads when it is asked to, until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        let work = async {
            loop {
                self.shared.wanted.notified().await;
                if self.shared.latest.borrow().is_fresh() {
                    continue;
                }
                *self.begun() = Some(Instant::now());
                let found = self.read().await;
                let ended = Instant::now();
                self.shared.latest.send_modify(|latest| {
                    latest.at = Some(ended);
                    match found {
                        Ok(found) => {
                            latest.found = Some(Arc::new(found));
                            latest.failed = None;
                        }
                        // It says by itself that it is the ledger.
                        Err(error) => latest.failed = Some(error.to_string()),
                    }
                });
                *self.begun() = None;
            }
        };
        let _stopped = stop.run_until_cancelled(work).await;
    }

    /// What is known, read anew if it is not fresh. Ends within a second, whatever the ledger does.
    pub async fn now(&self) -> Holdings {
        let mut latest = self.shared.latest.subscribe();
        if !latest.borrow().is_fresh() {
            self.shared.wanted.notify_one();
            // Not again for those who come while it hangs.
            let silent = self.silent_for();
            let read = latest.wait_for(Latest::is_fresh);
            let _late = timeout(PATIENCE.saturating_sub(silent), read).await;
        }
        let latest = self.shared.latest.borrow().clone();
        let problem = if latest.is_fresh() {
            latest.failed
        } else {
            let silent = self.silent_for().as_secs().max(1);
            Some(format!("the ledger has not answered for {silent} s"))
        };
        Holdings {
            found: latest.found,
            problem,
        }
    }

    /// For how long the read under way has been going on.
    fn silent_for(&self) -> Duration {
        self.begun().map_or(Duration::ZERO, |begun| begun.elapsed())
    }

    async fn read(&self) -> Result<Found, ledger::Error> {
        let query = Query {
            state: Some(State::InDoubt),
            limit: READ + 1,
            ..Query::default()
        };
        let (doubts, replicas) = tokio::try_join!(self.shared.ledger.list(query), self.shared.ledger.replicas())?;
        Ok(Found::of(doubts, replicas))
    }

    fn begun(&self) -> MutexGuard<'_, Option<Instant>> {
        self.shared.begun.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Found {
    fn of(mut doubts: Vec<Record>, replicas: Vec<Replica>) -> Self {
        let more_doubts = doubts.len() > READ;
        doubts.truncate(READ);
        let doubts_read = doubts.len();
        doubts.sort_by_key(|record| record.updated_at);
        doubts.truncate(SHOWN);
        Self {
            at: Instant::now(),
            doubts,
            doubts_read,
            more_doubts,
            replicas,
        }
    }
}

#[cfg(test)]
mod tests;
