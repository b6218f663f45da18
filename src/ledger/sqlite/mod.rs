//! The embedded ledger: one SQLite file, owned by one process.
//!
//! Five threads, each with a connection of its own: one writes, in transactions that many callers share; one looks keys up
//! beside it; one lists, so that no listing holds up a look-up; one works the WAL off; one counts the keys at the start, and
//! ends. A commit is in the WAL's index when it is acknowledged, and a read transaction begins after its question came in,
//! so a look-up sees every step that was acknowledged before it.
//!
//! The file must be on a local disk: its lock, and the WAL's shared memory, don't work across a network.

use std::{path::Path, sync::Arc, time::SystemTime};

use futures_util::future::{BoxFuture, FutureExt};

use super::{Census, Claim, Claimed, Error, Ledger, Query, Record, Resolution, Resolved, Settlement, census::Tally};
use crate::{
    clock::{Clock, Timestamp},
    invitation::Key,
};

mod checkpoint;
mod count;
mod file;
mod identity;
pub mod maintenance;
mod read;
mod schema;
#[cfg(test)]
mod tests;
mod worker;
mod write;

use checkpoint::Checkpointer;
use count::{Counter, Snapshot};
use file::Place;
use identity::Files;
use worker::{Cause, Role, Worker};

/// The most operations that share a transaction. More would make the first of them wait for the last.
const MAX_BATCH: usize = 1_024;

/// A ledger in an SQLite file. See the module.
pub struct Sqlite {
    // In the order in which they are to end: SQLite checkpoints, and removes the WAL, with the last connection.
    counter: Counter,
    lister: Worker,
    reader: Worker,
    checkpointer: Checkpointer,
    writer: Worker,
    tally: Arc<Tally>,
    last_written: Option<SystemTime>,
}

impl Sqlite {
    /// Opens the ledger at `path`, or makes one where there is no file, and puts in doubt what a dead process had
    /// claimed. Blocks; nothing else may be doing anything with the ledger yet.
    ///
    /// Beside the file appear `PATH.lock`, which holds the number of the process that owns it, and SQLite's
    /// `PATH-wal` and `PATH-shm`.
    ///
    /// # Errors
    ///
    /// [`Error::InUse`] if another process owns it; [`Error::Unusable`] if what is at `path` is not a ledger, is of a later version
    /// or can't be written; [`Error::Unavailable`] if it failed otherwise, such as for want of space.
    pub fn open(path: &Path, clock: &Clock) -> Result<Self, Error> {
        let place = Place::find(path)?;
        let owner = place.lock()?;
        let last_written = place.last_written();
        let database = place.prepare()?;
        let writing = schema::open(&place, clock.timestamp())?;
        let refused = |cause| match cause {
            Cause::Sqlite(error) => place.refused(&error),
            Cause::Gone(_) | Cause::Panic => Error::Unavailable(format!("{}: {cause}", path.display())),
        };
        let files = Files::watch(place.clone(), database, owner.identity).map_err(|gone| refused(gone.into()))?;
        let files = Arc::new(files);
        let connect = || files.connect().map_err(refused);
        let (reading, listing, checkpointing) = (connect()?, connect()?, connect()?);
        let snapshot = Snapshot::take(connect()?).map_err(|error| refused(error.into()))?;
        let tally = Arc::new(Tally::default());

        let failed = |error| Error::Unavailable(format!("{}: no thread for it: {error}", path.display()));
        let read = |name, max_batch| Role {
            name,
            begin: "BEGIN",
            max_batch,
            tally: None,
            checkpoints: None,
        };
        let lister = Worker::spawn(read("ledger-list", 1), files.clone(), listing, ()).map_err(failed)?;
        let reader = Worker::spawn(read("ledger-read", MAX_BATCH), files.clone(), reading, ()).map_err(failed)?;
        let checkpointer = Checkpointer::spawn(files.clone(), checkpointing).map_err(failed)?;
        let write = Role {
            name: "ledger-write",
            // Takes the write lock at once: a transaction that read first could find that it may no more write.
            begin: "BEGIN IMMEDIATE",
            max_batch: MAX_BATCH,
            tally: Some(tally.clone()),
            checkpoints: Some(checkpointer.checkpoints()),
        };
        let counter = Counter::spawn(snapshot, tally.clone()).map_err(failed)?;
        let writer = Worker::spawn(write, files, writing, owner).map_err(failed)?;
        Ok(Self {
            counter,
            lister,
            reader,
            checkpointer,
            writer,
            tally,
            last_written,
        })
    }

    /// When a process before this one wrote last, by the date of the ledger's files; `None` for a new ledger.
    pub fn last_written(&self) -> Option<SystemTime> {
        self.last_written
    }
}

impl Ledger for Sqlite {
    fn look_up(&self, key: &Key) -> BoxFuture<'_, Result<Option<Record>, Error>> {
        self.reader.ask(read::LookUp(key.clone())).boxed()
    }

    fn claim(&self, claim: Claim) -> BoxFuture<'_, Result<Claimed, Error>> {
        self.writer.ask(write::Claim(claim)).boxed()
    }

    fn settle(&self, key: &Key, settlement: Settlement, at: Timestamp) -> BoxFuture<'_, Result<(), Error>> {
        let key = key.clone();
        self.writer.ask(write::Settle { key, settlement, at }).boxed()
    }

    fn release(&self, key: &Key) -> BoxFuture<'_, Result<(), Error>> {
        self.writer.ask(write::Release(key.clone())).boxed()
    }

    fn resolve(&self, key: &Key, resolution: Resolution, at: Timestamp) -> BoxFuture<'_, Result<Resolved, Error>> {
        let key = key.clone();
        self.writer.ask(write::Resolve { key, resolution, at }).boxed()
    }

    fn list(&self, query: Query) -> BoxFuture<'_, Result<Vec<Record>, Error>> {
        self.lister.ask(read::List(query)).boxed()
    }

    fn check(&self) -> BoxFuture<'_, Result<(), Error>> {
        async {
            // Without traffic nothing else would find out that the files are gone, or that a thread works again. The way
            // of a request begins with a look-up, so both threads count.
            self.reader.ask(read::Probe).await?;
            if !self.writer.is_healthy() {
                self.writer.ask(write::Probe).await?;
            }
            Ok(())
        }
        .boxed()
    }

    fn census(&self) -> Census {
        self.tally.census()
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        async {
            self.counter.stop().await;
            // The last moment to say that the files are gone: with the process ends what it still has open.
            let _logged = self.reader.ask(read::Probe).await;
            self.lister.stop().await;
            self.reader.stop().await;
            self.checkpointer.stop().await;
            self.writer.stop().await;
        }
        .boxed()
    }
}
