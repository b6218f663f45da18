//! Ledgers of many keys, made once and kept.

use std::{
    fs,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    path::{Path, PathBuf},
    time::Instant,
};

use rand::{RngExt as _, SeedableRng as _, rngs::SmallRng};
use rusqlite::{Connection, params};
use surveylab_gateway::{
    clock::Clock,
    ledger::{Ledger as _, sqlite::Sqlite},
};

use crate::support::{Failure, files, keys::crk};

/// No load uses it, so that all of its keys are new.
const SEED: u64 = u64::MAX;

/// What SurveyLab says of everybody.
const NOTIFICATION: &str = "Action processed correctly";
/// As all that the load adds.
const COLLECTOR: &str = "8379821739721";
/// 2026-01-01, in microseconds.
const ADDED_AT: i64 = 1_767_225_600_000_000;

/// The file of a ledger of so many added keys, which is made if it is missing. Not to be written to.
pub fn of(keys: u64) -> Result<PathBuf, Failure> {
    let directory = files::directory("ledgers")?;
    let making = tempfile::tempdir_in(&directory)?;
    let new = making.path().join("ledger.db");
    create(&new)?;
    let file = directory.join(format!("{keys}-{:016x}.db", schema(&new)?));
    if !file.exists() {
        let begin = Instant::now();
        fill(&new, keys)?;
        fs::rename(&new, &file)?;
        eprintln!("made a ledger of {keys} keys in {:.0} s", begin.elapsed().as_secs_f64());
    }
    Ok(file)
}

/// An empty ledger, by the gateway itself.
fn create(path: &Path) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let ledger = Sqlite::open(path, &Clock::system())?;
    runtime.block_on(ledger.close());
    Ok(())
}

/// Tells ledgers of different versions apart.
fn schema(path: &Path) -> Result<u64, Failure> {
    let db = Connection::open(path)?;
    let mut hasher = DefaultHasher::new();
    for of_file in ["user_version", "page_size"] {
        db.pragma_query_value(None, of_file, |row| row.get::<_, i64>(0))?
            .hash(&mut hasher);
    }
    let mut tables = db.prepare("SELECT sql FROM sqlite_schema ORDER BY name")?;
    let mut tables = tables.query([])?;
    while let Some(table) = tables.next()? {
        table.get::<_, Option<String>>(0)?.hash(&mut hasher);
    }
    Ok(hasher.finish())
}

/// In the order in which the keys come, which is random as in real life: in their own order they would leave no room in
/// the pages, and the file would be smaller and slower to add to than any that has grown.
fn fill(path: &Path, keys: u64) -> Result<(), Failure> {
    let db = Connection::open(path)?;
    // Nothing of it is worth anything before it is complete; and all pages stay in memory until then.
    db.execute_batch("PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; PRAGMA locking_mode = EXCLUSIVE;")?;
    let kibibytes = i64::try_from(keys * 300 / 1024)?.max(2_000);
    db.pragma_update(None, "cache_size", -kibibytes)?;
    let mut random = SmallRng::seed_from_u64(SEED);
    db.execute_batch("BEGIN")?;
    {
        let mut insert = db.prepare(
            "INSERT INTO invitation (collector_id, crk, fingerprint, state, attempts, created_at, updated_at, notification) \
             VALUES (?1, ?2, ?3, 2, 1, ?4, ?5, ?6)",
        )?;
        for number in 0..keys {
            let created_at = ADDED_AT + i64::try_from(number)? * 1_000;
            let fingerprint: [u8; 32] = random.random();
            insert.execute(params![
                COLLECTOR,
                crk(SEED, number),
                fingerprint,
                created_at,
                created_at + 100_000,
                NOTIFICATION,
            ])?;
        }
    }
    db.execute_batch("COMMIT; PRAGMA locking_mode = NORMAL; PRAGMA journal_mode = WAL;")?;
    db.close().map_err(|(_, error)| error)?;
    fs::File::open(path)?.sync_all()?;
    Ok(())
}
