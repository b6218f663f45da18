//! Whether the files that are open are still those that their names lead to.
//!
//! A file that was deleted or replaced goes on working for the process that has it open: SQLite would acknowledge steps
//! that the next start can't find. And whoever deletes the lock file lets a second process make itself an owner.

use std::{
    fmt,
    fs::{self, Metadata},
    io::ErrorKind,
    path::PathBuf,
    sync::atomic::{AtomicBool, Ordering},
};

use rusqlite::Connection;

use super::{file::Place, worker::Cause};

/// Tells a file from all others, for as long as somebody has it open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Identity {
    device: u64,
    inode: u64,
}

impl Identity {
    #[cfg(unix)]
    pub(super) fn of(file: &Metadata) -> Self {
        use std::os::unix::fs::MetadataExt;
        Self {
            device: file.dev(),
            inode: file.ino(),
        }
    }

    /// Where an open file can't be deleted or replaced, all that can be asked is whether it is there.
    #[cfg(not(unix))]
    pub(super) fn of(_: &Metadata) -> Self {
        Self { device: 0, inode: 0 }
    }
}

/// A file that is not where it was.
#[derive(Debug)]
pub(super) struct Gone {
    file: PathBuf,
    what: String,
}

impl fmt::Display for Gone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.file.display(), self.what)
    }
}

/// The files of an open ledger, shared by its threads. It only ever asks for their metadata: to open and close the
/// database's file would drop the locks that SQLite holds on it for this process
/// (<https://www.sqlite.org/howtocorrupt.html>, 2.2).
pub(super) struct Files {
    place: Place,
    watched: Vec<(PathBuf, Identity)>,
    /// Whichever thread finds out, the loss is logged once, and so is the return.
    gone: AtomicBool,
}

impl Files {
    /// Watches a ledger that SQLite has open, so that the WAL and its index are there too.
    pub(super) fn watch(place: Place, database: Identity, lock: Identity) -> Result<Self, Gone> {
        let mut watched = vec![(place.beside(""), database), (place.beside(".lock"), lock)];
        // SQLite removes and makes these anew only when no connection is left.
        for suffix in ["-wal", "-shm"] {
            let file = place.beside(suffix);
            let identity = identify(&file)?;
            watched.push((file, identity));
        }
        Ok(Self {
            place,
            watched,
            gone: AtomicBool::new(false),
        })
    }

    /// Fails unless each file is where it was, and the same.
    pub(super) fn verify(&self) -> Result<(), Gone> {
        match self.compare() {
            Ok(()) => {
                if self.gone.load(Ordering::Acquire) && self.gone.swap(false, Ordering::AcqRel) {
                    tracing::info!("the ledger's files are back");
                }
                Ok(())
            }
            Err(gone) => {
                if !self.gone.swap(true, Ordering::AcqRel) {
                    tracing::error!(
                        file = %gone.file.display(),
                        what = gone.what,
                        "a file of the ledger is gone: nothing is sent until it is back. Put it back, or save what this \
                         process still has open before it ends"
                    );
                }
                Err(gone)
            }
        }
    }

    fn compare(&self) -> Result<(), Gone> {
        for (file, identity) in &self.watched {
            if identify(file)? != *identity {
                return Err(Gone {
                    file: file.clone(),
                    what: "was replaced by another file".into(),
                });
            }
        }
        Ok(())
    }

    /// Another connection to the ledger.
    pub(super) fn connect(&self) -> Result<Connection, Cause> {
        // In place of a WAL that is gone SQLite would make an empty one, and read it by the old one's index.
        self.verify()?;
        let db = self.place.connect()?;
        self.verify()?;
        Ok(db)
    }
}

fn identify(file: &PathBuf) -> Result<Identity, Gone> {
    match fs::metadata(file) {
        Ok(metadata) => Ok(Identity::of(&metadata)),
        Err(error) => Err(Gone {
            file: file.clone(),
            what: match error.kind() {
                ErrorKind::NotFound => "was deleted or moved away".into(),
                _ => format!("can't be found any more: {error}"),
            },
        }),
    }
}
