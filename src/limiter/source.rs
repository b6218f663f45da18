//! Where tokens come from: a bucket of this process's own, or one that replicas share.

use std::time::Duration;

use super::{
    adaptive::Epoch,
    bucket::Bucket,
    shared::{Leases, Report},
};
use crate::clock::Instant;

/// Tokens are taken at the moment of sending, and foretold before.
pub enum Source {
    Local(Bucket),
    /// Boxed, as it is several times as large.
    Leased(Box<Leases>),
}

impl Source {
    /// Takes one token, or says when one can be expected.
    pub fn take(&mut self, now: Instant) -> Result<(), Instant> {
        match self {
            Self::Local(bucket) => bucket.take(),
            Self::Leased(leases) => leases.take(now),
        }
    }

    /// When the `n`th token will be there, if none is taken before `from` and all as soon as they are from then on.
    pub fn earliest(&self, n: usize, from: Instant) -> Instant {
        match self {
            Self::Local(bucket) => bucket.earliest(n, from),
            Self::Leased(leases) => leases.earliest(n, from),
        }
    }

    /// The same, going by what others who share the source took lately, too.
    pub fn likely(&self, n: usize, from: Instant) -> Instant {
        match self {
            Self::Local(bucket) => bucket.earliest(n, from),
            Self::Leased(leases) => leases.likely(n, from),
        }
    }

    /// [`earliest`](Self::earliest) for a token that a permit can be given for, whose claim takes so long. Of leased ones only those count that
    /// are here: what the database will say is not known.
    pub fn permit(&self, n: usize, now: Instant, claim_time: Duration) -> Option<Instant> {
        match self {
            Self::Local(bucket) => Some(bucket.earliest(n, now)),
            Self::Leased(leases) => leases.permit(n, now, claim_time),
        }
    }

    /// Tokens at a moment, if none are taken until then.
    pub fn tokens(&self, at: Instant) -> f64 {
        match self {
            Self::Local(bucket) => bucket.tokens(at),
            Self::Leased(leases) => leases.tokens(at),
        }
    }

    /// How long a token may lie unused before the rate loses by it.
    pub fn slack(&self) -> Duration {
        match self {
            Self::Local(bucket) => bucket.slack(),
            Self::Leased(leases) => leases.slack(),
        }
    }

    /// Goes on at a lower rate, with nothing saved up.
    pub fn cut(&mut self, period: Duration, share: f64) {
        match self {
            Self::Local(bucket) => bucket.cut(period.div_f64(share)),
            Self::Leased(leases) => leases.cut(share),
        }
    }

    /// Goes on at a higher rate. What is leased follows with the next answer, as the row takes the same steps.
    pub fn raise(&mut self, period: Duration, share: f64) {
        match self {
            Self::Local(bucket) => bucket.raise(period.div_f64(share)),
            Self::Leased(_) => {}
        }
    }

    /// Has a 429 told to all who share the source.
    pub fn report(&mut self, epoch: Epoch, until: Instant) {
        if let Self::Leased(leases) = self {
            // Of several the first one's epoch is the one that the row may still have.
            let epoch = leases.report.map_or(epoch.number(), |before| before.epoch);
            leases.report = Some(Report { epoch, until });
        }
    }
}
