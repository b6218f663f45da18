//! governor's token bucket on tokio's clock.

use std::{num::NonZeroU32, time::Duration};

use governor::{
    Quota, RateLimiter,
    clock::Clock,
    middleware::StateInformationMiddleware,
    nanos::Nanos,
    state::{InMemoryState, NotKeyed},
};

use crate::clock::Instant;

/// governor's cells in one token, so that the bucket's capacity can be a fraction of a token: at least so many.
const CELLS_MIN: NonZeroU32 = NonZeroU32::new(100).unwrap();
/// A cell is not longer than this where the numbers allow it: what a slow rate keeps back is to be a moment, not the
/// hundredth part of an hour.
const CELL_MAX: Duration = Duration::from_millis(1);

/// How far apart the delays of two requests on their way to SurveyLab are assumed to be at most.
///
/// The bound "burst + rate·W in any window" is counted where requests arrive. Requests leave exactly as the bucket
/// allows, so one that is held up on its way (by a new connection, say) would bring the next ones too close. The
/// capacity keeps back what the rate would add in this time, at most half of the burst; that delays the end of a burst that
/// uses a full bucket, and costs nothing afterwards.
pub const JITTER: Duration = Duration::from_millis(20);

/// Follows tokio's pause, unlike governor's own clocks.
#[derive(Clone, Copy)]
struct TokioClock {
    origin: Instant,
}

impl Clock for TokioClock {
    type Instant = Nanos;

    fn now(&self) -> Nanos {
        self.origin.elapsed().into()
    }
}

type Governor = RateLimiter<NotKeyed, InMemoryState, TokioClock, StateInformationMiddleware>;

/// A token bucket whose tokens are counted when they are taken, and foretold before.
pub struct Bucket {
    governor: Governor,
    clock: TokioClock,
    burst: u32,
    /// Cells in one token.
    token: NonZeroU32,
    /// Time in which one cell is added.
    cell: Duration,
    /// Capacity in cells.
    capacity: u32,
    /// Cells that were there at a moment, from which those of any later moment follow.
    known: (Instant, u32),
}

impl Bucket {
    /// A bucket that holds up to `burst` tokens, gains one each `period`, and was empty when `rested` began.
    pub fn new(period: Duration, burst: u32, rested: Duration) -> Self {
        let clock = TokioClock { origin: Instant::now() };
        let token = token(period, burst);
        let cell = cell(period, token);
        let capacity = capacity(period, burst, token, cell);
        let mut bucket = Self {
            governor: governor(cell, capacity, token, clock),
            clock,
            burst,
            token,
            cell,
            capacity,
            known: (clock.origin, capacity),
        };
        let gained = rested.as_nanos() / cell.as_nanos();
        bucket.refit(period, u32::try_from(gained).unwrap_or(u32::MAX));
        bucket
    }

    /// Takes one token, or says when one will be there.
    pub fn take(&mut self) -> Result<(), Instant> {
        match self.governor.check_n(self.token) {
            Ok(Ok(snapshot)) => {
                self.known = (Instant::now(), snapshot.remaining_burst_capacity());
                Ok(())
            }
            Ok(Err(not_until)) => {
                let at: Duration = not_until.earliest_possible().into();
                Err(self.clock.origin + at)
            }
            // The capacity is never below one token.
            Err(_) => Err(Instant::now() + self.cell * self.token.get()),
        }
    }

    /// When the `n`th token will be there, if none is taken before `from` and all as soon as they are from then on.
    pub fn earliest(&self, n: usize, from: Instant) -> Instant {
        let have = u128::from(self.cells(from));
        let missing = (n as u128 * u128::from(self.token.get())).saturating_sub(have);
        let wait = missing.saturating_mul(self.cell.as_nanos());
        // A year stands for all longer waits.
        from + u64::try_from(wait).map_or(YEAR, Duration::from_nanos).min(YEAR)
    }

    /// Tokens at a moment, if none are taken until then.
    pub fn tokens(&self, at: Instant) -> f64 {
        f64::from(self.cells(at)) / f64::from(self.token.get())
    }

    /// How long a token may lie in the bucket before a full bucket costs the rate something.
    pub fn slack(&self) -> Duration {
        self.cell * (self.capacity - self.token.get())
    }

    /// Goes on at a lower rate, with an empty bucket: what was saved up must not come on top.
    pub fn cut(&mut self, period: Duration) {
        self.refit(period, 0);
    }

    /// Goes on at a higher rate, with what is in the bucket.
    pub fn raise(&mut self, period: Duration) {
        let cells = self.cells(Instant::now());
        self.refit(period, cells);
    }

    /// Cells at a moment, if none are taken until then.
    fn cells(&self, at: Instant) -> u32 {
        let (known_at, cells) = self.known;
        let gained = at.saturating_duration_since(known_at).as_nanos() / self.cell.as_nanos();
        let have = (u128::from(cells) + gained).min(u128::from(self.capacity));
        u32::try_from(have).unwrap_or(self.capacity)
    }

    fn refit(&mut self, period: Duration, cells: u32) {
        self.cell = cell(period, self.token);
        self.capacity = capacity(period, self.burst, self.token, self.cell);
        self.governor = governor(self.cell, self.capacity, self.token, self.clock);
        let cells = cells.min(self.capacity);
        if let Some(missing) = NonZeroU32::new(self.capacity - cells) {
            let _taken_out = self.governor.check_n(missing);
        }
        self.known = (Instant::now(), cells);
    }
}

const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);

/// So many cells in a token that the whole capacity can be counted in them.
fn token(period: Duration, burst: u32) -> NonZeroU32 {
    let wanted = period.as_nanos().div_ceil(CELL_MAX.as_nanos());
    let most = u32::MAX / burst.max(1);
    let cells = u32::try_from(wanted).unwrap_or(u32::MAX).min(most);
    NonZeroU32::new(cells).map_or(CELLS_MIN, |cells| cells.max(CELLS_MIN))
}

/// Rounded up, so that rounding never raises the rate.
fn cell(period: Duration, token: NonZeroU32) -> Duration {
    let nanos = period.as_nanos().div_ceil(u128::from(token.get())).max(1);
    u64::try_from(nanos).map_or(YEAR, Duration::from_nanos)
}

fn capacity(period: Duration, burst: u32, token: NonZeroU32, cell: Duration) -> u32 {
    let token = token.get();
    // governor counts the time that a full bucket takes to fill in 64 bits of nanoseconds, and adds such times.
    let countable = u128::from(u64::MAX / 4) / cell.as_nanos().max(1);
    let whole = burst
        .max(1)
        .saturating_mul(token)
        .min(u32::try_from(countable).unwrap_or(u32::MAX));
    let spare = (JITTER.as_nanos() * u128::from(token)).div_ceil(period.as_nanos().max(1));
    let most = (whole / 2).max(token);
    let spare = u32::try_from(spare).unwrap_or(most).min(most);
    whole.saturating_sub(spare).max(token)
}

fn governor(cell: Duration, capacity: u32, token: NonZeroU32, clock: TokioClock) -> Governor {
    let quota = Quota::with_period(cell)
        .unwrap_or_else(|| Quota::per_second(token))
        .allow_burst(NonZeroU32::new(capacity).unwrap_or(token));
    RateLimiter::direct_with_clock(quota, clock).with_middleware()
}
