//! SurveyLab and the ledger as a plan wants them, and what they see.

use std::{
    future::pending,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures_util::future::{BoxFuture, FutureExt};
use tokio::{sync::oneshot, task::yield_now, time::sleep};
use tokio_util::task::TaskTracker;

use super::{
    super::world::ms,
    history::{CallId, Entry, Event, Moment, RequestId},
    plan::{Behaviour, Fault, Operation, Plan},
};
use crate::{
    clock::{Instant, Timestamp},
    dispatch,
    invitation::{Fingerprint, Invitation, Key, Reason, Respondent, Violation},
    ledger::{
        Claim, Claimed, Error, LastError, Ledger, Query, Record, Resolution, Resolved, Settlement, State,
        memory::Memory,
    },
    surveylab::{self, Request, SurveyLab},
};

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

    /// One step of the ledger. `again` does it another time, should it have failed and turn out done.
    fn step<T: Send + 'static>(
        &self,
        operation: Operation,
        key: &Key,
        apply: impl Fn(&Self) -> T + Send + 'static,
    ) -> BoxFuture<'_, Result<T, Error>> {
        let (line, key) = (self.clone(), number(key));
        Box::pin(async move {
            let (answer, answered) = oneshot::channel();
            self.steps.spawn(async move {
                let (before, after) = line.world.faults.lock().unwrap().pace;
                line.world.hiccup().await;
                pause(before).await;
                if line.is_severed() {
                    return;
                }
                let result = line.attempt(operation, key, apply);
                pause(after).await;
                line.world.hiccup().await;
                if operation == Operation::LookUp && !line.is_severed() && !answer.is_closed() {
                    line.note(Event::LookedUp { key });
                }
                let _gone = answer.send(result);
            });
            match answered.await {
                Ok(result) if !self.is_severed() => result,
                _ => pending().await,
            }
        })
    }

    fn attempt<T: 'static>(
        &self,
        operation: Operation,
        key: u8,
        apply: impl Fn(&Self) -> T + Send + 'static,
    ) -> Result<T, Error> {
        let is_write = operation != Operation::LookUp;
        let Some(fault) = self.world.fails(operation) else {
            let applied = apply(self);
            if is_write {
                self.world.faults.lock().unwrap().lingering = None;
            }
            return Ok(applied);
        };
        self.note(Event::Failed(operation, key));
        if is_write && fault.lingers {
            let line = self.clone();
            let lingering = move || drop(apply(&line));
            self.world.faults.lock().unwrap().lingering = Some(Box::new(lingering));
        }
        Err(Error::Unavailable("as planned".into()))
    }
}

impl Ledger for Line {
    fn look_up(&self, key: &Key) -> BoxFuture<'_, Result<Option<Record>, Error>> {
        let asked = key.clone();
        self.step(Operation::LookUp, key, move |line| {
            line.world.memory.look_up(&asked).now_or_never().unwrap().unwrap()
        })
    }

    fn claim(&self, claim: Claim) -> BoxFuture<'_, Result<Claimed, Error>> {
        let key = claim.key.clone();
        if self.is_severed() {
            return Box::pin(pending());
        }
        let asked = self.note(Event::Claims {
            key: number(&key),
            data: self.world.data(&key, claim.fingerprint),
        });
        self.step(Operation::Claim, &key, move |line| {
            line.world.claim(line.process, claim.clone(), asked)
        })
    }

    fn settle(&self, key: &Key, settlement: Settlement, at: Timestamp) -> BoxFuture<'_, Result<(), Error>> {
        let asked = key.clone();
        self.step(Operation::Settle, key, move |line| {
            line.world.settle(line.process, &asked, settlement.clone(), at);
        })
    }

    fn release(&self, key: &Key) -> BoxFuture<'_, Result<(), Error>> {
        let asked = key.clone();
        self.step(Operation::Release, key, move |line| {
            line.world.release(line.process, &asked);
        })
    }

    fn resolve(&self, key: &Key, resolution: Resolution, at: Timestamp) -> BoxFuture<'_, Result<Resolved, Error>> {
        let asked = key.clone();
        self.step(Operation::Resolve, key, move |line| {
            line.world.resolve(line.process, &asked, resolution, at)
        })
    }

    fn list(&self, query: Query) -> BoxFuture<'_, Result<Vec<Record>, Error>> {
        self.world.memory.list(query)
    }

    fn check(&self) -> BoxFuture<'_, Result<(), Error>> {
        self.world.memory.check()
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        self.closed().boxed()
    }
}

impl SurveyLab for Line {
    fn encode(&self, invitation: Invitation) -> Result<Request, Violation> {
        let query = String::new();
        Ok(Request { invitation, query })
    }

    fn send<'a>(&'a self, request: &'a Request) -> BoxFuture<'a, surveylab::Answer> {
        Box::pin(async move {
            if self.is_severed() {
                return pending().await;
            }
            let invitation = &request.invitation;
            let key = number(&invitation.key);
            let data = self.world.data(&invitation.key, invitation.fingerprint);
            let request = self.world.requests.fetch_add(1, Ordering::Relaxed);
            let behaviour = self.world.behaviour(request);
            self.note(Event::Sent { request, key, data });
            self.effect(key, &behaviour);
            let mut wire = Wire {
                line: self,
                request,
                key,
                adds: matches!(behaviour.answer, surveylab::Answer::Added { .. }),
                answer: None,
            };
            self.world.hiccup().await;
            pause(behaviour.latency).await;
            self.world.hiccup().await;
            if self.is_severed() {
                return pending().await;
            }
            wire.answer = Some(behaviour.answer.clone());
            behaviour.answer
        })
    }
}

impl Line {
    /// Has the effect of a request take place that nobody will hear of.
    fn effect(&self, key: u8, behaviour: &Behaviour) {
        let unheard = matches!(
            behaviour.answer,
            surveylab::Answer::InDoubt { .. } | surveylab::Answer::InternalError
        );
        let may = match behaviour.answer {
            surveylab::Answer::InternalError => {
                self.world.plan.account.on_server_error == dispatch::OnServerError::Hold
            }
            _ => unheard,
        };
        let Some(after) = behaviour.effect.filter(|_| may) else {
            return;
        };
        let line = self.clone();
        self.world.effects.spawn(async move {
            pause(after).await;
            line.note(Event::Effect { key });
        });
    }
}

/// A request on its way. What it does at SurveyLab does not end with the one who made it.
struct Wire<'a> {
    line: &'a Line,
    request: RequestId,
    key: u8,
    adds: bool,
    answer: Option<surveylab::Answer>,
}

impl Drop for Wire<'_> {
    fn drop(&mut self) {
        let (request, key) = (self.request, self.key);
        if self.adds {
            self.line.note(Event::Effect { key });
        }
        let answer = self.answer.take();
        self.line.note(Event::Back { request, key, answer });
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
