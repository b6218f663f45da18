//! What happened, as seen from both sides: what clients asked and heard, and what the fake SurveyLab received. And the
//! [`rules`] that every history has to follow, whatever crashed in it.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use surveylab_gateway::{proto::InvitationState, sandbox::Sandbox};
use tokio::time::Instant;

pub mod rules;

/// What a client asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish {
    Add,
    /// With `resend_in_doubt`.
    Resend,
    ResolveAdded,
    ResolveNotAdded,
}

/// What it heard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Heard {
    /// Nothing: it left, its deadline passed, or the connection broke. What was asked may still happen, as long as the
    /// same process runs.
    Nothing,
    Added,
    /// With `added_at`, in nanoseconds.
    Duplicate(i128),
    Resolved,
    /// An error with its reason and what it says of `sent`.
    Error {
        reason: String,
        sent: String,
    },
}

/// One question of a client, and its answer.
#[derive(Clone, Debug)]
pub struct Operation {
    pub crk: String,
    /// Which of two respondents it is about.
    pub email: String,
    pub wish: Wish,
    /// The process that was asked, counted from the first.
    pub run: usize,
    pub begun: Duration,
    pub ended: Duration,
    pub heard: Heard,
}

/// One request that SurveyLab received.
#[derive(Clone, Debug)]
pub struct Request {
    pub crk: String,
    pub email: String,
    pub at: Duration,
    /// An e-mail went out, then or later.
    pub effect: bool,
    /// The status that it was answered with, if it was.
    pub status: Option<u16>,
}

/// A whole history. Times are counted from its beginning.
#[derive(Clone, Debug, Default)]
pub struct History {
    pub operations: Vec<Operation>,
    pub requests: Vec<Request>,
    /// When each process ended.
    pub ends: Vec<Duration>,
    /// What the ledger says of each key when everything is over.
    pub states: BTreeMap<String, InvitationState>,
}

/// Takes down what clients ask and hear. Clones write into one book.
#[derive(Clone)]
pub struct Recorder {
    begin: Instant,
    run: usize,
    operations: Arc<Mutex<Vec<Operation>>>,
}

/// A question on its way: heard nothing, until something is.
pub struct Asked {
    recorder: Recorder,
    place: usize,
}

impl Recorder {
    pub fn new(begin: Instant) -> Self {
        Self {
            begin,
            run: 0,
            operations: Arc::default(),
        }
    }

    /// For the process after this one.
    pub fn next_run(&mut self) {
        self.run += 1;
    }

    /// For one process of several that run at once.
    pub fn of_run(&self, run: usize) -> Self {
        Self { run, ..self.clone() }
    }

    pub fn now(&self) -> Duration {
        self.begin.elapsed()
    }

    pub fn ask(&self, crk: &str, email: &str, wish: Wish) -> Asked {
        let mut operations = self.operations.lock().unwrap();
        let now = self.now();
        operations.push(Operation {
            crk: crk.into(),
            email: email.into(),
            wish,
            run: self.run,
            begun: now,
            ended: now,
            heard: Heard::Nothing,
        });
        Asked {
            recorder: self.clone(),
            place: operations.len() - 1,
        }
    }

    pub fn operations(&self) -> Vec<Operation> {
        self.operations.lock().unwrap().clone()
    }
}

impl Asked {
    pub fn hears(&self, heard: Heard) {
        let mut operations = self.recorder.operations.lock().unwrap();
        let operation = &mut operations[self.place];
        operation.heard = heard;
        operation.ended = self.recorder.now();
    }
}

/// A question that is dropped is one whose caller left.
impl Drop for Asked {
    fn drop(&mut self) {
        let mut operations = self
            .recorder
            .operations
            .lock()
            .unwrap_or_else(|poison| poison.into_inner());
        let operation = &mut operations[self.place];
        if operation.heard == Heard::Nothing {
            operation.ended = self.recorder.now();
        }
    }
}

/// What a sandbox received, on the clock that begins with `begin`.
pub fn received(sandbox: &Sandbox, begin: Instant) -> Vec<Request> {
    let requests = sandbox.requests().into_iter().map(|request| {
        let parameter = |name| request.parameter(name).unwrap_or_default().to_string();
        Request {
            crk: parameter("crk"),
            email: parameter("email"),
            at: (sandbox.started() + request.at).saturating_duration_since(begin),
            effect: request.effect,
            status: request.status,
        }
    });
    requests.collect()
}
