//! What a process can run out of, or lose, while it runs: its ledger's files, file descriptors, threads. Nothing that was
//! acknowledged is lost, nothing is sent that can't be recorded, and it goes on by itself when there is enough again.

use std::{
    fs,
    io::Write as _,
    net::TcpStream,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    process::Command,
};

use surveylab_gateway::{
    proto::{AddRespondentRequest, InvitationState, Outcome},
    sandbox::{Fault, Gate, Sandbox},
};
use tonic::Code;

use crate::support::{
    Error, Gateway, Options,
    call::{COLLECTOR, add, added, state, stream},
    calling,
    gateway::{BINARY, surveylab},
    holding, request,
    watch::{soon, until},
};

const LEDGER: &str = "surveylab-gateway.db";

#[track_caller]
fn assert_unavailable(error: &Error, sent: &str) {
    assert_eq!(
        (error.code, error.reason.as_str(), error.sent()),
        (Code::Unavailable, "LEDGER_UNAVAILABLE", sent)
    );
}

async fn until_ready(gateway: &Gateway) {
    until("/readyz answers 200", async || gateway.admin("/readyz").await.0 == 200).await;
}

fn lines_with(gateway: &Gateway, text: &str) -> usize {
    gateway.log().lines().filter(|line| line.contains(text)).count()
}

const GONE: &str = "a file of the ledger is gone";

// The ledger's files

#[tokio::test]
async fn a_file_of_the_ledger_that_goes_stops_sending_until_it_is_back() {
    for suffix in ["", "-wal", "-shm", ".lock"] {
        let sandbox = surveylab().await;
        let gateway = Gateway::start(&sandbox).await;
        let client = gateway.client().await;
        assert_eq!(added(&client, request("before")).await, Outcome::Added);

        let (file, away) = (gateway.path(&format!("{LEDGER}{suffix}")), gateway.path("away"));
        fs::rename(&file, &away).unwrap();
        // Without any traffic a monitor finds out.
        let (status, why) = gateway.admin("/readyz").await;
        assert_eq!(status, 503, "{suffix}");
        assert!(why.contains("was deleted or moved away"), "{why}");
        for crk in ["new", "before"] {
            assert_unavailable(&add(&client, request(crk)).await.unwrap_err(), "no");
        }
        assert!(!file.exists(), "{suffix} was made anew");
        assert_eq!(sandbox.report().requests, 1);
        assert_eq!(gateway.admin("/healthz").await.0, 200);

        fs::rename(&away, &file).unwrap();
        until_ready(&gateway).await;
        assert_eq!(added(&client, request("before")).await, Outcome::Duplicate);
        assert_eq!(added(&client, request("new")).await, Outcome::Added);
        assert_eq!(sandbox.report().requests, 2);
        let log = gateway.log();
        assert_eq!(lines_with(&gateway, GONE), 1, "{log}");
        assert_eq!(lines_with(&gateway, "the ledger's files are back"), 1, "{log}");
    }
}

#[tokio::test]
async fn a_ledger_replaced_by_a_backup_is_not_written_and_the_backup_stays_whole() {
    let sandbox = surveylab().await;
    let gateway = Gateway::start(&sandbox).await;
    let client = gateway.client().await;
    assert_eq!(added(&client, request("before")).await, Outcome::Added);
    let (file, backup) = (gateway.path(LEDGER), gateway.path("backup"));
    fs::copy(&file, &backup).unwrap();
    let bytes = fs::read(&backup).unwrap();
    fs::rename(&backup, &file).unwrap();
    for crk in ["new", "before"] {
        assert_unavailable(&add(&client, request(crk)).await.unwrap_err(), "no");
    }
    let (_, why) = gateway.admin("/readyz").await;
    assert!(why.contains("was replaced by another file"), "{why}");
    gateway.signal("TERM");
    let (gateway, status) = soon(gateway.once_ended()).await;
    assert!(status.success());
    assert_eq!(fs::read(&file).unwrap(), bytes);
    assert_eq!(lines_with(&gateway, GONE), 1);
    assert_eq!(sandbox.report().requests, 1);
}

/// What a process has open under a name that is gone.
fn open_and_deleted(gateway: &Gateway, name: &str) -> PathBuf {
    let deleted = format!("{name} (deleted)");
    let directory = PathBuf::from(format!("/proc/{}/fd", gateway.pid()));
    fs::read_dir(&directory)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .find(|fd| fs::read_link(fd).is_ok_and(|file| file.to_string_lossy().ends_with(&deleted)))
        .unwrap()
}

#[tokio::test]
async fn a_deleted_ledger_can_be_saved_while_the_process_lives() {
    let sandbox = surveylab().await;
    let mut gateway = Gateway::start(&sandbox).await;
    let client = gateway.client().await;
    for i in 0..50 {
        assert_eq!(added(&client, request(&format!("k{i:02}"))).await, Outcome::Added);
    }
    let names = [LEDGER.to_string(), format!("{LEDGER}-wal")];
    for name in &names {
        fs::remove_file(gateway.path(name)).unwrap();
    }
    assert_unavailable(&add(&client, request("refused")).await.unwrap_err(), "no");

    // As docs/operations.md tells: copy, end the process, put the copies in place, start.
    for name in &names {
        fs::copy(open_and_deleted(&gateway, name), gateway.path(&format!("saved-{name}"))).unwrap();
    }
    gateway.kill();
    for name in &names {
        fs::rename(gateway.path(&format!("saved-{name}")), gateway.path(name)).unwrap();
    }
    let gateway = gateway.restart().await;
    let client = gateway.client().await;
    for i in 0..50 {
        assert_eq!(added(&client, request(&format!("k{i:02}"))).await, Outcome::Duplicate);
    }
    assert_eq!(added(&client, request("refused")).await, Outcome::Added);
    assert!(sandbox.keys().iter().all(|key| key.requests == 1));
}

#[tokio::test]
async fn a_deleted_wal_is_saved_by_a_shutdown() {
    let sandbox = surveylab().await;
    let gateway = Gateway::start(&sandbox).await;
    let client = gateway.client().await;
    assert_eq!(added(&client, request("before")).await, Outcome::Added);
    fs::remove_file(gateway.path(&format!("{LEDGER}-wal"))).unwrap();
    assert_unavailable(&add(&client, request("refused")).await.unwrap_err(), "no");
    gateway.signal("TERM");
    let gateway = soon(gateway.restart_when_ended()).await;
    let client = gateway.client().await;
    assert_eq!(added(&client, request("before")).await, Outcome::Duplicate);
    assert_eq!(added(&client, request("refused")).await, Outcome::Added);
    assert!(sandbox.keys().iter().all(|key| key.requests == 1));
}

#[tokio::test]
async fn an_outcome_whose_ledger_goes_meanwhile_is_recorded_when_it_is_back() {
    let (sandbox, gate) = holding().await;
    let gateway = Gateway::start(&sandbox).await;
    let client = gateway.client().await;
    let call = calling(&client, "k");
    soon(sandbox.wait_for_requests(1)).await;
    let (file, away) = (gateway.path(LEDGER), gateway.path("away"));
    fs::rename(&file, &away).unwrap();
    gate.release();
    assert_unavailable(&soon(call).await.unwrap().unwrap_err(), "yes");
    assert_unavailable(&add(&client, request("k")).await.unwrap_err(), "yes");
    fs::rename(&away, &file).unwrap();
    until_ready(&gateway).await;
    until("the outcome is recorded", async || {
        state(&client, "k").await == Some(InvitationState::Added)
    })
    .await;
    assert_eq!(added(&client, request("k")).await, Outcome::Duplicate);
    assert_eq!(sandbox.report().requests, 1);
}

#[tokio::test]
async fn without_its_lock_file_a_gateway_gives_way_to_the_next_owner() {
    let sandbox = surveylab().await;
    let gate = Gate::new();
    let first = Gateway::start(&sandbox).await;
    let old = first.client().await;
    assert_eq!(added(&old, request("before")).await, Outcome::Added);
    sandbox.add_fault(Fault::hold(&gate));
    let call = calling(&old, "on-the-wire");
    soon(sandbox.wait_for_requests(2)).await;

    fs::remove_file(first.path(&format!("{LEDGER}.lock"))).unwrap();
    let ledger = format!("sqlite:{}", first.path(LEDGER).display());
    let second = Gateway::with(Options::new().flag("--ledger", ledger), &sandbox).await;
    let new = second.client().await;
    gate.release();
    // Only one of them writes: what the first had on the wire is in doubt for good.
    assert_unavailable(&soon(call).await.unwrap().unwrap_err(), "yes");
    assert_eq!(state(&new, "on-the-wire").await, Some(InvitationState::InDoubt));
    assert_eq!(
        add(&new, request("on-the-wire")).await.unwrap_err().reason,
        "OUTCOME_IN_DOUBT"
    );
    for crk in ["before", "a", "b"] {
        assert_unavailable(&add(&old, request(crk)).await.unwrap_err(), "no");
    }
    assert_eq!(first.admin("/readyz").await.0, 503);
    assert_eq!(added(&new, request("before")).await, Outcome::Duplicate);
    for crk in ["a", "b"] {
        assert_eq!(added(&new, request(crk)).await, Outcome::Added);
    }
    // The first one's end takes nothing from the second.
    first.signal("TERM");
    let (_first, _) = soon(first.once_ended()).await;
    assert_eq!(added(&new, request("c")).await, Outcome::Added);
    assert!(sandbox.keys().iter().all(|key| key.requests == 1));
}

// Damage that only some keys meet

#[tokio::test]
async fn a_damaged_page_is_met_by_its_own_keys_alone() {
    let sandbox = surveylab().await;
    let gateway = Gateway::start(&sandbox).await;
    let client = gateway.client().await;
    let crks: Vec<String> = (0..300).map(|i| format!("k{i:03}")).collect();
    for result in stream(&client, requests(&crks)).await {
        result.unwrap();
    }
    gateway.signal("TERM");
    let (gateway, _) = soon(gateway.once_ended()).await;
    let damaged = damage_a_leaf(&gateway.path(LEDGER), &crks);

    let gateway = gateway.restart().await;
    let client = gateway.client().await;
    // They sort before all others, and the spoiled page is not the first.
    let fresh: Vec<String> = (0..100).map(|i| format!("a{i:02}")).collect();
    // In one stream, so that the damaged keys are asked for in the same batches as the others.
    let both: Vec<String> = crks.iter().chain(&fresh).cloned().collect();
    let mut refused = Vec::new();
    for (crk, result) in both.iter().zip(stream(&client, requests(&both)).await) {
        match result {
            Ok(response) => {
                let expected = if crk.starts_with('k') {
                    Outcome::Duplicate
                } else {
                    Outcome::Added
                };
                assert_eq!(response.outcome(), expected, "{crk}");
            }
            Err(error) => {
                assert_unavailable(&error, "no");
                refused.push(crk.as_str());
            }
        }
    }
    // The page also shows where keys were before it was split. And the key behind its last one lies in the page above, where
    // SQLite comes to it by way of this one.
    let behind = crks
        .iter()
        .skip_while(|crk| damaged.last() != Some(&crk.as_str()))
        .nth(1);
    let is_met = |crk: &&str| damaged.contains(crk) || behind.is_some_and(|behind| behind == crk);
    assert!(
        !refused.is_empty() && refused.iter().all(is_met),
        "refused: {refused:?}, damaged: {damaged:?}"
    );
    assert!(refused.len() < 100, "{refused:?}");
    assert!(sandbox.keys().iter().all(|key| key.requests == 1));
    assert_eq!(gateway.admin("/readyz").await.0, 200);
    assert!(lines_with(&gateway, "a part of the ledger is damaged") >= 1);
}

fn requests(crks: &[String]) -> Vec<AddRespondentRequest> {
    crks.iter().map(|crk| request(crk)).collect()
}

/// Spoils the last page of the file that is a leaf with some of these keys, and tells which.
fn damage_a_leaf<'k>(ledger: &Path, crks: &'k [String]) -> Vec<&'k str> {
    const PAGE: usize = 4096;
    /// <https://www.sqlite.org/fileformat2.html#b_tree_pages>
    const INDEX_LEAF: u8 = 0x0a;
    let mut bytes = fs::read(ledger).unwrap();
    for page in bytes.chunks_mut(PAGE).rev() {
        let holds = |crk: &&str| page.windows(crk.len()).any(|window| window == crk.as_bytes());
        let held: Vec<&str> = crks.iter().map(String::as_str).filter(holds).collect();
        if page[0] == INDEX_LEAF && !held.is_empty() {
            page.fill(0xff);
            fs::write(ledger, bytes).unwrap();
            return held;
        }
    }
    panic!("no key was found in the file");
}

// File descriptors

const NO_FILES: usize = 64;

fn open_files(gateway: &Gateway) -> usize {
    fs::read_dir(format!("/proc/{}/fd", gateway.pid())).unwrap().count()
}

/// Connections that take every file descriptor the gateway has, and then some: each begins HTTP/2 and says no more.
async fn take_all_files(gateway: &Gateway) -> Vec<TcpStream> {
    const EMPTY_SETTINGS: &[u8] = b"\0\0\0\x04\0\0\0\0\0";
    let preface = [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", EMPTY_SETTINGS].concat();
    let connections = (0..2 * NO_FILES)
        .map(|_| {
            let mut connection = TcpStream::connect(gateway.grpc).unwrap();
            connection.write_all(&preface).unwrap();
            connection
        })
        .collect();
    until("every file descriptor is taken", async || {
        lines_with(gateway, "a connection could not be accepted") > 0
    })
    .await;
    connections
}

fn limit(gateway: &Gateway, resource: &str) -> bool {
    limit_as(&[], gateway, resource)
}

/// Sets a limit of the gateway's, as whom this command makes of us.
fn limit_as(somebody: &[&str], gateway: &Gateway, resource: &str) -> bool {
    let command = [somebody, &["prlimit"]].concat();
    let set = Command::new(command[0])
        .args(&command[1..])
        .args([format!("--pid={}", gateway.pid()), format!("--{resource}")])
        .status();
    let is_set = set.as_ref().is_ok_and(|status| status.success());
    if !is_set {
        println!("skipped: prlimit does not work here: {set:?}");
    }
    is_set
}

async fn with_few_files(surveylab: &Sandbox) -> Gateway {
    let few = format!("ulimit -n {NO_FILES}; exec \"$@\"");
    let options = Options::new()
        .wrapper(&["bash", "-c", &few, "-"])
        .flag("--max-attempts", 1);
    Gateway::with(options, surveylab).await
}

#[tokio::test]
async fn without_a_file_descriptor_surveylab_is_not_reached_and_nothing_is_in_doubt() {
    let sandbox = surveylab().await;
    let gateway = with_few_files(&sandbox).await;
    let client = gateway.client().await;
    assert_eq!(add(&client, request("")).await.unwrap_err().reason, "INVALID_REQUEST");
    let before = open_files(&gateway);
    let hostile = take_all_files(&gateway).await;
    for crk in ["a", "b", "c"] {
        let error = add(&client, request(crk)).await.unwrap_err();
        assert_eq!(
            (error.code, error.reason.as_str(), error.sent()),
            (Code::Unavailable, "SURVEYLAB_UNREACHABLE", "no"),
            "{error:?}"
        );
        assert_eq!(state(&client, crk).await, Some(InvitationState::Failed));
        assert_eq!(sandbox.requests_of(COLLECTOR, crk), 0);
    }
    drop(hostile);
    until("there are file descriptors again", async || {
        open_files(&gateway) <= before
    })
    .await;
    until_ready(&gateway).await;
    for crk in ["a", "b", "c"] {
        assert_eq!(added(&client, request(crk)).await, Outcome::Added);
    }
    assert_eq!(added(&gateway.client().await, request("d")).await, Outcome::Added);
    assert!(sandbox.keys().iter().all(|key| key.requests == 1));
}

#[tokio::test]
async fn without_a_file_descriptor_a_ledger_that_failed_stays_closed_until_there_is_one() {
    let sandbox = surveylab().await;
    let gateway = with_few_files(&sandbox).await;
    let client = gateway.client().await;
    assert_eq!(added(&client, request("before")).await, Outcome::Added);
    let hostile = take_all_files(&gateway).await;
    // A failed write, after which the ledger wants a new connection.
    if !limit(&gateway, "fsize=0:") {
        return;
    }
    assert_unavailable(&add(&client, request("k")).await.unwrap_err(), "no");
    assert!(limit(&gateway, "fsize=unlimited"));
    for crk in ["k", "l"] {
        assert_unavailable(&add(&client, request(crk)).await.unwrap_err(), "no");
    }
    // What is open still reads.
    assert_eq!(added(&client, request("before")).await, Outcome::Duplicate);
    assert_eq!(sandbox.report().requests, 1);
    drop(hostile);
    until_ready(&gateway).await;
    for crk in ["k", "l"] {
        assert_eq!(added(&client, request(crk)).await, Outcome::Added);
    }
    assert!(sandbox.keys().iter().all(|key| key.requests == 1));
}

// Threads

/// Runs a command as somebody who has no other process, so that a limit on threads counts this one's alone. None, and why
/// on stdout, where that can't be done.
fn as_somebody_alone() -> Option<Vec<String>> {
    if fs::metadata("/proc/self").unwrap().uid() != 0 {
        println!("skipped: only the superuser can run a process as a user of its own");
        return None;
    }
    let id: u32 = rand::random_range(100_000..2_000_000_000);
    let nobody = [
        format!("--reuid={id}"),
        format!("--regid={id}"),
        "--clear-groups".into(),
    ];
    let tried = Command::new("setpriv")
        .args(&nobody)
        .args([BINARY, "--version"])
        .output();
    if !tried.as_ref().is_ok_and(|output| output.status.success()) {
        println!("skipped: another user can't run the binary: {tried:?}");
        return None;
    }
    Some([&["setpriv".to_string()][..], &nobody].concat())
}

#[tokio::test]
async fn a_start_without_threads_says_so() {
    let Some(somebody) = as_somebody_alone() else {
        return;
    };
    let directory = tempfile::tempdir().unwrap();
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o777)).unwrap();
    let ledger = format!("--ledger=sqlite:{}", directory.path().join("ledger.db").display());
    // One is the process itself; then come the runtime's two and the ledger's four.
    for threads in 1..1 + 2 + 4 {
        let limited = format!("ulimit -u {threads}; exec \"$@\"");
        let mut command = Command::new(&somebody[0]);
        command
            .args(&somebody[1..])
            .args(["bash", "-c", &limited, "-", BINARY, "serve", "--sandbox"])
            .args(["--listen=127.0.0.1:0", "--admin-listen=127.0.0.1:0", &ledger])
            .env_clear()
            .env("TOKIO_WORKER_THREADS", "2")
            .env("RUST_LOG", "off");
        let output = tokio::task::spawn_blocking(move || command.output().unwrap());
        let output = soon(output).await.unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{threads}: {stderr}");
        assert_eq!(stderr.lines().count(), 1, "{threads}: {stderr}");
        assert!(
            stderr.contains("Resource temporarily unavailable"),
            "{threads}: {stderr}"
        );
    }
}

#[tokio::test]
async fn without_a_thread_to_look_up_the_name_surveylab_is_not_reached() {
    let Some(somebody) = as_somebody_alone() else {
        return;
    };
    let directory = tempfile::tempdir().unwrap();
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o777)).unwrap();
    let sandbox = surveylab().await;
    let somebody: Vec<&str> = somebody.iter().map(String::as_str).collect();
    let options = Options::new()
        .wrapper(&somebody)
        .flag(
            "--ledger",
            format!("sqlite:{}", directory.path().join("ledger.db").display()),
        )
        .flag("--max-attempts", 1)
        .flag("--upstream-timeout", "4s");
    // A name, not an address: it is looked up in a thread.
    let url = sandbox.url().replace("127.0.0.1", "localhost");
    let gateway = Gateway::in_front_of(&url, options).await;
    let client = gateway.client().await;
    assert!(limit_as(&somebody, &gateway, "nproc=1:"));
    for crk in ["a", "b"] {
        let error = add(&client, request(crk)).await.unwrap_err();
        assert_eq!(
            (error.reason.as_str(), error.sent()),
            ("SURVEYLAB_UNREACHABLE", "no"),
            "{error:?}"
        );
        assert_eq!(state(&client, crk).await, Some(InvitationState::Failed));
    }
    assert_eq!(sandbox.report().requests, 0);
    assert_eq!(gateway.admin("/readyz").await.0, 200);
    assert!(limit_as(&somebody, &gateway, "nproc=100:"));
    for crk in ["a", "b"] {
        assert_eq!(added(&client, request(crk)).await, Outcome::Added);
    }
    assert!(sandbox.keys().iter().all(|key| key.requests == 1));
    assert!(!gateway.log().contains("panicked"));
}
