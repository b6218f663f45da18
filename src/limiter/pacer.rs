use tokio::{select, time::sleep_until};

use super::{Limiter, Permit, Waiter};
use crate::clock::Instant;

/// Hands out the permits.
pub struct Pacer {
    pub(super) limiter: Limiter,
}

enum Turn {
    /// Nothing to do until something comes.
    Rest,
    NotBefore(Instant),
    Closed,
}

impl Pacer {
    /// Ends only after [`Limiter::close`].
    pub async fn run(self) {
        let wake = &self.limiter.shared.wake;
        let mut given = Vec::new();
        loop {
            let turn = self.turn(&mut given);
            for (waiter, permit) in given.drain(..) {
                // One that left at this very moment drops its permit, which wakes this task for the next one.
                let _left = waiter.answer.send(Ok(permit));
            }
            match turn {
                Turn::Closed => return,
                Turn::Rest => wake.notified().await,
                Turn::NotBefore(at) => {
                    select! {
                        () = sleep_until(at) => {}
                        () = wake.notified() => {}
                    }
                }
            }
        }
    }

    /// Gives all permits that are due. They are sent when the lock is free again, as a permit's drop takes it.
    fn turn(&self, given: &mut Vec<(Waiter, Permit)>) -> Turn {
        let now = Instant::now();
        let mut state = self.limiter.lock();
        if state.closed {
            return Turn::Closed;
        }
        if state.adaptive.step(now) {
            let (period, share) = (self.limiter.period(), state.adaptive.share());
            state.source.raise(period, share);
            tracing::info!(learned_rate = share / period.as_secs_f64(), "the rate rises again");
        }
        let step = state.adaptive.next_step();
        loop {
            if state.waiters.len() == 0 || !self.limiter.has_place(&state) {
                // The rate rises also while nobody waits: the next one is to find it as it should be, and the bucket
                // filled at it.
                return step.map_or(Turn::Rest, Turn::NotBefore);
            }
            if let Some(until) = state.adaptive.pause_until(now) {
                return Turn::NotBefore(until);
            }
            let Some(at) = state.next_permit(now) else {
                // The next answer of the lease task wakes this one.
                self.limiter.ask_if_due(&mut state, now);
                return step.map_or(Turn::Rest, Turn::NotBefore);
            };
            if at > now {
                return Turn::NotBefore(step.map_or(at, |step| at.min(step)));
            }
            if let Some(waiter) = state.waiters.pop() {
                let permit = self.limiter.give(&mut state, waiter.came, now);
                given.push((waiter, permit));
            }
        }
    }
}
