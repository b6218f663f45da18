//! A copy of a snapshot, in a file of its own.

use std::{
    fs::{File, OpenOptions},
    io,
    path::Path,
};

use rusqlite::{
    Connection, OpenFlags,
    backup::{Backup, StepResult},
};

use super::{Access, Error, RESTORE, Snapshot, describe, freeze, length, uri};
use crate::clock::Timestamp;

/// Pages that are copied before they are written through to the disk: 4 MiB.
///
/// Measured in an unoptimized build, on two busy cores, beside 400 claims a second on a ledger of a million keys
/// (115 MB): the longest that a claim waited, as the median of ten copies each, was 18 ms (3 to 54). Synced only in the
/// end, the same steps made it 71 ms and a copy in one go 55 ms, as the gateway's own syncs then wait for all of it.
/// `VACUUM INTO`, which can't be synced in between, made it 53 ms. In five seconds without a copy it was 25 ms.
const STEP: i32 = 1_024;

/// What was copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Copied {
    pub keys: u64,
    pub bytes: u64,
    /// The newest change in the copy, by the gateway's clock.
    pub last_change: Option<Timestamp>,
}

impl Snapshot {
    /// Writes a copy into the empty file at `path`, which is nobody else's meanwhile, and makes it durable. The copy
    /// was read back and checked, its claims are claims: a gateway that opens it puts them in doubt.
    ///
    /// # Errors
    ///
    /// [`Error::Damaged`] if the copy turns out damaged, as the ledger then is; [`Error::Unwritten`] if it could not be
    /// written, such as for want of space. The file is left as it came to be then.
    pub fn copy_to(&self, path: &Path) -> Result<Copied, Error> {
        let unwritten = |how: String| Error::Unwritten(format!("{} can't be written: {how}", path.display()));
        let not_synced = |error: io::Error| unwritten(error.to_string());
        let file = OpenOptions::new().write(true).open(path).map_err(not_synced)?;
        self.copy_pages(path, &file, &unwritten)?;
        file.sync_all().map_err(not_synced)?;
        drop(file);
        self.confirm()?;

        let (db, _) = freeze(path).map_err(|error| unwritten(describe(&error)))?;
        let copy = Self {
            db,
            place: self.place.clone(),
            access: Access::Shared,
            ownership: self.ownership,
        };
        let findings = copy
            .integrity("PRAGMA quick_check")
            .map_err(|error| self.failed(&error))?;
        if let Some(finding) = findings.first() {
            return Err(Error::Damaged(format!(
                "the ledger {} is damaged ({finding}), and a copy of it would be, too; keep the backups that you have, \
                 and {RESTORE}",
                self.place.given.display()
            )));
        }
        let (keys, last_change) = copy.extent().map_err(|error| self.failed(&error))?;
        let bytes = length(path);
        Ok(Copied {
            keys,
            bytes,
            last_change,
        })
    }

    fn copy_pages(&self, path: &Path, file: &File, unwritten: &dyn Fn(String) -> Error) -> Result<(), Error> {
        let not_written = |error: rusqlite::Error| unwritten(describe(&error));
        // Without locks, which not every place for backups has, and without a journal: the file is ours, and of no use
        // before it is whole.
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX | OpenFlags::SQLITE_OPEN_URI;
        let mut target = Connection::open_with_flags(uri(path, "nolock=1"), flags).map_err(not_written)?;
        target
            .execute_batch("PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF")
            .map_err(not_written)?;
        // The snapshot's transaction stays open in between. Without it each step would see the gateway's latest commit
        // and begin again: beside the same claims such a copy was near its beginning after 8 s, not done within one.
        let backup = Backup::new(&self.db, &mut target).map_err(not_written)?;
        loop {
            match backup.step(STEP) {
                Ok(StepResult::Done) => return Ok(()),
                Ok(StepResult::More) => {
                    file.sync_data().map_err(|error| unwritten(error.to_string()))?;
                }
                Ok(_) => return Err(Error::Unavailable("the ledger is locked; try again".into())),
                Err(error) if is_of_the_source(&error) => return Err(self.failed(&error)),
                Err(error) => return Err(not_written(error)),
            }
        }
    }

    /// How many keys there are, and when the last one changed.
    fn extent(&self) -> rusqlite::Result<(u64, Option<Timestamp>)> {
        let sql = "
            SELECT count(*), max(at) FROM (
                SELECT updated_at AS at FROM invitation AS settled WHERE NOT EXISTS (SELECT 1 FROM pending
                    WHERE (pending.collector_id, pending.crk) = (settled.collector_id, settled.crk))
                UNION ALL SELECT claimed_at FROM pending)";
        self.db.query_row(sql, [], |row| {
            let last_change: Option<i64> = row.get(1)?;
            Ok((row.get::<_, i64>(0)?.unsigned_abs(), last_change.map(Timestamp)))
        })
    }
}

/// Is what failed the reading? The two sides of a copy share one error.
fn is_of_the_source(error: &rusqlite::Error) -> bool {
    use rusqlite::ffi;
    let code = error.sqlite_error().map(|failure| failure.extended_code);
    let is_of_reading = [ffi::SQLITE_IOERR_READ, ffi::SQLITE_IOERR_SHORT_READ, ffi::SQLITE_NOTADB];
    code.is_some_and(|code| code & 0xff == ffi::SQLITE_CORRUPT || is_of_reading.contains(&code))
}
