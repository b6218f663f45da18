use std::{sync::Arc, time::Duration};

use secrecy::SecretString;
use sha2::{Digest as _, Sha256};

use super::{Error, Listeners, count};
use crate::{
    callers::Callers,
    clock::Clock,
    config::{Config, LedgerUrl, Upstream},
    dispatch::{self, Dispatcher},
    grpc::tls,
    hex::hex,
    ledger::{
        self, Ledger,
        memory::Memory,
        postgres::{self, Postgres},
        sqlite::Sqlite,
    },
    limiter::{
        self, Limiter, Pacer,
        shared::{Account, LeaseTask},
    },
    metrics,
    reload::Reloaded,
    sandbox::{self, Sandbox},
    surveylab::{
        Tokens,
        http::{Endpoint, HttpConfig, HttpSurveyLab},
    },
};

/// For name, TCP and TLS of a new connection to SurveyLab, at most.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// A request goes out so long after its claim was written, at most: a claim that waits longer for its token is released.
const SEND_LAG: Duration = Duration::from_secs(1);

/// What is there before anything runs.
pub(super) struct Parts {
    pub clock: Clock,
    pub callers: Option<Reloaded<Callers>>,
    pub tls: Option<Reloaded<tls::Acceptor>>,
    pub token: Tokens,
    pub ledger: Arc<dyn Ledger>,
    pub sandbox: Option<Sandbox>,
    pub limiter: Limiter,
    pub pacer: Pacer,
    pub leases: Option<LeaseTask<Account>>,
    pub dispatcher: Dispatcher,
    pub listeners: Listeners,
}

/// Opens and binds everything, the ports last: after all that can be wrong with a setting.
pub(super) async fn build(config: &Config) -> Result<Parts, Error> {
    let args = &config.args;
    let callers = args.callers.clone().map(Callers::open).transpose()?;
    let clock = Clock::system();
    let tls = config.tls.clone();
    let tls = tls.map(|files| tls::open(files, clock.clone())).transpose()?;
    let (ledger, rested) = open_ledger(config, &clock).await?;
    let (sandbox, url, token) = match &config.upstream {
        Upstream::SurveyLab { url, token } => (None, url.clone(), token.clone()),
        Upstream::Sandbox => {
            let sandbox = Sandbox::start(sandbox::Config::default())
                .await
                .map_err(Error::Sandbox)?;
            let url = sandbox.url().parse()?;
            (Some(sandbox), url, SecretString::from("sandbox").into())
        }
    };
    let account = account(&url);
    let surveylab = HttpSurveyLab::new(HttpConfig {
        url,
        token: token.clone(),
        upstream_timeout: args.upstream_timeout,
        connect_timeout: connect_timeout(config),
        max_in_flight: count(args.max_in_flight),
        idle_timeout: args.upstream_idle_timeout,
        clock: clock.clone(),
    })?;
    let listeners = Listeners::bind(config).await?;
    let limits = limiter::Settings {
        rate: args.rate,
        burst: args.burst.get(),
        rested,
        max_in_flight: count(args.max_in_flight),
        max_queue: count(args.max_queue),
    };
    let (limiter, pacer, leases) = match &config.ledger {
        LedgerUrl::Postgres(settings) => {
            let row = Account::new((**settings).clone(), &account, &limits);
            let (limiter, pacer, leases) = Limiter::shared(limits, row);
            (limiter, pacer, Some(leases))
        }
        LedgerUrl::Sqlite(_) | LedgerUrl::Memory => {
            let (limiter, pacer) = Limiter::new(limits);
            (limiter, pacer, None)
        }
    };
    let dispatcher = Dispatcher::new(
        Arc::new(surveylab),
        ledger.clone(),
        limiter.clone(),
        clock.clone(),
        dispatch::Settings {
            max_attempts: args.max_attempts.get(),
            max_wait: args.max_wait,
            on_server_error: args.on_server_error,
            breaker_after: args.breaker_after,
        },
    );
    metrics::show_build(config.ledger.kind());
    Ok(Parts {
        clock,
        callers,
        tls,
        token,
        ledger,
        sandbox,
        limiter,
        pacer,
        leases,
        dispatcher,
        listeners,
    })
}

/// The ledger, and for how long no process has sent anything by it: a restart must not bring the account a burst on top of
/// the one before it.
async fn open_ledger(config: &Config, clock: &Clock) -> Result<(Arc<dyn Ledger>, Duration), ledger::Error> {
    Ok(match &config.ledger {
        LedgerUrl::Sqlite(path) => {
            let opened_at = clock.wall();
            let ledger = Sqlite::open(path, clock)?;
            let rested = ledger.last_written().map_or(Duration::MAX, |at| {
                // A date in the future says that the clock was set back: then nobody knows.
                let since = opened_at.duration_since(at).unwrap_or_default();
                since.saturating_sub(SEND_LAG)
            });
            (Arc::new(ledger), rested)
        }
        LedgerUrl::Postgres(settings) => {
            let ledger = {
                let options = postgres::Options {
                    lease: config.args.replica_lease,
                    ..postgres::Options::default()
                };
                Postgres::open(settings, clock, options).await?
            };
            // The bucket is in the database too, and knows. One that is new there begins empty: nobody knows.
            (Arc::new(ledger), Duration::ZERO)
        }
        LedgerUrl::Memory => (Arc::new(Memory::default()), Duration::MAX),
    })
}

/// A request whose connection is only being made has sent nothing yet: beyond the lease's margin it could still go out when
/// others have its key in doubt.
fn connect_timeout(config: &Config) -> Duration {
    match config.ledger {
        LedgerUrl::Postgres(_) => CONNECT_TIMEOUT.min(postgres::margin(config.args.replica_lease)),
        LedgerUrl::Sqlite(_) | LedgerUrl::Memory => CONNECT_TIMEOUT,
    }
}

/// A name for SurveyLab's account, the same in all replicas. Not made of the token: while it is rotated replicas have different
/// ones, and would keep a rate each. Two accounts at one URL on one database share a rate: too slow, never too fast.
fn account(url: &Endpoint) -> String {
    hex(&Sha256::digest(url.to_string())[..16]).to_string()
}
