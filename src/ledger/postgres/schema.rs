//! The tables, and how they come to be: once, whoever starts first, while older versions may still be running.

use tokio_postgres::{Client, error::SqlState};

use super::link::SILENT;
use crate::{ledger::Error, postgres::describe};

/// A change of the tables. A published one is never edited, and only adds what versions before it need not know of:
/// they go on running on it while replicas are replaced one by one.
pub(super) struct Migration {
    pub sql: &'static str,
    /// The oldest version that can work with the tables after it. Older ones are refused at their start.
    pub compatible_with: i32,
}

/// Applied in order, each once; `schema_version` counts those applied. The numbers of states and reasons are those of
/// `State` and `Reason::code`.
///
/// A claim is a row of `pending` that lies over the key's row of `invitation`, if there is one. **Its primary key is
/// the lock of the key: who changes a row of `invitation` holds that key's row of `pending`**, put there by an earlier
/// statement of the same transaction or by a claim that was committed. So what a statement reads of a key whose row it
/// holds is the latest there is, at READ COMMITTED, too. A release has nothing to restore, and the big table, whose
/// index pages are what a key costs, is written once for a claim and its outcome; its dead rows would have the whole
/// index vacuumed.
///
/// Keys are compared byte by byte, whatever the database's collation, as `Key` is: listings go by it.
pub(super) const MIGRATIONS: &[Migration] = &[Migration {
    sql: r#"
    CREATE TABLE invitation (
        collector_id text COLLATE "C" NOT NULL,
        crk text COLLATE "C" NOT NULL,
        fingerprint bytea NOT NULL,
        state smallint NOT NULL CHECK (state IN (2, 3, 4)),
        attempts bigint NOT NULL,
        created_at bigint NOT NULL, -- microseconds since 1970, by the replicas' clocks, as all bigint times here
        updated_at bigint NOT NULL, -- of an added one, when it was added: nothing changes it after
        reason smallint,
        http_status integer,
        notification text,
        orphan uuid, -- of one that is in doubt because its replica was taken for dead: the claim, whose outcome may yet come
        PRIMARY KEY (collector_id, crk)
    );

    -- The added ones are nearly all there are, and their listing is the primary key's own order.
    CREATE INDEX invitation_not_added ON invitation (state, collector_id, crk) WHERE state <> 2;

    CREATE TABLE replica (
        id uuid PRIMARY KEY,
        name text NOT NULL,
        started_at timestamptz NOT NULL,
        lease_until timestamptz NOT NULL -- by the database's clock
    );

    CREATE TABLE pending (
        collector_id text COLLATE "C" NOT NULL,
        crk text COLLATE "C" NOT NULL,
        fingerprint bytea NOT NULL,
        resend boolean NOT NULL, -- claimed although it may be in doubt
        claimed_at bigint NOT NULL,
        replica uuid NOT NULL, -- no reference: a claim by a replica that was removed meanwhile is found as such
        claim uuid NOT NULL, -- who settles or releases a claim names it, so that nobody ends another's
        watched boolean NOT NULL DEFAULT false, -- another replica wants to be told of its end
        PRIMARY KEY (collector_id, crk)
    ) WITH (autovacuum_vacuum_threshold = 1000, autovacuum_vacuum_scale_factor = 0);
    "#,
    compatible_with: 1,
}];

/// Held while the tables are changed. Any number that other programs on the same database are unlikely to use.
const LOCK: i64 = 0x5347_4c57_0001;

/// Stands among the versions while a ledger is moved here and is not complete: it is the latest, and nothing is compatible
/// with it, so that no gateway starts on what would have it send keys again that it does not know yet.
pub(super) const UNFINISHED: i32 = i32::MAX;

const VERSION: &str = "SELECT version, compatible_with FROM schema_version ORDER BY version DESC LIMIT 1";

/// Brings the tables up to date.
pub(super) async fn migrate(client: &Client, migrations: &[Migration]) -> Result<(), Error> {
    let known = i32::try_from(migrations.len()).unwrap_or(i32::MAX);
    expect_durable(client).await?;
    match version(client).await? {
        Some(version) if version.number >= known => return version.expect_compatible(known),
        None => tracing::warn!("there was no ledger: a new one is made, which knows nothing of what was sent before"),
        Some(_) => {}
    }
    // Another process may be doing the same; who comes second finds it done.
    let failed = |error: tokio_postgres::Error| refused("the ledger's tables can't be made or changed", &error);
    client
        .batch_execute(&format!("BEGIN; SELECT pg_advisory_xact_lock({LOCK})"))
        .await
        .map_err(failed)?;
    let migrated = async {
        client
            .batch_execute(
                "CREATE TABLE IF NOT EXISTS schema_version \
                 (version integer PRIMARY KEY, compatible_with integer NOT NULL, applied_at timestamptz NOT NULL)",
            )
            .await
            .map_err(failed)?;
        let done = version(client).await?;
        if let Some(done) = &done {
            done.expect_compatible(known)?;
        }
        let done = done.map_or(0, |version| version.number);
        for (number, migration) in (1..).zip(migrations).filter(|(number, _)| *number > done) {
            client.batch_execute(migration.sql).await.map_err(failed)?;
            client
                .execute(
                    "INSERT INTO schema_version VALUES ($1, $2, now())",
                    &[&number, &migration.compatible_with],
                )
                .await
                .map_err(failed)?;
        }
        Ok(())
    };
    let migrated = migrated.await;
    let end = if migrated.is_ok() { "COMMIT" } else { "ROLLBACK" };
    let ended = client.batch_execute(end).await.map_err(failed);
    migrated.and(ended)
}

/// A server that forgets what it acknowledged can have a customer mailed twice.
async fn expect_durable(client: &Client) -> Result<(), Error> {
    // Engines that are not PostgreSQL may know no such setting.
    let row = client
        .query_one("SELECT current_setting('fsync', true)", &[])
        .await
        .map_err(|error| refused(SILENT, &error))?;
    match row.get::<_, Option<&str>>(0) {
        Some("off") => Err(Error::Unusable(
            "the database runs with fsync = off: a loss of power could undo what it acknowledged".into(),
        )),
        _ => Ok(()),
    }
}

struct Version {
    number: i32,
    compatible_with: i32,
}

impl Version {
    fn expect_compatible(&self, known: i32) -> Result<(), Error> {
        if self.compatible_with <= known {
            return Ok(());
        }
        if self.number == UNFINISHED {
            return Err(Error::Unusable(
                "a ledger is being moved into this database and is not complete: run `surveylab-gateway migrate-ledger` \
                 to its end first"
                    .into(),
            ));
        }
        Err(Error::Unusable(format!(
            "the ledger was changed by a later version of the gateway (its schema is {}, the latest known here {known}); run that \
             version or a later one",
            self.number
        )))
    }
}

async fn version(client: &Client) -> Result<Option<Version>, Error> {
    let failed = |error: tokio_postgres::Error| refused("the ledger's version can't be read", &error);
    let exists = client
        .query_one("SELECT to_regclass('schema_version') IS NOT NULL", &[])
        .await
        .map_err(failed)?;
    if !exists.get::<_, bool>(0) {
        return Ok(None);
    }
    let row = client.query_opt(VERSION, &[]).await.map_err(failed)?;
    let read = |row: tokio_postgres::Row| {
        Ok(Version {
            number: row.try_get(0)?,
            compatible_with: row.try_get(1)?,
        })
    };
    row.map(read).transpose().map_err(failed)
}

/// What failed for want of rights, or because the tables are something else's, needs a person; the rest may pass.
pub(super) fn refused(what: &str, error: &tokio_postgres::Error) -> Error {
    let text = format!("{what}: {}", describe(error));
    let lasting = [
        SqlState::INSUFFICIENT_PRIVILEGE,
        SqlState::DUPLICATE_TABLE,
        SqlState::UNDEFINED_TABLE,
        SqlState::UNDEFINED_COLUMN,
        SqlState::UNDEFINED_FUNCTION,
        SqlState::INVALID_SCHEMA_NAME,
    ];
    if error.code().is_some_and(|code| lasting.contains(code)) {
        Error::Unusable(text)
    } else {
        Error::Unavailable(text)
    }
}
