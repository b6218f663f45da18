//! A ledger that can't write, can't be opened, or belongs to another process: nothing is sent without a durable claim.

use std::{
    fs,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use surveylab_gateway::{
    proto::{InvitationState, Outcome},
    sandbox::Sandbox,
};
use tonic::Code;

use crate::support::{
    Error, Gateway, Options,
    call::{COLLECTOR, Client, add, added, state},
    calling,
    gateway::{BINARY, TOKEN, run, surveylab, touch},
    holding, request,
    watch::{soon, until},
};

/// Sets how long a process's files may become: a full disk for one process, and space again. False, and why on stdout,
/// where that can't be done.
fn limit_file_size(gateway: &Gateway, limit: &str) -> bool {
    let set = Command::new("prlimit")
        .args([format!("--pid={}", gateway.pid()), format!("--fsize={limit}")])
        .status();
    let is_set = set.as_ref().is_ok_and(|status| status.success());
    if !is_set {
        println!("skipped: prlimit does not work here: {set:?}");
    }
    is_set
}

const FULL: &str = "0:";
const SPACE: &str = "unlimited";

async fn until_ready(gateway: &Gateway) {
    until("/readyz answers 200", async || gateway.admin("/readyz").await.0 == 200).await;
}

fn assert_unavailable(error: &Error, sent: &str) {
    assert_eq!(
        (error.code, error.reason.as_str(), error.sent()),
        (Code::Unavailable, "LEDGER_UNAVAILABLE", sent)
    );
    assert!(error.retry.is_some());
}

/// Adds keys until the disk is full: those that were added, and those that were refused unsent in the end.
async fn fill(client: &Client) -> (Vec<String>, Vec<String>) {
    let mut added = Vec::new();
    let mut refused = Vec::new();
    for i in 0..20_000 {
        let crk = format!("k{i:05}");
        match add(client, request(&crk)).await {
            Ok(_) => {
                refused.clear();
                added.push(crk);
            }
            // A claim may find no room together with another write, and the next one by itself may.
            Err(error) if error.sent() == "no" => {
                assert_unavailable(&error, "no");
                refused.push(crk);
                if refused.len() == 5 {
                    return (added, refused);
                }
            }
            // Sent, but its outcome found no space any more.
            Err(error) => {
                refused.clear();
                assert_unavailable(&error, "yes");
            }
        }
    }
    panic!("the disk never became full");
}

/// What must hold on a full disk, and after `make_space`.
async fn survives_a_full_disk(gateway: Gateway, sandbox: &Sandbox, make_space: impl FnOnce(&Gateway)) {
    let client = gateway.client().await;
    let (before, refused) = fill(&client).await;
    assert!(!before.is_empty());
    let requests = sandbox.report().requests;
    for crk in &refused {
        assert_unavailable(&add(&client, request(crk)).await.unwrap_err(), "no");
        assert_eq!(sandbox.requests_of(COLLECTOR, crk), 0);
    }
    assert_eq!(sandbox.report().requests, requests);
    let (status, why) = gateway.admin("/readyz").await;
    assert_eq!((status, why.starts_with("not ready: ")), (503, true), "{why}");
    assert_eq!(gateway.admin("/healthz").await.0, 200);
    // What can be read still answers.
    assert_eq!(added(&client, request(&before[0])).await, Outcome::Duplicate);

    make_space(&gateway);
    until_ready(&gateway).await;
    for crk in &refused {
        assert_eq!(added(&client, request(crk)).await, Outcome::Added);
    }
    for crk in &before {
        assert_eq!(added(&client, request(crk)).await, Outcome::Duplicate);
    }
    // Also one whose outcome could not be recorded at first is recorded by now.
    for key in sandbox.keys() {
        until("the outcome is recorded", async || {
            state(&client, &key.crk).await == Some(InvitationState::Added)
        })
        .await;
        assert_eq!(key.requests, 1, "{}", key.crk);
    }
}

#[tokio::test]
async fn a_file_size_limit_stops_sending_and_not_the_process() {
    let sandbox = surveylab().await;
    // Only the soft limit: it can be lifted again without privileges.
    let wrapper = ["bash", "-c", "ulimit -S -f 512; exec \"$@\"", "-"];
    let gateway = Gateway::with(Options::new().wrapper(&wrapper), &sandbox).await;
    if !limit_file_size(&gateway, "524288:") {
        return;
    }
    survives_a_full_disk(gateway, &sandbox, |gateway| {
        assert!(limit_file_size(gateway, SPACE));
    })
    .await;
}

/// A file system of one megabyte, for as long as this lives.
pub struct SmallDisk(pub PathBuf);

impl SmallDisk {
    pub fn mount(at: PathBuf) -> Option<Self> {
        fs::create_dir(&at).unwrap();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=1m", "tmpfs"])
            .arg(&at)
            .stderr(Stdio::null())
            .status();
        if !mounted.as_ref().is_ok_and(|status| status.success()) {
            println!("skipped: a file system can't be mounted here: {mounted:?}");
            return None;
        }
        Some(Self(at))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[tokio::test]
async fn a_full_disk_stops_sending_and_not_the_process() {
    let sandbox = surveylab().await;
    let directory = tempfile::tempdir().unwrap();
    let Some(disk) = SmallDisk::mount(directory.path().join("disk")) else {
        return;
    };
    let ledger = disk.0.join("ledger.db");
    let options = Options::new().flag("--ledger", format!("sqlite:{}", ledger.display()));
    let gateway = Gateway::with(options, &sandbox).await;
    let filler = disk.0.join("filler");
    fs::write(&filler, vec![0; 400 * 1024]).unwrap();
    survives_a_full_disk(gateway, &sandbox, |_| fs::remove_file(&filler).unwrap()).await;
}

/// Makes files immutable, or no more: read-only also for a process that has them open, which a file's mode is not. False,
/// and why on stdout, where that can't be done.
fn set_immutable(files: &[PathBuf], immutable: bool) -> bool {
    let flag = if immutable { "+i" } else { "-i" };
    let set = Command::new("chattr")
        .arg(flag)
        .args(files)
        .stderr(Stdio::null())
        .status();
    let is_set = set.as_ref().is_ok_and(|status| status.success());
    if !is_set {
        println!("skipped: chattr does not work here: {set:?}");
    }
    is_set
}

/// An immutable file can't be removed with its directory.
struct Immutable(Vec<PathBuf>);

impl Drop for Immutable {
    fn drop(&mut self) {
        set_immutable(&self.0, false);
    }
}

#[tokio::test]
async fn a_ledger_that_becomes_read_only_stops_sending_until_it_can_be_written_again() {
    let sandbox = surveylab().await;
    let gateway = Gateway::start(&sandbox).await;
    let client = gateway.client().await;
    assert_eq!(added(&client, request("before")).await, Outcome::Added);
    let files = ["surveylab-gateway.db", "surveylab-gateway.db-wal"].map(|name| gateway.path(name));
    if !set_immutable(&files, true) {
        return;
    }
    let read_only = Immutable(files.into());
    for crk in ["first", "second"] {
        assert_unavailable(&add(&client, request(crk)).await.unwrap_err(), "no");
    }
    assert_eq!(gateway.admin("/readyz").await.0, 503);
    // What is known can still be read.
    assert_eq!(added(&client, request("before")).await, Outcome::Duplicate);
    assert_eq!(sandbox.report().requests, 1);

    drop(read_only);
    until_ready(&gateway).await;
    assert_eq!(state(&client, "first").await, None);
    assert_eq!(added(&client, request("first")).await, Outcome::Added);
    assert_eq!(sandbox.report().requests, 2);
}

#[tokio::test]
async fn an_outcome_that_finds_no_space_is_recorded_as_soon_as_there_is_some() {
    let (sandbox, gate) = holding().await;
    let gateway = Gateway::start(&sandbox).await;
    let client = gateway.client().await;
    let call = calling(&client, "k");
    soon(sandbox.wait_for_requests(1)).await;
    if !limit_file_size(&gateway, FULL) {
        return;
    }
    gate.release();
    assert_unavailable(&soon(call).await.unwrap().unwrap_err(), "yes");
    // The key is not free: a second call is told the same, and sends nothing.
    assert_unavailable(&add(&client, request("k")).await.unwrap_err(), "yes");
    assert_eq!(gateway.admin("/readyz").await.0, 503);

    assert!(limit_file_size(&gateway, SPACE));
    until("the outcome is recorded", async || {
        state(&client, "k").await == Some(InvitationState::Added)
    })
    .await;
    until_ready(&gateway).await;
    assert_eq!(added(&client, request("k")).await, Outcome::Duplicate);
    assert_eq!(sandbox.report().requests, 1);
}

#[tokio::test]
async fn an_outcome_that_was_never_recorded_is_in_doubt_after_a_crash() {
    let (sandbox, gate) = holding().await;
    let gateway = Gateway::start(&sandbox).await;
    let client = gateway.client().await;
    let call = calling(&client, "k");
    soon(sandbox.wait_for_requests(1)).await;
    if !limit_file_size(&gateway, FULL) {
        return;
    }
    gate.release();
    assert_unavailable(&soon(call).await.unwrap().unwrap_err(), "yes");

    let gateway = gateway.restart().await;
    let client = gateway.client().await;
    assert_eq!(state(&client, "k").await, Some(InvitationState::InDoubt));
    assert_eq!(add(&client, request("k")).await.unwrap_err().reason, "OUTCOME_IN_DOUBT");
    assert_eq!(sandbox.report().requests, 1);
}

pub fn is_root() -> bool {
    fs::metadata("/proc/self").unwrap().uid() == 0
}

/// Runs `serve` over a ledger to its end, as somebody whom file modes bind: exit code and stderr. None, and why on
/// stdout, where nobody else can run the binary.
async fn serve_without_privileges(ledger: &Path) -> Option<(Option<i32>, String)> {
    let mut command = Command::new(if is_root() { "setpriv" } else { BINARY });
    if is_root() {
        let nobody = ["--reuid=65534", "--regid=65534", "--clear-groups"];
        let tried = Command::new("setpriv")
            .args(nobody)
            .args([BINARY, "--version"])
            .output();
        if !tried.as_ref().is_ok_and(|output| output.status.success()) {
            println!("skipped: nobody can't run the binary: {tried:?}");
            return None;
        }
        command.args(nobody).arg(BINARY);
    }
    command
        .args([
            "serve",
            "--sandbox",
            "--listen=127.0.0.1:0",
            "--admin-listen=127.0.0.1:0",
        ])
        .arg(format!("--ledger=sqlite:{}", ledger.display()))
        .env_clear()
        .env("RUST_LOG", "off")
        .stdin(Stdio::null());
    let output = tokio::task::spawn_blocking(move || command.output().unwrap());
    let output = soon(output).await.unwrap();
    Some((output.status.code(), String::from_utf8(output.stderr).unwrap()))
}

/// A setting that can't be right ends with 2; one that another process stands in the way of, with 1.
fn assert_names_ledger(code: Option<i32>, stderr: &str, ledger: &Path) {
    let expected = if stderr.contains("in use") { 1 } else { 2 };
    assert_eq!(code, Some(expected), "{stderr}");
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
    assert!(stderr.contains("--ledger"), "{stderr}");
    assert!(stderr.contains(&*ledger.to_string_lossy()), "{stderr}");
}

#[tokio::test]
async fn a_directory_that_is_read_only_is_named_at_the_start() {
    let directory = tempfile::tempdir().unwrap();
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o555)).unwrap();
    let ledger = directory.path().join("ledger.db");
    if let Some((code, stderr)) = serve_without_privileges(&ledger).await {
        assert_names_ledger(code, &stderr, &ledger);
        assert!(stderr.contains("ermission denied"), "{stderr}");
    }
    assert!(!ledger.exists());
}

#[tokio::test]
async fn a_file_that_is_read_only_is_named_at_the_start() {
    let directory = tempfile::tempdir().unwrap();
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o777)).unwrap();
    let ledger = directory.path().join("ledger.db");
    touch(&ledger);
    fs::set_permissions(&ledger, fs::Permissions::from_mode(0o444)).unwrap();
    if let Some((code, stderr)) = serve_without_privileges(&ledger).await {
        assert_names_ledger(code, &stderr, &ledger);
        assert!(stderr.contains("can't be opened for writing"), "{stderr}");
    }
}

async fn serve_over(ledger: &Path) -> (Option<i32>, String) {
    let ledger = format!("--ledger=sqlite:{}", ledger.display());
    let arguments = ["serve", "--listen=127.0.0.1:0", "--admin-listen=127.0.0.1:0", &ledger];
    let (code, _, stderr) = soon(run(&arguments, &[("SURVEYLAB_API_TOKEN", TOKEN), ("RUST_LOG", "off")])).await;
    (code, stderr)
}

#[tokio::test]
async fn a_ledger_that_another_process_owns_is_left_to_it() {
    let sandbox = surveylab().await;
    let gateway = Gateway::start(&sandbox).await;
    let client = gateway.client().await;
    assert_eq!(added(&client, request("k")).await, Outcome::Added);
    let ledger = gateway.path("surveylab-gateway.db");
    let (code, stderr) = serve_over(&ledger).await;
    assert_names_ledger(code, &stderr, &ledger);
    assert!(
        stderr.contains(&format!("in use by process {}", gateway.pid())),
        "{stderr}"
    );
    // Another name of the same file is the same ledger.
    let link = gateway.path("link.db");
    std::os::unix::fs::symlink(&ledger, &link).unwrap();
    let (code, stderr) = serve_over(&link).await;
    assert_names_ledger(code, &stderr, &link);

    assert_eq!(added(&client, request("k")).await, Outcome::Duplicate);
    assert_eq!(added(&client, request("other")).await, Outcome::Added);
}

#[tokio::test]
async fn a_file_that_is_no_ledger_is_named_and_left_as_it_is() {
    let directory = tempfile::tempdir().unwrap();
    let ledger = directory.path().join("notes.txt");
    let text = "Not a ledger, and dear to somebody.\n".repeat(1000);
    fs::write(&ledger, &text).unwrap();
    let (code, stderr) = serve_over(&ledger).await;
    assert_names_ledger(code, &stderr, &ledger);
    assert!(stderr.contains("is not a ledger"), "{stderr}");
    assert_eq!(fs::read_to_string(&ledger).unwrap(), text);
}

#[tokio::test]
async fn a_directory_that_is_missing_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let ledger = directory.path().join("missing/ledger.db");
    let (code, stderr) = serve_over(&ledger).await;
    assert_names_ledger(code, &stderr, &ledger);
    let (code, stderr) = serve_over(directory.path()).await;
    assert_names_ledger(code, &stderr, directory.path());
}

/// A ledger with some keys, closed: its bytes.
async fn a_ledger() -> Vec<u8> {
    let sandbox = surveylab().await;
    let gateway = Gateway::start(&sandbox).await;
    let client = gateway.client().await;
    for i in 0..20 {
        assert_eq!(added(&client, request(&format!("k{i}"))).await, Outcome::Added);
    }
    gateway.signal("TERM");
    let (gateway, _) = soon(gateway.once_ended()).await;
    fs::read(gateway.path("surveylab-gateway.db")).unwrap()
}

#[tokio::test]
async fn a_ledger_that_is_damaged_or_not_this_versions_is_named_with_a_way_out_and_left_as_it_is() {
    let whole = a_ledger().await;
    let with = |at: usize, bytes: &[u8]| {
        let mut changed = whole.clone();
        changed[at..at + bytes.len()].copy_from_slice(bytes);
        changed
    };
    let none = || None;
    let garbage = || Some(b"no write-ahead log".repeat(1_000));
    // The header's fields: https://www.sqlite.org/fileformat2.html#the_database_header
    // The file's bytes, those of a WAL beside it, and what is said of them.
    type Case = (Vec<u8>, Option<Vec<u8>>, &'static str);
    let cases: [Case; 9] = [
        (with(0, b"SQLite fromage 3"), none(), "restore the ledger from a backup"),
        (with(16, &[0, 3]), none(), "restore the ledger from a backup"),
        (with(100, &[0xa5; 1_000]), none(), "Restore it from a backup"),
        (
            with(4_096, &vec![0xa5; whole.len() - 4_096]),
            none(),
            "Restore it from a backup",
        ),
        (whole[..whole.len() / 2].to_vec(), none(), "Restore it from a backup"),
        (whole.clone(), garbage(), "is no write-ahead log"),
        (Vec::new(), garbage(), "restore the one"),
        (
            with(60, &99_u32.to_be_bytes()),
            none(),
            "run that version or a later one",
        ),
        (with(68, b"GPKG"), none(), "is not a ledger"),
    ];
    for (bytes, wal, why) in cases {
        let directory = tempfile::tempdir().unwrap();
        let ledger = directory.path().join("ledger.db");
        let beside = directory.path().join("ledger.db-wal");
        fs::write(&ledger, &bytes).unwrap();
        if let Some(wal) = &wal {
            fs::write(&beside, wal).unwrap();
        }
        let (code, stderr) = serve_over(&ledger).await;
        assert_names_ledger(code, &stderr, &ledger);
        assert!(stderr.contains(why), "{why}: {stderr}");
        assert_eq!(fs::read(&ledger).unwrap(), bytes, "{why}");
        assert_eq!(fs::read(&beside).ok(), wal, "{why}");
    }
}

#[tokio::test]
async fn a_wal_or_its_index_that_cannot_be_made_is_named() {
    for suffix in ["-wal", "-shm"] {
        let directory = tempfile::tempdir().unwrap();
        let ledger = directory.path().join("ledger.db");
        fs::create_dir(directory.path().join(format!("ledger.db{suffix}"))).unwrap();
        let (code, stderr) = serve_over(&ledger).await;
        assert_names_ledger(code, &stderr, &ledger);
        assert!(stderr.contains("-wal"), "{stderr}");
    }
}

/// A full disk is nothing that another setting mends.
fn assert_no_space(code: Option<i32>, stderr: &str, ledger: &Path) {
    assert_eq!(code, Some(1), "{stderr}");
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
    assert!(
        stderr.contains("--ledger") && stderr.contains(&*ledger.to_string_lossy()),
        "{stderr}"
    );
}

#[tokio::test]
async fn a_start_on_a_full_disk_says_so() {
    let directory = tempfile::tempdir().unwrap();
    let Some(disk) = SmallDisk::mount(directory.path().join("disk")) else {
        return;
    };
    let filler = disk.0.join("filler");
    // From nothing at all to nearly what a new ledger needs.
    for free in [0, 4, 16, 40] {
        let ledger = disk.0.join(format!("{free}.db"));
        fs::write(&filler, vec![0; (1024 - free) * 1024]).unwrap();
        let (code, stderr) = serve_over(&ledger).await;
        assert_no_space(code, &stderr, &ledger);
        for suffix in ["", "-wal", "-shm", ".lock"] {
            let _ = fs::remove_file(disk.0.join(format!("{free}.db{suffix}")));
        }
    }
}

#[tokio::test]
async fn a_start_without_room_for_files_says_so() {
    let directory = tempfile::tempdir().unwrap();
    for kilobytes in [0, 4, 16] {
        let ledger = directory.path().join(format!("{kilobytes}.db"));
        let limited = format!("ulimit -f {kilobytes}; exec \"$@\"");
        let mut command = Command::new("bash");
        command
            .args(["-c", &limited, "-", BINARY, "serve", "--sandbox"])
            .args(["--listen=127.0.0.1:0", "--admin-listen=127.0.0.1:0"])
            .arg(format!("--ledger=sqlite:{}", ledger.display()))
            .env_clear()
            .env("RUST_LOG", "off");
        let output = tokio::task::spawn_blocking(move || command.output().unwrap());
        let output = soon(output).await.unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_no_space(output.status.code(), &stderr, &ledger);
    }
}
