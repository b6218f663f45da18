//! A fake SurveyLab: a real HTTP/1.1 server that answers as SurveyLab's page says, goes wrong on demand, and tells what
//! it received. For trying things out (`sandbox`, `serve --sandbox`) and for the tests.
//!
//! A webhook request is counted and logged, then meets the first fault rule that applies, then the checks in the order
//! token, rate, parameters, collector, repeat. One lock is held for all of it, and for nothing that waits.

mod account;
mod admin;
mod body;
mod fault_text;
mod faults;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
mod journal;
mod server;
mod webhook;

use std::{
    future::Future,
    io,
    net::{Ipv4Addr, SocketAddr},
    num::NonZeroU32,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use secrecy::SecretString;
use tokio::{net::TcpListener, sync::Notify};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

pub use account::{KeyCounts, OnRepeat, Report};
pub use fault_text::{FAULT_HELP, FaultError};
pub use faults::{Effect, Fault, Gate};
pub use journal::Request;

use crate::{clock::Instant, rate::Rate};
use account::Account;
use faults::Rules;
use journal::Journal;

/// How the sandbox behaves. The default: any token, any collector, no limit, no faults, on a free port of 127.0.0.1.
#[derive(Clone, Debug)]
pub struct Config {
    pub listen: SocketAddr,
    /// None: any token will do, but one must be given.
    pub api_token: Option<SecretString>,
    /// Empty: any collector exists.
    pub collectors: Vec<String>,
    pub limit: Option<Limit>,
    /// Before every answer.
    pub latency: Duration,
    pub faults: Vec<Fault>,
    pub on_repeat: OnRepeat,
    /// How many requests the log keeps: the latest. Keys are counted without a bound.
    pub log_requests: usize,
    /// How long a connection may be idle, and a head may take.
    pub keep_alive: Duration,
}

/// The rate at which the sandbox takes requests; further ones get a 429 with Retry-After.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    pub rate: Rate,
    /// So many at once after a rest.
    pub burst: NonZeroU32,
}

impl Limit {
    fn limiter(self) -> Option<DefaultDirectRateLimiter> {
        let period = self.rate.period();
        // governor keeps period times burst in a u64 of nanoseconds, and overflows it.
        let fits = u64::MAX / 4 / u64::try_from(period.as_nanos()).ok()?.max(1);
        let burst = self
            .burst
            .min(NonZeroU32::new(u32::try_from(fits).unwrap_or(u32::MAX))?);
        Some(RateLimiter::direct(Quota::with_period(period)?.allow_burst(burst)))
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: (Ipv4Addr::LOCALHOST, 0).into(),
            api_token: None,
            collectors: Vec::new(),
            limit: None,
            latency: Duration::ZERO,
            faults: Vec::new(),
            on_repeat: OnRepeat::default(),
            log_requests: 10_000,
            // Apache's KeepAliveTimeout.
            keep_alive: Duration::from_secs(5),
        }
    }
}

/// A running sandbox. Stops when dropped: its port closes, its connections end.
pub struct Sandbox {
    address: SocketAddr,
    core: Arc<Core>,
}

/// What all connections share.
struct Core {
    limiter: Option<DefaultDirectRateLimiter>,
    latency: Duration,
    keep_alive: Duration,
    started: Instant,
    state: Mutex<State>,
    /// Told of every arrival, every late effect, and of the last request to end.
    changed: Notify,
    /// Requests under way now, and the most there were.
    open: AtomicUsize,
    most_at_once: AtomicUsize,
    tasks: TaskTracker,
    stop: CancellationToken,
}

struct State {
    /// Those that are good; empty: any.
    api_tokens: Vec<SecretString>,
    account: Account,
    journal: Journal,
    rules: Rules,
}

impl Sandbox {
    /// Binds and serves, in tasks of the current runtime. Fails when the port can't be had.
    pub async fn start(config: Config) -> io::Result<Self> {
        let listener = TcpListener::bind(config.listen).await?;
        let address = listener.local_addr()?;
        let limiter = config.limit.and_then(Limit::limiter);
        let mut rules = Rules::default();
        rules.replace(config.faults);
        let core = Arc::new(Core {
            limiter,
            latency: config.latency,
            keep_alive: config.keep_alive,
            started: Instant::now(),
            state: Mutex::new(State {
                api_tokens: config.api_token.into_iter().collect(),
                account: Account::new(config.collectors.into_iter().collect(), config.on_repeat),
                journal: Journal::new(config.log_requests),
                rules,
            }),
            changed: Notify::new(),
            open: AtomicUsize::new(0),
            most_at_once: AtomicUsize::new(0),
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
        });
        core.spawn(server::accept(core.clone(), listener));
        Ok(Self { address, core })
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The webhook's URL, to be given to the gateway.
    pub fn url(&self) -> String {
        format!("http://{}/api.php", self.address)
    }

    /// Stops, and returns once the port is free and every connection has ended.
    pub async fn stop(self) {
        self.core.stop.cancel();
        self.core.tasks.close();
        self.core.tasks.wait().await;
    }

    /// From when on arrivals are counted ([`Request::at`]).
    pub fn started(&self) -> Instant {
        self.core.started
    }

    pub fn report(&self) -> Report {
        self.core.report(&self.core.lock())
    }

    /// Every key with its counts, ordered.
    pub fn keys(&self) -> Vec<KeyCounts> {
        self.core.lock().account.keys(|_| true)
    }

    /// The latest requests in the order of their arrival, up to [`Config::log_requests`].
    pub fn requests(&self) -> Vec<Request> {
        self.core.lock().journal.requests()
    }

    /// How many e-mails went out for a key.
    pub fn effects_of(&self, collector_id: &str, crk: &str) -> u32 {
        self.core.lock().account.of(collector_id, crk).effects
    }

    /// How many requests came for a key.
    pub fn requests_of(&self, collector_id: &str, crk: &str) -> u32 {
        self.core.lock().account.of(collector_id, crk).requests
    }

    /// Returns once so many requests have arrived, since the start or the last reset. They may not be answered yet.
    pub async fn wait_for_requests(&self, count: u64) {
        self.core
            .wait_until(|core| core.lock().account.totals().0 >= count)
            .await;
    }

    /// Returns once so many e-mails have gone out, since the start or the last reset.
    pub async fn wait_for_effects(&self, count: u64) {
        self.core
            .wait_until(|core| core.lock().account.totals().1 >= count)
            .await;
    }

    /// Returns once no request is under way: each is answered, cut, or left by its client. Late effects may be to come.
    pub async fn wait_until_idle(&self) {
        self.core
            .wait_until(|core| core.open.load(Ordering::Acquire) == 0)
            .await;
    }

    /// Takes these tokens and no others from now on; without one any will do. So a token can be rotated.
    pub fn set_api_tokens(&self, api_tokens: Vec<SecretString>) {
        self.core.lock().api_tokens = api_tokens;
    }

    /// Adds a rule behind those in force.
    pub fn add_fault(&self, fault: Fault) {
        self.core.lock().rules.add(fault);
    }

    /// Replaces all rules; requests that hang under the old ones get their answer.
    pub fn set_faults(&self, faults: Vec<Fault>) {
        self.core.lock().rules.replace(faults);
    }

    /// Removes all rules; requests that hang under them get their answer.
    pub fn clear_faults(&self) {
        self.set_faults(Vec::new());
    }

    /// Forgets what was received. The rules stay, and so do their counters.
    pub fn reset(&self) {
        self.core.reset();
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        self.core.stop.cancel();
    }
}

impl Core {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Poison would only say that another request panicked; the counts are whole at every step.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs a task until it ends or the sandbox stops.
    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let stop = self.stop.clone();
        self.tasks.spawn(async move {
            stop.run_until_cancelled(task).await;
        });
    }

    fn report(&self, state: &State) -> Report {
        state.account.report(self.most_at_once.load(Ordering::Relaxed))
    }

    fn reset(&self) {
        let mut state = self.lock();
        state.account.reset();
        state.journal.reset();
        self.most_at_once
            .store(self.open.load(Ordering::Relaxed), Ordering::Relaxed);
    }

    async fn wait_until(&self, done: impl Fn(&Self) -> bool) {
        loop {
            // Made before the look, so that no change falls between look and wait.
            let changed = self.changed.notified();
            if done(self) {
                return;
            }
            changed.await;
        }
    }
}

#[cfg(test)]
mod tests;
