//! `import`: a list of respondents through a running gateway, safe to be interrupted and run again.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use clap::Args;
use tokio::{sync::mpsc, task::spawn_blocking};

use super::{
    Exit,
    client::{self, ClientArgs},
    field::Field,
    figures::grouped,
    output::{complain, fail, say},
};
use crate::{config::duration, shutdown};

use list::{Format, List, Mapping, Rows};
use look::{hand_over, look, may_begin};
use origin::Origin;
use progress::{Progress, Watch};
use report::{tell, tell_of_dry_run, write_failed};
use results::{AskAgain, Earlier, Results};
use send::{Ended, Purpose, Sending, Setup};
use tally::Tally;

mod answer;
pub mod list;
mod look;
mod origin;
mod progress;
mod report;
mod results;
mod send;
mod tally;

/// Add a list of respondents through a running gateway. Safe to interrupt, and to run again.
///
/// Each row gets one line in the results file, written as its answer comes. The same command again sends only the rows that
/// have none, so it goes on where it was interrupted, by whatever. The list itself is checked first, and nothing is sent
/// while anything is wrong with it.
///
/// Columns are known by their names: email, crk, referrer, language, phone, first_name, last_name, custom1 to custom8,
/// collector_id; case, spaces and punctuation do not matter. NDJSON has the contract's names: firstName, collectorId.
///
/// Exit codes: 0 all added or duplicate; 1 not finished: the same command goes on; 2 wrong flags, or a list that can't be read;
/// 3 some rows failed, or rows are bad and nothing was sent; 4 some are in doubt; 130 ended at once by a second signal.
#[derive(Args, Clone, Debug)]
pub struct ImportArgs {
    /// The list, CSV or NDJSON; - for standard input.
    #[arg(value_name = "FILE")]
    pub file: PathBuf,

    /// SurveyLab's collector id (cId), unless the list has a column for it.
    #[arg(long, value_name = "ID")]
    pub collector: Option<String>,

    /// Make each row's crk out of these fields, for lists without one: the same row always gets the same crk.
    #[arg(long, value_name = "FIELD,...", value_delimiter = ',')]
    pub derive_crk: Vec<Field>,

    /// Where the results go; FILE.results.csv unless given.
    #[arg(long, value_name = "PATH")]
    pub results: Option<PathBuf>,

    /// At the end, write the rows that failed to this file, in the list's own format: to be mended, and imported.
    #[arg(long, value_name = "PATH")]
    pub failed: Option<PathBuf>,

    /// Check the list and ask the gateway about each row, but send nothing: how many would be added, and how long it takes.
    #[arg(long)]
    pub dry_run: bool,

    /// Ask again about rows that failed in an earlier run.
    #[arg(long)]
    pub retry_failed: bool,

    /// Ask again about rows that were in doubt in an earlier run, once they are resolved. A doubt that is still there is held.
    #[arg(long)]
    pub retry_in_doubt: bool,

    /// Send the good rows of a list that has bad ones; these get their results as failed.
    #[arg(long)]
    pub skip_bad: bool,

    /// Begin to send without a look at the whole list, such as one that is still being written to standard input.
    #[arg(long)]
    pub no_check: bool,

    /// What the list is: csv or ndjson. Without it, by the file's name or its first character.
    #[arg(long, value_enum)]
    pub format: Option<Format>,

    /// The list's encoding, such as windows-1250. Without it, UTF-8, or what its byte-order mark says.
    #[arg(long, value_name = "NAME", value_parser = list::encoding)]
    pub encoding: Option<&'static encoding_rs::Encoding>,

    /// What is between two cells: comma, semicolon, tab, or another character. Without it, by the first line.
    #[arg(long, value_name = "CHARACTER", value_parser = list::delimiter)]
    pub delimiter: Option<u8>,

    /// Which column is which field, where its name does not say so: 'Imię=first_name', '#3=phone'; 'notes=' ignores one.
    #[arg(long = "map", value_name = "COLUMN=FIELD")]
    pub map: Vec<Mapping>,

    /// How long the gateway may be away before the import gives up.
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = duration)]
    pub patience: Duration,

    #[command(flatten)]
    pub client: ClientArgs,
}

/// Rows between the reader of the list and the sender.
const READ_AHEAD: usize = 256;

/// Brings a list through, and tells how it went.
pub async fn run(args: ImportArgs) -> Exit {
    match import(&args).await {
        Ok(exit) => exit,
        Err(Failure { exit, line }) => fail(exit, &line),
    }
}

/// Why the import does not begin, or can't go on.
struct Failure {
    exit: Exit,
    line: String,
}

impl Failure {
    fn usage(line: impl Into<String>) -> Self {
        Self {
            exit: Exit::Usage,
            line: line.into(),
        }
    }

    fn try_again(line: impl Into<String>) -> Self {
        Self {
            exit: Exit::TryAgain,
            line: line.into(),
        }
    }
}

impl From<client::Error> for Failure {
    fn from(error: client::Error) -> Self {
        Self::usage(error.to_string())
    }
}

impl From<list::Error> for Failure {
    fn from(error: list::Error) -> Self {
        Self::usage(error.to_string())
    }
}

impl From<results::Error> for Failure {
    fn from(error: results::Error) -> Self {
        match error {
            results::Error::Strange { .. } => Self::usage(format!("--results: {error}")),
            _ => Self::try_again(format!("--results: {error}")),
        }
    }
}

async fn import(args: &ImportArgs) -> Result<Exit, Failure> {
    args.client.open()?;
    let results = results_path(args)?;
    let origin = Origin::of(args).await?;
    let mut list = List::open(args.options(), origin.source()?)?;
    complain(format_args!("{}", list.describe()));
    let (file, earlier) = match results.clone() {
        Some(path) => {
            let again = AskAgain {
                failed: args.retry_failed,
                in_doubt: args.retry_in_doubt,
            };
            let (file, earlier) = blocking(move || Results::open(&path, again)).await??;
            (Some(file), Arc::new(earlier))
        }
        None => (None, Arc::default()),
    };
    // What can be read twice is looked at whole before anything is sent.
    let total = if args.no_check {
        None
    } else {
        let before = list.fingerprint()?;
        let checked = look(list.rows()?, earlier.clone()).await?;
        if !may_begin(args, &checked) {
            return Ok(Exit::Refused);
        }
        if list.fingerprint()? != before {
            return Err(Failure::try_again(
                "the list has changed while it was looked at: nothing was sent",
            ));
        }
        Some(checked.rows)
    };
    if earlier.tally.all() > 0 {
        let rows = grouped(earlier.tally.all());
        complain(format_args!(
            "{rows} rows have their results already: going on with the others"
        ));
    }

    let done = if total == Some(earlier.tally.all()) {
        Sent {
            ended: Ended::Done,
            tally: earlier.tally.clone(),
            would_add: 0,
        }
    } else {
        send(args, list.rows()?, total, file, earlier).await?
    };

    if args.dry_run {
        return Ok(tell_of_dry_run(args, &done).await);
    }
    tell(&done, total, results.as_deref());
    if let (Some(path), Some(results)) = (args.failed.clone(), results) {
        let copied = blocking(move || write_failed(list, &results, &path)).await??;
        say(format_args!("{copied}"));
    }
    Ok(done.exit())
}

/// How far a run came.
struct Sent {
    ended: Ended,
    /// Of all runs.
    tally: Tally,
    would_add: u64,
}

impl Sent {
    fn exit(&self) -> Exit {
        match self.ended {
            Ended::Done => self.tally.exit(),
            Ended::Interrupted | Ended::Stopped(_) => Exit::TryAgain,
        }
    }
}

/// Sends what has no result yet.
async fn send(
    args: &ImportArgs,
    rows: Rows,
    total: Option<u64>,
    results: Option<Results>,
    earlier: Arc<Earlier>,
) -> Result<Sent, Failure> {
    let interrupt =
        shutdown::on_signal().map_err(|error| Failure::try_again(format!("can't handle signals: {error}")))?;
    let client = args.client.open()?;
    let writer = results.map(Results::writer);
    let mut sending = Sending::new(
        Setup {
            client: &client,
            purpose: if args.dry_run { Purpose::Check } else { Purpose::Add },
            patience: args.patience,
            results: writer.as_ref(),
            earlier: earlier.tally.clone(),
            interrupt,
        },
        Progress::start(total, Watch::start(&client)),
    );
    let (entries, mut read) = mpsc::channel(READ_AHEAD);
    let reader = spawn_blocking(move || hand_over(rows, &earlier, &entries));
    let mut ended = sending.run(&mut read).await;
    // The reader ends where nobody takes any more. One that waits for standard input is not waited for.
    drop(read);
    if let Ended::Done = ended
        && let Err(lost) = reader.await
    {
        ended = Ended::Stopped(format!("the list was not read to its end: {lost}"));
    }
    let (tally, would_add) = sending.into_counts();
    if let Some(writer) = writer
        && let Err(error) = writer.finish().await
    {
        ended = Ended::Stopped(format!("--results: can't be written: {error}"));
    }
    Ok(Sent {
        ended,
        tally,
        would_add,
    })
}

impl ImportArgs {
    fn options(&self) -> list::Options {
        list::Options {
            format: self.format,
            encoding: self.encoding,
            delimiter: self.delimiter,
            map: self.map.clone(),
            collector: self.collector.clone(),
            derive_crk: self.derive_crk.clone(),
        }
    }

    fn is_stdin(&self) -> bool {
        self.file == Path::new("-")
    }
}

/// Where the results go; a dry run has none.
fn results_path(args: &ImportArgs) -> Result<Option<PathBuf>, Failure> {
    if args.dry_run {
        return Ok(None);
    }
    let path = match &args.results {
        Some(path) => path.clone(),
        None if args.is_stdin() => {
            return Err(Failure::usage(
                "--results is required where the list comes from standard input",
            ));
        }
        None => {
            let mut name = args.file.clone().into_os_string();
            name.push(".results.csv");
            name.into()
        }
    };
    let same = |one: &Path, other: &Path| match (one.canonicalize(), other.canonicalize()) {
        (Ok(one), Ok(other)) => one == other,
        _ => one == other,
    };
    if same(&path, &args.file) {
        return Err(Failure::usage("--results names the list itself"));
    }
    match &args.failed {
        Some(failed) if same(failed, &args.file) => Err(Failure::usage("--failed names the list itself")),
        Some(failed) if same(failed, &path) => Err(Failure::usage("--failed names the results")),
        _ => Ok(Some(path)),
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Failure> {
    let done = spawn_blocking(work).await;
    done.map_err(|lost| Failure::try_again(format!("internal error: {lost}")))
}
