//! `ledger check`, `backup` and `export`, beside a running gateway and without one: they tell the truth, and change
//! nothing.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::chown,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::SystemTime,
};

use rusqlite::Connection;
use serde_json::Value;
use surveylab_gateway::{clock::Clock, ledger::sqlite::Sqlite};
use tempfile::TempDir;

use crate::{
    disk::is_root,
    support::{
        Gateway, Options,
        gateway::{BINARY, run},
        watch::soon,
    },
};

mod backup;
mod check;
mod export;
mod restore;

/// Exit code, stdout, stderr.
type Ran = (Option<i32>, String, String);

const LEDGER: &str = "ledger.db";

/// Runs `ledger` with a ledger and arguments.
async fn ledger(path: &Path, arguments: &[&str]) -> Ran {
    let ledger = format!("--ledger=sqlite:{}", path.display());
    soon(run(&[&["ledger", &ledger], arguments].concat(), &[])).await
}

/// The same, of what must succeed without a word on stderr: its stdout.
async fn told(path: &Path, arguments: &[&str]) -> String {
    let (code, stdout, stderr) = ledger(path, arguments).await;
    assert_eq!((code, stderr.as_str()), (Some(0), ""), "{stdout}");
    stdout
}

/// What `ledger check --json` says, with its exit code.
async fn checked(path: &Path) -> (Option<i32>, Value) {
    let (code, stdout, stderr) = ledger(path, &["check", "--json"]).await;
    assert_eq!(stderr, "");
    (code, json(&stdout))
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// Flags for a gateway whose ledger is at `path`.
fn over(path: &Path) -> Options {
    Options::new().flag("--ledger", format!("sqlite:{}", path.display()))
}

/// SIGTERM, and the end.
async fn stop(gateway: Gateway) -> Gateway {
    gateway.signal("TERM");
    let (gateway, status) = soon(gateway.once_ended()).await;
    assert!(status.success(), "{status}");
    gateway
}

/// Every file of a directory with its contents and its time, to see that nothing touched them.
fn files(directory: &Path) -> BTreeMap<PathBuf, (SystemTime, Vec<u8>)> {
    let entries = fs::read_dir(directory).unwrap().map(Result::unwrap);
    let files = entries.filter(|entry| entry.file_type().unwrap().is_file());
    files
        .map(|entry| {
            let modified = entry.metadata().unwrap().modified().unwrap();
            (entry.path(), (modified, fs::read(entry.path()).unwrap()))
        })
        .collect()
}

/// A ledger with so many added keys, that no gateway runs on.
fn made(keys: u32) -> (TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join(LEDGER);
    drop(Sqlite::open(&path, &Clock::system()).unwrap());
    let mut db = Connection::open(&path).unwrap();
    let transaction = db.transaction().unwrap();
    for i in 0..keys {
        insert(&transaction, &format!("k{i:06}"), 2, None);
    }
    transaction.commit().unwrap();
    (directory, path)
}

/// A row of the table as it is.
fn insert(db: &Connection, crk: &str, state: i64, reason: Option<i64>) {
    let sql = "INSERT INTO invitation (collector_id, crk, fingerprint, state, attempts, created_at, updated_at, \
               reason, notification) VALUES ('c', ?1, ?2, ?3, 1, 1000000, 2000000, ?4, 'Action processed correctly')";
    db.execute(sql, (crk, [7_u8; 32], state, reason)).unwrap();
}

/// Runs `ledger` as somebody whom file modes bind. None, and why on stdout, where nobody else can run the binary.
fn without_privileges(ledger: &Path, arguments: &[&str]) -> Option<(Option<i32>, String)> {
    let nobody = ["--reuid=65534", "--regid=65534", "--clear-groups", BINARY];
    let mut command = Command::new(if is_root() { "setpriv" } else { BINARY });
    if is_root() {
        let tried = Command::new("setpriv").args(nobody).arg("--version").output();
        if !tried.as_ref().is_ok_and(|output| output.status.success()) {
            println!("skipped: nobody can't run the binary: {tried:?}");
            return None;
        }
        command.args(nobody);
    }
    let ledger = format!("--ledger=sqlite:{}", ledger.display());
    let output = command
        .args(["ledger", &ledger])
        .args(arguments)
        .env_clear()
        .stdin(Stdio::null())
        .output();
    let output = output.unwrap();
    let text = [output.stdout, output.stderr].concat();
    Some((output.status.code(), String::from_utf8(text).unwrap()))
}

/// Gives a directory and its files to nobody, as modes don't bind the superuser.
fn give_away(directory: &Path) {
    if is_root() {
        for path in files(directory).into_keys().chain([directory.into()]) {
            chown(path, Some(65534), Some(65534)).unwrap();
        }
    }
}
