//! A thread that owns one connection and serves what is asked of it in batches, each batch one transaction.
//!
//! For writes this is group commit: the callers of a batch share its sync. For reads it spares each look-up its own
//! transaction, and its own hop to a thread when many are asked at once.

use std::{
    io, mem,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
};

use rusqlite::Connection;
use tokio::sync::{mpsc, oneshot, watch};

use super::file::{Place, describe};
use crate::{fail_point, ledger::Error};

/// How many callers may have something waiting before further ones wait for a place.
const QUEUE: usize = 4_096;

/// Why an operation did not succeed.
pub(super) enum Fault {
    /// SQLite failed: the batch can't be completed.
    Batch(rusqlite::Error),
    /// A record makes no sense. Found before anything is written, so the rest of the batch goes on.
    Record,
}

impl From<rusqlite::Error> for Fault {
    fn from(error: rusqlite::Error) -> Self {
        Self::Batch(error)
    }
}

/// One step of the ledger, run inside the transaction of its batch.
pub(super) trait Operation: Send + 'static {
    type Answer: Send + 'static;

    fn run(&self, db: &Connection) -> Result<Self::Answer, Fault>;
}

/// An operation on its way through the thread, whatever its answer's type.
trait Step: Send {
    fn run(&mut self, db: &Connection) -> rusqlite::Result<()>;
    fn answer(self: Box<Self>);
    fn refuse(self: Box<Self>, why: &str);
}

struct Asked<O: Operation> {
    operation: O,
    outcome: Option<Result<O::Answer, Error>>,
    answer: oneshot::Sender<Result<O::Answer, Error>>,
}

impl<O: Operation> Step for Asked<O> {
    fn run(&mut self, db: &Connection) -> rusqlite::Result<()> {
        self.outcome = Some(match self.operation.run(db) {
            Ok(answer) => Ok(answer),
            Err(Fault::Record) => Err(Error::Unavailable("a record of this key can't be read".into())),
            Err(Fault::Batch(error)) => return Err(error),
        });
        Ok(())
    }

    fn answer(self: Box<Self>) {
        if let Some(outcome) = self.outcome {
            // A caller that is gone needs no answer.
            let _ = self.answer.send(outcome);
        }
    }

    fn refuse(self: Box<Self>, why: &str) {
        let _ = self.answer.send(Err(Error::Unavailable(why.into())));
    }
}

enum Message {
    Step(Box<dyn Step>),
    Stop,
}

/// What sets the threads apart.
pub(super) struct Role {
    /// Also the thread's name; Linux shows 15 bytes of it.
    pub name: &'static str,
    /// The statement that begins a batch's transaction.
    pub begin: &'static str,
    pub max_batch: usize,
    pub writes: bool,
}

/// The handle of a thread. Dropping it waits for the thread, which ends once it has done what it was asked.
pub(super) struct Worker {
    queue: mpsc::Sender<Message>,
    healthy: Arc<AtomicBool>,
    ended: watch::Receiver<()>,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    /// Starts the thread. It drops `owned` when it has ended its work and closed its connection.
    pub(super) fn spawn(role: Role, place: Place, db: Connection, owned: impl Send + 'static) -> io::Result<Self> {
        let (queue, asked) = mpsc::channel(QUEUE);
        let (end, ended) = watch::channel(());
        let healthy = Arc::new(AtomicBool::new(true));
        let session = Session {
            role,
            place,
            db,
            suspect: false,
            healthy: Arc::clone(&healthy),
        };
        let thread = thread::Builder::new().name(session.role.name.into()).spawn(move || {
            serve(session, asked);
            drop(owned);
            drop(end);
        })?;
        Ok(Self {
            queue,
            healthy,
            ended,
            thread: Some(thread),
        })
    }

    /// Has `operation` done and waits for its answer.
    pub(super) async fn ask<O: Operation>(&self, operation: O) -> Result<O::Answer, Error> {
        let closed = || Error::Unavailable("it is closed".into());
        let (answer, answered) = oneshot::channel();
        let step = Message::Step(Box::new(Asked {
            operation,
            outcome: None,
            answer,
        }));
        self.queue.send(step).await.map_err(|_| closed())?;
        answered.await.map_err(|_| closed())?
    }

    /// Did the last batch succeed, and can there be another?
    pub(super) fn is_healthy(&self) -> bool {
        self.healthy.load(Ordering::Acquire) && !self.queue.is_closed()
    }

    /// Lets the thread finish what it was asked so far, and waits for its end.
    pub(super) async fn stop(&self) {
        // Fails if the thread takes nothing any more, which is what is wanted.
        let _ = self.queue.send(Message::Stop).await;
        // Nothing is ever sent: this waits for the sender's drop at the thread's end.
        let _ = self.ended.clone().changed().await;
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // The thread ends when no sender is left.
        self.queue = mpsc::channel(1).0;
        if let Some(thread) = self.thread.take() {
            // A panic in it was caught and logged there.
            let _ = thread.join();
        }
    }
}

fn serve(mut session: Session, mut asked: mpsc::Receiver<Message>) {
    let mut messages = Vec::new();
    let mut batch = Vec::new();
    let mut alive = true;
    while asked.blocking_recv_many(&mut messages, session.role.max_batch) > 0 {
        for message in messages.drain(..) {
            match message {
                Message::Step(step) => batch.push(step),
                Message::Stop => asked.close(),
            }
        }
        if alive && catch_unwind(AssertUnwindSafe(|| session.run(&mut batch))).is_err() {
            tracing::error!(
                thread = session.role.name,
                "a thread of the ledger panicked and takes nothing any more"
            );
            session.healthy.store(false, Ordering::Release);
            asked.close();
            alive = false;
        }
        // After a panic this drops the answers' senders, so that no caller waits for ever.
        batch.clear();
    }
}

/// The thread's side of a worker.
struct Session {
    role: Role,
    place: Place,
    db: Connection,
    /// The connection failed in a way that may last as long as it does.
    suspect: bool,
    healthy: Arc<AtomicBool>,
}

impl Session {
    fn run(&mut self, batch: &mut Vec<Box<dyn Step>>) {
        if batch.is_empty() {
            return;
        }
        match self.transact(batch) {
            Ok(()) => {
                if !self.healthy.swap(true, Ordering::AcqRel) {
                    tracing::info!(thread = self.role.name, "the ledger works again");
                }
                batch.drain(..).for_each(|step| step.answer());
            }
            Err(error) => {
                self.roll_back(&error);
                let why = describe(&error);
                if self.healthy.swap(false, Ordering::AcqRel) {
                    tracing::error!(thread = self.role.name, error = why, "the ledger failed");
                }
                batch.drain(..).for_each(|step| step.refuse(&why));
            }
        }
    }

    fn transact(&mut self, batch: &mut [Box<dyn Step>]) -> rusqlite::Result<()> {
        if self.suspect {
            // The old connection is closed after the new one is open. Were none open in between, SQLite would recover
            // the WAL and might find the transaction whose COMMIT failed: steps whose callers were told otherwise.
            drop(mem::replace(&mut self.db, self.place.connect()?));
            self.suspect = false;
        }
        self.db.prepare_cached(self.role.begin)?.execute([])?;
        for step in batch {
            step.run(&self.db)?;
        }
        self.fail_point(fail_point::Place::BeforeCommit);
        self.db.prepare_cached("COMMIT")?.execute([])?;
        self.fail_point(fail_point::Place::AfterCommit);
        Ok(())
    }

    fn fail_point(&self, place: fail_point::Place) {
        if self.role.writes {
            fail_point::reached(place);
        }
    }

    fn roll_back(&mut self, cause: &rusqlite::Error) {
        use rusqlite::ErrorCode::{DatabaseBusy, DatabaseLocked, DiskFull};
        // SQLite ends the transaction by itself after some errors, and not after others.
        let rolled_back = self.db.is_autocommit() || self.db.execute_batch("ROLLBACK").is_ok();
        let passing = matches!(
            cause.sqlite_error_code(),
            Some(DatabaseBusy | DatabaseLocked | DiskFull)
        );
        self.suspect |= !(rolled_back && passing);
    }
}
