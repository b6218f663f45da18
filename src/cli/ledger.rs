//! `ledger`: a ledger's file looked at from outside, whether a gateway runs on it or not.

use clap::{Args, Subcommand};
use serde_json::json;

use super::{
    Exit,
    client::Output,
    new_file,
    output::{complain, say},
};
use crate::{
    clock::Timestamp,
    config::{LEDGER, LedgerUrl},
    ledger::sqlite::maintenance::{self, Snapshot},
};

mod backup;
mod check;
mod export;

/// Check, back up or export a ledger's file; a gateway may run on it meanwhile.
///
/// None of these changes the ledger. Exit codes: 0 done; 1 not done now, the same command again may help; 2 wrong
/// flags, or no ledger that this version can read; 3 the ledger is damaged.
#[derive(Args, Clone, Debug)]
#[command(subcommand_required = true, arg_required_else_help = true)]
pub struct LedgerArgs {
    /// The ledger, as `serve` has it: sqlite:PATH.
    #[arg(long, env = "GATEWAY_LEDGER", hide_env_values = true, global = true)]
    #[arg(default_value_t = LedgerUrl::Sqlite(LEDGER.into()))]
    pub ledger: LedgerUrl,

    #[command(subcommand)]
    pub command: LedgerCommand,
}

#[derive(Subcommand, Clone, Debug)]
pub enum LedgerCommand {
    Check(check::CheckArgs),
    Backup(backup::BackupArgs),
    Export(export::ExportArgs),
}

/// Why a command did not do what it was to do.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("--ledger: {0}")]
    Ledger(maintenance::Error),
    #[error(transparent)]
    Copy(maintenance::Error),
    #[error("--ledger: memory: is in no file; give sqlite:PATH")]
    Memory,
    #[error(
        "--ledger: this command reads SQLite files; PostgreSQL has tools of its own for that: see docs/replicas.md"
    )]
    Postgres,
    #[error("{0} belongs to a ledger: give another FILE")]
    OfALedger(String),
    #[error(transparent)]
    NewFile(#[from] new_file::Error),
    #[error("the output can't be written: {0}")]
    Output(std::io::Error),
}

impl From<maintenance::Error> for Error {
    fn from(error: maintenance::Error) -> Self {
        match error {
            maintenance::Error::Unwritten(_) => Self::Copy(error),
            _ => Self::Ledger(error),
        }
    }
}

impl Error {
    fn exit(&self) -> Exit {
        match self {
            Self::Ledger(maintenance::Error::Damaged(_)) => Exit::Refused,
            Self::Ledger(maintenance::Error::Unusable(_)) | Self::Memory | Self::Postgres | Self::OfALedger(_) => {
                Exit::Usage
            }
            Self::NewFile(error) if error.is_of_the_path() => Exit::Usage,
            Self::Ledger(_) | Self::Copy(_) | Self::NewFile(_) | Self::Output(_) => Exit::TryAgain,
        }
    }
}

/// Does it, and prints what came of it. Blocks: nothing else runs in the process.
pub fn run(args: LedgerArgs) -> Exit {
    let path = match args.ledger {
        LedgerUrl::Sqlite(path) => Ok(path),
        LedgerUrl::Postgres(_) => Err(Error::Postgres),
        LedgerUrl::Memory => Err(Error::Memory),
    };
    let opened = path.and_then(|path| Ok((Snapshot::open(&path)?, path)));
    match args.command {
        LedgerCommand::Check(args) => {
            let output = Output::from_flag(args.json);
            finish(
                opened.and_then(|(ledger, path)| check::run(&ledger, &path, output)),
                output,
            )
        }
        LedgerCommand::Backup(args) => {
            let output = Output::from_flag(args.json);
            finish(
                opened.and_then(|(ledger, _)| backup::run(&ledger, &args, output)),
                output,
            )
        }
        LedgerCommand::Export(args) => finish(
            opened.and_then(|(ledger, _)| export::run(&ledger, &args)),
            Output::Human,
        ),
    }
}

fn finish(result: Result<Exit, Error>, output: Output) -> Exit {
    result.unwrap_or_else(|error| {
        match output {
            Output::Json => say(format_args!("{}", json!({ "error": { "message": error.to_string() } }))),
            Output::Human => complain(format_args!("surveylab-gateway: {error}")),
        }
        error.exit()
    })
}

/// As RFC 3339 has it, in UTC, to the microsecond that ledgers keep. `None` outside of the years 1970 to 9999, which no
/// gateway writes.
fn time_text(time: Timestamp) -> Option<String> {
    let is_written = (Timestamp(0)..=maintenance::LATEST).contains(&time);
    is_written.then(|| humantime::format_rfc3339_micros(time.into()).to_string())
}
