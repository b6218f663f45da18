//! Steps 3 to 7. They run in the task of the caller who leads, and go on in one of their own when that caller leaves, so
//! that nobody who leaves can cut a request short.

use std::{
    panic::AssertUnwindSafe,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use futures_util::{FutureExt as _, future::BoxFuture};
use tokio::{runtime::Handle, select};
use tokio_util::sync::CancellationToken;

use super::{
    Added, Answer, Core, Outcome,
    breaker::Pass,
    in_flight::{Landing, Progress},
    trail::{self, Waits},
    verdict::{Again, LATER, Verdict},
};
use crate::{
    activity::ACTIVITY,
    fail_point::{self, Place},
    invitation::{Failure, Reason, Sent},
    ledger::{Doubt, LastError, Record, Settlement},
    limiter::Permit,
    metrics,
    surveylab::{self, Request},
};

use claims::{End, NotOurs, Ours, Recorded};
use waits::{Attempts, shutting_down};

mod claims;
mod waits;

/// One flight under way: owns the duty to land it.
pub struct Trip {
    core: Arc<Core>,
    landing: Landing,
    request: Arc<Request>,
    /// For the first attempt, where it was there without waiting.
    permit: Option<Permit>,
    /// A claim that may be another process's: its outcome is waited for first.
    elsewhere: Option<Record>,
}

/// A trip that is polled by its leader. Dropped before its end, it goes on in a task of its own, unless nobody wants it.
pub struct UnderWay {
    /// `None` once it has ended.
    trip: Option<BoxFuture<'static, ()>>,
    abandoned: CancellationToken,
}

impl Future for UnderWay {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let Some(trip) = &mut self.trip else {
            return Poll::Ready(());
        };
        let polled = trip.as_mut().poll(cx);
        if polled.is_ready() {
            self.trip = None;
        }
        polled
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        let Some(trip) = self.trip.take().filter(|_| !self.abandoned.is_cancelled()) else {
            return;
        };
        // Without a runtime the process ends, and what is claimed comes back in doubt.
        if let Ok(runtime) = Handle::try_current() {
            runtime.spawn(trip);
        }
    }
}

enum Attempt {
    Answered(Answer),
    /// Nothing was sent, and nothing counts: a pause began, or the rate fell, after the permit was given.
    TooLate,
    /// SurveyLab did not process it; it may be tried again.
    Again(Again),
    /// Another process is under way with the key.
    Elsewhere(Record),
    /// The callers were told that the outcome could not be recorded; by now it is.
    Announced,
}

impl Trip {
    pub fn new(
        core: Arc<Core>,
        landing: Landing,
        request: Arc<Request>,
        permit: Option<Permit>,
        elsewhere: Option<Record>,
    ) -> Self {
        Self {
            core,
            landing,
            request,
            permit,
            elsewhere,
        }
    }

    /// Makes it a future that survives its leader, and counts among the trips that a shutdown waits for.
    pub fn under_way(self) -> UnderWay {
        let abandoned = self.landing.flight.abandoned.clone();
        let counted = self.core.trips.token();
        let trip = async move {
            self.run().await;
            drop(counted);
        };
        UnderWay {
            trip: Some(Box::pin(trip)),
            abandoned,
        }
    }

    /// Goes until the flight has landed, and its outcome is recorded.
    async fn run(mut self) {
        let cut_off = self.core.cut_off.clone();
        let (permit, elsewhere) = (self.permit.take(), self.elsewhere.take());
        let answer = select! {
            biased;
            () = cut_off.cancelled() => Some(self.cut_off()),
            answer = self.answer_or_doubt(permit, elsewhere) => answer,
        };
        if let Some(answer) = answer {
            self.landing.land(answer);
        }
    }

    /// What callers are told of a flight that the end of the process cuts short.
    fn cut_off(&self) -> Answer {
        Err(match &*self.landing.flight.progress.borrow() {
            // Announced, while its outcome waits to be recorded.
            Progress::Done(answer) => return answer.clone(),
            Progress::Claiming | Progress::OnTheWire => Failure::new(Reason::OutcomeInDoubt, Sent::Unknown),
            Progress::Waiting { last } => shutting_down(last.as_ref()),
            Progress::LookingUp | Progress::Gone => shutting_down(None),
        })
    }

    async fn answer_or_doubt(&self, permit: Option<Permit>, elsewhere: Option<Record>) -> Option<Answer> {
        match AssertUnwindSafe(self.answer(permit, elsewhere)).catch_unwind().await {
            Ok(answer) => answer,
            Err(_) => self.panicked().await,
        }
    }

    /// A bug; the key must not stay claimed for it until the next start. Whether a request went out, nobody knows.
    async fn panicked(&self) -> Option<Answer> {
        let key = &self.landing.flight.key;
        tracing::error!(?key, "a request panicked; please report it as a bug");
        if !self.landing.flight.progress.borrow().is_on_the_wire() {
            // Those who wait begin again.
            return None;
        }
        let failure = Failure::new(Reason::OutcomeInDoubt, Sent::Unknown);
        let error = LastError {
            reason: failure.reason,
            http_status: None,
        };
        let settlement = Settlement::InDoubt { error };
        let end = End::Settle(settlement, self.core.clock.timestamp());
        match self.end(end, Sent::Unknown).await {
            Recorded::Quietly => Some(Err(failure)),
            Recorded::Late => None,
        }
    }

    /// `None` if nobody waits for an answer any more, or all have been told one.
    async fn answer(&self, mut ready: Option<Permit>, elsewhere: Option<Record>) -> Option<Answer> {
        let mut attempts = Attempts {
            made: 0,
            sent: Sent::No,
            last: None,
            elsewhere,
        };
        if attempts.elsewhere.is_some()
            && let Some(answer) = self.wait_for_another(&attempts).await?
        {
            return Some(answer);
        }
        loop {
            let permit = match ready.take() {
                Some(permit) => permit,
                None => {
                    if let Some(away) = self.core.breaker.turns_away(self.collector_id()) {
                        return Some(self.turned_away(away, &attempts).await);
                    }
                    let _waits = Waits::begin(&self.landing.flight, self.terms()?.queue.lane, self.core.clock.now());
                    match self.permit().await? {
                        Ok(permit) => permit,
                        Err(refused) => return Some(self.given_up(attempts.refused(refused), &attempts).await),
                    }
                }
            };
            let pass = match self.core.breaker.enter(self.collector_id()) {
                Ok(pass) => pass,
                Err(away) => {
                    // It has taken no token: the next one's turn comes at once.
                    drop(permit);
                    return Some(self.turned_away(away, &attempts).await);
                }
            };
            let doubt = self.core.in_flight.commit(&self.landing.flight)?;
            let again = match self.attempt(permit, pass, doubt, &mut attempts).await {
                Attempt::Answered(answer) => return Some(answer),
                Attempt::Announced => return None,
                Attempt::TooLate => Again::AfterPause,
                Attempt::Again(again) => {
                    self.landing.flight.arrival.forget();
                    again
                }
                Attempt::Elsewhere(record) => {
                    attempts.elsewhere = Some(record);
                    if !self
                        .core
                        .in_flight
                        .uncommit(&self.landing.flight, attempts.last.clone())
                    {
                        return None;
                    }
                    match self.wait_for_another(&attempts).await? {
                        Some(answer) => return Some(answer),
                        None => continue,
                    }
                }
            };
            if let Some(failure) = self.wait_again(again, &attempts).await? {
                return Some(self.given_up(failure, &attempts).await);
            }
        }
    }

    /// Claims, sends, settles.
    async fn attempt(&self, mut permit: Permit, pass: Pass<'_>, doubt: Doubt, attempts: &mut Attempts) -> Attempt {
        fail_point::reached(Place::BeforeClaim);
        let Ours {
            count,
            was_in_doubt,
            fence,
        } = match self.claim(doubt, attempts.elsewhere.as_ref()).await {
            Ok(ours) => ours,
            Err(NotOurs::Elsewhere(record)) => return Attempt::Elsewhere(record),
            // After an attempt, its failure says more, and that its outcome is recorded.
            Err(NotOurs::Known(Err(failure))) if failure.reason == Reason::LedgerUnavailable => {
                let failure = attempts.last.take().unwrap_or(failure);
                return Attempt::Answered(self.given_up(failure, attempts).await);
            }
            Err(NotOurs::Known(answer)) => return Attempt::Answered(attempts.with_sent(answer)),
        };
        fail_point::reached(Place::AfterClaim);
        if permit.token().await.is_err() {
            drop(permit);
            return match self.end(End::Release, attempts.sent).await {
                Recorded::Quietly => Attempt::TooLate,
                Recorded::Late => Attempt::Announced,
            };
        }
        if !self.core.ledger.may_send(fence) {
            // Others may have taken this process for dead, and its claim be in doubt: nothing goes out under it.
            drop(permit);
            return match self.end(End::Release, attempts.sent).await {
                Recorded::Quietly => {
                    let failure = Failure::new(Reason::LedgerUnavailable, attempts.sent).retry_after(LATER);
                    Attempt::Answered(Err(attempts.last.take().unwrap_or(failure)))
                }
                Recorded::Late => Attempt::Announced,
            };
        }

        attempts.made += 1;
        self.landing.flight.effort.attempt();
        fail_point::reached(Place::BeforeSend);
        let sends = self.landing.flight.trace.request("send");
        let begin = self.core.clock.now();
        let answer = self.core.surveylab.send(&self.request).await;
        fail_point::reached(Place::AfterAnswer);
        let took = begin.elapsed();
        metrics::request(answer.name(), took);
        ACTIVITY.requested(took);
        pass.answered(&answer);
        trail::answered(sends, &answer);
        if let surveylab::Answer::RateLimited { retry_after } = answer {
            ACTIVITY.rate_limited();
            permit.rate_limited(retry_after);
            drop(permit);
        } else {
            permit.answered();
        }
        self.log(&answer);

        let verdict = Verdict::of(answer, self.core.settings.on_server_error);
        let settlement = verdict.settlement(was_in_doubt);
        let at = self.core.clock.timestamp();
        attempts.sent = attempts.sent.max(verdict.sent());
        if let Recorded::Late = self.end(End::Settle(settlement, at), attempts.sent).await {
            return Attempt::Announced;
        }
        fail_point::reached(Place::AfterSettle);
        match verdict {
            Verdict::Added { notification } => Attempt::Answered(Ok(Outcome::Added(Added {
                at,
                notification,
                attempts: count,
            }))),
            Verdict::InDoubt { failure } => Attempt::Answered(Err(failure)),
            Verdict::Failed { mut failure, again } => {
                failure.sent = attempts.sent;
                failure.still_in_doubt = was_in_doubt;
                if was_in_doubt && again != Again::No {
                    // Clients retry UNAVAILABLE by themselves, and a key in doubt is not to be sent again unasked.
                    failure.reason = Reason::OutcomeInDoubt;
                    failure.sent = Sent::Unknown;
                }
                if again == Again::AfterPause {
                    let pause = self.core.limiter.snapshot().pause;
                    failure.retry_after = Some(pause.max(LATER));
                }
                if again == Again::No || attempts.made >= self.core.settings.max_attempts {
                    return Attempt::Answered(Err(failure));
                }
                attempts.last = Some(failure);
                Attempt::Again(again)
            }
        }
    }

    fn collector_id(&self) -> &str {
        self.landing.flight.key.collector_id()
    }

    fn log(&self, answer: &surveylab::Answer) {
        let key = &self.landing.flight.key;
        match answer {
            surveylab::Answer::InDoubt { http_status, cause } => {
                tracing::warn!(?key, http_status, cause, "the outcome of a request is in doubt");
            }
            surveylab::Answer::Unreachable { cause } => tracing::warn!(?key, cause, "SurveyLab was not reached"),
            surveylab::Answer::Added { .. } => tracing::debug!(?key, "added"),
            // Not the answer itself: it may hold words of SurveyLab.
            _ => tracing::info!(
                ?key,
                answer = answer.name(),
                "SurveyLab refused or did not process a request"
            ),
        }
    }
}
