//! The account's row in PostgreSQL.

use std::{pin::Pin, time::Duration};

use tokio::{select, time::timeout};
use tokio_postgres::{Client, Row, Statement, error::SqlState, types::ToSql};

use super::{Answer, Ask, Error, Slices, Terms};
use crate::{clock::Instant, limiter, postgres};

/// A slice that comes later than this is worth nothing.
const PATIENCE: Duration = Duration::from_secs(2);
/// A new connection's first statements may have to wait for another replica's.
const PREPARE_PATIENCE: Duration = Duration::from_secs(10);
/// So often a statement is made again that another one stood in the way of. Each time another one has got through.
const CONFLICTS_MAX: u32 = 20;

/// `account` is the primary key, and no sequence is needed, so the table also shards. Times are microseconds since 1970 of
/// the database's clock, `share` is in millionths. Each update leaves a dead row behind, which room on the page lets it
/// overwrite without touching the index.
const TABLE: &str = "
CREATE TABLE IF NOT EXISTS account_rate (
    account       text   PRIMARY KEY,
    period_ns     bigint NOT NULL,
    burst         bigint NOT NULL,
    pace_ns       bigint NOT NULL,
    tolerance_us  bigint NOT NULL,
    validity_us   bigint NOT NULL,
    tat           bigint NOT NULL,
    share         bigint NOT NULL,
    epoch         bigint NOT NULL,
    pause_until   bigint NOT NULL,
    step_at       bigint
)";

const TABLE_IS_THERE: &str = "SELECT to_regclass('account_rate') IS NOT NULL";

/// Which row to use: the one of this name, else the one that was used last. Earlier versions made the name of the token, too;
/// their row is the account's as long as it is there, or replicas of two versions, or two tokens, would keep a rate each.
const IN_USE: &str = "SELECT account FROM account_rate ORDER BY account = $1 DESC, tat DESC LIMIT 1";

/// Makes the row, with what has been saved up in the time $7 (in microseconds).
const ENSURE: &str = "
INSERT INTO account_rate
    (account, period_ns, burst, pace_ns, tolerance_us, validity_us, tat, share, epoch, pause_until, step_at)
SELECT $1, $2, $3, $4, $5, $6,
    (extract(epoch FROM clock_timestamp()) * 1000000)::bigint
        + greatest(0, $5::bigint + ($4::bigint + 999) / 1000 - $7::bigint),
    1000000, 0, 0, NULL
ON CONFLICT (account) DO NOTHING";

/// Has the row kept by other settings from now on. The bucket begins empty, after all that has been leased.
const RESET: &str = "
UPDATE account_rate SET
    period_ns = $2, burst = $3, pace_ns = $4, tolerance_us = $5, validity_us = $6,
    tat = greatest(
            (extract(epoch FROM clock_timestamp()) * 1000000)::bigint,
            tat - tolerance_us * 1000000 / share - ((pace_ns * 1000000 + share - 1) / share + 999) / 1000
        ) + $5 * 1000000 / share + (($4 * 1000000 + share - 1) / share + 999) / 1000
WHERE account = $1
    AND (period_ns, burst, pace_ns, tolerance_us, validity_us) IS DISTINCT FROM ($2, $3, $4, $5, $6)";

/// One step of the row. $2 tokens are wanted, whose time is at most $3 ahead; a 429 to a permit of epoch $4 (-1: none) asks for
/// a pause of $5. All in microseconds.
///
/// The row is locked before the clock is read, so the times of two steps have the order of the steps. In turn:
/// - the learned share rises by 10 % every 10 s, as in `adaptive.rs`; the tokens saved up stay as many;
/// - `debt` is how far the theoretical arrival time lies ahead. It can't be more than a full bucket and a horizon unless
///   the clock was set back: then it is cut, or nothing would be sent until the clock has caught up. A pause lasts at most an hour;
/// - a 429 cuts the share to 70 % and empties the bucket, once for all requests of one epoch;
/// - tokens are granted by GCRA from the end of the pause on.
///
/// Nothing is written if nothing changed. The numeric division is exact where 64 bits would not hold the product.
pub(super) const STEP: &str = "
WITH seen AS MATERIALIZED (
    SELECT r.*, (extract(epoch FROM clock_timestamp()) * 1000000)::bigint AS now
    FROM account_rate r WHERE r.account = $1 FOR UPDATE
), step AS MATERIALIZED (
    SELECT * FROM seen
    CROSS JOIN LATERAL (SELECT
        CASE WHEN step_at <= now THEN 1 + (now - step_at) / 10000000 ELSE 0 END AS steps,
        tolerance_us * 1000000 / share + ((pace_ns * 1000000 + share - 1) / share + 999) / 1000 AS full_seen
    ) a
    CROSS JOIN LATERAL (SELECT
        CASE WHEN steps > 0 THEN least(1000000, share + 100000 * steps) ELSE share END AS raised,
        least(tat - now, full_seen + 1000000) AS debt_seen,
        $4::bigint >= 0 AS reports,
        $4::bigint = epoch AS cuts
    ) b
    CROSS JOIN LATERAL (SELECT
        tolerance_us * 1000000 / raised + ((pace_ns * 1000000 + raised - 1) / raised + 999) / 1000 AS full_raised,
        CASE WHEN debt_seen > 0
            THEN debt_seen - div(least(debt_seen, full_seen)::numeric * (raised - share), raised)::bigint
            ELSE debt_seen END AS debt_raised,
        CASE WHEN cuts THEN greatest(10000, raised * 7 / 10) ELSE raised END AS learned,
        greatest(least(greatest(pause_until - now, 0), 3600000000), CASE WHEN reports THEN $5::bigint ELSE 0 END) AS pause
    ) c
    CROSS JOIN LATERAL (SELECT
        (pace_ns * 1000000 + learned - 1) / learned AS pace,
        tolerance_us * 1000000 / learned AS tolerance,
        CASE WHEN reports THEN CASE WHEN learned < 1000000 THEN pause + 10000000 END
            WHEN steps = 0 THEN least(step_at - now, CASE WHEN step_at IS NOT NULL THEN 3610000000 END)
            WHEN raised < 1000000 THEN step_at - now + 10000000 * steps
        END AS next_step
    ) d
    CROSS JOIN LATERAL (SELECT
        CASE WHEN cuts THEN greatest(debt_raised - full_raised, 0) + tolerance + (pace + 999) / 1000
            ELSE debt_raised END AS debt
    ) e
    CROSS JOIN LATERAL (SELECT greatest(debt, pause) AS base, greatest(debt, pause) - tolerance AS from_at) f
    CROSS JOIN LATERAL (SELECT
        CASE WHEN pause > $3::bigint OR from_at > $3::bigint THEN 0
            ELSE least($2::bigint, ($3::bigint - from_at) * 1000 / pace + 1) END AS granted
    ) g
    CROSS JOIN LATERAL (SELECT
        CASE WHEN granted > 0 THEN base + (granted * pace + 999) / 1000 ELSE debt END AS ahead,
        CASE WHEN cuts THEN epoch + 1 ELSE epoch END AS learned_epoch
    ) h
), written AS (
    UPDATE account_rate r SET
        tat = step.now + step.ahead,
        share = step.learned,
        epoch = step.learned_epoch,
        pause_until = step.now + step.pause,
        step_at = step.now + step.next_step
    FROM step
    WHERE r.account = $1 AND (step.granted > 0 OR step.reports)
)
SELECT granted, pause, from_at, ahead, pace, tolerance, validity_us, learned, learned_epoch, next_step, period_ns, burst, now
FROM step";

/// One account's row, over a connection of its own that is made when it is needed, and made anew after a failure.
pub struct Account {
    settings: postgres::Settings,
    /// Of a new row.
    key: String,
    terms: Terms,
    /// For how long nothing went out, as far as the caller knows: counts if there is no row yet.
    rested: Duration,
    /// The row has been told this replica's settings: once, so that two replicas with different ones don't take turns.
    announced: bool,
    session: Option<Session>,
}

struct Session {
    client: Client,
    driver: Pin<Box<dyn Future<Output = Result<(), postgres::Error>> + Send>>,
    step: Statement,
    key: String,
}

impl Account {
    /// The row of the one account that a database is for. If there is none it is named `key`, a hash of SurveyLab's address. Its
    /// rate, burst and rest are those of the limiter's settings. Nothing is connected to yet.
    pub fn new(settings: postgres::Settings, key: &str, limits: &limiter::Settings) -> Self {
        Self {
            settings,
            key: key.to_string(),
            terms: Terms::new(limits.rate.period(), limits.burst),
            rested: limits.rested,
            announced: false,
            session: None,
        }
    }

    async fn connect(&mut self) -> Result<Session, Error> {
        let (client, driver) = postgres::connect(&self.settings, "surveylab-gateway rate")
            .await
            .map_err(|error| Error::Database(error.to_string()))?;
        let mut driver = Box::pin(driver.run(|_| {}));
        // A row that has been there and is gone was used until a moment ago.
        let news = (!self.announced).then_some(self.rested);
        let preparing = prepare(&client, &self.key, self.terms, news);
        let (key, step) = timeout(PREPARE_PATIENCE, beside(&mut driver, preparing))
            .await
            .map_err(|_| Error::Timeout(PREPARE_PATIENCE))??;
        self.announced = true;
        Ok(Session {
            client,
            driver,
            step,
            key,
        })
    }
}

impl Session {
    async fn step(&mut self, ask: &Ask) -> Result<Answer, Error> {
        let mut conflicts = 0;
        loop {
            let (epoch, pause) = match ask.report {
                Some(report) => (
                    i64::try_from(report.epoch).unwrap_or(i64::MAX),
                    micros(report.until.saturating_duration_since(Instant::now())),
                ),
                None => (-1, 0),
            };
            let (wanted, horizon) = (i64::from(ask.wanted), micros(ask.horizon));
            let values: [&(dyn ToSql + Sync); 5] = [&self.key, &wanted, &horizon, &epoch, &pause];
            let asked = Instant::now();
            let asking = async { Ok(self.client.query_opt(&self.step, &values).await?) };
            match beside(&mut self.driver, asking).await {
                Ok(row) => {
                    let row = row.ok_or(Error::NoRow)?;
                    return read(&row, asked).map_err(|error| Error::Database(postgres::describe(&error)));
                }
                Err(Asking::Failed(error)) if is_conflict(&error) && conflicts < CONFLICTS_MAX => conflicts += 1,
                Err(error) => return Err(error.into()),
            }
        }
    }
}

impl Slices for Account {
    async fn lease(&mut self, ask: &Ask) -> Result<Answer, Error> {
        // Taken out and put back only with an answer: after a failure nobody knows what a session still waits for.
        let mut session = match self.session.take() {
            Some(session) => session,
            None => self.connect().await?,
        };
        let answer = timeout(PATIENCE, session.step(ask))
            .await
            .map_err(|_| Error::Timeout(PATIENCE))??;
        self.session = Some(session);
        Ok(answer)
    }
}

/// Makes what is not there yet, and tells the row's name. With `news` it is the first time: the row is kept by these terms from
/// now on, and begins, if it is new, with what was saved up in so much time.
pub(super) async fn prepare(
    client: &Client,
    key: &str,
    terms: Terms,
    news: Option<Duration>,
) -> Result<(String, Statement), Asking> {
    // A statement that had to wait for the row is to go on with the row as it is then. At a stricter level it would fail instead.
    client
        .batch_execute("SET default_transaction_isolation = 'read committed'")
        .await?;
    // To plan it anew takes tens of milliseconds, as long as leased tokens live. Engines that know no such setting keep theirs.
    client
        .batch_execute(
            "SELECT set_config(name, 'force_generic_plan', false) FROM pg_settings WHERE name = 'plan_cache_mode'",
        )
        .await?;
    // Who may not create tables may still use one that somebody else has made.
    let is_there: bool = client.query_one(TABLE_IS_THERE, &[]).await?.try_get(0)?;
    if !is_there && let Err(error) = client.batch_execute(TABLE).await {
        // Another replica has made it at the same time.
        let twins = [
            SqlState::UNIQUE_VIOLATION,
            SqlState::DUPLICATE_TABLE,
            SqlState::DUPLICATE_OBJECT,
        ];
        if !error.code().is_some_and(|code| twins.contains(code)) {
            return Err(error.into());
        }
    }
    let in_use = client.query_opt(IN_USE, &[&key]).await?;
    let key: String = in_use.map_or_else(|| Ok(key.to_string()), |row| row.try_get(0))?;
    let (period, pace) = (nanos(terms.period), nanos(terms.pace));
    let (tolerance, validity) = (micros(terms.tolerance), micros(terms.validity));
    let burst = i64::from(terms.burst);
    let rested = news.map_or(0, micros);
    let values: [&(dyn ToSql + Sync); 7] = [&key, &period, &burst, &pace, &tolerance, &validity, &rested];
    client.execute(ENSURE, &values).await?;
    if news.is_some() {
        client.execute(RESET, &values[..6]).await?;
    }
    Ok((key, client.prepare(STEP).await?))
}

/// Why a question has no answer.
pub(super) enum Asking {
    Failed(tokio_postgres::Error),
    Ended(Result<(), postgres::Error>),
}

impl From<tokio_postgres::Error> for Asking {
    fn from(error: tokio_postgres::Error) -> Self {
        Self::Failed(error)
    }
}

impl From<Asking> for Error {
    fn from(asking: Asking) -> Self {
        Self::Database(match asking {
            Asking::Failed(error) => postgres::describe(&error),
            Asking::Ended(Err(error)) => error.to_string(),
            Asking::Ended(Ok(())) => "the connection has ended".into(),
        })
    }
}

/// Moves the connection's bytes while a question is asked: nobody else does.
async fn beside<T>(
    driver: &mut (impl Future<Output = Result<(), postgres::Error>> + Unpin),
    question: impl Future<Output = Result<T, Asking>>,
) -> Result<T, Asking> {
    select! {
        biased;
        answer = question => answer,
        ended = driver => Err(Asking::Ended(ended)),
    }
}

/// Another statement stood in the way, and this one has changed nothing.
fn is_conflict(error: &tokio_postgres::Error) -> bool {
    let conflicts = [SqlState::T_R_SERIALIZATION_FAILURE, SqlState::T_R_DEADLOCK_DETECTED];
    error.code().is_some_and(|code| conflicts.contains(code))
}

pub(super) fn read(row: &Row, asked: Instant) -> Result<Answer, tokio_postgres::Error> {
    let number = |index| row.try_get::<_, i64>(index);
    let time = |index| number(index).map(from_micros);
    let next_step: Option<i64> = row.try_get(9)?;
    Ok(Answer {
        asked,
        granted: u32::try_from(number(0)?).unwrap_or(0),
        start: time(1)?,
        from: i128::from(number(2)?) * 1_000,
        tat: time(3)?,
        pace: Duration::from_nanos(u64::try_from(number(4)?).unwrap_or(u64::MAX)),
        tolerance: time(5)?,
        validity: time(6)?,
        share: number(7)? as f64 / 1e6,
        epoch: u64::try_from(number(8)?).unwrap_or(0),
        next_step: next_step.map(from_micros),
        period: Duration::from_nanos(u64::try_from(number(10)?).unwrap_or(u64::MAX)),
        burst: u32::try_from(number(11)?).unwrap_or(u32::MAX),
    })
}

fn from_micros(micros: i64) -> Duration {
    Duration::from_micros(u64::try_from(micros).unwrap_or(0))
}

fn micros(time: Duration) -> i64 {
    // Far beyond all that is counted in the row, and safe to add to a date.
    const MOST: i64 = i64::MAX / 4;
    i64::try_from(time.as_micros()).unwrap_or(MOST).min(MOST)
}

fn nanos(time: Duration) -> i64 {
    i64::try_from(time.as_nanos()).unwrap_or(i64::MAX)
}
