//! Ledgers that have grown: made once, and kept under `target/bench/ledgers`.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    time::Instant,
};

use rusqlite::{Connection, params};
use surveylab_gateway::{
    clock::Clock,
    ledger::{Ledger as _, State, sqlite::Sqlite},
};

use super::{
    Failure, files,
    keys::{COLLECTOR_ID, Keys, crk},
    stub::NOTIFICATION,
};

/// No load uses it, so that all of its keys are new to these ledgers.
const SEED: u64 = u64::MAX;

/// 2026-01-01, in microseconds.
const ADDED_AT: i64 = 1_767_225_600_000_000;

/// Copies a ledger of so many added keys, which is made if it is missing, to a path.
pub fn copy(count: u64, to: &Path) -> Result<(), Failure> {
    fs::copy(kept(count)?, to)?;
    // Else it would still be on its way to the disk while other syncs are measured.
    Ok(File::open(to)?.sync_all()?)
}

/// The keys of such a ledger, in any order and again and again.
pub fn keys(count: u64) -> Keys {
    Keys::duplicates(SEED, count)
}

/// By its schema's version, as older ledgers would be migrated in the time that is measured.
fn kept(count: u64) -> Result<PathBuf, Failure> {
    let directory = files::directory("ledgers")?;
    let unfinished = tempfile::tempdir_in(&directory)?;
    let path = unfinished.path().join("ledger.db");
    let mut db = create(&path)?;
    let version: i64 = db.pragma_query_value(None, "user_version", |row| row.get(0))?;
    let kept = directory.join(format!("{count}-keys-schema-{version}.db"));
    if !kept.exists() {
        let begin = Instant::now();
        fill(&mut db, count)?;
        db.close().map_err(|(_, error)| error)?;
        fs::rename(&path, &kept)?;
        eprintln!(
            "made a ledger of {count} keys in {:.0} s",
            begin.elapsed().as_secs_f64()
        );
    }
    Ok(kept)
}

/// An empty ledger, by the gateway itself.
fn create(path: &Path) -> Result<Connection, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let ledger = Sqlite::open(path, &Clock::system())?;
    runtime.block_on(ledger.close());
    Ok(Connection::open(path)?)
}

/// In the order in which the keys come, which is random as in real life: in their own order they would leave no room in
/// the pages, and the file would be smaller and slower to add to than any that has grown.
fn fill(db: &mut Connection, count: u64) -> Result<(), Failure> {
    // Nothing of it is worth anything before it is complete; and all pages stay in memory until then.
    db.execute_batch("PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; PRAGMA locking_mode = EXCLUSIVE;")?;
    let kibibytes = i64::try_from(count * 300 / 1024)?.max(2_000);
    db.pragma_update(None, "cache_size", -kibibytes)?;
    let transaction = db.transaction()?;
    let mut insert = transaction.prepare(
        "INSERT INTO invitation (collector_id, crk, fingerprint, state, attempts, created_at, updated_at, notification) \
         VALUES (?1, ?2, ?3, ?4, 1, ?5, ?6, ?7)",
    )?;
    for number in 0..count {
        let created_at = ADDED_AT + i64::try_from(number)? * 1_000;
        insert.execute(params![
            COLLECTOR_ID,
            crk(SEED, number),
            [7_u8; 32],
            State::Added as i64,
            created_at,
            created_at + 100_000,
            NOTIFICATION,
        ])?;
    }
    drop(insert);
    transaction.commit()?;
    Ok(db.execute_batch("PRAGMA locking_mode = NORMAL; PRAGMA journal_mode = WAL;")?)
}
