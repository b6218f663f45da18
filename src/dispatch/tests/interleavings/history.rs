//! What was seen of one interleaving, from outside the dispatcher: by its callers, its ledger and SurveyLab.

use std::time::Duration;

use super::plan::{Account, Asked, Operation};
use crate::{
    dispatch,
    ledger::{Doubt, Resolution, State},
    surveylab,
};

pub type CallId = usize;

/// Tells the requests to SurveyLab apart.
pub type RequestId = usize;

/// The moment of an entry in the order of all; several entries may have the same time.
pub type Moment = usize;

pub struct History {
    pub account: Account,
    pub entries: Vec<Entry>,
    pub end: End,
}

#[derive(Clone, Debug)]
pub struct Entry {
    /// Since the beginning.
    pub at: Duration,
    /// The number of the process it happened in or for.
    pub process: usize,
    pub event: Event,
}

#[derive(Clone, Debug)]
pub enum Event {
    Closed,
    CutOff,
    Died,
    Called(CallId, Asked),
    Left(CallId),
    Answered(CallId, dispatch::Answer),
    /// The ledger was asked for a claim.
    Claims {
        key: u8,
        data: u8,
    },
    /// It granted it: from here on the key is pending. `asked` is the moment of `Claims`.
    Claimed {
        key: u8,
        data: u8,
        doubt: Doubt,
        asked: Moment,
    },
    Settled {
        key: u8,
        state: State,
    },
    Released {
        key: u8,
    },
    Resolved {
        key: u8,
        resolution: Resolution,
    },
    /// Its answer to a look-up went to who asked.
    LookedUp {
        key: u8,
    },
    Failed(Operation, u8),
    Sent {
        request: RequestId,
        key: u8,
        data: u8,
    },
    /// The gateway knows what came of it, or `None`: it was cut off from it.
    Back {
        request: RequestId,
        key: u8,
        answer: Option<surveylab::Answer>,
    },
    Effect {
        key: u8,
    },
}

impl Event {
    /// The key it is about, if the ledger or SurveyLab saw it.
    pub fn key(&self) -> Option<u8> {
        match self {
            Self::Closed | Self::CutOff | Self::Died | Self::Called(..) | Self::Left(_) | Self::Answered(..) => None,
            Self::Claims { key, .. }
            | Self::Claimed { key, .. }
            | Self::Settled { key, .. }
            | Self::Released { key }
            | Self::Resolved { key, .. }
            | Self::LookedUp { key }
            | Self::Failed(_, key)
            | Self::Sent { key, .. }
            | Self::Back { key, .. }
            | Self::Effect { key } => Some(*key),
        }
    }
}

/// How it stands when everything should be over, and the ledger and SurveyLab have been well for long enough.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct End {
    /// Calls nobody answered.
    pub unanswered: Vec<CallId>,
    /// Keys pending although nothing was cut off.
    pub pending: Vec<u8>,
    pub waiting: usize,
    pub in_flight: usize,
    pub on_the_wire: usize,
    /// The process did not end when it was to drain.
    pub undrained: bool,
    /// Calls on fresh keys, made at once with a full bucket and all places free: those that were not added at once.
    pub late_probes: usize,
    /// The breaker was open although SurveyLab had taken a request.
    pub turned_away: bool,
    /// Tasks that panicked.
    pub panics: usize,
}
