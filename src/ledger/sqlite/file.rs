//! The files of a ledger: who owns them, whether they are a ledger at all, and how they are opened.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, ErrorKind, Read, Write},
    path::{Path, PathBuf},
    process, thread,
    time::{Duration, SystemTime},
};

use rusqlite::{Connection, OpenFlags, ffi};

use super::{checkpoint::FULL, identity::Identity, schema};
use crate::ledger::Error;

/// How long a transaction waits for a program that holds the database, such as an operator's shell.
pub(super) const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// The first bytes of every SQLite database: <https://www.sqlite.org/fileformat2.html#magic_header_string>.
const MAGIC: &[u8; 16] = b"SQLite format 3\0";

/// Those of a WAL: <https://www.sqlite.org/fileformat2.html#walformat>.
const WAL_MAGIC: [[u8; 4]; 2] = [[0x37, 0x7f, 0x06, 0x82], [0x37, 0x7f, 0x06, 0x83]];

const SETTINGS: &str = "
    -- An acknowledged commit survives a loss of power; in WAL mode that is FULL, not the default NORMAL of some builds.
    PRAGMA synchronous = FULL;
    -- fsync on macOS leaves the data in the drive's cache.
    PRAGMA fullfsync = ON;
    -- After a reset the WAL is cut back to what the 16 000 pages of `checkpoint::FULL` take, should it ever have grown beyond.
    PRAGMA journal_size_limit = 67108864;
    -- 24 MiB instead of 2: claims and settles come back to the same pages before these are written to the file, and the
    -- inner pages of a large tree stay.
    PRAGMA cache_size = -24576;
    PRAGMA trusted_schema = OFF;
";

/// Where a ledger is, and all that is needed to connect to it again.
#[derive(Clone)]
pub(super) struct Place {
    /// As it was given: for messages.
    pub(super) given: PathBuf,
    /// Without symbolic links, so that two names of one file lead to one lock.
    pub(super) real: PathBuf,
}

impl Place {
    pub(super) fn find(path: &Path) -> Result<Self, Error> {
        let unusable = |what: String| Error::Unusable(format!("the ledger {} {what}", path.display()));
        let Some(name) = path.file_name() else {
            return Err(unusable("is not the name of a file".into()));
        };
        let real = match fs::canonicalize(path) {
            Ok(real) => real,
            Err(error) if error.kind() == ErrorKind::NotFound => {
                if path.is_symlink() {
                    return Err(unusable("is a symbolic link to nothing".into()));
                }
                let directory = match path.parent() {
                    Some(parent) if !parent.as_os_str().is_empty() => parent,
                    _ => Path::new("."),
                };
                fs::canonicalize(directory)
                    .map_err(|error| unusable(format!("can't be created in {}: {error}", directory.display())))?
                    .join(name)
            }
            Err(error) => return Err(unusable(format!("can't be opened: {error}"))),
        };
        if real.is_dir() {
            return Err(unusable("is a directory; give the path of a file".into()));
        }
        Ok(Self {
            given: path.into(),
            real,
        })
    }

    pub(super) fn unusable(&self, what: impl std::fmt::Display) -> Error {
        Error::Unusable(format!("the ledger {} {what}", self.given.display()))
    }

    /// What a failure of the file system while opening means: another path may help, or space.
    fn failed(&self, what: &str, error: &io::Error) -> Error {
        match error.kind() {
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge => {
                Error::Unavailable(format!("{} {what}: {error}", self.given.display()))
            }
            _ => self.unusable(format!("{what}: {error}")),
        }
    }

    /// What a failure of SQLite while opening means.
    pub(super) fn refused(&self, error: &rusqlite::Error) -> Error {
        use rusqlite::ErrorCode;
        match error.sqlite_error_code() {
            Some(ErrorCode::NotADatabase) => self.not_a_ledger("it is no SQLite database"),
            Some(ErrorCode::DatabaseCorrupt) => self.damaged(&describe(error)),
            Some(ErrorCode::ReadOnly | ErrorCode::CannotOpen | ErrorCode::PermissionDenied) => {
                let why = describe(error);
                self.unusable(format!(
                    "can't be opened for writing, or its -wal and -shm beside it: {why}"
                ))
            }
            _ => Error::Unavailable(format!("{}: {}", self.given.display(), describe(error))),
        }
    }

    fn damaged(&self, why: &str) -> Error {
        self.unusable(format!(
            "is damaged: {why}. It was left as it is; `surveylab-gateway ledger check --ledger sqlite:{}` tells more. \
             Restore it from a backup",
            self.given.display()
        ))
    }

    pub(super) fn not_a_ledger(&self, why: &str) -> Error {
        self.unusable(format!(
            "is not a ledger: {why}. It was left as it is; give another path, or restore the ledger from a backup"
        ))
    }

    /// Takes the ledger for this process. Must come before anything else is done to its files.
    pub(super) fn lock(&self) -> Result<Owner, Error> {
        let path = self.beside(".lock");
        let failed = |error: io::Error| self.failed(&format!("can't be locked: {}", path.display()), &error);
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        let mut file = private(&mut options).open(&path).map_err(failed)?;
        match exclusively(&file) {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let holder = match process_id(&mut file) {
                    Some(id) => format!("process {id}"),
                    // Its owner has it, and has not written its number yet.
                    None => "another process".into(),
                };
                return Err(Error::InUse(format!(
                    "the ledger {} is in use by {holder}; stop that one, or give another path",
                    self.given.display()
                )));
            }
            Err(TryLockError::Error(error)) => return Err(failed(error)),
        }
        file.set_len(0)
            .and_then(|()| writeln!(file, "{}", process::id()))
            .map_err(failed)?;
        let identity = Identity::of(&file.metadata().map_err(failed)?);
        Ok(Owner { _file: file, identity })
    }

    /// When the database or its WAL was last written; `None` if there is nothing in them.
    pub(super) fn last_written(&self) -> Option<SystemTime> {
        [self.real.clone(), self.beside("-wal")]
            .iter()
            .filter_map(|path| fs::metadata(path).ok().filter(|file| file.len() > 0)?.modified().ok())
            .max()
    }

    /// Who owns the ledger. Makes no lock file, and keeps nobody out for longer than the look takes.
    pub(super) fn owner(&self) -> Ownership {
        let mut file = match File::open(self.beside(".lock")) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ownership::Free,
            Err(_) => return Ownership::Unknown,
        };
        match file.try_lock_shared() {
            Ok(()) => Ownership::Free,
            Err(TryLockError::WouldBlock) => Ownership::Taken(process_id(&mut file)),
            Err(TryLockError::Error(_)) => Ownership::Unknown,
        }
    }

    /// Makes the file if there is none, readable by its owner alone; SQLite gives the files beside it the same mode.
    /// Says which file it is, if it can be a database.
    pub(super) fn prepare(&self) -> Result<Identity, Error> {
        self.look_at_wal()?;
        let opened = private(OpenOptions::new().read(true).write(true).create(true).truncate(false)).open(&self.real);
        let mut file = opened.map_err(|error| self.failed("can't be opened for writing", &error))?;
        let unread = |error: io::Error| self.failed("can't be read", &error);
        let head = head(&mut file).map_err(unread)?;
        // SQLite's first write to the file was cut short by a loss of power: with the journal it takes it back.
        let is_first_write = is_cut_short(&head, MAGIC) && holds_anything(&self.beside("-journal"));
        if !head.is_empty() && head != MAGIC && !is_first_write {
            return Err(self.not_a_ledger("it is no SQLite database"));
        }
        Ok(Identity::of(&file.metadata().map_err(unread)?))
    }

    /// Fails if SQLite would throw away what the WAL holds: without a word it takes one that begins with something else
    /// for an empty one, and one without its database for a stale one.
    fn look_at_wal(&self) -> Result<(), Error> {
        let wal = self.beside("-wal");
        let head = match File::open(&wal).and_then(|mut file| head(&mut file)) {
            Ok(head) if head.is_empty() => return Ok(()),
            Ok(head) => head,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(self.failed(&format!("can't be opened: {}", wal.display()), &error)),
        };
        if fs::metadata(&self.real).map_or(0, |file| file.len()) == 0 {
            return Err(self.unusable(format!(
                "is missing or empty, but {} is not: restore the one, or move the other away",
                wal.display()
            )));
        }
        // One cut short holds nothing that was acknowledged.
        if !WAL_MAGIC.iter().any(|magic| is_cut_short(&head, magic)) {
            return Err(self.damaged(&format!("{} is no write-ahead log", wal.display())));
        }
        Ok(())
    }

    /// A connection to a file that is there, without a look at what is in it.
    pub(super) fn connect_raw(&self) -> rusqlite::Result<Connection> {
        // NO_MUTEX: each connection belongs to one thread. No CREATE: a ledger that is gone is not made anew.
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let db = Connection::open_with_flags(&self.real, flags)?;
        db.busy_timeout(BUSY_TIMEOUT)?;
        db.set_prepared_statement_cache_capacity(32);
        Ok(db)
    }

    /// A connection to a ledger that was opened before.
    pub(super) fn connect(&self) -> rusqlite::Result<Connection> {
        let db = self.connect_raw()?;
        schema::expect_current(&db)?;
        configure(&db)?;
        Ok(db)
    }

    /// A file beside the ledger, or with no suffix its own.
    pub(super) fn beside(&self, suffix: &str) -> PathBuf {
        let mut name = self.real.clone().into_os_string();
        name.push(suffix);
        name.into()
    }
}

fn holds_anything(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|file| file.len() > 0)
}

/// Whether a file's first bytes are `whole` up to some place, and zeros from there on: what a loss of power, or a kill
/// within the write, leaves of them.
fn is_cut_short(head: &[u8], whole: &[u8]) -> bool {
    let written = head.iter().zip(whole).take_while(|(is, whole)| is == whole).count();
    written == whole.len() || head[written..].iter().all(|byte| *byte == 0)
}

/// Holds the lock file; dropping it gives the ledger free. The file stays: were it deleted, a process that had just
/// opened it would own a name that is gone, and the next one would make itself a second owner.
pub(super) struct Owner {
    _file: File,
    pub identity: Identity,
}

/// Whether a gateway owns a ledger.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ownership {
    Free,
    /// By this process, if it has written its number yet.
    Taken(Option<u32>),
    /// The lock file can't be read.
    Unknown,
}

/// Takes the lock, if no other owner has it.
fn exclusively(file: &File) -> Result<(), TryLockError> {
    // An owner's lock is exclusive. A shared one is a command's that looks whether there is an owner, and over as soon
    // as that process gets to run.
    const LOOK: Duration = Duration::from_millis(1);
    const LOOKS: u32 = 5_000;
    for _ in 0..LOOKS {
        match file.try_lock() {
            Err(TryLockError::WouldBlock) => file.try_lock_shared()?,
            other => return other,
        }
        file.unlock().map_err(TryLockError::Error)?;
        thread::park_timeout(LOOK);
    }
    file.try_lock()
}

fn process_id(file: &mut File) -> Option<u32> {
    let mut text = String::new();
    file.read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}

pub(super) fn configure(db: &Connection) -> rusqlite::Result<()> {
    db.execute_batch(SETTINGS)?;
    // Of SQLite's own checkpoints, which hold until `Checkpoints::attach`: while the tables are changed and claims recovered.
    db.pragma_update(None, "wal_autocheckpoint", FULL)
}

/// What went wrong, in SQLite's words for the error's number: its other texts could quote a statement.
pub(super) fn describe(error: &rusqlite::Error) -> String {
    match error.sqlite_error() {
        Some(failure) => {
            let words = ffi::code_to_str(failure.extended_code);
            format!("{words} (SQLite error {})", failure.extended_code)
        }
        None => "the database holds what it should not".into(),
    }
}

/// As many of a file's first bytes as tell what it is.
fn head(file: &mut File) -> io::Result<Vec<u8>> {
    let mut head = Vec::with_capacity(MAGIC.len());
    file.take(MAGIC.len() as u64).read_to_end(&mut head)?;
    Ok(head)
}

#[cfg(unix)]
fn private(options: &mut OpenOptions) -> &mut OpenOptions {
    use std::os::unix::fs::OpenOptionsExt;
    options.mode(0o600)
}

#[cfg(not(unix))]
fn private(options: &mut OpenOptions) -> &mut OpenOptions {
    options
}
