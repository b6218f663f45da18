//! Ledgers that hold many keys, made once and kept under `target/bench/ledgers`.

use std::{fs, path::PathBuf};

use rusqlite::{Connection, params};
use surveylab_gateway::{
    clock::Clock,
    ledger::{Ledger as _, State, sqlite::Sqlite},
};
use tokio::runtime::Runtime;

use super::NOTIFICATION;
use crate::{
    keys::{COLLECTOR_ID, crk},
    place::target,
};

/// Until it is made, a crash costs nothing but an unfinished file. Not in WAL mode, where the one transaction would be
/// written twice; the ledger turns that on again.
const SETTINGS: &str = "PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF";
/// What an added key is.
const INSERT: &str = "INSERT INTO invitation (collector_id, crk, fingerprint, state, attempts, created_at, updated_at, \
                      notification) VALUES (?, ?, ?, ?, 1, ?, ?, ?)";
/// November 2026, in microseconds since 1970.
const AT: i64 = 1_795_000_000_000_000;

/// The file of a ledger with so many keys, all of them added.
pub fn ledger(size: u64, runtime: &Runtime) -> PathBuf {
    let ledgers = target().join("bench/ledgers");
    fs::create_dir_all(&ledgers).expect("a place for ledgers");
    let unfinished = tempfile::tempdir_in(&ledgers).expect("a directory");
    let path = unfinished.path().join("ledger.db");
    let empty = Sqlite::open(&path, &Clock::system()).expect("a ledger");
    runtime.block_on(empty.close());
    drop(empty);

    let mut db = Connection::open(&path).expect("a database");
    let version: i64 = db
        .query_row("PRAGMA user_version", [], |row| row.get(0))
        .expect("a version");
    let kept = ledgers.join(format!("schema-{version}-keys-{size}.db"));
    if !kept.exists() {
        eprintln!("making a ledger of {size} keys, to be kept in {}", kept.display());
        fill(&mut db, size).expect("a ledger of this version's tables");
        drop(db);
        fs::rename(path, &kept).expect("a finished ledger");
    }
    kept
}

/// In the order of the keys, which takes half the time. The tree is no other: had they come in any order, it would be 2 %
/// larger.
fn fill(db: &mut Connection, size: u64) -> rusqlite::Result<()> {
    let mut crks: Vec<u128> = (0..size).map(crk).collect();
    crks.sort_unstable();
    db.execute_batch(SETTINGS)?;
    let transaction = db.transaction()?;
    let mut insert = transaction.prepare(INSERT)?;
    for crk in crks {
        let state = State::Added as i64;
        let crk = format!("{crk:032x}");
        insert.execute(params![COLLECTOR_ID, crk, [7_u8; 32], state, AT, AT, NOTIFICATION])?;
    }
    drop(insert);
    transaction.commit()
}
