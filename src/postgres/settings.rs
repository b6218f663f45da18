//! Where a database is and how to get in, from one URL as libpq understands it, and libpq's environment.

use std::{env, fmt, path::PathBuf, str::FromStr, time::Duration};

use percent_encoding::percent_decode_str;
use tokio_postgres::config::{SslMode, TargetSessionAttrs};

use super::{
    passfile::{self, Target},
    tls::{Connector, Trust},
};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const PORT: u16 = 5432;
/// A peer that vanished without a word is noticed after about 25 s of silence, or 10 s of unanswered bytes.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(10);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
const KEEPALIVE_RETRIES: u32 = 3;
const UNANSWERED: Duration = Duration::from_secs(10);

/// `postgres://user:password@host:port,host2:port/database?sslmode=verify-full&sslrootcert=FILE&connect_timeout=SECONDS`.
///
/// - The hosts are tried in order; the first that takes writes is used. A socket's directory is a host, too:
///   `postgres://user@%2Frun%2Fpostgresql/database`, or `?host=/run/postgresql`.
/// - The password may come from `PGPASSWORD`, or from the file named by `passfile=`, `PGPASSFILE`, or `~/.pgpass`.
/// - `sslmode`: `disable`, `prefer` (as with libpq the default, which trusts any certificate, and goes without TLS where the
///   server has none), `require`, `verify-ca`, `verify-full`. `sslrootcert` is a PEM file, or `system`; without it the
///   platform's certificates are trusted. With such a file `require` is `verify-ca`, as with libpq.
///
/// Neither `Debug` nor `Display` tells the password.
#[derive(Clone)]
pub struct Settings {
    pub(super) hosts: Vec<Host>,
    pub(super) tls: Connector,
    /// For each host: name, TCP, TLS and the server's greeting together.
    pub(super) connect_timeout: Duration,
    user: String,
    database: String,
}

/// One server.
#[derive(Clone)]
pub(super) struct Host {
    name: String,
    port: u16,
    pub(super) config: tokio_postgres::Config,
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.name.contains(':') {
            return write!(f, "[{}]:{}", self.name, self.port);
        }
        write!(f, "{}:{}", self.name, self.port)
    }
}

impl fmt::Display for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "postgres://{}@", self.user)?;
        for (index, host) in self.hosts.iter().enumerate() {
            write!(f, "{}{host}", if index == 0 { "" } else { "," })?;
        }
        write!(f, "/{}", self.database)
    }
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Settings({self})")
    }
}

/// What is wrong with the settings. Never repeats what was given where the password could be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct SettingsError(String);

fn wrong<T>(why: impl Into<String>) -> Result<T, SettingsError> {
    Err(SettingsError(why.into()))
}

impl FromStr for Settings {
    type Err = SettingsError;

    fn from_str(url: &str) -> Result<Self, SettingsError> {
        Self::parse(url, |name| env::var(name).ok())
    }
}

/// The parts of the URL, decoded.
#[derive(Default)]
struct Parts {
    user: Option<String>,
    password: Option<String>,
    hosts: Vec<(String, Option<u16>)>,
    database: Option<String>,
    ssl_mode: Option<String>,
    root_certificates: Option<String>,
    connect_timeout: Option<Duration>,
    passfile: Option<String>,
}

impl Settings {
    /// The settings with another environment than the process's, for tests.
    pub(super) fn parse(url: &str, environment: impl Fn(&str) -> Option<String>) -> Result<Self, SettingsError> {
        let parts = Parts::read(url)?;
        let Some(user) = parts.user else {
            return wrong("the URL names no user (postgres://USER@HOST/DATABASE)");
        };
        // As with libpq.
        let database = parts.database.unwrap_or_else(|| user.clone());
        if parts.hosts.is_empty() {
            return wrong("the URL names no host");
        }
        let roots = parts.root_certificates.as_deref().filter(|file| *file != "system");
        let (mode, trust) = match parts.ssl_mode.as_deref().unwrap_or("prefer") {
            "disable" => (SslMode::Disable, Trust::Any),
            "prefer" => (SslMode::Prefer, Trust::Any),
            "require" if roots.is_some() => (SslMode::Require, Trust::Authority),
            "require" => (SslMode::Require, Trust::Any),
            "verify-ca" => (SslMode::Require, Trust::Authority),
            "verify-full" => (SslMode::Require, Trust::Full),
            _ => return wrong("sslmode is one of disable, prefer, require, verify-ca, verify-full"),
        };
        let tls = Connector::new(trust, roots).map_err(SettingsError)?;
        let password = parts.password.or_else(|| environment("PGPASSWORD"));
        let passfile = parts
            .passfile
            .or_else(|| environment("PGPASSFILE"))
            .map(PathBuf::from)
            .or_else(|| environment("HOME").map(|home| PathBuf::from(home).join(".pgpass")));

        let mut hosts = Vec::new();
        for (name, port) in parts.hosts {
            let port = port.unwrap_or(PORT);
            let is_socket = name.starts_with('/');
            let mut config = tokio_postgres::Config::new();
            config
                .host(name.as_str())
                .port(port)
                .user(user.as_str())
                .dbname(database.as_str())
                // libpq, too, knows no TLS over a socket.
                .ssl_mode(if is_socket { SslMode::Disable } else { mode })
                .target_session_attrs(TargetSessionAttrs::ReadWrite)
                .connect_timeout(parts.connect_timeout.unwrap_or(CONNECT_TIMEOUT))
                .keepalives_idle(KEEPALIVE_IDLE)
                .keepalives_interval(KEEPALIVE_INTERVAL)
                .keepalives_retries(KEEPALIVE_RETRIES)
                .tcp_user_timeout(UNANSWERED);
            let target = Target {
                host: if is_socket { "localhost" } else { &name },
                port,
                database: &database,
                user: &user,
            };
            let password = match (&password, &passfile) {
                (Some(password), _) => Some(password.clone()),
                (None, Some(file)) => passfile::password(file, &target).map_err(SettingsError)?,
                (None, None) => None,
            };
            if let Some(password) = password {
                config.password(password);
            }
            hosts.push(Host { name, port, config });
        }
        Ok(Self {
            hosts,
            tls,
            connect_timeout: parts.connect_timeout.unwrap_or(CONNECT_TIMEOUT),
            user,
            database,
        })
    }
}

impl Parts {
    fn read(url: &str) -> Result<Self, SettingsError> {
        let Some(rest) = url
            .strip_prefix("postgres://")
            .or_else(|| url.strip_prefix("postgresql://"))
        else {
            return wrong("the URL does not begin with postgres://");
        };
        let mut parts = Self::default();
        let (place, query) = rest.split_once('?').unwrap_or((rest, ""));
        // A password may hold `/` or `@` as it is, though it should not; a host may not.
        let (credentials, place) = match place.rsplit_once('@') {
            Some((credentials, place)) => (Some(credentials), place),
            None => (None, place),
        };
        if let Some(credentials) = credentials {
            let (user, password) = match credentials.split_once(':') {
                Some((user, password)) => (user, Some(password)),
                None => (credentials, None),
            };
            parts.user = Some(decoded(user)?).filter(|user| !user.is_empty());
            parts.password = password.map(decoded).transpose()?;
        }
        let (hosts, database) = place.split_once('/').unwrap_or((place, ""));
        parts.database = Some(decoded(database)?).filter(|name| !name.is_empty());
        for host in hosts.split(',').filter(|host| !host.is_empty()) {
            parts.hosts.push(host_and_port(host)?);
        }
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            parts.take(name, decoded(value)?)?;
        }
        Ok(parts)
    }

    fn take(&mut self, name: &str, value: String) -> Result<(), SettingsError> {
        match name {
            "sslmode" => self.ssl_mode = Some(value),
            "sslrootcert" => self.root_certificates = Some(value),
            "passfile" => self.passfile = Some(value),
            "user" => self.user = Some(value),
            "password" => self.password = Some(value),
            "dbname" => self.database = Some(value),
            "host" => self.hosts.extend(value.split(',').map(|host| (host.to_string(), None))),
            "connect_timeout" => match value.parse() {
                Ok(seconds @ 1..=600) => self.connect_timeout = Some(Duration::from_secs(seconds)),
                _ => return wrong("connect_timeout is a number of seconds, 1 to 600"),
            },
            "target_session_attrs" if value == "read-write" => {}
            "target_session_attrs" => return wrong("target_session_attrs can only be read-write"),
            // Its name could be a part of a password that was not encoded.
            _ => {
                return wrong(
                    "a parameter behind the ? is none of sslmode, sslrootcert, connect_timeout, target_session_attrs, \
                     passfile, user, password, dbname, host",
                );
            }
        }
        Ok(())
    }
}

fn host_and_port(text: &str) -> Result<(String, Option<u16>), SettingsError> {
    let (host, port) = match text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, rest)) => (address, rest.strip_prefix(':')),
        None => match text.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        },
    };
    let port = match port.filter(|port| !port.is_empty()).map(str::parse).transpose() {
        Ok(port) => port,
        Err(_) => {
            return wrong(
                "a host's port is not a number of at most 65535 (special characters of a password are percent-encoded)",
            );
        }
    };
    Ok((decoded(host)?, port))
}

fn decoded(text: &str) -> Result<String, SettingsError> {
    match percent_decode_str(text).decode_utf8() {
        Ok(text) if !text.contains('\0') => Ok(text.into_owned()),
        _ => wrong("a percent-encoded part of the URL is not text"),
    }
}
