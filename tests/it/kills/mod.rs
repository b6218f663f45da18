//! The gateway killed again and again under load, at random moments and at named places, and started again over the same
//! ledger: whatever happens, its history follows the rules.
//!
//! `KILLS` is the number of kills (20 where it is not set), `SEED` replays a printed seed's plan: keys, calls, faults and
//! kills. The machine's scheduling is not part of it.

pub mod load;

use std::{collections::BTreeMap, env, sync::Arc, time::Duration};

use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use surveylab_gateway::{
    fail_point::{self, Place},
    proto::InvitationState,
    sandbox::{Effect, Fault, Sandbox},
};
use tokio::{select, time::sleep};

use crate::{
    history::{Heard, History, Recorder, received, rules},
    support::{
        Gateway, Options,
        gateway::{ended_by, surveylab_with},
        lateness::Lateness,
        watch::{list, soon},
    },
};
use load::{Keys, load};

const SIGABRT: i32 = 6;

const RATE: f64 = 400.0;
const BURST: f64 = 20.0;
const UPSTREAM_TIMEOUT: Duration = Duration::from_millis(300);

/// How one process comes to its end.
#[derive(Clone, Copy, Debug)]
enum End {
    /// At this place of the program, the n-th time that it is reached.
    AtPlace(Place, u64),
    /// SIGKILL when so many more requests have arrived at SurveyLab.
    OnArrival(u64),
    /// The same, and the next process is killed at this place while it opens the ledger.
    OnArrivalAndInRecovery(u64, Place),
    /// SIGTERM, and it ends by itself.
    Terminated(u64),
    /// SIGTERM, then SIGKILL while it drains.
    KilledWhileDraining(u64),
    /// SIGSTOP for longer than requests may take, SIGCONT, and SIGKILL at the end of the load.
    Stopped(u64),
}

impl End {
    fn choose(random: &mut StdRng) -> Self {
        let arrivals = random.random_range(1..100);
        let recovery = [Place::BeforeRecovery, Place::WithinRecovery, Place::AfterRecovery];
        match random.random_range(0..20) {
            0..9 => {
                let places: Vec<_> = Place::ALL
                    .into_iter()
                    .filter(|place| !recovery.contains(place))
                    .collect();
                let place = places[random.random_range(0..places.len())];
                // Batches are fewer than requests.
                let most = if matches!(place, Place::BeforeCommit | Place::AfterCommit) {
                    60
                } else {
                    150
                };
                Self::AtPlace(place, random.random_range(1..most))
            }
            9..13 => Self::OnArrival(arrivals),
            13..16 => Self::OnArrivalAndInRecovery(arrivals, recovery[random.random_range(0..recovery.len())]),
            16 => Self::Terminated(arrivals),
            17..19 => Self::KilledWhileDraining(arrivals),
            _ => Self::Stopped(arrivals),
        }
    }

    fn name(self) -> String {
        match self {
            Self::AtPlace(place, _) => format!("{place:?}"),
            Self::OnArrival(_) => "AfterBytes".into(),
            Self::OnArrivalAndInRecovery(_, place) => format!("AfterBytes+{place:?}"),
            Self::Terminated(_) => "SIGTERM".into(),
            Self::KilledWhileDraining(_) => "SIGTERM+SIGKILL".into(),
            Self::Stopped(_) => "SIGSTOP+SIGCONT+SIGKILL".into(),
        }
    }
}

/// What SurveyLab does to the requests of one process: every kind of answer, and every truth behind a lost one.
fn faults(random: &mut StdRng) -> Vec<Fault> {
    let delayed = Effect::After(UPSTREAM_TIMEOUT + Duration::from_millis(100));
    let mut faults = vec![
        (0.03, Fault::reset_before_answer()),
        (0.03, Fault::reset_before_answer().with_effect(Effect::Never)),
        (0.02, Fault::close_before_answer()),
        (0.02, Fault::half_body()),
        (0.02, Fault::hang().with_effect(delayed)),
        (0.01, Fault::hang()),
        (0.04, Fault::status(503)),
        (0.03, Fault::status(500)),
        (0.02, Fault::status(502)),
        (0.03, Fault::status(400)),
        (0.01, Fault::body("<html>")),
    ];
    // Each means a pause of a second.
    if random.random_bool(0.1) {
        faults.push((0.02, Fault::status(429).retry_after("1")));
    }
    let faults = faults.into_iter();
    faults
        .map(|(share, fault)| fault.with_probability(share, random.random()))
        .collect()
}

/// A gateway's life over many processes.
struct Series {
    sandbox: Arc<Sandbox>,
    gateway: Gateway,
    recorder: Recorder,
    keys: Keys,
    ends: Vec<Duration>,
    kills: BTreeMap<String, usize>,
}

impl Series {
    async fn begin() -> Self {
        let sandbox = surveylab_with(|config| {
            config.latency = Duration::from_millis(2);
            config.log_requests = usize::MAX;
        })
        .await;
        let options = Options::new()
            .flag("--rate", "400/s")
            .flag("--burst", 20)
            .flag("--max-in-flight", 16)
            .flag("--max-attempts", 3)
            .flag("--upstream-timeout", "300ms")
            .flag("--drain-timeout", "400ms");
        let mut gateway = Gateway::with(options, &sandbox).await;
        // Each round starts its own process.
        gateway.kill();
        Self {
            recorder: Recorder::new(sandbox.started()),
            sandbox: Arc::new(sandbox),
            gateway,
            keys: Keys::default(),
            ends: Vec::new(),
            kills: BTreeMap::new(),
        }
    }

    /// One process from its start to its end.
    async fn round(&mut self, end: End, random: &mut StdRng) {
        self.sandbox.set_faults(faults(random));
        let plan = match end {
            End::AtPlace(place, times) => format!("{place:?}:{times}"),
            _ => String::new(),
        };
        self.start(&plan).await;
        self.load(end, random).await;
        if let End::Terminated(_) = end {
            self.gateway.wait().await;
        } else {
            let is_aborted = ended_by(self.gateway.kill()) == Some(SIGABRT);
            let name = match end {
                // The load was over before.
                End::AtPlace(..) if !is_aborted => "idle".into(),
                _ => end.name(),
            };
            *self.kills.entry(name).or_default() += 1;
        }
        self.over().await;
        if let End::OnArrivalAndInRecovery(_, place) = end {
            // It has come to its end by the time this returns.
            let plan = format!("{place:?}:1");
            let ended = self.gateway.again(fail_point::VARIABLE, &plan).await;
            let how = ended.err().and_then(|(status, _)| ended_by(status));
            assert_eq!(how, Some(SIGABRT), "it did not end at {place:?}");
            *self.kills.entry(format!("{place:?}")).or_default() += 1;
            self.over().await;
        }
    }

    /// What clients do while the process comes to its end.
    async fn load(&self, end: End, random: &mut StdRng) {
        let arrivals = match end {
            End::AtPlace(..) => u64::MAX,
            End::OnArrival(arrivals)
            | End::OnArrivalAndInRecovery(arrivals, _)
            | End::Terminated(arrivals)
            | End::KilledWhileDraining(arrivals)
            | End::Stopped(arrivals) => self.sandbox.report().requests + arrivals,
        };
        let load = load(
            &self.gateway,
            &self.recorder,
            &self.sandbox,
            &self.keys,
            random.random(),
        );
        tokio::pin!(load);
        let is_over = select! {
            () = &mut load => true,
            () = self.sandbox.wait_for_requests(arrivals) => false,
        };
        match end {
            End::AtPlace(..) => {}
            End::OnArrival(_) | End::OnArrivalAndInRecovery(..) => self.gateway.signal("KILL"),
            End::Terminated(_) => self.gateway.signal("TERM"),
            End::KilledWhileDraining(_) => {
                self.gateway.signal("TERM");
                sleep(Duration::from_millis(random.random_range(0..10))).await;
                self.gateway.signal("KILL");
            }
            End::Stopped(_) => {
                self.gateway.signal("STOP");
                sleep(UPSTREAM_TIMEOUT * 2).await;
                self.gateway.signal("CONT");
            }
        }
        if !is_over {
            load.await;
        }
    }

    async fn start(&mut self, plan: &str) {
        match self.gateway.again(fail_point::VARIABLE, plan).await {
            Ok(gateway) => self.gateway = gateway,
            Err((status, log)) => panic!("the gateway does not start again, {status}:\n{log}"),
        }
    }

    /// A process is over: nothing of it can happen any more.
    async fn over(&mut self) {
        soon(self.sandbox.wait_until_idle()).await;
        self.ends.push(self.recorder.now());
        self.recorder.next_run();
    }

    fn kills(&self) -> usize {
        self.kills.values().sum()
    }

    /// The whole history, with what the ledger says in the end.
    async fn history(&mut self) -> History {
        self.start("").await;
        let client = self.gateway.client().await;
        let mut states = BTreeMap::new();
        for state in [
            InvitationState::Pending,
            InvitationState::Added,
            InvitationState::Failed,
            InvitationState::InDoubt,
        ] {
            states.extend(list(&client, state).await.into_iter().map(|crk| (crk, state)));
        }
        History {
            operations: self.recorder.operations(),
            requests: received(&self.sandbox, self.sandbox.started()),
            ends: self.ends.clone(),
            states,
        }
    }
}

pub fn summary(history: &History) -> String {
    let mut heard: BTreeMap<String, usize> = BTreeMap::new();
    for operation in &history.operations {
        let what = match &operation.heard {
            Heard::Duplicate(_) => "Duplicate".into(),
            Heard::Error { reason, .. } => reason.clone(),
            other => format!("{other:?}"),
        };
        *heard.entry(what).or_default() += 1;
    }
    let mut states: BTreeMap<&str, usize> = BTreeMap::new();
    for state in history.states.values() {
        *states.entry(state.as_str_name()).or_default() += 1;
    }
    let effects = history.requests.iter().filter(|request| request.effect).count();
    format!(
        "{} operations, {} requests, {effects} effects\nheard: {heard:?}\nin the end: {states:?}",
        history.operations.len(),
        history.requests.len(),
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_kill_loses_or_repeats_anything() {
    let number = |name: &str| env::var(name).ok().map(|text| text.parse::<u64>().unwrap());
    let seed = number("SEED").unwrap_or_else(rand::random);
    let kills = usize::try_from(number("KILLS").unwrap_or(20)).unwrap();
    println!("SEED={seed} KILLS={kills}");
    let mut random = StdRng::seed_from_u64(seed);
    let mut series = Series::begin().await;
    let lateness = Lateness::measure();
    while series.kills() < kills {
        let end = End::choose(&mut random);
        series.round(end, &mut random).await;
    }
    let late = lateness.worst();
    let history = series.history().await;
    println!("{} kills: {:?}\n{}", series.kills(), series.kills, summary(&history));

    let violations = rules::violations(&history);
    assert!(violations.is_empty(), "SEED={seed}: {}", violations.join("\n"));
    let mut arrivals: Vec<Duration> = history.requests.iter().map(|request| request.at).collect();
    arrivals.sort();
    // A request that this machine holds up counts as a too early next one.
    let excess = rules::excess(&arrivals, BURST, RATE);
    println!("violations: 0; excess over burst + rate·W: {excess:.1} requests, tasks ran {late:?} late at most");
    assert!(
        excess <= 3.0 * RATE * late.as_secs_f64(),
        "{excess} too many, {late:?} late"
    );
}
