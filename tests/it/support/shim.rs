//! Libraries of tests/shim, preloaded into the gateway: they record what it does to its disk, kill it there, or set its
//! wall clock.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use tempfile::TempDir;

use super::Options;

/// Compiles a library of tests/shim into a directory.
fn compile(name: &str, into: &Path) -> PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/shim").join(name);
    let library = into.join(name).with_extension("so");
    let compiled = Command::new("cc")
        // Some distributions set _FORTIFY_SOURCE, with which libc's headers define some of the same functions.
        .args([
            "-shared",
            "-fPIC",
            "-pthread",
            "-O2",
            "-Wall",
            "-Wextra",
            "-U_FORTIFY_SOURCE",
            "-o",
        ])
        .arg(&library)
        .arg(source)
        .status();
    assert!(compiled.expect("a C compiler").success());
    library
}

/// Where a process is to die: at which operation on the ledger's files whose name ends so, and how many thousandths of
/// it are done.
#[derive(Clone, Copy, Debug)]
pub struct KillAt {
    pub files: &'static str,
    pub operation: u64,
    pub part: u64,
}

impl KillAt {
    pub fn set(self, options: Options) -> Options {
        options
            .env("POWER_KILL_IN", self.files)
            .env("POWER_KILL_AT", self.operation)
            .env("POWER_KILL_PART", self.part)
    }
}

/// A directory for a ledger, and the trace of all that gateways do to it.
pub struct Power {
    library: PathBuf,
    scratch: TempDir,
    directory: TempDir,
}

impl Power {
    pub fn new() -> Self {
        let scratch = tempfile::tempdir().unwrap();
        Self {
            library: compile("power.c", scratch.path()),
            scratch,
            directory: tempfile::tempdir().unwrap(),
        }
    }

    /// Where the ledger's files are, without symbolic links.
    pub fn directory(&self) -> PathBuf {
        fs::canonicalize(self.directory.path()).unwrap()
    }

    /// The ledger in it.
    pub fn ledger(&self) -> PathBuf {
        self.directory().join("ledger.db")
    }

    /// For a gateway whose ledger is in the directory.
    pub fn options(&self) -> Options {
        Options::new()
            .flag("--ledger", format!("sqlite:{}", self.ledger().display()))
            .env("LD_PRELOAD", self.library.display())
            .env("POWER_DIRECTORY", self.directory().display())
    }

    /// The same, for one that leaves a trace.
    pub fn traced(&self) -> Options {
        self.options().env("POWER_TRACE", self.trace_path().display())
    }

    /// The records so far.
    pub fn trace(&self) -> Vec<u8> {
        fs::read(self.trace_path()).unwrap()
    }

    fn trace_path(&self) -> PathBuf {
        self.scratch.path().join("trace")
    }
}

/// The wall clock of a gateway, to be set while it runs.
pub struct WallClock {
    library: PathBuf,
    scratch: TempDir,
}

impl WallClock {
    /// At first it is right.
    pub fn new() -> Self {
        let scratch = tempfile::tempdir().unwrap();
        let clock = Self {
            library: compile("clock.c", scratch.path()),
            scratch,
        };
        clock.set_ahead(0);
        clock
    }

    /// Sets it so many seconds ahead of the right time, or behind.
    pub fn set_ahead(&self, seconds: i64) {
        // Written in place: the gateway has mapped the file.
        let file = fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .open(self.offset());
        std::os::unix::fs::FileExt::write_all_at(&file.unwrap(), &seconds.to_ne_bytes(), 0).unwrap();
    }

    pub fn options(&self) -> Options {
        Options::new()
            .env("LD_PRELOAD", self.library.display())
            .env("CLOCK_OFFSET_FILE", self.offset().display())
    }

    fn offset(&self) -> PathBuf {
        self.scratch.path().join("offset")
    }
}
