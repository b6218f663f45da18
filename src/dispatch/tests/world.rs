//! A dispatcher between a simulated SurveyLab and a memory ledger.

use std::{
    collections::VecDeque,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use futures_util::future::BoxFuture;
use tokio::{sync::Semaphore, task::JoinHandle, time::sleep};

use super::super::*;
use crate::{
    clock::Timestamp,
    invitation::Respondent,
    ledger::{Census, Claim, Claimed, Error, Settlement, memory::Memory},
    limiter, surveylab,
};

pub const fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// Answers from a script, then "added"; takes the time it is told.
pub struct Simulated {
    pub script: Mutex<VecDeque<surveylab::Answer>>,
    pub latency: Duration,
    pub requests: Mutex<Vec<(Key, Instant)>>,
}

impl SurveyLab for Simulated {
    fn encode(&self, invitation: Invitation) -> Result<Request, Violation> {
        let query = String::new();
        Ok(Request { invitation, query })
    }

    fn send<'a>(&'a self, request: &'a Request) -> BoxFuture<'a, surveylab::Answer> {
        Box::pin(async move {
            let arrival = (request.invitation.key.clone(), Instant::now());
            self.requests.lock().unwrap().push(arrival);
            sleep(self.latency).await;
            let scripted = self.script.lock().unwrap().pop_front();
            scripted.unwrap_or(surveylab::Answer::Added {
                notification: "ok".into(),
            })
        })
    }
}

/// A memory ledger that can be made to fail, and to hold look-ups, claims and checks.
pub struct Unreliable {
    pub ledger: Memory,
    pub failing_claims: AtomicUsize,
    pub failing_settles: AtomicUsize,
    pub look_ups: Semaphore,
    pub claims: Semaphore,
    pub failing_checks: AtomicUsize,
    pub checks: Semaphore,
    /// How many there were.
    pub checked: AtomicUsize,
}

pub fn fails(left: &AtomicUsize) -> bool {
    left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1))
        .is_ok()
}

impl Ledger for Unreliable {
    fn look_up(&self, key: &Key) -> BoxFuture<'_, Result<Option<Record>, Error>> {
        let key = key.clone();
        Box::pin(async move {
            let _turn = self.look_ups.acquire().await.unwrap();
            self.ledger.look_up(&key).await
        })
    }

    fn claim(&self, claim: Claim) -> BoxFuture<'_, Result<Claimed, Error>> {
        if fails(&self.failing_claims) {
            return Box::pin(async { Err(Error::Unavailable("disk full".into())) });
        }
        Box::pin(async {
            let _turn = self.claims.acquire().await.unwrap();
            self.ledger.claim(claim).await
        })
    }

    fn settle(&self, key: &Key, settlement: Settlement, at: Timestamp) -> BoxFuture<'_, Result<(), Error>> {
        if fails(&self.failing_settles) {
            return Box::pin(async { Err(Error::Unavailable("disk full".into())) });
        }
        self.ledger.settle(key, settlement, at)
    }

    fn release(&self, key: &Key) -> BoxFuture<'_, Result<(), Error>> {
        self.ledger.release(key)
    }

    fn resolve(&self, key: &Key, resolution: Resolution, at: Timestamp) -> BoxFuture<'_, Result<Resolved, Error>> {
        self.ledger.resolve(key, resolution, at)
    }

    fn list(&self, query: Query) -> BoxFuture<'_, Result<Vec<Record>, Error>> {
        self.ledger.list(query)
    }

    fn check(&self) -> BoxFuture<'_, Result<(), Error>> {
        self.checked.fetch_add(1, Ordering::SeqCst);
        if fails(&self.failing_checks) {
            return Box::pin(async { Err(Error::Unavailable("disk full".into())) });
        }
        Box::pin(async {
            let _turn = self.checks.acquire().await.unwrap();
            self.ledger.check().await
        })
    }

    fn census(&self) -> Census {
        self.ledger.census()
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        self.ledger.close()
    }
}

pub struct World {
    pub dispatcher: Dispatcher,
    pub surveylab: Arc<Simulated>,
    pub ledger: Arc<Unreliable>,
    pub limiter: Limiter,
}

pub struct Plan {
    pub script: Vec<surveylab::Answer>,
    pub latency: Duration,
    pub rate: &'static str,
    pub burst: u32,
    pub max_in_flight: usize,
    pub max_queue: usize,
    pub on_server_error: OnServerError,
    pub breaker_after: u32,
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            script: Vec::new(),
            latency: ms(100),
            rate: "1000/s",
            burst: 100,
            max_in_flight: 32,
            max_queue: 1_000,
            on_server_error: OnServerError::Retry,
            breaker_after: 20,
        }
    }
}

impl Plan {
    pub fn start(self) -> World {
        let surveylab = Arc::new(Simulated {
            script: Mutex::new(self.script.into()),
            latency: self.latency,
            requests: Mutex::default(),
        });
        let ledger = Arc::new(Unreliable {
            ledger: Memory::default(),
            failing_claims: AtomicUsize::new(0),
            failing_settles: AtomicUsize::new(0),
            look_ups: Semaphore::new(1_000),
            claims: Semaphore::new(1_000),
            failing_checks: AtomicUsize::new(0),
            checks: Semaphore::new(1_000),
            checked: AtomicUsize::new(0),
        });
        let (limiter, pacer) = Limiter::new(limiter::Settings {
            rate: self.rate.parse().unwrap(),
            burst: self.burst,
            rested: Duration::MAX,
            max_in_flight: self.max_in_flight,
            max_queue: self.max_queue,
        });
        tokio::spawn(pacer.run());
        let settings = Settings {
            max_attempts: 5,
            max_wait: ms(60_000),
            on_server_error: self.on_server_error,
            breaker_after: self.breaker_after,
        };
        World {
            dispatcher: Dispatcher::new(
                surveylab.clone(),
                ledger.clone(),
                limiter.clone(),
                Clock::system(),
                settings,
            ),
            surveylab,
            ledger,
            limiter,
        }
    }
}

pub fn scripted(script: impl Into<Vec<surveylab::Answer>>) -> World {
    Plan {
        script: script.into(),
        ..Plan::default()
    }
    .start()
}

pub const UNAVAILABLE: surveylab::Answer = surveylab::Answer::Unavailable { retry_after: None };

pub fn doubtful() -> surveylab::Answer {
    surveylab::Answer::InDoubt {
        http_status: None,
        cause: "timeout".into(),
    }
}

impl World {
    pub fn call(&self, crk: &str, email: &str) -> Call {
        let respondent = Respondent {
            email: email.into(),
            ..Respondent::default()
        };
        let request = self.dispatcher.prepare(Invitation::new(Key::new("c", crk), respondent));
        self.dispatcher.call(request.unwrap(), Doubt::Hold, Lane::Unary, None)
    }

    pub fn spawn(&self, call: Call) -> JoinHandle<Answer> {
        let dispatcher = self.dispatcher.clone();
        tokio::spawn(async move { dispatcher.add(&call).await })
    }

    pub async fn add(&self, crk: &str) -> Answer {
        self.dispatcher.add(&self.call(crk, "a@example.com")).await
    }

    pub async fn add_within(&self, crk: &str, deadline: Duration) -> Answer {
        let mut call = self.call(crk, "a@example.com");
        call.deadline = Some(Instant::now() + deadline);
        call.until = call.deadline;
        self.dispatcher.add(&call).await
    }

    pub fn requests(&self) -> usize {
        self.surveylab.requests.lock().unwrap().len()
    }

    pub async fn state(&self, crk: &str) -> Option<State> {
        let record = self.dispatcher.get(&Key::new("c", crk)).await.unwrap();
        record.map(|record| record.state)
    }
}

pub fn reason(answer: Answer) -> (Reason, Sent) {
    let failure = answer.unwrap_err();
    (failure.reason, failure.sent)
}

pub fn is_added(answer: &Answer) -> bool {
    matches!(answer, Ok(Outcome::Added(_)))
}

pub fn is_duplicate(answer: &Answer) -> bool {
    matches!(answer, Ok(Outcome::Duplicate(_)))
}
