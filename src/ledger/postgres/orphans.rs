//! Claims that are there no more, because this replica was taken for dead, and whose ends come all the same.

use tokio_postgres::{Client, Statement, types::ToSql};

use super::{
    id::Id,
    link::Statements,
    read::Keys,
    write::{self, Ends, Release, Settle, Values, Writing, ends},
};

/// Takes the keys of claims that were put in doubt, because this replica was taken for dead, if they are not taken.
const LOCK: &str = "INSERT INTO pending (collector_id, crk, fingerprint, resend, claimed_at, replica, claim) \
                    SELECT i.collector_id, i.crk, i.fingerprint, false, 0, $4, $4 \
                    FROM unnest($1::text[], $2::text[], $3::uuid[]) AS asked (collector_id, crk, claim), invitation i \
                    WHERE i.collector_id = asked.collector_id AND i.crk = asked.crk AND i.orphan = asked.claim \
                    ORDER BY i.collector_id, i.crk ON CONFLICT (collector_id, crk) DO NOTHING";

/// The outcome of a claim that is not there any more ends the doubt that it was put in, unless somebody has resolved it or
/// claimed the key since: so what a caller is told is what the ledger knows. That it was added is SurveyLab's own word, and
/// keeps a key that was resolved as not added from being sent again. The CASE has the planner go by keys: the index of those
/// not added may hold many.
const SETTLE: &str = concat!(
    "UPDATE invitation i SET state = asked.state, created_at = least(i.created_at, asked.at), updated_at = asked.at, \
     reason = asked.reason, http_status = asked.http_status, notification = asked.notification, orphan = NULL \
     FROM pending p, ",
    ends!(),
    " WHERE p.collector_id = asked.collector_id AND p.crk = asked.crk AND p.claim = $9 \
     AND i.collector_id = asked.collector_id AND i.crk = asked.crk AND i.orphan = asked.claim \
     AND CASE i.state WHEN 4 THEN true WHEN 3 THEN asked.state = 2 ELSE false END"
);

/// Nothing was sent under these claims. That leaves nothing to know of a key that had no other; of one that had, what it was
/// before is overwritten, and may have been a doubt as well.
const RELEASE: &str = "DELETE FROM invitation i USING pending p, \
                       unnest($1::text[], $2::text[], $3::uuid[]) AS asked (collector_id, crk, claim) \
                       WHERE p.collector_id = asked.collector_id AND p.crk = asked.crk AND p.claim = $4 \
                       AND i.collector_id = asked.collector_id AND i.crk = asked.crk AND i.orphan = asked.claim \
                       AND CASE i.state WHEN 4 THEN i.attempts = 1 ELSE false END";

/// The statements.
pub(super) struct Orphans {
    lock: Statement,
    settle: Statement,
    release: Statement,
}

impl Statements for Orphans {
    async fn prepare(client: &Client) -> Result<Self, tokio_postgres::Error> {
        Ok(Self {
            lock: client.prepare(LOCK).await?,
            settle: client.prepare(SETTLE).await?,
            release: client.prepare(RELEASE).await?,
        })
    }
}

/// Ends the doubts that claims were put in, as far as nobody has gone by these, within a transaction.
pub(super) async fn end(
    client: &Client,
    statements: &Writing,
    settles: &[Settle<'_>],
    releases: &[Release<'_>],
) -> Result<(), tokio_postgres::Error> {
    let stamp = Id::random();
    let settled = settles.iter().map(|settle| (settle.key, settle.claim));
    let all: Vec<Release<'_>> = settled.chain(releases.iter().copied()).collect();
    let locks: Vec<Release<'_>> = all.iter().map(|(key, _)| (*key, stamp)).collect();
    let (all, released) = (columns(&all), columns(releases));
    let lock: Values<'_, 4> = [&all.0.collector_ids, &all.0.crks, &all.1, &stamp];
    let ends = Ends::of(settles);
    let by: &(dyn ToSql + Sync) = &stamp;
    let settle: Vec<_> = ends.values().into_iter().chain([by]).collect();
    let release: Values<'_, 4> = [&released.0.collector_ids, &released.0.crks, &released.1, &stamp];
    let orphans = &statements.orphans;
    let (locked, settled, released, unlocked) = tokio::join!(
        biased;
        client.execute(&orphans.lock, &lock),
        client.execute(&orphans.settle, &settle),
        client.execute(&orphans.release, &release),
        write::release(client, statements, &locks),
    );
    locked.and(settled).and(released)?;
    unlocked.map(drop)
}

fn columns<'a>(claims: &[Release<'a>]) -> (Keys<'a>, Vec<Id>) {
    let keys = Keys::of(claims.iter().map(|(key, _)| *key));
    (keys, claims.iter().map(|(_, claim)| *claim).collect())
}
