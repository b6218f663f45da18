use std::{sync::atomic::Ordering, time::Duration};

use tokio::{sync::OwnedSemaphorePermit, time::sleep_until};

use super::{Limiter, adaptive::Epoch};
use crate::clock::Instant;

/// A place in flight, held until this is dropped, and the right to one token.
pub struct Permit {
    pub(super) limiter: Limiter,
    pub(super) epoch: Epoch,
    pub(super) given: Instant,
    pub(super) has_token: bool,
    pub(super) place: Option<OwnedSemaphorePermit>,
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
    pub fn answered(&self) {
        self.limiter.lock().adaptive.answered(self.epoch);
    }

    /// Takes the token; to be called right before the request goes out.
    pub async fn token(&mut self) -> Result<(), TooLate> {
        let ready = Instant::now();
        loop {
            let now = Instant::now();
            let at = {
                let mut state = self.limiter.lock();
                if state.adaptive.pause_until(now).is_some() {
                    return Err(TooLate);
                }
                match state.bucket.take() {
                    Ok(()) => {
                        state.unsent -= 1;
                        state.learn_claim_time(ready - self.given);
                        self.has_token = true;
                        return Ok(());
                    }
                    Err(at) => at,
                }
            };
            if at > ready + TOKEN_WAIT {
                return Err(TooLate);
            }
            sleep_until(at).await;
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.limiter.shared.permits.fetch_sub(1, Ordering::Relaxed);
        if !self.has_token {
            self.limiter.lock().unsent -= 1;
            // Its token is free for the next one.
            self.limiter.shared.wake.notify_one();
        }
    }
}
