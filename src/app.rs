//! The composition root: binds the ports, builds the parts, runs them, and takes them down in order.

use std::{future::pending, io, net::SocketAddr, num::NonZeroU32, sync::Arc, time::Duration};

use secrecy::SecretString;
use sha2::{Digest as _, Sha256};
use tokio::{net::TcpListener, select, task::JoinHandle, time::timeout};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    activity::ACTIVITY,
    admin::{self, Admin},
    callers::Callers,
    clock::Clock,
    config::{Config, LedgerUrl, Upstream},
    dispatch::{self, Dispatcher},
    grpc::{self, Guard, Health, Service, tls},
    hex::hex,
    ledger::{
        self, Ledger,
        memory::Memory,
        postgres::{self, Postgres},
        sqlite::Sqlite,
    },
    limiter::{self, Limiter, shared::Account},
    metrics, reload,
    sandbox::{self, Sandbox},
    supervisor,
    surveylab::http::{self, Endpoint, EndpointError, HttpConfig, HttpSurveyLab},
};

/// For name, TCP and TLS of a new connection to SurveyLab, at most.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// A request goes out so long after its claim was written, at most: a claim that waits longer for its token is released.
const SEND_LAG: Duration = Duration::from_secs(1);

/// For the last answers, after the drain timeout has passed.
const FLUSH_TIMEOUT: Duration = Duration::from_millis(500);

/// Why the gateway did not run, or not to its end.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("--{flag}: can't listen on {address}: {source}")]
    Listen {
        flag: &'static str,
        address: SocketAddr,
        source: io::Error,
    },
    #[error("--callers (GATEWAY_CALLERS): {0}")]
    Callers(#[from] reload::Error),
    #[error("--ledger: {0}")]
    Ledger(#[from] ledger::Error),
    #[error(transparent)]
    Tls(#[from] tls::Error),
    #[error("the sandbox can't start: {0}")]
    Sandbox(io::Error),
    #[error("the client for SurveyLab can't start: {0}")]
    Client(#[from] http::Error),
    #[error("the sandbox's URL {0}")]
    SandboxUrl(#[from] EndpointError),
    #[error("server reflection can't start: {0}")]
    Reflection(#[from] tonic_reflection::server::Error),
    #[error("the {0} ended unexpectedly")]
    Ended(&'static str),
}

impl Error {
    /// Is a setting wrong, so that only another one helps?
    pub fn is_of_a_setting(&self) -> bool {
        matches!(
            self,
            Self::Callers(_)
                | Self::Tls(_)
                | Self::Ledger(ledger::Error::Unusable(_))
                | Self::Client(http::Error::NoToken | http::Error::NoRoom)
        )
    }
}

/// The bound ports.
pub struct Listeners {
    pub grpc: TcpListener,
    pub admin: TcpListener,
}

impl Listeners {
    /// Binds both, or says which one can't be had.
    pub async fn bind(config: &Config) -> Result<Self, Error> {
        Ok(Self {
            grpc: bind("listen", config.args.listen).await?,
            admin: bind("admin-listen", config.args.admin_listen).await?,
        })
    }
}

async fn bind(flag: &'static str, address: SocketAddr) -> Result<TcpListener, Error> {
    let listener = TcpListener::bind(address).await;
    listener.map_err(|source| Error::Listen { flag, address, source })
}

/// Serves until `shutdown`, then drains.
pub async fn run(config: Config, shutdown: CancellationToken) -> Result<(), Error> {
    let args = &config.args;
    let callers = args.callers.clone().map(Callers::open).transpose()?;
    let clock = Clock::system();
    let tls = config.tls.clone();
    let tls = tls.map(|files| tls::open(files, clock.clone())).transpose()?;
    let (ledger, rested) = open_ledger(&config, &clock).await?;
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
        connect_timeout: connect_timeout(&config),
        max_in_flight: count(args.max_in_flight),
        idle_timeout: args.upstream_idle_timeout,
        clock: clock.clone(),
    })?;
    // After all that can be wrong with a setting.
    let listeners = Listeners::bind(&config).await?;
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

    let tasks = TaskTracker::new();
    let closing = CancellationToken::new();
    let stop = CancellationToken::new();
    let mut health = Health::new().await;
    let guard = callers.clone().map(|callers| Arc::new(Guard::new(callers)));
    let about = grpc::About {
        started_at: clock.timestamp(),
        ledger: config.ledger.kind(),
        sandbox: sandbox.is_some(),
    };
    let grpc = listeners.grpc.local_addr().unwrap_or(args.listen);
    let service = Service {
        dispatcher: dispatcher.clone(),
        clock: clock.clone(),
        stream_window: count(args.stream_window),
        closing: closing.clone(),
        tasks: tasks.clone(),
        streams: Arc::default(),
        guard: guard.clone(),
        about,
    };
    let streams = service.streams.clone();
    let routes = grpc::routes(service, &health, args.reflection)?;
    metrics::show_build(config.ledger.kind());
    announce(&config, &listeners, sandbox.as_ref());

    let mut pacer = tasks.spawn(pacer.run());
    let mut leases = leases.map(|leases| tasks.spawn(leases.run()));
    tasks.spawn(metrics::upkeep(stop.clone()));
    tasks.spawn(token.watch(stop.clone()));
    if let Some(callers) = callers {
        tasks.spawn(callers.watch(stop.clone()));
    }
    if let Some(tls) = tls.clone() {
        tasks.spawn(tls::tend(tls, clock.clone(), stop.clone()));
    }
    let limits = grpc::server::Limits {
        max_connections: count(args.max_connections),
        max_streams: args.max_streams.get(),
        receive_timeout: args.receive_timeout,
    };
    let mut server = tasks.spawn(grpc::server::serve(
        grpc::server::Port {
            listener: listeners.grpc,
            tls,
        },
        grpc::server::Face { routes, guard },
        limits,
        stop.clone(),
        tasks.clone(),
    ));
    let history = admin::History::new(&ACTIVITY, limiter.clone());
    let reading = admin::Reading::new(ledger.clone());
    tasks.spawn(history.clone().run(stop.clone()));
    tasks.spawn(reading.clone().run(stop.clone()));
    let admin = admin::router(Admin {
        dispatcher: dispatcher.clone(),
        streams,
        history,
        reading,
        about: admin::About {
            started_at: about.started_at,
            ledger: about.ledger,
            sandbox: about.sandbox,
            grpc: config.tls.is_none().then_some(grpc),
            clock: clock.clone(),
        },
    });
    let mut admin = tasks.spawn(admin::serve(
        listeners.admin,
        admin,
        args.receive_timeout,
        stop.clone(),
        tasks.clone(),
    ));

    supervisor::tell(supervisor::State::Ready);

    // None of these ends before it is told to; if one does, the process is of no use any more.
    let ended = select! {
        () = shutdown.cancelled() => None,
        _ = &mut pacer => Some(Error::Ended("pacer")),
        () = ended_if_any(&mut leases) => Some(Error::Ended("lease of the rate")),
        _ = &mut server => Some(Error::Ended("gRPC server")),
        _ = &mut admin => Some(Error::Ended("admin server")),
    };

    supervisor::tell(supervisor::State::Stopping);
    tracing::info!(timeout = ?args.drain_timeout, on_the_wire = dispatcher.on_the_wire(), "shutting down");
    let drained = timeout(args.drain_timeout, async {
        // First refuse and finish, while clients can still see why; then close the connections.
        health.draining().await;
        dispatcher.close();
        closing.cancel();
        dispatcher.drained().await;
        health.gone().await;
        stop.cancel();
        tasks.close();
        tasks.wait().await;
    })
    .await;
    if drained.is_err() {
        let on_the_wire = dispatcher.on_the_wire();
        if on_the_wire > 0 {
            tracing::warn!(
                on_the_wire,
                "the drain timeout passed: what is still on the wire will be in doubt"
            );
        } else {
            tracing::warn!("the drain timeout passed: connections that did not end are cut");
        }
        stop.cancel();
        tasks.close();
    }
    dispatcher.cut_off().await;
    if drained.is_err() {
        // Those that were cut off can still be told so.
        let _too_late = timeout(FLUSH_TIMEOUT, tasks.wait()).await;
    }
    ledger.close().await;
    if let Some(sandbox) = sandbox {
        tracing::info!("sandbox: {}", sandbox.report());
        sandbox.stop().await;
    }
    tracing::info!("stopped");
    ended.map_or(Ok(()), Err)
}

/// The end of a task that not every gateway has.
async fn ended_if_any(task: &mut Option<JoinHandle<()>>) {
    match task {
        Some(task) => drop(task.await),
        None => pending().await,
    }
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

fn announce(config: &Config, listeners: &Listeners, sandbox: Option<&Sandbox>) {
    let args = &config.args;
    if let Some(sandbox) = sandbox {
        tracing::warn!(
            url = sandbox.url(),
            report = format!("http://{}/sandbox/report", sandbox.address()),
            "sandbox: no request reaches SurveyLab, no e-mail is sent"
        );
    }
    if let LedgerUrl::Memory = config.ledger {
        tracing::warn!("the ledger is in memory: a restart forgets every key");
    }
    if args.protection.insecure {
        tracing::warn!("--insecure: whoever reaches the ports may call");
    }
    let least = match &config.ledger {
        LedgerUrl::Postgres(_) => limiter::shared::least_burst(args.rate).into(),
        LedgerUrl::Sqlite(_) | LedgerUrl::Memory => least_burst(args.rate.period()),
    };
    if u128::from(args.burst.get()) < least {
        tracing::warn!(
            burst = args.burst,
            at_least = least,
            "--burst is too small for the rate, which will not be used up, nor kept to the millisecond"
        );
    }
    let local = |listener: &TcpListener| {
        listener
            .local_addr()
            .map_or_else(|_| String::new(), |at| at.to_string())
    };
    tracing::info!(
        grpc = local(&listeners.grpc),
        admin = local(&listeners.admin),
        tls = config.tls.is_some(),
        ledger = %config.ledger,
        rate = %args.rate,
        burst = args.burst,
        version = env!("CARGO_PKG_VERSION"),
        commit = env!("GATEWAY_COMMIT"),
        "listening"
    );
}

/// The bucket keeps half of a small burst back for what is held up on its way, and must not fill up with the rest while the
/// pacer waits: timers are up to a millisecond late, and a busy machine makes them later. A burst of 1 can make up for nothing
/// of that, which above 4/s is more than half a percent of the rate.
fn least_burst(period: Duration) -> u128 {
    const SLACK: Duration = Duration::from_millis(4);
    const NO_MATTER: Duration = Duration::from_millis(250);
    let least = if period < NO_MATTER { 2 } else { 1 };
    SLACK.as_nanos().div_ceil(period.as_nanos().max(1)).max(least)
}

/// Settings are 32 bit; what they count is of the machine's size.
fn count(setting: NonZeroU32) -> usize {
    usize::try_from(setting.get()).unwrap_or(usize::MAX)
}
