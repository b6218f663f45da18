//! `migrate-ledger`: whatever happens, the database holds what the file held or no gateway starts on it, and nothing that it
//! held before is overwritten.

use std::{
    fs,
    path::{Path, PathBuf},
};

use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use rusqlite::{Connection, params};
use surveylab_gateway::{
    clock::Clock,
    ledger::sqlite::Sqlite,
    proto::{InvitationState, Outcome},
    sandbox::{Fault, Gate},
};
use tempfile::TempDir;

use crate::support::{
    Gateway, Options,
    call::{add, added, get, request},
    calling,
    gateway::{run, surveylab},
    postgres::{self, Database},
    process::Process,
    watch::{list, soon, until},
};

/// Exit code, stdout, stderr.
type Ran = (Option<i32>, String, String);

const INSERT: &str = "INSERT INTO invitation (collector_id, crk, fingerprint, state, attempts, created_at, updated_at, \
                      reason, http_status, notification) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)";

/// A ledger with keys of every kind, so many of them added; and one that a dead process had on the wire.
struct Source {
    _directory: TempDir,
    path: PathBuf,
}

impl Source {
    fn of(added: u32) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("ledger.db");
        drop(Sqlite::open(&path, &Clock::system()).unwrap());
        let source = Self {
            _directory: directory,
            path,
        };
        let mut db = source.db();
        let transaction = db.transaction().unwrap();
        let row = |collector: &str, crk: &str, state: i64, reason: Option<i64>, text: Option<&str>| {
            let http_status = reason.filter(|reason| *reason != 11).map(|_| 400);
            let values = params![
                collector,
                crk,
                [state as u8; 32],
                state,
                4_294_967_295_u32,
                1,
                2_i64.pow(50),
                reason,
                http_status,
                text
            ];
            transaction.prepare_cached(INSERT).unwrap().execute(values).unwrap();
        };
        for number in 0..added {
            row(
                "c",
                &format!("k{number:06}"),
                2,
                None,
                Some("Action processed correctly"),
            );
        }
        // Their order is bytewise in the file, and by the rules of a language in the database, unless it is told otherwise.
        for crk in ["Z", "a", "ä", "z", "ż 1", "%", "'; --"] {
            row("C-1", crk, 2, None, Some("\u{201e}zażółć\u{201d}\n\0"));
        }
        row("c", "failed", 3, Some(2), Some("no such collector"));
        row("c", "doubt", 4, Some(11), None);
        row("c", "wire again", 3, Some(2), None);
        let pending = "INSERT INTO pending VALUES ('c', ?1, zeroblob(32), 2, 3, 4)";
        for crk in ["wire", "wire again"] {
            transaction.execute(pending, [crk]).unwrap();
        }
        transaction.commit().unwrap();
        drop(db);
        source
    }

    fn db(&self) -> Connection {
        Connection::open(&self.path).unwrap()
    }

    fn url(&self) -> String {
        format!("sqlite:{}", self.path.display())
    }

    fn bytes(&self) -> Vec<u8> {
        fs::read(&self.path).unwrap()
    }

    async fn migrate_with(&self, database: &Database<'_>, flags: &[&str]) -> Ran {
        let (from, to) = (self.url(), database.url());
        soon(run(
            &[&["migrate-ledger", from.as_str(), to.as_str()], flags].concat(),
            &[],
        ))
        .await
    }

    async fn migrate(&self, database: &Database<'_>) -> Ran {
        self.migrate_with(database, &[]).await
    }
}

fn rows(database: &Database<'_>) -> String {
    database.sql("SELECT * FROM invitation ORDER BY collector_id, crk")
}

/// How a gateway fails to start on it, if it does.
async fn refusal(database: &Database<'_>) -> Option<String> {
    let sandbox = surveylab().await;
    let options = Options::new().flag("--ledger", database.url());
    match Gateway::try_in_front_of(&sandbox.url(), options).await {
        Ok(_) => None,
        Err((status, log)) => {
            assert_eq!(status.code(), Some(2), "{log}");
            Some(log)
        }
    }
}

/// The digests of both sides, as they were told.
fn digests(stdout: &str) -> Vec<&str> {
    let lines = stdout.lines();
    lines.filter_map(|line| Some(line.split_once("SHA-256 ")?.1)).collect()
}

#[tokio::test]
async fn all_of_a_ledger_arrives_and_what_was_on_the_wire_is_in_doubt() {
    let database = postgres::shared().database();
    let source = Source::of(12_000);
    let before = source.bytes();
    let (code, stdout, stderr) = source.migrate_with(&database, &["--dry-run"]).await;
    assert_eq!((code, stderr.as_str()), (Some(0), ""), "{stdout}");
    assert!(
        stdout.contains("12 011 keys would be moved; nothing was written"),
        "{stdout}"
    );
    assert_eq!(
        database.sql("SELECT count(*) FROM pg_class WHERE relname = 'invitation'"),
        "0"
    );
    let (code, _, stderr) = source.migrate_with(&database, &["--verify-only"]).await;
    assert_eq!(code, Some(1), "{stderr}");
    assert!(stderr.contains("12 011 keys are not in the database"), "{stderr}");

    let (code, stdout, stderr) = source.migrate(&database).await;
    assert_eq!((code, stderr.as_str()), (Some(0), ""), "{stdout}");
    let counts = "12 011 keys: 12 007 added, 1 failed, 3 in doubt; SHA-256 ";
    assert_eq!(stdout.matches(counts).count(), 2, "{stdout}");
    assert!(stdout.contains("2 of the keys in doubt were on the wire"), "{stdout}");
    assert!(stdout.contains("NO GATEWAY MUST BE STARTED ON IT ANY MORE"), "{stdout}");
    assert!(!stdout.contains("ss/w"), "the password: {stdout}");
    let told = digests(&stdout);
    assert_eq!(told[0], told[1]);
    assert_eq!(source.bytes(), before, "the file was changed");

    // Once more, and only looked at: the same.
    for flags in [&[][..], &["--verify-only"]] {
        let (code, again, _) = source.migrate_with(&database, flags).await;
        assert_eq!((code, digests(&again)), (Some(0), told.clone()), "{again}");
    }
    let columns = "crk, encode(substr(fingerprint, 1, 2), 'hex'), state, attempts, created_at, updated_at, reason, http_status, \
                   notification";
    let some = format!("SELECT {columns} FROM invitation WHERE state <> 2 ORDER BY crk");
    assert_eq!(
        database.sql(&some),
        "doubt|0404|4|4294967295|1|1125899906842624|11||\n\
         failed|0303|3|4294967295|1|1125899906842624|2|400|no such collector\n\
         wire|0000|4|2|3|4|11||\n\
         wire again|0000|4|2|3|4|11||"
    );

    // A gateway goes on with it.
    let sandbox = surveylab().await;
    let gateway = Gateway::with(Options::new().flag("--ledger", database.url()), &sandbox).await;
    let client = gateway.client().await;
    let mut known = request("k000007");
    known.collector_id = "c".into();
    assert_eq!(add(&client, known).await.unwrap_err().reason, "CRK_REUSED");
    assert_eq!(
        list(&client, InvitationState::InDoubt).await,
        ["doubt", "wire", "wire again"]
    );
    assert_eq!(list(&client, InvitationState::Unspecified).await.len(), 12_011);
}

#[tokio::test]
async fn a_gateways_own_ledger_moves_and_its_callers_find_what_they_knew() {
    let database = postgres::shared().database();
    let sandbox = surveylab().await;
    let gate = Gate::new();
    sandbox.add_fault(Fault::hold(&gate).for_crk("held"));
    let mut gateway = Gateway::with(Options::new().flag("--ledger", "sqlite:ledger.db"), &sandbox).await;
    let client = gateway.client().await;
    assert_eq!(added(&client, request("k")).await, Outcome::Added);
    let before = get(&client, "k").await.unwrap();
    let held = calling(&client, "held");
    sandbox.wait_for_requests(2).await;

    let from = format!("sqlite:{}", gateway.path("ledger.db").display());
    let to = database.url();
    // The database may be told by the environment, as to the gateway.
    let migrate = async || run(&["migrate-ledger", &from], &[("GATEWAY_LEDGER", &to)]).await;
    let (code, stdout, stderr) = soon(migrate()).await;
    assert_eq!(
        (code, stdout.as_str()),
        (Some(3), ""),
        "a gateway runs on the file: {stderr}"
    );
    assert!(
        stderr.contains(&format!("is in use by process {}", gateway.pid())),
        "{stderr}"
    );
    assert!(get(&client, "k").await.is_some());

    gateway.kill();
    gate.release();
    assert!(soon(held).await.unwrap().is_err());
    let (code, stdout, stderr) = soon(migrate()).await;
    assert_eq!((code, stderr.as_str()), (Some(0), ""), "{stdout}");
    assert!(stdout.contains("1 of the keys in doubt"), "{stdout}");
    let gateway = Gateway::with(Options::new().flag("--ledger", to), &sandbox).await;
    let client = gateway.client().await;
    assert_eq!(get(&client, "k").await.unwrap(), before);
    assert_eq!(added(&client, request("k")).await, Outcome::Duplicate);
    let error = add(&client, request("held")).await.unwrap_err();
    assert_eq!(error.reason, "OUTCOME_IN_DOUBT");
    assert_eq!(sandbox.report().requests, 2);
}

#[tokio::test]
async fn a_move_killed_at_any_moment_goes_on_where_it_was() {
    let seed = std::env::var("SEED").map_or_else(|_| rand::random(), |seed| seed.parse().unwrap());
    println!("SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let database = postgres::shared().database();
    let source = Source::of(60_000);
    let arguments = ["migrate-ledger", &source.url(), &database.url()].map(str::to_string);
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let count = || -> u64 {
        // The table comes with the first one.
        if database.sql("SELECT to_regclass('invitation') IS NULL") == "t" {
            return 0;
        }
        database.sql("SELECT count(*) FROM invitation").parse().unwrap()
    };
    let (mut kills, mut ended) = (0, false);
    while kills < 4 && !ended {
        let killed_at = count() + random.random_range(0..15_000);
        let mut process = Process::spawn(&arguments, &[], Path::new("/"));
        until("it has copied some more", async || {
            ended = process.has_ended();
            ended || count() >= killed_at
        })
        .await;
        drop(process);
        let marks = database.sql("SELECT count(*) FROM schema_version WHERE version = 2147483647");
        if marks == "1" {
            kills += 1;
            let log = refusal(&database)
                .await
                .expect("a gateway starts on a part of a ledger");
            assert!(log.contains("is being moved into this database"), "{log}");
        }
    }
    println!("killed {kills} times within the move");
    assert!(kills > 0, "it was over before the first kill");
    let (code, stdout, stderr) = source.migrate(&database).await;
    assert_eq!(code, Some(0), "{stdout}{stderr}");
    assert_eq!(count(), 60_011);
    let told = digests(&stdout);
    assert_eq!(told[0], told[1]);
    assert_eq!(refusal(&database).await, None);
}

#[tokio::test]
async fn a_record_that_differs_is_named_and_nothing_is_written() {
    let database = postgres::shared().database();
    let source = Source::of(50);
    let (code, _, stderr) = source.migrate(&database).await;
    assert_eq!(code, Some(0), "{stderr}");
    // What the verification of a move has to find as well: one bit of one row.
    let changes = [
        (
            "UPDATE invitation SET fingerprint = set_byte(fingerprint, 31, 0) WHERE crk = 'k000013'",
            "c/k000013",
        ),
        (
            "UPDATE invitation SET updated_at = updated_at + 1 WHERE crk = 'ä'",
            "C-1/ä",
        ),
        (
            "UPDATE invitation SET notification = NULL WHERE crk = 'failed'",
            "c/failed",
        ),
        (
            "INSERT INTO invitation VALUES ('c', 'zz', sha256(''), 2, 1, 1, 1)",
            "c/zz",
        ),
        (
            "INSERT INTO invitation VALUES ('b', 'other', sha256(''), 2, 1, 1, 1)",
            "b/other",
        ),
        (
            "INSERT INTO pending VALUES ('c', 'k000020', sha256(''), false, 1, gen_random_uuid(), gen_random_uuid())",
            "c/k000020",
        ),
    ];
    let right = rows(&database);
    for (change, key) in changes {
        // One is missing as well: it is not to be written beside what is wrong.
        database.sql(&format!("{change}; DELETE FROM invitation WHERE crk = 'k000049'"));
        let changed = rows(&database);
        for flags in [&[][..], &["--verify-only"], &["--dry-run"]] {
            let (code, stdout, stderr) = source.migrate_with(&database, flags).await;
            assert_eq!(code, Some(3), "{change}: {stdout}{stderr}");
            assert!(stderr.contains(&format!(" holds {key} ")), "{change}: {stderr}");
            let told = digests(&stdout);
            assert_ne!(told[0], told[1]);
        }
        assert_eq!(rows(&database), changed);
        // It was complete before, and is not to be kept from those who use it.
        assert_eq!(
            database.sql("SELECT max(version) FROM schema_version WHERE version > 1000"),
            ""
        );
        database.sql("TRUNCATE invitation, pending");
        let (code, _, stderr) = source.migrate(&database).await;
        assert_eq!(code, Some(0), "{stderr}");
        assert_eq!(rows(&database), right);
    }
}

#[tokio::test]
async fn what_changes_behind_its_back_is_found_by_the_verification_and_no_gateway_starts() {
    let database = postgres::shared().database();
    let source = Source::of(50);
    // The tables, and something in them that spoils one row on its way in.
    let sandbox = surveylab().await;
    let gateway = Gateway::with(Options::new().flag("--ledger", database.url()), &sandbox).await;
    let (code, _, stderr) = source.migrate(&database).await;
    assert_eq!(code, Some(3), "a gateway runs on the database: {stderr}");
    assert!(stderr.contains("a gateway runs on the target"), "{stderr}");
    assert_eq!(rows(&database), "");
    gateway.signal("TERM");
    assert!(soon(gateway.ended()).await.success());
    database.sql(
        "CREATE FUNCTION spoil() RETURNS trigger LANGUAGE plpgsql AS \
         $$ BEGIN IF NEW.crk = 'k000031' THEN NEW.attempts := 1; END IF; RETURN NEW; END $$; \
         CREATE TRIGGER spoil BEFORE INSERT ON invitation FOR EACH ROW EXECUTE FUNCTION spoil()",
    );
    let (code, stdout, stderr) = source.migrate(&database).await;
    assert_eq!(code, Some(3), "{stdout}{stderr}");
    assert!(
        stderr.contains("holds c/k000031 otherwise than the SQLite ledger"),
        "{stderr}"
    );
    let told = digests(&stdout);
    assert_ne!(told[0], told[1]);
    let log = refusal(&database).await.expect("a gateway starts on what is wrong");
    assert!(log.contains("is being moved into this database"), "{log}");

    database.sql("DROP TRIGGER spoil ON invitation; DELETE FROM invitation WHERE crk = 'k000031'");
    let (code, _, stderr) = source.migrate(&database).await;
    assert_eq!(code, Some(0), "{stderr}");
    assert_eq!(refusal(&database).await, None);
}

#[tokio::test]
async fn a_gateway_that_comes_in_the_middle_ends_the_move() {
    let database = postgres::shared().database();
    let source = Source::of(6_000);
    // As one that looked before there was a mark, and enters after the first batch.
    database.sql("CREATE TABLE late (done boolean)");
    let (code, _, stderr) = Source::of(0).migrate(&database).await;
    assert_eq!(code, Some(0), "{stderr}");
    database.sql(
        "TRUNCATE invitation; CREATE FUNCTION enter() RETURNS trigger LANGUAGE plpgsql AS \
         $$ BEGIN INSERT INTO replica VALUES (gen_random_uuid(), 'late/1', now(), now() + interval '1 hour'); RETURN NULL; END $$; \
         CREATE TRIGGER enter AFTER INSERT ON invitation FOR EACH STATEMENT EXECUTE FUNCTION enter()",
    );
    let (code, stdout, stderr) = source.migrate(&database).await;
    assert_eq!(code, Some(3), "{stdout}{stderr}");
    assert!(stderr.contains("a gateway runs on the target (late/1)"), "{stderr}");
    assert_eq!(database.sql("SELECT count(*) FROM invitation"), "5000");

    database.sql("DROP TRIGGER enter ON invitation; DELETE FROM replica");
    let (code, _, stderr) = source.migrate(&database).await;
    assert_eq!(code, Some(0), "{stderr}");
    assert!(stderr.contains("5 000 keys are there already; going on"), "{stderr}");
}

#[tokio::test]
async fn what_can_not_be_moved_is_told_by_its_exit_code() {
    let database = postgres::shared().database();
    let source = Source::of(3);
    let to = database.url();
    let directory = tempfile::tempdir().unwrap();
    let none = format!("sqlite:{}", directory.path().join("none.db").display());
    let other = directory.path().join("other.db");
    fs::write(&other, "this is no database, whatever else it is").unwrap();
    let other = format!("sqlite:{}", other.display());
    let nobody = database.url_by("127.0.0.1:1");
    let stranger = to.replace("gateway:", "stranger:");
    let from = source.url();
    for (from, to, wanted) in [
        (none.as_str(), to.as_str(), Some(2)),
        (&other, &to, Some(2)),
        (&from, &nobody, Some(1)),
        (&from, &stranger, Some(2)),
        (&to, &from, Some(2)),
        ("memory:", &to, Some(2)),
    ] {
        let (code, stdout, stderr) = soon(run(&["migrate-ledger", from, to], &[])).await;
        assert_eq!((code, stdout.as_str()), (wanted, ""), "{stderr}");
        assert!(
            stderr.starts_with("surveylab-gateway: ") && !stderr.contains("ss/w") && !stderr.contains("ss%2Fw"),
            "{stderr}"
        );
    }
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1, "a file was made");

    // A record that this version can't read: nothing at all is written.
    source
        .db()
        .execute("UPDATE invitation SET reason = 99 WHERE crk = 'failed'", [])
        .unwrap();
    let (code, _, stderr) = source.migrate(&database).await;
    assert_eq!(code, Some(3), "{stderr}");
    assert!(stderr.contains("the record of c/failed can't be moved"), "{stderr}");
    assert_eq!(
        database.sql("SELECT count(*) FROM pg_class WHERE relname = 'invitation'"),
        "0"
    );
}
