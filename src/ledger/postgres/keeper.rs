//! A task that keeps this replica's lease, puts the claims of dead replicas in doubt, and hears of claims that have
//! ended.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::{broadcast, mpsc},
    time::{MissedTickBehavior, interval, timeout},
};
use tokio_postgres::{Client, Notification, Statement, types::ToSql};
use tokio_util::sync::CancellationToken;

use super::{
    id::Id,
    lease::Lease,
    link::{Link, Statements, silent},
    write::{CHANNEL, Columns, PUT_IN_DOUBT},
};
use crate::{
    clock::{Clock, Instant},
    ledger::{Error, rules},
    postgres::describe,
};

/// How often dead replicas are looked for.
const REAP: Duration = Duration::from_millis(500);

const ENTER: &str = "INSERT INTO replica (id, name, started_at, lease_until) \
                     VALUES ($1, $2, clock_timestamp(), clock_timestamp() + $3::bigint * interval '1 microsecond')";

/// A lease that has run out is not renewed: its claims may be in doubt already.
const RENEW: &str = "UPDATE replica SET lease_until = clock_timestamp() + $2::bigint * interval '1 microsecond' \
                     WHERE id = $1 AND lease_until > clock_timestamp()";

const LEAVE: &str = "DELETE FROM replica WHERE id = $1";

/// The lock has a heartbeat that is under way finished, and the condition is looked at again after it.
const REMOVE_DEAD: &str = "DELETE FROM replica WHERE id IN (SELECT id FROM replica \
                           WHERE lease_until < clock_timestamp() ORDER BY id FOR UPDATE SKIP LOCKED)";

pub(super) struct Keeping {
    enter: Statement,
    renew: Statement,
    leave: Statement,
    remove_dead: Statement,
    put_in_doubt: Statement,
}

impl Statements for Keeping {
    async fn prepare(client: &Client) -> Result<Self, tokio_postgres::Error> {
        client.batch_execute(&format!("LISTEN {CHANNEL}")).await?;
        Ok(Self {
            enter: client.prepare(ENTER).await?,
            renew: client.prepare(RENEW).await?,
            leave: client.prepare(LEAVE).await?,
            remove_dead: client.prepare(REMOVE_DEAD).await?,
            put_in_doubt: client.prepare(PUT_IN_DOUBT).await?,
        })
    }
}

pub(super) struct Keeper {
    link: Link<Keeping>,
    lease: Arc<Lease>,
    clock: Clock,
    /// What people see of this replica in the table.
    name: String,
    renewed: Option<Instant>,
    failed: bool,
}

impl Keeper {
    pub(super) fn new(link: Link<Keeping>, lease: Arc<Lease>, clock: Clock, name: String) -> Self {
        Self {
            link,
            lease,
            clock,
            name,
            renewed: None,
            failed: false,
        }
    }

    /// Enters the replica, and puts in doubt what dead ones had claimed.
    pub(super) async fn start(&mut self) -> Result<(), Error> {
        self.enter(self.lease.last().replica).await?;
        self.reap().await
    }

    /// Works until `stop`, and then gives the lease back.
    pub(super) async fn run(mut self, stop: CancellationToken) {
        let every = self.lease.length / 4;
        let mut ticks = interval(REAP.min(every));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while stop.run_until_cancelled(ticks.tick()).await.is_some() {
            // Connecting has bounds of its own: of several hosts the first may hang for longer than a heartbeat should
            // take.
            let Some(connected) = stop.run_until_cancelled(self.link.session()).await else {
                break;
            };
            let kept = match connected.map(drop) {
                Ok(()) => timeout(every * 2, self.tick(every))
                    .await
                    .unwrap_or_else(|_| Err(silent())),
                Err(error) => Err(unavailable(error)),
            };
            match kept {
                Ok(()) if self.failed => {
                    self.failed = false;
                    tracing::info!("this replica's lease is kept again");
                }
                Ok(()) => {}
                Err(error) => {
                    self.link.sever();
                    if !self.failed {
                        self.failed = true;
                        tracing::error!(error = error.to_string(), "this replica's lease can't be renewed");
                    }
                }
            }
        }
        self.lease.give_up();
        let left = timeout(every * 2, self.leave()).await;
        if !matches!(left, Ok(Ok(()))) {
            tracing::warn!("this replica's lease could not be given back: its claims are in doubt when it has run out");
        }
    }

    async fn tick(&mut self, every: Duration) -> Result<(), Error> {
        // Half a tick early rather than half a tick late.
        let is_due = self
            .renewed
            .is_none_or(|at| at.elapsed() + REAP.min(every) / 2 >= every);
        if is_due || self.lease.holder().is_none() {
            self.renew().await?;
        }
        self.reap().await
    }

    fn micros(&self) -> i64 {
        i64::try_from(self.lease.length.as_micros()).unwrap_or(i64::MAX)
    }

    async fn enter(&mut self, replica: Id) -> Result<(), Error> {
        let length = self.micros();
        let since = self.lease.moment();
        let session = self.link.session().await.map_err(unavailable)?;
        session
            .client
            .execute(&session.statements.enter, &[&replica, &self.name, &length])
            .await
            .map_err(failed)?;
        self.lease.hold(replica, since);
        self.renewed = Some(self.clock.now());
        Ok(())
    }

    async fn renew(&mut self) -> Result<(), Error> {
        let replica = self.lease.last().replica;
        let length = self.micros();
        let session = self.link.session().await.map_err(unavailable)?;
        // Before it is sent: the database counts from a moment after this one.
        let since = self.lease.moment();
        let renewed = session
            .client
            .execute(&session.statements.renew, &[&replica, &length])
            .await
            .map_err(failed)?;
        if renewed == 0 {
            self.lease.give_up();
            tracing::warn!(
                "this replica's lease ran out: what it had on the wire is in doubt, unless it is settled already"
            );
            // A new name each time: whatever bears the old one is another's to settle.
            return self.enter(Id::random()).await;
        }
        self.lease.hold(replica, since);
        self.renewed = Some(self.clock.now());
        Ok(())
    }

    /// Puts in doubt what dead replicas had claimed. All or nothing: a replica's row goes with its claims.
    async fn reap(&mut self) -> Result<(), Error> {
        self.remove(None).await
    }

    async fn leave(&mut self) -> Result<(), Error> {
        let replica = self.lease.last().replica;
        self.remove(Some(replica)).await
    }

    async fn remove(&mut self, leaving: Option<Id>) -> Result<(), Error> {
        let columns = Columns::of(&rules::ORPHANED);
        let at = self.clock.timestamp().0;
        let values: [&(dyn ToSql + Sync); 5] = [
            &columns.state,
            &at,
            &columns.reason,
            &columns.http_status,
            &columns.notification,
        ];
        let session = self.link.session().await.map_err(unavailable)?;
        let (client, statements) = (&session.client, &session.statements);
        let (begun, removed, put, committed) = tokio::join!(
            biased;
            client.batch_execute("BEGIN"),
            async {
                match leaving {
                    Some(replica) => client.execute(&statements.leave, &[&replica]).await,
                    None => client.execute(&statements.remove_dead, &[]).await,
                }
            },
            client.query_one(&statements.put_in_doubt, &values),
            client.batch_execute("COMMIT"),
        );
        begun.map_err(failed)?;
        removed.map_err(failed)?;
        let keys: i64 = put.and_then(|row| row.try_get(0)).map_err(failed)?;
        committed.map_err(failed)?;
        if keys > 0 {
            tracing::warn!(
                keys,
                "requests were on the wire when their replica ended or lost its lease: their keys are in doubt now"
            );
        }
        Ok(())
    }
}

fn failed(error: tokio_postgres::Error) -> Error {
    Error::Unavailable(describe(&error))
}

fn unavailable(error: crate::postgres::Error) -> Error {
    Error::Unavailable(error.to_string())
}

/// Hands the numbers of ended claims on to those who wait for one, until the last connection is gone.
pub(super) async fn hear(mut told: mpsc::UnboundedReceiver<Notification>, ended: broadcast::Sender<Id>) {
    while let Some(notification) = told.recv().await {
        if let Some(claim) = Id::parse(notification.payload()) {
            let _nobody_waits = ended.send(claim);
        }
    }
}
