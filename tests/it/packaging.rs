//! What packages and service managers use: `--version`, completions, man pages, and systemd's notifications.

use std::{
    collections::BTreeSet,
    fs,
    io::Write as _,
    os::unix::net::UnixDatagram,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    time::Duration,
};

use surveylab_gateway::cli::VERSION;

use crate::support::{
    Gateway,
    gateway::{Options, run, surveylab},
    watch::soon,
};

#[tokio::test]
async fn the_version_tells_the_commit_and_so_does_the_log() {
    let (code, stdout, _) = soon(run(&["--version"], &[])).await;
    assert_eq!(
        (code, stdout.trim_end()),
        (Some(0), &*format!("surveylab-gateway {VERSION}"))
    );
    let commit = VERSION.split_once(" (").unwrap().1.split([',', ')']).next().unwrap();
    assert!(VERSION.starts_with(env!("CARGO_PKG_VERSION")), "{VERSION}");
    assert!(!commit.is_empty(), "{VERSION}");

    let sandbox = surveylab().await;
    let gateway = Gateway::start(&sandbox).await;
    assert!(
        gateway.log().contains(&format!(r#""commit":"{commit}""#)),
        "{}",
        gateway.log()
    );
}

#[tokio::test]
async fn completions_are_scripts_that_their_shells_read() {
    for shell in ["bash", "zsh", "fish"] {
        let (code, script, stderr) = soon(run(&["generate", "completions", shell], &[])).await;
        assert_eq!((code, stderr.as_str()), (Some(0), ""), "{shell}");
        for word in ["migrate-ledger", "drain-timeout", "healthcheck"] {
            assert!(script.contains(word), "{shell} completes no {word}");
        }
        // Of the others only what is there.
        if shell == "bash" || Command::new(shell).arg("--version").output().is_ok() {
            let output = fed(Command::new(shell).arg("-n"), script.as_bytes());
            assert!(output.status.success(), "{shell}: {output:?}");
        }
    }
    let (code, _, stderr) = soon(run(&["generate", "completions", "no-such-shell"], &[])).await;
    assert_eq!((code, stderr.lines().count()), (Some(2), 1), "{stderr}");
}

#[tokio::test]
async fn every_command_has_a_man_page_that_renders_without_a_warning() {
    let directory = tempfile::tempdir().unwrap();
    let pages = directory.path().join("man");
    let (code, _, stderr) = soon(run(&["generate", "man", pages.to_str().unwrap()], &[])).await;
    assert_eq!((code, stderr.as_str()), (Some(0), ""));

    let names: BTreeSet<_> = files(&pages).iter().map(|page| name(page)).collect();
    for command in [
        "",
        "-serve",
        "-ledger",
        "-ledger-check",
        "-migrate-ledger",
        "-generate-man",
    ] {
        let page = format!("surveylab-gateway{command}.1");
        assert!(names.contains(&page), "there is no {page}: {names:?}");
    }
    assert!(!names.iter().any(|name| name.contains("-help")), "{names:?}");
    let serve = fs::read_to_string(pages.join("surveylab-gateway-serve.1")).unwrap();
    for word in ["GATEWAY_DRAIN_TIMEOUT", r"\-\-api\-token\-file"] {
        assert!(serve.contains(word), "serve's page has no {word}");
    }

    if Command::new("groff").arg("--version").output().is_err() {
        println!("groff is not there: the pages were not rendered");
        return;
    }
    for page in files(&pages) {
        let output = Command::new("groff")
            .args(["-man", "-Kutf8", "-Tutf8", "-ww", "-z"])
            .arg(&page)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && said.is_empty(), "{}: {said}", name(&page));
    }
}

#[tokio::test]
async fn man_pages_that_can_t_be_written_are_told_in_one_line() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("file");
    fs::write(&file, "").unwrap();
    let (code, _, stderr) = soon(run(&["generate", "man", file.to_str().unwrap()], &[])).await;
    assert_eq!((code, stderr.lines().count()), (Some(1), 1), "{stderr}");
}

#[tokio::test]
async fn systemd_is_told_when_the_ports_are_open_and_when_it_drains() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(60))).unwrap();

    let sandbox = surveylab().await;
    let options = Options::new().env("NOTIFY_SOCKET", path.display());
    let gateway = Gateway::with(options, &sandbox).await;
    let (socket, said) = next(socket).await;
    assert_eq!(said, "READY=1");
    assert_eq!(gateway.admin("/readyz").await.0, 200);

    gateway.signal("TERM");
    let (_, said) = next(socket).await;
    assert_eq!(said, "STOPPING=1");
    assert!(soon(gateway.ended()).await.success());
}

#[tokio::test]
async fn a_socket_of_systemd_that_is_gone_keeps_nothing_from_running() {
    let sandbox = surveylab().await;
    let options = Options::new().env("NOTIFY_SOCKET", "/no/such/socket");
    let gateway = Gateway::with(options, &sandbox).await;
    assert_eq!(gateway.admin("/readyz").await.0, 200);
}

/// The next notification, without its end of line.
async fn next(socket: UnixDatagram) -> (UnixDatagram, String) {
    let received = tokio::task::spawn_blocking(move || {
        let mut bytes = [0; 256];
        let length = socket.recv(&mut bytes).unwrap();
        (socket, String::from_utf8_lossy(&bytes[..length]).trim_end().to_string())
    });
    received.await.unwrap()
}

fn fed(command: &mut Command, input: &[u8]) -> Output {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input).unwrap();
    child.wait_with_output().unwrap()
}

fn files(directory: &Path) -> Vec<PathBuf> {
    fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect()
}

fn name(path: &Path) -> String {
    path.file_name().unwrap().to_string_lossy().into_owned()
}
