//! Works what is in the WAL into the database, beside the writer instead of within somebody's commit.
//!
//! SQLite's own checkpoint runs in the commit that makes the WAL too long, and all who claim or settle wait for it: 16 000
//! pages took some 150 ms. Here a thread of its own does nearly all of that, a little at a time; the rest is done within a
//! commit, as the WAL can only begin anew when nothing is left of it.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicI32, Ordering},
    },
    thread::{self, JoinHandle, Thread},
    time::Duration,
};

use rusqlite::{Connection, hooks::Wal};
use tokio::sync::watch;

use super::identity::Files;

/// New pages in the WAL for which it is worth a pass.
const STEP: i32 = 200;
/// Between two passes, at least. What a pass writes goes to the disk at once, and the commits' syncs wait behind it: many
/// small ones hold nobody up for long. At 500 calls a second on 10^7 keys the p99 of a call was 7 ms, with 250 ms 15.
const EVERY: Duration = Duration::from_millis(100);
/// A pass of so many pages is one under load, where calls wait for each other anyway and the same pages change again and
/// again. Then rarer passes write less: with 100 ms a call took 15 % more CPU time.
const BUSY: i32 = 1_000;
const EVERY_BUSY: Duration = Duration::from_millis(400);
/// Pages in the WAL from which on it is to begin anew.
const LONG: i32 = 10_000;
/// From here on every commit tries, which bounds the WAL where the thread falls behind or has failed.
pub(super) const FULL: i32 = 16_000;
/// What is left to a commit: a few milliseconds.
const REST: i32 = 250;
/// Where the writer is faster than that, it has to help.
const PASSES: u32 = 4;

/// What the writer's commits and the thread tell each other.
#[derive(Clone)]
pub(super) struct Checkpoints {
    state: Arc<State>,
    thread: Thread,
}

#[derive(Default)]
struct State {
    /// The thread is to begin.
    due: AtomicBool,
    /// Pages in the WAL that the thread has worked off.
    done: AtomicI32,
    /// The next commit is to do the rest.
    rest: AtomicBool,
    stop: AtomicBool,
}

/// The handle of the thread. Dropping it waits for its end.
pub(super) struct Checkpointer {
    checkpoints: Checkpoints,
    ended: watch::Receiver<()>,
    thread: Option<JoinHandle<()>>,
}

impl Checkpointer {
    pub(super) fn spawn(files: Arc<Files>, mut db: Connection) -> io::Result<Self> {
        let state = Arc::new(State::default());
        let (end, ended) = watch::channel(());
        let of_thread = state.clone();
        let thread = thread::Builder::new().name("ledger-work-off".into()).spawn(move || {
            while !of_thread.stop.load(Ordering::Acquire) {
                if !of_thread.due.load(Ordering::Acquire) {
                    thread::park();
                    continue;
                }
                let wait = match work_off(&files, &db, &of_thread) {
                    Ok(pages) if pages >= BUSY => EVERY_BUSY,
                    Ok(_) => EVERY,
                    Err(_) => {
                        // A commit will meet what is wrong, and tell. What may be wrong with this connection ends with it.
                        if let Ok(another) = files.connect() {
                            db = another;
                        }
                        EVERY
                    }
                };
                // Also ends early when the thread is to stop.
                thread::park_timeout(wait);
                of_thread.due.store(false, Ordering::Release);
            }
            drop(db);
            drop(end);
        })?;
        Ok(Self {
            checkpoints: Checkpoints {
                state,
                thread: thread.thread().clone(),
            },
            ended,
            thread: Some(thread),
        })
    }

    pub(super) fn checkpoints(&self) -> Checkpoints {
        self.checkpoints.clone()
    }

    /// Lets the thread finish its pass, and waits for its end.
    pub(super) async fn stop(&self) {
        self.checkpoints.stop();
        // Nothing is ever sent: this waits for the sender's drop at the thread's end.
        let _ = self.ended.clone().changed().await;
    }
}

impl Drop for Checkpointer {
    fn drop(&mut self) {
        self.checkpoints.stop();
        if let Some(thread) = self.thread.take() {
            // It does not panic; if it did, there is nothing to do about it here.
            let _ = thread.join();
        }
    }
}

impl Checkpoints {
    /// Has the commits of a connection see to the WAL, in place of SQLite's own checkpoints.
    pub(super) fn attach(&self, db: &mut Connection) -> rusqlite::Result<()> {
        let checkpoints = self.clone();
        db.wal_hook(Some(move |wal: &mut Wal, pages| {
            checkpoints.committed(wal, pages);
            // An error would be told to those whose steps were just committed.
            Ok(())
        }))
    }

    fn committed(&self, wal: &mut Wal, pages: i32) {
        let state = &self.state;
        if state.rest.swap(false, Ordering::AcqRel) || pages >= FULL {
            // It fails while the thread is at it; what else it may fail for, the next commit meets too.
            let _ = wal.checkpoint();
        }
        let new = new(pages, state.done.load(Ordering::Acquire));
        if new >= STEP && !state.due.load(Ordering::Acquire) && !state.due.swap(true, Ordering::AcqRel) {
            self.thread.unpark();
        }
    }

    fn stop(&self) {
        self.state.stop.store(true, Ordering::Release);
        self.thread.unpark();
    }
}

/// One pass; of a long WAL as many as it takes until little is left, or the writer is needed for it. Tells how many pages the
/// first one found.
fn work_off(files: &Files, db: &Connection, state: &State) -> rusqlite::Result<i32> {
    let mut found = None;
    for _ in 0..PASSES {
        if state.stop.load(Ordering::Acquire) || files.verify().is_err() {
            return Ok(0);
        }
        let done = pages(db, "PASSIVE")?.worked_off;
        let before = state.done.swap(done, Ordering::AcqRel);
        let found = *found.get_or_insert(new(done, before));
        let now = pages(db, "NOOP")?;
        if now.in_wal < LONG {
            return Ok(found);
        }
        if now.in_wal - now.worked_off < REST {
            break;
        }
    }
    state.rest.store(true, Ordering::Release);
    Ok(found.unwrap_or_default())
}

/// How many pages are new of those in the WAL: all, if there are fewer than before, as then it has begun anew.
fn new(pages: i32, before: i32) -> i32 {
    if pages < before { pages } else { pages - before }
}

struct Pages {
    in_wal: i32,
    worked_off: i32,
}

fn pages(db: &Connection, mode: &str) -> rusqlite::Result<Pages> {
    db.query_row(&format!("PRAGMA wal_checkpoint({mode})"), [], |row| {
        Ok(Pages {
            in_wal: row.get(1)?,
            worked_off: row.get(2)?,
        })
    })
}
