//! The tables, and the way from an empty or older file to them.

use rusqlite::{Connection, TransactionBehavior, config::DbConfig, ffi};

use super::{file::Place, write};
use crate::{clock::Timestamp, fail_point, ledger::Error};

/// Marks a file as a ledger of this gateway, for itself and for `file(1)`: "SLGW".
pub(super) const APPLICATION_ID: i32 = 0x534c_4757;

/// Applied in order, each once, in a transaction of its own; `PRAGMA user_version` counts those applied. A published
/// one is never edited. The numbers of states and reasons are those of `State` and `Reason::code`.
///
/// A claim is a row of `pending` that lies over the key's row of `invitation`, if there is one. So a release has
/// nothing to restore, a crash leaves its claims in a table that is small, and the big tree, whose random pages are
/// what a key costs, is written once for a claim and its outcome.
const MIGRATIONS: &[&str] = &["
    CREATE TABLE invitation (
        collector_id TEXT NOT NULL,
        crk TEXT NOT NULL,
        fingerprint BLOB NOT NULL,
        state INTEGER NOT NULL CHECK (state IN (2, 3, 4)),
        attempts INTEGER NOT NULL,
        created_at INTEGER NOT NULL, -- microseconds since 1970, as all times here
        updated_at INTEGER NOT NULL, -- of an added one, when it was added: nothing changes it after
        reason INTEGER,
        http_status INTEGER,
        notification TEXT,
        PRIMARY KEY (collector_id, crk)
    ) STRICT, WITHOUT ROWID;

    -- The added ones are nearly all there are, and their listing is the table's own order.
    CREATE INDEX invitation_not_added ON invitation (state, collector_id, crk) WHERE state <> 2;

    CREATE TABLE pending (
        collector_id TEXT NOT NULL,
        crk TEXT NOT NULL,
        fingerprint BLOB NOT NULL,
        attempts INTEGER NOT NULL,
        created_at INTEGER NOT NULL,
        claimed_at INTEGER NOT NULL,
        PRIMARY KEY (collector_id, crk)
    ) STRICT, WITHOUT ROWID;

    -- One row, to find out whether anything can be written.
    CREATE TABLE probe (
        id INTEGER PRIMARY KEY CHECK (id = 1),
        filler BLOB
    ) STRICT;
    INSERT INTO probe (id) VALUES (1);
"];

pub(super) const VERSION: i64 = MIGRATIONS.len() as i64;

/// Opens the file as a ledger of the current version, with no claim of a dead process left in it.
pub(super) fn open(place: &Place, now: Timestamp) -> Result<Connection, Error> {
    let refused = |error| place.refused(&error);
    // A file that is refused stays as it is, and so does its WAL, which SQLite would work into it upon closing.
    let has_wal = place.beside("-wal").exists();
    let mut db = place.connect_raw().map_err(refused)?;
    db.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, has_wal)
        .map_err(refused)?;
    let mut version = recognize(&db, place)?;
    if version == 0 {
        tracing::warn!("there was no ledger: a new one is made, which knows nothing of what was sent before");
    }
    migrate(&mut db, &mut version)
        .and_then(|()| touch(&db))
        .and_then(|()| put_in_doubt(&mut db, now))
        .and_then(|()| db.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, false))
        .map_err(refused)?;
    Ok(db)
}

/// Reads a row of each tree, so that damage at a root, which every key would meet, is met here. Damage further down
/// shows only where it is read: to look at all of a large ledger takes minutes.
fn touch(db: &Connection) -> rusqlite::Result<()> {
    for tree in [
        "SELECT crk FROM invitation LIMIT 1",
        "SELECT crk FROM invitation INDEXED BY invitation_not_added WHERE state <> 2 LIMIT 1",
        "SELECT crk FROM pending LIMIT 1",
        "SELECT filler FROM probe LIMIT 1",
    ] {
        db.prepare(tree)?.query([])?.next()?;
    }
    Ok(())
}

/// The version of the ledger in the file, 0 for an empty file. Changes nothing before it knows.
fn recognize(db: &Connection, place: &Place) -> Result<i64, Error> {
    Marks::read(db).map_err(|error| place.refused(&error))?.version(place)
}

/// What tells a ledger from another database.
pub(super) struct Marks {
    application_id: i32,
    user_version: i64,
    is_empty: bool,
}

impl Marks {
    pub(super) fn read(db: &Connection) -> rusqlite::Result<Self> {
        let objects = db.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get::<_, i64>(0))?;
        Ok(Self {
            application_id: application_id(db)?,
            user_version: user_version(db)?,
            is_empty: objects == 0,
        })
    }

    /// The version of the ledger, 0 for an empty file.
    pub(super) fn version(&self, place: &Place) -> Result<i64, Error> {
        match (self.application_id, self.user_version, self.is_empty) {
            (APPLICATION_ID, version, _) if version > VERSION => Err(place.unusable(format!(
                "was written by a later version of the gateway (its schema is {version}, the latest known here \
                 {VERSION}); run that version or a later one"
            ))),
            (APPLICATION_ID, version, _) if version > 0 => Ok(version),
            (0, 0, true) => Ok(0),
            _ => Err(place.not_a_ledger("it is the SQLite database of something else")),
        }
    }
}

fn migrate(db: &mut Connection, version: &mut i64) -> rusqlite::Result<()> {
    // The mode is kept in the file, and can't be changed within a transaction.
    let mode: String = db.query_row("PRAGMA journal_mode = WAL", [], |row| row.get(0))?;
    if mode != "wal" {
        // Such as on a file system without shared memory.
        return Err(failure(ffi::SQLITE_CANTOPEN));
    }
    super::file::configure(db)?;
    let done = usize::try_from(*version).unwrap_or(MIGRATIONS.len());
    for migration in MIGRATIONS.iter().skip(done) {
        let transaction = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
        transaction.execute_batch(migration)?;
        transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
        transaction.pragma_update(None, "user_version", *version + 1)?;
        transaction.commit()?;
        *version += 1;
    }
    Ok(())
}

/// Puts in doubt what a process before this one had claimed and not settled.
fn put_in_doubt(db: &mut Connection, now: Timestamp) -> rusqlite::Result<()> {
    let transaction = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
    fail_point::reached(fail_point::Place::BeforeRecovery);
    let orphans = write::put_all_in_doubt(&transaction, now)?;
    fail_point::reached(fail_point::Place::WithinRecovery);
    transaction.commit()?;
    fail_point::reached(fail_point::Place::AfterRecovery);
    if orphans > 0 {
        tracing::warn!(
            keys = orphans,
            "requests were on the wire when the process before this one ended: their keys are in doubt now"
        );
    }
    Ok(())
}

/// Fails if the file is no ledger of the current version any more.
pub(super) fn expect_current(db: &Connection) -> rusqlite::Result<()> {
    match (application_id(db)?, user_version(db)?) {
        (APPLICATION_ID, VERSION) => Ok(()),
        _ => Err(failure(ffi::SQLITE_CANTOPEN)),
    }
}

fn application_id(db: &Connection) -> rusqlite::Result<i32> {
    db.query_row("PRAGMA application_id", [], |row| row.get(0))
}

fn user_version(db: &Connection) -> rusqlite::Result<i64> {
    db.query_row("PRAGMA user_version", [], |row| row.get(0))
}

fn failure(code: i32) -> rusqlite::Error {
    rusqlite::Error::SqliteFailure(ffi::Error::new(code), None)
}
