//! Where benchmarks leave what they make.

use std::{
    env, fs, io,
    path::{Path, PathBuf},
};

pub fn target() -> PathBuf {
    env::var_os("CARGO_TARGET_DIR").map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("target"), Into::into)
}

/// On a real disk, as a ledger's syncs are to cost what they cost.
pub fn scratch() -> io::Result<PathBuf> {
    let scratch = target().join("bench/scratch");
    fs::create_dir_all(&scratch)?;
    Ok(scratch)
}
