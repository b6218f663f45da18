//! How a claim is made, and how it ends.

use std::{sync::atomic::Ordering, time::Duration};

use tokio::time::sleep;

use super::{
    super::{Answer, breaker::TurnedAway, is_of_another, known, ledger_unavailable, reused},
    Trip,
    waits::Attempts,
};
use crate::{
    clock::Timestamp,
    invitation::{Failure, Sent},
    ledger::{self, Claim, Claimed, Doubt, Fence, Record, Settlement, State},
};

/// A claim that was made.
pub(super) struct Ours {
    /// Which request of its key this is.
    pub(super) count: u32,
    pub(super) was_in_doubt: bool,
    pub(super) fence: Fence,
}

/// Why a claim was not made.
pub(super) enum NotOurs {
    /// What those who wait are told.
    Known(Answer),
    /// Another process has the key claimed.
    Elsewhere(Record),
}

/// How a claim ends.
pub(super) enum End {
    Settle(Settlement, Timestamp),
    Release,
}

/// Was the outcome recorded before anyone was told?
pub(super) enum Recorded {
    Quietly,
    /// No: the callers were told that the ledger is unavailable.
    Late,
}

impl Trip {
    /// Makes the claim, or says why the key can't be had. `seen` is a claim of another process that was waited for.
    pub(super) async fn claim(&self, mut doubt: Doubt, seen: Option<&Record>) -> Result<Ours, NotOurs> {
        let flight = &self.landing.flight;
        let _step = flight.trace.step("claim");
        loop {
            let claim = Claim {
                key: flight.key.clone(),
                fingerprint: flight.fingerprint,
                doubt,
                at: self.core.clock.timestamp(),
            };
            match self.core.ledger.claim(claim).await {
                Ok(Claimed::Yes {
                    attempts,
                    was_in_doubt,
                    fence,
                }) => {
                    self.core.in_flight.claimed(flight);
                    return Ok(Ours {
                        count: attempts,
                        was_in_doubt,
                        fence,
                    });
                }
                Ok(Claimed::No(record)) => {
                    let wanted = self.core.in_flight.doubt(flight);
                    if record.state == State::InDoubt && wanted == Doubt::Resend && doubt == Doubt::Hold {
                        // Somebody who wants that has joined meanwhile.
                        doubt = Doubt::Resend;
                        continue;
                    }
                    self.core.new_lately.store(false, Ordering::Relaxed);
                    if is_of_another(&record, flight.fingerprint, seen) {
                        return Err(NotOurs::Elsewhere(record));
                    }
                    let answer = known(Some(&record), flight.fingerprint, doubt);
                    return Err(NotOurs::Known(answer.unwrap_or_else(|| Err(reused()))));
                }
                Err(error) => {
                    let answer = self.known_without_a_claim(doubt).await;
                    let answer = answer.unwrap_or_else(|| Err(ledger_unavailable(&error, Sent::No)));
                    return Err(NotOurs::Known(answer));
                }
            }
        }
    }

    /// What the ledger knows of a key that is not to be claimed, or can't be, where it was not asked before. A claim that is
    /// there all the same is this flight's own, whose making could not be told.
    pub(super) async fn known_without_a_claim(&self, doubt: Doubt) -> Option<Answer> {
        if self.landing.flight.progress.borrow().is_decided() {
            return None;
        }
        self.known_now(doubt).await
    }

    /// What the breaker's refusal comes to: what the ledger knows of the key goes before it.
    pub(super) async fn turned_away(&self, away: TurnedAway, attempts: &Attempts) -> Answer {
        let doubt = self.core.in_flight.doubt(&self.landing.flight);
        let known = match attempts.elsewhere {
            // Another process had it claimed, and may have had an answer since.
            Some(_) => self.known_now(doubt).await,
            None => self.known_without_a_claim(doubt).await,
        };
        known.unwrap_or_else(|| Err(attempts.turned_away(away)))
    }

    /// What a call comes to that gets no further attempt. Since its last one the key was free, and another process may have had
    /// an outcome.
    pub(super) async fn given_up(&self, failure: Failure, attempts: &Attempts) -> Answer {
        let known = match attempts.made {
            0 => None,
            _ => self.known_now(self.core.in_flight.doubt(&self.landing.flight)).await,
        };
        known.map_or(Err(failure), |answer| attempts.with_sent(answer))
    }

    pub(super) async fn known_now(&self, doubt: Doubt) -> Option<Answer> {
        let flight = &self.landing.flight;
        let record = self.core.ledger.look_up(&flight.key).await.ok()?;
        known(
            record.filter(|record| record.state != State::Pending).as_ref(),
            flight.fingerprint,
            doubt,
        )
    }

    /// Ends the claim durably. If the ledger can't, tells the callers so and goes on trying: the key stays under way here,
    /// so that nobody sends again meanwhile.
    pub(super) async fn end(&self, end: End, sent: Sent) -> Recorded {
        let key = &self.landing.flight.key;
        let _step = self.landing.flight.trace.step("settle");
        let mut recorded = Recorded::Quietly;
        let mut wait = Duration::from_millis(50);
        loop {
            let result = match &end {
                End::Settle(settlement, at) => self.core.ledger.settle(key, settlement.clone(), *at).await,
                End::Release => self.core.ledger.release(key).await,
            };
            let error: ledger::Error = match result {
                Ok(()) => return recorded,
                Err(error) => error,
            };
            if let Recorded::Quietly = recorded {
                recorded = Recorded::Late;
                let sent = if sent == Sent::No { Sent::No } else { Sent::Yes };
                self.landing.announce(Err(ledger_unavailable(&error, sent)));
            }
            sleep(wait).await;
            wait = (wait * 2).min(Duration::from_secs(2));
        }
    }
}
