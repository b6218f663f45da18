use std::{
    fs::{self, Permissions},
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::Path,
    process::{Child, Command, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
};

use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use surveylab_gateway::{
    proto::{InvitationState, Outcome},
    sandbox::{Fault, Gate},
};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep},
};

use super::{LEDGER, checked, files, give_away, json, ledger, made, over, told, without_privileges};
use crate::{
    disk::SmallDisk,
    support::{
        Gateway,
        call::{COLLECTOR, add, added},
        gateway::{BINARY, surveylab},
        request,
        watch::{list, soon},
    },
};

#[tokio::test]
async fn a_backup_under_load_holds_all_that_was_acknowledged_and_what_was_on_the_wire_comes_back_in_doubt() {
    let sandbox = surveylab().await;
    let gate = Gate::new();
    sandbox.add_fault(Fault::hold(&gate).for_crk_prefix("held"));
    let (directory, path) = made(60_000);
    let gateway = Gateway::with(over(&path), &sandbox).await;
    let client = gateway.client().await;
    let held = ["held1", "held2", "held3"];
    let mut on_the_wire = JoinSet::new();
    for crk in held {
        let client = client.clone();
        on_the_wire.spawn(async move { add(&client, request(crk)).await });
    }
    soon(sandbox.wait_for_requests(3)).await;

    // Callers go on until the backups are made.
    let acknowledged = Arc::new(Mutex::new(Vec::new()));
    let enough = Arc::new(AtomicBool::new(false));
    let mut load = JoinSet::new();
    for caller in 0..8 {
        let (client, acknowledged, enough) = (client.clone(), acknowledged.clone(), enough.clone());
        load.spawn(async move {
            for i in 0.. {
                if enough.load(Ordering::Relaxed) {
                    return;
                }
                let crk = format!("load{caller}-{i:05}");
                assert_eq!(added(&client, request(&crk)).await, Outcome::Added);
                acknowledged.lock().unwrap().push(crk);
            }
        });
    }
    let mut backups = Vec::new();
    let mut meanwhile = 0;
    while backups.len() < 3 || meanwhile == 0 {
        let round = backups.len();
        soon(sandbox.wait_for_requests(sandbox.report().requests + 200)).await;
        let before = acknowledged.lock().unwrap().clone();
        let file = directory.path().join(format!("backup{round}.db"));
        let made = json(&told(&path, &["backup", "--json", file.to_str().unwrap()]).await);
        assert_eq!(made["bytes"], fs::metadata(&file).unwrap().len());
        assert_eq!(fs::metadata(&file).unwrap().mode() & 0o777, 0o600);
        meanwhile += acknowledged.lock().unwrap().len() - before.len();
        println!(
            "{made}: {} acknowledged before, {meanwhile} meanwhile so far",
            before.len()
        );
        backups.push((file, before, made));
    }
    enough.store(true, Ordering::Relaxed);
    load.join_all().await;

    gate.release();
    on_the_wire.join_all().await;
    let requests = sandbox.report().requests;
    for (file, before, made) in backups {
        // The backup itself tells the same, and that the claims are claims.
        let (code, report) = checked(&file).await;
        assert_eq!((code, &report["damaged"]), (Some(0), &false.into()));
        assert_eq!(
            (&report["keys"]["total"], &report["lastChange"]),
            (&made["keys"], &made["lastChange"])
        );
        assert!(report["keys"]["pending"].as_u64().unwrap() >= 3);
        assert!(report["keys"]["total"].as_u64().unwrap() >= 60_003 + before.len() as u64);

        let gateway = Gateway::with(over(&file), &sandbox).await;
        let client = gateway.client().await;
        let in_doubt = list(&client, InvitationState::InDoubt).await;
        assert_eq!(in_doubt.len() as u64, report["keys"]["pending"].as_u64().unwrap());
        assert_eq!(list(&client, InvitationState::Pending).await, Vec::<String>::new());
        for crk in held {
            assert!(in_doubt.iter().any(|doubt| doubt == crk), "{crk}");
            assert_eq!(add(&client, request(crk)).await.unwrap_err().reason, "OUTCOME_IN_DOUBT");
        }
        for crk in &before {
            assert_eq!(added(&client, request(crk)).await, Outcome::Duplicate, "{crk}");
        }
    }
    assert_eq!(sandbox.report().requests, requests, "nothing was sent again");
    assert_eq!(sandbox.requests_of(COLLECTOR, "held1"), 1);
}

/// In the test of kills.
const KILLS: u32 = 24;

/// The names in a directory.
fn names(directory: &Path) -> Vec<String> {
    let names = files(directory).into_keys();
    names
        .map(|path| path.file_name().unwrap().to_str().unwrap().to_string())
        .collect()
}

fn spawn(path: &Path, arguments: &[&str]) -> Child {
    Command::new(BINARY)
        .args(["ledger", &format!("--ledger=sqlite:{}", path.display())])
        .args(arguments)
        .env_clear()
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

#[tokio::test]
async fn a_kill_at_any_moment_leaves_a_whole_backup_or_none_and_the_next_one_clears_up() {
    let seed = std::env::var("SEED").map_or_else(|_| rand::random(), |seed| seed.parse().unwrap());
    println!("SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let (_made, path) = made(60_000);
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("backup.db");
    let partial = directory.path().join("backup.db.surveylab-gateway-partial");
    let begun = Instant::now();
    assert!(
        spawn(&path, &["backup", file.to_str().unwrap()])
            .wait()
            .unwrap()
            .success()
    );
    let took = begun.elapsed();
    fs::remove_file(&file).unwrap();
    let (mut left, mut whole) = (0, 0);
    for round in 0..KILLS {
        let mut backup = spawn(&path, &["backup", "--force", file.to_str().unwrap()]);
        // Any moment, a while after its end too.
        sleep(took.mul_f64(random.random_range(0.0..1.3))).await;
        backup.kill().unwrap();
        backup.wait().unwrap();
        left += u32::from(partial.exists());
        if file.exists() {
            let (code, report) = checked(&file).await;
            assert_eq!(
                (code, &report["keys"]["added"]),
                (Some(0), &60_000.into()),
                "round {round}"
            );
            whole += 1;
            fs::remove_file(&file).unwrap();
        }
    }
    println!("{KILLS} kills within {took:?}: {whole} left a whole backup, {left} a partial file");
    told(&path, &["backup", file.to_str().unwrap()]).await;
    assert_eq!(names(directory.path()), ["backup.db"]);
    assert_eq!(checked(&file).await.0, Some(0));
    assert_eq!(
        names(directory.path()),
        ["backup.db"],
        "a check leaves nothing beside it"
    );
}

#[tokio::test]
async fn of_two_backups_into_one_file_at_once_none_is_half() {
    let (_made, path) = made(20_000);
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("backup.db");
    for _ in 0..4 {
        let backups: Vec<Child> = (0..4)
            .map(|_| spawn(&path, &["backup", file.to_str().unwrap()]))
            .collect();
        let mut made = 0;
        for mut backup in backups {
            let code = tokio::task::spawn_blocking(move || backup.wait().unwrap().code())
                .await
                .unwrap();
            assert!([Some(0), Some(1), Some(2)].contains(&code), "{code:?}");
            made += u32::from(code == Some(0));
        }
        assert!(made <= 1, "only one makes it");
        if made == 0 {
            // Each took the others' files for left ones, and all gave up.
            assert_eq!(names(directory.path()), Vec::<String>::new());
            continue;
        }
        assert_eq!(names(directory.path()), ["backup.db"]);
        assert_eq!(checked(&file).await.1["keys"]["added"], 20_000);
        fs::remove_file(&file).unwrap();
    }
}

#[tokio::test]
async fn a_backup_that_finds_no_space_says_so_and_leaves_nothing() {
    let (_made, path) = made(20_000);
    let directory = tempfile::tempdir().unwrap();
    let old = directory.path().join("backup.db");
    fs::write(&old, "the one of yesterday").unwrap();

    // A limit of the process's, which needs no privileges: 512 KiB.
    let script = format!(
        "trap '' XFSZ; ulimit -S -f 512; exec \"$0\" ledger --ledger=sqlite:{} backup --force {}",
        path.display(),
        old.display()
    );
    let output = Command::new("bash").args(["-c", &script, BINARY]).output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!((output.status.code(), stderr.lines().count()), (Some(1), 1), "{stderr}");
    assert!(
        stderr.contains("backup.db") && stderr.contains("can't be written"),
        "{stderr}"
    );
    assert_eq!(names(directory.path()), ["backup.db"]);
    assert_eq!(fs::read_to_string(&old).unwrap(), "the one of yesterday");

    let Some(disk) = SmallDisk::mount(directory.path().join("disk")) else {
        return;
    };
    let file = disk.0.join("backup.db");
    let (code, stdout, stderr) = ledger(&path, &["backup", file.to_str().unwrap()]).await;
    assert_eq!((code, stdout.as_str()), (Some(1), ""), "{stderr}");
    assert!(stderr.contains("backup.db") && stderr.contains("full"), "{stderr}");
    assert_eq!(names(&disk.0), Vec::<String>::new());
    let export = disk.0.join("export.csv");
    let (code, _, stderr) = ledger(&path, &["export", "--output", export.to_str().unwrap()]).await;
    assert_eq!((code, stderr.contains("can't be written")), (Some(1), true), "{stderr}");
    assert_eq!(names(&disk.0), Vec::<String>::new());
}

#[tokio::test]
async fn a_backup_goes_nowhere_it_must_not() {
    let sandbox = surveylab().await;
    let (directory, path) = made(10);
    let gateway = Gateway::with(over(&path), &sandbox).await;
    let at = |name: &str| directory.path().join(name);
    fs::write(at("old.db"), "the one of yesterday").unwrap();
    fs::write(at("used.db"), "").unwrap();
    fs::write(at("used.db.lock"), "").unwrap();
    std::os::unix::fs::symlink(&path, at("link.db")).unwrap();
    let before: Vec<String> = names(directory.path());
    let text = |name: &str| at(name).to_str().unwrap().to_string();
    for (target, flag, why) in [
        (text("old.db"), "", "is there already; --force replaces it"),
        (text(LEDGER), "--force", "belongs to a ledger"),
        (text("ledger.db-wal"), "--force", "belongs to a ledger"),
        (text("ledger.db.lock"), "--force", "belongs to a ledger"),
        (text("link.db"), "--force", "belongs to a ledger"),
        (text("used.db"), "--force", "belongs to a ledger"),
        (
            text("missing/backup.db"),
            "",
            "can't be written: No such file or directory",
        ),
        (text("old.db/backup.db"), "", "can't be written: Not a directory"),
        (
            directory.path().to_str().unwrap().into(),
            "--force",
            "is not the name of a file",
        ),
        ("/dev/null".into(), "--force", "is not the name of a file"),
    ] {
        let arguments = ["backup", &target, flag];
        let arguments = &arguments[..if flag.is_empty() { 2 } else { 3 }];
        let (code, stdout, stderr) = ledger(&path, arguments).await;
        assert_eq!(
            (code, stdout.as_str(), stderr.lines().count()),
            (Some(2), "", 1),
            "{target}: {stderr}"
        );
        assert!(stderr.contains(why), "{target}: {stderr}");
        assert_eq!(names(directory.path()), before, "{target}");
    }
    assert_eq!(fs::read_to_string(at("old.db")).unwrap(), "the one of yesterday");
    let said = told(&path, &["backup", &text("old.db"), "--force"]).await;
    assert!(
        said.contains("old.db: 10 keys, ") && said.contains("last change 1970-01-01T00:00:02.000000Z"),
        "{said}"
    );
    assert_eq!(checked(&at("old.db")).await.0, Some(0));
    // The ledger under it is the same, and in use.
    assert_eq!(added(&gateway.client().await, request("new")).await, Outcome::Added);

    let closed = at("closed");
    fs::create_dir(&closed).unwrap();
    fs::set_permissions(&closed, Permissions::from_mode(0o555)).unwrap();
    let (made, path) = super::made(10);
    give_away(made.path());
    give_away(&closed);
    give_away(directory.path());
    let Some((code, text)) = without_privileges(&path, &["backup", closed.join("backup.db").to_str().unwrap()]) else {
        return;
    };
    assert_eq!((code, text.contains("Permission denied")), (Some(2), true), "{text}");
}
