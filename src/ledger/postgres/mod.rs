//! The ledger of several replicas: one PostgreSQL database that they share.
//!
//! Every replica has a few connections: writers, among which the keys are dealt out and whose batches many callers
//! share; one that looks keys up; one that lists, so that no listing holds up a look-up; one that keeps the replica's
//! lease. All of them are made again when they are lost. While there is none, what is asked fails after a bounded wait,
//! and nothing is sent.
//!
//! A `Pending` key belongs to a replica with a lease, which runs by the database's clock. When it has run out, any
//! other replica puts the key in doubt. The replica itself stops sending before that, by its own clocks (`lease`).
//!
//! The sessions keep prepared statements and settings, so a pooler in between has to pool sessions. A commit is as
//! durable as the server makes it: behind an asynchronous standby, a failover may lose the last ones.

use std::{
    hash::{DefaultHasher, Hash as _, Hasher as _},
    sync::Arc,
    time::Duration,
};

use futures_util::future::{BoxFuture, FutureExt, join_all};
use tokio::{
    select,
    sync::{
        broadcast::{self, error::RecvError},
        mpsc,
    },
    time::{Instant, MissedTickBehavior, interval_at},
};
use tokio_util::{
    sync::{CancellationToken, DropGuard},
    task::TaskTracker,
};

use super::{Census, Claim, Claimed, Error, Fence, Ledger, Query, Record, Replica, Resolution, Resolved, Settlement};
use crate::{
    clock::{Clock, Timestamp},
    invitation::Key,
    postgres::{self, Settings},
};

mod census;
mod id;
mod keeper;
mod lease;
mod link;
mod orphans;
mod read;
mod reader;
mod schema;
pub mod target;
#[cfg(test)]
mod tests;
mod write;
mod writer;

use id::Id;
use keeper::Keeper;
use lease::Lease;
pub use lease::margin;
use link::Link;
use reader::Reader;
use writer::{Settle, Step, Writer};

/// Two, so that one batch gathers while the other is committed. More connections would have smaller batches.
const WRITERS: usize = 2;
/// How many ended claims may be told before those who wait for one look for themselves.
const ENDED: usize = 1_024;
/// How often those who wait for a claim look for themselves: what is told may be lost with a connection.
const LOOK: Duration = Duration::from_millis(500);

/// How a replica takes part.
#[derive(Clone, Debug)]
pub struct Options {
    /// For how long a replica that is not heard of is taken for alive.
    pub lease: Duration,
    /// What people see of it in the table of replicas.
    pub name: String,
}

impl Default for Options {
    fn default() -> Self {
        let host = std::env::var("HOSTNAME").unwrap_or_else(|_| "gateway".into());
        Self {
            lease: Duration::from_secs(10),
            name: format!("{host}/{}", std::process::id()),
        }
    }
}

/// A ledger in a PostgreSQL database. See the module.
pub struct Postgres {
    writers: Vec<Writer>,
    reader: Reader,
    lister: Reader,
    census: Arc<census::Last>,
    lease: Arc<Lease>,
    ended: broadcast::Sender<Id>,
    /// Has the keeper give the lease back.
    leave: CancellationToken,
    /// What reads and writes.
    work: TaskTracker,
    /// What keeps the lease, and all connections.
    tasks: TaskTracker,
    /// Ends the tasks where they are, as the end of the process would.
    _end: DropGuard,
}

impl Postgres {
    /// Opens the ledger, makes its tables where there are none, and puts in doubt what dead replicas had claimed.
    ///
    /// # Errors
    ///
    /// [`Error::Unusable`] if the server refuses (password, database, rights), if a later version changed the tables, or if
    /// the server forgets what it acknowledged; [`Error::Unavailable`] if it can't be reached, or failed otherwise.
    pub async fn open(settings: &Settings, clock: &Clock, options: Options) -> Result<Self, Error> {
        prepare(settings).await?;
        let (tasks, work) = (TaskTracker::new(), TaskTracker::new());
        let end = CancellationToken::new();
        let leave = CancellationToken::new();
        let lease = Arc::new(Lease::new(clock.clone(), options.lease));
        let (told, hears) = mpsc::unbounded_channel();
        let (ended, _) = broadcast::channel(ENDED);

        let link = Link::new(settings.clone(), "surveylab-gateway lease", tasks.clone()).tells(told);
        let mut keeper = Keeper::new(link, lease.clone(), clock.clone(), options.name);
        keeper.start().await?;

        let spawn = |tasks: &TaskTracker, task: BoxFuture<'static, ()>| {
            let end = end.clone();
            tasks.spawn(async move {
                let _ended = end.run_until_cancelled(task).await;
            });
        };
        spawn(&tasks, keeper.run(leave.clone()).boxed());
        spawn(&tasks, keeper::hear(hears, ended.clone()).boxed());
        let mut writers = Vec::new();
        for _ in 0..WRITERS {
            let link = Link::new(settings.clone(), "surveylab-gateway write", tasks.clone());
            let (writer, task) = Writer::new(link, lease.clone());
            spawn(&work, task.boxed());
            writers.push(writer);
        }
        let read = |name| {
            let (reader, task) = Reader::new(Link::new(settings.clone(), name, tasks.clone()));
            spawn(&work, task.boxed());
            reader
        };
        let reader = read("surveylab-gateway read");
        let lister = read("surveylab-gateway list");
        let census = Arc::<census::Last>::default();
        spawn(
            &tasks,
            census::keep(census.clone(), lister.clone(), leave.clone()).boxed(),
        );
        Ok(Self {
            writers,
            reader,
            lister,
            census,
            lease,
            ended,
            leave,
            work,
            tasks,
            _end: end.drop_guard(),
        })
    }

    /// Takes a census now.
    #[cfg(test)]
    pub(super) async fn count(&self) -> Result<(), Error> {
        self.census.renew(&self.lister).await
    }

    /// The writer of a key: always the same, so that its steps keep their order.
    fn writer(&self, key: &Key) -> &Writer {
        let mut hasher = DefaultHasher::new();
        key.hash(&mut hasher);
        let number = usize::try_from(hasher.finish() % WRITERS as u64).unwrap_or_default();
        &self.writers[number]
    }

    async fn wait_for_end(&self, key: Key) -> Result<(), Error> {
        // Before it is asked for, so that nothing is told in between.
        let mut told = self.ended.subscribe();
        let Some(claim) = self.reader.watch(key.clone(), self.lease.last().replica).await? else {
            return Ok(());
        };
        // One for the whole wait: the ends of other claims, however many are told, put no look off.
        let mut looks = interval_at(Instant::now() + LOOK, LOOK);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            select! {
                biased;
                _ = looks.tick() => {}
                heard = told.recv() => match heard {
                    Ok(ended) if ended != claim => continue,
                    Ok(_) | Err(RecvError::Lagged(_)) => {}
                    Err(RecvError::Closed) => return Err(Error::closed()),
                },
            }
            let standing = self.reader.look_up(key.clone()).await?;
            if standing.pending.is_none_or(|pending| pending.claim != claim) {
                return Ok(());
            }
        }
    }
}

/// Brings the tables up to date, over a connection of its own.
async fn prepare(settings: &Settings) -> Result<(), Error> {
    let told = |error: &postgres::Error| format!("{settings}: {error}");
    let (client, driver) =
        postgres::connect(settings, "surveylab-gateway schema")
            .await
            .map_err(|error| match &error {
                postgres::Error::Refused(_) => Error::Unusable(told(&error)),
                postgres::Error::Unreachable(_) => Error::Unavailable(told(&error)),
            })?;
    let migrating = async move {
        let migrated = schema::migrate(&client, schema::MIGRATIONS).await;
        // The driver ends when the client is gone.
        drop(client);
        migrated
    };
    let (migrated, _closed) = tokio::join!(migrating, driver.run(|_| {}));
    migrated
}

impl Ledger for Postgres {
    fn look_up(&self, key: &Key) -> BoxFuture<'_, Result<Option<Record>, Error>> {
        let key = key.clone();
        async move { Ok(self.reader.look_up(key.clone()).await?.shown(&key)) }.boxed()
    }

    fn claim(&self, claim: Claim) -> BoxFuture<'_, Result<Claimed, Error>> {
        self.writer(&claim.key).ask(claim, Step::Claim).boxed()
    }

    fn settle(&self, key: &Key, settlement: Settlement, at: Timestamp) -> BoxFuture<'_, Result<(), Error>> {
        let step = Settle {
            key: key.clone(),
            settlement,
            at,
        };
        self.writer(key).ask(step, Step::Settle).boxed()
    }

    fn release(&self, key: &Key) -> BoxFuture<'_, Result<(), Error>> {
        self.writer(key).ask(key.clone(), Step::Release).boxed()
    }

    fn resolve(&self, key: &Key, resolution: Resolution, at: Timestamp) -> BoxFuture<'_, Result<Resolved, Error>> {
        let step = writer::Resolve {
            key: key.clone(),
            resolution,
            at,
        };
        self.writer(key).ask(step, Step::Resolve).boxed()
    }

    fn list(&self, query: Query) -> BoxFuture<'_, Result<Vec<Record>, Error>> {
        self.lister.list(query).boxed()
    }

    fn check(&self) -> BoxFuture<'_, Result<(), Error>> {
        async {
            // The lease is a write that the database confirmed a moment ago.
            if self.lease.holder().is_none() {
                return Err(Error::Unavailable(
                    "this replica has not reached the database for too long".into(),
                ));
            }
            self.reader.probe().await?;
            for writer in self.writers.iter().filter(|writer| !writer.is_healthy()) {
                writer.ask((), Step::Probe).await?;
            }
            Ok(())
        }
        .boxed()
    }

    fn census(&self) -> Census {
        self.census.get()
    }

    fn may_send(&self, fence: Fence) -> bool {
        self.lease.holder().is_some_and(|holder| holder.fence == fence)
    }

    fn settled(&self, key: &Key) -> BoxFuture<'_, Result<(), Error>> {
        self.wait_for_end(key.clone()).boxed()
    }

    fn replicas(&self) -> BoxFuture<'_, Result<Vec<Replica>, Error>> {
        self.lister.replicas(self.lease.last().replica).boxed()
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        async {
            join_all(self.writers.iter().map(Writer::stop)).await;
            self.reader.stop().await;
            self.lister.stop().await;
            self.work.close();
            self.work.wait().await;
            self.leave.cancel();
            self.tasks.close();
            self.tasks.wait().await;
        }
        .boxed()
    }
}
