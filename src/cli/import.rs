//! `import`: a list of respondents through a running gateway, safe to be interrupted and run again.

use std::{
    fs::File,
    io::{self, Seek as _},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use clap::Args;
use tokio::{sync::mpsc, task::spawn_blocking};

use super::{
    Exit,
    client::{self, ClientArgs},
    figures::grouped,
    output::{complain, fail, say},
};
use crate::{config::duration, shutdown};

use list::{Checked, Field, Format, List, Mapping, Row, Rows, Source};
use progress::{Looking, Progress, Watch};
use report::{tell, tell_of_dry_run, write_failed};
use results::{Again, Earlier, Results};
use send::{Ended, Entry, Item, Purpose, Sending, Setup};
use tally::Tally;

mod answer;
pub mod list;
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

/// Problems of a list that are told one by one.
const TOLD: usize = 20;

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
            let again = Again {
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

/// Where the list comes from.
enum Origin {
    File(PathBuf),
    /// Standard input, kept in a file without a name, as it is read more than once.
    Kept(File),
    Stdin,
}

impl Origin {
    async fn of(args: &ImportArgs) -> Result<Self, Failure> {
        if !args.is_stdin() {
            return Ok(Self::File(args.file.clone()));
        }
        if args.no_check {
            if args.failed.is_some() {
                return Err(Failure::usage(
                    "--failed reads the list again: not with --no-check from standard input",
                ));
            }
            return Ok(Self::Stdin);
        }
        let kept = blocking(|| {
            let mut kept = tempfile::tempfile()?;
            io::copy(&mut io::stdin().lock(), &mut kept)?;
            Ok::<_, io::Error>(kept)
        });
        let kept = kept.await?;
        kept.map(Self::Kept)
            .map_err(|error| Failure::try_again(format!("standard input can't be kept for its check: {error}")))
    }

    /// The list from its beginning.
    fn source(&self) -> Result<Source, Failure> {
        Ok(match self {
            Self::File(path) => Source::File(path.clone()),
            Self::Kept(file) => {
                let again = |mut file: File| file.rewind().map(|()| file);
                let file = file.try_clone().and_then(again);
                Source::Spooled(file.map_err(|error| Failure::try_again(format!("standard input: {error}")))?)
            }
            Self::Stdin => Source::Stream(Box::new(io::stdin())),
        })
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Failure> {
    let done = spawn_blocking(work).await;
    done.map_err(|lost| Failure::try_again(format!("something went wrong within: {lost}")))
}

/// Looks at the whole list, and at the results that it has already.
async fn look(rows: Rows, earlier: Arc<Earlier>) -> Result<Checked, Failure> {
    let looked = blocking(move || {
        let mut known = 0;
        let mut other = None;
        let mut told = 0;
        let begun = Looking::start();
        let checked = list::check(
            rows,
            &mut |row| match earlier.of(row.line, &row.crk) {
                Ok(found) => known += usize::from(found.is_some()),
                Err(line) => other = other.or(Some(line)),
            },
            &mut |problem| {
                told += 1;
                if told <= TOLD {
                    begun.tell(&problem.to_string());
                }
            },
            &mut |progress| begun.show(progress.rows),
        );
        begun.end();
        let checked = checked?;
        if told > TOLD {
            complain(format_args!("and {} more", grouped((told - TOLD) as u64)));
        }
        match other {
            Some(line) => Err(Failure::usage(another_list(line))),
            None if known < earlier.len() => Err(Failure::usage(
                "the results hold rows that the list does not have: they are another list's; give another path with --results",
            )),
            None => Ok(checked),
        }
    });
    looked.await?
}

fn another_list(line: u64) -> String {
    format!(
        "line {line} of the list has another crk than its result: the results are another list's, or an older one's; give \
         another path with --results"
    )
}

/// Is the list good enough to begin? Tells how good it is.
fn may_begin(args: &ImportArgs, checked: &Checked) -> bool {
    let count = |count: u64, what: &str| (count > 0).then(|| format!("{} {what}", grouped(count)));
    let parts = [
        Some(format!("{} rows", grouped(checked.rows))),
        count(checked.bad, "bad"),
        count(checked.conflicts, "with a crk that is there already, with other data"),
        count(checked.repeats, "that are there already, and add nobody"),
        count(
            checked.repeated_emails,
            "with an e-mail address that is there already, with another crk",
        ),
        count(checked.empty, "empty ones left out"),
    ];
    complain(format_args!(
        "{}",
        parts.into_iter().flatten().collect::<Vec<_>>().join(", ")
    ));
    let wrong = checked.bad + checked.conflicts;
    if wrong == 0 || args.dry_run || args.skip_bad {
        return true;
    }
    complain(format_args!(
        "nothing was sent: mend the list, or send the rest of it with --skip-bad"
    ));
    false
}

/// Reads the list to its end and hands over what has no result yet.
fn hand_over(rows: Rows, earlier: &Earlier, entries: &mpsc::Sender<Result<Entry, String>>) {
    for row in rows {
        let entry = match row {
            Ok(row) => match earlier.of(row.line, &row.crk) {
                Ok(Some(_)) => continue,
                Ok(None) => Ok(entry(row)),
                Err(line) => Err(another_list(line)),
            },
            Err(error) => Err(error.to_string()),
        };
        let is_last = entry.is_err();
        if entries.blocking_send(entry).is_err() || is_last {
            return;
        }
    }
}

fn entry(row: Row) -> Entry {
    match row.content {
        Ok(request) => Entry::Row(Item {
            line: row.line,
            request,
            tries: 0,
        }),
        Err(why) => Entry::Bad(answer::bad(row.line, &row.crk, &why)),
    }
}
