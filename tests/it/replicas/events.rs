//! Three replicas under load while everything around them fails: killed, stopped for longer than their lease, cut off from the
//! database, and the database itself killed. `EVENTS` is how many (6 where it is not set), `SEED` repeats a printed seed's plan.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use surveylab_gateway::{
    proto::{InvitationState, Outcome},
    sandbox::Fault,
};
use tokio::{task::JoinSet, time::sleep};

use super::group::{Group, LEASE, number, options};
use crate::{
    history::rules,
    support::{
        Error,
        call::{Client, request},
        gateway::surveylab_with,
        lateness::Lateness,
        watch::{add_within, list, soon, until},
    },
};

const REPLICAS: usize = 3;
const CLIENTS: usize = 12;
const RATE: f64 = 300.0;
const BURST: f64 = 60.0;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    ReplicaKilled,
    ReplicaStopped,
    ConnectionCut,
    DatabaseKilled,
}

impl Event {
    fn choose(random: &mut StdRng) -> Self {
        match random.random_range(0..10) {
            0..4 => Self::ReplicaKilled,
            4..5 => Self::ReplicaStopped,
            5..8 => Self::ConnectionCut,
            _ => Self::DatabaseKilled,
        }
    }
}

/// What callers heard, by key.
type Heard = Arc<Mutex<BTreeMap<String, Vec<Result<Outcome, Error>>>>>;

/// What the callers share.
#[derive(Clone)]
struct Load {
    clients: Arc<Mutex<Vec<Client>>>,
    heard: Heard,
    over: Arc<AtomicBool>,
}

impl Load {
    /// New keys, and those that somebody else uses at another replica right now.
    async fn call(self, mut random: StdRng) {
        while !self.over.load(Ordering::Relaxed) {
            let crk = {
                let mut heard = self.heard.lock().unwrap();
                let known = heard.len();
                let number = if known > 0 && random.random_bool(0.5) {
                    random.random_range(known.saturating_sub(20)..known)
                } else {
                    known
                };
                let crk = format!("k{number:07}");
                heard.entry(crk.clone()).or_default();
                crk
            };
            let client = {
                let clients = self.clients.lock().unwrap();
                clients[random.random_range(0..clients.len())].clone()
            };
            let answer = add_within(&client, request(&crk), LEASE * 2).await;
            let is_gone = answer.as_ref().is_err_and(|error| error.reason.is_empty());
            let answer = answer.map(|response| response.outcome());
            self.heard.lock().unwrap().entry(crk).or_default().push(answer);
            if is_gone {
                // A replica that is being started again.
                sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_happens_no_key_is_sent_twice_and_no_result_is_lost() {
    let events = number("EVENTS", 6);
    let seed = number("SEED", rand::random());
    println!("SEED={seed} EVENTS={events}");
    let mut random = StdRng::seed_from_u64(seed);
    let sandbox = surveylab_with(|config| {
        config.latency = Duration::from_millis(3);
        config.log_requests = usize::MAX;
    })
    .await;
    sandbox.add_fault(Fault::half_body().with_probability(0.01, seed));
    sandbox.add_fault(Fault::status(503).with_probability(0.02, seed));
    sandbox.add_fault(Fault::status(400).with_probability(0.02, seed));
    let options = options()
        .flag("--rate", format!("{RATE}/s"))
        .flag("--burst", BURST)
        .flag("--max-in-flight", 16)
        .flag("--upstream-timeout", "2s");
    let mut group = Group::before(sandbox, REPLICAS, options).await;
    let lateness = Lateness::measure();
    let load = Load {
        clients: Arc::new(Mutex::new(group.clients().await)),
        heard: Heard::default(),
        over: Arc::default(),
    };
    let mut callers = JoinSet::new();
    for caller in 0..CLIENTS {
        callers.spawn(
            load.clone()
                .call(StdRng::seed_from_u64(seed ^ ((caller as u64 + 1) << 32))),
        );
    }

    let mut counts: BTreeMap<Event, usize> = BTreeMap::new();
    for _ in 0..events {
        let event = Event::choose(&mut random);
        let index = random.random_range(0..REPLICAS);
        let effects = group.sandbox.report().effects;
        group
            .sandbox
            .wait_for_effects(effects + random.random_range(20..150))
            .await;
        println!("{event:?}");
        *counts.entry(event).or_default() += 1;
        match event {
            Event::ReplicaKilled => {
                group.kill_and_restart(index).await;
                load.clients.lock().unwrap()[index] = group.gateways[index].client().await;
            }
            Event::ReplicaStopped => {
                group.gateways[index].signal("STOP");
                sleep(LEASE + Duration::from_secs(2)).await;
                group.gateways[index].signal("CONT");
            }
            Event::ConnectionCut => group.relays[index].cut(),
            Event::DatabaseKilled => {
                group.server.kill();
                group.server.start_again();
            }
        }
    }
    let effects = group.sandbox.report().effects;
    group.sandbox.wait_for_effects(effects + 50).await;
    load.over.store(true, Ordering::Relaxed);
    soon(callers.join_all()).await;
    let late = lateness.worst();

    // What the dead had on the wire is in doubt, and the living have recorded all they know.
    let client = group.gateways[0].client().await;
    until("no claim is left", async || {
        list(&client, InvitationState::Pending).await.is_empty()
    })
    .await;
    let mut states = BTreeMap::new();
    for state in [
        InvitationState::Added,
        InvitationState::Failed,
        InvitationState::InDoubt,
    ] {
        states.extend(list(&client, state).await.into_iter().map(|crk| (crk, state)));
    }
    let mut effects: BTreeMap<String, u32> = BTreeMap::new();
    for key in group.sandbox.keys() {
        effects.insert(key.crk.to_string(), key.effects);
    }
    let heard = load.heard.lock().unwrap();
    let mut wrong = Vec::new();
    for (crk, effects) in &effects {
        if *effects > 1 {
            wrong.push(format!("{crk} was sent {effects} times"));
        }
    }
    for (crk, answers) in heard.iter() {
        let effects = effects.get(crk).copied().unwrap_or_default();
        let state = states.get(crk);
        let added = answers
            .iter()
            .filter(|answer| matches!(answer, Ok(Outcome::Added)))
            .count();
        if answers.iter().any(Result::is_ok) && (state != Some(&InvitationState::Added) || effects != 1) {
            wrong.push(format!("{crk} was told as added: {state:?}, {effects} effects"));
        }
        if added > 1 {
            wrong.push(format!("{crk} was told as added by {added} calls"));
        }
        match state {
            Some(InvitationState::Added) if effects != 1 => wrong.push(format!("{crk} is added, {effects} effects")),
            Some(InvitationState::Failed) if effects != 0 => wrong.push(format!("{crk} has failed, {effects} effects")),
            None if effects != 0 => wrong.push(format!("{crk} is unknown, {effects} effects")),
            _ => {}
        }
    }
    let mut arrivals: Vec<Duration> = group.sandbox.requests().iter().map(|request| request.at).collect();
    arrivals.sort();
    let excess = rules::excess(&arrivals, BURST, RATE);
    let in_doubt = states
        .values()
        .filter(|state| **state == InvitationState::InDoubt)
        .count();
    println!(
        "{counts:?}: {} keys, {} requests, {in_doubt} in doubt; {excess:.1} over burst + rate·W, tasks {late:?} late at most",
        heard.len(),
        arrivals.len()
    );
    assert!(wrong.is_empty(), "SEED={seed}: {}", wrong.join("\n"));
    assert!(
        excess <= 3.0 * RATE * late.as_secs_f64(),
        "{excess} too many, {late:?} late"
    );
}
