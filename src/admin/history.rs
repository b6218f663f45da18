//! The last hour, for the charts: a sample every ten seconds.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use serde::Serialize;
use tokio::time::{MissedTickBehavior, interval_at};
use tokio_util::sync::CancellationToken;

use crate::{
    activity::{Activity, Counts, Ended},
    clock::Instant,
    limiter::{Limiter, Snapshot},
};

/// Time between two samples.
pub const EVERY: Duration = Duration::from_secs(10);
/// An hour.
const KEPT: usize = 360;
/// Counts over a shorter time say little about a minute.
const SHORTEST: Duration = Duration::from_secs(2);

/// What was going on in one interval, and how it stood at its end.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Sample {
    /// Counts from 1 since the start.
    pub number: u64,
    /// The end of the interval, counted from the start. Not a date, as dates jump.
    pub uptime_ms: u64,
    pub interval_ms: u64,
    pub added: u64,
    pub duplicate: u64,
    pub failed: u64,
    pub in_doubt: u64,
    pub other: u64,
    /// Requests to SurveyLab.
    pub requests: u64,
    /// Those of them that were answered with a 429.
    pub rate_limited: u64,
    pub p50_ms: Option<f64>,
    pub p95_ms: Option<f64>,
    pub p99_ms: Option<f64>,
    /// Requests a second.
    pub configured_rate: f64,
    pub learned_rate: f64,
    pub paused: bool,
    pub waiting_unary: usize,
    pub waiting_streams: usize,
    pub in_flight: usize,
}

/// Cheap to clone: all clones are one.
#[derive(Clone)]
pub struct History {
    shared: Arc<Shared>,
}

struct Shared {
    activity: &'static Activity,
    limiter: Limiter,
    began: Instant,
    kept: Mutex<Kept>,
}

struct Kept {
    samples: VecDeque<Sample>,
    /// What had been counted at the end of the last sample, and when that was.
    counts: Counts,
    until: Instant,
    number: u64,
}

impl History {
    /// Begins now.
    pub fn new(activity: &'static Activity, limiter: Limiter) -> Self {
        let began = Instant::now();
        let kept = Kept {
            samples: VecDeque::with_capacity(KEPT),
            counts: activity.counts(),
            until: began,
            number: 0,
        };
        Self {
            shared: Arc::new(Shared {
                activity,
                limiter,
                began,
                kept: Mutex::new(kept),
            }),
        }
    }

    /// Takes samples until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        let work = async {
            let mut every = interval_at(self.shared.began + EVERY, EVERY);
            every.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                every.tick().await;
                self.take();
            }
        };
        let _stopped = stop.run_until_cancelled(work).await;
    }

    pub fn uptime(&self) -> Duration {
        self.shared.began.elapsed()
    }

    /// The samples after this number, and the interval that is under way, unless it has just begun.
    pub fn after(&self, number: u64) -> (Vec<Sample>, Option<Sample>) {
        let now = Instant::now();
        let snapshot = self.shared.limiter.snapshot();
        let kept = self.kept();
        let new = kept.samples.iter().filter(|sample| sample.number > number);
        let running = now - kept.until >= SHORTEST;
        let running = running.then(|| self.sample(&kept, &self.shared.activity.counts(), &snapshot, now));
        (new.cloned().collect(), running)
    }

    fn take(&self) {
        let now = Instant::now();
        let snapshot = self.shared.limiter.snapshot();
        let mut kept = self.kept();
        let counts = self.shared.activity.counts();
        let sample = self.sample(&kept, &counts, &snapshot, now);
        if kept.samples.len() == KEPT {
            kept.samples.pop_front();
        }
        kept.number = sample.number;
        kept.samples.push_back(sample);
        kept.counts = counts;
        kept.until = now;
    }

    fn sample(&self, kept: &Kept, counts: &Counts, snapshot: &Snapshot, now: Instant) -> Sample {
        let new = counts.since(&kept.counts);
        let within = |share| new.quantile(share).map(|time| hundredths(time.as_secs_f64() * 1000.0));
        Sample {
            number: kept.number + 1,
            uptime_ms: millis(now - self.shared.began),
            interval_ms: millis(now - kept.until),
            added: new.ended(Ended::Added),
            duplicate: new.ended(Ended::Duplicate),
            failed: new.ended(Ended::Failed),
            in_doubt: new.ended(Ended::InDoubt),
            other: new.ended(Ended::Other),
            requests: new.requests(),
            rate_limited: new.rate_limited,
            p50_ms: within(0.5),
            p95_ms: within(0.95),
            p99_ms: within(0.99),
            configured_rate: snapshot.configured_rate,
            learned_rate: snapshot.learned_rate,
            // A pause may be shorter than an interval.
            paused: !snapshot.pause.is_zero() || new.rate_limited > 0,
            waiting_unary: snapshot.waiting_unary,
            waiting_streams: snapshot.waiting_streams,
            in_flight: snapshot.in_flight,
        }
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        // No step leaves it half changed, even if it panics.
        self.shared.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

fn hundredths(number: f64) -> f64 {
    (number * 100.0).round() / 100.0
}

#[cfg(test)]
mod tests {
    use tokio::{spawn, time::sleep};

    use super::*;
    use crate::limiter::Settings;

    fn history() -> (&'static Activity, History) {
        let activity: &'static Activity = Box::leak(Box::new(Activity::new()));
        let settings = Settings {
            rate: "5/s".parse().unwrap(),
            burst: 5,
            rested: Duration::MAX,
            max_in_flight: 10,
            max_queue: 10,
        };
        let (limiter, _pacer) = Limiter::new(settings);
        (activity, History::new(activity, limiter))
    }

    #[tokio::test(start_paused = true)]
    async fn each_interval_has_its_own_counts() {
        let (activity, history) = history();
        let stop = CancellationToken::new();
        let task = spawn(history.clone().run(stop.clone()));
        // Away from the moments at which samples are taken.
        sleep(Duration::from_secs(1)).await;
        for calls in [3, 0, 1] {
            for _ in 0..calls {
                activity.ended(Ended::Added);
                activity.requested(Duration::from_millis(100));
            }
            sleep(EVERY).await;
        }
        let (samples, running) = history.after(0);
        let counts: Vec<_> = samples.iter().map(|s| (s.number, s.added, s.requests)).collect();
        assert_eq!(counts, [(1, 3, 3), (2, 0, 0), (3, 1, 1)]);
        // Timers are up to a millisecond late.
        assert!((20_000..20_003).contains(&samples[1].uptime_ms), "{samples:?}");
        assert!((samples[0].p50_ms.unwrap() - 100.0).abs() < 7.0);
        assert_eq!(samples[1].p50_ms, None);
        assert_eq!((samples[0].configured_rate, samples[0].learned_rate), (5.0, 5.0));
        assert_eq!(running, None);

        activity.ended(Ended::Failed);
        sleep(Duration::from_secs(4)).await;
        let (new, running) = history.after(2);
        assert_eq!(new, samples[2..]);
        let running = running.unwrap();
        assert_eq!((running.number, running.failed), (4, 1));
        assert!((4_990..5_003).contains(&running.interval_ms), "{running:?}");
        stop.cancel();
        task.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn an_hour_is_kept_and_no_more() {
        let (_, history) = history();
        for _ in 0..KEPT + 5 {
            sleep(EVERY).await;
            history.take();
        }
        let (samples, _) = history.after(0);
        assert_eq!(samples.len(), KEPT);
        assert_eq!(samples[0].number, 6);
    }

    #[tokio::test(start_paused = true)]
    async fn a_429_shows_as_a_pause_even_if_the_pause_is_over() {
        let (activity, history) = history();
        activity.rate_limited();
        sleep(EVERY).await;
        history.take();
        sleep(EVERY).await;
        history.take();
        let (samples, _) = history.after(0);
        assert_eq!((samples[0].paused, samples[1].paused), (true, false));
    }
}
