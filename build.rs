//! Compiles the contract without protoc, and keeps the descriptor set that server reflection serves. Checks the files of
//! others that are built in. Says which commit this is.

use std::{
    env,
    error::Error,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use protox::prost::Message as _;
use sha2::{Digest as _, Sha256};

const CONTRACT: &str = "surveylab/invitation/v1/invitation.proto";
/// Nothing imports it, but reflection must know it: clients decode the `Any` details of an error with it.
const ERROR_DETAILS: &str = "google/rpc/error_details.proto";

/// The commit that is built: given by those who build without the repository, such as for a package.
const COMMIT: &str = "GATEWAY_COMMIT";
/// The day of that commit, as `2026-01-31`.
const COMMIT_DATE: &str = "GATEWAY_COMMIT_DATE";
const VENDOR: &str = "src/admin/page/vendor";
/// What the status page takes from others, with its SHA-256. `src/admin/page/vendor.sh` renews both; nobody edits them.
const VENDORED: [(&str, &str); 3] = [
    (
        "uPlot.iife.min.js",
        "19c8d4c6ad88929a79f4ae49d6f7161566dfd0ba3d15cc495e974f787eb78f1f",
    ),
    (
        "uPlot.min.css",
        "df630c6a8d6f8eeaff264b50f73ce5b114f646ffd9a0bb74f049b0a00135fa04",
    ),
    (
        "uPlot.LICENSE",
        "8f989229699b4fe2f1a0432d0e9edc338a8a911e250e2d1b01ecd770a5f5b1bd",
    ),
];

fn main() -> Result<(), Box<dyn Error>> {
    check_vendored()?;

    println!("cargo:rerun-if-changed=proto");
    let out = PathBuf::from(env::var("OUT_DIR")?);

    let descriptors = protox::compile([CONTRACT, ERROR_DETAILS], ["proto"])?;
    fs::write(out.join("descriptors.bin"), descriptors.encode_to_vec())?;

    tonic_prost_build::configure()
        .extern_path(".google.rpc", "::tonic_types::pb")
        .compile_fds(descriptors)?;

    say_commit();
    Ok(())
}

/// Sets what `--version` says. Without a repository it is "unknown": that must not fail a build.
fn say_commit() {
    println!("cargo:rerun-if-env-changed={COMMIT}");
    println!("cargo:rerun-if-env-changed={COMMIT_DATE}");
    let given = |name| env::var(name).ok().filter(|value| !value.is_empty());
    let (commit, date) = match given(COMMIT) {
        Some(commit) => (commit, given(COMMIT_DATE)),
        None => (
            commit_here().unwrap_or_else(|| "unknown".into()),
            given(COMMIT_DATE).or_else(|| git(&["show", "--no-patch", "--format=%cs", "HEAD"])),
        ),
    };
    println!("cargo:rustc-env={COMMIT}={commit}");
    let date = date.map_or_else(String::new, |date| format!(", {date}"));
    println!(
        "cargo:rustc-env=GATEWAY_VERSION={} ({commit}{date})",
        env!("CARGO_PKG_VERSION")
    );
}

fn commit_here() -> Option<String> {
    // A package's source may lie within another repository, whose commit would be a lie.
    git(&["ls-files", "--error-unmatch", "Cargo.toml"])?;
    let commit = git(&["rev-parse", "--short=12", "HEAD"])?;
    // HEAD changes when another branch is checked out, its log with every commit.
    for name in ["HEAD", "logs/HEAD"] {
        if let Some(path) = git(&["rev-parse", "--git-path", name]).filter(|path| Path::new(path).exists()) {
            println!("cargo:rerun-if-changed={path}");
        }
    }
    // What is not committed is watched where it matters: elsewhere this would run again with each change.
    if env::var("PROFILE").is_ok_and(|profile| profile == "release") {
        for path in ["src", "build.rs", "Cargo.toml", "Cargo.lock"] {
            println!("cargo:rerun-if-changed={path}");
        }
    }
    let changed = git(&["status", "--porcelain", "--untracked-files=no"])?;
    let mark = if changed.is_empty() { "" } else { "-dirty" };
    Some(format!("{commit}{mark}"))
}

/// What git prints, or `None` where it can't say.
fn git(arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").args(arguments).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| text.trim().to_string())
}

fn check_vendored() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed={VENDOR}");
    for (file, expected) in VENDORED {
        let path = PathBuf::from(VENDOR).join(file);
        let contents = fs::read(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        let sum: String = Sha256::digest(contents)
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        if sum != expected {
            let path = path.display();
            return Err(
                format!("{path} is not what was published (SHA-256 {sum}): run src/admin/page/vendor.sh").into(),
            );
        }
    }
    Ok(())
}
