//! Where benchmarks keep what they make.

use std::{
    env,
    fs::{self, File},
    io,
    os::fd::AsRawFd as _,
    path::{Path, PathBuf},
};

use tempfile::TempDir;

pub const MEBIBYTE: f64 = 1024.0 * 1024.0;

fn target() -> PathBuf {
    env::var_os("CARGO_TARGET_DIR").map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("target"), Into::into)
}

/// A directory below the target directory, which is made if it is missing.
pub fn directory(name: &str) -> io::Result<PathBuf> {
    let directory = target().join("bench").join(name);
    fs::create_dir_all(&directory)?;
    Ok(directory)
}

/// A directory for one run, gone with it. On a real disk, as a ledger's syncs are to cost what they cost.
pub fn scratch(prefix: &str) -> io::Result<TempDir> {
    tempfile::Builder::new()
        .prefix(prefix)
        .tempdir_in(directory("scratch")?)
}

/// Has the system forget what it keeps of a file in memory, so that the next to read it waits for the disk.
#[cfg(target_os = "linux")]
pub fn evict(path: &Path) -> io::Result<()> {
    let file = File::open(path)?;
    // Only what is on the disk can be forgotten.
    file.sync_all()?;
    // SAFETY: the descriptor is open, and the call touches no memory of this process.
    match unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) } {
        0 => Ok(()),
        error => Err(io::Error::from_raw_os_error(error)),
    }
}

#[cfg(not(target_os = "linux"))]
pub fn evict(_: &Path) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}
