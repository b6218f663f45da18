//! A ledger's life: three processes, the first of which is killed, each under load.

use std::{
    collections::BTreeSet,
    fs,
    ops::Range,
    os::unix::process::ExitStatusExt as _,
    path::{Path, PathBuf},
};

use rand::{RngExt as _, rngs::StdRng};

use super::{
    SIGKILL,
    disk::{self, Disk},
    load::{Answers, Fate, Load, surveylab_for},
    shut_down,
    trace::{self, Event, Story},
};
use crate::support::{
    Gateway, Options,
    shim::{KillAt, Power},
    watch::soon,
};

/// What happened, and what callers were told.
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
        // Starting takes some 40 operations, the first load several hundred.
        let kill = KillAt {
            operation: random.random_range(80..300),
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

    /// What each process did: starting, working, shutting down. Most happens in the middle, and not most that matters.
    pub fn phases(&self) -> Vec<Range<usize>> {
        let starts: Vec<usize> = (0..self.events.len())
            .filter(|at| matches!(self.events[*at], Event::Start))
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
