use std::{
    ops::ControlFlow,
    path::PathBuf,
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use tempfile::TempDir;

use super::*;
use crate::{
    clock::Clock,
    ledger::{Query, sqlite::Sqlite},
};

fn made(name: &str) -> (TempDir, PathBuf) {
    let directory = TempDir::new().expect("a directory");
    let path = directory.path().join(name);
    drop(Sqlite::open(&path, &Clock::system()).expect("opens"));
    (directory, path)
}

#[test]
fn a_look_at_the_lock_keeps_no_gateway_out() {
    let (_directory, path) = made("ledger.db");
    let place = Place::find(&path).expect("is there");
    let enough = AtomicBool::new(false);
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !enough.load(Ordering::Relaxed) {
                    assert_ne!(place.owner(), Ownership::Unknown);
                }
            });
        }
        let refused = (0..200).find_map(|_| place.lock().err());
        enough.store(true, Ordering::Relaxed);
        assert!(refused.is_none(), "{refused:?}");
    });
    let owner = place.lock().expect("locks");
    assert_eq!(place.owner(), Ownership::Taken(Some(std::process::id())));
    assert!(matches!(place.lock(), Err(ledger::Error::InUse(_))));
    drop(owner);
    assert_eq!(place.owner(), Ownership::Free);
}

#[test]
fn a_file_read_without_locks_must_not_have_changed() {
    // What SQLite's URIs would take for something else.
    let (_directory, path) = made("ä %41?mode=rw#.db");
    let place = Place::find(&path).expect("is there");
    let (db, _) = freeze(&place.real).expect("opens");
    let snapshot = Snapshot {
        db,
        access: Access::Frozen(Stamp::of(&place)),
        ownership: Ownership::Free,
        place,
    };
    snapshot.check().expect("looks");

    // A gateway that came and went: it put the claim of another in doubt, say.
    let other = Connection::open(&path).expect("connects");
    other
        .execute_batch("CREATE TABLE filler AS SELECT zeroblob(10000)")
        .expect("writes");
    drop(other);
    assert!(matches!(snapshot.check(), Err(Error::Unavailable(_))));
    let read = snapshot.records(&Query::default(), |_| ControlFlow::Continue(()));
    assert!(matches!(read, Err(Error::Unavailable(_))));
    let copy = path.with_file_name("copy.db");
    fs::write(&copy, "").expect("writes");
    assert!(matches!(snapshot.copy_to(&copy), Err(Error::Unavailable(_))));
}

#[test]
fn a_snapshot_is_of_the_moment_in_which_it_was_opened() {
    let (_directory, path) = made("ledger.db");
    let snapshot = Snapshot::open(&path).expect("opens");
    let other = Connection::open(&path).expect("connects");
    let row = "INSERT INTO invitation VALUES ('c', 'later', zeroblob(32), 2, 1, 1, 1, NULL, NULL, NULL)";
    other.execute_batch(row).expect("writes beside it");
    let mut seen = 0;
    let all = Query {
        limit: usize::MAX,
        ..Query::default()
    };
    let count = |_| {
        seen += 1;
        ControlFlow::Continue(())
    };
    snapshot.records(&all, count).expect("reads");
    assert_eq!(seen, 0, "what came after the opening");
    assert_eq!(snapshot.check().expect("looks").keys.total(), 0);
    let later = Snapshot::open(&path).expect("opens");
    assert_eq!(later.check().expect("looks").keys.total(), 1);
}
