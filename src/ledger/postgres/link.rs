//! A connection that is made again when it is lost.

use std::time::Duration;

use tokio::sync::mpsc;
use tokio_postgres::{Client, Notification};
use tokio_util::task::TaskTracker;

use crate::{
    clock::Instant,
    ledger::Error,
    postgres::{self, Settings, describe},
};

/// After a connection could not be made, those who ask are refused at once for so long.
const PAUSE: Duration = Duration::from_millis(250);
/// No statement, no question and no batch takes so long: the server has ended each statement before.
pub(super) const PATIENCE: Duration = Duration::from_secs(15);

pub(super) const SILENT: &str = "the database does not answer";

pub(super) fn silent() -> Error {
    Error::Unavailable(SILENT.into())
}

/// The statements of one kind of session.
pub(super) trait Statements: Sized + Send + Sync {
    /// Sets the session up and prepares what it is for.
    fn prepare(client: &Client) -> impl Future<Output = Result<Self, tokio_postgres::Error>> + Send;
}

pub(super) struct Session<S> {
    pub client: Client,
    pub statements: S,
}

pub(super) struct Link<S> {
    settings: Settings,
    /// What the server shows as the session's application.
    name: &'static str,
    tasks: TaskTracker,
    told: Option<mpsc::UnboundedSender<Notification>>,
    session: Option<Session<S>>,
    refused: Option<(Instant, String)>,
}

impl<S: Statements> Link<S> {
    pub(super) fn new(settings: Settings, name: &'static str, tasks: TaskTracker) -> Self {
        Self {
            settings,
            name,
            tasks,
            told: None,
            session: None,
            refused: None,
        }
    }

    /// Hands on what the server tells its listeners.
    pub(super) fn tells(mut self, told: mpsc::UnboundedSender<Notification>) -> Self {
        self.told = Some(told);
        self
    }

    /// The session, a new one if need be.
    pub(super) async fn session(&mut self) -> Result<&Session<S>, postgres::Error> {
        if self.session.as_ref().is_none_or(|session| session.client.is_closed()) {
            self.session = None;
            if let Some((at, why)) = &self.refused
                && at.elapsed() < PAUSE
            {
                return Err(postgres::Error::Unreachable(why.clone()));
            }
            match self.connect().await {
                Ok(session) => {
                    self.refused = None;
                    self.session = Some(session);
                }
                Err(error) => {
                    self.refused = Some((Instant::now(), error.to_string()));
                    return Err(error);
                }
            }
        }
        self.session
            .as_ref()
            .ok_or_else(|| postgres::Error::Unreachable("there is no connection".into()))
    }

    async fn connect(&self) -> Result<Session<S>, postgres::Error> {
        let (client, driver) = postgres::connect(&self.settings, self.name).await?;
        let told = self.told.clone();
        self.tasks.spawn(async move {
            // Who asks something meanwhile learns of it by an error, and nobody else needs to.
            let _ended = driver
                .run(|notification| {
                    if let Some(told) = &told {
                        let _nobody_listens = told.send(notification);
                    }
                })
                .await;
        });
        let preparing = tokio::time::timeout(postgres::STATEMENT_TIMEOUT, S::prepare(&client)).await;
        let statements = preparing
            .map_err(|_| postgres::Error::Unreachable("the server takes no statements".into()))?
            .map_err(|error| postgres::Error::Unreachable(describe(&error)))?;
        Ok(Session { client, statements })
    }

    /// Lets the connection go: what is still under way on it is nobody's any more.
    pub(super) fn sever(&mut self) {
        self.session = None;
    }
}

/// Has the planner go by the primary keys, whatever it believes of the tables' sizes: a plan made while a ledger was
/// empty would be kept while it grows. Engines that know no such settings keep theirs.
pub(super) async fn plan_by_keys(client: &Client) -> Result<(), tokio_postgres::Error> {
    client
        .batch_execute(
            "SELECT set_config(name, CASE name WHEN 'plan_cache_mode' THEN 'force_generic_plan' ELSE 'off' END, false) \
             FROM pg_settings WHERE name IN \
             ('plan_cache_mode', 'enable_seqscan', 'enable_hashjoin', 'enable_mergejoin', 'jit')",
        )
        .await
}
