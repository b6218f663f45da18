//! SurveyLab and the ledger as a plan wants them, and what they see.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures_util::future::FutureExt;
use tokio::{task::yield_now, time::sleep};
use tokio_util::task::TaskTracker;

use super::{
    super::world::ms,
    history::{CallId, Entry, Event, Moment, RequestId},
    plan::{Behaviour, Fault, Operation, Plan},
};
use crate::{
    clock::{Instant, Timestamp},
    dispatch,
    invitation::{Fingerprint, Invitation, Key, Reason, Respondent},
    ledger::{Claim, Claimed, LastError, Ledger, Query, Resolution, Resolved, Settlement, State, memory::Memory},
    surveylab,
};

mod ledger;
mod webhook;

/// All that outlives a process.
pub struct World {
    plan: Plan,
    begin: Instant,
    memory: Memory,
    entries: Mutex<Vec<Entry>>,
    faults: Mutex<Faults>,
    requests: AtomicUsize,
    hiccups: AtomicUsize,
    /// From here on SurveyLab and the ledger are well.
    healed: AtomicBool,
    /// Effects to come.
    effects: TaskTracker,
}

#[derive(Default)]
struct Faults {
    failing: Vec<Fault>,
    pace: (Duration, Duration),
    /// What failed last, and may turn out done.
    lingering: Option<Box<dyn FnOnce() + Send>>,
}

pub fn key(n: u8) -> Key {
    Key::new("c", n.to_string())
}

fn number(key: &Key) -> u8 {
    key.crk().parse().unwrap()
}

pub fn invitation(key: u8, data: u8) -> Invitation {
    let email = format!("{data}@example.com");
    Invitation::new(
        self::key(key),
        Respondent {
            email,
            ..Respondent::default()
        },
    )
}

/// Takes no turn of the scheduler where there is nothing to wait for.
pub async fn pause(duration: Duration) {
    if !duration.is_zero() {
        sleep(duration).await;
    }
}

impl World {
    pub fn new(plan: Plan) -> Arc<Self> {
        Arc::new(Self {
            plan,
            begin: Instant::now(),
            memory: Memory::new(),
            entries: Mutex::default(),
            faults: Mutex::default(),
            requests: AtomicUsize::new(0),
            hiccups: AtomicUsize::new(0),
            healed: AtomicBool::new(false),
            effects: TaskTracker::new(),
        })
    }

    /// Notes what happened, and tells when.
    pub fn note(&self, process: usize, event: Event) -> Moment {
        let at = self.begin.elapsed();
        let mut entries = self.entries.lock().unwrap();
        entries.push(Entry { at, process, event });
        entries.len() - 1
    }

    pub fn take_entries(&self) -> Vec<Entry> {
        std::mem::take(&mut self.entries.lock().unwrap())
    }

    pub fn fail(&self, fault: Fault) {
        self.faults.lock().unwrap().failing.push(fault);
    }

    pub fn pace(&self, before: Duration, after: Duration) {
        self.faults.lock().unwrap().pace = (before, after);
    }

    pub fn heal(&self) {
        self.healed.store(true, Ordering::Relaxed);
        *self.faults.lock().unwrap() = Faults::default();
    }

    /// Lets other tasks go first, as often as the plan says.
    pub async fn hiccup(&self) {
        let turn = self.hiccups.fetch_add(1, Ordering::Relaxed);
        let hiccups = &self.plan.hiccups;
        for _ in 0..hiccups[turn % hiccups.len()] {
            yield_now().await;
        }
    }

    /// All effects that are to come have come.
    pub async fn effects(&self) {
        self.effects.close();
        self.effects.wait().await;
    }

    pub fn pending(&self) -> Vec<u8> {
        let query = Query {
            state: Some(State::Pending),
            limit: usize::MAX,
            ..Query::default()
        };
        let listed = self.memory.list(query).now_or_never().unwrap().unwrap();
        listed.iter().map(|record| number(&record.key)).collect()
    }

    /// What opening a ledger does with the claims of a dead process.
    pub fn reopen(&self, process: usize, died: bool) {
        let lingering = self.faults.lock().unwrap().lingering.take();
        if let Some(lingering) = lingering.filter(|_| died) {
            lingering();
        }
        for number in self.pending() {
            let error = LastError {
                reason: Reason::OutcomeInDoubt,
                http_status: None,
            };
            self.settle(process, &key(number), Settlement::InDoubt { error }, Timestamp(0));
        }
    }

    fn behaviour(&self, request: RequestId) -> Behaviour {
        let well = Behaviour {
            answer: surveylab::Answer::Added {
                notification: "ok".into(),
            },
            latency: ms(100),
            effect: None,
        };
        let planned = self.plan.behaviours.get(request);
        planned
            .filter(|_| !self.healed.load(Ordering::Relaxed))
            .cloned()
            .unwrap_or(well)
    }

    fn fails(&self, operation: Operation) -> Option<Fault> {
        let mut faults = self.faults.lock().unwrap();
        let at = faults.failing.iter().position(|fault| fault.of == operation)?;
        faults.failing[at].count -= 1;
        let fault = faults.failing[at];
        if fault.count == 0 {
            faults.failing.remove(at);
        }
        Some(fault)
    }

    fn data(&self, key: &Key, fingerprint: Fingerprint) -> u8 {
        let key = number(key);
        u8::from(invitation(key, 0).fingerprint != fingerprint)
    }

    fn state(&self, key: &Key) -> Option<State> {
        let record = self.memory.look_up(key).now_or_never().unwrap().unwrap();
        record.map(|record| record.state)
    }

    fn claim(&self, process: usize, claim: Claim, asked: Moment) -> Claimed {
        let noted = Event::Claimed {
            key: number(&claim.key),
            data: self.data(&claim.key, claim.fingerprint),
            doubt: claim.doubt,
            asked,
        };
        let claimed = self.memory.claim(claim).now_or_never().unwrap().unwrap();
        if let Claimed::Yes { .. } = claimed {
            self.note(process, noted);
        }
        claimed
    }

    fn settle(&self, process: usize, key: &Key, settlement: Settlement, at: Timestamp) {
        let was = self.state(key);
        self.memory.settle(key, settlement, at).now_or_never().unwrap().unwrap();
        if let (Some(State::Pending), Some(state)) = (was, self.state(key)) {
            let key = number(key);
            self.note(process, Event::Settled { key, state });
        }
    }

    fn release(&self, process: usize, key: &Key) {
        let was = self.state(key);
        self.memory.release(key).now_or_never().unwrap().unwrap();
        if was == Some(State::Pending) {
            self.note(process, Event::Released { key: number(key) });
        }
    }

    fn resolve(&self, process: usize, key: &Key, resolution: Resolution, at: Timestamp) -> Resolved {
        let resolved = self
            .memory
            .resolve(key, resolution, at)
            .now_or_never()
            .unwrap()
            .unwrap();
        if let Resolved::Done(_) = resolved {
            let key = number(key);
            self.note(process, Event::Resolved { key, resolution });
        }
        resolved
    }
}

/// One process's way to the world. Severed, it does nothing more and answers nothing.
#[derive(Clone)]
pub struct Line {
    pub world: Arc<World>,
    pub process: usize,
    severed: Arc<AtomicBool>,
    /// Steps of the ledger under way. A caller that leaves one does not undo it, as in a ledger with a thread of its own.
    steps: TaskTracker,
}

impl Line {
    pub fn new(world: Arc<World>, process: usize) -> Self {
        Self {
            world,
            process,
            severed: Arc::default(),
            steps: TaskTracker::new(),
        }
    }

    pub fn sever(&self) {
        self.severed.store(true, Ordering::Relaxed);
    }

    pub fn is_severed(&self) -> bool {
        self.severed.load(Ordering::Relaxed)
    }

    pub fn note(&self, event: Event) -> Moment {
        self.world.note(self.process, event)
    }

    /// All steps that were begun are done.
    pub async fn closed(&self) {
        self.steps.close();
        self.steps.wait().await;
    }
}

/// A caller who waits. Notes that it has left, unless it got its answer.
pub struct Caller {
    pub line: Line,
    pub id: CallId,
    pub answered: bool,
}

impl Caller {
    pub fn answered(mut self, answer: dispatch::Answer) {
        self.answered = true;
        if !self.line.is_severed() {
            self.line.note(Event::Answered(self.id, answer));
        }
    }
}

impl Drop for Caller {
    fn drop(&mut self) {
        if !self.answered && !self.line.is_severed() {
            self.line.note(Event::Left(self.id));
        }
    }
}
