//! The gateway under measurement.

use std::{
    env,
    fs::{self, File},
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use tonic::transport::Endpoint;
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};

use super::{
    Failure,
    process::{Process, free_address, get},
};

/// Nothing waits for the rate.
pub const UNLIMITED: [&str; 6] = ["--rate", "1000000/s", "--burst", "100000", "--max-in-flight", "4096"];

/// This build's, or that of GATEWAY_UNDER_TEST.
pub fn binary() -> PathBuf {
    env::var_os("GATEWAY_UNDER_TEST").map_or_else(|| env!("CARGO_BIN_EXE_surveylab-gateway").into(), Into::into)
}

/// How one is to be started.
pub struct Setup<'a> {
    pub binary: PathBuf,
    pub surveylab: SocketAddr,
    /// Gets the token, the log, and the ledger if there is no other.
    pub directory: &'a Path,
    /// The value of `--ledger`; without it an SQLite file in the directory.
    pub ledger: Option<&'a str>,
    pub options: &'a [&'a str],
}

pub struct Gateway {
    pub process: Process,
    pub address: SocketAddr,
    admin: SocketAddr,
    log: PathBuf,
    spawned: Instant,
}

impl<'a> Setup<'a> {
    /// With the defaults of its options, to be changed as needed.
    pub fn new(surveylab: SocketAddr, directory: &'a Path) -> Self {
        Self {
            binary: binary(),
            surveylab,
            directory,
            ledger: None,
            options: &[],
        }
    }

    /// Starts the process, and waits for nothing.
    pub fn spawn(&self) -> io::Result<Gateway> {
        let (address, admin) = (free_address()?, free_address()?);
        let token = self.directory.join("token");
        fs::write(&token, "token")?;
        let file = ledger_url(&self.directory.join("ledger.db"));
        let log = self.directory.join("log");
        let spawned = Instant::now();
        let process = Process::start(
            Command::new(&self.binary)
                .args(["serve", "--log-format", "text"])
                .args(["--listen", &address.to_string()])
                .args(["--admin-listen", &admin.to_string()])
                .args(["--surveylab-url", &format!("http://{}/webhook", self.surveylab)])
                .args(["--ledger", self.ledger.unwrap_or(&file)])
                .arg("--api-token-file")
                .arg(token)
                .args(self.options)
                .env("RUST_LOG", "warn")
                .stderr(File::create(&log)?),
        )?;
        Ok(Gateway {
            process,
            address,
            admin,
            log,
            spawned,
        })
    }

    /// Starts it, and waits until it accepts connections.
    pub fn start(&self) -> Result<Gateway, Failure> {
        let mut gateway = self.spawn()?;
        match gateway.process.listens(gateway.address) {
            Ok(()) => Ok(gateway),
            Err(error) => Err(format!("the gateway did not start: {error}\n{}", gateway.last_words()).into()),
        }
    }
}

impl Gateway {
    /// How long it took from its start until a connection is accepted and its health answered.
    pub fn until_it_serves(&mut self) -> Result<Duration, Failure> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        // A few times in the time that a start takes; more often would take the processor from it.
        let pause = Duration::from_micros(200);
        loop {
            match runtime.block_on(is_healthy(self.address)) {
                Ok(true) => return Ok(self.spawned.elapsed()),
                _ if self.spawned.elapsed() < Duration::from_secs(60) && !self.process.has_ended()? => {
                    thread::sleep(pause)
                }
                _ => return Err(format!("the gateway does not serve: {}", self.last_words()).into()),
            }
        }
    }

    /// A metric's value now, summed over its labels.
    pub fn metric(&self, name: &str) -> io::Result<f64> {
        let metrics = get(self.admin, "/metrics")?;
        let of_it = metrics
            .lines()
            .filter(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' '])));
        Ok(of_it
            .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
            .sum())
    }

    pub fn last_words(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }
}

pub fn ledger_url(path: &Path) -> String {
    format!("sqlite:{}", path.display())
}

/// Whether it says over a connection of its own that it serves.
async fn is_healthy(address: SocketAddr) -> Result<bool, Failure> {
    let channel = Endpoint::from_shared(format!("http://{address}"))?.connect().await?;
    let answer = HealthClient::new(channel).check(HealthCheckRequest::default()).await?;
    Ok(answer.into_inner().status() == ServingStatus::Serving)
}
