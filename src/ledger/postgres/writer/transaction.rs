//! One batch as one transaction; and the truth, where the answer to its COMMIT was lost.

use std::{collections::HashMap, sync::Arc, time::Duration};

use tokio::time::{sleep, timeout};
use tokio_postgres::{
    Client,
    error::{Severity, SqlState},
};

use super::{
    super::{
        id::Id,
        lease::Lease,
        link::{Link, PATIENCE, SILENT},
        orphans,
        read::{self, Standing},
        write::{self, Claimant, Writing},
    },
    step::Step,
};
use crate::{
    clock::Instant,
    fail_point,
    invitation::Key,
    ledger::{Claimed, Error},
    postgres::describe,
};

/// How often a batch is tried again that the server undid for the sake of another transaction.
const RETRIES: u32 = 6;
/// The server may yet commit a transaction whose connection was lost: the session's timeouts bound each of its steps,
/// and this their sum, several times over.
const DISOWNED_FOR: Duration = Duration::from_secs(300);

/// Why a batch did not succeed.
pub(super) enum Failure {
    /// Nothing of it happened, or nothing that could not be done again.
    Refused(String),
    /// The server has undone it.
    Undone(SqlState, String),
    /// The connection was lost, and with it the answer to the COMMIT; or the answer does not tell.
    Unknown(String),
}

impl Failure {
    /// Of the BEGIN: without it what follows it would be committed one by one.
    fn of_begin(error: &tokio_postgres::Error) -> Self {
        Self::Unknown(describe(error))
    }

    /// Of a statement before the COMMIT: what the server refuses is undone with all the rest.
    fn of_statement(error: &tokio_postgres::Error) -> Self {
        match error.code() {
            Some(code) if !may_be_committed(error) => Self::Undone(code.clone(), describe(error)),
            _ => Self::Unknown(describe(error)),
        }
    }

    /// Of the COMMIT. A server that is ended while it waits for its standby has committed.
    fn of_commit(error: &tokio_postgres::Error) -> Self {
        match error.code() {
            Some(code) if ["40", "23"].contains(&class(code)) && !may_be_committed(error) => {
                Self::Undone(code.clone(), describe(error))
            }
            _ => Self::Unknown(describe(error)),
        }
    }

    /// Met by one step, while others may have nothing to do with it: its values, a rule of the tables, a lock that is
    /// not given free, a damaged page.
    pub(super) fn is_of_one_step(&self) -> bool {
        match self {
            Self::Undone(code, _) => {
                *code == SqlState::LOCK_NOT_AVAILABLE || ["21", "22", "23", "P0", "XX"].contains(&class(code))
            }
            Self::Refused(_) | Self::Unknown(_) => false,
        }
    }

    /// Another transaction was preferred: the same again may succeed.
    fn is_of_others(&self) -> bool {
        match self {
            Self::Undone(code, _) => class(code) == "40",
            Self::Refused(_) | Self::Unknown(_) => false,
        }
    }

    pub(super) fn why(&self) -> &str {
        match self {
            Self::Refused(why) | Self::Undone(_, why) | Self::Unknown(why) => why,
        }
    }
}

/// The COMMIT is sent with all the rest. An error of the connection, or the last one on it, may be of who stands in
/// between, whose server has carried all of it out; and a server may say itself that it does not know.
fn may_be_committed(error: &tokio_postgres::Error) -> bool {
    error.as_db_error().is_some_and(|error| {
        let is_last = match error.parsed_severity() {
            Some(severity) => matches!(severity, Severity::Fatal | Severity::Panic),
            // Who stands in between may leave out the field that is in no language.
            None => ["FATAL", "PANIC"].contains(&error.severity()),
        };
        is_last || class(error.code()) == "08" || *error.code() == SqlState::T_R_STATEMENT_COMPLETION_UNKNOWN
    })
}

fn class(code: &SqlState) -> &str {
    code.code().get(..2).unwrap_or_default()
}

/// A claim that was refused to who had made it while nobody knew whether it was committed, or would be yet; or although it
/// was, for want of the rest of its answer.
struct Disowned {
    key: Key,
    stamp: Id,
    until: Instant,
}

/// What the writer knows, and its connection.
pub(super) struct Session {
    link: Link<Writing>,
    lease: Arc<Lease>,
    /// The claims of this process that are not ended yet, and the numbers they are known by.
    claims: HashMap<Key, Id>,
    /// Deleted wherever they turn up.
    disowned: Vec<Disowned>,
}

impl Session {
    pub(super) fn new(link: Link<Writing>, lease: Arc<Lease>) -> Self {
        Self {
            link,
            lease,
            claims: HashMap::new(),
            disowned: Vec::new(),
        }
    }

    /// Is there something to look for even when nothing is asked?
    pub(super) fn has_disowned(&self) -> bool {
        !self.disowned.is_empty()
    }

    /// Gives each step its outcome, unless it has to be asked again. Tries again by itself where that can be known to
    /// do no harm.
    pub(super) async fn transact(&mut self, steps: &mut [Step]) -> Result<(), Failure> {
        let mut tries = 0;
        loop {
            // Once for each try, so that what is checked, what is written and what is told of it are the same.
            let holder = self.lease.holder();
            if holder.is_none() {
                // Before anything of them is written: claims of a replica that others take for dead would be in doubt at
                // once.
                for step in steps.iter_mut().filter(|step| matches!(step, Step::Claim(_))) {
                    step.refuse("this replica has not reached the database for too long");
                }
            }
            let by = Claimant {
                holder: holder.unwrap_or_else(|| self.lease.last()),
                stamp: Id::random(),
            };
            let Err(failure) = self.attempt(steps, by).await else {
                return Ok(());
            };
            match failure {
                Failure::Unknown(why) => return self.find_out(steps, by, why).await,
                failure if failure.is_of_others() && tries < RETRIES => {
                    tries += 1;
                    // At random, so that two that met don't meet again.
                    sleep(Duration::from_millis(rand::random_range(1..=2 << tries))).await;
                }
                failure => {
                    // Such as of a server that became a standby. A new session costs little beside a failure.
                    if !failure.is_of_one_step() {
                        self.link.sever();
                    }
                    return Err(failure);
                }
            }
        }
    }

    /// Runs the steps that have no outcome, in one transaction and one round trip.
    async fn attempt(&mut self, steps: &mut [Step], by: Claimant) -> Result<(), Failure> {
        let session = match self.link.session().await {
            Ok(session) => session,
            Err(error) => return Err(Failure::Refused(error.to_string())),
        };
        let (client, statements) = (&session.client, &session.statements);
        let (mut claims, mut settles, mut releases) = (Vec::new(), Vec::new(), Vec::new());
        let (mut resolve, mut probe) = (None, false);
        for step in &*steps {
            match step {
                Step::Claim(asked) if asked.outcome.is_none() => claims.push(&asked.step),
                Step::Settle(asked) if asked.outcome.is_none() => {
                    // Without a claim of this process there is nothing to settle or to release.
                    settles.extend(self.claims.get(&asked.step.key).map(|claim| write::Settle {
                        key: &asked.step.key,
                        claim: *claim,
                        settlement: &asked.step.settlement,
                        at: asked.step.at,
                    }));
                }
                Step::Release(asked) if asked.outcome.is_none() => {
                    releases.extend(self.claims.get(&asked.step).map(|claim| (&asked.step, *claim)));
                }
                Step::Resolve(asked) if asked.outcome.is_none() => resolve = Some(&asked.step),
                Step::Probe(asked) if asked.outcome.is_none() => probe = true,
                Step::Claim(_) | Step::Settle(_) | Step::Release(_) | Step::Resolve(_) | Step::Probe(_) => {}
            }
        }
        let disowned: Vec<_> = self.disowned.iter().map(|claim| (&claim.key, claim.stamp)).collect();

        // Each of these sends what it has when it is polled first, so that all is under way before the first answer.
        // Claims come before what ends claims: only claims wait for other transactions, and what those still have to do
        // does not.
        let all = async {
            tokio::join!(
                biased;
                client.batch_execute("BEGIN"),
                write::release(client, statements, &disowned),
                write::claim(client, statements, &claims, by),
                write::settle(client, statements, &settles),
                write::release(client, statements, &releases),
                async {
                    match resolve {
                        Some(step) => write::resolve(client, statements, step).await.map(Some),
                        None => Ok(None),
                    }
                },
                async {
                    match probe {
                        true => client.execute(&statements.probe, &[&by.holder.replica]).await.map(drop),
                        false => Ok(()),
                    }
                },
                client.batch_execute("COMMIT"),
            )
        };
        let Ok((begun, purged, claimed, settled, released, resolved, probed, committed)) = timeout(PATIENCE, all).await
        else {
            return Err(Failure::Unknown(SILENT.into()));
        };
        // In an order in which an error that undid the transaction comes before those it led to. After an error the
        // COMMIT is a ROLLBACK, and succeeds.
        let of_statement = |error| Failure::of_statement(&error);
        begun.map_err(|error| Failure::of_begin(&error))?;
        purged.map_err(of_statement)?;
        let standings = claimed.map_err(of_statement)?;
        let missed = settled.map_err(of_statement)? + released.map_err(of_statement)?;
        let resolved = resolved.map_err(of_statement)?;
        probed.map_err(of_statement)?;
        committed.map_err(|error| Failure::of_commit(&error))?;
        fail_point::reached(fail_point::Place::AfterCommit);
        let ended = if missed == 0 {
            Ok(())
        } else {
            end_orphans(client, statements, &settles, &releases).await
        };

        let now = Instant::now();
        self.disowned.retain(|claim| claim.until > now);
        let mut standings = standings.into_iter();
        let mut resolved = resolved;
        for step in steps {
            match step {
                Step::Claim(asked) if asked.outcome.is_none() => {
                    asked.outcome = match standings.next() {
                        Some(Ok(standing)) => write::claimed(&asked.step, standing, by).map(Ok),
                        Some(Err(unreadable)) => {
                            self.disowned.push(Disowned {
                                key: asked.step.key.clone(),
                                stamp: by.stamp,
                                until: now + DISOWNED_FOR,
                            });
                            Some(Err(unreadable.into()))
                        }
                        None => None,
                    };
                    if let Some(Ok(Claimed::Yes { .. })) = asked.outcome {
                        self.claims.insert(asked.step.key.clone(), by.stamp);
                    }
                }
                Step::Settle(asked) if asked.outcome.is_none() && ended.is_ok() => {
                    self.claims.remove(&asked.step.key);
                    asked.outcome = Some(Ok(()));
                }
                Step::Release(asked) if asked.outcome.is_none() && ended.is_ok() => {
                    self.claims.remove(&asked.step);
                    asked.outcome = Some(Ok(()));
                }
                Step::Resolve(asked) if asked.outcome.is_none() => {
                    let resolving = resolved.take();
                    asked.outcome = resolving.and_then(|resolving| resolving.resolved(&asked.step.key));
                }
                Step::Probe(asked) if asked.outcome.is_none() => asked.outcome = Some(Ok(())),
                Step::Claim(_) | Step::Settle(_) | Step::Release(_) | Step::Resolve(_) | Step::Probe(_) => {}
            }
        }
        ended
    }

    /// Learns what became of a transaction whose connection was lost. A claim that is there is its caller's. One that
    /// is not there may still come, as the server may not have noticed: it is disowned. What ends claims names them, so
    /// it can be done twice.
    async fn find_out(&mut self, steps: &mut [Step], by: Claimant, why: String) -> Result<(), Failure> {
        self.link.sever();
        let claims = steps.iter().filter_map(|step| match step {
            Step::Claim(asked) if asked.outcome.is_none() => Some(asked.step.key.clone()),
            _ => None,
        });
        let keys: Vec<Key> = claims.collect();
        let found = match self.link.session().await {
            Ok(session) => {
                let looking = read::look_up(&session.client, &session.statements.look_up, &keys);
                timeout(PATIENCE, looking).await.ok().and_then(Result::ok)
            }
            Err(_) => None,
        };
        let is_back = found.is_some();
        let mut found = found.unwrap_or_default().into_iter();
        let until = Instant::now() + DISOWNED_FOR;
        for step in steps.iter_mut() {
            match step {
                Step::Claim(asked) if asked.outcome.is_none() => {
                    let standing = found.next().and_then(Result::ok);
                    let is_ours = |standing: &Standing| {
                        let pending = standing.pending.as_ref();
                        pending.is_some_and(|pending| pending.claim == by.stamp)
                    };
                    let claimed = standing
                        .filter(is_ours)
                        .and_then(|standing| write::claimed(&asked.step, standing, by));
                    if let Some(claimed @ Claimed::Yes { .. }) = claimed {
                        self.claims.insert(asked.step.key.clone(), by.stamp);
                        asked.outcome = Some(Ok(claimed));
                    } else {
                        self.disowned.push(Disowned {
                            key: asked.step.key.clone(),
                            stamp: by.stamp,
                            until,
                        });
                        asked.outcome = Some(Err(Error::Unavailable(why.clone())));
                    }
                }
                // A second try could not tell its own effect from somebody else's.
                Step::Resolve(_) => step.refuse(&why),
                Step::Claim(_) | Step::Settle(_) | Step::Release(_) | Step::Probe(_) => {}
            }
        }
        if !is_back {
            return Err(Failure::Refused(why));
        }
        // Every claim has its outcome: none is made by it.
        let again = self.attempt(steps, by).await;
        if again.is_err() {
            self.link.sever();
        }
        again
    }
}

/// Ends the doubts that claims were put in. In a transaction of its own, as only a replica that was taken for dead needs it.
async fn end_orphans(
    client: &Client,
    statements: &Writing,
    settles: &[write::Settle<'_>],
    releases: &[write::Release<'_>],
) -> Result<(), Failure> {
    let all = async {
        tokio::join!(
            biased;
            client.batch_execute("BEGIN"),
            orphans::end(client, statements, settles, releases),
            client.batch_execute("COMMIT"),
        )
    };
    let Ok((begun, ended, committed)) = timeout(PATIENCE, all).await else {
        return Err(Failure::Unknown("the database does not answer".into()));
    };
    begun.map_err(|error| Failure::of_begin(&error))?;
    ended.map_err(|error| Failure::of_statement(&error))?;
    committed.map_err(|error| Failure::of_commit(&error))
}
