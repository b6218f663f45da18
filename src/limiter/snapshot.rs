use std::time::Duration;

use super::{Limiter, PausedBy};
use crate::clock::Instant;

/// What monitoring and people on call are shown of the limiter.
#[derive(Clone, Copy, Debug)]
pub struct Snapshot {
    /// Requests a second.
    pub configured_rate: f64,
    /// Requests a second, after what 429s taught.
    pub learned_rate: f64,
    pub burst: u32,
    /// What is left of it; zero if there is none.
    pub pause: Duration,
    /// Pauses that have begun since the start.
    pub pauses: u64,
    /// How long has been paused since the start.
    pub paused: Duration,
    /// Whose 429 it comes from, if there is one.
    pub paused_by: PausedBy,
    /// Tokens that nobody has a right to yet.
    pub tokens: f64,
    pub waiting_unary: usize,
    pub waiting_streams: usize,
    pub max_queue: usize,
    /// Permits that are out.
    pub in_flight: usize,
    pub max_in_flight: usize,
    /// How long a unary call of a caller without a share would wait that came now, going by the rate alone.
    pub unary_wait: Duration,
    /// The same for the first item of a stream that began now.
    pub stream_wait: Duration,
}

impl Limiter {
    /// How it stands now.
    pub fn snapshot(&self) -> Snapshot {
        let now = Instant::now();
        let state = self.lock();
        let settings = &self.shared.settings;
        let configured_rate = settings.rate.per_second();
        let (pauses, paused) = state.adaptive.pauses(now);
        let rest = state.waiters.rest();
        let wait = |ahead| state.likely(ahead, now).saturating_duration_since(now);
        Snapshot {
            configured_rate,
            learned_rate: configured_rate * state.adaptive.share(),
            burst: settings.burst,
            pause: state
                .adaptive
                .pause_until(now)
                .map_or(Duration::ZERO, |until| until - now),
            pauses,
            paused,
            paused_by: state.adaptive.paused_by(),
            tokens: (state.source.tokens(now) - state.unsent as f64).max(0.0),
            waiting_unary: state.waiters.unary_len(),
            waiting_streams: state.waiters.len() - state.waiters.unary_len(),
            max_queue: settings.max_queue,
            in_flight: state.permits,
            max_in_flight: settings.max_in_flight,
            unary_wait: wait(state.waiters.ahead_of_new_unary(rest)),
            stream_wait: wait(state.waiters.ahead_of_new_stream(rest)),
        }
    }

    /// How many requests wait of each caller who has any waiting, by [`Payer::id`](super::Payer::id). In no order.
    pub fn waiting_by_caller(&self) -> Vec<(Option<u32>, usize)> {
        self.lock().waiters.waiting()
    }
}
