//! The breaker: when SurveyLab refuses one request after the other, as it does with a wrong token, calls fail at once with
//! what it said last, and one request at a time tests whether that is mended. So a bad token costs a list of a million rows
//! some requests, and not a million.
//!
//! What counts:
//! - A refusal is a 401, or a 400, which SurveyLab's page gives for a wrong token, too. A run of them in a row opens it.
//! - Every other answer (added, refused with a 200, 403, 404, 429, 5xx) says that the token is taken: it ends the run, and
//!   closes the breaker, whoever's request it was.
//! - Where no answer came (not reached, in doubt) nobody knows, and nothing changes.
//! - Refusals of a token that has been replaced meanwhile say nothing of the one that is used now.
//!
//! Whom it turns away: a 400 may be about the data of one list. So a run of nothing but 400s for one collector turns away
//! calls for that collector alone. With a 401 in it, or with 400s for two collectors, all calls are turned away. Where others
//! are answered otherwise meanwhile, the token is good and each row is told its own 400: such a list pauses nobody, itself
//! neither.
//!
//! The first probe goes out 5 s after it opened; each one that is refused doubles the pause, up to 60 s. A new token is probed
//! at once. A probe that comes to nothing gives its place to the next call. It knows only of this process's requests: each
//! replica has its own.

use std::{
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use crate::{
    clock::{Clock, Instant, Timestamp},
    invitation::Reason,
    metrics,
};

pub(super) use pass::Pass;

mod pass;

#[cfg(test)]
mod tests;

const FIRST_PAUSE: Duration = Duration::from_secs(5);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// Decides whether a call may go on, by what SurveyLab answered to those before it.
pub(super) struct Breaker {
    /// Refusals in a row that open it; 0: it never opens.
    after: u32,
    clock: Clock,
    /// Changes when requests begin to bear another token.
    token_version: Box<dyn Fn() -> u64 + Send + Sync>,
    /// Both are what `state` holds, for those who need no lock then: nearly all.
    counts: AtomicBool,
    is_open: AtomicBool,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    run: Option<Run>,
    open: Option<Open>,
    /// Probes so far.
    probes: u64,
}

/// Refusals in a row.
struct Run {
    length: u32,
    last: Reason,
    scope: Scope,
    token_version: u64,
}

/// Whose calls the refusals are about.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Scope {
    Collector(String),
    Account,
}

struct Open {
    since: Timestamp,
    probe: Probe,
    /// What follows a probe that is refused.
    next_pause: Duration,
    token_version: u64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Probe {
    /// The first call from then on is the next one.
    Due(Instant),
    UnderWay(u64),
}

/// Why nothing is sent for a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TurnedAway {
    /// What SurveyLab said last.
    pub reason: Reason,
    /// Refusals in a row so far.
    pub refusals: u32,
    /// Until the next probe, as far as is known.
    pub retry_after: Duration,
}

/// How the breaker stands while it is open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BreakerStanding {
    /// What SurveyLab said last.
    pub reason: Reason,
    /// Refusals in a row.
    pub refusals: u32,
    /// The one collector whose calls are turned away; `None`: all are.
    pub collector_id: Option<String>,
    pub since: Timestamp,
    /// Until the next call is let through as a probe; zero if the next one is. While a probe is under way: should it be
    /// refused.
    pub next_probe: Duration,
}

/// What is to be told to the log.
enum Change {
    None,
    Opened(Reason, u32, Scope),
    Closed,
}

impl Breaker {
    pub fn new(after: u32, clock: Clock, token_version: impl Fn() -> u64 + Send + Sync + 'static) -> Self {
        metrics::breaker_open(false);
        Self {
            after,
            clock,
            token_version: Box::new(token_version),
            counts: AtomicBool::new(false),
            is_open: AtomicBool::new(false),
            state: Mutex::default(),
        }
    }

    pub fn is_open(&self) -> bool {
        self.is_open.load(Ordering::Relaxed)
    }

    /// Would a call for this collector be turned away now? Asked before it waits; if not, its turn decides.
    pub fn turns_away(&self, collector_id: &str) -> Option<TurnedAway> {
        if !self.is_open() {
            return None;
        }
        let now = self.clock.now();
        let mut state = self.lock();
        state.heed_token((self.token_version)(), now);
        state.turned_away(collector_id, now)
    }

    /// Lets a call through whose turn has come, perhaps as the probe, or turns it away.
    pub fn enter<'a>(&'a self, collector_id: &'a str) -> Result<Pass<'a>, TurnedAway> {
        // Before the request takes its token.
        let token_version = (self.token_version)();
        let mut probe = None;
        if self.is_open() {
            let now = self.clock.now();
            let mut state = self.lock();
            state.heed_token(token_version, now);
            if let Some(away) = state.turned_away(collector_id, now) {
                return Err(away);
            }
            probe = state.begin_probe(collector_id);
        }
        Ok(Pass {
            breaker: self,
            collector_id,
            token_version,
            probe,
        })
    }

    /// How it stands, if it is open.
    pub fn standing(&self) -> Option<BreakerStanding> {
        let state = self.lock();
        let (run, open) = (state.run.as_ref()?, state.open.as_ref()?);
        Some(BreakerStanding {
            reason: run.last,
            refusals: run.length,
            collector_id: match &run.scope {
                Scope::Collector(id) => Some(id.clone()),
                Scope::Account => None,
            },
            since: open.since,
            next_probe: open.next_probe(self.clock.now()),
        })
    }

    fn refused(&self, pass: &Pass<'_>, reason: Reason) {
        let token_version = (self.token_version)();
        if pass.token_version != token_version {
            return;
        }
        let now = self.clock.now();
        let mut state = self.lock();
        let was_open = state.open.is_some();
        let widened = state.count(pass.collector_id, reason, token_version);
        self.counts.store(true, Ordering::Relaxed);
        let Some(run) = &state.run else { return };
        let opened = || Change::Opened(run.last, run.length, run.scope.clone());
        let change = match was_open {
            true if widened => opened(),
            false if run.length >= self.after => opened(),
            _ => Change::None,
        };
        if let Some(open) = &mut state.open {
            open.refused(pass.probe, now);
        } else if let Change::Opened(..) = change {
            state.open = Some(Open {
                since: self.clock.timestamp(),
                probe: Probe::Due(now + FIRST_PAUSE),
                next_pause: FIRST_PAUSE * 2,
                token_version,
            });
            self.is_open.store(true, Ordering::Relaxed);
            metrics::breaker_open(true);
        }
        drop(state);
        change.log();
    }

    fn taken(&self) {
        if !self.counts.load(Ordering::Relaxed) {
            return;
        }
        let mut state = self.lock();
        state.run = None;
        self.counts.store(false, Ordering::Relaxed);
        let change = match state.open.take() {
            Some(_) => Change::Closed,
            None => Change::None,
        };
        if let Change::Closed = change {
            self.is_open.store(false, Ordering::Relaxed);
            metrics::breaker_open(false);
        }
        drop(state);
        change.log();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// A new token is the usual repair: it is probed at once.
    fn heed_token(&mut self, token_version: u64, now: Instant) {
        if let Some(open) = &mut self.open
            // An older one is of a call that was overtaken.
            && open.token_version < token_version
        {
            open.token_version = token_version;
            open.probe = Probe::Due(now);
            open.next_pause = FIRST_PAUSE;
        }
    }

    fn turned_away(&self, collector_id: &str, now: Instant) -> Option<TurnedAway> {
        let (run, open) = (self.run.as_ref()?, self.open.as_ref()?);
        let is_due = matches!(open.probe, Probe::Due(at) if at <= now);
        if is_due || !run.scope.holds(collector_id) {
            return None;
        }
        Some(TurnedAway {
            reason: run.last,
            refusals: run.length,
            retry_after: open.next_probe(now),
        })
    }

    /// The number of the probe, if the call is one.
    fn begin_probe(&mut self, collector_id: &str) -> Option<u64> {
        let (run, open) = (self.run.as_ref()?, self.open.as_mut()?);
        if !run.scope.holds(collector_id) {
            return None;
        }
        self.probes += 1;
        open.probe = Probe::UnderWay(self.probes);
        Some(self.probes)
    }

    /// One more refusal. True if more calls than before are to be turned away for it.
    fn count(&mut self, collector_id: &str, reason: Reason, token_version: u64) -> bool {
        let fits = |known: &Scope| reason != Reason::SurveylabUnauthorized && known.holds(collector_id);
        match &mut self.run {
            Some(run) if run.token_version == token_version || self.open.is_some() => {
                let widens = run.scope != Scope::Account && !fits(&run.scope);
                if widens {
                    run.scope = Scope::Account;
                }
                run.length = run.length.saturating_add(1);
                run.last = reason;
                run.token_version = token_version;
                widens
            }
            run => {
                let scope = match reason {
                    Reason::SurveylabUnauthorized => Scope::Account,
                    _ => Scope::Collector(collector_id.to_string()),
                };
                *run = Some(Run {
                    length: 1,
                    last: reason,
                    scope,
                    token_version,
                });
                false
            }
        }
    }
}

impl Open {
    fn refused(&mut self, probe: Option<u64>, now: Instant) {
        // Others were on the wire when it opened: they tell nothing new.
        if probe.is_some_and(|number| self.probe == Probe::UnderWay(number)) {
            self.probe = Probe::Due(now + self.next_pause);
            self.next_pause = (self.next_pause * 2).min(LONGEST_PAUSE);
        }
    }

    fn next_probe(&self, now: Instant) -> Duration {
        match self.probe {
            Probe::Due(at) => at.saturating_duration_since(now),
            Probe::UnderWay(_) => self.next_pause,
        }
    }
}

impl Scope {
    fn holds(&self, collector_id: &str) -> bool {
        match self {
            Self::Collector(id) => id == collector_id,
            Self::Account => true,
        }
    }
}

impl Change {
    fn log(self) {
        match self {
            Self::None => {}
            Self::Opened(reason, refusals, scope) => {
                let reason = reason.as_str();
                match scope {
                    Scope::Account => tracing::warn!(
                        reason,
                        refusals,
                        "SurveyLab refuses every request: calls fail without being sent, except probes"
                    ),
                    Scope::Collector(collector) => tracing::warn!(
                        reason,
                        refusals,
                        collector,
                        "SurveyLab refuses every request for a collector: calls for it fail without being sent, except probes"
                    ),
                }
            }
            Self::Closed => tracing::warn!("SurveyLab accepts requests again: calls are sent"),
        }
    }
}
