//! `ledger backup`: a copy that a gateway could start with.

use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::json;

use super::{
    Error, Output,
    new_file::{Existing, NewFile},
    say, time_text,
};
use crate::{cli::Exit, ledger::sqlite::maintenance::Snapshot};

/// Copy the ledger into FILE, also while the gateway runs; the copy is checked, and is complete or not there.
///
/// It holds all that was acknowledged before the command began. Requests that were on the wire at that moment are
/// PENDING in it: a gateway that starts with the copy puts them in doubt. How to restore it: docs/operations.md.
#[derive(Args, Clone, Debug)]
pub struct BackupArgs {
    /// Where the copy is to be; readable by its owner alone.
    #[arg(value_name = "FILE")]
    pub file: PathBuf,

    /// Replace FILE if it is there.
    #[arg(long)]
    pub force: bool,

    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

pub(super) fn run(ledger: &Snapshot, args: &BackupArgs, output: Output) -> Result<Exit, Error> {
    let file = &args.file;
    refuse_files_of_ledgers(ledger, file)?;
    let new = NewFile::create(file, Existing::from_flag(args.force))?;
    let copied = ledger.copy_to(new.path())?;
    new.publish()?;

    let last_change = copied.last_change.and_then(time_text);
    match output {
        Output::Json => say(format_args!(
            "{}",
            json!({
                "file": file.to_string_lossy(), "keys": copied.keys, "bytes": copied.bytes, "lastChange": last_change,
            })
        )),
        Output::Human => say(format_args!(
            "{}: {} keys, {} bytes, last change {}",
            file.display(),
            copied.keys,
            copied.bytes,
            last_change.as_deref().unwrap_or("none")
        )),
    }
    Ok(Exit::Ok)
}

/// `--force` must not put an old state in the place of a ledger that is used, nor beside a WAL that is not its own.
fn refuse_files_of_ledgers(ledger: &Snapshot, file: &Path) -> Result<(), Error> {
    let beside = |suffix: &str| {
        let mut name = file.as_os_str().to_owned();
        name.push(suffix);
        PathBuf::from(name)
    };
    let is_own = ledger.owns_file(file) || ledger.owns_file(&NewFile::partial(file));
    let is_used = ["-wal", "-shm", ".lock"].iter().any(|suffix| beside(suffix).exists());
    if is_own || is_used {
        return Err(Error::OfALedger(file.display().to_string()));
    }
    Ok(())
}
