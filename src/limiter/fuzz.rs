//! For [`crate::fuzz`]: the pause that a 429 brings, and a limiter made from settings.

use std::time::Duration;

use super::{Limiter, Settings, adaptive::Adaptive};
use crate::clock::Instant;

/// How long everyone pauses after a first 429 that asked for this.
pub fn pause(asked: Option<Duration>) -> Duration {
    let mut adaptive = Adaptive::new();
    let now = Instant::now();
    adaptive.rate_limited(adaptive.epoch(), now, asked);
    adaptive
        .pause_until(now)
        .map_or(Duration::ZERO, |until| until.duration_since(now))
}

/// What any settings must give: a limiter that knows its rate.
pub fn is_usable(settings: Settings) {
    let (limiter, _pacer) = Limiter::new(settings);
    let snapshot = limiter.snapshot();
    let rate = snapshot.configured_rate;
    assert!(rate.is_finite() && rate > 0.0, "{rate}");
    assert_eq!((snapshot.in_flight, snapshot.pause), (0, Duration::ZERO));
}
