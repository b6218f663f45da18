//! What a caller wishes, and what it is told.

use std::{sync::Arc, time::Duration};

use super::{OnServerError, trail::Trail};
use crate::{
    clock::{Instant, Timestamp},
    invitation::Failure,
    ledger::Doubt,
    limiter::Queue,
    surveylab::Request,
};

/// How far a call may go.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Requests to SurveyLab at most for one call.
    pub max_attempts: u32,
    /// How long a unary call without a deadline may wait for its permit.
    pub max_wait: Duration,
    pub on_server_error: OnServerError,
    /// Refusals in a row (401, 400) after which calls fail without a request; 0: never.
    pub breaker_after: u32,
}

/// A caller's wish to have a respondent added.
#[derive(Clone)]
pub struct Call {
    pub request: Arc<Request>,
    pub doubt: Doubt,
    /// Whose it is, and where it waits.
    pub queue: Queue,
    /// When the caller stops listening.
    pub deadline: Option<Instant>,
    /// For somebody who watches.
    pub(super) trail: Option<Arc<Trail>>,
    /// How long the call may wait for a permit.
    pub(super) until: Option<Instant>,
}

impl Call {
    /// Leaves a trail.
    pub fn watched(mut self, trail: Option<Arc<Trail>>) -> Self {
        if let Some(trail) = &trail {
            let _first_wins = trail.key.set(self.request.invitation.key.clone());
        }
        self.trail = trail;
        self
    }
}

/// What is known of an added respondent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Added {
    pub at: Timestamp,
    pub notification: String,
    /// Requests made to SurveyLab for the key, retries included.
    pub attempts: u32,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// This call added the respondent.
    Added(Added),
    /// It had been added before; this call had no effect.
    Duplicate(Added),
    /// Nothing was sent; it would have been.
    WouldAdd,
}

/// What a call comes to.
pub type Answer = Result<Outcome, Failure>;
