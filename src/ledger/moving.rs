//! A ledger on its way from SQLite to PostgreSQL: both sides compared, and what is missing copied.
//!
//! Nothing that the target holds is ever changed. What was copied before an interruption is found by looking at it, so
//! that a move goes on from any moment, and nothing is taken for copied that was not read back.

use std::{iter::Peekable, ops::ControlFlow, vec};

use tokio::runtime::Handle;

use super::{
    Query, Record, State,
    postgres::target::Target,
    rules,
    sqlite::maintenance::{self, Taken},
};
use crate::invitation::Key;

mod summary;
#[cfg(test)]
mod tests;

pub use summary::{Keys, Summary, Summing};

/// Records that are written in one statement, and so in one transaction; also those of a page that is read.
const BATCH: usize = 5_000;

/// Why a move can't begin or go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Source(#[from] maintenance::Error),
    #[error(transparent)]
    Target(#[from] super::Error),
    /// A record of the source can't be moved as it is.
    #[error("the record of {key:?} can't be moved: {why}")]
    Record { key: Key, why: &'static str },
}

/// How the target stands to the source.
#[derive(Debug)]
pub struct Comparison {
    pub source: Summary,
    pub target: Summary,
    /// Records that the source alone has.
    pub missing: u64,
    /// The key behind which the first of these comes; `None` if there is none before it.
    pub missing_after: Option<Key>,
    /// Records of the target that the source does not have, or has otherwise.
    pub differing: u64,
    pub first_differing: Option<(Key, Difference)>,
}

/// How a record of the target differs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Difference {
    /// The source has another one for the same key.
    Other,
    /// The source has none.
    Unknown,
}

impl Comparison {
    /// Do both hold the same?
    pub fn is_equal(&self) -> bool {
        self.missing == 0 && self.differing == 0 && self.source == self.target
    }
}

/// A source that no gateway can take meanwhile, and a target.
pub struct Move {
    pub source: Taken,
    pub target: Target,
    pub runtime: Handle,
}

impl Move {
    /// Reads both sides, all of them. Blocks, as all of these do: not for a task of the runtime. `progress` is told how many
    /// records of the source were read.
    pub fn compare(&self, progress: &mut dyn FnMut(u64)) -> Result<Comparison, Error> {
        let mut comparing = Comparing::default();
        let mut theirs = Pages {
            of: self,
            page: Vec::new().into_iter().peekable(),
            after: None,
            is_last: false,
        };
        let mut read = 0;
        self.each(None, &mut |record| {
            while let Some(other) = theirs.next_if(|other| other.key < record.key)? {
                comparing.differs(&other, Difference::Unknown);
            }
            match theirs.next_if(|other| other.key == record.key)? {
                None => comparing.misses(),
                Some(other) if other == record => comparing.target.add(&other),
                Some(other) => comparing.differs(&other, Difference::Other),
            }
            comparing.source.add(&record);
            comparing.last = Some(record.key);
            read += 1;
            if read % BATCH as u64 == 0 {
                progress(read);
            }
            Ok(())
        })?;
        while let Some(other) = theirs.next_if(|_| true)? {
            comparing.differs(&other, Difference::Unknown);
        }
        Ok(comparing.end())
    }

    /// Claims in the source, which a dead process left there.
    pub fn orphans(&self) -> Result<u64, Error> {
        let query = Query {
            state: Some(State::Pending),
            limit: usize::MAX,
            ..Query::default()
        };
        let mut orphans = 0;
        self.source.ledger.records(&query, |_| {
            orphans += 1;
            ControlFlow::Continue(())
        })?;
        Ok(orphans)
    }

    /// Writes the records behind a key that the target does not have. Returns how many those were.
    ///
    /// # Errors
    ///
    /// [`ledger::Error::InUse`](super::Error::InUse) if a gateway began to run on the target.
    pub fn copy(&self, after: Option<Key>, progress: &mut dyn FnMut(u64)) -> Result<u64, Error> {
        let mut batch = Vec::with_capacity(BATCH);
        let (mut read, mut written) = (0, 0);
        let write = |batch: &mut Vec<Record>| {
            let put = self.runtime.block_on(self.target.put(batch));
            batch.clear();
            put
        };
        self.each(after, &mut |record| {
            batch.push(record);
            if batch.len() == BATCH {
                read += batch.len() as u64;
                written += write(&mut batch)?;
                progress(read);
            }
            Ok(())
        })?;
        written += write(&mut batch)?;
        Ok(written)
    }

    /// Hands on the records of the source behind a key, as the target is to have them.
    fn each(&self, after: Option<Key>, take: &mut dyn FnMut(Record) -> Result<(), Error>) -> Result<(), Error> {
        let query = Query {
            after,
            limit: usize::MAX,
            ..Query::default()
        };
        let mut taken = Ok(());
        self.source.ledger.records(&query, |record| {
            let record = match record {
                Ok(record) => moved(record),
                Err(unreadable) => Err(Error::Record {
                    key: unreadable.key,
                    why: "it can't be read",
                }),
            };
            taken = record.and_then(&mut *take);
            match taken {
                Ok(()) => ControlFlow::Continue(()),
                Err(_) => ControlFlow::Break(()),
            }
        })?;
        taken
    }
}

/// The records of the target, in the order of keys.
struct Pages<'a> {
    of: &'a Move,
    page: Peekable<vec::IntoIter<Record>>,
    after: Option<Key>,
    is_last: bool,
}

impl Pages<'_> {
    /// The next one, if there is one and it is asked for.
    fn next_if(&mut self, is_asked_for: impl FnOnce(&Record) -> bool) -> Result<Option<Record>, Error> {
        if self.page.peek().is_none() && !self.is_last {
            let page = self
                .of
                .runtime
                .block_on(self.of.target.page(self.after.take(), BATCH))?;
            self.is_last = page.len() < BATCH;
            self.after = page.last().map(|record| record.key.clone());
            self.page = page.into_iter().peekable();
        }
        Ok(self.page.next_if(is_asked_for))
    }
}

/// A comparison under way.
#[derive(Default)]
struct Comparing {
    source: Summing,
    target: Summing,
    /// The last key of the source so far.
    last: Option<Key>,
    missing: u64,
    missing_after: Option<Key>,
    differing: u64,
    first_differing: Option<(Key, Difference)>,
}

impl Comparing {
    fn misses(&mut self) {
        if self.missing == 0 {
            self.missing_after = self.last.clone();
        }
        self.missing += 1;
    }

    fn differs(&mut self, other: &Record, how: Difference) {
        self.target.add(other);
        self.differing += 1;
        self.first_differing.get_or_insert_with(|| (other.key.clone(), how));
    }

    fn end(self) -> Comparison {
        Comparison {
            source: self.source.end(),
            target: self.target.end(),
            missing: self.missing,
            missing_after: self.missing_after,
            differing: self.differing,
            first_differing: self.first_differing,
        }
    }
}

/// A record as the target is to have it.
///
/// A claim is in doubt from the moment on in which it was made: the last one that anything is known of, and the same one
/// however often it is looked at.
fn moved(mut record: Record) -> Result<Record, Error> {
    let refused = |record: &Record, why| {
        let key = record.key.clone();
        Err(Error::Record { key, why })
    };
    if [record.key.collector_id(), record.key.crk()]
        .iter()
        .any(|part| part.contains('\0'))
    {
        return refused(&record, "its key holds a character that PostgreSQL can't");
    }
    match record.state {
        State::Pending => {
            let rules::Settled { state, last_error, .. } = rules::ORPHANED.into();
            (record.state, record.last_error) = (state, last_error);
        }
        State::Failed | State::InDoubt if record.last_error.is_none() => {
            return refused(
                &record,
                "this version does not know its reason; use the version that wrote it, or a later one",
            );
        }
        State::Added | State::Failed | State::InDoubt => {}
    }
    // As the gateway itself does, for the one character that PostgreSQL's text can't hold.
    record.notification = record.notification.map(|text| text.replace('\0', "\u{fffd}"));
    Ok(record)
}
