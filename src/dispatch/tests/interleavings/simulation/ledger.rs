//! The ledger as one process sees it: slow, or failing, where the plan says so.

use std::future::pending;

use futures_util::future::{BoxFuture, FutureExt};
use tokio::sync::oneshot;

use super::{Line, number, pause};
use crate::{
    clock::Timestamp,
    dispatch::tests::interleavings::{history::Event, plan::Operation},
    invitation::Key,
    ledger::{Census, Claim, Claimed, Error, Ledger, Query, Record, Resolution, Resolved, Settlement},
};

impl Line {
    /// One step of the ledger. Done once more if it failed and turns out done.
    fn step<T: Send + 'static>(
        &self,
        operation: Operation,
        key: &Key,
        apply: impl Fn(&Self) -> T + Send + 'static,
    ) -> BoxFuture<'_, Result<T, Error>> {
        let (line, key) = (self.clone(), number(key));
        Box::pin(async move {
            let (answer, answered) = oneshot::channel();
            self.steps.spawn(async move {
                let (before, after) = line.world.faults.lock().unwrap().pace;
                line.world.hiccup().await;
                pause(before).await;
                if line.is_severed() {
                    return;
                }
                let result = line.attempt(operation, key, apply);
                pause(after).await;
                line.world.hiccup().await;
                if operation == Operation::LookUp && !line.is_severed() && !answer.is_closed() {
                    line.note(Event::LookedUp { key });
                }
                let _gone = answer.send(result);
            });
            match answered.await {
                Ok(result) if !self.is_severed() => result,
                _ => pending().await,
            }
        })
    }

    fn attempt<T: 'static>(
        &self,
        operation: Operation,
        key: u8,
        apply: impl Fn(&Self) -> T + Send + 'static,
    ) -> Result<T, Error> {
        let is_write = operation != Operation::LookUp;
        let Some(fault) = self.world.fails(operation) else {
            let applied = apply(self);
            if is_write {
                self.world.faults.lock().unwrap().lingering = None;
            }
            return Ok(applied);
        };
        self.note(Event::Failed(operation, key));
        if is_write && fault.lingers {
            let line = self.clone();
            let lingering = move || drop(apply(&line));
            self.world.faults.lock().unwrap().lingering = Some(Box::new(lingering));
        }
        Err(Error::Unavailable("as planned".into()))
    }
}

impl Ledger for Line {
    fn look_up(&self, key: &Key) -> BoxFuture<'_, Result<Option<Record>, Error>> {
        let asked = key.clone();
        self.step(Operation::LookUp, key, move |line| {
            line.world.memory.look_up(&asked).now_or_never().unwrap().unwrap()
        })
    }

    fn claim(&self, claim: Claim) -> BoxFuture<'_, Result<Claimed, Error>> {
        let key = claim.key.clone();
        if self.is_severed() {
            return Box::pin(pending());
        }
        let asked = self.note(Event::Claims {
            key: number(&key),
            data: self.world.data(&key, claim.fingerprint),
        });
        self.step(Operation::Claim, &key, move |line| {
            line.world.claim(line.process, claim.clone(), asked)
        })
    }

    fn settle(&self, key: &Key, settlement: Settlement, at: Timestamp) -> BoxFuture<'_, Result<(), Error>> {
        let asked = key.clone();
        self.step(Operation::Settle, key, move |line| {
            line.world.settle(line.process, &asked, settlement.clone(), at);
        })
    }

    fn release(&self, key: &Key) -> BoxFuture<'_, Result<(), Error>> {
        let asked = key.clone();
        self.step(Operation::Release, key, move |line| {
            line.world.release(line.process, &asked);
        })
    }

    fn resolve(&self, key: &Key, resolution: Resolution, at: Timestamp) -> BoxFuture<'_, Result<Resolved, Error>> {
        let asked = key.clone();
        self.step(Operation::Resolve, key, move |line| {
            line.world.resolve(line.process, &asked, resolution, at)
        })
    }

    fn list(&self, query: Query) -> BoxFuture<'_, Result<Vec<Record>, Error>> {
        self.world.memory.list(query)
    }

    fn check(&self) -> BoxFuture<'_, Result<(), Error>> {
        self.world.memory.check()
    }

    fn census(&self) -> Census {
        self.world.memory.census()
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        self.closed().boxed()
    }
}
