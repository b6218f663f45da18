mod checkpoints;
mod damage;
mod gone;

use std::{fs, path::PathBuf, time::SystemTime};

use futures_util::future::join_all;
use rusqlite::Connection;
use tempfile::TempDir;

use super::{
    worker::{Fault, Operation},
    *,
};
use crate::ledger::{
    State,
    census::Change,
    conformance::{FIRST, REOPENED_AT, a_claim, added, key, reopened},
};

struct Fixture {
    directory: TempDir,
}

impl Fixture {
    fn new() -> Self {
        let directory = TempDir::new().expect("a directory");
        Self { directory }
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("ledger.db")
    }

    fn open(&self) -> Sqlite {
        reopened(&self.path())
    }

    /// Opens the ledger and closes it, and connects to it as a stranger.
    fn made(self) -> (Self, Connection) {
        drop(self.open());
        let db = Connection::open(self.path()).expect("connects");
        (self, db)
    }
}

fn open(path: &Path) -> Result<Sqlite, Error> {
    Sqlite::open(path, &Clock::with_wall(|| SystemTime::from(REOPENED_AT)))
}

/// The error of opening, which must be one that no later try helps against, and name the path.
fn refusal(path: &Path) -> String {
    match open(path) {
        Err(Error::Unusable(text) | Error::InUse(text)) => {
            assert!(text.contains(&path.display().to_string()), "{text}");
            text
        }
        Err(other) => panic!("not unusable: {other}"),
        Ok(_) => panic!("opened"),
    }
}

#[track_caller]
fn assert_unavailable<T: std::fmt::Debug>(answer: Result<T, Error>) -> String {
    match answer {
        Err(Error::Unavailable(text)) => text,
        other => panic!("not unavailable: {other:?}"),
    }
}

/// Runs SQL on a thread's own connection, in a batch.
struct Sql(String);

impl Operation for Sql {
    type Answer = ();

    fn run(&self, db: &Connection, _: &mut Change) -> Result<(), Fault> {
        Ok(db.execute_batch(&self.0)?)
    }
}

async fn sql(worker: &Worker, sql: impl Into<String>) -> Result<(), Error> {
    worker.ask(Sql(sql.into())).await
}

#[tokio::test]
async fn a_second_owner_is_refused_and_told_the_first() {
    let fixture = Fixture::new();
    let first = fixture.open();
    let text = refusal(&fixture.path());
    assert!(
        text.contains(&format!("in use by process {}", std::process::id())),
        "{text}"
    );
    first.close().await;
    fixture.open();
    fixture.open();
}

#[cfg(unix)]
#[test]
fn another_name_of_the_file_is_no_way_around_the_owner() {
    let fixture = Fixture::new();
    let _first = fixture.open();
    let link = fixture.directory.path().join("link.db");
    std::os::unix::fs::symlink(fixture.path(), &link).expect("links");
    assert!(refusal(&link).contains("in use"));
}

#[cfg(unix)]
#[test]
fn its_files_are_their_owners_alone() {
    use std::os::unix::fs::PermissionsExt;
    let fixture = Fixture::new();
    let _ledger = fixture.open();
    for suffix in ["", ".lock", "-wal", "-shm"] {
        let file = fixture.directory.path().join(format!("ledger.db{suffix}"));
        let mode = fs::metadata(&file).expect("is there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{}", file.display());
    }
}

#[test]
fn a_later_version_is_refused() {
    let (fixture, db) = Fixture::new().made();
    db.pragma_update(None, "user_version", 99).expect("writes");
    drop(db);
    assert!(refusal(&fixture.path()).contains("later version"));
}

#[test]
fn another_database_is_refused_and_left_as_it_is() {
    let fixture = Fixture::new();
    let db = Connection::open(fixture.path()).expect("connects");
    db.execute_batch("CREATE TABLE theirs (x); PRAGMA user_version = 1")
        .expect("writes");
    drop(db);
    let before = fs::read(fixture.path()).expect("reads");
    assert!(refusal(&fixture.path()).contains("not a ledger"));
    assert_eq!(fs::read(fixture.path()).expect("reads"), before);
}

#[test]
fn what_is_no_database_is_refused_and_left_as_it_is() {
    let fixture = Fixture::new();
    for garbage in [
        &b"crk,email\n"[..],
        b"x",
        b"SQLite format 3\0 and then nothing that makes sense",
    ] {
        fs::write(fixture.path(), garbage).expect("writes");
        assert!(refusal(&fixture.path()).contains("not a ledger"));
        assert_eq!(fs::read(fixture.path()).expect("reads"), garbage);
    }
}

#[test]
fn a_wal_without_its_database_is_not_thrown_away() {
    let fixture = Fixture::new();
    let wal = fixture.directory.path().join("ledger.db-wal");
    fs::write(&wal, b"claims").expect("writes");
    assert!(refusal(&fixture.path()).contains("restore"));
    assert_eq!(fs::read(&wal).expect("reads"), b"claims");
}

#[test]
fn a_place_that_can_hold_no_file_is_refused() {
    let fixture = Fixture::new();
    assert!(refusal(fixture.directory.path()).contains("is a directory"));
    assert!(refusal(&fixture.directory.path().join("missing/ledger.db")).contains("missing"));
    assert!(refusal(Path::new("/")).contains("not the name of a file"));
}

#[cfg(unix)]
#[test]
fn a_file_or_directory_that_is_read_only_is_refused() {
    use std::os::unix::fs::PermissionsExt;
    let set = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("sets");
    let (fixture, db) = Fixture::new().made();
    drop(db);
    set(&fixture.path(), 0o400);
    if fs::OpenOptions::new().write(true).open(fixture.path()).is_ok() {
        return; // The superuser may write anything.
    }
    assert!(refusal(&fixture.path()).contains("writing"));
    let elsewhere = fixture.directory.path().join("elsewhere");
    fs::create_dir(&elsewhere).expect("creates");
    set(&elsewhere, 0o500);
    assert!(refusal(&elsewhere.join("ledger.db")).contains("can't be locked"));
}

#[tokio::test]
async fn what_was_acknowledged_is_in_the_files() {
    let fixture = Fixture::new();
    let ledger = fixture.open();
    let keys: Vec<_> = (0..200).map(|n| key(&n.to_string())).collect();
    for answer in join_all(keys.iter().map(|key| ledger.claim(a_claim(key, 1)))).await {
        assert_eq!(answer.expect("claims"), FIRST);
    }
    for answer in join_all(keys[..100].iter().map(|key| ledger.settle(key, added(), Timestamp(2)))).await {
        answer.expect("settles");
    }

    // As a crash would leave them, the WAL's index excepted, which SQLite makes anew.
    let copy = Fixture::new();
    for suffix in ["", "-wal"] {
        let name = format!("ledger.db{suffix}");
        fs::copy(fixture.directory.path().join(&name), copy.directory.path().join(&name)).expect("copies");
    }
    let ledger = copy.open();
    for (n, key) in keys.iter().enumerate() {
        let record = ledger.look_up(key).await.expect("looks up").expect("is there");
        assert_eq!(
            record.state,
            if n < 100 { State::Added } else { State::InDoubt },
            "{key:?}"
        );
    }
}

#[tokio::test]
async fn claims_at_once_share_transactions() {
    let fixture = Fixture::new();
    let ledger = fixture.open();
    // A stranger's lock holds up the first batch until all claims are queued.
    let db = Connection::open(fixture.path()).expect("connects");
    let changes = || {
        db.query_row("PRAGMA data_version", [], |row| row.get::<_, i64>(0))
            .expect("reads")
    };
    let before = changes();
    db.execute_batch("BEGIN IMMEDIATE").expect("begins");
    // No more than tokio lets a task do in one go.
    let keys: Vec<_> = (0..100).map(|n| key(&n.to_string())).collect();
    let mut claims = join_all(keys.iter().map(|key| ledger.claim(a_claim(key, 1)))).boxed();
    assert!(claims.as_mut().now_or_never().is_none());
    db.execute_batch("ROLLBACK").expect("rolls back");
    assert!(
        claims
            .await
            .iter()
            .all(|answer| matches!(answer, Ok(claimed) if *claimed == FIRST))
    );
    assert_ne!(changes(), before);
    let frames: i64 = db
        .query_row("PRAGMA wal_checkpoint", [], |row| row.get(1))
        .expect("checkpoints");
    assert!(
        frames < 100,
        "{frames} pages for 500 claims: at least one transaction, and two pages, each"
    );
}

#[tokio::test]
async fn a_full_disk_refuses_claims_until_there_is_space() {
    let fixture = Fixture::new();
    let ledger = fixture.open();
    assert_eq!(ledger.claim(a_claim(&key("first"), 1)).await.expect("claims"), FIRST);
    sql(&ledger.writer, "PRAGMA max_page_count = 1")
        .await
        .expect("as small as it is");

    let keys: Vec<_> = (0..500).map(|n| key(&format!("{n:03}"))).collect();
    let mut claimed = 0;
    while let Ok(answer) = ledger.claim(a_claim(&keys[claimed], 1)).await {
        assert_eq!(answer, FIRST);
        claimed += 1;
    }
    let (before, refused) = keys.split_at(claimed);
    for answer in join_all(refused.iter().map(|key| ledger.claim(a_claim(key, 1)))).await {
        assert!(assert_unavailable(answer).contains("full"));
    }
    assert!(assert_unavailable(ledger.check().await).contains("full"));
    assert_eq!(ledger.look_up(&refused[0]).await.expect("looks up"), None);
    // What needs no more room is done all the same.
    ledger
        .settle(&key("first"), added(), Timestamp(2))
        .await
        .expect("settles");

    sql(&ledger.writer, "PRAGMA max_page_count = 4294967294")
        .await
        .expect("sets");
    ledger.check().await.expect("works again");
    for answer in join_all(refused.iter().map(|key| ledger.claim(a_claim(key, 3)))).await {
        assert_eq!(answer.expect("claims"), FIRST);
    }
    for key in before {
        let record = ledger.look_up(key).await.expect("looks up").expect("is there");
        assert_eq!((record.state, record.attempts), (State::Pending, 1));
    }
}

#[tokio::test]
async fn it_works_again_once_it_may_write_again() {
    let fixture = Fixture::new();
    let ledger = fixture.open();
    // A state of the connection: that it ends shows that a new one was opened.
    let error = assert_unavailable(sql(&ledger.writer, "PRAGMA query_only = ON; DELETE FROM probe").await);
    assert!(error.contains("readonly"), "{error}");
    assert_eq!(ledger.claim(a_claim(&key("1"), 1)).await.expect("claims"), FIRST);
    ledger.check().await.expect("works");
}

#[tokio::test]
async fn a_ledger_that_was_removed_is_not_made_anew() {
    let fixture = Fixture::new();
    let ledger = fixture.open();
    fs::remove_file(fixture.path()).expect("removes");
    sql(&ledger.writer, "no SQL").await.expect_err("fails");
    assert_unavailable(ledger.claim(a_claim(&key("1"), 1)).await);
    assert_unavailable(ledger.check().await);
    assert!(!fixture.path().exists());
}

#[tokio::test]
async fn a_batch_that_failed_leaves_nothing() {
    let fixture = Fixture::new();
    let ledger = fixture.open();
    let claim = a_claim(&key("1"), 1);
    // The second failure leaves no transaction to roll back, and none to commit.
    for failing in ["INSERT INTO no_such_table VALUES (1)", "ROLLBACK"] {
        let (beside, failed) = tokio::join!(ledger.claim(claim.clone()), sql(&ledger.writer, failing));
        assert_unavailable(failed);
        if beside.is_ok() {
            // The thread was quick, and made two batches of it.
            ledger.release(&claim.key).await.expect("releases");
        }
        assert_eq!(ledger.look_up(&claim.key).await.expect("looks up"), None);
    }
    assert_eq!(ledger.claim(claim).await.expect("claims"), FIRST);
}

#[tokio::test]
async fn a_check_finds_out_what_became_of_the_reader() {
    let fixture = Fixture::new();
    let ledger = fixture.open();
    sql(&ledger.reader, "no SQL").await.expect_err("fails");
    assert!(!ledger.reader.is_healthy());
    ledger.check().await.expect("works again");
    assert!(ledger.reader.is_healthy());
    sql(&ledger.writer, "no SQL").await.expect_err("fails");
    assert!(!ledger.writer.is_healthy());
    ledger.check().await.expect("works again");
    assert!(ledger.writer.is_healthy());
}

struct Pragma(&'static str);

impl Operation for Pragma {
    type Answer = String;

    fn run(&self, db: &Connection, _: &mut Change) -> Result<String, Fault> {
        let value = db.query_row(&format!("PRAGMA {}", self.0), [], |row| {
            row.get::<_, rusqlite::types::Value>(0)
        })?;
        Ok(format!("{value:?}"))
    }
}

#[tokio::test]
async fn every_commit_is_synced_also_after_connecting_again() {
    let fixture = Fixture::new();
    let ledger = fixture.open();
    for _ in 0..2 {
        let synchronous = ledger.writer.ask(Pragma("synchronous")).await;
        assert_eq!(synchronous.expect("asks"), "Integer(2)", "FULL");
        assert_eq!(
            ledger.writer.ask(Pragma("journal_mode")).await.expect("asks"),
            "Text(\"wal\")"
        );
        sql(&ledger.writer, "no SQL")
            .await
            .expect_err("fails, so that the next batch connects again");
    }
}

#[tokio::test]
async fn after_closing_it_is_unavailable_and_has_no_wal() {
    let fixture = Fixture::new();
    let ledger = fixture.open();
    ledger.claim(a_claim(&key("1"), 1)).await.expect("claims");
    tokio::join!(ledger.close(), ledger.close());
    assert_unavailable(ledger.claim(a_claim(&key("2"), 1)).await);
    assert_unavailable(ledger.look_up(&key("1")).await);
    assert_unavailable(ledger.list(Query::default()).await);
    assert_unavailable(ledger.check().await);
    assert!(!fixture.directory.path().join("ledger.db-wal").exists());
}

#[tokio::test]
async fn steps_begun_before_closing_are_finished() {
    let fixture = Fixture::new();
    let ledger = fixture.open();
    // No more than tokio lets a task do in one go.
    let keys: Vec<_> = (0..100).map(|n| key(&n.to_string())).collect();
    let claims = join_all(keys.iter().map(|key| ledger.claim(a_claim(key, 1))));
    let (answers, ()) = tokio::join!(claims, ledger.close());
    assert!(answers.iter().all(Result::is_ok));
}

#[tokio::test]
async fn a_record_that_makes_no_sense_is_an_error_of_its_own() {
    let (fixture, db) = Fixture::new().made();
    let insert = "INSERT INTO invitation VALUES ('c', ?1, ?2, ?3, ?4, 0, 0, ?5, NULL, NULL)";
    let print = [1_u8; 32];
    db.execute(insert, ("short", [1_u8; 3], 2, 1, None::<i64>))
        .expect("inserts");
    db.execute(insert, ("negative", print, 2, -1, None::<i64>))
        .expect("inserts");
    db.execute(insert, ("unknown reason", print, 3, 1, 250))
        .expect("inserts");
    db.execute(insert, ("unread reason", print, 3, 1, 70_000))
        .expect("inserts");
    drop(db);

    let ledger = fixture.open();
    let claims = ["short", "negative", "fine"].map(|crk| ledger.claim(a_claim(&key(crk), 1)));
    let [short, negative, fine] = <[_; 3]>::try_from(join_all(claims).await).expect("three");
    assert!(!assert_unavailable(short).contains("short"));
    assert_unavailable(negative);
    assert_eq!(fine.expect("claims"), FIRST);
    for crk in ["unknown reason", "unread reason"] {
        let record = ledger.look_up(&key(crk)).await.expect("looks up").expect("is there");
        assert_eq!((record.state, record.last_error), (State::Failed, None), "{crk}");
        let claimed = ledger.claim(a_claim(&key(crk), 1)).await;
        assert!(matches!(claimed, Ok(Claimed::Yes { attempts: 2, .. })), "{claimed:?}");
    }
}

#[test]
fn no_listing_scans_or_sorts_the_table() {
    let (_fixture, db) = Fixture::new().made();
    let states = [None, Some(State::Added), Some(State::Failed), Some(State::InDoubt)];
    for (state, collector, after) in states
        .iter()
        .flat_map(|state| [None, Some("c")].map(|id| [false, true].map(|after| (*state, id, after))))
        .flatten()
    {
        let query = Query {
            state,
            collector_id: collector.map(Into::into),
            after: after.then(|| key("1")),
            limit: 1,
        };
        let pending = state.is_none().then_some(read::Table::Pending);
        for table in [read::Table::Invitation].into_iter().chain(pending) {
            let sql = format!("EXPLAIN QUERY PLAN {}", read::listing(&query, table));
            let mut statement = db.prepare(&sql).expect("prepares");
            let plan: Vec<String> = statement
                .raw_query()
                .mapped(|row| row.get(3))
                .collect::<Result<_, _>>()
                .expect("explains");
            let shown = plan
                .iter()
                .find(|line| line.contains(" shown"))
                .expect("reads the table");
            let expected = match (state, table) {
                (Some(State::Failed | State::InDoubt), read::Table::Invitation) => "invitation_not_added (state=?",
                _ if collector.is_some() => "PRIMARY KEY (collector_id=?",
                _ if after => "PRIMARY KEY ((collector_id,crk)>(?,?)",
                // From the first key on, until the page is full.
                _ => "SCAN shown",
            };
            assert!(shown.contains(expected), "{query:?}: {plan:?}");
            assert!(
                !plan.iter().any(|line| line.contains("TEMP B-TREE")),
                "{query:?}: {plan:?}"
            );
        }
    }
}
