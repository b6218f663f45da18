//! What calls came to and how long SurveyLab took, counted in process for the status page: it must show the last hour
//! where nobody scrapes metrics, too. A call costs one relaxed atomic, a request another.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

/// Of the whole process, as its metrics are.
pub static ACTIVITY: Activity = Activity::new();

/// What one call, or one item of a stream, came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    Added,
    Duplicate,
    /// SurveyLab refused it, did not process it or was not reached.
    Failed,
    /// Its outcome is in doubt, since now or since before.
    InDoubt,
    /// All that the gateway decides by itself: bad input, a wait too long, no ledger.
    Other,
}

const ENDS: usize = 5;

/// Durations in microseconds: exact below `STEPS`, then so many buckets for every doubling.
const STEPS: u64 = 8;
const STEP_BITS: u32 = STEPS.trailing_zeros();
/// Durations from 252 s on share the last bucket.
const BUCKETS: usize = ((27 - STEP_BITS + 2) * STEPS as u32) as usize;

/// Counters that only rise.
pub struct Activity {
    ended: [AtomicU64; ENDS],
    /// Requests to SurveyLab, by how long they took.
    took: [AtomicU64; BUCKETS],
    rate_limited: AtomicU64,
}

impl Default for Activity {
    fn default() -> Self {
        Self::new()
    }
}

impl Activity {
    pub const fn new() -> Self {
        Self {
            ended: [const { AtomicU64::new(0) }; ENDS],
            took: [const { AtomicU64::new(0) }; BUCKETS],
            rate_limited: AtomicU64::new(0),
        }
    }

    /// A call has its answer.
    pub fn ended(&self, how: Ended) {
        self.ended[how as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// SurveyLab answered a request, or did not in time.
    pub fn requested(&self, took: Duration) {
        self.took[bucket(took)].fetch_add(1, Ordering::Relaxed);
    }

    /// The answer was a 429.
    pub fn rate_limited(&self) {
        self.rate_limited.fetch_add(1, Ordering::Relaxed);
    }

    /// All that was counted so far.
    pub fn counts(&self) -> Counts {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Counts {
            ended: self.ended.each_ref().map(load),
            took: self.took.each_ref().map(load),
            rate_limited: load(&self.rate_limited),
        }
    }
}

/// What was counted up to a moment, or between two.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counts {
    ended: [u64; ENDS],
    took: [u64; BUCKETS],
    pub rate_limited: u64,
}

impl Counts {
    /// What was counted since an earlier moment.
    pub fn since(&self, earlier: &Self) -> Self {
        let mut since = self.clone();
        let counters = since.ended.iter_mut().chain(&mut since.took);
        for (now, then) in counters.zip(earlier.ended.iter().chain(&earlier.took)) {
            *now = now.saturating_sub(*then);
        }
        since.rate_limited = since.rate_limited.saturating_sub(earlier.rate_limited);
        since
    }

    pub fn ended(&self, how: Ended) -> u64 {
        self.ended[how as usize]
    }

    /// Requests to SurveyLab.
    pub fn requests(&self) -> u64 {
        self.took.iter().sum()
    }

    /// The time within which this share of the requests, from 0 to 1, was answered, to within 7 %; `None` without requests.
    pub fn quantile(&self, share: f64) -> Option<Duration> {
        let requests = self.requests();
        let wanted = ((requests as f64 * share).ceil() as u64).clamp(1, requests.max(1));
        let mut seen = 0;
        let index = self.took.iter().position(|count| {
            seen += count;
            seen >= wanted
        })?;
        Some(middle(index))
    }
}

fn bucket(took: Duration) -> usize {
    let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
    if micros < STEPS {
        return micros as usize;
    }
    // Of the number's binary form: how many places, and the three after the first one.
    let doublings = micros.ilog2() - STEP_BITS;
    let step = (micros >> doublings) - STEPS;
    let index = u64::from(doublings + 1) * STEPS + step;
    usize::try_from(index).unwrap_or(usize::MAX).min(BUCKETS - 1)
}

/// The middle of a bucket.
fn middle(index: usize) -> Duration {
    let index = index as u64;
    let Some(doublings) = (index / STEPS).checked_sub(1) else {
        return Duration::from_micros(index);
    };
    let least = (STEPS + index % STEPS) << doublings;
    Duration::from_micros(least + ((1 << doublings) >> 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taking(times: impl IntoIterator<Item = Duration>) -> Counts {
        let activity = Activity::new();
        times.into_iter().for_each(|time| activity.requested(time));
        activity.counts()
    }

    #[test]
    fn every_duration_is_told_to_within_seven_percent() {
        let mut micros = 1u64;
        while micros < 250_000_000 {
            let told = taking([Duration::from_micros(micros)]).quantile(0.5).unwrap();
            let told = told.as_micros() as f64;
            assert!((told / micros as f64 - 1.0).abs() < 0.07, "{micros}: {told}");
            micros += micros / 50 + 1;
        }
        assert!(taking([Duration::MAX]).quantile(0.5) > Some(Duration::from_secs(100)));
        assert_eq!(taking([Duration::ZERO]).quantile(0.5), Some(Duration::ZERO));
    }

    #[test]
    fn longer_durations_never_come_in_an_earlier_bucket() {
        let buckets: Vec<usize> = (0..300_000).map(|n| bucket(Duration::from_micros(n * 997))).collect();
        assert!(buckets.is_sorted());
        assert_eq!(buckets.last(), Some(&(BUCKETS - 1)));
    }

    #[test]
    fn quantiles_are_of_all_requests() {
        let counts = taking((1..=100).map(|n| Duration::from_millis(n * 10)));
        for (share, millis) in [(0.0, 10.0), (0.5, 500.0), (0.95, 950.0), (0.99, 990.0), (1.0, 1000.0)] {
            let told = counts.quantile(share).unwrap().as_secs_f64() * 1000.0;
            assert!((told / millis - 1.0_f64).abs() < 0.07, "{share}: {told}");
        }
        assert_eq!(taking([]).quantile(0.5), None);
    }

    #[test]
    fn what_lies_between_two_moments_is_their_difference() {
        let activity = Activity::new();
        activity.ended(Ended::Added);
        activity.requested(Duration::from_millis(5));
        activity.rate_limited();
        let then = activity.counts();
        activity.ended(Ended::Added);
        activity.ended(Ended::InDoubt);
        let between = activity.counts().since(&then);
        assert_eq!(between.ended(Ended::Added), 1);
        assert_eq!(between.ended(Ended::InDoubt), 1);
        assert_eq!((between.requests(), between.rate_limited), (0, 0));
        assert_eq!(between.quantile(0.5), None);
    }
}
