//! All records of a snapshot, one after the other.

use std::{mem, ops::ControlFlow};

use rusqlite::{Row, Rows, Statement, types::ValueRef};

use super::{Error, Snapshot, damaged, describe};
use crate::{
    clock::Timestamp,
    invitation::Key,
    ledger::{
        Query, Record, State,
        sqlite::read::{self, Table},
    },
};

/// The end of the year 9999, as far as RFC 3339 goes. A record with a later time makes no sense.
pub const LATEST: Timestamp = Timestamp(253_402_300_799_999_999);

/// A row of the ledger that makes no sense.
#[derive(Debug)]
pub struct Unreadable {
    /// As far as it can be read.
    pub key: Key,
}

impl Snapshot {
    /// Hands on each record that matches, in the order of keys, until `each` breaks off. Needs no more memory for many
    /// than for few.
    ///
    /// # Errors
    ///
    /// As [`Snapshot::open`]'s. Records may have been handed on before.
    pub fn records(
        &self,
        query: &Query,
        each: impl FnMut(Result<Record, Unreadable>) -> ControlFlow<()>,
    ) -> Result<(), Error> {
        let mut last = None;
        match self.merge(query, each, &mut last) {
            Ok(()) => self.confirm(),
            Err(error) => Err(match (self.failed(&error), last) {
                (Error::Damaged(_), Some(key)) => {
                    let how = format!("{}; nothing behind {key:?} could be read", describe(&error));
                    damaged(&self.place, &how)
                }
                (error, _) => error,
            }),
        }
    }

    /// Merges the tables: each is in the order of keys, and no key comes from both.
    fn merge(
        &self,
        query: &Query,
        mut each: impl FnMut(Result<Record, Unreadable>) -> ControlFlow<()>,
        last: &mut Option<Key>,
    ) -> rusqlite::Result<()> {
        let (with_pending, with_settled) = match query.state {
            None => (true, true),
            Some(State::Pending) => (true, false),
            Some(State::Added | State::Failed | State::InDoubt) => (false, true),
        };
        let prepare = |wanted: bool, table| {
            let statement = wanted.then(|| self.db.prepare(&read::listing(query, table)));
            let mut statement = statement.transpose()?;
            if let Some(statement) = &mut statement {
                read::bind(statement, query)?;
            }
            Ok::<_, rusqlite::Error>(statement)
        };
        let mut pending = prepare(with_pending, Table::Pending)?;
        let mut settled = prepare(with_settled, Table::Invitation)?;
        let mut pending = pending.as_mut().map(Statement::raw_query);
        let mut settled = settled.as_mut().map(Statement::raw_query);
        let (mut one, mut other) = (next(&mut pending)?, next(&mut settled)?);
        loop {
            let is_pending = match (&one, &other) {
                (None, None) => return Ok(()),
                (Some(one), Some(other)) => one.key < other.key,
                (one, _) => one.is_some(),
            };
            let entry = if is_pending {
                mem::replace(&mut one, next(&mut pending)?)
            } else {
                mem::replace(&mut other, next(&mut settled)?)
            };
            let Some(Entry { key, record }) = entry else { continue };
            *last = Some(key);
            if each(record).is_break() {
                return Ok(());
            }
        }
    }
}

struct Entry {
    key: Key,
    record: Result<Record, Unreadable>,
}

fn next(rows: &mut Option<Rows<'_>>) -> rusqlite::Result<Option<Entry>> {
    match rows {
        Some(rows) => Ok(rows.next()?.map(entry)),
        None => Ok(None),
    }
}

fn entry(row: &Row<'_>) -> Entry {
    // The columns behind those that `decode` takes.
    let (collector_id, crk) = (text(row, 8), text(row, 9));
    let key = Key::new(collector_id.0, crk.0);
    let record = read::decode(row, key.clone())
        .ok()
        .filter(|record| collector_id.1 && crk.1 && is_dated(record));
    let record = record.ok_or_else(|| Unreadable { key: key.clone() });
    Entry { key, record }
}

/// A column's text, and whether it is all there.
fn text(row: &Row<'_>, column: usize) -> (String, bool) {
    match row.get_ref(column) {
        Ok(ValueRef::Text(bytes)) => {
            let text = String::from_utf8_lossy(bytes);
            let whole = text.as_bytes() == bytes;
            (text.into_owned(), whole)
        }
        _ => ("?".into(), false),
    }
}

fn is_dated(record: &Record) -> bool {
    [record.created_at, record.updated_at]
        .iter()
        .all(|time| (Timestamp(0)..=LATEST).contains(time))
}
