//! Flags and environment of `serve`, made into one validated [`Config`].

use std::{env, fmt, net::SocketAddr, num::NonZeroU32, path::PathBuf, str::FromStr, time::Duration};

use clap::{Args, builder::BoolishValueParser};

use crate::{
    dispatch::OnServerError,
    grpc::{
        Reflection,
        tls::{self, ClientCertificate},
    },
    postgres,
    rate::Rate,
    reload,
    surveylab::{Tokens, http::Endpoint},
    telemetry::{AccessLog, LogFormat},
    token::{self, NOT_A_TOKEN},
};

mod protection;

pub use protection::{Callers, ProtectionArgs};

/// The ledger where none is named. What only the sandbox has seen must not count as added in SurveyLab, so a sandbox gets
/// a file of its own.
pub const LEDGER: &str = "surveylab-gateway.db";
const SANDBOX_LEDGER: &str = "surveylab-gateway-sandbox.db";

/// The environment variable that holds the token itself. Never a flag: flags show in process lists.
const TOKEN_VARIABLE: &str = "SURVEYLAB_API_TOKEN";

/// Run the gateway.
///
/// Every flag can be set in the environment instead; the flag wins.
#[derive(Args, Clone, Debug)]
pub struct ServeArgs {
    /// File that holds SurveyLab's API token. Required, unless --sandbox. It is read again when it changes. The token
    /// itself may be given in the environment as SURVEYLAB_API_TOKEN, never as a flag.
    #[arg(long, env = "SURVEYLAB_API_TOKEN_FILE", value_name = "FILE", hide_env_values = true)]
    pub api_token_file: Option<PathBuf>,

    /// SurveyLab's webhook.
    #[arg(
        long,
        env = "SURVEYLAB_URL",
        value_name = "URL",
        default_value = "https://app.surveylab.com/api.php",
        // Of both: people paste a whole request, with the token in it.
        hide_env_values = true
    )]
    pub surveylab_url: Endpoint,

    /// Where to listen for gRPC.
    #[arg(
        long,
        env = "GATEWAY_LISTEN",
        value_name = "ADDRESS",
        default_value = "127.0.0.1:50051",
        value_parser = address
    )]
    pub listen: SocketAddr,

    /// Where to listen for HTTP: the status page at /, and /metrics, /healthz, /readyz.
    #[arg(
        long,
        env = "GATEWAY_ADMIN_LISTEN",
        value_name = "ADDRESS",
        default_value = "127.0.0.1:9464",
        value_parser = address
    )]
    pub admin_listen: SocketAddr,

    #[command(flatten)]
    pub protection: ProtectionArgs,

    /// File of the callers, their tokens' hashes and their rights; read again when it changes. Without it everyone who
    /// reaches the port may do everything.
    // Of both: a token may be pasted there.
    #[arg(long, env = "GATEWAY_CALLERS", value_name = "FILE", hide_env_values = true)]
    pub callers: Option<PathBuf>,

    /// Server reflection, which tells grpcurl the contract, also without credentials: on or off.
    #[arg(long, env = "GATEWAY_REFLECTION", default_value = "on", value_enum)]
    pub reflection: Reflection,

    /// Connections of callers at once. One more takes the place of the one that has been without a call for longest; if
    /// all have calls under way it is closed.
    #[arg(long, env = "GATEWAY_MAX_CONNECTIONS", value_name = "COUNT", default_value = "1024", value_parser = at_most::<100_000>)]
    pub max_connections: NonZeroU32,

    /// Calls at once on one connection; clients hold further ones back.
    #[arg(long, env = "GATEWAY_MAX_STREAMS", value_name = "COUNT", default_value = "1024", value_parser = at_most::<100_000>)]
    pub max_streams: NonZeroU32,

    /// How long a peer may take to complete what it began: a connection's first bytes, a request, a message of a stream;
    /// and to answer a ping, or to read what is written.
    #[arg(long, env = "GATEWAY_RECEIVE_TIMEOUT", value_name = "TIME", default_value = "20s", value_parser = duration)]
    pub receive_timeout: Duration,

    /// Where keys are kept: sqlite:PATH; postgres://USER@HOST/DATABASE for several replicas, which share the keys and the
    /// rate; or memory: for trials (forgets everything when it ends). Where none is named, a sandbox uses
    /// sqlite:surveylab-gateway-sandbox.db.
    ///
    /// [default: sqlite:surveylab-gateway.db]
    #[arg(long, env = "GATEWAY_LEDGER", hide_env_values = true)]
    pub ledger: Option<LedgerUrl>,

    /// With PostgreSQL: after so long without a sign of life a replica counts as dead, and what it had on the wire is in
    /// doubt.
    #[arg(long, env = "GATEWAY_REPLICA_LEASE", value_name = "TIME", default_value = "10s", value_parser = lease)]
    pub replica_lease: Duration,

    /// Requests to SurveyLab at most, retries included: 5/s, 120/m, 1000/h.
    #[arg(long, env = "GATEWAY_RATE", default_value = "2/s")]
    pub rate: Rate,

    /// Requests that may go out at once after a rest. In any W seconds at most burst + rate·W go out.
    #[arg(long, env = "GATEWAY_BURST", value_name = "COUNT", default_value = "5", value_parser = at_most::<1_000_000>)]
    pub burst: NonZeroU32,

    /// Requests to SurveyLab under way at once, at most.
    #[arg(long, env = "GATEWAY_MAX_IN_FLIGHT", value_name = "COUNT", default_value = "32", value_parser = at_most::<10_000>)]
    pub max_in_flight: NonZeroU32,

    /// Requests to SurveyLab at most for one call, retries included.
    #[arg(long, env = "GATEWAY_MAX_ATTEMPTS", value_name = "COUNT", default_value = "5", value_parser = at_most::<1_000>)]
    pub max_attempts: NonZeroU32,

    /// How long a unary call without a deadline may wait for the rate limit.
    #[arg(long, env = "GATEWAY_MAX_WAIT", value_name = "TIME", default_value = "60s", value_parser = duration)]
    pub max_wait: Duration,

    /// Requests that may wait for the rate limit at once; further ones are refused.
    #[arg(long, env = "GATEWAY_MAX_QUEUE", value_name = "COUNT", default_value = "100000", value_parser = at_most::<10_000_000>)]
    pub max_queue: NonZeroU32,

    /// Requests in progress at once in one stream; further ones are not read meanwhile.
    #[arg(long, env = "GATEWAY_STREAM_WINDOW", value_name = "COUNT", default_value = "256", value_parser = at_most::<100_000>)]
    pub stream_window: NonZeroU32,

    /// Time for one request to SurveyLab, connecting and answer included.
    #[arg(long, env = "GATEWAY_UPSTREAM_TIMEOUT", value_name = "TIME", default_value = "30s", value_parser = duration)]
    pub upstream_timeout: Duration,

    /// How long a connection to SurveyLab may be idle before its next request; 0s: each request gets its own. A request that
    /// meets SurveyLab's closing of an idle connection is in doubt; common servers close after 5 s or more.
    #[arg(long, env = "GATEWAY_UPSTREAM_IDLE_TIMEOUT", value_name = "TIME", default_value = "4s", value_parser = duration_or_zero)]
    pub upstream_idle_timeout: Duration,

    /// What a 500 of SurveyLab means: retry (not processed, as its page says) or hold (in doubt).
    #[arg(long, env = "GATEWAY_ON_SERVER_ERROR", value_enum, default_value = "retry")]
    pub on_server_error: OnServerError,

    /// After so many answers 401 or 400 in a row calls fail without being sent, but for one probe at a time; 0: never.
    #[arg(long, env = "GATEWAY_BREAKER_AFTER", value_name = "COUNT", default_value = "20")]
    pub breaker_after: u32,

    /// How long a shutdown (SIGTERM, SIGINT) waits for what is on the wire.
    #[arg(long, env = "GATEWAY_DRAIN_TIMEOUT", value_name = "TIME", default_value = "25s", value_parser = duration)]
    pub drain_timeout: Duration,

    /// Send to an in-process fake of SurveyLab instead of the real one, to try things on.
    #[arg(long, env = "GATEWAY_SANDBOX", value_parser = BoolishValueParser::new())]
    pub sandbox: bool,

    #[command(flatten)]
    pub log: LogArgs,

    /// Log one line for each call, at its end; docs/tracing.md has its fields. A stream's items have theirs at
    /// RUST_LOG=info,access=debug.
    #[arg(long, env = "GATEWAY_ACCESS_LOG", value_enum, default_value = "off")]
    pub access_log: AccessLog,
}

#[derive(Args, Clone, Copy, Debug)]
pub struct LogArgs {
    /// How to log, on stderr; the filter is RUST_LOG. [default: text on a terminal, else json]
    #[arg(long, env = "GATEWAY_LOG_FORMAT", value_enum)]
    pub log_format: Option<LogFormat>,
}

/// Which ledger to use.
#[derive(Clone, Debug)]
pub enum LedgerUrl {
    Sqlite(PathBuf),
    Postgres(Box<postgres::Settings>),
    Memory,
}

impl FromStr for LedgerUrl {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.split_once(':') {
            Some(("sqlite", path)) if !path.is_empty() => Ok(Self::Sqlite(path.into())),
            Some(("postgres" | "postgresql", _)) => {
                let settings = text
                    .parse()
                    .map_err(|error: postgres::SettingsError| error.to_string())?;
                Ok(Self::Postgres(Box::new(settings)))
            }
            Some(("memory", "")) => Ok(Self::Memory),
            _ => Err("expected sqlite:PATH, postgres://USER@HOST/DATABASE or memory:".into()),
        }
    }
}

impl LedgerUrl {
    /// What kind of ledger it is.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Sqlite(_) => "sqlite",
            Self::Postgres(_) => "postgres",
            Self::Memory => "memory",
        }
    }
}

impl fmt::Display for LedgerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sqlite(path) => write!(f, "sqlite:{}", path.display()),
            // Without the password.
            Self::Postgres(settings) => settings.fmt(f),
            Self::Memory => f.write_str("memory:"),
        }
    }
}

/// Where requests go.
#[derive(Clone, Debug)]
pub enum Upstream {
    SurveyLab {
        url: Endpoint,
        token: Tokens,
    },
    /// The in-process fake.
    Sandbox,
}

/// All settings of `serve`, each valid by itself and with the others.
#[derive(Clone, Debug)]
pub struct Config {
    pub upstream: Upstream,
    pub ledger: LedgerUrl,
    /// `None`: gRPC in plain text.
    pub tls: Option<tls::Files>,
    pub args: ServeArgs,
}

/// A wrong setting, named.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(
        "no API token: give --api-token-file (SURVEYLAB_API_TOKEN_FILE) or set SURVEYLAB_API_TOKEN; to try things without \
         SurveyLab, use --sandbox"
    )]
    NoToken,
    #[error("both --api-token-file (SURVEYLAB_API_TOKEN_FILE) and SURVEYLAB_API_TOKEN are set: keep one")]
    TwoTokens,
    /// Without the path: people paste the token itself there.
    #[error("--api-token-file (SURVEYLAB_API_TOKEN_FILE): the file can't be read: {0}")]
    TokenFile(std::io::Error),
    #[error("{0}: {NOT_A_TOKEN}")]
    BadToken(&'static str),
    #[error(transparent)]
    Protection(#[from] protection::Error),
}

impl TryFrom<ServeArgs> for Config {
    type Error = Error;

    fn try_from(args: ServeArgs) -> Result<Self, Error> {
        let upstream = if args.sandbox {
            Upstream::Sandbox
        } else {
            Upstream::SurveyLab {
                url: args.surveylab_url.clone(),
                token: token(&args)?,
            }
        };
        // Callers with tokens need no certificate; those without either are refused call by call.
        let certificate = match &args.callers {
            Some(_) => ClientCertificate::Optional,
            None => ClientCertificate::Required,
        };
        let tls = args.protection.tls(certificate)?;
        let callers = match (&args.callers, &args.protection.tls_client_ca) {
            (None, None) => Callers::Anyone,
            _ => Callers::Authenticated,
        };
        args.protection.allow_listen(args.listen, callers)?;
        args.protection.allow_admin_listen(args.admin_listen)?;
        let ledger = args.ledger.clone().unwrap_or_else(|| {
            let name = if args.sandbox { SANDBOX_LEDGER } else { LEDGER };
            LedgerUrl::Sqlite(name.into())
        });
        Ok(Self {
            upstream,
            ledger,
            tls,
            args,
        })
    }
}

fn token(args: &ServeArgs) -> Result<Tokens, Error> {
    let in_environment = env::var_os(TOKEN_VARIABLE).filter(|token| !token.is_empty());
    match (&args.api_token_file, in_environment) {
        (Some(_), Some(_)) => Err(Error::TwoTokens),
        (None, None) => Err(Error::NoToken),
        (None, Some(token)) => {
            let token = token::of(&token.into_string().unwrap_or_default());
            Ok(token.ok_or(Error::BadToken(TOKEN_VARIABLE))?.into())
        }
        (Some(path), None) => Tokens::open(path.clone()).map_err(|error| match error {
            reload::Error::Read(error) => Error::TokenFile(error),
            reload::Error::Parse(_) => Error::BadToken("--api-token-file (SURVEYLAB_API_TOKEN_FILE)"),
        }),
    }
}

pub fn address(text: &str) -> Result<SocketAddr, String> {
    text.parse()
        .map_err(|_| "expected an IP address with a port, such as 127.0.0.1:50051 (no host names)".into())
}

fn at_most<const MAX: u32>(text: &str) -> Result<NonZeroU32, String> {
    text.parse()
        .ok()
        .filter(|count: &NonZeroU32| count.get() <= MAX)
        .ok_or_else(|| format!("expected a whole number from 1 to {MAX}"))
}

/// A time span as of [`duration`], or `0s`.
pub fn duration_or_zero(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(Duration::ZERO) => Ok(Duration::ZERO),
        _ => duration(text),
    }
}

/// A lease is long enough to be renewed in, and short enough to be waited for.
fn lease(text: &str) -> Result<Duration, String> {
    let span = duration(text)?;
    if (Duration::from_secs(2)..=Duration::from_secs(300)).contains(&span) {
        Ok(span)
    } else {
        Err("expected a time from 2s to 5m".into())
    }
}

/// A time span such as `30s`, `500ms` or `2m`; not zero, and not so long that adding it to a clock overflows.
pub fn duration(text: &str) -> Result<Duration, String> {
    const LONGEST: Duration = Duration::from_secs(7 * 24 * 3600);
    match humantime::parse_duration(text) {
        Ok(span) if !span.is_zero() && span <= LONGEST => Ok(span),
        Ok(_) => Err("expected a time from 1ms to 7days".into()),
        Err(error) => Err(format!("expected a time such as 30s, 500ms or 2m: {error}")),
    }
}
