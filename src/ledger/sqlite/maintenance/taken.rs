//! A ledger that is read while no gateway can be started on it.

use std::path::Path;

use super::{Error, Snapshot};
use crate::ledger::sqlite::file::Owner;

/// A snapshot whose ledger belongs to this process for as long as this is there, so that it stays what there is.
pub struct Taken {
    pub ledger: Snapshot,
    _owner: Owner,
}

impl Taken {
    /// Takes the ledger at `path` and begins to read. Blocks. Writes the lock file, and nothing else.
    ///
    /// # Errors
    ///
    /// [`Error::InUse`] if a gateway runs on it; else as [`Snapshot::open`]'s.
    pub fn open(path: &Path) -> Result<Self, Error> {
        // A look first: no lock file is to appear beside what is no ledger.
        let place = Snapshot::open(path)?.place.clone();
        let owner = place.lock()?;
        let ledger = Snapshot::open(path)?;
        Ok(Self { ledger, _owner: owner })
    }
}
