//! What is asked of the tables: one key, or a listing. Where a key is in both, its row of `pending` is shown.

use rusqlite::{CachedStatement, Connection, Row, Statement, ToSql};

use super::worker::{Fault, Operation};
use crate::{
    clock::Timestamp,
    invitation::{Fingerprint, Key, Reason},
    ledger::{LastError, Query, Record, State, census::Change},
};

// The columns in the order in which `decode` takes them.
const SETTLED: &str = "SELECT fingerprint, state, attempts, created_at, updated_at, reason, http_status, notification \
                       FROM invitation WHERE collector_id = ?1 AND crk = ?2";
const PENDING: &str = "SELECT fingerprint, 1, attempts, created_at, claimed_at, NULL, NULL, NULL \
                       FROM pending WHERE collector_id = ?1 AND crk = ?2";

pub(super) struct LookUp(pub Key);

impl Operation for LookUp {
    type Answer = Option<Record>;

    fn run(&self, db: &Connection, _: &mut Change) -> Result<Option<Record>, Fault> {
        match pending(db, &self.0)? {
            Some(record) => Ok(Some(record)),
            None => settled(db, &self.0),
        }
    }
}

pub(super) fn pending(db: &Connection, key: &Key) -> Result<Option<Record>, Fault> {
    one(db.prepare_cached(PENDING)?, key)
}

pub(super) fn settled(db: &Connection, key: &Key) -> Result<Option<Record>, Fault> {
    one(db.prepare_cached(SETTLED)?, key)
}

fn one(mut statement: CachedStatement<'_>, key: &Key) -> Result<Option<Record>, Fault> {
    let mut rows = statement.query((key.collector_id(), key.crk()))?;
    match rows.next()? {
        Some(row) => decode(row, key.clone()).map(Some),
        None => Ok(None),
    }
}

pub(super) struct List(pub Query);

impl Operation for List {
    type Answer = Vec<Record>;

    fn run(&self, db: &Connection, _: &mut Change) -> Result<Vec<Record>, Fault> {
        let query = &self.0;
        let pending = match query.state {
            None | Some(State::Pending) => page(db, query, &listing(query, Table::Pending))?,
            Some(State::Added | State::Failed | State::InDoubt) => Vec::new(),
        };
        let settled = match query.state {
            Some(State::Pending) => Vec::new(),
            None | Some(State::Added | State::Failed | State::InDoubt) => {
                page(db, query, &listing(query, Table::Invitation))?
            }
        };
        // Two runs in order, which is what this sort is good at.
        let mut records = [pending, settled].concat();
        records.sort_by(|one, other| one.key.cmp(&other.key));
        records.truncate(query.limit);
        Ok(records)
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Table {
    Pending,
    Invitation,
}

/// The statement for one table's part of a page. Its parameters are named, and not all are in every statement.
pub(super) fn listing(query: &Query, table: Table) -> String {
    let mut sql = String::from(match table {
        Table::Pending => {
            "SELECT fingerprint, 1, attempts, created_at, claimed_at, NULL, NULL, NULL, collector_id, crk \
             FROM pending AS shown"
        }
        Table::Invitation => {
            "SELECT fingerprint, state, attempts, created_at, updated_at, reason, http_status, notification, \
             collector_id, crk FROM invitation AS shown"
        }
    });
    // Left to itself, SQLite takes the primary key for one collector, and scans all that was ever added to it.
    let few = matches!(query.state, Some(State::Failed | State::InDoubt));
    if few {
        sql += " INDEXED BY invitation_not_added";
    }
    sql += match table {
        Table::Pending => " WHERE true",
        Table::Invitation => {
            " WHERE NOT EXISTS (SELECT 1 FROM pending \
             WHERE (pending.collector_id, pending.crk) = (shown.collector_id, shown.crk))"
        }
    };
    if few {
        // The second condition is the index's own: without it SQLite can't tell that the index holds all there is.
        sql += " AND state = :state AND state <> 2";
    } else if query.state == Some(State::Added) {
        sql += " AND state = :state";
    }
    if query.collector_id.is_some() {
        sql += " AND collector_id = :collector_id";
    }
    if let Some(after) = &query.after {
        // Within one collector a bound on the crk alone is what the index can use beside the equality.
        match query.collector_id.as_deref() {
            Some(id) if id == after.collector_id() => sql += " AND crk > :after_crk",
            Some(id) if id < after.collector_id() => sql += " AND false",
            Some(_) => {}
            None => sql += " AND (collector_id, crk) > (:after_collector_id, :after_crk)",
        }
    }
    sql += " ORDER BY collector_id, crk LIMIT :limit";
    sql
}

fn page(db: &Connection, query: &Query, sql: &str) -> Result<Vec<Record>, Fault> {
    let mut statement = db.prepare_cached(sql)?;
    bind(&mut statement, query)?;
    let mut rows = statement.raw_query();
    let mut records = Vec::new();
    while let Some(row) = rows.next()? {
        let text = |index| {
            row.get_ref(index)
                .ok()
                .and_then(|value| value.as_str().ok())
                .ok_or(Fault::Record)
        };
        let key = Key::new(text(8)?, text(9)?);
        records.push(decode(row, key)?);
    }
    Ok(records)
}

/// Gives a statement of `listing` its parameters.
pub(super) fn bind(statement: &mut Statement<'_>, query: &Query) -> rusqlite::Result<()> {
    let state = query.state.map(|state| state as i64);
    let limit = i64::try_from(query.limit).unwrap_or(i64::MAX);
    let (after_collector_id, after_crk) = query.after.as_ref().map(|key| (key.collector_id(), key.crk())).unzip();
    let values: [(&str, &dyn ToSql); 5] = [
        (":state", &state),
        (":collector_id", &query.collector_id),
        (":after_collector_id", &after_collector_id),
        (":after_crk", &after_crk),
        (":limit", &limit),
    ];
    for (name, value) in values {
        if let Some(index) = statement.parameter_index(name)? {
            statement.raw_bind_parameter(index, value)?;
        }
    }
    Ok(())
}

/// Reads a row that is always there.
pub(super) struct Probe;

impl Operation for Probe {
    type Answer = ();

    fn run(&self, db: &Connection, _: &mut Change) -> Result<(), Fault> {
        Ok(db.query_row("SELECT id FROM probe", [], |_| Ok(()))?)
    }
}

/// Makes a record of a row, whose columns may hold anything if the file was tampered with.
pub(super) fn decode(row: &Row<'_>, key: Key) -> Result<Record, Fault> {
    let readable = || -> rusqlite::Result<Option<Record>> {
        let Some(state) = state(row.get(1)?) else {
            return Ok(None);
        };
        let Ok(fingerprint) = row.get_ref(0)?.as_blob()?.try_into() else {
            return Ok(None);
        };
        let updated_at = Timestamp(row.get(4)?);
        let reason = row
            .get::<_, Option<i64>>(5)?
            .and_then(|code| Reason::from_code(u8::try_from(code).ok()?));
        let http_status = row.get(6)?;
        Ok(Some(Record {
            key,
            fingerprint: Fingerprint(fingerprint),
            state,
            attempts: row.get(2)?,
            created_at: Timestamp(row.get(3)?),
            updated_at,
            added_at: (state == State::Added).then_some(updated_at),
            last_error: reason.map(|reason| LastError { reason, http_status }),
            notification: row.get(7)?,
        }))
    };
    readable().ok().flatten().ok_or(Fault::Record)
}

fn state(number: i64) -> Option<State> {
    [State::Pending, State::Added, State::Failed, State::InDoubt]
        .into_iter()
        .find(|state| *state as i64 == number)
}
