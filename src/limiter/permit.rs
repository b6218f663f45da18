use std::time::Duration;

use tokio::{select, time::sleep_until};

use super::{Came, Limiter, adaptive::Epoch};
use crate::{clock::Instant, metrics};

/// A place in flight, held until this is dropped, and the right to one token.
pub struct Permit {
    pub(super) limiter: Limiter,
    pub(super) epoch: Epoch,
    pub(super) came: Came,
    pub(super) given: Instant,
    pub(super) has_token: bool,
    pub(super) is_answered: bool,
}

/// The permit is worth nothing any more: a pause began, or the rate fell, after it was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooLate;

/// How long [`Permit::token`] waits at most. Its caller holds a claim, which says that a request may be on the wire.
const TOKEN_WAIT: Duration = Duration::from_millis(100);

impl Permit {
    /// SurveyLab answered 429: everybody pauses, and the rate is cut.
    pub fn rate_limited(&self, retry_after: Option<Duration>) {
        self.limiter.rate_limited(self.epoch, retry_after);
    }

    /// SurveyLab answered anything else.
    pub fn answered(mut self) {
        self.is_answered = true;
    }

    /// Takes the token; to be called right before the request goes out.
    pub async fn token(&mut self) -> Result<(), TooLate> {
        let ready = Instant::now();
        loop {
            let came = self.limiter.shared.tokens.notified();
            let now = Instant::now();
            let at = {
                let mut state = self.limiter.lock();
                if state.adaptive.pause_until(now).is_some() {
                    return Err(TooLate);
                }
                match state.source.take(now) {
                    Ok(()) => {
                        state.unsent -= 1;
                        state.learn_claim_time(ready - self.given);
                        self.has_token = true;
                        drop(state);
                        metrics::waited(self.came.lane, self.given - self.came.at);
                        return Ok(());
                    }
                    Err(at) => {
                        self.limiter.ask_if_due(&mut state, now);
                        at
                    }
                }
            };
            // A leased token that is foretold for now is there only when the database says so.
            let end = ready + TOKEN_WAIT;
            if at > end || now >= end {
                return Err(TooLate);
            }
            select! {
                () = sleep_until(if at > now { at } else { end }) => {}
                () = came => {}
            }
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut state = self.limiter.lock();
        if self.is_answered {
            state.adaptive.answered(self.epoch);
        }
        // Whoever waits may have waited for this place, or gets the token that was not taken.
        let is_awaited = state.waiters.len() > 0 && !(self.has_token && self.limiter.has_place(&state));
        state.permits -= 1;
        state.unsent -= usize::from(!self.has_token);
        drop(state);
        if is_awaited {
            self.limiter.shared.wake.notify_one();
        }
    }
}
