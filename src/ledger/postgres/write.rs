//! What is done to the tables, for many keys at once. Keys come sorted, so that transactions that want the same ones
//! wait for each other in one direction.

use std::slice;

use tokio_postgres::{Client, Row, Statement, types::ToSql};

use super::{
    id::Id,
    lease::Holder,
    link::{Statements, plan_by_keys},
    orphans::Orphans,
    read::{self, Keys, LOOK_UP, Standing, Unreadable, in_order, of_asked, standing},
    writer::Resolve,
};
use crate::{
    clock::Timestamp,
    invitation::Key,
    ledger::{Claim, Claimed, Doubt, Error, Resolution, Resolved, Settlement, State, rules},
};

/// The channel on which those who watch a claim are told of its end, by its number.
macro_rules! channel {
    () => {
        "invitation_settled"
    };
}
pub(super) const CHANNEL: &str = channel!();

/// Tells those who watch the claims in `gone`, and counts these. Only them: a NOTIFY has all commits of the server wait for
/// each other.
macro_rules! tell {
    () => {
        concat!(
            ", told AS (SELECT pg_notify('",
            channel!(),
            "', claim::text) FROM gone WHERE watched) SELECT (SELECT count(*) FROM gone), (SELECT count(*) FROM told)"
        )
    };
}

/// What `rules::grant` says, for a row `i` of `invitation` and a claim.
macro_rules! free {
    ($claim:literal) => {
        concat!(
            "(i.state = 3 OR (i.state = 4 AND ",
            $claim,
            ".resend AND i.fingerprint = ",
            $claim,
            ".fingerprint))"
        )
    };
}

/// Takes the keys that look free and are not taken. Waits for those that another transaction takes or frees just now.
const CLAIM: &str = concat!(
    "INSERT INTO pending (collector_id, crk, fingerprint, resend, claimed_at, replica, claim) \
     SELECT asked.collector_id, asked.crk, asked.fingerprint, asked.resend, asked.at, $6, $7 \
     FROM unnest($1::text[], $2::text[], $3::bytea[], $4::boolean[], $5::bigint[]) \
     AS asked (collector_id, crk, fingerprint, resend, at) \
     WHERE NOT EXISTS (SELECT FROM invitation i \
     WHERE i.collector_id = asked.collector_id AND i.crk = asked.crk AND NOT ",
    free!("asked"),
    ") ORDER BY asked.collector_id COLLATE \"C\", asked.crk COLLATE \"C\" \
     ON CONFLICT (collector_id, crk) DO NOTHING"
);

/// Tells how the keys of `CLAIM` stand, and takes back those of its claims that it should not have made: while it
/// waited for a key, or between its look and its insert, the key may have been settled. This statement sees that, as
/// now nobody else can change the key.
const CLAIMED: &str = concat!(
    "WITH asked AS (SELECT * FROM unnest($1::text[], $2::text[]) WITH ORDINALITY AS asked (collector_id, crk, n)), \
     taken_back AS (DELETE FROM pending p USING asked, invitation i \
     WHERE p.collector_id = asked.collector_id AND p.crk = asked.crk AND p.claim = $3 \
     AND i.collector_id = asked.collector_id AND i.crk = asked.crk AND NOT ",
    free!("p"),
    ") SELECT n, ",
    standing!(),
    " ",
    of_asked!(),
);

/// Moves rows of `gone` from `pending` to `invitation`. The least of the times is `rules::created_at`.
macro_rules! keep {
    () => {
        "kept AS (INSERT INTO invitation AS known (collector_id, crk, fingerprint, state, attempts, created_at, updated_at, \
         reason, http_status, notification, orphan) \
         SELECT collector_id, crk, fingerprint, state, 1, least(claimed_at, at), at, reason, http_status, notification, orphan \
         FROM gone ON CONFLICT (collector_id, crk) DO UPDATE SET fingerprint = excluded.fingerprint, \
         state = excluded.state, attempts = least(known.attempts + 1, 4294967295), \
         created_at = least(known.created_at, excluded.created_at), updated_at = excluded.updated_at, \
         reason = excluded.reason, http_status = excluded.http_status, notification = excluded.notification, \
         orphan = excluded.orphan)"
    };
}

/// The ends of claims, in the form of `Ends::values`.
macro_rules! ends {
    () => {
        "unnest($1::text[], $2::text[], $3::uuid[], $4::smallint[], $5::bigint[], $6::smallint[], $7::integer[], $8::text[]) \
         AS asked (collector_id, crk, claim, state, at, reason, http_status, notification)"
    };
}
pub(super) use ends;

const SETTLE: &str = concat!(
    "WITH gone AS (DELETE FROM pending p USING ",
    ends!(),
    " WHERE p.collector_id = asked.collector_id AND p.crk = asked.crk AND p.claim = asked.claim \
     RETURNING p.collector_id, p.crk, p.fingerprint, p.claimed_at, p.claim, p.watched, \
     asked.state, asked.at, asked.reason, asked.http_status, asked.notification, NULL::uuid AS orphan), ",
    keep!(),
    tell!(),
);

/// Puts in doubt the claims of replicas that are there no more. A row of `replica` that a claim names was committed
/// before the claim, so one that is missing was removed.
pub(super) const PUT_IN_DOUBT: &str = concat!(
    "WITH gone AS (DELETE FROM pending p \
     WHERE NOT EXISTS (SELECT FROM replica r WHERE r.id = p.replica) \
     RETURNING p.collector_id, p.crk, p.fingerprint, p.claimed_at, p.claim, p.watched, \
     $1::smallint AS state, $2::bigint AS at, $3::smallint AS reason, $4::integer AS http_status, $5::text AS notification, \
     p.claim AS orphan), ",
    keep!(),
    tell!(),
);

const RELEASE: &str = concat!(
    "WITH gone AS (DELETE FROM pending p USING unnest($1::text[], $2::text[], $3::uuid[]) \
     AS asked (collector_id, crk, claim) \
     WHERE p.collector_id = asked.collector_id AND p.crk = asked.crk AND p.claim = asked.claim \
     RETURNING p.claim, p.watched)",
    tell!(),
);

/// Takes the key that a person resolves, so that nobody claims it meanwhile, if it looks in doubt and is not taken.
const LOCK: &str = "INSERT INTO pending (collector_id, crk, fingerprint, resend, claimed_at, replica, claim) \
                    SELECT i.collector_id, i.crk, i.fingerprint, false, 0, $3, $3 FROM invitation i \
                    WHERE i.collector_id = $1 AND i.crk = $2 AND i.state = 4 \
                    ON CONFLICT (collector_id, crk) DO NOTHING";

/// What `rules::resolve` does.
const RESOLVE: &str = "UPDATE invitation i SET state = $4::smallint, created_at = least(i.created_at, $5::bigint), \
                       updated_at = $5::bigint, \
                       reason = CASE $4::smallint WHEN 2 THEN NULL ELSE i.reason END, \
                       http_status = CASE $4::smallint WHEN 2 THEN NULL ELSE i.http_status END \
                       FROM pending p WHERE p.collector_id = $1 AND p.crk = $2 AND p.claim = $3 \
                       AND i.collector_id = $1 AND i.crk = $2 AND i.state = 4";

const UNLOCK: &str = "DELETE FROM pending WHERE collector_id = $1 AND crk = $2 AND claim = $3";

/// Writes and commits, and changes no record.
const PROBE: &str = "UPDATE replica SET name = name WHERE id = $1";

/// The writer's statements.
pub(super) struct Writing {
    claim: Statement,
    claimed: Statement,
    settle: Statement,
    release: Statement,
    lock: Statement,
    resolve: Statement,
    unlock: Statement,
    pub look_up: Statement,
    pub orphans: Orphans,
    pub probe: Statement,
}

impl Statements for Writing {
    async fn prepare(client: &Client) -> Result<Self, tokio_postgres::Error> {
        plan_by_keys(client).await?;
        Ok(Self {
            claim: client.prepare(CLAIM).await?,
            claimed: client.prepare(CLAIMED).await?,
            settle: client.prepare(SETTLE).await?,
            release: client.prepare(RELEASE).await?,
            lock: client.prepare(LOCK).await?,
            resolve: client.prepare(RESOLVE).await?,
            unlock: client.prepare(UNLOCK).await?,
            look_up: client.prepare(LOOK_UP).await?,
            orphans: Orphans::prepare(client).await?,
            probe: client.prepare(PROBE).await?,
        })
    }
}

/// The parameters of a statement.
pub(super) type Values<'a, const N: usize> = [&'a (dyn ToSql + Sync); N];

/// Who claims, and the number by which these claims are known.
#[derive(Clone, Copy)]
pub(super) struct Claimant {
    pub holder: Holder,
    pub stamp: Id,
}

/// How each of the keys stands after a claim, before it is known whether that was committed.
type Standings = Vec<Result<Standing, Unreadable>>;

/// Claims keys, within a transaction.
pub(super) async fn claim(
    client: &Client,
    statements: &Writing,
    claims: &[&Claim],
    by: Claimant,
) -> Result<Standings, tokio_postgres::Error> {
    if claims.is_empty() {
        return Ok(Vec::new());
    }
    let keys = Keys::of(claims.iter().map(|claim| &claim.key));
    let fingerprints: Vec<&[u8]> = claims.iter().map(|claim| claim.fingerprint.0.as_slice()).collect();
    let resend: Vec<bool> = claims.iter().map(|claim| claim.doubt == Doubt::Resend).collect();
    let at: Vec<i64> = claims.iter().map(|claim| claim.at.0).collect();
    let values: Values<'_, 7> = [
        &keys.collector_ids,
        &keys.crks,
        &fingerprints,
        &resend,
        &at,
        &by.holder.replica,
        &by.stamp,
    ];
    let asked: Values<'_, 3> = [&keys.collector_ids, &keys.crks, &by.stamp];
    let (claimed, found) = tokio::join!(
        biased;
        client.execute(&statements.claim, &values),
        client.query(&statements.claimed, &asked),
    );
    claimed?;
    Ok(in_order(&found?, claims.iter().map(|claim| &claim.key)))
}

/// What is told who claimed. `None`: the key was free by the second look, and not by the first, or the other way round.
pub(super) fn claimed(claim: &Claim, standing: Standing, by: Claimant) -> Option<Claimed> {
    let granted = rules::grant(standing.settled.as_ref(), claim);
    match (&standing.pending, granted) {
        (Some(pending), Ok(grant)) if pending.claim == by.stamp => Some(Claimed::Yes {
            attempts: grant.attempts,
            was_in_doubt: grant.was_in_doubt,
            fence: by.holder.fence,
        }),
        // It was taken back.
        (Some(pending), Err(record)) if pending.claim == by.stamp => Some(Claimed::No(record.clone())),
        (Some(_), _) => standing.shown(&claim.key).map(Claimed::No),
        (None, Err(record)) => Some(Claimed::No(record.clone())),
        (None, Ok(_)) => None,
    }
}

/// The end of a claim.
pub(super) struct Settle<'a> {
    pub key: &'a Key,
    pub claim: Id,
    pub settlement: &'a Settlement,
    pub at: Timestamp,
}

/// The ends of claims as the statements take them.
pub(super) struct Ends<'a> {
    keys: Keys<'a>,
    claims: Vec<Id>,
    states: Vec<i16>,
    at: Vec<i64>,
    reasons: Vec<Option<i16>>,
    http_statuses: Vec<Option<i32>>,
    notifications: Vec<Option<String>>,
}

impl<'a> Ends<'a> {
    pub(super) fn of(settles: &[Settle<'a>]) -> Self {
        let mut ends = Self {
            keys: Keys::of(settles.iter().map(|settle| settle.key)),
            claims: settles.iter().map(|settle| settle.claim).collect(),
            states: vec![],
            at: settles.iter().map(|settle| settle.at.0).collect(),
            reasons: vec![],
            http_statuses: vec![],
            notifications: vec![],
        };
        for settle in settles {
            let columns = Columns::of(settle.settlement);
            ends.states.push(columns.state);
            ends.reasons.push(columns.reason);
            ends.http_statuses.push(columns.http_status);
            ends.notifications.push(columns.notification);
        }
        ends
    }

    pub(super) fn values(&self) -> Values<'_, 8> {
        [
            &self.keys.collector_ids,
            &self.keys.crks,
            &self.claims,
            &self.states,
            &self.at,
            &self.reasons,
            &self.http_statuses,
            &self.notifications,
        ]
    }
}

/// How many of some claims were not there to be ended: they were put in doubt, unless they were ended before.
pub(super) type Missed = usize;

fn missed(of: usize, row: &Row) -> Result<Missed, tokio_postgres::Error> {
    let gone: i64 = row.try_get(0)?;
    Ok(of.saturating_sub(usize::try_from(gone).unwrap_or_default()))
}

/// Ends claims with their outcomes, within a transaction.
pub(super) async fn settle(
    client: &Client,
    statements: &Writing,
    settles: &[Settle<'_>],
) -> Result<Missed, tokio_postgres::Error> {
    if settles.is_empty() {
        return Ok(0);
    }
    let row = client
        .query_one(&statements.settle, &Ends::of(settles).values())
        .await?;
    missed(settles.len(), &row)
}

/// A settlement as the table keeps it.
pub(super) struct Columns {
    pub state: i16,
    pub reason: Option<i16>,
    pub http_status: Option<i32>,
    pub notification: Option<String>,
}

impl Columns {
    pub(super) fn of(settlement: &Settlement) -> Self {
        let settled = rules::Settled::from(settlement.clone());
        Self {
            state: settled.state as i16,
            reason: settled.last_error.map(|error| error.reason.code().into()),
            http_status: settled.last_error.and_then(|error| error.http_status).map(Into::into),
            // SurveyLab may say anything, and PostgreSQL's text holds all but this.
            notification: settled.notification.map(|text| text.replace('\0', "\u{fffd}")),
        }
    }
}

/// A claim under which nothing was sent.
pub(super) type Release<'a> = (&'a Key, Id);

/// Ends claims under which nothing was sent, within a transaction.
pub(super) async fn release(
    client: &Client,
    statements: &Writing,
    claims: &[Release<'_>],
) -> Result<Missed, tokio_postgres::Error> {
    if claims.is_empty() {
        return Ok(0);
    }
    let keys = Keys::of(claims.iter().map(|(key, _)| *key));
    let stamps: Vec<Id> = claims.iter().map(|(_, stamp)| *stamp).collect();
    let row = client
        .query_one(&statements.release, &[&keys.collector_ids, &keys.crks, &stamps])
        .await?;
    missed(claims.len(), &row)
}

/// How the key stands after a person's word, and whether that was needed.
pub(super) struct Resolving {
    changed: bool,
    standing: Result<Standing, Unreadable>,
}

impl Resolving {
    /// What is told who resolved. `None`: the key was in doubt by the second look, and not by the first.
    pub(super) fn resolved(self, key: &Key) -> Option<Result<Resolved, Error>> {
        let record = match self.standing {
            Ok(standing) => standing.shown(key),
            Err(unreadable) => return Some(Err(unreadable.into())),
        };
        Some(Ok(match record {
            None => Resolved::NotFound,
            Some(record) if self.changed => Resolved::Done(record),
            Some(record) if record.state == State::InDoubt => return None,
            Some(record) => Resolved::NotInDoubt(record),
        }))
    }
}

/// Resolves a doubt, within a transaction.
pub(super) async fn resolve(
    client: &Client,
    statements: &Writing,
    step: &Resolve,
) -> Result<Resolving, tokio_postgres::Error> {
    let (key, at) = (&step.key, step.at);
    let state = match step.resolution {
        Resolution::Added => State::Added,
        Resolution::NotAdded => State::Failed,
    } as i16;
    let stamp = Id::random();
    let (id, crk) = (key.collector_id(), key.crk());
    let lock: Values<'_, 3> = [&id, &crk, &stamp];
    let change: Values<'_, 5> = [&id, &crk, &stamp, &state, &at.0];
    let (locked, changed, unlocked, standing) = tokio::join!(
        biased;
        client.execute(&statements.lock, &lock),
        client.execute(&statements.resolve, &change),
        client.execute(&statements.unlock, &lock),
        read::look_up(client, &statements.look_up, slice::from_ref(key)),
    );
    locked?;
    let changed = changed? > 0;
    unlocked?;
    Ok(Resolving {
        changed,
        standing: standing?.pop().unwrap_or(Err(Unreadable)),
    })
}
