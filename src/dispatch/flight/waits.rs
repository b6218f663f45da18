//! What a flight waits for: its turn, the time between two attempts, another process.

use futures_util::{
    FutureExt as _,
    future::{Fuse, FusedFuture as _},
};
use tokio::{pin, select, time::sleep};

use super::{
    super::{
        Answer,
        breaker::TurnedAway,
        in_flight::Terms,
        ledger_unavailable, retry,
        verdict::{Again, LATER},
    },
    Trip,
};
use crate::{
    invitation::{Failure, Reason, Sent},
    ledger::Record,
    limiter::{Permit, Queue, Refused},
    metrics,
};

/// What this call's attempts have come to so far.
pub(super) struct Attempts {
    pub(super) made: u32,
    pub(super) sent: Sent,
    pub(super) last: Option<Failure>,
    /// Another process's claim that was waited for.
    pub(super) elsewhere: Option<Record>,
}

impl Trip {
    /// Waits for a permit on the flight's terms, which get better when callers join. `None` once it is abandoned.
    pub(super) async fn permit(&self) -> Option<Result<Permit, Refused>> {
        loop {
            let terms = self.terms()?;
            match self.permit_on(terms).await? {
                None => self.landing.flight.arrival.forget(),
                // Who has joined with more time has not lost its place by it.
                Some(Err(Refused::WaitTooLong { .. })) if self.terms()?.until != terms.until => {}
                got => return got,
            }
        }
    }

    /// The same on these terms; `Some(None)` once a better lane is there.
    async fn permit_on(&self, terms: Terms) -> Option<Option<Result<Permit, Refused>>> {
        let flight = &self.landing.flight;
        let limiter = &self.core.limiter;
        let first = limiter.acquire_again(&flight.arrival, terms.queue, terms.until).fuse();
        pin!(first);
        // Boxed, as there hardly ever is one.
        let place = |queue: Queue, until| limiter.acquire(queue, until).boxed().fuse();
        let mut joined = terms.second;
        let mut second = joined.map_or_else(Fuse::terminated, |queue| place(queue, terms.until));
        let mut places = 1 + usize::from(joined.is_some());
        loop {
            let got = select! {
                biased;
                () = flight.abandoned.cancelled() => return None,
                got = &mut first => got,
                got = &mut second => got,
                () = flight.improved.notified() => {
                    let better = self.terms()?;
                    // Only a better lane is worth the place in a queue.
                    if better.queue != terms.queue {
                        return Some(None);
                    }
                    if better.second != joined
                        && let Some(queue) = better.second
                    {
                        places += usize::from(second.is_terminated());
                        joined = better.second;
                        second = place(queue, better.until);
                    }
                    continue;
                }
            };
            places -= 1;
            // What one queue refuses the other may give.
            if got.is_ok() || places == 0 {
                return Some(Some(got));
            }
        }
    }

    /// Lets the time pass that lies between two attempts. `Some(Some(_))` if there is no time for another one, `None` if
    /// nobody waits any more.
    pub(super) async fn wait_again(&self, again: Again, attempts: &Attempts) -> Option<Option<Failure>> {
        let flight = &self.landing.flight;
        if !self.core.in_flight.uncommit(flight, attempts.last.clone()) {
            return None;
        }
        let Again::After(asked) = again else {
            return Some(None);
        };
        let wait = retry::backoff(attempts.made, asked);
        let until = self.terms()?.until;
        if until.is_some_and(|until| until < self.core.clock.now() + wait) {
            return Some(Some(attempts.refused(Refused::WaitTooLong { after: wait })));
        }
        select! {
            biased;
            () = flight.abandoned.cancelled() => None,
            () = self.core.closing.cancelled() => Some(Some(attempts.refused(Refused::ShuttingDown))),
            () = sleep(wait) => Some(None),
        }
    }

    /// Waits until another process is through with the key. `Some(Some(_))` if that says what callers are told, or there is no
    /// time for it, `None` if nobody waits any more.
    pub(super) async fn wait_for_another(&self, attempts: &Attempts) -> Option<Option<Answer>> {
        let flight = &self.landing.flight;
        let settled = select! {
            biased;
            () = flight.abandoned.cancelled() => return None,
            () = self.core.closing.cancelled() => return Some(Some(Err(attempts.refused(Refused::ShuttingDown)))),
            settled = self.core.ledger.settled(&flight.key) => settled,
        };
        Some(match settled {
            // What is known by now needs no turn.
            Ok(()) => {
                let known = self.known_now(self.core.in_flight.doubt(flight)).await;
                known.map(|answer| attempts.with_sent(answer))
            }
            Err(error) => Some(Err(ledger_unavailable(&error, attempts.sent))),
        })
    }

    pub(super) fn terms(&self) -> Option<Terms> {
        self.core.in_flight.terms(&self.landing.flight)
    }
}

/// What a call fails with when the process ends before another attempt.
pub(super) fn shutting_down(last: Option<&Failure>) -> Failure {
    match last {
        // Never UNAVAILABLE: clients would send the key in doubt again by themselves.
        Some(last) if last.still_in_doubt => last.clone(),
        last => {
            let sent = last.map_or(Sent::No, |last| last.sent);
            Failure::new(Reason::ShuttingDown, sent).retry_after(LATER)
        }
    }
}

impl Attempts {
    /// What the ledger says of the key, where a request of this call may have been sent before.
    pub(super) fn with_sent(&self, answer: Answer) -> Answer {
        answer.map_err(|mut failure| {
            if failure.sent == Sent::No {
                failure.sent = self.sent;
            }
            failure
        })
    }

    /// What a call fails with when it may not wait for another attempt: with its last attempt's failure, if there was one.
    pub(super) fn refused(&self, refused: Refused) -> Failure {
        let (reason, after) = match refused {
            Refused::ShuttingDown => return shutting_down(self.last.as_ref()),
            Refused::WaitTooLong { after } => (Reason::WaitTooLong, after),
            Refused::QueueFull { after } => (Reason::QueueFull, after),
        };
        let failure = self.last.clone();
        failure
            .unwrap_or_else(|| Failure::new(reason, self.sent))
            .retry_after(after)
    }

    /// The same where the breaker is open.
    pub(super) fn turned_away(&self, away: TurnedAway) -> Failure {
        metrics::turned_away(away.reason.as_str());
        let failure = self.last.clone().unwrap_or_else(|| {
            let mut failure = Failure::new(away.reason, self.sent);
            failure.turned_away_after = Some(away.refusals);
            failure
        });
        failure.retry_after(away.retry_after)
    }
}
