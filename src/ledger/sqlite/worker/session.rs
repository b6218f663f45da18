//! The thread's side of a worker: one batch as one transaction, and what a failure of it means for the next one.

use std::{
    fmt, mem,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use rusqlite::{Connection, ErrorCode, ffi};

use super::{
    super::{
        file::describe,
        identity::{Files, Gone},
        write,
    },
    Role, Step,
};
use crate::{
    clock::Instant,
    fail_point,
    invitation::Key,
    ledger::census::Change,
    metrics::{self, Access},
};

/// Why a batch did not succeed.
#[derive(Debug)]
pub(in super::super) enum Cause {
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
pub(super) struct Session {
    pub role: Role,
    files: Arc<Files>,
    db: Connection,
    /// The last batch that was committed had something to write.
    pub wrote: bool,
    /// The connection failed in a way that may last as long as it does.
    pub suspect: bool,
    /// It was logged that batches fail.
    failed: bool,
    /// What was last logged of damage.
    damage: String,
    /// Claims that were committed, and refused to those who had made them: to be released before anything else is done.
    untold: Vec<Key>,
    healthy: Arc<AtomicBool>,
}

impl Session {
    pub(super) fn new(role: Role, files: Arc<Files>, db: Connection, healthy: Arc<AtomicBool>) -> Self {
        Self {
            role,
            files,
            db,
            wrote: false,
            suspect: false,
            failed: false,
            damage: String::new(),
            untold: Vec::new(),
            healthy,
        }
    }

    /// Answers every step of the batch.
    pub(super) fn run(&mut self, batch: &mut Vec<Box<dyn Step>>) {
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
        let begin = Instant::now();
        self.db.prepare_cached(self.role.begin)?.execute([])?;
        let changes = self.db.total_changes();
        let mut change = Change::default();
        for key in &self.untold {
            write::release(&self.db, key, &mut change)?;
        }
        for (index, step) in batch.iter_mut().enumerate() {
            let ran = catch_unwind(AssertUnwindSafe(|| step.run(&self.db, &mut change)));
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
        if self.role.writes() {
            self.files.verify()?;
        }
        let proof = if self.role.writes() && self.db.total_changes() == changes {
            Proof::None
        } else {
            Proof::Works
        };
        self.db.prepare_cached("COMMIT")?.execute([])?;
        self.untold.clear();
        if let Some(tally) = &self.role.tally
            && let Proof::Works = proof
        {
            tally.apply(&change);
            metrics::committed(batch.len(), begin.elapsed());
        }
        if let Err(gone) = self.files.verify() {
            // Should the files come back, nobody is under way with these keys.
            self.untold = batch.iter().filter_map(|step| step.claimed()).collect();
            return Err(gone.into());
        }
        self.fail_point(fail_point::Place::AfterCommit);
        Ok(proof)
    }

    fn fail_point(&self, place: fail_point::Place) {
        if self.role.writes() {
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
    pub(super) fn tell(&mut self, cause: &Cause, step: Option<usize>) {
        self.healthy.store(false, Ordering::Release);
        metrics::ledger_failed(if self.role.writes() {
            Access::Write
        } else {
            Access::Read
        });
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
