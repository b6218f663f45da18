//! A ledger's life: three processes, the first of which is killed, each under load.

use std::{
    collections::BTreeSet,
    fs,
    ops::Range,
    os::unix::process::ExitStatusExt as _,
    path::{Path, PathBuf},
};

use rand::{RngExt as _, rngs::StdRng};
use surveylab_gateway::proto::Outcome;
use tokio::task::JoinSet;

use super::{
    SIGKILL,
    disk::{self, Disk, Files},
    load::{Answers, Fate, Load, surveylab_for},
    shut_down,
    trace::{self, Event, Story},
};
use crate::support::{
    Gateway, Options,
    call::add,
    request,
    shim::{KillAt, Power},
    watch::soon,
};

/// What happened, and what callers were told.
#[derive(Clone)]
pub struct Scenario {
    bytes: Vec<u8>,
    pub events: Vec<Event>,
    pub answers: Answers,
    pub asked: Vec<String>,
}

impl Scenario {
    /// Starts on an empty directory; dies within a commit, maybe with half of a write done; starts again, recovers the
    /// WAL, shuts down; starts on what that left, shuts down.
    pub async fn run(random: &mut StdRng, change: impl Fn(Options) -> Options) -> Self {
        let power = Power::new();
        let loads = [('A', 300), ('B', 80), ('C', 40)].map(|(round, plain)| Load::mixed(round, plain));
        let again: Vec<String> = loads
            .iter()
            .flat_map(Load::keys)
            .filter(|crk| Fate::of(crk) == Fate::Again)
            .cloned()
            .collect();
        let sandbox = surveylab_for(&again).await;
        // Starting takes some 40 operations. The load takes at least 128 more, as a caller's 16 keys come one after the
        // other: each needs two commits, of a page and a sync, and of two pages and a sync; a page takes two writes.
        let kill = KillAt {
            files: "",
            operation: random.random_range(60..160),
            part: random.random_range(0..=1000),
        };
        println!("the first process dies at {kill:?}");
        let mut answers = Answers::new();
        let [first, others @ ..] = &loads;
        let gateway = Gateway::with(change(kill.set(power.traced())), &sandbox).await;
        answers.extend(first.run(&gateway.client().await).await);
        assert_eq!(soon(gateway.ended()).await.signal(), Some(SIGKILL));
        for load in others {
            let gateway = Gateway::with(change(power.traced()), &sandbox).await;
            answers.extend(load.run(&gateway.client().await).await);
            shut_down(gateway).await;
        }

        let bytes = power.trace();
        let events = trace::parse(&bytes);
        assert_model_is_the_disk(&events, &power.directory());
        Self {
            bytes,
            events,
            answers,
            asked: loads.iter().flat_map(Load::keys).cloned().collect(),
        }
    }

    /// One that an earlier run has kept. What its callers were told is not in it.
    pub fn kept(path: &Path) -> Self {
        let bytes = fs::read(path).unwrap();
        let events = trace::parse(&bytes);
        let data = events.iter().filter_map(|event| match event {
            Event::Send { data } | Event::Write { data, .. } => Some(data),
            _ => None,
        });
        let asked: BTreeSet<String> = data.flat_map(|data| trace::crks(data)).collect();
        Self {
            bytes,
            events,
            answers: Answers::new(),
            asked: asked.into_iter().collect(),
        }
    }

    /// Keeps the trace for another look.
    pub fn keep(&self) -> PathBuf {
        let directory = tempfile::Builder::new().prefix("power-").tempdir().unwrap().keep();
        let path = directory.join("trace");
        fs::write(&path, &self.bytes).unwrap();
        path
    }

    pub fn story(&self) -> Story<'_> {
        Story::tell(&self.events)
    }

    /// The power fails before event `at`, the gateway comes back over what the disk has kept, works and shuts down.
    /// Also looks whether it sends anything that may have been sent before.
    pub async fn resumed(&mut self, at: usize, files: Files) {
        self.events.truncate(at);
        let power = Power::new();
        disk::write(&files, &power.directory());
        let load = Load::mixed('D', 40);
        let again: Vec<String> = load
            .keys()
            .filter(|crk| Fate::of(crk) == Fate::Again)
            .cloned()
            .collect();
        let sandbox = surveylab_for(&again).await;
        let gateway = Gateway::with(power.traced(), &sandbox).await;
        let client = gateway.client().await;
        let before: BTreeSet<String> = self.story().requests.into_keys().collect();
        let answered: BTreeSet<String> = self.story().answers.into_keys().collect();
        // All others were told later, which now never was.
        self.answers.retain(|crk, _| answered.contains(crk));
        let mut calls = JoinSet::new();
        for crk in self.asked.iter().filter(|crk| Fate::of(crk) == Fate::Plain) {
            let (client, crk) = (client.clone(), crk.clone());
            calls.spawn(async move { (add(&client, request(&crk)).await, crk) });
        }
        let mut answers = Answers::new();
        for (answer, crk) in calls.join_all().await {
            match answer {
                Ok(response) => {
                    let expected = if before.contains(&crk) {
                        Outcome::Duplicate
                    } else {
                        Outcome::Added
                    };
                    assert_eq!(response.outcome(), expected, "{crk}");
                    answers.insert(crk, response);
                }
                Err(error) => {
                    assert_eq!(error.reason, "OUTCOME_IN_DOUBT", "{crk}");
                    assert!(!answered.contains(&crk), "{crk}");
                }
            }
        }
        let sent: Vec<String> = sandbox.keys().into_iter().map(|key| key.crk).collect();
        assert!(sent.iter().all(|crk| !before.contains(crk)), "{sent:?}");
        answers.extend(load.run(&client).await);
        shut_down(gateway).await;

        let events = trace::parse(&power.trace());
        self.events.push(Event::PowerLost(files));
        self.events.extend(events);
        assert_model_is_the_disk(&self.events, &power.directory());
        self.asked.extend(load.keys().cloned());
        // What was told first is compared with what was told later.
        answers.extend(std::mem::take(&mut self.answers));
        self.answers = answers;
    }

    /// What each process did: starting, working, shutting down. Most happens in the middle, and not most that matters.
    pub fn phases(&self) -> Vec<Range<usize>> {
        let is = |event: fn(&Event) -> bool| (0..self.events.len()).filter(move |at| event(&self.events[*at]));
        let lost = is(|event| matches!(event, Event::PowerLost(_)))
            .next_back()
            .unwrap_or(0);
        let starts: Vec<usize> = is(|event| matches!(event, Event::Start))
            .filter(|at| *at >= lost)
            .chain([self.events.len()])
            .collect();
        let mut phases = Vec::new();
        for process in starts.windows(2) {
            let [begin, end] = [process[0], process[1]];
            let mut requests = (begin..end).filter(|at| matches!(self.events[*at], Event::Send { .. }));
            let (first, last) = (requests.next().unwrap(), requests.next_back().unwrap());
            phases.extend([begin..first, first..last, last..end]);
        }
        phases.retain(|phase| !phase.is_empty());
        phases
    }
}

/// The trace holds all that was done to the files, or else no image of it means anything.
fn assert_model_is_the_disk(events: &[Event], directory: &Path) {
    let mut disk = Disk::default();
    events.iter().for_each(|event| disk.apply(event));
    let (model, real) = (disk.files(), disk::read(directory));
    assert!(model.keys().eq(real.keys()), "{:?} {:?}", model.keys(), real.keys());
    for (name, bytes) in &real {
        assert!(model[name] == *bytes, "{name} is another than the trace tells");
    }
}
