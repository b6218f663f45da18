//! A thread that owns one connection and serves what is asked of it in batches, each batch one transaction.
//!
//! For writes this is group commit: the callers of a batch share its sync. For reads it spares each look-up its own
//! transaction, and its own hop to a thread when many are asked at once.

mod session;

use std::{
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use rusqlite::{Connection, MAIN_DB, ffi};
use tokio::sync::{mpsc, oneshot, watch};

pub(super) use self::session::Cause;
use self::session::Session;
use super::{checkpoint::Checkpoints, identity::Files};
use crate::{
    invitation::Key,
    ledger::{
        Error,
        census::{Change, Tally},
    },
};

/// How many callers may have something waiting before further ones wait for a place.
const QUEUE: usize = 4_096;

/// After a batch of so many writes the next one waits for company. Under such a load a commit costs the machine more than
/// its steps do; below it nobody is made to wait.
const COMPANY: usize = 8;
/// For how long: about as long as a commit takes on a local disk. Measured with 64 and 256 callers, half of it saves less,
/// and twice as long saves no more.
const GATHER: Duration = Duration::from_micros(200);

/// Why an operation did not succeed.
pub(super) enum Fault {
    /// SQLite failed: the batch has to be rolled back.
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

    /// What it changes of how keys stand is added to `change`, once nothing can fail any more that others of its batch survive.
    fn run(&self, db: &Connection, change: &mut Change) -> Result<Self::Answer, Fault>;

    /// The key that it has claimed, going by its answer.
    fn claimed(&self, _: &Self::Answer) -> Option<Key> {
        None
    }
}

/// An operation on its way through the thread, whatever its answer's type.
trait Step: Send {
    fn run(&mut self, db: &Connection, change: &mut Change) -> rusqlite::Result<()>;
    fn claimed(&self) -> Option<Key>;
    fn answer(self: Box<Self>);
    fn refuse(self: Box<Self>, why: &str);
}

struct Asked<O: Operation> {
    operation: O,
    outcome: Option<Result<O::Answer, Error>>,
    answer: oneshot::Sender<Result<O::Answer, Error>>,
}

impl<O: Operation> Step for Asked<O> {
    fn run(&mut self, db: &Connection, change: &mut Change) -> rusqlite::Result<()> {
        self.outcome = Some(match self.operation.run(db, change) {
            Ok(answer) => Ok(answer),
            Err(Fault::Record) => Err(Error::Unavailable("a record of this key can't be read".into())),
            Err(Fault::Batch(error)) => return Err(error),
        });
        Ok(())
    }

    fn claimed(&self) -> Option<Key> {
        self.operation.claimed(self.outcome.as_ref()?.as_ref().ok()?)
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
    /// For one that writes: where what it changes is summed up.
    pub tally: Option<Arc<Tally>>,
    /// What its commits have to see to.
    pub checkpoints: Option<Checkpoints>,
}

impl Role {
    pub(super) fn writes(&self) -> bool {
        self.tally.is_some()
    }

    /// Makes a connection one of this role.
    fn take_on(&self, db: &mut Connection) -> rusqlite::Result<()> {
        // SQLite opens a file that can't be written for reading. Such a connection would stay so when the file no longer is.
        if self.writes() && db.is_readonly(MAIN_DB)? {
            return Err(rusqlite::Error::SqliteFailure(
                ffi::Error::new(ffi::SQLITE_READONLY),
                None,
            ));
        }
        self.checkpoints
            .as_ref()
            .map_or(Ok(()), |checkpoints| checkpoints.attach(db))
    }
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
    pub(super) fn spawn(
        role: Role,
        files: Arc<Files>,
        mut db: Connection,
        owned: impl Send + 'static,
    ) -> io::Result<Self> {
        let (queue, asked) = mpsc::channel(QUEUE);
        let (end, ended) = watch::channel(());
        let healthy = Arc::new(AtomicBool::new(true));
        role.take_on(&mut db).map_err(io::Error::other)?;
        let session = Session::new(role, files, db, Arc::clone(&healthy));
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
        let (answer, answered) = oneshot::channel();
        let step = Message::Step(Box::new(Asked {
            operation,
            outcome: None,
            answer,
        }));
        self.queue.send(step).await.map_err(|_| Error::closed())?;
        answered.await.map_err(|_| Error::closed())?
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
    let mut last = 0;
    while asked.blocking_recv_many(&mut messages, session.role.max_batch) > 0 {
        if session.role.writes() && session.wrote && last >= COMPANY {
            gather(&mut asked, &mut messages, session.role.max_batch);
        }
        last = messages.len();
        for message in messages.drain(..) {
            match message {
                Message::Step(step) => batch.push(step),
                Message::Stop => asked.close(),
            }
        }
        if catch_unwind(AssertUnwindSafe(|| session.run(&mut batch))).is_err() {
            // Not in a step, of which `transact` takes care.
            session.tell(&Cause::Panic, None);
            session.suspect = true;
        }
        // After a panic this drops the answers' senders, so that no caller waits for ever.
        batch.clear();
    }
}

/// Lets more steps come, so that they share one commit.
#[expect(clippy::disallowed_methods, reason = "it is no thread of the runtime")]
fn gather(asked: &mut mpsc::Receiver<Message>, messages: &mut Vec<Message>, max: usize) {
    thread::sleep(GATHER);
    while messages.len() < max
        && let Ok(message) = asked.try_recv()
    {
        messages.push(message);
    }
}
