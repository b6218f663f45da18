//! Three replicas under load while everything around them fails: killed, stopped for longer than their lease, cut off from the
//! database, and the database itself killed. `EVENTS` is how many (6 where it is not set), `SEED` repeats a printed seed's plan.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use surveylab_gateway::{proto::InvitationState, sandbox::Fault};
use tokio::{task::JoinSet, time::sleep};

use super::group::{Group, LEASE, number, options};
use crate::{
    history::{History, Recorder, Wish, received, rules},
    kills::{load::heard, summary},
    support::{
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

/// What the callers share.
#[derive(Clone)]
struct Load {
    /// Each with the book of its process.
    replicas: Arc<Mutex<Vec<(Client, Recorder)>>>,
    /// How many keys were ever asked for.
    keys: Arc<AtomicU64>,
    over: Arc<AtomicBool>,
}

impl Load {
    /// New keys, and those that somebody else uses at another replica right now.
    async fn call(self, mut random: StdRng) {
        while !self.over.load(Ordering::Relaxed) {
            let known = self.keys.load(Ordering::Relaxed);
            let number = if known > 0 && random.random_bool(0.5) {
                random.random_range(known.saturating_sub(20)..known)
            } else {
                self.keys.fetch_add(1, Ordering::Relaxed)
            };
            let request = request(&format!("k{number:07}"));
            let (client, recorder) = {
                let replicas = self.replicas.lock().unwrap();
                replicas[random.random_range(0..replicas.len())].clone()
            };
            let asked = recorder.ask(&request.crk, &request.email, Wish::Add);
            let answer = add_within(&client, request, LEASE * 2).await;
            let is_gone = answer.as_ref().is_err_and(|error| error.reason.is_empty());
            asked.hears(heard(answer));
            if is_gone {
                // A replica that is being started again.
                sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

/// What one process alone never does, and replicas may, without harm: an outcome that comes after its replica was taken for dead
/// ends the doubt that callers were told of meanwhile, and so does a claim that is given up unsent, which leaves its key unknown;
/// and a claim whose commit could not be told is in doubt if its replica dies before it could take it back.
fn is_of_leases(violation: &str) -> bool {
    let doubt_ended = violation.split_once(", then Operation").is_some_and(|(first, then)| {
        let became = ["heard: Duplicate", "heard: Added"]
            .iter()
            .any(|heard| then.contains(heard));
        violation.contains("was answered differently later") && first.contains("OUTCOME_IN_DOUBT") && became
    });
    let harmless = [
        "ends INVITATION_STATE_IN_DOUBT, but no request was ever made",
        // Had the last request an effect that nobody knows of, that would be another violation.
        ", but its caller was told that it is in doubt",
    ];
    doubt_ended || harmless.iter().any(|told| violation.ends_with(told))
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
    let mut group = Group::alone(sandbox, REPLICAS, options).await;
    let lateness = Lateness::measure();
    let recorder = Recorder::new(group.sandbox.started());
    let clients = group.clients().await.into_iter().enumerate();
    let load = Load {
        replicas: Arc::new(Mutex::new(
            clients.map(|(run, client)| (client, recorder.of_run(run))).collect(),
        )),
        keys: Arc::default(),
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
    // Of each process; those that run have no end yet.
    let mut ends = vec![Duration::MAX; REPLICAS];
    let mut runs: Vec<usize> = (0..REPLICAS).collect();
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
                ends[runs[index]] = recorder.now();
                runs[index] = ends.len();
                ends.push(Duration::MAX);
                let client = group.gateways[index].client().await;
                load.replicas.lock().unwrap()[index] = (client, recorder.of_run(runs[index]));
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
    let history = History {
        operations: recorder.operations(),
        requests: received(&group.sandbox, group.sandbox.started()),
        ends,
        states,
    };
    let (of_leases, wrong): (Vec<_>, Vec<_>) = rules::violations(&history)
        .into_iter()
        .partition(|violation| is_of_leases(violation));
    let mut arrivals: Vec<Duration> = group.sandbox.requests().iter().map(|request| request.at).collect();
    arrivals.sort();
    let excess = rules::excess(&arrivals, BURST, RATE);
    println!(
        "{counts:?}\n{}\n{excess:.1} over burst + rate·W, tasks {late:?} late at most\n{} by leases: {}",
        summary(&history),
        of_leases.len(),
        of_leases.join("\n")
    );
    assert!(wrong.is_empty(), "SEED={seed}: {}", wrong.join("\n"));
    assert!(
        excess <= 3.0 * RATE * late.as_secs_f64(),
        "{excess} too many, {late:?} late"
    );
}
