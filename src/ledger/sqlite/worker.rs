//! A thread that owns one connection and serves what is asked of it in batches, each batch one transaction.
//!
//! For writes this is group commit: the callers of a batch share its sync. For reads it spares each look-up its own
//! transaction, and its own hop to a thread when many are asked at once.

use std::{
    fmt, io, mem,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use rusqlite::{Connection, ErrorCode, MAIN_DB, ffi};
use tokio::sync::{mpsc, oneshot, watch};

use super::{
    checkpoint::Checkpoints,
    file::describe,
    identity::{Files, Gone},
    write,
};
use crate::{fail_point, invitation::Key, ledger::Error};

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

    fn run(&self, db: &Connection) -> Result<Self::Answer, Fault>;

    /// The key that it has claimed, going by its answer.
    fn claimed(&self, _: &Self::Answer) -> Option<Key> {
        None
    }
}

/// An operation on its way through the thread, whatever its answer's type.
trait Step: Send {
    fn run(&mut self, db: &Connection) -> rusqlite::Result<()>;
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
    fn run(&mut self, db: &Connection) -> rusqlite::Result<()> {
        self.outcome = Some(match self.operation.run(db) {
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
    pub writes: bool,
    /// What its commits have to see to.
    pub checkpoints: Option<Checkpoints>,
}

impl Role {
    /// Makes a connection one of this role.
    fn take_on(&self, db: &mut Connection) -> rusqlite::Result<()> {
        // SQLite opens a file that can't be written for reading. Such a connection would stay so when the file no longer is.
        if self.writes && db.is_readonly(MAIN_DB)? {
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
        let session = Session {
            role,
            files,
            db,
            wrote: false,
            suspect: false,
            failed: false,
            damage: String::new(),
            untold: Vec::new(),
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
    let mut last = 0;
    while asked.blocking_recv_many(&mut messages, session.role.max_batch) > 0 {
        if session.role.writes && session.wrote && last >= COMPANY {
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

/// Why a batch did not succeed.
#[derive(Debug)]
pub(super) enum Cause {
    Sqlite(rusqlite::Error),
    Gone(Gone),
    Panic,
}

impl From<rusqlite::Error> for Cause {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sqlite(error)
    }
}

impl From<Gone> for Cause {
    fn from(gone: Gone) -> Self {
        Self::Gone(gone)
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sqlite(error) => f.write_str(&describe(error)),
            Self::Gone(gone) => gone.fmt(f),
            Self::Panic => f.write_str("a step of it panicked"),
        }
    }
}

impl Cause {
    /// Met by one step, while others may have nothing to do with it: a damaged page, a record that breaks the tables'
    /// rules. What is wrong with the disk or the connection as a whole is not.
    fn is_of_one_step(&self) -> bool {
        let error = match self {
            Self::Sqlite(error) => error,
            Self::Gone(_) => return false,
            Self::Panic => return true,
        };
        match error.sqlite_error() {
            // The database holds what a statement can't be used on.
            None => true,
            Some(failure) => match failure.code {
                ErrorCode::DatabaseCorrupt | ErrorCode::ConstraintViolation => true,
                ErrorCode::SystemIoFailure => matches!(
                    failure.extended_code,
                    ffi::SQLITE_IOERR_READ
                        | ffi::SQLITE_IOERR_SHORT_READ
                        | ffi::SQLITE_IOERR_DATA
                        | ffi::SQLITE_IOERR_CORRUPTFS
                ),
                _ => false,
            },
        }
    }
}

/// What a batch that succeeded says of the next one.
enum Proof {
    Works,
    /// It only found claims that can't be made, and so has written nothing.
    None,
}

struct Failure {
    cause: Cause,
    /// The one step of the batch that failed, where the others can do without it.
    step: Option<usize>,
}

impl<C: Into<Cause>> From<C> for Failure {
    fn from(cause: C) -> Self {
        Self {
            cause: cause.into(),
            step: None,
        }
    }
}

/// The thread's side of a worker.
struct Session {
    role: Role,
    files: Arc<Files>,
    db: Connection,
    /// The last batch that was committed had something to write.
    wrote: bool,
    /// The connection failed in a way that may last as long as it does.
    suspect: bool,
    /// It was logged that batches fail.
    failed: bool,
    /// What was last logged of damage.
    damage: String,
    /// Claims that were committed, and refused to those who had made them: to be released before anything else is done.
    untold: Vec<Key>,
    healthy: Arc<AtomicBool>,
}

impl Session {
    /// Answers every step of the batch.
    fn run(&mut self, batch: &mut Vec<Box<dyn Step>>) {
        while !batch.is_empty() {
            let Failure { cause, step } = match self.transact(batch) {
                Ok(proof) => {
                    self.wrote = matches!(proof, Proof::Works);
                    if let Proof::Works = proof {
                        self.healthy.store(true, Ordering::Release);
                        if mem::take(&mut self.failed) {
                            tracing::info!(thread = self.role.name, "the ledger works again");
                        }
                    }
                    batch.drain(..).for_each(|step| step.answer());
                    return;
                }
                Err(failure) => failure,
            };
            self.roll_back(&cause);
            self.tell(&cause, step);
            let why = cause.to_string();
            match step {
                // The others go again, each by itself: one damaged page must not starve all keys, and many damaged ones
                // must not have all the others done again for each of them.
                Some(step) => {
                    batch.remove(step).refuse(&why);
                    for step in mem::take(batch) {
                        self.run(&mut vec![step]);
                    }
                }
                None => batch.drain(..).for_each(|step| step.refuse(&why)),
            }
        }
    }

    fn transact(&mut self, batch: &mut [Box<dyn Step>]) -> Result<Proof, Failure> {
        if self.suspect {
            // The old connection is closed after the new one is open. Were none open in between, SQLite would recover
            // the WAL and might find the transaction whose COMMIT failed: steps whose callers were told otherwise.
            let mut another = self.files.connect()?;
            self.role.take_on(&mut another)?;
            drop(mem::replace(&mut self.db, another));
            self.suspect = false;
        }
        self.db.prepare_cached(self.role.begin)?.execute([])?;
        let changes = self.db.total_changes();
        for key in &self.untold {
            write::release(&self.db, key)?;
        }
        for (index, step) in batch.iter_mut().enumerate() {
            let ran = catch_unwind(AssertUnwindSafe(|| step.run(&self.db)));
            let cause = match ran {
                Ok(Ok(())) => continue,
                Ok(Err(error)) => Cause::Sqlite(error),
                Err(_) => Cause::Panic,
            };
            let step = cause.is_of_one_step().then_some(index);
            return Err(Failure { cause, step });
        }
        self.fail_point(fail_point::Place::BeforeCommit);
        // Before, so that nothing is done to a ledger that is gone; and again, so that nobody is told of a commit to it, or of
        // what was read there.
        if self.role.writes {
            self.files.verify()?;
        }
        let proof = if self.role.writes && self.db.total_changes() == changes {
            Proof::None
        } else {
            Proof::Works
        };
        self.db.prepare_cached("COMMIT")?.execute([])?;
        self.untold.clear();
        if let Err(gone) = self.files.verify() {
            // Should the files come back, nobody is under way with these keys.
            self.untold = batch.iter().filter_map(|step| step.claimed()).collect();
            return Err(gone.into());
        }
        self.fail_point(fail_point::Place::AfterCommit);
        Ok(proof)
    }

    fn fail_point(&self, place: fail_point::Place) {
        if self.role.writes {
            fail_point::reached(place);
        }
    }

    fn roll_back(&mut self, cause: &Cause) {
        use ErrorCode::{DatabaseBusy, DatabaseLocked, DiskFull};
        // SQLite ends the transaction by itself after some errors, and not after others.
        let rolled_back = self.db.is_autocommit() || self.db.execute_batch("ROLLBACK").is_ok();
        let passing = match cause {
            Cause::Sqlite(error) => matches!(
                error.sqlite_error_code(),
                Some(DatabaseBusy | DatabaseLocked | DiskFull)
            ),
            // The connection has them open, wherever they are.
            Cause::Gone(_) => true,
            Cause::Panic => false,
        };
        self.suspect |= !(rolled_back && passing);
    }

    /// Logs a failure, each kind once for as long as it lasts, and has the next check look again.
    fn tell(&mut self, cause: &Cause, step: Option<usize>) {
        self.healthy.store(false, Ordering::Release);
        let thread = self.role.name;
        let error = cause.to_string();
        match cause {
            // `Files` tells of it, for all threads at once.
            Cause::Gone(_) => {}
            Cause::Panic => tracing::error!(thread, "a step of the ledger panicked, and was undone"),
            Cause::Sqlite(_) if step.is_some() => {
                if self.damage != error {
                    tracing::error!(
                        thread,
                        error,
                        "a part of the ledger is damaged: the keys there are refused"
                    );
                    self.damage = error;
                }
            }
            Cause::Sqlite(_) => {
                if !mem::replace(&mut self.failed, true) {
                    tracing::error!(thread, error, "the ledger failed");
                }
            }
        }
    }
}
