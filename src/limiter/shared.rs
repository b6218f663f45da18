//! One account's token bucket shared by several replicas, through a row of the database that all of them use.
//!
//! **The invariant**: no window of W seconds carries more than burst + rate·W requests, of all replicas together, as they
//! leave. SurveyLab counts what the account does, not what a process does.
//!
//! The row gives each token a time, by GCRA, on the database's clock: the one clock that all replicas see. A replica leases
//! tokens in slices of at most what the rate adds in 100 ms, by demand, each in one statement, so that neither a request
//! pays a round trip at high rates nor an idle replica holds what a busy one needs. A leased token may be used from its
//! time on and for a short time after; then it is lost. So how far a window can be exceeded by what replicas hold unsent is
//! known when a token is leased, and has been kept back from the burst: see [`Terms`]. Nothing is ever given back, as
//! nobody could tell whether a replica that is silent has used its tokens: a process that dies loses at most what it has
//! leased.
//!
//! Times of the database are mapped to this process's monotonic clock so that an error costs rate and never the invariant: the
//! database looked at its clock after the statement was sent and before the answer came. From the latter a token's time is
//! counted, from the former its expiry.
//!
//! Without the database nothing is leased, and nothing is sent beyond what was: the ledger fails in the same way. Who
//! waits goes on waiting within its bounds, and all goes on when the database is back.
//!
//! A 429's pause and the learned share of the rate are in the row as well. The replica that met the 429 pauses at once and
//! reports it with its next statement; the others learn of it with their next answer. No token lives longer than the
//! horizon and its validity after its answer, so nothing leaves more than half a second after the row knew of a pause.

use std::time::Duration;

use rand::RngExt as _;
use tokio::{select, time::sleep_until};

use super::{Limiter, Pacer, Settings, State, adaptive::Learnt, source::Source};
use crate::clock::Instant;

pub use account::Account;
use leases::HORIZON;
pub use leases::Leases;
pub use terms::{Terms, least_burst};

mod account;
mod leases;
mod terms;

#[cfg(test)]
mod tests;

/// A replica with work looks at the row at least so often, to learn of a pause and of a higher rate.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Between two statements of a replica that did not get all it wanted.
const LOOK_PAUSE: Duration = Duration::from_millis(5);
/// How long a replica waits after a failure, doubling.
const RETRY_MIN: Duration = Duration::from_millis(50);
const RETRY_MAX: Duration = Duration::from_secs(1);

/// How often at most the log is told that the database is slow.
const TELL_EVERY: Duration = Duration::from_secs(60);

/// Why nothing was leased. A later try can help in each case.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The database can't be reached, or the statement failed. Holds neither password nor values.
    #[error("{0}")]
    Database(String),
    #[error("the database has not answered within {0:?}")]
    Timeout(Duration),
    /// Somebody deleted it: it is made anew, with an empty bucket.
    #[error("the account's row is gone")]
    NoRow,
}

/// What a replica asks the row for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ask {
    /// So many tokens at most; zero only looks, or reports.
    pub wanted: u32,
    /// None whose time lies further ahead.
    pub horizon: Duration,
    pub report: Option<Report>,
}

/// A 429 that SurveyLab answered to a request whose permit is of `epoch`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Report {
    pub epoch: u64,
    /// Up to when this replica pauses.
    pub until: Instant,
}

/// What the row answers. All times count from the database's clock at the answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// A moment before the statement was sent, and not before a connection that had to be made for it.
    pub asked: Instant,
    pub granted: u32,
    /// No token may be used before this: what is left of a pause.
    pub start: Duration,
    /// Token k, from 0 on, may be used from `from + k·pace` on; in nanoseconds, in the past where tokens were saved up.
    pub from: i128,
    /// The theoretical arrival time after the grant; zero where it has passed.
    pub tat: Duration,
    /// Between two tokens, at the learned rate.
    pub pace: Duration,
    pub tolerance: Duration,
    /// How long a token can be used from its time on.
    pub validity: Duration,
    /// What the replicas have learned of SurveyLab's limit.
    pub share: f64,
    pub epoch: u64,
    /// Until the share rises next.
    pub next_step: Option<Duration>,
    /// The settings that the row is kept by.
    pub period: Duration,
    pub burst: u32,
}

/// The row, as a replica sees it.
///
/// One call is one atomic step on the row. It grants at most what is wanted and what the horizon allows, in the order of
/// the tokens' times, and never a token twice: also not when the call fails after the row has changed, or its future is
/// dropped. Then the tokens are lost.
pub trait Slices: Send {
    fn lease(&mut self, ask: &Ask) -> impl Future<Output = Result<Answer, Error>> + Send;
}

impl Limiter {
    /// A limiter whose tokens come from a row that replicas share. Beside the pacer the lease task is to be run. The settings'
    /// rate and burst are those of `slices`, and `rested` is the row's affair.
    pub fn shared<S: Slices>(settings: Settings, slices: S) -> (Self, Pacer, LeaseTask<S>) {
        let terms = Terms::new(settings.rate.period(), settings.burst);
        let (limiter, pacer) = Self::with_source(settings, Source::Leased(Box::new(Leases::new(terms))));
        let task = LeaseTask {
            limiter: limiter.clone(),
            slices,
            lost: 0,
            fails: false,
            told_late: None,
            differs: None,
            terms,
        };
        (limiter, pacer, task)
    }

    /// What the lease task is to do now, if nothing is to be asked before a moment.
    fn lease_turn(&self, not_before: Instant) -> Turn {
        let now = Instant::now();
        let mut state = self.lock();
        let needed = self.needed(&state);
        let (closed, claim_time) = (state.closed, state.claim_time);
        let Source::Leased(leases) = &mut state.source else {
            return Turn::Closed;
        };
        leases.rests = false;
        let ask = |wanted, report| {
            Turn::Ask(Ask {
                wanted,
                horizon: HORIZON,
                report,
            })
        };
        match leases.report {
            Some(_) if now < not_before => return Turn::NotBefore(not_before),
            Some(report) => return ask(0, Some(report)),
            None if closed => return Turn::Closed,
            None => {}
        }
        let wanted = leases.wanted(needed, now, claim_time);
        if wanted == 0 {
            leases.rest();
            if state.waiters.len() > 0 {
                // The pacer may wait for an answer that is not needed any more, as claims take less time than they did.
                self.shared.wake.notify_one();
            }
            return Turn::Rest;
        }
        if now < not_before {
            return Turn::NotBefore(not_before);
        }
        ask(wanted, None)
    }

    /// How many could use a token now.
    fn needed(&self, state: &State) -> usize {
        let places = self.shared.settings.max_in_flight.saturating_sub(state.permits);
        state.unsent + state.waiters.len().min(places)
    }

    /// Wakes the lease task if it rests and more tokens are needed than are held.
    pub(super) fn ask_if_due(&self, state: &mut State, now: Instant) {
        let needed = self.needed(state);
        let claim_time = state.claim_time;
        if let Source::Leased(leases) = &mut state.source
            && leases.rests
            && leases.wanted(needed, now, claim_time) > 0
        {
            leases.rests = false;
            self.shared.lease.notify_one();
        }
    }

    /// Takes in what the row answered. Returns how many tokens can be used of what it granted.
    fn receive(&self, ask: &Ask, answer: &Answer, came: Instant) -> u32 {
        let learnt = Learnt {
            share: answer.share,
            epoch: answer.epoch,
            pause_until: (!answer.start.is_zero()).then(|| came + answer.start),
            next_step: answer.next_step.map(|left| came + left),
        };
        let (usable, refused, pause) = {
            let mut state = self.lock();
            let State { source, adaptive, .. } = &mut *state;
            let Source::Leased(leases) = source else { return 0 };
            if ask.report.is_some() && leases.report == ask.report {
                leases.report = None;
            }
            if leases.report.is_some() {
                // The row does not know yet of a 429 that this replica has met meanwhile: these tokens are of the old rate.
                return 0;
            }
            let learned = adaptive.adopt(learnt, came);
            if learned.pause_changed {
                leases.clear();
            }
            let usable = leases.receive(ask, answer, came);
            let refused = if learned.pause_changed {
                state.hopeless(came)
            } else {
                Vec::new()
            };
            (usable, refused, learned.pause_changed && ask.report.is_none())
        };
        self.refuse(refused);
        self.shared.wake.notify_one();
        self.shared.tokens.notify_waiters();
        if pause {
            tracing::warn!(
                pause_seconds = answer.start.as_secs_f64(),
                learned_share = answer.share,
                "another replica was answered 429: all requests pause, the rate is cut"
            );
        }
        usable
    }

    /// When to look at the row again after an answer that did not grant all that was wanted: `ahead` of the next token.
    fn look_again(&self, came: Instant, start: Duration, ahead: Duration) -> Instant {
        let state = self.lock();
        let Source::Leased(leases) = &state.source else {
            return came;
        };
        let free = leases.next_free(came).max(came + start);
        let at = free.checked_sub(ahead).unwrap_or(came);
        at.clamp(came + LOOK_PAUSE, came + LOOK_EVERY)
    }
}

enum Turn {
    /// Nothing to ask for until there is work.
    Rest,
    NotBefore(Instant),
    Ask(Ask),
    Closed,
}

/// Leases tokens while there is work. Without it a shared limiter gives no permits.
pub struct LeaseTask<S> {
    limiter: Limiter,
    slices: S,
    /// Looks in a row that brought no token while one was wanted.
    lost: u32,
    /// What the log was told last of the database.
    fails: bool,
    told_late: Option<Instant>,
    /// The row's settings, while they are others than this replica's.
    differs: Option<(Duration, u32)>,
    terms: Terms,
}

impl<S: Slices> LeaseTask<S> {
    /// Ends after [`Limiter::close`], when a statement that is under way has been answered and a 429 has been reported, or
    /// could not be.
    pub async fn run(mut self) {
        let mut not_before = Instant::now();
        let mut retry = RETRY_MIN;
        loop {
            match self.limiter.lease_turn(not_before) {
                Turn::Closed => return,
                Turn::Rest => self.limiter.shared.lease.notified().await,
                Turn::NotBefore(at) => select! {
                    () = sleep_until(at) => {}
                    () = self.limiter.shared.lease.notified() => {}
                },
                Turn::Ask(ask) => match self.slices.lease(&ask).await {
                    Ok(answer) => {
                        retry = RETRY_MIN;
                        not_before = self.answered(&ask, &answer);
                    }
                    Err(error) => {
                        self.failed(&error);
                        if self.limiter.lock().closed {
                            return;
                        }
                        not_before = Instant::now() + retry.mul_f64(rand::rng().random_range(0.5..1.0));
                        retry = (retry * 2).min(RETRY_MAX);
                    }
                },
            }
        }
    }

    /// Returns when to ask again at the earliest.
    fn answered(&mut self, ask: &Ask, answer: &Answer) -> Instant {
        let came = Instant::now();
        let usable = self.limiter.receive(ask, answer, came);
        self.worked(answer, came);
        self.tell_settings(answer);
        if answer.granted >= ask.wanted && (usable > 0 || ask.wanted == 0) {
            self.lost = 0;
            return came;
        }
        if answer.granted > 0 {
            self.lost = 0;
        } else if answer.start.is_zero() {
            self.lost = self.lost.saturating_add(1);
        }
        self.limiter
            .look_again(came, answer.start, HORIZON.mul_f64(self.ahead()))
    }

    /// At which part of the horizon before the next token's time to look, where several replicas want it: at random, so
    /// that all get the same in the long run, and those before others who got none last time.
    fn ahead(&self) -> f64 {
        let mut rng = rand::rng();
        match self.lost {
            0 => rng.random_range(0.3..0.8),
            lost => {
                let tiers = i32::try_from(lost).unwrap_or(i32::MAX);
                0.95 - 0.15 * 0.7_f64.powi(tiers) + rng.random_range(0.0..0.04)
            }
        }
    }

    fn failed(&mut self, error: &Error) {
        if !std::mem::replace(&mut self.fails, true) {
            tracing::error!(cause = %error, "the shared rate can't be leased: nothing is sent until it can");
        }
    }

    fn worked(&mut self, answer: &Answer, came: Instant) {
        if std::mem::replace(&mut self.fails, false) {
            tracing::info!("the shared rate is leased again");
        }
        let way = came.saturating_duration_since(answer.asked);
        let is_late = answer.granted > 0 && way >= answer.validity;
        if is_late && self.told_late.is_none_or(|told| came > told + TELL_EVERY) {
            self.told_late = Some(came);
            tracing::warn!(
                answer_seconds = way.as_secs_f64(),
                "the database answers later than leased tokens live: the rate is not used up"
            );
        }
    }

    /// The row's settings hold for all replicas, whatever their own ones say.
    fn tell_settings(&mut self, answer: &Answer) {
        let theirs = (answer.period, answer.burst);
        let differs = (theirs != (self.terms.period, self.terms.burst)).then_some(theirs);
        if differs != self.differs {
            self.differs = differs;
            if let Some((period, burst)) = differs {
                tracing::warn!(
                    rate_per_second = 1.0 / period.as_secs_f64(),
                    burst,
                    "another replica was started later with another --rate or --burst: these hold for all"
                );
            }
        }
    }
}
