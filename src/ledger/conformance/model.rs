//! Sequences of steps, compared with a model of the contract.

use std::collections::BTreeMap;

use proptest::{collection::vec, option, prelude::*, sample::select, test_runner::TestRunner};

use super::{listing::matching, *};

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

pub(super) fn behaves_like_the_model<B: Backend>() {
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
