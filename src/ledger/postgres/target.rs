//! The database as the target of a move.
//!
//! A ledger that is not complete would have keys sent again that it does not know yet. So from the first record on until
//! the last one was verified a mark is among the versions of the schema, which no version of the gateway is compatible
//! with: none starts. One that runs is found by its lease, before each batch and at the end.

use tokio::{task::AbortHandle, time::timeout};
use tokio_postgres::{Client, Row, Statement, error::SqlState};

use super::{
    link::{PATIENCE, plan_by_keys, silent},
    read::{self, Keys},
    schema::{self, MIGRATIONS, UNFINISHED, refused},
};
use crate::{
    invitation::Key,
    ledger::{Error, Query, Record},
    postgres::{self, Settings, describe},
};

/// Held by the session of a move. Any number that other programs on the same database are unlikely to use.
const LOCK: &str = "SELECT pg_advisory_lock(91564389761026)";

/// The version of the tables, 0 where there are none; and whether there is the mark.
const VERSION: &str = "SELECT coalesce(max(version) FILTER (WHERE version <> $1), 0), \
                       coalesce(bool_or(version = $1), false) FROM schema_version";

/// Who is not known to have ended.
const ALIVE: &str = "SELECT name FROM replica WHERE lease_until > clock_timestamp() ORDER BY name LIMIT 1";

const MARK: &str = "INSERT INTO schema_version (version, compatible_with, applied_at) VALUES ($1, $1, now()) \
                    ON CONFLICT (version) DO NOTHING";

const PUT: &str = "INSERT INTO invitation (collector_id, crk, fingerprint, state, attempts, created_at, updated_at, \
                   reason, http_status, notification) \
                   SELECT * FROM unnest($1::text[], $2::text[], $3::bytea[], $4::smallint[], $5::bigint[], $6::bigint[], \
                   $7::bigint[], $8::smallint[], $9::integer[], $10::text[]) \
                   WHERE NOT EXISTS (SELECT FROM replica WHERE lease_until > clock_timestamp()) \
                   ON CONFLICT (collector_id, crk) DO NOTHING";

const UNMARK: &str = "DELETE FROM schema_version WHERE version = $1 \
                      AND NOT EXISTS (SELECT FROM replica WHERE lease_until > clock_timestamp())";

/// How far a database is on its way to a ledger.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// There are no tables yet.
    New,
    /// A move has begun, and was not verified.
    Begun,
    /// A gateway would start on it.
    Complete,
}

/// A database that nobody else moves a ledger into while this is there.
pub struct Target {
    client: Client,
    driver: AbortHandle,
    stage: Stage,
    put: Option<Statement>,
}

impl Target {
    /// Connects, and looks; changes nothing.
    ///
    /// # Errors
    ///
    /// [`Error::InUse`] if a gateway runs on it, or another move is under way; [`Error::Unusable`] if the server refuses, or if
    /// a later version of the gateway made the tables; [`Error::Unavailable`] if it can't be reached, or failed otherwise.
    pub async fn connect(settings: &Settings) -> Result<Self, Error> {
        let connected = postgres::connect(settings, "surveylab-gateway migrate-ledger").await;
        let (client, driver) = connected.map_err(|error| match error {
            postgres::Error::Refused(why) => Error::Unusable(format!("{settings}: {why}")),
            postgres::Error::Unreachable(why) => Error::Unavailable(format!("{settings}: {why}")),
        })?;
        let driver = tokio::spawn(driver.run(|_| {})).abort_handle();
        let mut target = Self {
            client,
            driver,
            stage: Stage::New,
            put: None,
        };
        target.lock().await?;
        within(plan_by_keys(&target.client)).await?;
        target.stage = target.look().await?;
        if target.stage != Stage::New {
            target.expect_nobody().await?;
        }
        Ok(target)
    }

    pub fn stage(&self) -> Stage {
        self.stage
    }

    /// Waits for the session of a move that was killed: what it had sent may still be committed.
    async fn lock(&self) -> Result<(), Error> {
        match timeout(PATIENCE, self.client.execute(LOCK, &[])).await {
            Ok(Err(error)) if error.code() == Some(&SqlState::LOCK_NOT_AVAILABLE) => {
                Err(Error::InUse("another ledger is being moved into this database".into()))
            }
            Ok(locked) => locked.map(drop).map_err(failed),
            Err(_) => Err(silent()),
        }
    }

    async fn look(&self) -> Result<Stage, Error> {
        let known = i32::try_from(MIGRATIONS.len()).unwrap_or(i32::MAX);
        let exists = within(
            self.client
                .query_one("SELECT to_regclass('schema_version') IS NOT NULL", &[]),
        )
        .await?;
        if !column::<bool>(&exists, 0)? {
            return Ok(Stage::New);
        }
        let row = within(self.client.query_one(VERSION, &[&UNFINISHED])).await?;
        let (version, is_marked): (i32, bool) = (column(&row, 0)?, column(&row, 1)?);
        match (version, is_marked) {
            (0, false) => Ok(Stage::New),
            (version, _) if version != known => Err(Error::Unusable(format!(
                "the database has a ledger of another version of the gateway (its schema is {version}, that of this version \
                 {known}): use the commands of that version"
            ))),
            (_, true) => Ok(Stage::Begun),
            (_, false) => Ok(Stage::Complete),
        }
    }

    /// Fails if a gateway runs on it, or did a moment ago.
    async fn expect_nobody(&self) -> Result<(), Error> {
        match within(self.client.query_opt(ALIVE, &[])).await? {
            None => Ok(()),
            Some(row) => Err(Error::InUse(format!(
                "a gateway runs on the target ({}): stop all of its replicas; one that was killed counts as running for \
                 some seconds",
                column::<String>(&row, 0)?
            ))),
        }
    }

    /// Makes the tables where there are none, and marks them as incomplete.
    pub async fn begin(&mut self) -> Result<(), Error> {
        if self.stage != Stage::Begun {
            schema::migrate(&self.client, MIGRATIONS).await?;
            within(self.client.execute(MARK, &[&UNFINISHED])).await?;
            self.stage = Stage::Begun;
        }
        self.put = Some(within(self.client.prepare(PUT)).await?);
        // One that started before it could see the mark.
        self.expect_nobody().await
    }

    /// Writes those records whose keys are not there yet, in one transaction; returns how many those were.
    pub async fn put(&self, records: &[Record]) -> Result<u64, Error> {
        let (Some(put), false) = (&self.put, records.is_empty()) else {
            return Ok(0);
        };
        let keys = Keys::of(records.iter().map(|record| &record.key));
        let fingerprints: Vec<&[u8]> = records.iter().map(|record| record.fingerprint.0.as_slice()).collect();
        let states: Vec<i16> = records.iter().map(|record| record.state as i16).collect();
        let attempts: Vec<i64> = records.iter().map(|record| record.attempts.into()).collect();
        let created: Vec<i64> = records.iter().map(|record| record.created_at.0).collect();
        let updated: Vec<i64> = records.iter().map(|record| record.updated_at.0).collect();
        let errors = records.iter().map(|record| record.last_error);
        let reasons: Vec<Option<i16>> = errors.clone().map(|error| Some(error?.reason.code().into())).collect();
        let http: Vec<Option<i32>> = errors.map(|error| Some(error?.http_status?.into())).collect();
        let notifications: Vec<Option<&str>> = records.iter().map(|record| record.notification.as_deref()).collect();
        let written = within(self.client.execute(
            put,
            &[
                &keys.collector_ids,
                &keys.crks,
                &fingerprints,
                &states,
                &attempts,
                &created,
                &updated,
                &reasons,
                &http,
                &notifications,
            ],
        ))
        .await?;
        if written == 0 {
            self.expect_nobody().await?;
        }
        Ok(written)
    }

    /// Records behind a key, in the order of keys. Fewer than `limit` only at the end.
    pub async fn page(&self, after: Option<Key>, limit: usize) -> Result<Vec<Record>, Error> {
        if self.stage == Stage::New {
            return Ok(Vec::new());
        }
        let query = Query {
            after,
            limit,
            ..Query::default()
        };
        let page = within(read::list(&self.client, &query)).await?;
        page.map_err(|_| Error::Unusable("the target holds a record that this version can't read".into()))
    }

    /// From now on gateways can start on it.
    pub async fn end(&mut self) -> Result<(), Error> {
        if within(self.client.execute(UNMARK, &[&UNFINISHED])).await? == 0 {
            self.expect_nobody().await?;
        }
        match self.look().await? {
            Stage::Complete => Ok(()),
            Stage::New | Stage::Begun => Err(Error::Unavailable("the mark of the move could not be removed".into())),
        }
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

async fn within<T>(statement: impl Future<Output = Result<T, tokio_postgres::Error>>) -> Result<T, Error> {
    timeout(PATIENCE, statement)
        .await
        .map_err(|_| silent())?
        .map_err(failed)
}

fn failed(error: tokio_postgres::Error) -> Error {
    refused("the database failed", &error)
}

fn column<'a, T: tokio_postgres::types::FromSql<'a>>(row: &'a Row, index: usize) -> Result<T, Error> {
    row.try_get(index).map_err(|error| Error::Unavailable(describe(&error)))
}
