use std::{
    fs::{self, Permissions},
    os::unix::fs::{FileExt as _, PermissionsExt as _},
    process::Command,
};

use rusqlite::Connection;
use surveylab_gateway::{
    proto::{InvitationState, Resolution},
    sandbox::{Fault, Gate},
};

use super::{LEDGER, checked, files, give_away, insert, json, ledger, made, over, stop, told, without_privileges};
use crate::{
    disk::SmallDisk,
    support::{
        Gateway,
        call::{COLLECTOR, add, get, last_error, resolve, state},
        calling,
        gateway::surveylab,
        request,
        watch::soon,
    },
};

#[tokio::test]
async fn a_check_tells_what_is_in_a_ledger_whether_a_gateway_runs_or_not() {
    let sandbox = surveylab().await;
    let gate = Gate::new();
    sandbox.add_fault(Fault::status(404).for_crk("failed"));
    sandbox.add_fault(Fault::reset_before_answer().for_crk_prefix("doubt"));
    sandbox.add_fault(Fault::hold(&gate).for_crk("pending"));
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join(LEDGER);
    let gateway = Gateway::with(over(&path), &sandbox).await;
    let client = gateway.client().await;
    for crk in ["a1", "a2", "failed", "doubt1", "doubt2", "doubt3"] {
        let _ = add(&client, request(crk)).await;
    }
    resolve(&client, "doubt1", Resolution::Added).await.unwrap();
    let call = calling(&client, "pending");
    soon(sandbox.wait_for_requests(7)).await;

    let (code, report) = checked(&path).await;
    assert_eq!(code, Some(0));
    assert_eq!(
        report["gateway"],
        serde_json::json!({ "running": true, "process": gateway.pid() })
    );
    let keys = serde_json::json!({ "total": 7, "added": 3, "failed": 1, "inDoubt": 2, "pending": 1 });
    assert_eq!(
        (&report["keys"], &report["damaged"], &report["schemaVersion"]),
        (&keys, &false.into(), &1.into())
    );
    assert_eq!(report["oldestDoubt"]["crk"], "doubt2");
    let newest = time(&get(&client, "pending").await.unwrap().updated_at.unwrap());
    assert_eq!(report["lastChange"], newest.as_str());
    let text = told(&path, &["check"]).await;
    for line in [
        format!("gateway      running, process {}", gateway.pid()),
        "keys         7: 3 added, 1 failed, 2 in doubt, 1 pending".into(),
        format!("last change  {newest}"),
        "result       whole".into(),
    ] {
        assert!(text.lines().any(|told| told == line), "{line}\n{text}");
    }
    assert!(
        text.contains(&format!("oldest doubt {COLLECTOR}/doubt2 since ")),
        "{text}"
    );

    // A check puts nothing in doubt: the claim is still one, and its outcome is recorded.
    gate.release();
    soon(call).await.unwrap().unwrap();
    assert_eq!(state(&client, "pending").await, Some(InvitationState::Added));
    let gateway = stop(gateway).await;
    let before = files(directory.path());
    let (code, report) = checked(&path).await;
    assert_eq!(code, Some(0));
    assert_eq!(report["gateway"]["running"], false);
    assert_eq!(
        (&report["keys"]["added"], &report["keys"]["pending"]),
        (&4.into(), &0.into())
    );
    assert_eq!(report["files"][0]["bytes"], before[&path].1.len());
    assert_eq!(files(directory.path()), before);
    drop(gateway);
}

/// As the commands print it.
fn time(time: &prost_types::Timestamp) -> String {
    let time = std::time::SystemTime::try_from(*time).unwrap();
    humantime::format_rfc3339_micros(time).to_string()
}

#[tokio::test]
async fn what_a_crash_has_left_is_left_as_it_is() {
    let sandbox = surveylab().await;
    let gate = Gate::new();
    sandbox.add_fault(Fault::hold(&gate).for_crk("pending"));
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join(LEDGER);
    let mut gateway = Gateway::with(over(&path), &sandbox).await;
    let client = gateway.client().await;
    add(&client, request("added")).await.unwrap();
    let call = calling(&client, "pending");
    soon(sandbox.wait_for_requests(2)).await;
    gateway.kill();
    soon(call).await.unwrap().unwrap_err();

    let wal = directory.path().join("ledger.db-wal");
    let before = files(directory.path());
    assert!(!before[&wal].1.is_empty(), "the kill leaves a WAL");
    for _ in 0..2 {
        let (code, report) = checked(&path).await;
        assert_eq!(
            (code, &report["keys"]["pending"], &report["keys"]["added"]),
            (Some(0), &1.into(), &1.into())
        );
        told(&path, &["export"]).await;
        let copy = directory.path().join("copy.db");
        told(&path, &["backup", "--force", copy.to_str().unwrap()]).await;
        fs::remove_file(&copy).unwrap();
    }
    let mut after = files(directory.path());
    // The WAL's index, which SQLite makes anew whenever it likes.
    let index = directory.path().join("ledger.db-shm");
    after.insert(index.clone(), before[&index].clone());
    assert_eq!(after, before);
    gate.release();
    let gateway = gateway.restart().await;
    let client = gateway.client().await;
    assert_eq!(state(&client, "pending").await, Some(InvitationState::InDoubt));
    assert_eq!(last_error(&client, "pending").await.unwrap().reason, "OUTCOME_IN_DOUBT");
}

#[tokio::test]
async fn a_page_with_bytes_overwritten_is_found_and_the_way_out_is_named() {
    let (directory, path) = made(2_000);
    let (page, pages) = {
        let db = Connection::open(&path).unwrap();
        let pragma = |name| {
            db.query_row(&format!("PRAGMA {name}"), [], |row| row.get::<_, i64>(0))
                .unwrap()
        };
        (pragma("page_size"), pragma("page_count"))
    };
    let whole = fs::read(&path).unwrap();
    let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
    // The middle of a page in the middle of the table, where its rows are.
    file.write_all_at(&[0xff; 200], ((pages / 2) * page + page / 2).unsigned_abs())
        .unwrap();

    let (code, stdout, stderr) = ledger(&path, &["check"]).await;
    assert_eq!(code, Some(3), "{stdout}");
    assert!(stdout.contains("result       DAMAGED"), "{stdout}");
    assert!(stderr.contains("restore a backup: docs/operations.md"), "{stderr}");
    let (code, report) = checked(&path).await;
    assert_eq!((code, &report["damaged"]), (Some(3), &true.into()));
    assert!(!report["damage"].as_array().unwrap().is_empty());

    // A copy of it is no backup.
    let copy = directory.path().join("copy.db");
    let (code, _, stderr) = ledger(&path, &["backup", copy.to_str().unwrap()]).await;
    assert_eq!((code, stderr.contains("is damaged")), (Some(3), true), "{stderr}");
    let names: Vec<_> = files(directory.path()).into_keys().collect();
    assert_eq!(names, [path.clone(), directory.path().join("ledger.db.lock")]);
    // What can be read is exported, and the rest is not passed over in silence.
    let (code, stdout, stderr) = ledger(&path, &["export"]).await;
    assert_eq!(code, Some(3));
    assert!(!stderr.is_empty() && stdout.lines().count() < 2_001, "{stderr}");

    // The first page makes a database of it, and a ledger.
    fs::write(&path, &whole).unwrap();
    let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.write_all_at(&[0; 16], 0).unwrap();
    let (code, _, stderr) = ledger(&path, &["check"]).await;
    assert_eq!(
        (code, stderr.contains("docs/operations.md")),
        (Some(3), true),
        "{stderr}"
    );
    // Half of it is gone.
    fs::write(&path, &whole[..whole.len() / 2]).unwrap();
    assert_eq!(checked(&path).await.0, Some(3));
}

#[tokio::test]
async fn a_row_that_makes_no_sense_is_named_and_the_others_are_exported() {
    let (_directory, path) = made(10);
    let db = Connection::open(&path).unwrap();
    let row = "INSERT INTO invitation VALUES ('c', ?1, ?2, ?3, ?4, ?5, ?5, ?6, NULL, NULL)";
    let print = [1_u8; 32];
    let none = None::<i64>;
    db.execute(row, ("m-short", [1_u8; 3], 2, 1, 1, none)).unwrap();
    db.execute(row, ("m-never", print, 2, 1, -1, none)).unwrap();
    db.execute(row, ("m-unread", print, 3, 1, 1, 70_000)).unwrap();
    db.execute(row, ("m-mixed", print, 2, 1, 1, 5)).unwrap();
    db.execute(row, ("m-later", print, 3, 1, 1, 250)).unwrap();
    let claim = "INSERT INTO pending VALUES ('c', ?1, ?2, 2, 1, 1)";
    db.execute(claim, ("k000003", print)).unwrap();
    db.execute(claim, ("k000004-new", [1_u8; 31])).unwrap();
    drop(db);

    let (code, report) = checked(&path).await;
    let damage: Vec<&str> = report["damage"]
        .as_array()
        .unwrap()
        .iter()
        .map(|what| what.as_str().unwrap())
        .collect();
    assert_eq!(code, Some(3));
    let expected = [
        "c/m-mixed: its reason does not fit its state",
        "c/m-unread: its reason does not fit its state",
        "c/k000003: it is claimed although it was added",
        "c/k000004-new: its record can't be read",
        "c/m-never: its record can't be read",
        "c/m-short: its record can't be read",
    ];
    assert_eq!(damage, expected);
    assert_eq!(report["findings"], expected.len());

    let (code, stdout, stderr) = ledger(&path, &["export", "--format=ndjson"]).await;
    assert_eq!(code, Some(3));
    let crks: Vec<String> = stdout
        .lines()
        .map(|line| json(line)["crk"].as_str().unwrap().into())
        .collect();
    let named: Vec<&str> = stderr.lines().collect();
    assert_eq!(crks.len(), 10 + 3, "{crks:?}");
    assert!(crks.is_sorted());
    for (line, crk) in named.iter().zip(["k000004-new", "m-never", "m-short"]) {
        assert!(line.contains(&format!("c/{crk}: its record can't be read")), "{stderr}");
    }
    assert_eq!(named.len(), 3);
}

#[tokio::test]
async fn an_index_that_lacks_a_row_is_found() {
    let (_directory, path) = made(3);
    let replace_condition = |from, to| {
        let db = Connection::open(&path).unwrap();
        db.execute_batch(&format!(
            "PRAGMA writable_schema = ON;
             UPDATE sqlite_schema SET sql = replace(sql, '{from}', '{to}') WHERE name = 'invitation_not_added'"
        ))
        .unwrap();
    };
    // A listing of doubts goes by the index; without its row there the key would never be shown to anyone.
    replace_condition("state <> 2", "state = 3");
    insert(&Connection::open(&path).unwrap(), "doubt", 4, Some(11));
    replace_condition("state = 3", "state <> 2");
    let (code, report) = checked(&path).await;
    assert_eq!((code, &report["keys"]["inDoubt"]), (Some(3), &1.into()));
    let damage = report["damage"].to_string();
    assert!(damage.contains("index invitation_not_added"), "{damage}");
}

#[tokio::test]
async fn what_is_no_ledger_of_this_version_is_named_and_left_as_it_is() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    let with_version = |name: &str, version: i64| {
        let (_made, path) = made(1);
        let db = Connection::open(&path).unwrap();
        db.pragma_update(None, "user_version", version).unwrap();
        drop(db);
        fs::copy(&path, at(name)).unwrap();
    };
    with_version("newer.db", 2);
    with_version("older.db", 0);
    fs::write(at("notes.txt"), "Not a ledger, and dear to somebody.\n".repeat(1000)).unwrap();
    fs::write(at("empty.db"), "").unwrap();
    let db = Connection::open(at("theirs.db")).unwrap();
    db.execute_batch("CREATE TABLE theirs (x); PRAGMA user_version = 1")
        .unwrap();
    drop(db);
    let before = files(directory.path());
    let backup = at("backup.db");
    let commands: [&[&str]; 3] = [&["check"], &["backup", backup.to_str().unwrap()], &["export"]];
    for (name, why) in [
        (
            "newer.db",
            "was written by a later version of the gateway (its schema is 2, the latest known here 1)",
        ),
        ("older.db", "is not a ledger"),
        ("notes.txt", "is not a ledger: it is no SQLite database"),
        ("empty.db", "is empty: no gateway has used it yet"),
        (
            "theirs.db",
            "is not a ledger: it is the SQLite database of something else",
        ),
        ("missing.db", "does not exist"),
        ("missing/ledger.db", "does not exist"),
        ("", "is a directory"),
    ] {
        for command in commands {
            let (code, stdout, stderr) = ledger(&at(name), command).await;
            assert_eq!(
                (code, stdout.as_str(), stderr.lines().count()),
                (Some(2), "", 1),
                "{name}: {stderr}"
            );
            assert!(stderr.contains("--ledger") && stderr.contains(why), "{name}: {stderr}");
            assert_eq!(files(directory.path()), before, "{name}");
        }
    }
    let (code, stdout, _) = ledger(&at("missing.db"), &["check", "--json"]).await;
    assert_eq!(code, Some(2));
    assert!(
        json(&stdout)["error"]["message"]
            .as_str()
            .unwrap()
            .contains("does not exist")
    );
    let in_memory = |ledger| {
        let env = [("GATEWAY_LEDGER", ledger)];
        async move { soon(crate::support::gateway::run(&["ledger", "check"], &env)).await }
    };
    let (code, _, stderr) = in_memory("memory:").await;
    assert_eq!((code, stderr.contains("memory:")), (Some(2), true), "{stderr}");
    for (ledger, told) in [
        ("postgres://user:s3cret@host/db", "PostgreSQL"),
        ("postgres://user:s3cret@host:port/db", "GATEWAY_LEDGER"),
        ("mysql://user:s3cret@host/db", "GATEWAY_LEDGER"),
    ] {
        let (code, _, stderr) = in_memory(ledger).await;
        assert_eq!((code, stderr.contains(told)), (Some(2), true), "{stderr}");
        assert!(!stderr.contains("s3cret"), "{stderr}");
    }
}

#[tokio::test]
async fn a_ledger_that_can_only_be_read_is_checked_and_nothing_is_left_beside_it() {
    let (directory, path) = made(100);
    let elsewhere = tempfile::tempdir().unwrap();
    let copy = elsewhere.path().join("copy.db");
    fs::set_permissions(elsewhere.path(), Permissions::from_mode(0o777)).unwrap();
    give_away(directory.path());
    for (file, parent) in [(0o400, 0o500), (0o400, 0o700), (0o600, 0o500)] {
        fs::set_permissions(&path, Permissions::from_mode(file)).unwrap();
        fs::set_permissions(directory.path(), Permissions::from_mode(parent)).unwrap();
        let before = files(directory.path());
        let commands: [&[&str]; 3] = [&["check"], &["export"], &["backup", "--force", copy.to_str().unwrap()]];
        for command in commands {
            let Some((code, text)) = without_privileges(&path, command) else {
                return;
            };
            assert_eq!(code, Some(0), "{file:o} in {parent:o}: {command:?}: {text}");
            assert_eq!(files(directory.path()), before, "{file:o} in {parent:o}");
        }
    }
    // With a WAL that has never been read: what it takes to read it can't be made here, and without it keys would be
    // missing.
    fs::set_permissions(directory.path(), Permissions::from_mode(0o700)).unwrap();
    fs::write(directory.path().join("ledger.db-wal"), [1; 5000]).unwrap();
    give_away(directory.path());
    fs::set_permissions(directory.path(), Permissions::from_mode(0o500)).unwrap();
    let (code, text) = without_privileges(&path, &["check"]).unwrap();
    assert_eq!(
        (code, text.contains("to a directory that you may write to")),
        (Some(2), true),
        "{text}"
    );
    fs::set_permissions(directory.path(), Permissions::from_mode(0o700)).unwrap();
}

#[tokio::test]
async fn a_ledger_on_a_medium_that_is_read_only_is_checked() {
    let (_made, path) = made(100);
    let directory = tempfile::tempdir().unwrap();
    let Some(disk) = SmallDisk::mount(directory.path().join("disk")) else {
        return;
    };
    let there = disk.0.join("ä ?%#.db");
    fs::copy(&path, &there).unwrap();
    let remounted = Command::new("mount")
        .args(["-o", "remount,ro"])
        .arg(&disk.0)
        .status()
        .unwrap();
    assert!(remounted.success());
    let (code, report) = checked(&there).await;
    assert_eq!((code, &report["keys"]["added"]), (Some(0), &100.into()));
    assert_eq!(told(&there, &["export"]).await.lines().count(), 101);
}
