//! The way of one request: join, look up, wait, claim, send, settle, and perhaps again. Unary calls and stream items go
//! the same way; a stream is only another source and sink.

use std::{
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::{select, time::timeout_at};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    clock::{self, Clock, Instant},
    invitation::{Failure, Invitation, Key, Reason, Sent, Violation, validate},
    ledger::{Census, Doubt, Ledger, Query, Record, Resolution, Resolved, State},
    limiter::{Lane, Limiter, Queue},
    surveylab::{Request, SurveyLab},
};

use breaker::Breaker;
pub use breaker::BreakerStanding;
pub use call::{Added, Answer, Call, Outcome, Settings};
use flight::Trip;
use in_flight::{Entered, InFlight, Lead, Observed, Progress, Seat};
use known::{is_of_another, known, ledger_unavailable, reused};
use standing::Checks;
pub use standing::{Serving, Standing};
pub use trail::{Role, Spent, Trail};
pub use verdict::{LATER, OnServerError};

mod breaker;
mod call;
mod flight;
mod in_flight;
mod known;
mod retry;
mod standing;
mod trail;
mod verdict;

#[cfg(test)]
mod tests;

/// The one way of all calls. Cheap to clone: all clones are one.
#[derive(Clone)]
pub struct Dispatcher {
    core: Arc<Core>,
}

struct Core {
    surveylab: Arc<dyn SurveyLab>,
    ledger: Arc<dyn Ledger>,
    limiter: Limiter,
    breaker: Breaker,
    clock: Clock,
    settings: Settings,
    in_flight: Arc<InFlight>,
    /// Keys were new lately, so that a claim without a look-up is worth trying. A guess: lists that are sent again are known
    /// from one end to the other, and a look-up is cheaper than a claim that can't be made.
    new_lately: AtomicBool,
    trips: TaskTracker,
    checks: Checks,
    /// Nothing new goes out.
    closing: CancellationToken,
    /// What is still under way is cut off; its claims come back in doubt at the next start.
    cut_off: CancellationToken,
}

impl Dispatcher {
    pub fn new(
        surveylab: Arc<dyn SurveyLab>,
        ledger: Arc<dyn Ledger>,
        limiter: Limiter,
        clock: Clock,
        settings: Settings,
    ) -> Self {
        let breaker = {
            let surveylab = surveylab.clone();
            Breaker::new(settings.breaker_after, clock.clone(), move || surveylab.token_version())
        };
        Self {
            core: Arc::new(Core {
                surveylab,
                ledger,
                limiter,
                breaker,
                clock,
                settings,
                in_flight: Arc::default(),
                new_lately: AtomicBool::new(true),
                trips: TaskTracker::new(),
                checks: Checks::default(),
                closing: CancellationToken::new(),
                cut_off: CancellationToken::new(),
            }),
        }
    }

    /// Checks an invitation and makes it ready to be sent, or says all that is wrong with it.
    pub fn prepare(&self, invitation: Invitation) -> Result<Arc<Request>, Vec<Violation>> {
        let mut violations = validate(&invitation.key, &invitation.respondent);
        match self.core.surveylab.encode(invitation) {
            Ok(request) if violations.is_empty() => return Ok(Arc::new(request)),
            Ok(_) => {}
            // A field that is too long by itself says so already.
            Err(too_long) if violations.iter().any(|other| other.field == too_long.field) => {}
            Err(too_long) => violations.push(too_long),
        }
        Err(violations)
    }

    /// A call with its bounds: the caller's deadline, or for a unary call without one the longest wait.
    pub fn call(
        &self,
        request: Arc<Request>,
        doubt: Doubt,
        queue: impl Into<Queue>,
        deadline: Option<Instant>,
    ) -> Call {
        let queue = queue.into();
        let until = match queue.lane {
            Lane::Unary => Some(deadline.unwrap_or_else(|| self.core.clock.now() + self.core.settings.max_wait)),
            Lane::Stream(_) => deadline,
        };
        Call {
            request,
            doubt,
            queue,
            deadline,
            trail: None,
            until,
        }
    }

    /// Adds a respondent, at most once per key.
    ///
    /// Dropping the future withdraws the call while it waits, unless another caller has joined. Once a request is
    /// claimed it goes its way, and its outcome is recorded.
    pub async fn add(&self, call: &Call) -> Answer {
        loop {
            let answer = match self.core.in_flight.enter(call) {
                Entered::Reused => return Err(reused()),
                Entered::Undecided(mut progress) => {
                    let decided = progress.wait_for(Progress::is_decided);
                    // An error says that the flight has ended, which decides it too.
                    let _ = within(call.deadline, decided).await?;
                    None
                }
                Entered::Joins(seat) => {
                    if let Some(trail) = &call.trail {
                        trail.takes(seat.flight(), Role::Joins);
                    }
                    match self.too_late_to_join(seat, call) {
                        Ok(seat) => self.wait(seat, call).await,
                        Err(failure) => return Err(failure),
                    }
                }
                Entered::Leads(lead) => self.lead(lead, call).await,
            };
            if let Some(answer) = answer {
                return answer;
            }
        }
    }

    /// Says what `add` would do, and does nothing.
    pub async fn check(&self, call: &Call) -> Answer {
        let invitation = &call.request.invitation;
        let mut claimed = None;
        loop {
            self.off_the_wire(call).await?;
            let record = within(call.deadline, self.core.ledger.look_up(&invitation.key)).await?;
            match record.map_err(|error| ledger_unavailable(&error, Sent::No))? {
                // A claim made since the key was last seen off the wire has its outcome to come. One that is still there
                // when the key is off the wire again was lost.
                Some(record) if record.state == State::Pending && claimed.as_ref() != Some(&record) => {
                    claimed = Some(record);
                    let settled = within(call.deadline, self.core.ledger.settled(&invitation.key)).await?;
                    settled.map_err(|error| ledger_unavailable(&error, Sent::No))?;
                }
                record => {
                    let answer = known(record.as_ref(), invitation.fingerprint, call.doubt);
                    return answer.unwrap_or(Ok(Outcome::WouldAdd));
                }
            }
        }
    }

    /// Waits until the ledger can tell what this process knows of the key; fails where that decides.
    async fn off_the_wire(&self, call: &Call) -> Result<(), Failure> {
        let invitation = &call.request.invitation;
        loop {
            match self.core.in_flight.observe(&invitation.key, invitation.fingerprint) {
                Observed::Nobody => return Ok(()),
                Observed::Reused => return Err(reused()),
                Observed::Undecided(mut progress) => {
                    // An error says that the flight has ended, which decides it too.
                    let _ = within(call.deadline, progress.wait_for(Progress::is_decided)).await?;
                }
                Observed::UnderWay(mut progress) => {
                    let off = progress.wait_for(|progress| !progress.is_on_the_wire());
                    match within(call.deadline, off).await?.as_deref() {
                        // An outcome that can't be recorded stays under way; every other one is in the ledger.
                        Ok(Progress::Done(Err(failure))) if failure.reason == Reason::LedgerUnavailable => {
                            return Err(failure.clone());
                        }
                        // Nothing of it is in the ledger that was not there before.
                        Ok(Progress::Waiting { .. }) => return Ok(()),
                        _ => {}
                    }
                }
            }
        }
    }

    /// What the ledger knows of a key.
    pub async fn get(&self, key: &Key) -> Result<Option<Record>, Failure> {
        let record = self.core.ledger.look_up(key).await;
        record.map_err(|error| ledger_unavailable(&error, Sent::No))
    }

    /// A page of what the ledger knows, in the order of keys.
    pub async fn list(&self, query: Query) -> Result<Vec<Record>, Failure> {
        let records = self.core.ledger.list(query).await;
        records.map_err(|error| ledger_unavailable(&error, Sent::No))
    }

    /// How many keys stand in which state, without asking the disk or the database: see [`Ledger::census`].
    pub fn census(&self) -> Census {
        self.core.ledger.census()
    }

    /// Ends the doubt about a key with what a person found out.
    pub async fn resolve(&self, key: &Key, resolution: Resolution) -> Result<Resolved, Failure> {
        let at = self.core.clock.timestamp();
        let resolved = self.core.ledger.resolve(key, resolution, at).await;
        resolved.map_err(|error| ledger_unavailable(&error, Sent::No))
    }

    /// Refuses what waits and what comes. What is on the wire goes on.
    pub fn close(&self) {
        self.core.closing.cancel();
        self.core.limiter.close();
        self.core.trips.close();
    }

    /// After [`close`](Self::close): waits until everything on the wire is answered and recorded.
    pub async fn drained(&self) {
        self.core.trips.wait().await;
    }

    /// Ends what is still under way, now. Claims that are not settled are in doubt at the next start.
    pub async fn cut_off(&self) {
        self.core.cut_off.cancel();
        self.core.trips.wait().await;
    }

    /// Keys with a request that may be on the wire, or an outcome to be recorded.
    pub fn on_the_wire(&self) -> usize {
        self.core.in_flight.committed()
    }

    async fn lead(&self, lead: Lead, call: &Call) -> Option<Answer> {
        let Lead { seat, landing } = lead;
        if let Some(trail) = &call.trail {
            trail.takes(&landing.flight, Role::Leads);
        }
        // Where nothing has to be waited for, the claim itself looks the key up: one step of the ledger instead of two.
        let in_time = call.until.is_none_or(|until| self.core.clock.now() <= until);
        // With the breaker open only what the ledger does not know is turned away.
        let claims = in_time && self.core.new_lately.load(Ordering::Relaxed) && !self.core.breaker.is_open();
        let permit = if claims {
            self.core.limiter.try_acquire(call.queue.lane)
        } else {
            None
        };
        let mut elsewhere = None;
        if permit.is_none() {
            let looked_up = match within(call.deadline, self.core.ledger.look_up(&landing.flight.key)).await {
                Ok(looked_up) => looked_up,
                Err(failure) => return Some(Err(failure)),
            };
            let doubt = self.core.in_flight.doubt(&landing.flight);
            let answer = match looked_up {
                Ok(Some(record)) if is_of_another(&record, landing.flight.fingerprint, None) => {
                    elsewhere = Some(record);
                    None
                }
                Ok(record) => known(record.as_ref(), landing.flight.fingerprint, doubt),
                Err(error) => Some(Err(ledger_unavailable(&error, Sent::No))),
            };
            self.core
                .new_lately
                .store(answer.is_none() && elsewhere.is_none(), Ordering::Relaxed);
            if let Some(answer) = answer {
                landing.land(answer.clone());
                return Some(answer);
            }
            landing.looked_up();
        }
        let flight = landing.flight.clone();
        let mut trip = Trip::new(self.core.clone(), landing, call.request.clone(), permit, elsewhere).under_way();
        // Dropped before the trip, so that one which nobody wants gets no task of its own.
        let seat = seat;
        {
            // Does not watch the flight's progress, each step of which would wake the one who makes it.
            let mut announced = pin!(flight.announced.notified());
            let mut late = pin!(clock::until(call.until));
            select! {
                biased;
                () = &mut trip => {}
                () = &mut announced => {}
                () = &mut late => {}
            }
        }
        // If it has not ended it goes on by itself, as the caller may have reason to wait on.
        drop(trip);
        self.wait(seat, call).await
    }

    /// Refuses at once one whose bound passes before the turn of the flight that it has joined, as one who came alone is.
    fn too_late_to_join(&self, mut seat: Seat, call: &Call) -> Result<Seat, Failure> {
        let flight = seat.flight();
        let wait = self.core.limiter.expected_wait(&flight.arrival, call.queue);
        match (wait, call.until) {
            (Some(wait), Some(until)) if self.core.clock.now() + wait > until && seat.withdraw() => {
                Err(Failure::new(Reason::WaitTooLong, Sent::No).retry_after(wait))
            }
            _ => Ok(seat),
        }
    }

    /// Waits for a flight's answer, up to the call's bounds; `None` if the flight ended without one.
    async fn wait(&self, mut seat: Seat, call: &Call) -> Option<Answer> {
        let Some(until) = call.until else {
            return seat.answer().await;
        };
        let deadline = call.deadline;
        if let Ok(answer) = timeout_at(until, seat.answer()).await {
            // The limiter keeps the same time, and may be the first to tell.
            let passed = deadline.is_some_and(|deadline| deadline <= self.core.clock.now() + TIMER_GRAIN);
            return answer.map(|answer| {
                answer.map_err(|mut failure| {
                    failure.deadline_passed = failure.reason == Reason::WaitTooLong && passed;
                    failure
                })
            });
        }
        // From here on only a request on the wire is worth waiting for, by those who have no deadline.
        loop {
            let progress = match deadline {
                None => seat.off_the_wire().await,
                Some(deadline) => match timeout_at(deadline, seat.off_the_wire()).await {
                    Ok(progress) => progress,
                    Err(_) => return Some(Err(Failure::new(Reason::DeadlineAfterSend, Sent::Unknown))),
                },
            };
            let failure = match progress {
                Progress::Done(answer) => return Some(answer),
                Progress::Gone => return None,
                Progress::Waiting { last: Some(last) } => last,
                Progress::LookingUp | Progress::Claiming | Progress::Waiting { last: None } | Progress::OnTheWire => {
                    let wait = self.core.limiter.expected_wait(&seat.flight().arrival, call.queue);
                    let wait = wait.unwrap_or_default().max(LATER);
                    let mut failure = Failure::new(Reason::WaitTooLong, Sent::No).retry_after(wait);
                    failure.deadline_passed = deadline.is_some();
                    failure
                }
            };
            // It may have gone on the wire, or ended, since: then there is more to tell.
            if seat.withdraw() {
                return Some(Err(failure));
            }
        }
    }
}

/// tokio's timers are exact to a millisecond.
const TIMER_GRAIN: Duration = Duration::from_millis(1);

/// Awaits something that sends nothing, up to the caller's deadline.
async fn within<T>(deadline: Option<Instant>, future: impl Future<Output = T>) -> Result<T, Failure> {
    match deadline {
        None => Ok(future.await),
        Some(deadline) => timeout_at(deadline, future).await.map_err(|_| {
            let mut failure = Failure::new(Reason::WaitTooLong, Sent::No).retry_after(LATER);
            failure.deadline_passed = true;
            failure
        }),
    }
}
