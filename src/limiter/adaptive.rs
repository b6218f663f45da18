//! What the gateway learns of SurveyLab's limit from its 429s. Knows nothing of who waits.

use std::time::Duration;

use rand::RngExt as _;

use crate::clock::Instant;

/// What is left of the rate after a 429.
const CUT: f64 = 0.7;
/// The learned rate never falls below this part of the configured one.
const FLOOR: f64 = 0.01;
/// The rate rises by this part of the configured one at each step back.
const STEP: f64 = 0.1;
/// Time between two steps back.
const STEP_EVERY: Duration = Duration::from_secs(10);

/// `Retry-After` is trusted within these bounds.
const PAUSE_MIN: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(3600);
/// The longest pause that the gateway chooses by itself.
const BACKOFF_MAX: Duration = Duration::from_secs(600);

/// The same pause, read again from the database's clock, ends within so much of where it did.
const PAUSE_NOISE: Duration = Duration::from_millis(250);

/// Counts the cuts. A 429 to a request from before the last cut says nothing new.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Epoch(u64);

impl Epoch {
    pub fn number(self) -> u64 {
        self.0
    }
}

/// What the replicas of an account have learned together, in this process's time.
#[derive(Clone, Copy, Debug)]
pub struct Learnt {
    pub share: f64,
    pub epoch: u64,
    pub pause_until: Option<Instant>,
    pub next_step: Option<Instant>,
}

/// Whose 429 a pause comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PausedBy {
    /// This process's.
    Own,
    /// Another replica's, which shares the rate.
    AnotherReplica,
}

/// The share of the configured rate in use, and the pause.
pub struct Adaptive {
    /// Part of the configured rate that is in use, up to 1.
    share: f64,
    epoch: Epoch,
    /// 429s in a row, for the backoff.
    in_a_row: u32,
    pause_until: Option<Instant>,
    paused_by: PausedBy,
    next_step: Option<Instant>,
    /// Pauses that began, and how long all of them are together, the rest of the present one included.
    pauses: u64,
    paused: Duration,
}

/// What changed with a 429.
#[derive(Debug, PartialEq, Eq)]
pub struct Learned {
    pub rate_changed: bool,
    pub pause_changed: bool,
}

impl Adaptive {
    pub fn new() -> Self {
        Self {
            share: 1.0,
            epoch: Epoch(0),
            in_a_row: 0,
            pause_until: None,
            paused_by: PausedBy::Own,
            next_step: None,
            pauses: 0,
            paused: Duration::ZERO,
        }
    }

    /// How many pauses have begun, and how long has been paused so far.
    pub fn pauses(&self, now: Instant) -> (u64, Duration) {
        let left = self.pause_until(now).map_or(Duration::ZERO, |until| until - now);
        (self.pauses, self.paused.saturating_sub(left))
    }

    fn pause(&mut self, until: Instant, now: Instant) {
        let before = self.pause_until(now);
        self.pauses += u64::from(before.is_none());
        self.paused += until.saturating_duration_since(before.unwrap_or(now));
        self.pause_until = Some(until);
    }

    pub fn share(&self) -> f64 {
        self.share
    }

    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// The moment up to which nothing is to be sent, while it lies ahead.
    pub fn pause_until(&self, now: Instant) -> Option<Instant> {
        self.pause_until.filter(|until| *until > now)
    }

    /// Whose 429 the pause comes from, while there is one.
    pub fn paused_by(&self) -> PausedBy {
        self.paused_by
    }

    /// SurveyLab answered 429 to a request whose permit is of `epoch`.
    pub fn rate_limited(&mut self, epoch: Epoch, now: Instant, retry_after: Option<Duration>) -> Learned {
        let first = epoch == self.epoch;
        let share = self.share;
        if first {
            self.epoch.0 += 1;
            self.in_a_row = self.in_a_row.saturating_add(1);
            self.share = (self.share * CUT).max(FLOOR);
        }
        let pause = match retry_after {
            Some(asked) => asked.clamp(PAUSE_MIN, PAUSE_MAX),
            None if first => backoff(self.in_a_row),
            None => Duration::ZERO,
        };
        let until = now + pause;
        let pause_changed = self.pause_until.is_none_or(|before| before < until) && !pause.is_zero();
        if pause_changed {
            self.pause(until, now);
            self.paused_by = PausedBy::Own;
        }
        let begin = self.pause_until.unwrap_or(now).max(now);
        self.next_step = (self.share < 1.0).then(|| begin + STEP_EVERY);
        Learned {
            rate_changed: self.share != share,
            pause_changed,
        }
    }

    /// SurveyLab answered something else than 429 to a request whose permit is of `epoch`.
    pub fn answered(&mut self, epoch: Epoch) {
        if epoch == self.epoch {
            self.in_a_row = 0;
        }
    }

    /// Follows what all replicas know. Not to be called while a 429 is still to be reported that they don't know of.
    pub fn adopt(&mut self, learnt: Learnt, now: Instant) -> Learned {
        if learnt.epoch > self.epoch.0 && learnt.pause_until.is_some() {
            // Another replica's 429 counts for the backoff, whoever meets the next one.
            self.in_a_row = self.in_a_row.saturating_add(1);
        }
        let rate_changed = learnt.share != self.share;
        self.epoch = Epoch(learnt.epoch);
        self.share = learnt.share;
        self.next_step = learnt.next_step;
        let before = self.pause_until(now).unwrap_or(now);
        let until = learnt.pause_until.unwrap_or(now);
        let pause_changed = until > before + PAUSE_NOISE;
        if until > before {
            let counted = self.pauses;
            self.pause(until, now);
            if !pause_changed {
                // The rest of one that has been counted, by the database's clock.
                self.pauses = counted;
            }
        }
        if pause_changed {
            self.paused_by = PausedBy::AnotherReplica;
        }
        Learned {
            rate_changed,
            pause_changed,
        }
    }

    /// When the rate is to rise next, if it is below the configured one.
    pub fn next_step(&self) -> Option<Instant> {
        self.next_step
    }

    /// Takes the steps back that are due; true if the rate changed.
    pub fn step(&mut self, now: Instant) -> bool {
        let mut changed = false;
        while let Some(due) = self.next_step.filter(|due| *due <= now) {
            let raised = self.share + STEP;
            // Within a rounding error of the whole is the whole.
            self.share = if raised > 1.0 - 1e-9 { 1.0 } else { raised };
            self.next_step = (self.share < 1.0).then(|| due + STEP_EVERY);
            changed = true;
        }
        changed
    }
}

/// From 1 s, doubling, with up to as much again at random, so that several gateways don't come back together.
fn backoff(in_a_row: u32) -> Duration {
    let base = PAUSE_MIN * 2u32.saturating_pow(in_a_row.saturating_sub(1).min(16));
    base.min(BACKOFF_MAX).mul_f64(rand::rng().random_range(1.0..1.5))
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn retry_after_is_kept_within_a_second_and_an_hour() {
        let now = Instant::now();
        for (asked, kept) in [
            (s(0), s(1)),
            (s(7), s(7)),
            (s(86_400), s(3600)),
            (Duration::MAX, s(3600)),
        ] {
            let mut adaptive = Adaptive::new();
            adaptive.rate_limited(adaptive.epoch(), now, Some(asked));
            assert_eq!(adaptive.pause_until(now), Some(now + kept));
            assert_eq!(adaptive.pause_until(now + kept), None);
        }
    }

    #[test]
    fn without_retry_after_the_pause_doubles_until_an_answer() {
        let mut now = Instant::now();
        let mut adaptive = Adaptive::new();
        for base in [1, 2, 4, 8] {
            adaptive.rate_limited(adaptive.epoch(), now, None);
            let pause = adaptive.pause_until(now).unwrap() - now;
            assert!(pause >= s(base) && pause < s(base).mul_f64(1.5), "{pause:?}");
            now += pause;
        }
        adaptive.answered(adaptive.epoch());
        adaptive.rate_limited(adaptive.epoch(), now, None);
        assert!(adaptive.pause_until(now).unwrap() - now < s(2));
    }

    #[test]
    fn many_answers_to_one_burst_cut_the_rate_once() {
        let now = Instant::now();
        let mut adaptive = Adaptive::new();
        let epoch = adaptive.epoch();
        assert!(adaptive.rate_limited(epoch, now, Some(s(5))).rate_changed);
        let later = adaptive.rate_limited(epoch, now + s(1), Some(s(5)));
        assert_eq!((later.rate_changed, later.pause_changed), (false, true));
        let without = adaptive.rate_limited(epoch, now + s(1), None);
        assert_eq!((without.rate_changed, without.pause_changed), (false, false));
        assert_eq!(adaptive.share(), 0.7);
        assert_eq!(adaptive.pause_until(now), Some(now + s(6)));
    }

    #[test]
    fn the_rate_comes_back_step_by_step() {
        let now = Instant::now();
        let mut adaptive = Adaptive::new();
        adaptive.rate_limited(adaptive.epoch(), now, Some(s(5)));
        assert!(!adaptive.step(now + s(14)));
        let mut shares = Vec::new();
        for at in [15, 25, 35, 45] {
            let changed = adaptive.step(now + s(at));
            shares.push((changed, (adaptive.share() * 100.0).round() as u32));
        }
        assert_eq!(shares, [(true, 80), (true, 90), (true, 100), (false, 100)]);
    }

    #[test]
    fn pauses_are_counted_and_their_time_as_it_passes() {
        let now = Instant::now();
        let mut adaptive = Adaptive::new();
        assert_eq!(adaptive.pauses(now), (0, s(0)));
        adaptive.rate_limited(adaptive.epoch(), now, Some(s(10)));
        assert_eq!(adaptive.pauses(now + s(4)), (1, s(4)));
        // Makes the same pause longer.
        adaptive.rate_limited(adaptive.epoch(), now + s(4), Some(s(10)));
        assert_eq!(adaptive.pauses(now + s(10)), (1, s(10)));
        assert_eq!(adaptive.pauses(now + s(100)), (1, s(14)));
        let learnt = Learnt {
            share: 0.5,
            epoch: 9,
            pause_until: Some(now + s(103)),
            next_step: None,
        };
        adaptive.adopt(learnt, now + s(100));
        adaptive.adopt(learnt, now + s(101));
        assert_eq!(adaptive.pauses(now + s(101)), (2, s(15)));
    }

    #[test]
    fn a_pause_is_known_by_whose_429_began_it() {
        let now = Instant::now();
        let mut adaptive = Adaptive::new();
        adaptive.rate_limited(adaptive.epoch(), now, Some(s(5)));
        assert_eq!(adaptive.paused_by(), PausedBy::Own);
        let learnt = |until| Learnt {
            share: 0.7,
            epoch: 1,
            pause_until: Some(until),
            next_step: None,
        };
        // The same pause, as the database's clock tells it.
        adaptive.adopt(learnt(now + s(5) + PAUSE_NOISE / 2), now);
        assert_eq!(adaptive.paused_by(), PausedBy::Own);
        adaptive.adopt(learnt(now + s(9)), now);
        assert_eq!(adaptive.paused_by(), PausedBy::AnotherReplica);
        adaptive.rate_limited(adaptive.epoch(), now, Some(s(10)));
        assert_eq!(adaptive.paused_by(), PausedBy::Own);
    }

    #[test]
    fn the_rate_has_a_floor() {
        let now = Instant::now();
        let mut adaptive = Adaptive::new();
        for _ in 0..100 {
            adaptive.rate_limited(adaptive.epoch(), now, None);
        }
        assert_eq!(adaptive.share(), FLOOR);
    }
}
