//! Connections to PostgreSQL: where to, how secured, and how bounded. What is asked of the server is its users' own.

mod passfile;
mod settings;
#[cfg(test)]
#[path = "../../tests/it/support/postgres.rs"]
#[allow(dead_code, reason = "shared with the integration tests, which use other parts of it")]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
mod tls;

use std::{error::Error as _, future::poll_fn, time::Duration};

use tokio::time::timeout;
use tokio_postgres::{AsyncMessage, Client, Connection, Notification, Socket, error::SqlState};

pub use settings::{Settings, SettingsError};

/// No statement of this program takes so long unless the server is in trouble. The time of a commit that waits for a
/// synchronous standby does not count: the server stops its own clock before it (`finish_xact_command`).
pub const STATEMENT_TIMEOUT: Duration = Duration::from_secs(10);
/// Locks are held for the length of a transaction, which is one round trip.
pub const LOCK_TIMEOUT: Duration = Duration::from_secs(5);
/// After so long the server ends a transaction whose client is silent, and with it the locks it holds.
pub const IDLE_IN_TRANSACTION_TIMEOUT: Duration = Duration::from_secs(10);

/// Why there is no connection, or why a statement failed. Never holds the password or a statement's values.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The server refuses for as long as its settings or these stay as they are: password, database, certificate.
    #[error("{0}")]
    Refused(String),
    /// It can't be reached, or does not answer. A later try can help.
    #[error("{0}")]
    Unreachable(String),
}

/// Connects to the first host that takes writes. The client works only while the driver runs.
///
/// The session keeps dates and text as the protocol sends them, bounds its statements, its waits for locks and its
/// silence within a transaction, and acknowledges no commit that a loss of power could undo.
///
/// # Errors
///
/// [`Error::Refused`] only if every host refuses.
pub async fn connect(settings: &Settings, application_name: &str) -> Result<(Client, Driver), Error> {
    let mut refused = Vec::new();
    let mut unreachable = Vec::new();
    for host in &settings.hosts {
        let mut config = host.config.clone();
        config.application_name(application_name);
        // The whole of it: tokio-postgres bounds only TCP, and a server may take a connection and never greet.
        let connecting = timeout(settings.connect_timeout, session(&config, &settings.tls));
        match connecting.await {
            Ok(Ok(connected)) => return Ok(connected),
            Ok(Err(error)) if is_refusal(&error) => refused.push(format!("{host}: {}", describe(&error))),
            Ok(Err(error)) => unreachable.push(format!("{host}: {}", describe(&error))),
            Err(_) => unreachable.push(format!("{host}: no answer within {:?}", settings.connect_timeout)),
        }
    }
    if unreachable.is_empty() {
        Err(Error::Refused(refused.join("; ")))
    } else {
        unreachable.append(&mut refused);
        Err(Error::Unreachable(unreachable.join("; ")))
    }
}

async fn session(
    config: &tokio_postgres::Config,
    tls: &tls::Connector,
) -> Result<(Client, Driver), tokio_postgres::Error> {
    let (client, connection) = config.connect(tls.clone()).await?;
    let mut driver = Driver(connection);
    // `local` is durable on this server, which is what a ledger needs; `off` is durable nowhere.
    let set = format!(
        "SET statement_timeout = {}; SET lock_timeout = {}; SET idle_in_transaction_session_timeout = {}; \
         SET client_min_messages = warning; \
         SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') = 'off'",
        STATEMENT_TIMEOUT.as_millis(),
        LOCK_TIMEOUT.as_millis(),
        IDLE_IN_TRANSACTION_TIMEOUT.as_millis(),
    );
    {
        let setting = std::pin::pin!(client.batch_execute(&set));
        driver.run_beside(setting).await?;
    }
    Ok((client, driver))
}

/// The side of a connection that moves its bytes.
pub struct Driver(Connection<Socket, tls::Stream>);

impl Driver {
    /// Moves bytes until the client is dropped, or the connection ends. Who listens is `told` of each notification.
    pub async fn run(mut self, mut told: impl FnMut(Notification)) -> Result<(), Error> {
        loop {
            match poll_fn(|cx| self.0.poll_message(cx)).await {
                None => return Ok(()),
                Some(Ok(AsyncMessage::Notification(notification))) => told(notification),
                Some(Ok(_)) => {}
                Some(Err(error)) => return Err(Error::Unreachable(describe(&error))),
            }
        }
    }

    /// Runs while `question` is asked, for those who have no task for it yet.
    async fn run_beside<T>(
        &mut self,
        question: impl Future<Output = Result<T, tokio_postgres::Error>>,
    ) -> Result<T, tokio_postgres::Error> {
        let mut question = std::pin::pin!(question);
        let mut ended = false;
        poll_fn(|cx| {
            // The client learns of the connection's end by itself.
            while !ended {
                match self.0.poll_message(cx) {
                    std::task::Poll::Ready(Some(Ok(_))) => {}
                    std::task::Poll::Ready(Some(Err(error))) => return std::task::Poll::Ready(Err(error)),
                    std::task::Poll::Ready(None) => ended = true,
                    std::task::Poll::Pending => break,
                }
            }
            question.as_mut().poll(cx)
        })
        .await
    }
}

/// Does the same setting fail again for as long as nobody changes anything?
fn is_refusal(error: &tokio_postgres::Error) -> bool {
    error.code().is_some_and(|code| {
        [
            SqlState::INVALID_PASSWORD,
            SqlState::INVALID_AUTHORIZATION_SPECIFICATION,
            SqlState::INVALID_CATALOG_NAME,
            SqlState::INSUFFICIENT_PRIVILEGE,
        ]
        .contains(code)
    })
}

/// The error for people: the server's own message and its code, but not its detail, which may repeat values.
pub fn describe(error: &tokio_postgres::Error) -> String {
    if let Some(db) = error.as_db_error() {
        return format!("{} (SQLSTATE {})", db.message(), db.code().code());
    }
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
