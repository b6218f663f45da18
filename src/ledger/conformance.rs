//! The contract of [`Ledger`] as tests, run against every backend.

use std::collections::BTreeMap;

use proptest::{collection::vec, option, prelude::*, sample::select, test_runner::TestRunner};
use tempfile::TempDir;

use super::{memory::Memory, sqlite::Sqlite, *};
use crate::clock::Clock;

/// When a ledger under test is opened again after a crash.
pub(super) const REOPENED_AT: Timestamp = Timestamp(1_000_000);

/// A backend under test, with a ledger that is empty at first.
trait Backend: Sized {
    type Ledger: Ledger;
    /// It remembers anything after a crash.
    const DURABLE: bool;

    fn start() -> Self;
    fn ledger(&self) -> &Self::Ledger;
    /// The process dies, without closing the ledger, and another one opens it at `REOPENED_AT`.
    fn crash(self) -> Self;
}

struct InMemory(Memory);

impl Backend for InMemory {
    type Ledger = Memory;
    const DURABLE: bool = false;

    fn start() -> Self {
        Self(Memory::new())
    }

    fn ledger(&self) -> &Memory {
        &self.0
    }

    fn crash(self) -> Self {
        self
    }
}

struct InSqlite {
    ledger: Sqlite,
    directory: TempDir,
}

impl InSqlite {
    fn open(directory: TempDir) -> Self {
        let clock = Clock::with_wall(|| REOPENED_AT.into());
        let ledger = Sqlite::open(&directory.path().join("ledger.db"), &clock).expect("opens");
        Self { ledger, directory }
    }
}

impl Backend for InSqlite {
    type Ledger = Sqlite;
    const DURABLE: bool = true;

    fn start() -> Self {
        Self::open(TempDir::new().expect("a directory"))
    }

    fn ledger(&self) -> &Sqlite {
        &self.ledger
    }

    fn crash(self) -> Self {
        drop(self.ledger);
        Self::open(self.directory)
    }
}

/// Runs each rule against each backend.
macro_rules! suite {
    ($($rule:ident)*) => {
        suite!(@memory InMemory $($rule)*);
        suite!(@sqlite InSqlite $($rule)*);
    };
    (@$module:ident $backend:ident $($rule:ident)*) => {
        mod $module {
            $(
                #[tokio::test]
                async fn $rule() {
                    super::$rule(<super::$backend as super::Backend>::start()).await;
                }
            )*

            #[test]
            fn behaves_like_the_model() {
                super::behaves_like_the_model::<super::$backend>();
            }
        }
    };
}

suite! {
    an_unknown_key_is_not_found
    a_claimed_key_is_pending_and_taken
    the_same_crk_in_another_collector_is_another_key
    of_many_claims_at_once_one_wins
    an_added_key_stays_added
    a_failed_key_is_free_also_with_other_data
    a_key_in_doubt_is_held
    a_key_in_doubt_is_claimed_to_resend_the_same_data_only
    a_release_restores_what_was
    what_is_not_pending_is_neither_settled_nor_released
    a_doubt_is_resolved_once
    a_listing_is_in_bytewise_order_of_keys
    a_listing_shows_a_claim_instead_of_what_was
    a_listing_is_filtered
    a_page_of_nothing_is_empty
    paging_survives_inserts
    a_crash_puts_claims_in_doubt_and_nothing_else
    every_reason_and_status_is_kept
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

pub(super) const FIRST: Claimed = Claimed::Yes {
    attempts: 1,
    was_in_doubt: false,
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

async fn a_listing_is_in_bytewise_order_of_keys(backend: impl Backend) {
    let ledger = backend.ledger();
    // In UTF-16, or by a locale, or without case, each of these would stand elsewhere.
    let crks = [
        "10",
        "2",
        "Z",
        "a",
        "aa",
        "z",
        "ä",
        "ł",
        "\u{e000}",
        "\u{ffff}",
        "\u{10348}",
    ];
    for crk in crks.iter().rev() {
        put(ledger, &Key::new("é", *crk), added(), 1).await;
        ledger.claim(a_claim(&Key::new("Z", *crk), 1)).await.expect("claims");
    }
    let keys: Vec<_> = all(ledger).await.into_iter().map(|record| record.key).collect();
    let expected: Vec<_> = ["Z", "é"]
        .iter()
        .flat_map(|id| crks.map(|crk| Key::new(*id, crk)))
        .collect();
    assert_eq!(keys, expected);
}

async fn a_listing_shows_a_claim_instead_of_what_was(backend: impl Backend) {
    let ledger = backend.ledger();
    put(ledger, &key("1"), failed(), 1).await;
    ledger.claim(a_claim(&key("1"), 3)).await.expect("claims");
    let listed = all(ledger).await;
    assert_eq!(listed.len(), 1);
    assert_eq!((listed[0].state, listed[0].attempts), (State::Pending, 2));
    let query = Query {
        state: Some(State::Failed),
        limit: 9,
        ..Query::default()
    };
    assert_eq!(ledger.list(query).await.expect("lists"), []);
}

async fn a_listing_is_filtered(backend: impl Backend) {
    let ledger = backend.ledger();
    for id in ["a", "b", "c"] {
        put(ledger, &Key::new(id, "added"), added(), 1).await;
        put(ledger, &Key::new(id, "doubt"), in_doubt(), 1).await;
        put(ledger, &Key::new(id, "failed"), failed(), 1).await;
        ledger
            .claim(a_claim(&Key::new(id, "pending"), 1))
            .await
            .expect("claims");
    }
    let everything = all(ledger).await;
    let collectors = [None, Some("a"), Some("b"), Some("c"), Some("d")];
    let states = [
        None,
        Some(State::Pending),
        Some(State::Added),
        Some(State::Failed),
        Some(State::InDoubt),
    ];
    let afters = ["", "a/doubt", "b/", "b/doubt", "b/pending", "bb/x", "c/pending"];
    for (id, state, after) in collectors
        .iter()
        .flat_map(|id| states.map(|state| afters.map(|after| (*id, state, after))))
        .flatten()
    {
        let after = after.split_once('/').map(|(id, crk)| Key::new(id, crk));
        let query = Query {
            collector_id: id.map(Into::into),
            state,
            after,
            limit: 5,
        };
        assert_eq!(
            ledger.list(query.clone()).await.expect("lists"),
            matching(&everything, &query),
            "{query:?}"
        );
    }
}

fn matching<'a>(records: impl IntoIterator<Item = &'a Record>, query: &Query) -> Vec<Record> {
    records
        .into_iter()
        .filter(|record| {
            query
                .collector_id
                .as_deref()
                .is_none_or(|id| id == record.key.collector_id())
        })
        .filter(|record| query.state.is_none_or(|state| state == record.state))
        .filter(|record| query.after.as_ref().is_none_or(|after| record.key > *after))
        .take(query.limit)
        .cloned()
        .collect()
}

async fn a_page_of_nothing_is_empty(backend: impl Backend) {
    put(backend.ledger(), &key("1"), added(), 1).await;
    assert_eq!(backend.ledger().list(Query::default()).await.expect("lists"), []);
}

async fn paging_survives_inserts(backend: impl Backend) {
    let ledger = backend.ledger();
    let even: Vec<_> = (0..40).step_by(2).map(|n| key(&format!("{n:02}"))).collect();
    for key in &even {
        put(ledger, key, added(), 1).await;
    }
    let mut seen = Vec::new();
    let mut query = Query {
        limit: 3,
        ..Query::default()
    };
    for n in (1..).step_by(4) {
        let page = ledger.list(query.clone()).await.expect("lists");
        let Some(last) = page.last() else { break };
        query.after = Some(last.key.clone());
        seen.extend(page.into_iter().map(|record| record.key));
        put(ledger, &key(&format!("{n:02}")), added(), 2).await;
        ledger
            .claim(a_claim(&key(&format!("{:02}", n + 2)), 2))
            .await
            .expect("claims");
    }
    assert!(seen.is_sorted_by(|one, other| one < other), "{seen:?}");
    assert!(even.iter().all(|key| seen.contains(key)), "{seen:?}");
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
    ledger.claim(a_claim(&key("released"), 8)).await.expect("claims");
    ledger.release(&key("released")).await.expect("releases");

    let backend = backend.crash();
    let ledger = backend.ledger();
    for (crk, attempts, created_at) in [("again", 2, 6), ("new", 1, 8)] {
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

async fn it_can_be_checked_and_closed_twice(backend: impl Backend) {
    backend.ledger().check().await.expect("works");
    backend.ledger().close().await;
    backend.ledger().close().await;
}

/// One step of a sequence to compare with the model.
#[derive(Clone, Debug)]
enum Step {
    LookUp(Key),
    Claim(Key, u8, Doubt),
    Settle(Key, Settlement),
    Release(Key),
    Resolve(Key, Resolution),
    List(Query),
    Crash,
}

/// The contract, as simple as it can be said.
#[derive(Default)]
struct Model {
    records: BTreeMap<Key, Record>,
    /// What a claim hides.
    before: BTreeMap<Key, Option<Record>>,
}

impl Model {
    fn claim(&mut self, claim: Claim) -> Claimed {
        let before = self.records.get(&claim.key).cloned();
        let free = before.as_ref().is_none_or(|record| {
            let resent = claim.doubt == Doubt::Resend && claim.fingerprint == record.fingerprint;
            record.state == State::Failed || (record.state == State::InDoubt && resent)
        });
        match before {
            Some(record) if !free => Claimed::No(record),
            before => {
                let mut record = pending_record(&claim.key, claim.at.0);
                record.fingerprint = claim.fingerprint;
                record.attempts += before.as_ref().map_or(0, |before| before.attempts);
                record.created_at = before.as_ref().map_or(claim.at, |before| before.created_at);
                let attempts = record.attempts;
                let was_in_doubt = before.as_ref().is_some_and(|before| before.state == State::InDoubt);
                self.records.insert(claim.key.clone(), record);
                self.before.insert(claim.key, before);
                Claimed::Yes { attempts, was_in_doubt }
            }
        }
    }

    fn settle(&mut self, key: &Key, settlement: Settlement, at: Timestamp) {
        let Some(record) = self
            .records
            .get_mut(key)
            .filter(|record| record.state == State::Pending)
        else {
            return;
        };
        self.before.remove(key);
        record.updated_at = at;
        match settlement {
            Settlement::Added { notification } => {
                record.state = State::Added;
                record.added_at = Some(at);
                record.notification = Some(notification);
            }
            Settlement::Failed { error, notification } => {
                record.state = State::Failed;
                record.last_error = Some(error);
                record.notification = notification;
            }
            Settlement::InDoubt { error } => {
                record.state = State::InDoubt;
                record.last_error = Some(error);
            }
        }
    }

    fn release(&mut self, key: &Key) {
        match self.before.remove(key) {
            Some(Some(before)) => drop(self.records.insert(key.clone(), before)),
            Some(None) => drop(self.records.remove(key)),
            None => {}
        }
    }

    fn resolve(&mut self, key: &Key, resolution: Resolution, at: Timestamp) -> Resolved {
        match self.records.get_mut(key) {
            None => Resolved::NotFound,
            Some(record) if record.state != State::InDoubt => Resolved::NotInDoubt(record.clone()),
            Some(record) => {
                record.updated_at = at;
                if resolution == Resolution::Added {
                    record.state = State::Added;
                    record.added_at = Some(at);
                    record.last_error = None;
                } else {
                    record.state = State::Failed;
                }
                Resolved::Done(record.clone())
            }
        }
    }

    fn crash(&mut self) {
        let error = LastError {
            reason: Reason::OutcomeInDoubt,
            http_status: None,
        };
        for key in self.before.keys().cloned().collect::<Vec<_>>() {
            self.settle(&key, Settlement::InDoubt { error }, REOPENED_AT);
        }
    }
}

fn keys() -> impl Strategy<Value = Key> {
    let crks = ["1", "10", "Z", "a", "ä", "\u{ffff}", "\u{10348}"];
    (select(vec!["A", "a", "ż"]), select(crks.to_vec())).prop_map(|(id, crk)| Key::new(id, crk))
}

fn settlements() -> impl Strategy<Value = Settlement> {
    let errors = (select(Reason::all().collect::<Vec<_>>()), option::of(any::<u16>()))
        .prop_map(|(reason, http_status)| LastError { reason, http_status });
    prop_oneof![
        1 => "\\PC{0,5}".prop_map(|notification| Settlement::Added { notification }),
        3 => (errors.clone(), option::of("\\PC{0,5}"))
            .prop_map(|(error, notification)| Settlement::Failed { error, notification }),
        3 => errors.prop_map(|error| Settlement::InDoubt { error }),
    ]
}

fn queries() -> impl Strategy<Value = Query> {
    let states = vec![State::Pending, State::Added, State::Failed, State::InDoubt];
    (
        option::of(select(vec!["A", "a", "ż"])),
        option::of(select(states)),
        option::of(keys()),
        0..6_usize,
    )
        .prop_map(|(id, state, after, limit)| Query {
            collector_id: id.map(Into::into),
            state,
            after,
            limit,
        })
}

fn steps() -> impl Strategy<Value = Step> {
    let doubts = select(vec![Doubt::Hold, Doubt::Resend]);
    let resolutions = select(vec![Resolution::Added, Resolution::NotAdded]);
    prop_oneof![
        2 => keys().prop_map(Step::LookUp),
        8 => (keys(), 0..2_u8, doubts).prop_map(|(key, data, doubt)| Step::Claim(key, data, doubt)),
        6 => (keys(), settlements()).prop_map(|(key, settlement)| Step::Settle(key, settlement)),
        2 => keys().prop_map(Step::Release),
        2 => (keys(), resolutions).prop_map(|(key, resolution)| Step::Resolve(key, resolution)),
        3 => queries().prop_map(Step::List),
        1 => Just(Step::Crash),
    ]
}

fn behaves_like_the_model<B: Backend>() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .expect("a runtime");
    let config = ProptestConfig {
        cases: 32,
        failure_persistence: None,
        ..ProptestConfig::default()
    };
    let sequences = (vec(steps(), 1..120), vec(1..7_usize, 1..5));
    let outcome = TestRunner::new(config).run(&sequences, |(steps, pages)| {
        runtime.block_on(compare(B::start(), steps, &pages));
        Ok(())
    });
    if let Err(failure) = outcome {
        panic!("{failure}");
    }
}

async fn compare<B: Backend>(mut backend: B, steps: Vec<Step>, pages: &[usize]) {
    let mut model = Model::default();
    for (step, at) in steps.into_iter().zip(1..) {
        let at = Timestamp(at);
        let ledger = backend.ledger();
        match step {
            Step::LookUp(key) => assert_eq!(shown(ledger, &key).await.as_ref(), model.records.get(&key)),
            Step::Claim(key, data, doubt) => {
                let fingerprint = fingerprint(data);
                let claim = Claim {
                    key,
                    fingerprint,
                    doubt,
                    at,
                };
                assert_eq!(ledger.claim(claim.clone()).await.expect("answers"), model.claim(claim));
            }
            Step::Settle(key, settlement) => {
                ledger.settle(&key, settlement.clone(), at).await.expect("answers");
                model.settle(&key, settlement, at);
            }
            Step::Release(key) => {
                ledger.release(&key).await.expect("answers");
                model.release(&key);
            }
            Step::Resolve(key, resolution) => {
                let resolved = ledger.resolve(&key, resolution, at).await.expect("answers");
                assert_eq!(resolved, model.resolve(&key, resolution, at));
            }
            Step::List(query) => {
                let listed = ledger.list(query.clone()).await.expect("answers");
                assert_eq!(listed, matching(model.records.values(), &query));
            }
            Step::Crash if B::DURABLE => {
                backend = backend.crash();
                model.crash();
            }
            Step::Crash => {}
        }
    }

    let mut listed: Vec<Record> = Vec::new();
    for limit in pages.iter().cycle() {
        let query = Query {
            after: listed.last().map(|record| record.key.clone()),
            limit: *limit,
            ..Query::default()
        };
        let page = backend.ledger().list(query).await.expect("answers");
        if page.is_empty() {
            break;
        }
        listed.extend(page);
    }
    assert_eq!(listed, model.records.into_values().collect::<Vec<_>>());
}
