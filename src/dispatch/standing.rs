//! How the gateway stands, for monitors and people on call. Who asks for a [`Standing`] does not wait for the ledger for
//! long: an answer that does not come is an answer, too.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::{sync::watch, time::timeout_at};

use super::{Core, Dispatcher, breaker::BreakerStanding};
use crate::{clock::Instant, limiter::Snapshot};

/// How long the ledger may take to say that it can write. Who asks while it has been silent for longer gets an answer at
/// once.
const PATIENCE: Duration = Duration::from_secs(1);

/// Where the gateway stands at one moment.
#[derive(Clone, Debug)]
pub struct Standing {
    pub serving: Serving,
    pub limiter: Snapshot,
    /// Is there while calls fail because SurveyLab refuses every request.
    pub breaker: Option<BreakerStanding>,
}

/// Could a request go out, as far as this process decides it?
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Serving {
    Yes,
    /// Shutting down.
    Draining,
    /// Nothing can be claimed; the reason is for people.
    LedgerUnavailable(String),
}

/// The check of the ledger that is under way, if one is: all who ask meanwhile share it, so that a ledger that hangs is not
/// asked again and again.
#[derive(Default)]
pub(super) struct Checks {
    under_way: Mutex<Option<Check>>,
}

#[derive(Clone)]
struct Check {
    begun: Instant,
    answer: watch::Receiver<Option<Serving>>,
}

impl Dispatcher {
    /// How it stands now. Ends within a second or so, whatever the ledger does.
    pub async fn standing(&self) -> Standing {
        let serving = self.serving().await;
        Standing {
            serving,
            limiter: self.core.limiter.snapshot(),
            breaker: self.core.breaker.standing(),
        }
    }

    async fn serving(&self) -> Serving {
        if self.core.closing.is_cancelled() {
            return Serving::Draining;
        }
        let Check { begun, mut answer } = self.check_under_way();
        let answered = timeout_at(begun + PATIENCE, answer.wait_for(Option::is_some)).await;
        match answered {
            Ok(Ok(serving)) => serving.clone().unwrap_or(Serving::Draining),
            // A check ends without an answer only where the process does.
            Ok(Err(_)) => Serving::Draining,
            Err(_) => {
                let silent = begun.elapsed().as_secs().max(1);
                Serving::LedgerUnavailable(format!("the ledger has not answered for {silent} s"))
            }
        }
    }

    /// The check that is under way, or a new one. It goes on when those who asked have left, or it could not tell later how
    /// long the ledger has been silent.
    fn check_under_way(&self) -> Check {
        let mut under_way = self
            .core
            .checks
            .under_way
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let has_no_answer = |check: &&Check| check.answer.borrow().is_none() && check.answer.has_changed().is_ok();
        if let Some(check) = under_way.as_ref().filter(has_no_answer) {
            return check.clone();
        }
        let (tell, answer) = watch::channel(None);
        let check = Check {
            begun: self.core.clock.now(),
            answer,
        };
        *under_way = Some(check.clone());
        let core = self.core.clone();
        // One that hangs must not hold up the end of the process.
        let closing = core.closing.clone();
        let check_up = async move { tell.send(Some(core.check().await)) };
        self.core.trips.spawn(async move {
            let _nobody_waits = closing.run_until_cancelled(check_up).await;
        });
        check
    }
}

impl Core {
    async fn check(&self) -> Serving {
        match self.ledger.check().await {
            Ok(()) => Serving::Yes,
            Err(error) => Serving::LedgerUnavailable(error.to_string()),
        }
    }
}
