//! The results of a list: a CSV record for each row, appended durably as answers come. The file is also the import's memory:
//! a run that finds it goes on where the one before ended.

use std::{
    collections::HashMap,
    fs::{File, OpenOptions, TryLockError},
    hash::{DefaultHasher, Hash as _, Hasher as _},
    io::{self, BufReader, Read as _, Seek as _, SeekFrom, Write as _},
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tokio::{
    sync::mpsc,
    task::{JoinHandle, spawn_blocking},
    time::sleep,
};

use super::{answer::one_line, tally::Tally};
use crate::cli::new_file::{self, Existing, NewFile};

/// What became of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// By this import.
    Added,
    /// It had been added before; nothing was sent.
    Duplicate,
    Failed,
    InDoubt,
}

/// One row's result. The names are the columns'.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Where the row begins in the list; the first line is 1.
    pub line: u64,
    pub crk: String,
    pub outcome: Outcome,
    /// gRPC's name of the status.
    pub code: String,
    /// ErrorInfo's reason; empty for what was added.
    pub reason: String,
    /// May a request of this call have reached SurveyLab: `yes`, `no`, `unknown`.
    pub sent: String,
    /// SurveyLab's words, or what is wrong; on one line.
    pub message: String,
}

const COLUMNS: [&str; 7] = ["line", "crk", "outcome", "code", "reason", "sent", "message"];

/// Why a file can't take the results.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{0} belongs to another import that is running")]
    Busy(String),
    #[error("{path} is not a results file of an import ({what}); give another path with --results")]
    Strange { path: String, what: String },
    #[error("{path}: {source}")]
    File { path: String, source: io::Error },
    #[error(transparent)]
    Replace(#[from] new_file::Error),
}

/// Which rows of an earlier run are to be asked about again.
#[derive(Clone, Copy, Debug)]
pub struct AskAgain {
    pub failed: bool,
    pub in_doubt: bool,
}

impl AskAgain {
    fn includes(self, outcome: Outcome) -> bool {
        match outcome {
            Outcome::Failed => self.failed,
            Outcome::InDoubt => self.in_doubt,
            Outcome::Added | Outcome::Duplicate => false,
        }
    }
}

/// What earlier runs found out.
#[derive(Debug, Default)]
pub struct Earlier {
    rows: HashMap<u64, Known>,
    pub tally: Tally,
}

#[derive(Clone, Copy, Debug)]
struct Known {
    crk: u32,
    outcome: Outcome,
}

impl Earlier {
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// The outcome of a row, if it has one.
    ///
    /// # Errors
    ///
    /// With the line, when another crk was there: the results are another list's.
    pub fn of(&self, line: u64, crk: &str) -> Result<Option<Outcome>, u64> {
        match self.rows.get(&line) {
            None => Ok(None),
            Some(known) if known.crk == short(crk) => Ok(Some(known.outcome)),
            Some(_) => Err(line),
        }
    }

    /// The lines of the rows that failed.
    pub fn failed(&self) -> impl Iterator<Item = u64> {
        let failed = self.rows.iter().filter(|(_, row)| row.outcome == Outcome::Failed);
        failed.map(|(line, _)| *line)
    }

    fn note(&mut self, record: &Record) -> bool {
        let known = Known {
            crk: short(&record.crk),
            outcome: record.outcome,
        };
        self.tally.count(record.outcome, &record.reason);
        self.rows.insert(record.line, known).is_none()
    }
}

/// Enough of a hash to notice that a list is another one; a key is never told by it. Of the crk as results have it: a bad
/// row's may have had line breaks.
fn short(crk: &str) -> u32 {
    let mut hasher = DefaultHasher::new();
    one_line(crk).hash(&mut hasher);
    // The lower half of a hash.
    (hasher.finish() & u64::from(u32::MAX)) as u32
}

/// A results file that belongs to this process.
#[derive(Debug)]
pub struct Results {
    file: File,
}

impl Results {
    /// Opens or makes the file, and reads what is in it. A record that a kill cut short is taken off the end: its row has no
    /// result yet.
    pub fn open(path: &Path, again: AskAgain) -> Result<(Self, Earlier), Error> {
        let mut file = lock(path)?;
        let (mut earlier, mut whole) = read(path, &mut file)?;
        let failed = |source| Error::File {
            path: path.display().to_string(),
            source,
        };
        if earlier.rows.values().any(|row| again.includes(row.outcome)) {
            leave_out(path, &mut file, again)?;
            // The lock was that of the file before.
            file = lock(path)?;
            (earlier, whole) = read(path, &mut file)?;
        }
        file.set_len(whole).map_err(failed)?;
        file.seek(SeekFrom::End(0)).map_err(failed)?;
        if whole == 0 {
            header().and_then(|header| file.write_all(&header)).map_err(failed)?;
        }
        file.sync_all().map_err(failed)?;
        Ok((Self { file }, earlier))
    }

    /// What appends to it from now on.
    pub fn writer(self) -> Writer {
        let (records, taken) = mpsc::channel(QUEUE);
        Writer {
            records,
            task: tokio::spawn(append(self.file, taken)),
        }
    }
}

fn lock(path: &Path) -> Result<File, Error> {
    let failed = |source| Error::File {
        path: path.display().to_string(),
        source,
    };
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    // It holds keys, and SurveyLab's words.
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let file = options.open(path).map_err(failed)?;
    if !file.metadata().map_err(failed)?.is_file() {
        return Err(Error::Strange {
            path: path.display().to_string(),
            what: "it is no file".into(),
        });
    }
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(Error::Busy(path.display().to_string())),
        Err(TryLockError::Error(source)) => Err(failed(source)),
    }
}

/// What is in the file, and how much of it is whole.
fn read(path: &Path, file: &mut File) -> Result<(Earlier, u64), Error> {
    let mut earlier = Earlier::default();
    let whole = each(path, file, |line, record| {
        if earlier.note(&record) {
            Ok(())
        } else {
            Err(format!(
                "line {line} is a second result of line {} of the list",
                record.line
            ))
        }
    })?;
    Ok((earlier, whole))
}

/// Writes the file again without the results of rows that are to be asked about again.
fn leave_out(path: &Path, file: &mut File, again: AskAgain) -> Result<(), Error> {
    // A file that is named by a link is replaced where it is.
    let real = path.canonicalize().unwrap_or_else(|_| PathBuf::from(path));
    let kept = NewFile::create(&real, Existing::Replace)?;
    let failed = |source| Error::File {
        path: path.display().to_string(),
        source,
    };
    let mut out = writer(kept.file());
    let mut written = out.serialize(COLUMNS);
    each(path, file, |_, record| {
        if written.is_ok() && !again.includes(record.outcome) {
            written = out.serialize(record);
        }
        Ok(())
    })?;
    written
        .map_err(io::Error::from)
        .and_then(|()| out.flush())
        .map_err(failed)?;
    drop(out);
    Ok(kept.publish()?)
}

/// Calls for each whole record with its line in the file, and tells where the last one ends.
fn each(path: &Path, file: &mut File, mut take: impl FnMut(u64, Record) -> Result<(), String>) -> Result<u64, Error> {
    let failed = |source| Error::File {
        path: path.display().to_string(),
        source,
    };
    let strange = |what: String| Error::Strange {
        path: path.display().to_string(),
        what,
    };
    let length = file.seek(SeekFrom::End(0)).map_err(failed)?;
    let ends_a_line = length > 0 && {
        file.seek(SeekFrom::End(-1)).map_err(failed)?;
        let mut last = [0];
        file.read_exact(&mut last).map_err(failed)?;
        last == *b"\n"
    };
    file.seek(SeekFrom::Start(0)).map_err(failed)?;
    let mut csv = csv::ReaderBuilder::new()
        .has_headers(false)
        .flexible(true)
        .from_reader(BufReader::with_capacity(1 << 16, file));
    let mut record = csv::ByteRecord::new();
    let mut whole = 0;
    let mut first = true;
    while csv
        .read_byte_record(&mut record)
        .map_err(|error| strange(error.to_string()))?
    {
        let end = csv.position().byte();
        if end == length && !ends_a_line {
            break;
        }
        let line = record.position().map_or(0, csv::Position::line);
        if first {
            if record.iter().ne(COLUMNS.map(str::as_bytes)) {
                return Err(strange("its first line is not that of results".into()));
            }
            first = false;
        } else {
            let record = record
                .deserialize(None)
                .map_err(|_| strange(format!("line {line} is no result")))?;
            take(line, record).map_err(strange)?;
        }
        whole = end;
    }
    // Nothing but a piece of the first line: the kill came early.
    if whole == 0 && length > 0 {
        let header = header().map_err(failed)?;
        let file = csv.into_inner().into_inner();
        file.seek(SeekFrom::Start(0)).map_err(failed)?;
        let mut begun = Vec::new();
        file.read_to_end(&mut begun).map_err(failed)?;
        if !header.starts_with(&begun) {
            return Err(strange("its first line is not that of results".into()));
        }
    }
    Ok(whole)
}

fn header() -> io::Result<Vec<u8>> {
    encode([COLUMNS])
}

fn encode(records: impl IntoIterator<Item = impl Serialize>) -> io::Result<Vec<u8>> {
    let mut csv = writer(Vec::new());
    for record in records {
        csv.serialize(record)?;
    }
    csv.into_inner().map_err(csv::IntoInnerError::into_error)
}

/// Adds no names of columns by itself: a file that is appended to has them.
fn writer<W: io::Write>(out: W) -> csv::Writer<W> {
    csv::WriterBuilder::new().has_headers(false).from_writer(out)
}

/// Records that wait to be written: a second of them.
const QUEUE: usize = 8_192;

/// Between two syncs, so that many records share one.
const SYNC_EVERY: Duration = Duration::from_millis(100);

/// Appends records to the file, in the order in which they are given.
#[derive(Debug)]
pub struct Writer {
    records: mpsc::Sender<Record>,
    task: JoinHandle<io::Result<()>>,
}

impl Writer {
    /// Hands a record over; waits where the disk is slower than the answers. False if it can't be written: `finish` says why.
    pub async fn write(&self, record: Record) -> bool {
        self.records.send(record).await.is_ok()
    }

    /// Waits until all is on the disk.
    pub async fn finish(self) -> io::Result<()> {
        drop(self.records);
        self.task.await.unwrap_or_else(|lost| Err(io::Error::other(lost)))
    }
}

async fn append(mut file: File, mut records: mpsc::Receiver<Record>) -> io::Result<()> {
    let mut batch = Vec::new();
    while records.recv_many(&mut batch, QUEUE).await > 0 {
        let records_of_batch = std::mem::take(&mut batch);
        let written = spawn_blocking(move || {
            file.write_all(&encode(records_of_batch)?)?;
            file.sync_data()?;
            Ok::<_, io::Error>(file)
        });
        file = written.await.unwrap_or_else(|lost| Err(io::Error::other(lost)))?;
        if !records.is_closed() {
            sleep(SYNC_EVERY).await;
        }
    }
    Ok(())
}
