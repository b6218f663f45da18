//! What a call leaves behind for its access line and its span.

use std::{
    mem,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::Duration,
};

use super::in_flight::Flight;
use crate::{
    clock::Instant,
    invitation::Key,
    limiter::Lane,
    surveylab::Answer,
    trace::{Step, Trace},
};

/// Given along with a call, it tells at any time how far the call has come.
#[derive(Default)]
pub struct Trail {
    /// What the call's steps are part of.
    pub trace: Trace,
    pub(super) key: OnceLock<Key>,
    flight: Mutex<Option<(Arc<Flight>, Role)>>,
}

/// Does a caller lead its flight, or share another caller's?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    Leads,
    Joins,
}

/// What a call took so far.
#[derive(Clone, Copy, Debug)]
pub struct Spent {
    /// For its permits, all attempts together. A call that joined another has that one's.
    pub wait: Duration,
    /// Requests to SurveyLab.
    pub attempts: u32,
    pub role: Role,
}

impl Trail {
    pub fn new(trace: Trace) -> Self {
        Self {
            trace,
            ..Self::default()
        }
    }

    /// Of a call whose input is good.
    pub fn key(&self) -> Option<&Key> {
        self.key.get()
    }

    /// `None` if the call did not come so far, or needed no request.
    pub fn spent(&self) -> Option<Spent> {
        let flight = lock(&self.flight);
        let (flight, role) = flight.as_ref()?;
        let effort = flight.effort.lock();
        Some(Spent {
            wait: effort.waited + effort.waits_since.map_or(Duration::ZERO, |since| since.elapsed()),
            attempts: effort.attempts,
            role: *role,
        })
    }

    pub(super) fn takes(&self, flight: &Arc<Flight>, role: Role) {
        if role == Role::Joins {
            self.trace.link(&flight.trace);
        }
        *lock(&self.flight) = Some((flight.clone(), role));
    }
}

/// What a flight took so far.
#[derive(Default)]
pub struct Effort(Mutex<Took>);

#[derive(Default)]
struct Took {
    waited: Duration,
    waits_since: Option<Instant>,
    attempts: u32,
}

impl Effort {
    pub fn attempt(&self) {
        self.lock().attempts += 1;
    }

    fn lock(&self) -> MutexGuard<'_, Took> {
        lock(&self.0)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A flight that waits for its permit, until this is dropped.
pub struct Waits<'a> {
    effort: &'a Effort,
    _step: Step,
}

impl<'a> Waits<'a> {
    pub fn begin(flight: &'a Flight, lane: Lane, now: Instant) -> Self {
        flight.effort.lock().waits_since = Some(now);
        let mut step = flight.trace.step("wait");
        step.set(
            "surveylab_gateway.lane",
            match lane {
                Lane::Unary => "unary",
                Lane::Stream(_) => "stream",
            },
        );
        Self {
            effort: &flight.effort,
            _step: step,
        }
    }
}

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        let mut took = self.effort.lock();
        if let Some(since) = mem::take(&mut took.waits_since) {
            took.waited += since.elapsed();
        }
    }
}

/// Ends the span of a request with what it came to.
pub fn answered(mut sends: Step, answer: &Answer) {
    if let Some(status) = answer.http_status() {
        sends.set("http.response.status_code", i64::from(status));
    }
    sends.set("surveylab_gateway.answer", answer.name());
    if !matches!(answer, Answer::Added { .. }) {
        sends.failed(answer.name());
    }
}
