//! What is done to the tables. A statement prepared here is kept by its connection.

use rusqlite::{Connection, params};

use super::{
    read::{pending, settled},
    worker::{Fault, Operation},
};
use crate::{
    clock::Timestamp,
    invitation::Key,
    ledger::{self, Claimed, Fence, Record, Resolution, Resolved, Settlement, State, census::Change, rules},
};

const CLAIM: &str = "INSERT INTO pending (collector_id, crk, fingerprint, attempts, created_at, claimed_at) \
                     VALUES (?1, ?2, ?3, ?4, ?5, ?6) ON CONFLICT (collector_id, crk) DO NOTHING";

const RELEASE: &str = "DELETE FROM pending WHERE collector_id = ?1 AND crk = ?2";

const RESOLVE: &str = "UPDATE invitation SET state = ?3, created_at = ?4, updated_at = ?5, reason = ?6, \
                       http_status = ?7 WHERE collector_id = ?1 AND crk = ?2";

/// Moves rows of `pending` over to `invitation`. What they become is the same for all of them: state, time, reason, HTTP
/// status, notification. The lesser of the two times is `rules::created_at`.
macro_rules! settle {
    ($which:literal) => {
        concat!(
            "INSERT INTO invitation (collector_id, crk, fingerprint, state, attempts, created_at, updated_at, reason, \
             http_status, notification) \
             SELECT collector_id, crk, fingerprint, ?1, attempts, min(created_at, ?2), ?2, ?3, ?4, ?5 \
             FROM pending WHERE ",
            $which,
            " ON CONFLICT (collector_id, crk) DO UPDATE SET fingerprint = excluded.fingerprint, \
             state = excluded.state, attempts = excluded.attempts, created_at = excluded.created_at, \
             updated_at = excluded.updated_at, reason = excluded.reason, http_status = excluded.http_status, \
             notification = excluded.notification"
        )
    };
}
const SETTLE_ONE: &str = settle!("collector_id = ?6 AND crk = ?7");
const SETTLE_ALL: &str = settle!("true");

pub(super) struct Claim(pub ledger::Claim);

impl Operation for Claim {
    type Answer = Claimed;

    fn run(&self, db: &Connection, change: &mut Change) -> Result<Claimed, Fault> {
        let claim = &self.0;
        let settled = settled(db, &claim.key)?;
        let grant = match rules::grant(settled.as_ref(), claim) {
            Ok(grant) => grant,
            Err(held) => {
                let shown = pending(db, &claim.key)?.unwrap_or_else(|| held.clone());
                return Ok(Claimed::No(shown));
            }
        };
        let inserted = db.prepare_cached(CLAIM)?.execute(params![
            claim.key.collector_id(),
            claim.key.crk(),
            claim.fingerprint.0,
            grant.attempts,
            grant.created_at.0,
            claim.at.0,
        ])?;
        if inserted == 0 {
            return pending(db, &claim.key)?.map(Claimed::No).ok_or(Fault::Record);
        }
        if let Some(settled) = &settled {
            change.goes(settled.state, settled.updated_at);
        }
        change.comes(State::Pending, claim.at);
        Ok(Claimed::Yes {
            attempts: grant.attempts,
            was_in_doubt: grant.was_in_doubt,
            fence: Fence::default(),
        })
    }

    fn claimed(&self, answer: &Claimed) -> Option<Key> {
        matches!(answer, Claimed::Yes { .. }).then(|| self.0.key.clone())
    }
}

pub(super) struct Settle {
    pub key: Key,
    pub settlement: Settlement,
    pub at: Timestamp,
}

impl Operation for Settle {
    type Answer = ();

    fn run(&self, db: &Connection, change: &mut Change) -> Result<(), Fault> {
        let rules::Settled {
            state,
            last_error,
            notification,
        } = self.settlement.clone().into();
        let settled = db.prepare_cached(SETTLE_ONE)?.execute(params![
            state as i64,
            self.at.0,
            last_error.map(|error| error.reason.code()),
            last_error.and_then(|error| error.http_status),
            notification,
            self.key.collector_id(),
            self.key.crk(),
        ])?;
        if settled > 0 {
            db.prepare_cached(RELEASE)?
                .execute((self.key.collector_id(), self.key.crk()))?;
            change.goes(State::Pending, self.at);
            change.comes(state, self.at);
        }
        Ok(())
    }
}

/// Puts every claim there is in doubt, and tells how many that were.
pub(super) fn put_all_in_doubt(db: &Connection, at: Timestamp) -> rusqlite::Result<usize> {
    let rules::Settled { state, last_error, .. } = rules::ORPHANED.into();
    let settled = db.execute(
        SETTLE_ALL,
        params![
            state as i64,
            at.0,
            last_error.map(|error| error.reason.code()),
            last_error.and_then(|error| error.http_status),
            None::<&str>,
        ],
    )?;
    db.execute("DELETE FROM pending", [])?;
    Ok(settled)
}

pub(super) struct Release(pub Key);

impl Operation for Release {
    type Answer = ();

    fn run(&self, db: &Connection, change: &mut Change) -> Result<(), Fault> {
        Ok(release(db, &self.0, change)?)
    }
}

pub(super) fn release(db: &Connection, key: &Key, change: &mut Change) -> rusqlite::Result<()> {
    let released = db.prepare_cached(RELEASE)?.execute((key.collector_id(), key.crk()))?;
    if released > 0 {
        change.goes(State::Pending, Timestamp(0));
        // A record that can't be read any more is counted as gone: that is no reason not to release.
        if let Ok(Some(settled)) = settled(db, key) {
            change.comes(settled.state, settled.updated_at);
        }
    }
    Ok(())
}

pub(super) struct Resolve {
    pub key: Key,
    pub resolution: Resolution,
    pub at: Timestamp,
}

impl Operation for Resolve {
    type Answer = Resolved;

    fn run(&self, db: &Connection, change: &mut Change) -> Result<Resolved, Fault> {
        if let Some(record) = pending(db, &self.key)? {
            return Ok(Resolved::NotInDoubt(record));
        }
        let Some(mut record) = settled(db, &self.key)? else {
            return Ok(Resolved::NotFound);
        };
        if record.state != State::InDoubt {
            return Ok(Resolved::NotInDoubt(record));
        }
        let began = record.updated_at;
        rules::resolve(&mut record, self.resolution, self.at);
        let Record {
            state,
            created_at,
            last_error,
            ..
        } = record;
        db.prepare_cached(RESOLVE)?.execute(params![
            self.key.collector_id(),
            self.key.crk(),
            state as i64,
            created_at.0,
            self.at.0,
            last_error.map(|error| error.reason.code()),
            last_error.and_then(|error| error.http_status),
        ])?;
        change.goes(State::InDoubt, began);
        change.comes(state, self.at);
        Ok(Resolved::Done(record))
    }
}

/// Writes as much as a claim may need, and gives it free again. What stays is room in the file.
pub(super) struct Probe;

impl Operation for Probe {
    type Answer = ();

    fn run(&self, db: &Connection, _: &mut Change) -> Result<(), Fault> {
        db.prepare_cached("UPDATE probe SET filler = zeroblob(16384)")?
            .execute([])?;
        db.prepare_cached("UPDATE probe SET filler = NULL")?.execute([])?;
        Ok(())
    }
}
