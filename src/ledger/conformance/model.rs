//! Sequences of steps, compared with a model of the contract.

use std::collections::BTreeMap;

use proptest::{
    collection::vec,
    option,
    prelude::*,
    sample::select,
    test_runner::{RngSeed, TestRunner},
};

use super::{listing::matching, *};

/// One step of a sequence to compare with the model.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Step {
    LookUp(Key),
    Claim(Key, u8, Doubt),
    Settle(Key, Settlement),
    Release(Key),
    Resolve(Key, Resolution),
}

impl Step {
    pub(super) fn key(&self) -> &Key {
        match self {
            Self::LookUp(key)
            | Self::Claim(key, ..)
            | Self::Settle(key, _)
            | Self::Release(key)
            | Self::Resolve(key, _) => key,
        }
    }

    /// What a ledger answers to it.
    pub(super) async fn ask(&self, ledger: &impl Ledger, at: Timestamp) -> Result<Answer, Error> {
        Ok(match self.clone() {
            Self::LookUp(key) => Answer::Record(ledger.look_up(&key).await?),
            Self::Claim(key, data, doubt) => Answer::Claimed(ledger.claim(claim(key, data, doubt, at)).await?),
            Self::Settle(key, settlement) => {
                ledger.settle(&key, settlement, at).await?;
                Answer::Done
            }
            Self::Release(key) => {
                ledger.release(&key).await?;
                Answer::Done
            }
            Self::Resolve(key, resolution) => Answer::Resolved(ledger.resolve(&key, resolution, at).await?),
        })
    }
}

fn claim(key: Key, data: u8, doubt: Doubt, at: Timestamp) -> Claim {
    let fingerprint = fingerprint(data);
    Claim {
        key,
        fingerprint,
        doubt,
        at,
    }
}

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Answer {
    Record(Option<Record>),
    Claimed(Claimed),
    Done,
    Resolved(Resolved),
}

/// The contract, as simple as it can be said.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Model {
    records: BTreeMap<Key, Record>,
    /// What a claim hides.
    before: BTreeMap<Key, Option<Record>>,
}

impl Model {
    pub(super) fn apply(&mut self, step: &Step, at: Timestamp) -> Answer {
        match step.clone() {
            Step::LookUp(key) => Answer::Record(self.records.get(&key).cloned()),
            Step::Claim(key, data, doubt) => Answer::Claimed(self.claim(claim(key, data, doubt, at))),
            Step::Settle(key, settlement) => {
                self.settle(&key, settlement, at);
                Answer::Done
            }
            Step::Release(key) => {
                self.release(&key);
                Answer::Done
            }
            Step::Resolve(key, resolution) => Answer::Resolved(self.resolve(&key, resolution, at)),
        }
    }

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
                record.created_at = before
                    .as_ref()
                    .map_or(claim.at, |before| before.created_at.min(claim.at));
                let attempts = record.attempts;
                let was_in_doubt = before.as_ref().is_some_and(|before| before.state == State::InDoubt);
                self.records.insert(claim.key.clone(), record);
                self.before.insert(claim.key, before);
                Claimed::Yes {
                    attempts,
                    was_in_doubt,
                    fence: FENCE,
                }
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
        record.created_at = record.created_at.min(at);
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
                record.created_at = record.created_at.min(at);
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

    pub(super) fn crash(&mut self) {
        let error = LastError {
            reason: Reason::OutcomeInDoubt,
            http_status: None,
        };
        for key in self.before.keys().cloned().collect::<Vec<_>>() {
            self.settle(&key, Settlement::InDoubt { error }, REOPENED_AT);
        }
    }
}

fn keys() -> impl Strategy<Value = Key> + Clone {
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

/// Steps for any of the keys.
pub(super) fn steps(keys: impl Strategy<Value = Key> + Clone) -> impl Strategy<Value = Step> {
    let doubts = select(vec![Doubt::Hold, Doubt::Resend]);
    let resolutions = select(vec![Resolution::Added, Resolution::NotAdded]);
    prop_oneof![
        2 => keys.clone().prop_map(Step::LookUp),
        8 => (keys.clone(), 0..2_u8, doubts).prop_map(|(key, data, doubt)| Step::Claim(key, data, doubt)),
        6 => (keys.clone(), settlements()).prop_map(|(key, settlement)| Step::Settle(key, settlement)),
        2 => keys.clone().prop_map(Step::Release),
        2 => (keys, resolutions).prop_map(|(key, resolution)| Step::Resolve(key, resolution)),
    ]
}

#[derive(Clone, Debug)]
enum Turn {
    Step(Step),
    List(Query),
    Crash,
}

fn turns() -> impl Strategy<Value = Turn> {
    prop_oneof![
        20 => steps(keys()).prop_map(Turn::Step),
        3 => queries().prop_map(Turn::List),
        1 => Just(Turn::Crash),
    ]
}

/// Runs a test against inputs at random: `PROPTEST_CASES` of them, or else `cases`. `SEED` repeats a run.
pub(super) fn run<S: Strategy>(cases: u32, inputs: &S, test: impl AsyncFn(S::Value)) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let given = std::env::var("SEED").ok();
    let seed = given.map_or_else(rand::random, |seed| seed.parse().expect("a number"));
    let given = std::env::var("PROPTEST_CASES").ok();
    let cases = given.map_or(cases, |cases| cases.parse().expect("a number"));
    println!("SEED={seed} PROPTEST_CASES={cases}");
    let config = ProptestConfig {
        cases,
        rng_seed: RngSeed::Fixed(seed),
        failure_persistence: None,
        ..ProptestConfig::default()
    };
    let outcome = TestRunner::new(config).run(inputs, |input| {
        runtime.block_on(test(input));
        Ok(())
    });
    if let Err(failure) = outcome {
        panic!("{failure}");
    }
}

pub(super) fn behaves_like_the_model<B: Backend>() {
    let sequences = (vec(turns(), 1..120), vec(1..7_usize, 1..5));
    run(32, &sequences, async |(turns, pages)| {
        compare(B::start().await, turns, &pages).await;
    });
}

async fn compare<B: Backend>(mut backend: B, turns: Vec<Turn>, pages: &[usize]) {
    let mut model = Model::default();
    for (turn, at) in turns.into_iter().zip(1..) {
        let at = Timestamp(at);
        let ledger = backend.ledger();
        match turn {
            Turn::Step(step) => {
                let answer = step.ask(ledger, at).await.expect("answers");
                assert_eq!(answer, model.apply(&step, at));
                if at.0 % 5 == 0 {
                    let census = backend.census().await;
                    assert_eq!(census, census_of(model.records.values(), census));
                }
            }
            Turn::List(query) => {
                let listed = ledger.list(query.clone()).await.expect("answers");
                assert_eq!(listed, matching(model.records.values(), &query));
            }
            Turn::Crash if B::DURABLE => {
                backend = backend.crash().await;
                model.crash();
            }
            Turn::Crash => {}
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
