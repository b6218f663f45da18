//! A thread that counts, once, what the ledger held at its start: beside all that goes on, as it reads a state from before
//! the first step, and the steps' own changes are summed up apart.
//!
//! As long as it reads, the WAL can't begin anew. Of 10^7 keys that are the seconds that it takes to read the file once.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use rusqlite::{Connection, InterruptHandle};
use tokio::sync::watch;

use super::file::describe;
use crate::{clock::Timestamp, ledger::census::Tally};

/// How often the thread is told to stop until it has: what interrupts a statement is lost between two of them.
const AGAIN: Duration = Duration::from_millis(5);

/// A connection that has begun to read.
pub(super) struct Snapshot(Connection);

impl Snapshot {
    /// Reads the ledger as it is now. To be called before the first step, and after the claims of dead processes are in doubt.
    pub(super) fn take(db: Connection) -> rusqlite::Result<Self> {
        db.execute_batch("BEGIN")?;
        // The state that is read is the one of the first statement.
        db.query_row("SELECT id FROM probe", [], |_| Ok(()))?;
        Ok(Self(db))
    }
}

/// The handle of the thread. Dropping it ends the counting.
pub(super) struct Counter {
    stop: Arc<AtomicBool>,
    statement: InterruptHandle,
    ended: watch::Receiver<()>,
    thread: Option<JoinHandle<()>>,
}

impl Counter {
    pub(super) fn spawn(Snapshot(db): Snapshot, tally: Arc<Tally>) -> io::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let statement = db.get_interrupt_handle();
        let (end, ended) = watch::channel(());
        let is_stopped = stop.clone();
        let thread = thread::Builder::new().name("ledger-count".into()).spawn(move || {
            let counted = count(&db, &tally, &is_stopped);
            drop(db);
            if let Err(error) = counted
                && !is_stopped.load(Ordering::Acquire)
            {
                let error = describe(&error);
                tracing::warn!(
                    error,
                    "the keys of the ledger can't be counted: their number is not told"
                );
            }
            drop(end);
        })?;
        Ok(Self {
            stop,
            statement,
            ended,
            thread: Some(thread),
        })
    }

    /// Ends the counting, and waits for the thread's end.
    pub(super) async fn stop(&self) {
        self.stop.store(true, Ordering::Release);
        let mut ended = self.ended.clone();
        loop {
            self.statement.interrupt();
            // Nothing is ever sent: this waits for the sender's drop at the thread's end.
            if tokio::time::timeout(AGAIN, ended.changed()).await.is_ok() {
                return;
            }
        }
    }
}

impl Drop for Counter {
    #[expect(
        clippy::disallowed_methods,
        reason = "the threads of the ledger are waited for here, too"
    )]
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        let Some(thread) = self.thread.take() else { return };
        while !thread.is_finished() {
            self.statement.interrupt();
            thread::sleep(AGAIN);
        }
        // It does not panic; if it did, there is nothing to do about it here.
        let _ = thread.join();
    }
}

fn count(db: &Connection, tally: &Tally, stop: &AtomicBool) -> rusqlite::Result<()> {
    // Those that were not added are few, and in an index of their own.
    let failed: i64 = db.query_row(
        "SELECT count(*) FROM invitation INDEXED BY invitation_not_added WHERE state = 3 AND state <> 2",
        [],
        |row| row.get(0),
    )?;
    let mut doubts =
        db.prepare("SELECT updated_at FROM invitation INDEXED BY invitation_not_added WHERE state = 4 AND state <> 2")?;
    let doubts: Vec<Timestamp> = doubts
        .query_map([], |row| row.get(0).map(Timestamp))?
        .collect::<Result<_, _>>()?;
    let not_added = failed.saturating_add(i64::try_from(doubts.len()).unwrap_or(i64::MAX));
    tally.count_not_added(failed, doubts);
    if stop.load(Ordering::Acquire) {
        return Ok(());
    }
    // SQLite counts the entries of each page and decodes none.
    let all: i64 = db.query_row("SELECT count(*) FROM invitation", [], |row| row.get(0))?;
    tally.count_added(all.saturating_sub(not_added));
    Ok(())
}
