use std::time::Duration;

use super::{LEAD_MAX, Waiter, adaptive::Adaptive, shares::Shares, source::Source};
use crate::clock::Instant;

/// What the limiter keeps under its lock.
pub(super) struct State {
    pub source: Source,
    pub adaptive: Adaptive,
    pub waiters: Shares<Waiter>,
    /// Permits that are out.
    pub permits: usize,
    /// Those of them that have not taken their token yet.
    pub unsent: usize,
    /// How long it takes lately from a permit to its token.
    pub claim_time: Duration,
    pub closed: bool,
}

impl State {
    /// When the next permit is to be given, going by the tokens alone; `None` while no token is known of for it.
    pub fn next_permit(&self, now: Instant) -> Option<Instant> {
        let at = self.source.permit(self.unsent + 1, now, self.claim_time)?;
        Some(at.checked_sub(self.lead()).unwrap_or(at))
    }

    /// When one with so many ahead of it can expect a permit, going by the rate alone.
    pub fn expected(&self, ahead: usize, now: Instant) -> Instant {
        let from = self.adaptive.pause_until(now).unwrap_or(now);
        self.source.earliest(self.unsent + ahead + 1, from)
    }

    /// The same, if other replicas go on taking what they take.
    pub fn likely(&self, ahead: usize, now: Instant) -> Instant {
        let from = self.adaptive.pause_until(now).unwrap_or(now);
        self.source.likely(self.unsent + ahead + 1, from)
    }

    /// Follows slower claims at once, and faster ones slowly.
    pub fn learn_claim_time(&mut self, took: Duration) {
        self.claim_time = match took.checked_sub(self.claim_time) {
            Some(longer) => self.claim_time + longer / 2,
            None => self.claim_time - (self.claim_time - took) / 16,
        };
    }

    /// How long before its token is there the next permit is to be given. While a claim is made, the bucket goes on
    /// filling; only where it would be full before the claim is done does the rate lose by it.
    pub fn lead(&self) -> Duration {
        self.claim_time.saturating_sub(self.source.slack()).min(LEAD_MAX)
    }

    /// Takes out those whose bound now lies before the permit they could expect.
    pub fn hopeless(&mut self, now: Instant) -> Vec<(Waiter, Duration)> {
        let from = self.adaptive.pause_until(now).unwrap_or(now);
        let (source, unsent) = (&self.source, self.unsent);
        let expected = |place| source.earliest(unsent + place + 1, from);
        let out = self
            .waiters
            .retain(|place, waiter| waiter.until.is_none_or(|until| expected(place) <= until));
        let after = expected(0).saturating_duration_since(now);
        out.into_iter().map(|waiter| (waiter, after)).collect()
    }
}
