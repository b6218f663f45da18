//! A ledger as another process than the gateway's sees it: to check, copy and export it, whether a gateway runs on it
//! or not.
//!
//! Nothing here changes a ledger: none is made or brought up to date, no claim is put in doubt, no WAL is written back. SQLite
//! lets other processes read beside the gateway, and a read transaction holds up none of its commits. It holds up the
//! reset of the WAL, which grows meanwhile.

use std::{fmt::Write as _, fs, io::ErrorKind, path::Path, time::SystemTime};

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_encode};
use rusqlite::{Connection, MAIN_DB, OpenFlags, config::DbConfig, ffi};

use super::{
    file::{BUSY_TIMEOUT, Place, describe},
    schema::{self, Marks},
};
use crate::ledger;

mod check;
mod copy;
mod records;
mod taken;
#[cfg(test)]
mod tests;

pub use super::file::Ownership;
pub use check::Report;
pub use copy::Copied;
pub use records::{LATEST, Unreadable};
pub use taken::Taken;

/// What to do about damage, for the end of a message.
const RESTORE: &str = "stop the gateway, and restore the ledger from a backup: docs/operations.md, \"Restore\"";

/// Why a ledger could not be checked, copied or exported.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no ledger that this version can read: only another path, permission or version helps.
    #[error("{0}")]
    Unusable(String),
    /// It could not be read this time.
    #[error("{0}")]
    Unavailable(String),
    #[error("{0}")]
    Damaged(String),
    /// The copy could not be written.
    #[error("{0}")]
    Unwritten(String),
    /// A gateway runs on it, which must not be.
    #[error("{0}")]
    InUse(String),
}

impl From<ledger::Error> for Error {
    fn from(error: ledger::Error) -> Self {
        match error {
            ledger::Error::Unusable(text) => Self::Unusable(text),
            ledger::Error::InUse(text) => Self::InUse(text),
            ledger::Error::Unavailable(text) => Self::Unavailable(text),
        }
    }
}

/// One consistent state of a ledger: that of the moment in which it was opened.
pub struct Snapshot {
    db: Connection,
    place: Place,
    access: Access,
    ownership: Ownership,
}

/// How the file is read.
enum Access {
    /// With SQLite's locks, so that others may write meanwhile.
    Shared,
    /// Without: the file or its directory can't be written, so SQLite can't make what its locks are kept in. It is
    /// taken to stay as it is, and must prove to have.
    Frozen(Stamp),
}

/// What would differ if somebody had written to the file.
#[derive(PartialEq, Eq)]
struct Stamp {
    bytes: u64,
    modified: Option<SystemTime>,
    wal_bytes: u64,
}

impl Stamp {
    fn of(place: &Place) -> Self {
        let metadata = fs::metadata(&place.real).ok();
        Self {
            bytes: metadata.as_ref().map_or(0, fs::Metadata::len),
            modified: metadata.and_then(|metadata| metadata.modified().ok()),
            wal_bytes: length(&place.beside("-wal")),
        }
    }
}

impl Snapshot {
    /// Opens the ledger at `path` and begins to read. Blocks.
    ///
    /// # Errors
    ///
    /// [`Error::Unusable`] if there is no ledger, it is of another version or must not be read; [`Error::Damaged`] if
    /// not even its first page makes sense; [`Error::Unavailable`] if it can't be read now.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let unusable = |what: String| Error::Unusable(format!("the ledger {} {what}", path.display()));
        let metadata = match fs::metadata(path) {
            Ok(metadata) => metadata,
            Err(error) if error.kind() == ErrorKind::NotFound => return Err(unusable("does not exist".into())),
            Err(error) => return Err(unusable(format!("can't be opened: {error}"))),
        };
        let place = Place::find(path)?;
        let has_wal = length(&place.beside("-wal")) > 0;
        if metadata.len() == 0 && has_wal {
            let words = "is empty, but its WAL is not: the file was lost or replaced";
            return Err(Error::Damaged(format!(
                "the ledger {} {words}; {RESTORE}",
                path.display()
            )));
        }
        let ownership = place.owner();
        let may_freeze = !has_wal && !matches!(ownership, Ownership::Taken(_));

        let (db, access, marks) = match share(&place, has_wal, may_freeze) {
            Ok((db, marks)) => (db, Access::Shared, marks),
            Err(error) if may_freeze && needs_writing(&error) => {
                let stamp = Stamp::of(&place);
                let (db, marks) = freeze(&place.real).map_err(|error| failed(&place, &error))?;
                (db, Access::Frozen(stamp), marks)
            }
            Err(error) if has_wal && needs_writing(&error) => {
                return Err(unusable(format!(
                    "has a WAL that can't be read where it is, as SQLite must be able to write {0}-shm ({1}): copy {0} \
                     and {0}-wal to a directory that you may write to, and give that copy's path",
                    path.display(),
                    describe(&error)
                )));
            }
            Err(error) => return Err(failed(&place, &error)),
        };
        match marks.version(&place)? {
            0 => Err(unusable("is empty: no gateway has used it yet".into())),
            version if version < schema::VERSION => Err(unusable(format!(
                "was written by an earlier version of the gateway (its schema is {version}, that of this version {}); \
                 use the commands of that version, or start this one on it, which brings it up to date",
                schema::VERSION
            ))),
            _ => Ok(Self {
                db,
                place,
                access,
                ownership,
            }),
        }
    }

    /// Whether a gateway ran on the ledger when it was opened.
    pub fn ownership(&self) -> Ownership {
        self.ownership
    }

    /// Whether `path` is one of the ledger's own files, under whichever name.
    pub fn owns_file(&self, path: &Path) -> bool {
        let Ok(real) = fs::canonicalize(path) else { return false };
        ["", "-wal", "-shm", ".lock"]
            .iter()
            .any(|suffix| fs::canonicalize(self.place.beside(suffix)).is_ok_and(|own| own == real))
    }

    /// Says whether what was read is to be relied on: a file read without locks must not have changed meanwhile.
    fn confirm(&self) -> Result<(), Error> {
        match &self.access {
            Access::Frozen(stamp) if *stamp != Stamp::of(&self.place) => Err(Error::Unavailable(format!(
                "the ledger {} changed while it was read without locks; try again",
                self.place.given.display()
            ))),
            Access::Frozen(_) | Access::Shared => Ok(()),
        }
    }

    fn failed(&self, error: &rusqlite::Error) -> Error {
        failed(&self.place, error)
    }
}

/// A connection that reads beside others, in a transaction.
fn share(place: &Place, has_wal: bool, may_freeze: bool) -> rusqlite::Result<(Connection, Marks)> {
    // Opened for writing although nothing is written: only such a connection takes away the empty WAL that SQLite makes
    // for it. No CREATE: a ledger that is gone is not made anew.
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let db = Connection::open_with_flags(&place.real, flags)?;
    if may_freeze && db.is_readonly(MAIN_DB)? {
        // It would leave that WAL behind.
        return Err(rusqlite::Error::SqliteFailure(
            ffi::Error::new(ffi::SQLITE_READONLY),
            None,
        ));
    }
    db.busy_timeout(BUSY_TIMEOUT)?;
    // A WAL that is there stays as it is: what a crash has left is for the gateway to take up.
    db.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, has_wal)?;
    begin(db)
}

/// A connection to a file that nobody changes, in a transaction.
fn freeze(path: &Path) -> rusqlite::Result<(Connection, Marks)> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX | OpenFlags::SQLITE_OPEN_URI;
    begin(Connection::open_with_flags(uri(path, "immutable=1"), flags)?)
}

fn begin(db: Connection) -> rusqlite::Result<(Connection, Marks)> {
    db.execute_batch("PRAGMA query_only = ON; PRAGMA trusted_schema = OFF; BEGIN")?;
    // The first read fixes the state that all further ones see.
    let marks = Marks::read(&db)?;
    Ok((db, marks))
}

/// Did it fail for want of a file beside the ledger's, or of the right to lock one?
fn needs_writing(error: &rusqlite::Error) -> bool {
    use rusqlite::ErrorCode::{CannotOpen, PermissionDenied, ReadOnly};
    matches!(
        error.sqlite_error_code(),
        Some(CannotOpen | PermissionDenied | ReadOnly)
    )
}

/// What a failure of SQLite while reading means.
fn failed(place: &Place, error: &rusqlite::Error) -> Error {
    use rusqlite::ErrorCode;
    match error.sqlite_error_code() {
        Some(ErrorCode::NotADatabase) if !is_marked(place) => place.not_a_ledger("it is no SQLite database").into(),
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => damaged(place, &describe(error)),
        Some(ErrorCode::CannotOpen | ErrorCode::PermissionDenied | ErrorCode::ReadOnly) => {
            place.unusable(format!("can't be read: {}", describe(error))).into()
        }
        _ => Error::Unavailable(format!(
            "the ledger {} can't be read now: {}",
            place.given.display(),
            describe(error)
        )),
    }
}

fn damaged(place: &Place, how: &str) -> Error {
    let path = place.given.display();
    Error::Damaged(format!("the ledger {path} is damaged ({how}); {RESTORE}"))
}

/// Does the file bear a ledger's mark, although SQLite does not take it for a database? Called once it is closed: to
/// close another handle of the file would end SQLite's locks on it.
fn is_marked(place: &Place) -> bool {
    /// Where the header keeps the application id: <https://www.sqlite.org/fileformat2.html#application_id>.
    const AT: usize = 68;
    let mut head = [0; AT + 4];
    let read = fs::File::open(&place.real).and_then(|mut file| std::io::Read::read_exact(&mut file, &mut head));
    read.is_ok() && head.ends_with(&schema::APPLICATION_ID.to_be_bytes())
}

/// <https://www.sqlite.org/uri.html>, for any path.
fn uri(path: &Path, parameters: &str) -> String {
    const PLAIN: &AsciiSet = &NON_ALPHANUMERIC.remove(b'/').remove(b'.').remove(b'-').remove(b'_');
    let mut uri = String::from("file:");
    // A path that begins with two slashes would name a host.
    let absolute = if path.is_absolute() { "//" } else { "" };
    let path = percent_encode(path.as_os_str().as_encoded_bytes(), PLAIN);
    let _infallible = write!(uri, "{absolute}{path}?{parameters}");
    uri
}

fn length(path: &Path) -> u64 {
    fs::metadata(path).map_or(0, |metadata| metadata.len())
}
