//! A step on its way through the writer.

use tokio::sync::oneshot;

use crate::{
    clock::Timestamp,
    invitation::Key,
    ledger::{self, Claimed, Error, Resolution, Resolved, Settlement},
};

pub(in crate::ledger::postgres) struct Settle {
    pub key: Key,
    pub settlement: Settlement,
    pub at: Timestamp,
}

pub(in crate::ledger::postgres) struct Resolve {
    pub key: Key,
    pub resolution: Resolution,
    pub at: Timestamp,
}

/// What is asked, by whom, and the outcome once there is one.
pub(in crate::ledger::postgres) struct Asked<S, A> {
    pub step: S,
    pub outcome: Option<Result<A, Error>>,
    answer: oneshot::Sender<Result<A, Error>>,
}

impl<S, A> Asked<S, A> {
    pub(in crate::ledger::postgres) fn new(step: S) -> (Self, oneshot::Receiver<Result<A, Error>>) {
        let (answer, answered) = oneshot::channel();
        let outcome = None;
        (Self { step, outcome, answer }, answered)
    }

    /// Gives the outcome to who asked, who may be gone; or the step back if it has none.
    fn finish(self) -> Option<Self> {
        let Some(outcome) = self.outcome else {
            return Some(self);
        };
        let _ = self.answer.send(outcome);
        None
    }
}

pub(in crate::ledger::postgres) enum Step {
    Claim(Asked<ledger::Claim, Claimed>),
    Settle(Asked<Settle, ()>),
    Release(Asked<Key, ()>),
    Resolve(Asked<Resolve, Resolved>),
    Probe(Asked<(), ()>),
}

impl Step {
    pub(super) fn key(&self) -> Option<&Key> {
        match self {
            Self::Claim(asked) => Some(&asked.step.key),
            Self::Settle(asked) => Some(&asked.step.key),
            Self::Release(asked) => Some(&asked.step),
            Self::Resolve(asked) => Some(&asked.step.key),
            Self::Probe(_) => None,
        }
    }

    /// Can it share a transaction? What a person resolves may wait for other transactions in no order, and is rare.
    pub(super) fn is_sociable(&self) -> bool {
        match self {
            Self::Claim(_) | Self::Settle(_) | Self::Release(_) => true,
            Self::Resolve(_) | Self::Probe(_) => false,
        }
    }

    /// Tells who asked; gives back what has no outcome.
    pub(super) fn finish(self) -> Option<Self> {
        match self {
            Self::Claim(asked) => asked.finish().map(Self::Claim),
            Self::Settle(asked) => asked.finish().map(Self::Settle),
            Self::Release(asked) => asked.finish().map(Self::Release),
            Self::Resolve(asked) => asked.finish().map(Self::Resolve),
            Self::Probe(asked) => asked.finish().map(Self::Probe),
        }
    }

    /// Makes a failure of what has no outcome.
    pub(super) fn refuse(&mut self, why: &str) {
        let error = || Error::Unavailable(why.into());
        match self {
            Self::Claim(asked) => drop(asked.outcome.get_or_insert_with(|| Err(error()))),
            Self::Settle(asked) => drop(asked.outcome.get_or_insert_with(|| Err(error()))),
            Self::Release(asked) => drop(asked.outcome.get_or_insert_with(|| Err(error()))),
            Self::Resolve(asked) => drop(asked.outcome.get_or_insert_with(|| Err(error()))),
            Self::Probe(asked) => drop(asked.outcome.get_or_insert_with(|| Err(error()))),
        }
    }
}
