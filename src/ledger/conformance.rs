//! The contract of [`Ledger`] as tests, run against every backend.

use std::{path::Path, thread, time::Duration};

use tempfile::TempDir;

use super::{memory::Memory, postgres::Postgres, sqlite::Sqlite, *};
use crate::{
    clock::Clock,
    postgres::testing::{self, Database},
};

mod listing;
mod model;
mod together;

use listing::*;
use model::behaves_like_the_model;
use together::is_linearizable;

/// When a ledger under test is opened again after a crash.
pub(super) const REOPENED_AT: Timestamp = Timestamp(1_000_000);

/// A backend under test, with a ledger that is empty at first.
trait Backend: Sized {
    type Ledger: Ledger;
    /// It remembers anything after a crash.
    const DURABLE: bool;

    async fn start() -> Self;
    fn ledger(&self) -> &Self::Ledger;
    /// The ledger's census with all steps that were answered before. Of one that only estimates some of it, without that.
    async fn census(&self) -> Census {
        // What was there at its start is counted beside all else.
        let counting = async {
            while self.ledger().census().added.is_none() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        let counted = tokio::time::timeout(Duration::from_secs(60), counting).await;
        counted.expect("the keys are counted");
        self.ledger().census()
    }
    /// From now on a claim of the crk `SPOILED` fails, with the batch it is in. False if nothing can fail here.
    fn spoil(&self) -> bool;
    /// The process dies, without closing the ledger, and another one opens it at `REOPENED_AT`, when nobody takes the first
    /// for alive any more.
    async fn crash(self) -> Self;
}

const SPOILED: &str = "spoiled";

struct InMemory(Memory);

impl Backend for InMemory {
    type Ledger = Memory;
    const DURABLE: bool = false;

    async fn start() -> Self {
        Self(Memory::new())
    }

    fn ledger(&self) -> &Memory {
        &self.0
    }

    fn spoil(&self) -> bool {
        false
    }

    async fn crash(self) -> Self {
        self
    }
}

struct InSqlite {
    ledger: Sqlite,
    directory: TempDir,
}

impl InSqlite {
    fn open(directory: TempDir) -> Self {
        let ledger = reopened(&directory.path().join("ledger.db"));
        Self { ledger, directory }
    }
}

/// A ledger whose last owner has gone, or which is new.
pub(super) fn reopened(path: &Path) -> Sqlite {
    let clock = Clock::with_wall(|| REOPENED_AT.into());
    let mut tries = 0;
    loop {
        match Sqlite::open(path, &clock) {
            // A child that another test of this process makes at the moment has the lock too, until it runs its program.
            Err(Error::InUse(_)) if tries < 1_000 => {
                tries += 1;
                #[expect(clippy::disallowed_methods, reason = "no runtime has anything else to do then")]
                thread::sleep(Duration::from_millis(10));
            }
            opened => return opened.expect("opens"),
        }
    }
}

impl Backend for InSqlite {
    type Ledger = Sqlite;
    const DURABLE: bool = true;

    async fn start() -> Self {
        Self::open(TempDir::new().expect("a directory"))
    }

    fn ledger(&self) -> &Sqlite {
        &self.ledger
    }

    fn spoil(&self) -> bool {
        let db = rusqlite::Connection::open(self.directory.path().join("ledger.db")).expect("connects");
        let trigger = format!(
            "CREATE TRIGGER spoil BEFORE INSERT ON pending WHEN NEW.crk = '{SPOILED}' \
             BEGIN SELECT RAISE(ABORT, 'as the test wants it'); END"
        );
        db.execute_batch(&trigger).expect("writes");
        true
    }

    async fn crash(self) -> Self {
        drop(self.ledger);
        Self::open(self.directory)
    }
}

struct InPostgres {
    ledger: Postgres,
    database: Database<'static>,
}

impl InPostgres {
    async fn open(database: Database<'static>) -> Self {
        let clock = Clock::with_wall(|| REOPENED_AT.into());
        let settings = database.socket_url().parse().expect("is one");
        let ledger = Postgres::open(&settings, &clock, Default::default()).await;
        Self {
            ledger: ledger.expect("opens"),
            database,
        }
    }
}

impl Backend for InPostgres {
    type Ledger = Postgres;
    const DURABLE: bool = true;

    async fn start() -> Self {
        Self::open(testing::shared().database()).await
    }

    fn ledger(&self) -> &Postgres {
        &self.ledger
    }

    fn spoil(&self) -> bool {
        self.database.sql(&format!(
            "CREATE FUNCTION spoil() RETURNS trigger LANGUAGE plpgsql AS              $$BEGIN RAISE EXCEPTION 'as the test wants it'; END$$; \
             CREATE TRIGGER spoil BEFORE INSERT ON pending FOR EACH ROW WHEN (NEW.crk = '{SPOILED}') EXECUTE FUNCTION spoil()"
        ));
        true
    }

    async fn census(&self) -> Census {
        self.ledger.count().await.expect("counts");
        let census = self.ledger.census();
        assert_eq!(census.replicas.expect("are counted"), 1);
        Census {
            added: None,
            failed: None,
            replicas: None,
            ..census
        }
    }

    async fn crash(self) -> Self {
        self.ledger.die().await;
        // The server may not have noticed yet, and still be at the last steps.
        self.database.sql(
            "DO $$ BEGIN
                 PERFORM pg_terminate_backend(pid) FROM pg_stat_activity
                 WHERE datname = current_database() AND pid <> pg_backend_pid();
                 WHILE EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database()
                               AND backend_type = 'client backend' AND pid <> pg_backend_pid()) LOOP
                     PERFORM pg_sleep(0.001);
                     PERFORM pg_stat_clear_snapshot();
                 END LOOP;
                 UPDATE replica SET lease_until = clock_timestamp() - interval '1 microsecond';
             END $$",
        );
        Self::open(self.database).await
    }
}

/// Runs each rule against each backend.
macro_rules! suite {
    ($($rule:ident)*) => {
        suite!(@memory InMemory $($rule)*);
        suite!(@sqlite InSqlite $($rule)*);
        suite!(@postgres InPostgres $($rule)*);
    };
    (@$module:ident $backend:ident $($rule:ident)*) => {
        mod $module {
            $(
                #[tokio::test]
                async fn $rule() {
                    super::$rule(<super::$backend as super::Backend>::start().await).await;
                }
            )*

            #[test]
            fn behaves_like_the_model() {
                super::behaves_like_the_model::<super::$backend>();
            }

            #[test]
            fn is_linearizable() {
                super::is_linearizable::<super::$backend>();
            }
        }
    };
}

suite! {
    an_unknown_key_is_not_found
    a_claimed_key_is_pending_and_taken
    what_is_claimed_may_be_sent
    the_same_crk_in_another_collector_is_another_key
    of_many_claims_at_once_one_wins
    an_added_key_stays_added
    a_failed_key_is_free_also_with_other_data
    a_key_in_doubt_is_held
    a_key_in_doubt_is_claimed_to_resend_the_same_data_only
    a_release_restores_what_was
    what_is_not_pending_is_neither_settled_nor_released
    a_doubt_is_resolved_once
    no_record_is_younger_than_its_last_change
    a_listing_is_in_bytewise_order_of_keys
    a_listing_shows_a_claim_instead_of_what_was
    a_listing_is_filtered
    a_page_of_nothing_is_empty
    paging_survives_inserts
    a_crash_puts_claims_in_doubt_and_nothing_else
    every_reason_and_status_is_kept
    every_step_shows_in_the_census
    the_census_begins_with_what_was_there
    it_can_be_checked_and_closed_twice
}

pub(super) fn key(crk: &str) -> Key {
    Key::new("c", crk)
}

fn fingerprint(n: u8) -> Fingerprint {
    Fingerprint([n; 32])
}

pub(super) fn a_claim(key: &Key, at: i64) -> Claim {
    Claim {
        key: key.clone(),
        fingerprint: fingerprint(1),
        doubt: Doubt::Hold,
        at: Timestamp(at),
    }
}

pub(super) fn added() -> Settlement {
    Settlement::Added {
        notification: "Added.".into(),
    }
}

const ERROR: LastError = LastError {
    reason: Reason::SurveylabBadRequest,
    http_status: Some(400),
};

fn failed() -> Settlement {
    Settlement::Failed {
        error: ERROR,
        notification: Some("No such thing.".into()),
    }
}

const DOUBT: LastError = LastError {
    reason: Reason::OutcomeInDoubt,
    http_status: Some(502),
};

fn in_doubt() -> Settlement {
    Settlement::InDoubt { error: DOUBT }
}

/// Of all claims of a process that keeps its lease.
pub(super) const FENCE: Fence = Fence(0);

pub(super) const FIRST: Claimed = Claimed::Yes {
    attempts: 1,
    was_in_doubt: false,
    fence: FENCE,
};

fn pending_record(key: &Key, at: i64) -> Record {
    Record {
        key: key.clone(),
        fingerprint: fingerprint(1),
        state: State::Pending,
        attempts: 1,
        created_at: Timestamp(at),
        updated_at: Timestamp(at),
        added_at: None,
        last_error: None,
        notification: None,
    }
}

/// Claims a key that is free at `at` and settles it one microsecond later.
async fn put(ledger: &impl Ledger, key: &Key, settlement: Settlement, at: i64) -> Record {
    let claimed = ledger.claim(a_claim(key, at)).await.expect("claims");
    assert!(matches!(claimed, Claimed::Yes { .. }), "{claimed:?}");
    ledger
        .settle(key, settlement, Timestamp(at + 1))
        .await
        .expect("settles");
    shown(ledger, key).await.expect("is there")
}

async fn shown(ledger: &impl Ledger, key: &Key) -> Option<Record> {
    ledger.look_up(key).await.expect("looks up")
}

async fn all(ledger: &impl Ledger) -> Vec<Record> {
    let limit = usize::MAX;
    ledger
        .list(Query {
            limit,
            ..Query::default()
        })
        .await
        .expect("lists")
}

async fn an_unknown_key_is_not_found(backend: impl Backend) {
    let ledger = backend.ledger();
    assert_eq!(shown(ledger, &key("1")).await, None);
    let resolved = ledger.resolve(&key("1"), Resolution::Added, Timestamp(1)).await;
    assert_eq!(resolved.expect("answers"), Resolved::NotFound);
    assert_eq!(all(ledger).await, []);
}

async fn a_claimed_key_is_pending_and_taken(backend: impl Backend) {
    let (ledger, key) = (backend.ledger(), key("1"));
    assert_eq!(ledger.claim(a_claim(&key, 5)).await.expect("claims"), FIRST);
    let record = pending_record(&key, 5);
    assert_eq!(shown(ledger, &key).await.as_ref(), Some(&record));
    let mut again = a_claim(&key, 6);
    again.doubt = Doubt::Resend;
    assert_eq!(ledger.claim(again).await.expect("answers"), Claimed::No(record.clone()));
    let resolved = ledger.resolve(&key, Resolution::NotAdded, Timestamp(7)).await;
    assert_eq!(resolved.expect("answers"), Resolved::NotInDoubt(record));
}

async fn what_is_claimed_may_be_sent(backend: impl Backend) {
    let claimed = backend.ledger().claim(a_claim(&key("1"), 1)).await;
    let Claimed::Yes { fence, .. } = claimed.expect("claims") else {
        panic!("not claimed")
    };
    assert!(backend.ledger().may_send(fence));
    let backend = backend.crash().await;
    assert!(backend.ledger().may_send(FENCE));
}

async fn the_same_crk_in_another_collector_is_another_key(backend: impl Backend) {
    let ledger = backend.ledger();
    put(ledger, &Key::new("a", "1"), added(), 1).await;
    assert_eq!(
        ledger.claim(a_claim(&Key::new("b", "1"), 1)).await.expect("claims"),
        FIRST
    );
}

async fn of_many_claims_at_once_one_wins(backend: impl Backend) {
    let (ledger, key) = (backend.ledger(), key("1"));
    let claims = (0..100).map(|at| ledger.claim(a_claim(&key, at)));
    let answers = futures_util::future::join_all(claims).await;
    let won = answers
        .iter()
        .filter(|answer| matches!(answer, Ok(Claimed::Yes { .. })))
        .count();
    let lost = answers
        .iter()
        .filter(|answer| matches!(answer, Ok(Claimed::No(_))))
        .count();
    assert_eq!((won, lost), (1, 99));
}

async fn an_added_key_stays_added(backend: impl Backend) {
    let (ledger, key) = (backend.ledger(), key("1"));
    let record = put(ledger, &key, added(), 5).await;
    let expected = Record {
        state: State::Added,
        updated_at: Timestamp(6),
        added_at: Some(Timestamp(6)),
        notification: Some("Added.".into()),
        ..pending_record(&key, 5)
    };
    assert_eq!(record, expected);
    for doubt in [Doubt::Hold, Doubt::Resend] {
        let claim = Claim {
            doubt,
            ..a_claim(&key, 7)
        };
        assert_eq!(ledger.claim(claim).await.expect("answers"), Claimed::No(record.clone()));
    }
    let resolved = ledger.resolve(&key, Resolution::NotAdded, Timestamp(8)).await;
    assert_eq!(resolved.expect("answers"), Resolved::NotInDoubt(record.clone()));
    assert_eq!(shown(ledger, &key).await, Some(record));
}

async fn a_failed_key_is_free_also_with_other_data(backend: impl Backend) {
    let (ledger, key) = (backend.ledger(), key("1"));
    let record = put(ledger, &key, failed(), 5).await;
    assert_eq!((record.state, record.last_error), (State::Failed, Some(ERROR)));
    assert_eq!(record.notification.as_deref(), Some("No such thing."));

    let mut claim = a_claim(&key, 9);
    claim.fingerprint = fingerprint(2);
    let claimed = Claimed::Yes {
        attempts: 2,
        was_in_doubt: false,
        fence: FENCE,
    };
    assert_eq!(ledger.claim(claim).await.expect("claims"), claimed);
    ledger.settle(&key, added(), Timestamp(10)).await.expect("settles");
    let record = shown(ledger, &key).await.expect("is there");
    assert_eq!(
        (record.state, record.fingerprint, record.attempts),
        (State::Added, fingerprint(2), 2)
    );
    assert_eq!(
        (record.created_at, record.added_at),
        (Timestamp(5), Some(Timestamp(10)))
    );
    assert_eq!(record.last_error, None);
}

async fn a_key_in_doubt_is_held(backend: impl Backend) {
    let (ledger, key) = (backend.ledger(), key("1"));
    let record = put(ledger, &key, in_doubt(), 5).await;
    assert_eq!((record.state, record.last_error), (State::InDoubt, Some(DOUBT)));
    assert_eq!(
        ledger.claim(a_claim(&key, 7)).await.expect("answers"),
        Claimed::No(record)
    );
}

async fn a_key_in_doubt_is_claimed_to_resend_the_same_data_only(backend: impl Backend) {
    let (ledger, key) = (backend.ledger(), key("1"));
    let record = put(ledger, &key, in_doubt(), 5).await;
    let mut claim = a_claim(&key, 7);
    claim.doubt = Doubt::Resend;
    let other = Claim {
        fingerprint: fingerprint(2),
        ..claim.clone()
    };
    assert_eq!(ledger.claim(other).await.expect("answers"), Claimed::No(record));
    let claimed = Claimed::Yes {
        attempts: 2,
        was_in_doubt: true,
        fence: FENCE,
    };
    assert_eq!(ledger.claim(claim.clone()).await.expect("claims"), claimed);
    let Claimed::No(taken) = ledger.claim(claim).await.expect("answers") else {
        panic!("claimed twice")
    };
    assert_eq!((taken.state, taken.attempts), (State::Pending, 2));
    // With Hold, too, the claim is what is seen, and not the doubt below it.
    let Claimed::No(taken) = ledger.claim(a_claim(&key, 8)).await.expect("answers") else {
        panic!("claimed twice")
    };
    assert_eq!(taken.state, State::Pending);
}

async fn a_release_restores_what_was(backend: impl Backend) {
    let ledger = backend.ledger();
    ledger.claim(a_claim(&key("new"), 1)).await.expect("claims");
    ledger.release(&key("new")).await.expect("releases");
    assert_eq!(shown(ledger, &key("new")).await, None);
    assert_eq!(ledger.claim(a_claim(&key("new"), 2)).await.expect("claims"), FIRST);

    for (crk, settlement) in [("failed", failed()), ("in doubt", in_doubt())] {
        let before = put(ledger, &key(crk), settlement, 5).await;
        let mut claim = a_claim(&key(crk), 8);
        claim.doubt = Doubt::Resend;
        assert!(matches!(
            ledger.claim(claim).await,
            Ok(Claimed::Yes { attempts: 2, .. })
        ));
        ledger.release(&key(crk)).await.expect("releases");
        assert_eq!(shown(ledger, &key(crk)).await, Some(before));
    }
}

async fn what_is_not_pending_is_neither_settled_nor_released(backend: impl Backend) {
    let ledger = backend.ledger();
    ledger
        .settle(&key("unknown"), added(), Timestamp(1))
        .await
        .expect("answers");
    ledger.release(&key("unknown")).await.expect("answers");
    assert_eq!(shown(ledger, &key("unknown")).await, None);
    for (crk, settlement) in [("1", added()), ("2", failed()), ("3", in_doubt())] {
        let record = put(ledger, &key(crk), settlement, 5).await;
        ledger.settle(&key(crk), failed(), Timestamp(9)).await.expect("answers");
        ledger.release(&key(crk)).await.expect("answers");
        assert_eq!(shown(ledger, &key(crk)).await, Some(record));
    }
}

async fn a_doubt_is_resolved_once(backend: impl Backend) {
    let ledger = backend.ledger();
    let doubt = put(ledger, &key("1"), in_doubt(), 5).await;
    let expected = Record {
        state: State::Added,
        updated_at: Timestamp(9),
        added_at: Some(Timestamp(9)),
        last_error: None,
        ..doubt
    };
    let resolve = |crk, resolution| async move {
        let resolved = ledger.resolve(&key(crk), resolution, Timestamp(9)).await;
        resolved.expect("answers")
    };
    assert_eq!(resolve("1", Resolution::Added).await, Resolved::Done(expected.clone()));
    assert_eq!(
        resolve("1", Resolution::NotAdded).await,
        Resolved::NotInDoubt(expected.clone())
    );
    assert_eq!(shown(ledger, &key("1")).await, Some(expected));

    let doubt = put(ledger, &key("2"), in_doubt(), 5).await;
    let expected = Record {
        state: State::Failed,
        updated_at: Timestamp(9),
        ..doubt
    };
    assert_eq!(
        resolve("2", Resolution::NotAdded).await,
        Resolved::Done(expected.clone())
    );
    assert_eq!(shown(ledger, &key("2")).await, Some(expected));
    assert!(matches!(
        ledger.claim(a_claim(&key("2"), 10)).await,
        Ok(Claimed::Yes { attempts: 2, .. })
    ));
}

/// The wall clock is set back between all steps.
async fn no_record_is_younger_than_its_last_change(backend: impl Backend) {
    let (ledger, key) = (backend.ledger(), key("1"));
    let times = |record: Record| (record.created_at.0, record.updated_at.0, record.added_at.map(|at| at.0));
    ledger.claim(a_claim(&key, 90)).await.expect("claims");
    ledger.settle(&key, failed(), Timestamp(80)).await.expect("settles");
    assert_eq!(times(shown(ledger, &key).await.expect("is there")), (80, 80, None));
    ledger.claim(a_claim(&key, 70)).await.expect("claims");
    assert_eq!(times(shown(ledger, &key).await.expect("is there")), (70, 70, None));
    ledger.release(&key).await.expect("releases");
    assert_eq!(times(shown(ledger, &key).await.expect("is there")), (80, 80, None));
    ledger.claim(a_claim(&key, 60)).await.expect("claims");
    ledger.settle(&key, in_doubt(), Timestamp(50)).await.expect("settles");
    assert_eq!(times(shown(ledger, &key).await.expect("is there")), (50, 50, None));
    let resolved = ledger.resolve(&key, Resolution::Added, Timestamp(40)).await;
    let Resolved::Done(record) = resolved.expect("answers") else {
        panic!("it was in doubt")
    };
    assert_eq!(times(record.clone()), (40, 40, Some(40)));
    assert_eq!(shown(ledger, &key).await, Some(record));
}

async fn a_crash_puts_claims_in_doubt_and_nothing_else<B: Backend>(backend: B) {
    if !B::DURABLE {
        return;
    }
    let ledger = backend.ledger();
    for (crk, settlement) in [("added", added()), ("failed", failed()), ("doubt", in_doubt())] {
        put(ledger, &key(crk), settlement, 5).await;
    }
    let settled = all(ledger).await;
    put(ledger, &key("again"), failed(), 6).await;
    ledger.claim(a_claim(&key("again"), 8)).await.expect("claims");
    ledger.claim(a_claim(&key("new"), 8)).await.expect("claims");
    ledger.claim(a_claim(&key("future"), i64::MAX)).await.expect("claims");
    ledger.claim(a_claim(&key("released"), 8)).await.expect("claims");
    ledger.release(&key("released")).await.expect("releases");

    let backend = backend.crash().await;
    let ledger = backend.ledger();
    // The clock was set back since the last one was claimed.
    for (crk, attempts, created_at) in [("again", 2, 6), ("new", 1, 8), ("future", 1, REOPENED_AT.0)] {
        let expected = Record {
            state: State::InDoubt,
            attempts,
            updated_at: REOPENED_AT,
            last_error: Some(LastError {
                reason: Reason::OutcomeInDoubt,
                http_status: None,
            }),
            ..pending_record(&key(crk), created_at)
        };
        assert_eq!(shown(ledger, &key(crk)).await, Some(expected));
    }
    assert_eq!(shown(ledger, &key("released")).await, None);
    for record in settled {
        assert_eq!(shown(ledger, &record.key).await.as_ref(), Some(&record));
    }
}

async fn every_reason_and_status_is_kept(backend: impl Backend) {
    for (reason, http_status) in Reason::all().zip([None, Some(100), Some(599), Some(u16::MAX)].into_iter().cycle()) {
        let error = LastError { reason, http_status };
        let key = key(reason.as_str());
        let settlement = Settlement::Failed {
            error,
            notification: None,
        };
        let record = put(backend.ledger(), &key, settlement, 1).await;
        assert_eq!((record.last_error, record.notification), (Some(error), None));
    }
}

/// What a census tells of keys that are listed like this, as far as the backend tells it.
pub(super) fn census_of<'a>(records: impl IntoIterator<Item = &'a Record>, as_in: Census) -> Census {
    let mut change = census::Change::default();
    for record in records {
        change.comes(record.state, record.updated_at);
    }
    let tally = census::Tally::of_nothing();
    tally.apply(&change);
    let all = tally.census();
    Census {
        added: all.added.filter(|_| as_in.added.is_some()),
        failed: all.failed.filter(|_| as_in.failed.is_some()),
        ..all
    }
}

async fn every_step_shows_in_the_census(backend: impl Backend) {
    let ledger = backend.ledger();
    let agrees = async || {
        let census = backend.census().await;
        assert_eq!(census, census_of(&all(ledger).await, census));
        census
    };
    let counts = |census: Census| (census.pending, census.in_doubt, census.oldest_doubt.map(|at| at.0));
    assert_eq!(counts(agrees().await), (Some(0), Some(0), None));
    put(ledger, &key("added"), added(), 1).await;
    put(ledger, &key("failed"), failed(), 2).await;
    for (crk, at) in [("young", 9), ("old", 3), ("middle", 6)] {
        put(ledger, &key(crk), in_doubt(), at).await;
    }
    assert_eq!(counts(agrees().await), (Some(0), Some(3), Some(4)));
    let resend = |crk| Claim {
        doubt: Doubt::Resend,
        ..a_claim(&key(crk), 20)
    };
    // A claim hides the doubt, and a release shows it again.
    ledger.claim(resend("old")).await.expect("claims");
    ledger.claim(a_claim(&key("failed"), 20)).await.expect("claims");
    assert_eq!(counts(agrees().await), (Some(2), Some(2), Some(7)));
    ledger.release(&key("old")).await.expect("releases");
    ledger
        .settle(&key("failed"), in_doubt(), Timestamp(2))
        .await
        .expect("settles");
    assert_eq!(counts(agrees().await), (Some(0), Some(4), Some(2)));
    // What changes nothing is not counted.
    ledger.release(&key("unknown")).await.expect("releases");
    ledger
        .settle(&key("added"), failed(), Timestamp(30))
        .await
        .expect("settles");
    ledger.claim(a_claim(&key("middle"), 30)).await.expect("answers");
    for (crk, resolution) in [("failed", Resolution::NotAdded), ("young", Resolution::Added)] {
        for _ in 0..2 {
            ledger
                .resolve(&key(crk), resolution, Timestamp(40))
                .await
                .expect("resolves");
        }
    }
    assert_eq!(counts(agrees().await), (Some(0), Some(2), Some(4)));
}

async fn the_census_begins_with_what_was_there<B: Backend>(backend: B) {
    if !B::DURABLE {
        return;
    }
    let ledger = backend.ledger();
    for (crk, settlement, at) in [("1", added(), 1), ("2", failed(), 2), ("3", in_doubt(), 3)] {
        put(ledger, &key(crk), settlement, at).await;
    }
    ledger.claim(a_claim(&key("4"), 5)).await.expect("claims");
    let backend = backend.crash().await;
    let ledger = backend.ledger();
    // Perhaps before all is counted.
    put(ledger, &key("5"), added(), 7).await;
    ledger
        .resolve(&key("3"), Resolution::Added, Timestamp(8))
        .await
        .expect("resolves");
    let census = backend.census().await;
    assert_eq!(census, census_of(&all(ledger).await, census));
    assert_eq!((census.in_doubt, census.oldest_doubt), (Some(1), Some(REOPENED_AT)));
}

async fn it_can_be_checked_and_closed_twice(backend: impl Backend) {
    backend.ledger().check().await.expect("works");
    backend.ledger().close().await;
    backend.ledger().close().await;
}
