//! What is asked of the tables: keys, or a listing. Where a key is in both, its row of `pending` is shown.

use std::time::Duration;

use tokio_postgres::{Client, Row, types::ToSql};

use super::id::Id;
use crate::{
    clock::Timestamp,
    invitation::{Fingerprint, Key, Reason},
    ledger::{Error, LastError, Query, Record, Replica, State},
};

/// How a key stands in both tables: what `standing` reads of a row, behind its first column.
macro_rules! standing {
    () => {
        "p.claim, p.fingerprint, p.claimed_at, \
         i.fingerprint, i.state, i.attempts, i.created_at, i.updated_at, i.reason, i.http_status, i.notification"
    };
}
pub(super) use standing;

/// Joins both tables to the keys of `asked`.
macro_rules! of_asked {
    () => {
        "FROM asked LEFT JOIN pending p ON p.collector_id = asked.collector_id AND p.crk = asked.crk \
         LEFT JOIN invitation i ON i.collector_id = asked.collector_id AND i.crk = asked.crk"
    };
}
pub(super) use of_asked;

/// How each of these keys stands, with its number among them.
pub(super) const LOOK_UP: &str = concat!(
    "WITH asked AS (SELECT * FROM unnest($1::text[], $2::text[]) WITH ORDINALITY AS asked (collector_id, crk, n)) SELECT n, ",
    standing!(),
    " ",
    of_asked!(),
);

/// Keys as the statements take them.
pub(super) struct Keys<'a> {
    pub collector_ids: Vec<&'a str>,
    pub crks: Vec<&'a str>,
}

impl<'a> Keys<'a> {
    pub(super) fn of(keys: impl IntoIterator<Item = &'a Key>) -> Self {
        let (collector_ids, crks) = keys.into_iter().map(|key| (key.collector_id(), key.crk())).unzip();
        Self { collector_ids, crks }
    }
}

/// A row that this version can't make sense of: another wrote it, or it is damaged.
#[derive(Debug)]
pub(super) struct Unreadable;

impl From<Unreadable> for Error {
    fn from(Unreadable: Unreadable) -> Self {
        Self::Unavailable("a record of this key can't be read".into())
    }
}

/// What both tables hold of a key.
#[derive(Debug)]
pub(super) struct Standing {
    pub pending: Option<Pending>,
    pub settled: Option<Record>,
}

#[derive(Debug)]
pub(super) struct Pending {
    pub claim: Id,
    fingerprint: Fingerprint,
    claimed_at: Timestamp,
}

impl Standing {
    /// Reads a row with the columns of `standing!` behind `first`.
    pub(super) fn read(row: &Row, first: usize, key: &Key) -> Result<Self, Unreadable> {
        let standing = || -> Result<Option<Self>, tokio_postgres::Error> {
            let pending = match row.try_get::<_, Option<Id>>(first)? {
                None => None,
                Some(claim) => {
                    let Some(fingerprint) = fingerprint(row.try_get(first + 1)?) else {
                        return Ok(None);
                    };
                    Some(Pending {
                        claim,
                        fingerprint,
                        claimed_at: Timestamp(row.try_get(first + 2)?),
                    })
                }
            };
            let Some(kept) = row.try_get::<_, Option<&[u8]>>(first + 3)? else {
                return Ok(Some(Self { pending, settled: None }));
            };
            let (Some(fingerprint), Some(state)) = (fingerprint(kept), state(row.try_get(first + 4)?)) else {
                return Ok(None);
            };
            let updated_at = Timestamp(row.try_get(first + 7)?);
            let reason = row.try_get::<_, Option<i16>>(first + 8)?;
            let reason = reason.and_then(|code| Reason::from_code(u8::try_from(code).ok()?));
            let http_status = row.try_get::<_, Option<i32>>(first + 9)?;
            let http_status = http_status.and_then(|status| u16::try_from(status).ok());
            let settled = Record {
                key: key.clone(),
                fingerprint,
                state,
                attempts: u32::try_from(row.try_get::<_, i64>(first + 5)?).unwrap_or(u32::MAX),
                created_at: Timestamp(row.try_get(first + 6)?),
                updated_at,
                added_at: (state == State::Added).then_some(updated_at),
                last_error: reason.map(|reason| LastError { reason, http_status }),
                notification: row.try_get(first + 10)?,
            };
            Ok(Some(Self {
                pending,
                settled: Some(settled),
            }))
        };
        standing().ok().flatten().ok_or(Unreadable)
    }

    /// What is known of the key.
    pub(super) fn shown(self, key: &Key) -> Option<Record> {
        let Some(pending) = self.pending else {
            return self.settled;
        };
        let below = self.settled.as_ref();
        Some(Record {
            key: key.clone(),
            fingerprint: pending.fingerprint,
            state: State::Pending,
            attempts: below.map_or(1, |record| record.attempts.saturating_add(1)),
            created_at: below.map_or(pending.claimed_at, |record| record.created_at.min(pending.claimed_at)),
            updated_at: pending.claimed_at,
            added_at: None,
            last_error: None,
            notification: None,
        })
    }
}

fn fingerprint(bytes: &[u8]) -> Option<Fingerprint> {
    bytes.try_into().ok().map(Fingerprint)
}

fn state(number: i16) -> Option<State> {
    [State::Added, State::Failed, State::InDoubt]
        .into_iter()
        .find(|state| *state as i16 == number)
}

/// Looks keys up; the answers are in their order.
pub(super) async fn look_up(
    client: &Client,
    statement: &tokio_postgres::Statement,
    keys: &[Key],
) -> Result<Vec<Result<Standing, Unreadable>>, tokio_postgres::Error> {
    if keys.is_empty() {
        return Ok(Vec::new());
    }
    let columns = Keys::of(keys);
    let rows = client
        .query(statement, &[&columns.collector_ids, &columns.crks])
        .await?;
    Ok(in_order(&rows, keys.iter()))
}

/// Each key's row of an answer whose first column is the key's number, from 1.
pub(super) fn in_order<'a>(rows: &[Row], keys: impl Iterator<Item = &'a Key>) -> Vec<Result<Standing, Unreadable>> {
    let mut numbered: Vec<Option<&Row>> = Vec::new();
    for row in rows {
        let number = usize::try_from(row.get::<_, i64>(0)).unwrap_or_default();
        if numbered.len() < number {
            numbered.resize(number, None);
        }
        if let Some(place) = number.checked_sub(1).and_then(|index| numbered.get_mut(index)) {
            *place = Some(row);
        }
    }
    keys.enumerate()
        .map(|(index, key)| {
            let row = numbered.get(index).copied().flatten().ok_or(Unreadable)?;
            Standing::read(row, 1, key)
        })
        .collect()
}

/// Records in the order of their keys.
pub(super) async fn list(
    client: &Client,
    query: &Query,
) -> Result<Result<Vec<Record>, Unreadable>, tokio_postgres::Error> {
    let limit = i64::try_from(query.limit).unwrap_or(i64::MAX);
    let after = query.after.as_ref().map(|key| (key.collector_id(), key.crk()));
    let mut values: Vec<&(dyn ToSql + Sync)> = vec![&limit];
    if let Some(id) = &query.collector_id {
        values.push(id);
    }
    if let Some((id, crk)) = &after {
        values.extend([id as &(dyn ToSql + Sync), crk]);
    }
    let rows = client.query(&listing(query), &values).await?;
    let records = rows.iter().map(|row| {
        // The statement itself makes them text.
        let key = Key::new(row.get::<_, &str>(0), row.get::<_, &str>(1));
        Standing::read(row, 2, &key)?.shown(&key).ok_or(Unreadable)
    });
    Ok(records.collect())
}

/// More replicas than anyone runs. The times come in microseconds, as everywhere else.
const REPLICAS: &str = "SELECT id, name, (extract(epoch FROM started_at) * 1000000)::bigint, \
                        greatest(0, (extract(epoch FROM lease_until - clock_timestamp()) * 1000000)::bigint) \
                        FROM replica ORDER BY started_at, id LIMIT 64";

/// Those who share the ledger, the longest-running first.
pub(super) async fn replicas(client: &Client, own: Id) -> Result<Vec<Replica>, tokio_postgres::Error> {
    let rows = client.query(REPLICAS, &[]).await?;
    let read = |row: &Row| {
        let id: Id = row.try_get(0)?;
        Ok(Replica {
            id: id.to_string(),
            name: row.try_get(1)?,
            started_at: Timestamp(row.try_get(2)?),
            lease_left: Duration::from_micros(u64::try_from(row.try_get::<_, i64>(3)?).unwrap_or_default()),
            is_own: id == own,
        })
    };
    rows.iter().map(read).collect()
}

/// The statement for a page: of claims, of the rest, or both. Its parameters are the limit, then what the query bounds.
pub(super) fn listing(query: &Query) -> String {
    let page = |table: &str, from: &str, condition: &str| {
        let mut sql = format!(
            "SELECT {table}.collector_id::text AS collector_id, {table}.crk::text AS crk, {} FROM {from} WHERE {condition}",
            standing!()
        );
        let mut parameter = 1;
        if query.collector_id.is_some() {
            parameter += 1;
            sql += &format!(" AND {table}.collector_id = ${parameter}");
        }
        if query.after.is_some() {
            sql += &format!(
                " AND ({table}.collector_id, {table}.crk) > (${}, ${})",
                parameter + 1,
                parameter + 2
            );
        }
        sql + &format!(" ORDER BY {table}.collector_id, {table}.crk LIMIT $1")
    };
    let pending = || {
        page(
            "p",
            "pending p LEFT JOIN invitation i USING (collector_id, crk)",
            "true",
        )
    };
    let settled = |condition: &str| {
        page(
            "i",
            "invitation i LEFT JOIN pending p USING (collector_id, crk)",
            condition,
        )
    };
    match query.state {
        Some(State::Pending) => pending(),
        // The number itself, not a parameter: the planner has to see that the index of those not added holds them all.
        Some(state @ (State::Added | State::Failed | State::InDoubt)) => {
            settled(&format!("p.claim IS NULL AND i.state = {}", state as i16))
        }
        None => format!(
            "SELECT * FROM (({}) UNION ALL ({})) shown ORDER BY collector_id, crk LIMIT $1",
            pending(),
            settled("p.claim IS NULL")
        ),
    }
}
