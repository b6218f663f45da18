//! The composition root: binds the ports, builds the parts, runs them, and takes them down in order.

use std::{io, net::SocketAddr, num::NonZeroU32, time::Duration};

use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::{
    config::{Config, LedgerUrl},
    grpc::tls,
    ledger, limiter, reload,
    sandbox::Sandbox,
    supervisor,
    surveylab::http::{self, EndpointError},
};

mod parts;
mod running;

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
    let parts = parts::build(&config).await?;
    announce(&config, &parts.listeners, parts.sandbox.as_ref());
    let mut running = running::start(&config, parts).await?;
    supervisor::tell(supervisor::State::Ready);
    let ended = running.until(shutdown).await;
    supervisor::tell(supervisor::State::Stopping);
    running.drain(config.args.drain_timeout).await;
    tracing::info!("stopped");
    ended.map_or(Ok(()), Err)
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
