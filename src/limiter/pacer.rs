use std::sync::atomic::Ordering;

use tokio::{sync::OwnedSemaphorePermit, time::sleep_until};

use super::{Limiter, Permit};
use crate::clock::Instant;

/// Hands out the permits.
pub struct Pacer {
    pub(super) limiter: Limiter,
}

enum Turn {
    Given,
    Nobody,
    NotBefore(Instant),
    Closed,
}

impl Pacer {
    /// Ends only after [`Limiter::close`].
    pub async fn run(self) {
        let shared = &self.limiter.shared;
        // The place comes first: a token taken before there is a place would be kept from the bucket meanwhile.
        while let Ok(place) = shared.places.clone().acquire_owned().await {
            let mut place = Some(place);
            loop {
                match self.turn(&mut place) {
                    Turn::Given => break,
                    Turn::Closed => return,
                    Turn::Nobody => shared.wake.notified().await,
                    Turn::NotBefore(at) => {
                        tokio::select! {
                            () = sleep_until(at) => {}
                            () = shared.wake.notified() => {}
                        }
                    }
                }
            }
        }
    }

    fn turn(&self, place: &mut Option<OwnedSemaphorePermit>) -> Turn {
        let now = Instant::now();
        let mut state = self.limiter.lock();
        if state.closed {
            return Turn::Closed;
        }
        if state.adaptive.step(now) {
            let period = self.limiter.period_of(&state.adaptive);
            state.bucket.raise(period);
            tracing::info!(learned_rate = 1.0 / period.as_secs_f64(), "the rate rises again");
        }
        if state.lanes.len() == 0 {
            // Also while nobody waits: the next one is to find the rate as it should be, and the bucket filled at it.
            return state.adaptive.next_step().map_or(Turn::Nobody, Turn::NotBefore);
        }
        if let Some(until) = state.adaptive.pause_until(now) {
            return Turn::NotBefore(until);
        }
        let at = state.bucket.earliest(state.unsent + 1, now);
        let at = at.checked_sub(state.lead()).unwrap_or(at);
        if at > now {
            let step = state.adaptive.next_step().unwrap_or(at);
            return Turn::NotBefore(at.min(step));
        }
        let epoch = state.adaptive.epoch();
        while let Some(held) = place.take() {
            let Some(waiter) = state.lanes.pop() else {
                *place = Some(held);
                return Turn::Nobody;
            };
            self.limiter.shared.permits.fetch_add(1, Ordering::Relaxed);
            state.unsent += 1;
            let permit = Permit {
                limiter: self.limiter.clone(),
                epoch,
                given: now,
                has_token: false,
                place: Some(held),
            };
            match waiter.answer.send(Ok(permit)) {
                Ok(()) => return Turn::Given,
                // It left at this very moment: the next one gets the place and the token.
                Err(Ok(mut permit)) => {
                    *place = permit.place.take();
                    permit.has_token = true;
                    state.unsent -= 1;
                }
                Err(Err(_)) => return Turn::Given,
            }
        }
        Turn::Given
    }
}
