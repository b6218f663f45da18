//! `ledger export`: every key with what became of it, to compare with SurveyLab's contact lists.

use std::{
    io::{self, BufWriter, ErrorKind, Write},
    ops::ControlFlow,
    path::PathBuf,
};

use clap::{Args, ValueEnum};
use serde::Serialize;

use super::{
    Error, complain,
    new_file::{Existing, NewFile},
    time_text,
};
use crate::{
    cli::{Exit, invitations::StateName},
    ledger::{
        Query, Record, State,
        sqlite::maintenance::{self, Snapshot},
    },
};

/// Write every key with what became of it, in the order of keys, as of one moment; also while the gateway runs.
///
/// Times are RFC 3339 in UTC. A record that can't be read is named on stderr and left out; the exit code then is 3.
///
/// Nothing is altered for spreadsheets: a crk that begins with =, +, - or @ is written as it is, and a spreadsheet that
/// opens the file may take it for a formula. How many there are is said on stderr; import the columns as text.
#[derive(Args, Clone, Debug)]
pub struct ExportArgs {
    /// Only this state.
    #[arg(long, value_enum)]
    pub state: Option<StateName>,

    /// Only this collector.
    #[arg(long, value_name = "ID")]
    pub collector: Option<String>,

    /// CSV with a line of names, or one JSON object a line.
    #[arg(long, value_enum, default_value = "csv")]
    pub format: Format,

    /// Where to write it, readable by its owner alone; without it, to stdout.
    #[arg(long, value_name = "FILE")]
    pub output: Option<PathBuf>,

    /// Replace FILE if it is there.
    #[arg(long, requires = "output")]
    pub force: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    Csv,
    Ndjson,
}

/// One key. The names are the columns'.
#[derive(Serialize)]
struct Row<'a> {
    collector_id: &'a str,
    crk: &'a str,
    state: &'static str,
    attempts: u32,
    created_at: Option<String>,
    updated_at: Option<String>,
    added_at: Option<String>,
    reason: Option<&'static str>,
    http_status: Option<u16>,
    notification: Option<&'a str>,
}

const COLUMNS: [&str; 10] = [
    "collector_id",
    "crk",
    "state",
    "attempts",
    "created_at",
    "updated_at",
    "added_at",
    "reason",
    "http_status",
    "notification",
];

impl<'a> From<&'a Record> for Row<'a> {
    fn from(record: &'a Record) -> Self {
        Self {
            collector_id: record.key.collector_id(),
            crk: record.key.crk(),
            state: match record.state {
                State::Pending => "PENDING",
                State::Added => "ADDED",
                State::Failed => "FAILED",
                State::InDoubt => "IN_DOUBT",
            },
            attempts: record.attempts,
            created_at: time_text(record.created_at),
            updated_at: time_text(record.updated_at),
            added_at: record.added_at.and_then(time_text),
            reason: record.last_error.map(|error| error.reason.as_str()),
            http_status: record.last_error.and_then(|error| error.http_status),
            notification: record.notification.as_deref(),
        }
    }
}

/// Writes rows in one of the formats.
enum Rows<W: Write> {
    Csv(Box<csv::Writer<W>>),
    Ndjson(W),
}

impl<W: Write> Rows<W> {
    fn begin(format: Format, out: W) -> io::Result<Self> {
        match format {
            Format::Csv => {
                let mut csv = csv::WriterBuilder::new().has_headers(false).from_writer(out);
                csv.write_record(COLUMNS).map_err(io_error)?;
                Ok(Self::Csv(Box::new(csv)))
            }
            Format::Ndjson => Ok(Self::Ndjson(out)),
        }
    }

    fn write(&mut self, row: &Row<'_>) -> io::Result<()> {
        match self {
            Self::Csv(csv) => csv.serialize(row).map_err(io_error),
            Self::Ndjson(out) => {
                serde_json::to_writer(&mut *out, row)?;
                out.write_all(b"\n")
            }
        }
    }

    fn end(mut self) -> io::Result<()> {
        match &mut self {
            Self::Csv(csv) => csv.flush(),
            Self::Ndjson(out) => out.flush(),
        }
    }
}

/// csv's own conversion forgets the kind.
fn io_error(error: csv::Error) -> io::Error {
    match error.into_kind() {
        csv::ErrorKind::Io(error) => error,
        other => io::Error::other(format!("{other:?}")),
    }
}

pub(super) fn run(ledger: &Snapshot, args: &ExportArgs) -> Result<Exit, Error> {
    let Some(target) = &args.output else {
        let exported = export(ledger, args, BufWriter::new(io::stdout().lock()));
        return match exported {
            // Whoever read it has seen enough.
            Err(Error::Output(error)) if error.kind() == ErrorKind::BrokenPipe => Ok(Exit::Ok),
            other => other?.exit(),
        };
    };
    let new = NewFile::create(target, Existing::from_flag(args.force))?;
    let exported = export(ledger, args, BufWriter::new(new.file()))?;
    // Also of a damaged ledger: it is as much as can be had.
    new.publish()?;
    exported.exit()
}

/// How far an export came.
struct Exported {
    unreadable: u64,
    /// Why it ended before the last key.
    cut: Option<maintenance::Error>,
}

impl Exported {
    fn exit(self) -> Result<Exit, Error> {
        match self.cut {
            Some(error) => Err(error.into()),
            None if self.unreadable > 0 => Ok(Exit::Refused),
            None => Ok(Exit::Ok),
        }
    }
}

fn export(ledger: &Snapshot, args: &ExportArgs, out: impl Write) -> Result<Exported, Error> {
    let query = Query {
        collector_id: args.collector.clone(),
        state: args.state.map(|state| match state {
            StateName::Pending => State::Pending,
            StateName::Added => State::Added,
            StateName::Failed => State::Failed,
            StateName::InDoubt => State::InDoubt,
        }),
        limit: usize::MAX,
        ..Query::default()
    };
    let mut rows = Rows::begin(args.format, out).map_err(Error::Output)?;
    let (mut unreadable, mut formulas) = (0, 0);
    let mut written = Ok(());
    let read = ledger.records(&query, |record| {
        match record {
            Ok(record) => {
                let row = Row::from(&record);
                let texts = [Some(row.collector_id), Some(row.crk), row.notification];
                formulas += texts.into_iter().flatten().filter(|text| is_formula(text)).count();
                written = rows.write(&row);
            }
            Err(damaged) => {
                unreadable += 1;
                complain(format_args!(
                    "surveylab-gateway: {}: its record can't be read, and was left out",
                    format!("{:?}", damaged.key).replace(char::is_control, "\u{fffd}")
                ));
            }
        }
        if written.is_ok() {
            ControlFlow::Continue(())
        } else {
            ControlFlow::Break(())
        }
    });
    written.and_then(|()| rows.end()).map_err(Error::Output)?;
    let cut = match read {
        Ok(()) => None,
        Err(error @ maintenance::Error::Damaged(_)) => Some(error),
        Err(error) => return Err(error.into()),
    };
    if formulas > 0 && args.format == Format::Csv {
        complain(format_args!(
            "surveylab-gateway: {formulas} values begin with =, +, - or @, which spreadsheets take for formulas: \
             import the columns as text"
        ));
    }
    Ok(Exported { unreadable, cut })
}

/// <https://owasp.org/www-community/attacks/CSV_Injection>; tabs and line ends can't begin a crk.
fn is_formula(text: &str) -> bool {
    text.starts_with(['=', '+', '-', '@'])
}
