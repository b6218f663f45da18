//! The one token bucket of the account, and the order in which requests get its tokens.
//!
//! governor's `until_ready` keeps no order and sleeps on timers that follow no paused clock, so one [`Pacer`] task hands
//! out [`Permit`]s: a place in flight, and the right to a token, given to the one whose turn it is when the token is
//! there. Only where nobody waits, and both are there, a request gets its permit without the pacer. The token itself is
//! taken at the moment of sending ([`Permit::token`]): between the two lies the claim, and were tokens taken before it, a
//! slow claim would send several requests closer together than the bucket allows.
//!
//! Whose turn it is among the callers, going by their shares of the rate, is told in `shares`; in which order the requests of
//! one of them go, in `lanes`.
//!
//! Tokens come from a bucket in this process, or from one that several replicas share ([`shared`]); all else is the same.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::{Notify, oneshot},
    time::timeout_at,
};

use crate::{clock::Instant, rate::Rate};

pub use adaptive::PausedBy;
use adaptive::{Adaptive, Epoch};
pub use arrival::Arrival;
use arrival::Place;
use bucket::Bucket;
pub use lanes::{Lane, StreamId};
pub use pacer::Pacer;
pub use payer::{Payer, Queue};
pub use permit::{Permit, TooLate};
use shares::{Shares, Ticket};
pub use snapshot::Snapshot;
use source::Source;
use state::State;

mod adaptive;
mod arrival;
mod bucket;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
mod lanes;
mod pacer;
mod payer;
mod permit;
pub mod shared;
mod shares;
mod snapshot;
mod source;
mod state;

#[cfg(test)]
mod tests;

/// How early a permit is given at most, so that claims don't hold up a rate whose bucket is small.
const LEAD_MAX: Duration = Duration::from_millis(50);

/// What one is told who would wait for nobody knows how long.
const UNKNOWN_WAIT: Duration = Duration::from_secs(1);

/// What the account allows, and how much may pile up before it.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    pub rate: Rate,
    /// Tokens that the bucket saves up; at least 1.
    pub burst: u32,
    /// For how long no request has gone out: what the bucket has saved up by now, as if it had been empty before.
    pub rested: Duration,
    /// Permits out at once.
    pub max_in_flight: usize,
    /// Requests waiting at once. Where so many wait, a payer's are still taken up to its part of them, so that nobody fills
    /// the queue for others; all parts together are twice as many at most.
    pub max_queue: usize,
}

/// Why no permit was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// The wait would outlast its bound; `after` is how long it would be.
    WaitTooLong {
        after: Duration,
    },
    /// Too many wait already; `after` is how long the wait would be.
    QueueFull {
        after: Duration,
    },
    ShuttingDown,
}

/// Where requests wait for their turn. Cheap to clone: all clones are one.
#[derive(Clone)]
pub struct Limiter {
    shared: Arc<Shared>,
}

struct Shared {
    settings: Settings,
    state: Mutex<State>,
    /// Tells the pacer that something came, or changed what it waits for.
    wake: Notify,
    /// Tells the lease task the same, if there is one.
    lease: Notify,
    /// Tells who is to send that leased tokens came.
    tokens: Notify,
}

struct Waiter {
    came: Came,
    until: Option<Instant>,
    answer: oneshot::Sender<Result<Permit, Refused>>,
}

/// Where and when a request came to get its permit.
#[derive(Clone, Copy)]
struct Came {
    lane: Lane,
    at: Instant,
}

impl Limiter {
    /// The limiter, and the pacer without which it gives no permits: to be run as a task.
    pub fn new(settings: Settings) -> (Self, Pacer) {
        let bucket = Bucket::new(settings.rate.period(), settings.burst, settings.rested);
        Self::with_source(settings, Source::Local(bucket))
    }

    fn with_source(settings: Settings, source: Source) -> (Self, Pacer) {
        let limiter = Self {
            shared: Arc::new(Shared {
                settings,
                state: Mutex::new(State {
                    source,
                    adaptive: Adaptive::new(),
                    waiters: Shares::new(),
                    permits: 0,
                    unsent: 0,
                    claim_time: Duration::ZERO,
                    closed: false,
                }),
                wake: Notify::new(),
                lease: Notify::new(),
                tokens: Notify::new(),
            }),
        };
        (limiter.clone(), Pacer { limiter })
    }

    /// Waits for a permit, not longer than `until`. Refuses at once where the known rate says that the wait would be
    /// longer. Dropping the future gives up the place in the queue and costs no token.
    pub async fn acquire(&self, queue: impl Into<Queue>, until: Option<Instant>) -> Result<Permit, Refused> {
        self.acquire_again(&Arrival::default(), queue, until).await
    }

    /// The same for one who may have waited before: it goes before all who came after it, and the queue is not full for it.
    pub async fn acquire_again(
        &self,
        arrival: &Arrival,
        queue: impl Into<Queue>,
        until: Option<Instant>,
    ) -> Result<Permit, Refused> {
        let (answered, _place, expected) = match self.enter(arrival, queue.into(), until)? {
            Entered::Given(permit) => return Ok(permit),
            Entered::Waits {
                answered,
                place,
                expected,
            } => (answered, place, expected),
        };
        // It was to be in time by the rate: what it waits for is a place in flight, and nobody knows when that comes.
        let too_long = || Refused::WaitTooLong {
            after: expected.saturating_duration_since(Instant::now()).max(UNKNOWN_WAIT),
        };
        let answer = match until {
            Some(until) => timeout_at(until, answered).await.map_err(|_| too_long())?,
            None => answered.await,
        };
        // The sender is dropped without an answer only when the pacer has gone.
        answer.unwrap_or(Err(Refused::ShuttingDown))
    }

    /// A permit, if one can be had without waiting and without passing anybody.
    pub fn try_acquire(&self, lane: Lane) -> Option<Permit> {
        let now = Instant::now();
        let came = Came { lane, at: now };
        let mut state = self.lock();
        self.is_free(&state, now).then(|| self.give(&mut state, came, now))
    }

    /// How long one who waits since `arrival`, or one who came to this queue now if that is sooner, would wait by the rate;
    /// `None` where that is not known.
    pub fn expected_wait(&self, arrival: &Arrival, queue: Queue) -> Option<Duration> {
        let place = (*arrival.lock())?;
        let now = Instant::now();
        let state = self.lock();
        let not_before = state.adaptive.pause_until(now).unwrap_or(now);
        let newcomers = state.expected(state.waiters.ahead(queue), now);
        Some(newcomers.min(place.expected?.max(not_before)) - now)
    }

    /// Refuses all who wait and all who come.
    pub fn close(&self) {
        let refused = {
            let mut state = self.lock();
            state.closed = true;
            state.waiters.retain(|_, _| false)
        };
        for waiter in refused {
            let _gone = waiter.answer.send(Err(Refused::ShuttingDown));
        }
        self.shared.wake.notify_one();
        self.shared.lease.notify_one();
    }

    fn enter(&self, arrival: &Arrival, queue: Queue, until: Option<Instant>) -> Result<Entered<'_>, Refused> {
        let mut state = self.lock();
        if state.closed {
            return Err(Refused::ShuttingDown);
        }
        let now = Instant::now();
        let came = Came {
            lane: queue.lane,
            at: now,
        };
        if self.is_free(&state, now) && until.is_none_or(|until| now <= until) {
            return Ok(Entered::Given(self.give(&mut state, came, now)));
        }
        let max_queue = self.shared.settings.max_queue;
        let number = arrival.lock().map(|place| place.number);
        let is_full = state.waiters.len() >= max_queue && state.waiters.has_its_part(queue.payer, max_queue);
        if is_full && number.is_none() {
            // There may be tokens, and no places in flight: then nobody knows how long it takes.
            let after = (state.expected(state.waiters.ahead(queue), now) - now).max(self.period());
            return Err(Refused::QueueFull { after });
        }
        let mut expected = now;
        if let Some(until) = until {
            // Of one who comes back it is not known how many of those who wait came before it.
            let ahead = number.map_or_else(|| state.waiters.ahead(queue), |_| 0);
            expected = state.expected(ahead, now);
            if expected > until {
                let after = (expected - now).max(self.period());
                return Err(Refused::WaitTooLong { after });
            }
        }
        let was_empty = state.waiters.len() == 0;
        let (answer, answered) = oneshot::channel();
        let waiter = Waiter { came, until, answer };
        let ticket = match number {
            None => state.waiters.push(queue, waiter),
            Some(number) => state.waiters.push_again(queue, number, waiter),
        };
        *arrival.lock() = Some(Place {
            number: ticket.number(),
            expected: until.map(|_| expected),
        });
        drop(state);
        if was_empty {
            self.shared.wake.notify_one();
        }
        Ok(Entered::Waits {
            answered,
            place: Waiting { limiter: self, ticket },
            expected,
        })
    }

    /// Would one who came now be the next, and find a place in flight and a token?
    fn is_free(&self, state: &State, now: Instant) -> bool {
        !state.closed
            && state.waiters.len() == 0
            && self.has_place(state)
            && state.adaptive.pause_until(now).is_none()
            && state.next_permit(now).is_some_and(|at| at <= now)
    }

    fn has_place(&self, state: &State) -> bool {
        state.permits < self.shared.settings.max_in_flight
    }

    fn give(&self, state: &mut State, came: Came, now: Instant) -> Permit {
        state.permits += 1;
        state.unsent += 1;
        self.ask_if_due(state, now);
        Permit {
            limiter: self.clone(),
            epoch: state.adaptive.epoch(),
            came,
            given: now,
            has_token: false,
            is_answered: false,
        }
    }

    fn rate_limited(&self, epoch: Epoch, retry_after: Option<Duration>) {
        let now = Instant::now();
        let refused = {
            let mut state = self.lock();
            let learned = state.adaptive.rate_limited(epoch, now, retry_after);
            if learned.rate_changed {
                let share = state.adaptive.share();
                state.source.cut(self.period(), share);
            }
            if !learned.rate_changed && !learned.pause_changed {
                return;
            }
            let until = state.adaptive.pause_until(now).unwrap_or(now);
            state.source.report(epoch, until);
            state.hopeless(now)
        };
        self.refuse(refused);
        self.shared.wake.notify_one();
        self.shared.lease.notify_one();
        let Snapshot {
            learned_rate, pause, ..
        } = self.snapshot();
        tracing::warn!(
            pause_seconds = pause.as_secs_f64(),
            learned_rate,
            "SurveyLab answered 429: all requests pause, the rate is cut"
        );
    }

    fn refuse(&self, waiters: Vec<(Waiter, Duration)>) {
        for (waiter, after) in waiters {
            let _gone = waiter.answer.send(Err(Refused::WaitTooLong { after }));
        }
    }

    fn period(&self) -> Duration {
        self.shared.settings.rate.period()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What one who comes gets.
enum Entered<'a> {
    Given(Permit),
    Waits {
        answered: oneshot::Receiver<Result<Permit, Refused>>,
        place: Waiting<'a>,
        expected: Instant,
    },
}

/// A place in the queue, given up when dropped.
struct Waiting<'a> {
    limiter: &'a Limiter,
    ticket: Ticket,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.limiter.lock().waiters.remove(self.ticket);
    }
}
