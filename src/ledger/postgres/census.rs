//! How many keys stand in which state, asked again from time to time: counting all of a large table takes minutes, so the big
//! numbers are the server's own estimates.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_postgres::Client;
use tokio_util::sync::CancellationToken;

use super::reader::Reader;
use crate::{
    clock::Timestamp,
    ledger::{Census, Error},
};

/// How often. What is told is as old as that, and as an answer takes.
const EVERY: Duration = Duration::from_secs(15);
/// After so long without an answer nothing is told rather than something old.
const PATIENCE: Duration = Duration::from_secs(60);

/// Exact are the claims and the doubts: of both there are few, and an index holds the doubts, of which no more than so many are
/// looked at. What was added and what failed are as many as the last VACUUM or ANALYZE found in the table and in the index of
/// those that were not added; before the first one nobody knows (`relpages = 0`, or `reltuples < 0` from PostgreSQL 14 on).
pub(super) const CENSUS: &str = "\
    SELECT (SELECT count(*) FROM pending), doubts.open, doubts.oldest, \
    (SELECT count(*) FROM replica WHERE lease_until >= clock_timestamp()), \
    (SELECT reltuples::bigint FROM pg_class WHERE oid = to_regclass('invitation') AND relpages > 0), \
    (SELECT reltuples::bigint FROM pg_class WHERE oid = to_regclass('invitation_not_added') AND relpages > 0) \
    FROM (SELECT count(*), min(updated_at) FROM (SELECT i.updated_at FROM invitation i \
    WHERE i.state = 4 AND i.state <> 2 AND NOT EXISTS (SELECT FROM pending p \
    WHERE p.collector_id = i.collector_id AND p.crk = i.crk) LIMIT 100000) open) AS doubts (open, oldest)";

/// Takes it once.
pub(super) async fn take(client: &Client) -> Result<Census, tokio_postgres::Error> {
    let row = client.query_one(CENSUS, &[]).await?;
    let count = |column| {
        row.try_get(column)
            .map(|count: i64| u64::try_from(count).unwrap_or_default())
    };
    let estimate = |column| {
        row.try_get(column)
            .map(|count: Option<i64>| count.filter(|count| *count >= 0))
    };
    let (all, not_added) = (estimate(4)?, estimate(5)?);
    let in_doubt = count(1)?;
    let less = |from: i64, by: i64| u64::try_from(from.saturating_sub(by)).unwrap_or_default();
    Ok(Census {
        pending: Some(count(0)?),
        added: all.zip(not_added).map(|(all, not_added)| less(all, not_added)),
        failed: not_added.map(|not_added| less(not_added, i64::try_from(in_doubt).unwrap_or(i64::MAX))),
        in_doubt: Some(in_doubt),
        oldest_doubt: row.try_get::<_, Option<i64>>(2)?.map(Timestamp),
        replicas: Some(count(3)?),
    })
}

/// The last one.
#[derive(Default)]
pub(super) struct Last {
    census: Mutex<Census>,
}

impl Last {
    pub(super) fn get(&self) -> Census {
        *self.census.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, census: Census) {
        *self.census.lock().unwrap_or_else(PoisonError::into_inner) = census;
    }

    /// Takes another one.
    pub(super) async fn renew(&self, reader: &Reader) -> Result<(), Error> {
        self.set(reader.census().await?);
        Ok(())
    }
}

/// Keeps the last one fresh until `stop`.
pub(super) async fn keep(last: Arc<Last>, reader: Reader, stop: CancellationToken) {
    let mut ticks = interval(EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut failed = false;
    while stop.run_until_cancelled(ticks.tick()).await.is_some() {
        let renewing = stop.run_until_cancelled(timeout(PATIENCE, last.renew(&reader)));
        let why = match renewing.await {
            None => return,
            Some(Ok(Ok(()))) => {
                failed = false;
                continue;
            }
            // The ledger is being closed.
            Some(Ok(Err(_))) if reader.is_closed() => return,
            Some(Ok(Err(error))) => error.to_string(),
            Some(Err(_)) => "no answer".into(),
        };
        last.set(Census::default());
        if !std::mem::replace(&mut failed, true) {
            tracing::warn!(
                error = why,
                "the keys of the ledger can't be counted: their number is not told"
            );
        }
    }
}
