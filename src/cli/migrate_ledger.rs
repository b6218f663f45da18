//! `migrate-ledger`: from the embedded ledger to the one that replicas share.

use std::path::PathBuf;

use clap::Args;
use tokio::{runtime::Handle, task::spawn_blocking};

use super::{
    Exit,
    figures::grouped,
    output::{complain, fail, say},
};
use crate::{
    config::LedgerUrl,
    ledger::{
        self,
        moving::{self, Comparison, Difference, Move, Summary},
        postgres::target::{Stage, Target},
        sqlite::maintenance::{self, Taken},
    },
    postgres::Settings,
};
use progress::Progress;

mod progress;

/// Move a ledger from SQLite to PostgreSQL, where several replicas can share it.
///
/// No gateway may run on either side meanwhile. Safe to interrupt, and to run again: it goes on where it was. Until all of it
/// was read back and compared, no gateway starts on the database. Nothing that the database holds is overwritten, and the
/// SQLite file stays as it is. Requests that were on the wire when the last gateway died are in doubt, as after its restart.
///
/// Exit codes: 0 moved and verified; 1 not finished: the same command goes on; 2 wrong arguments, or a ledger or database
/// that can't be used; 3 refused: a gateway runs on one of the two, or the database holds something else.
#[derive(Args, Clone, Debug)]
pub struct MigrateLedgerArgs {
    /// The ledger to move: sqlite:PATH.
    // The values are hidden of both: they are easily confused, and one may hold a password.
    #[arg(value_name = "SQLITE", value_parser = sqlite, hide_env_values = true)]
    pub from: PathBuf,

    /// Where it is to be: postgres://USER@HOST/DATABASE, as `serve --ledger` takes it.
    #[arg(value_name = "POSTGRES", value_parser = postgres, env = "GATEWAY_LEDGER", hide_env_values = true)]
    pub to: Box<Settings>,

    /// Compare the two and tell what would be moved, and write nothing.
    #[arg(long)]
    pub dry_run: bool,

    /// Compare the two, and write nothing: 0 if both hold the same, 1 if some keys are not there yet.
    #[arg(long, conflicts_with = "dry_run")]
    pub verify_only: bool,
}

fn sqlite(text: &str) -> Result<PathBuf, String> {
    match text.parse() {
        Ok(LedgerUrl::Sqlite(path)) => Ok(path),
        _ => Err("expected sqlite:PATH".into()),
    }
}

fn postgres(text: &str) -> Result<Box<Settings>, String> {
    match text.parse()? {
        LedgerUrl::Postgres(settings) => Ok(settings),
        LedgerUrl::Sqlite(_) | LedgerUrl::Memory => Err("expected postgres://USER@HOST/DATABASE".into()),
    }
}

/// Why the two are not the same at the end.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error(transparent)]
    Moving(#[from] moving::Error),
    #[error("{0}")]
    Differs(String),
    #[error("{} keys are not in the database; run it again", grouped(*.0))]
    Missing(u64),
    #[error("the command failed: {0}")]
    Panic(#[from] tokio::task::JoinError),
}

impl From<maintenance::Error> for Error {
    fn from(error: maintenance::Error) -> Self {
        Self::Moving(error.into())
    }
}

impl From<ledger::Error> for Error {
    fn from(error: ledger::Error) -> Self {
        Self::Moving(error.into())
    }
}

impl Error {
    fn exit(&self) -> Exit {
        use maintenance::Error::{Damaged, InUse, Unavailable, Unusable, Unwritten};
        match self {
            Self::Moving(moving::Error::Source(Unavailable(_) | Unwritten(_)))
            | Self::Moving(moving::Error::Target(ledger::Error::Unavailable(_)))
            | Self::Missing(_)
            | Self::Panic(_) => Exit::TryAgain,
            Self::Moving(moving::Error::Source(Unusable(_)))
            | Self::Moving(moving::Error::Target(ledger::Error::Unusable(_))) => Exit::Usage,
            Self::Moving(moving::Error::Source(Damaged(_) | InUse(_)))
            | Self::Moving(moving::Error::Target(ledger::Error::InUse(_)))
            | Self::Moving(moving::Error::Record { .. })
            | Self::Differs(_) => Exit::Refused,
        }
    }
}

/// Moves it, and prints what came of it.
pub async fn run(args: MigrateLedgerArgs) -> Exit {
    match migrate(args).await {
        Ok(()) => Exit::Ok,
        Err(error) => fail(error.exit(), &error.to_string()),
    }
}

async fn migrate(args: MigrateLedgerArgs) -> Result<(), Error> {
    let path = args.from.clone();
    let source = spawn_blocking(move || Taken::open(&path)).await??;
    let target = Target::connect(&args.to).await?;
    let moving = Move {
        source,
        target,
        runtime: Handle::current(),
    };
    // SQLite blocks, and all that is between its records does so with it.
    spawn_blocking(move || proceed(&args, moving)).await?
}

fn proceed(args: &MigrateLedgerArgs, mut moving: Move) -> Result<(), Error> {
    let found = compare(&moving, "comparing", None)?;
    let total = found.source.keys.total();
    let is_there = found.is_equal() && moving.target.stage() == Stage::Complete;
    if args.verify_only || args.dry_run || is_there || found.differing > 0 {
        tell(args, &found);
    }
    expect_nothing_else(args, &found)?;
    if args.verify_only && found.missing > 0 {
        return Err(Error::Missing(found.missing));
    }
    if args.dry_run {
        say(format_args!(
            "{} keys would be moved; nothing was written",
            grouped(found.missing)
        ));
        return tell_orphans(&moving);
    }
    if args.verify_only || is_there {
        say(format_args!("verified: both hold the same"));
        if moving.target.stage() != Stage::Complete {
            say(format_args!(
                "No gateway starts on the database yet: run this without --verify-only, to its end"
            ));
            return Ok(());
        }
        return conclude(args, &moving);
    }

    moving.runtime.clone().block_on(moving.target.begin())?;
    let already = total - found.missing;
    if already > 0 {
        complain(format_args!("{} keys are there already; going on", grouped(already)));
    }
    let mut progress = Progress::start("copying", Some(found.missing));
    moving.copy(found.missing_after, &mut |done| progress.show(done))?;
    drop(progress);

    // What was written is worth nothing before it was read back.
    let found = compare(&moving, "verifying", Some(total))?;
    tell(args, &found);
    expect_nothing_else(args, &found)?;
    if !found.is_equal() {
        return Err(Error::Missing(found.missing));
    }
    moving.runtime.clone().block_on(moving.target.end())?;
    say(format_args!("moved and verified: both hold the same"));
    conclude(args, &moving)
}

fn compare(moving: &Move, what: &'static str, total: Option<u64>) -> Result<Comparison, Error> {
    let mut progress = Progress::start(what, total);
    Ok(moving.compare(&mut |done| progress.show(done))?)
}

/// Fails if the database holds what the file does not.
fn expect_nothing_else(args: &MigrateLedgerArgs, found: &Comparison) -> Result<(), Error> {
    let Some((key, how)) = &found.first_differing else {
        return Ok(());
    };
    let what = match how {
        Difference::Other => "otherwise than the SQLite ledger",
        Difference::Unknown => "which the SQLite ledger does not have",
    };
    let others = match found.differing {
        1 => String::new(),
        count => format!(", and {} keys more that differ", grouped(count - 1)),
    };
    Err(Error::Differs(format!(
        "{} holds {key:?} {what}{others}; nothing of it was overwritten. Give a database of its own, or find out who wrote there: \
         docs/replicas.md, \"Moving from SQLite\"",
        args.to
    )))
}

/// Both sides, to be seen beside each other.
fn tell(args: &MigrateLedgerArgs, found: &Comparison) {
    let (from, to) = (format!("sqlite:{}", args.from.display()), args.to.to_string());
    let width = from.chars().count().max(to.chars().count());
    for (name, summary) in [(from, &found.source), (to, &found.target)] {
        say(format_args!("{name:<width$}  {}", line(summary)));
    }
}

fn line(summary: &Summary) -> String {
    let keys = &summary.keys;
    let pending = match keys.pending {
        0 => String::new(),
        count => format!(", {} pending", grouped(count)),
    };
    format!(
        "{} keys: {} added, {} failed, {} in doubt{pending}; SHA-256 {}",
        grouped(keys.total()),
        grouped(keys.added),
        grouped(keys.failed),
        grouped(keys.in_doubt),
        summary.digest()
    )
}

fn tell_orphans(moving: &Move) -> Result<(), Error> {
    match moving.orphans()? {
        0 => {}
        count => say(format_args!(
            "{} of the keys in doubt were on the wire when the last gateway ended: a person has to look at them",
            grouped(count)
        )),
    }
    Ok(())
}

fn conclude(args: &MigrateLedgerArgs, moving: &Move) -> Result<(), Error> {
    tell_orphans(moving)?;
    say(format_args!(
        "{} was not changed. NO GATEWAY MUST BE STARTED ON IT ANY MORE: it does not know what is sent from now on. Keep it as \
         a backup of this moment, under another name",
        args.from.display()
    ));
    Ok(())
}
