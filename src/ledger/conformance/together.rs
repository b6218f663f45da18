//! Steps taken at once: they may share batches, fail with one, be left by who asked, and crash. What is answered must be
//! what the model answers in some order of the steps that keeps each client's own (linearizability, Herlihy and Wing
//! 1990). It is a property of each key by itself, so the orders are searched key by key.

use std::collections::BTreeMap;

use futures_util::{FutureExt, future::join_all};
use proptest::{collection::vec, prelude::*, sample::select};

use super::{
    model::{Answer, Model, Step, run, steps},
    *,
};

/// One who asks for one step after another.
#[derive(Clone, Debug)]
struct Client {
    steps: Vec<Step>,
    /// It leaves while its last step is under way.
    leaves: bool,
}

#[derive(Clone, Debug)]
enum Round {
    Together(Vec<Client>),
    /// Together with a claim that fails, and may take others with it, behind so many clients.
    Spoiled(Vec<Client>, usize),
    Crash,
}

/// A step that was asked for, and its answer. None if nobody waited for it.
#[derive(Clone)]
struct Asked {
    step: Step,
    at: Timestamp,
    answer: Option<Answer>,
}

/// One way in which a key may stand, and steps that may be done yet.
#[derive(Clone, PartialEq)]
struct Possible {
    model: Model,
    outstanding: Vec<(Step, Timestamp)>,
}

fn rounds() -> impl Strategy<Value = Round> {
    let keys = select(vec![Key::new("a", "1"), Key::new("a", "2"), Key::new("b", "1")]);
    let client = (vec(steps(keys), 1..3), prop::bool::weighted(0.1));
    let client = client.prop_map(|(steps, leaves)| Client { steps, leaves }).boxed();
    let clients = vec(client, 1..7);
    prop_oneof![
        8 => clients.clone().prop_map(Round::Together),
        2 => (clients, 0..7_usize).prop_map(|(clients, behind)| Round::Spoiled(clients, behind)),
        1 => Just(Round::Crash),
    ]
}

pub(super) fn is_linearizable<B: Backend>() {
    run(24, &vec(rounds(), 1..20), async |rounds| {
        let backend = B::start().await;
        let can_fail = backend.spoil();
        compare(backend, rounds, can_fail).await;
    });
}

async fn compare<B: Backend>(mut backend: B, rounds: Vec<Round>, can_fail: bool) {
    let mut keys: BTreeMap<Key, Vec<Possible>> = BTreeMap::new();
    for (round, number) in rounds.into_iter().zip(1..) {
        let (clients, spoiled) = match round {
            Round::Crash if B::DURABLE => {
                backend = backend.crash().await;
                for possible in keys.values_mut() {
                    *possible = crashed(possible);
                }
                (Vec::new(), None)
            }
            Round::Crash => continue,
            Round::Together(clients) => (clients, None),
            Round::Spoiled(clients, behind) => (clients, Some(behind).filter(|_| can_fail)),
        };
        let ledger = backend.ledger();
        for lines in by_key(take(ledger, clients, spoiled, number).await) {
            follow(&mut keys, &lines);
        }
        // What is left of it for all to see.
        let at = Timestamp(number * 1_000 + 999);
        let listed = all(ledger).await;
        assert!(
            listed.iter().all(|record| record.key.crk() != SPOILED),
            "a failed claim is there"
        );
        for key in keys.keys().cloned().collect::<Vec<_>>() {
            let found = listed.iter().find(|record| record.key == key).cloned();
            let answer = Some(Answer::Record(found));
            let step = Step::LookUp(key);
            follow(&mut keys, &[vec![Asked { step, at, answer }]]);
        }
    }
}

/// Has the clients do their steps at once; tells those that did not fail.
async fn take(ledger: &impl Ledger, clients: Vec<Client>, spoiled: Option<usize>, round: i64) -> Vec<Vec<Asked>> {
    let clients = clients.into_iter().enumerate().map(async |(number, client)| {
        if spoiled == Some(number) {
            let refused = ledger.claim(a_claim(&key(SPOILED), 1)).await;
            assert!(matches!(refused, Err(Error::Unavailable(_))), "{refused:?}");
        }
        let mut asked = Vec::new();
        let last = client.steps.len() - 1;
        for (nth, step) in client.steps.into_iter().enumerate() {
            let at = Timestamp(round * 1_000 + i64::try_from(number * 10 + nth).expect("few"));
            let answer = step.ask(ledger, at);
            let answer = match client.leaves && nth == last {
                true => answer.now_or_never(),
                false => Some(answer.await),
            };
            let answer = match answer {
                Some(Err(error)) => {
                    assert!(spoiled.is_some(), "{error}");
                    continue;
                }
                Some(Ok(answer)) => Some(answer),
                None => None,
            };
            asked.push(Asked { step, at, answer });
        }
        asked
    });
    join_all(clients).await
}

/// Each key's part of what the clients did.
fn by_key(clients: Vec<Vec<Asked>>) -> Vec<Vec<Vec<Asked>>> {
    let mut keys: BTreeMap<Key, Vec<Vec<Asked>>> = BTreeMap::new();
    for asked in clients {
        let mut own: BTreeMap<Key, Vec<Asked>> = BTreeMap::new();
        for asked in asked {
            own.entry(asked.step.key().clone()).or_default().push(asked);
        }
        for (key, line) in own {
            keys.entry(key).or_default().push(line);
        }
    }
    keys.into_values().collect()
}

/// Goes on with one key from every way in which it may stand.
fn follow(keys: &mut BTreeMap<Key, Vec<Possible>>, lines: &[Vec<Asked>]) {
    let key = lines[0][0].step.key().clone();
    let fresh = Possible {
        model: Model::default(),
        outstanding: Vec::new(),
    };
    let before = keys.remove(&key).unwrap_or_else(|| vec![fresh]);
    let after = reachable(&before, lines);
    assert!(
        !after.is_empty(),
        "no order of these steps gives these answers:\n{}\nbefore them it stood so:\n{}",
        lines.iter().map(|line| told(line)).collect::<Vec<_>>().join("\n"),
        before
            .iter()
            .map(|possible| format!("{:?}", possible.model))
            .collect::<Vec<_>>()
            .join("\n"),
    );
    keys.insert(key, after);
}

fn told(line: &[Asked]) -> String {
    let steps = line
        .iter()
        .map(|asked| format!("{:?} -> {:?}", asked.step, asked.answer));
    steps.collect::<Vec<_>>().join(", then ")
}

/// All ways in which a key may stand after all steps of all lines.
fn reachable(before: &[Possible], lines: &[Vec<Asked>]) -> Vec<Possible> {
    let start = vec![0; lines.len()];
    let mut seen: Vec<(Possible, Vec<usize>)> = before
        .iter()
        .map(|possible| (possible.clone(), start.clone()))
        .collect();
    let mut next = 0;
    while let Some((possible, done)) = seen.get(next).cloned() {
        next += 1;
        let mut moves = Vec::new();
        for (line, steps) in lines.iter().enumerate() {
            let Some(asked) = steps.get(done[line]) else { continue };
            let mut possible = possible.clone();
            match &asked.answer {
                None => possible.outstanding.push((asked.step.clone(), asked.at)),
                Some(answer) if possible.model.apply(&asked.step, asked.at) == *answer => {}
                Some(_) => continue,
            }
            let mut done = done.clone();
            done[line] += 1;
            moves.push((possible, done));
        }
        for late in 0..possible.outstanding.len() {
            let mut possible = possible.clone();
            let (step, at) = possible.outstanding.remove(late);
            possible.model.apply(&step, at);
            moves.push((possible, done.clone()));
        }
        for state in moves {
            if !seen.contains(&state) {
                seen.push(state);
            }
        }
    }
    let is_done = |done: &[usize]| lines.iter().zip(done).all(|(line, done)| line.len() == *done);
    let ends = seen.into_iter().filter(|(_, done)| is_done(done));
    ends.map(|(possible, _)| possible).collect()
}

/// What nobody waits for is done before the crash, or never.
fn crashed(before: &[Possible]) -> Vec<Possible> {
    let mut after = Vec::new();
    for mut possible in reachable(before, &[]) {
        possible.model.crash();
        possible.outstanding.clear();
        if !after.contains(&possible) {
            after.push(possible);
        }
    }
    after
}
