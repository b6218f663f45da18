//! What of the account's rate and burst goes into the row, so that leased tokens never break the bound.

use std::time::Duration;

use crate::{limiter::bucket::JITTER, rate::Rate};

/// How long a leased token can be used at most, from the moment on at which it may be used.
const VALIDITY_MAX: Duration = Duration::from_millis(200);
/// And at least: an answer of the database, a late timer and a claim must fit in.
const VALIDITY_MIN: Duration = Duration::from_millis(30);
/// More than this is not saved up, so that times stay far within 64 bits. Only slow rates with a great burst meet it.
const SAVED_MAX: Duration = Duration::from_secs(30 * 24 * 3600);

/// How the account's bucket is kept in the row.
///
/// The row gives each token a time from which on it may be used: by GCRA, with room for `capacity` tokens and one more each
/// `pace`. Its request may leave at any time within `validity` after that. So the requests that leave in a window of W
/// belong to times in a window of W + validity, of which there are at most `capacity + (W + validity) / pace`. For that never
/// to exceed `burst + W / period`, the capacity is the burst less what the rate adds in the validity (and in 20 ms more,
/// by which requests may come closer on their way to SurveyLab, as in the bucket of one process).
///
/// Where the burst is too small for that, the pace is slower than the rate instead, with a capacity of one: with
/// `(N - 1) · pace >= (N - burst) · period + reserve` for each N above the burst, N requests never leave too close.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    /// As configured: one request each.
    pub period: Duration,
    /// As configured.
    pub burst: u32,
    /// Between the times of two tokens once the bucket is empty.
    pub pace: Duration,
    /// By how much tokens may come before their pace: (capacity - 1) · pace.
    pub tolerance: Duration,
    /// How long a token can be used from its time on.
    pub validity: Duration,
}

impl Terms {
    /// A bucket that holds up to `burst` (at least 1) and gains one each `period`.
    pub fn new(period: Duration, burst: u32) -> Self {
        let burst = burst.max(1);
        let period = period.max(Duration::from_nanos(1));
        let whole = period.saturating_mul(burst);
        // At most half of the burst is kept back, and never what would slow the pace down, if it can be helped.
        let spare = (whole / 2).min(whole - period).min(VALIDITY_MAX + JITTER);
        let jitter = JITTER.min(spare / 4);
        let validity = (spare - jitter).max(VALIDITY_MIN);
        let reserve = validity + jitter;
        let (pace, tolerance) = match whole.checked_sub(period + reserve) {
            Some(tolerance) => (period, tolerance.min(SAVED_MAX)),
            None => {
                let nanos = (period + reserve).as_nanos().div_ceil(u128::from(burst));
                (nanoseconds(nanos), Duration::ZERO)
            }
        };
        Self {
            period,
            burst,
            pace,
            tolerance,
            validity: microseconds(validity),
        }
    }

    /// The tokens of a full bucket; at least 1.
    #[cfg(test)]
    pub fn capacity(&self) -> f64 {
        1.0 + self.tolerance.as_secs_f64() / self.pace.as_secs_f64()
    }
}

/// The smallest burst with which the rate can be used up when it is shared: what the rate adds in some 40 ms, and one more.
pub fn least_burst(rate: Rate) -> u32 {
    let needed = (VALIDITY_MIN.as_nanos() * 4).div_ceil(rate.period().as_nanos().max(1) * 3);
    u32::try_from(needed).unwrap_or(u32::MAX).saturating_add(1)
}

fn nanoseconds(nanos: u128) -> Duration {
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

/// Whole ones, as the row has them; rounded down, so that no token lives longer than was counted on.
fn microseconds(time: Duration) -> Duration {
    Duration::from_micros(u64::try_from(time.as_micros()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn terms(rate: &str, burst: u32) -> Terms {
        Terms::new(rate.parse::<Rate>().unwrap().period(), burst)
    }

    #[test]
    fn a_slow_rate_keeps_nearly_its_whole_burst() {
        for (rate, burst) in [("2/s", 5), ("120/m", 3), ("1/h", 3), ("1000/h", 1_000)] {
            let terms = terms(rate, burst);
            assert_eq!(terms.pace, terms.period);
            assert_eq!(terms.validity, VALIDITY_MAX, "{rate}");
            assert!(f64::from(burst) - terms.capacity() <= 0.45, "{rate}: {terms:?}");
        }
    }

    #[test]
    fn the_least_burst_lets_the_rate_be_used_up() {
        for rate in ["1/h", "2/s", "50/s", "1000/s", "5000/s", "1000000/s"] {
            let least = least_burst(rate.parse().unwrap());
            let terms = terms(rate, least);
            assert_eq!(terms.pace, terms.period, "{rate}: {terms:?}");
        }
        assert_eq!(least_burst("5000/s".parse().unwrap()), 201);
    }

    proptest! {
        /// The bound of the documentation, for each number of requests.
        #[test]
        fn tokens_used_at_any_time_of_their_validity_keep_the_bound(
            period in 1_000u64..10_000_000_000, burst in 1u32..2_000, more in 1u32..5_000,
        ) {
            let terms = Terms::new(Duration::from_nanos(period), burst);
            let count = f64::from(burst + more);
            // The first one leaves as late as it can, the last one as early.
            let apart = (count - 1.0) * terms.pace.as_secs_f64() - terms.tolerance.as_secs_f64();
            let window = apart - terms.validity.as_secs_f64();
            let allowed = f64::from(burst) + window / terms.period.as_secs_f64();
            prop_assert!(count <= allowed + 1e-6 * count, "{terms:?}: {count} of {allowed}");
        }
    }
}
