use std::sync::atomic::{AtomicUsize, Ordering};

use futures_util::future::BoxFuture;
use tokio::{spawn, sync::Semaphore, time::sleep};

use super::*;
use crate::{
    clock::Timestamp,
    invitation::{Fingerprint, Key},
    ledger::{Census, Claim, Claimed, Error, Resolution, Resolved, Settlement, memory::Memory},
};

/// A ledger whose listings wait for permits, and are counted.
struct Slow {
    memory: Memory,
    listings: AtomicUsize,
    may_list: Semaphore,
}

impl Slow {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            memory: Memory::new(),
            listings: AtomicUsize::new(0),
            may_list: Semaphore::new(0),
        })
    }

    fn listings(&self) -> usize {
        self.listings.load(Ordering::Relaxed)
    }
}

impl Ledger for Slow {
    fn list(&self, query: Query) -> BoxFuture<'_, Result<Vec<Record>, Error>> {
        Box::pin(async {
            self.listings.fetch_add(1, Ordering::Relaxed);
            let Ok(permit) = self.may_list.acquire().await else {
                return Err(Error::Unavailable("the disk is full".into()));
            };
            permit.forget();
            self.memory.list(query).await
        })
    }

    fn look_up(&self, key: &Key) -> BoxFuture<'_, Result<Option<Record>, Error>> {
        self.memory.look_up(key)
    }

    fn claim(&self, claim: Claim) -> BoxFuture<'_, Result<Claimed, Error>> {
        self.memory.claim(claim)
    }

    fn settle(&self, key: &Key, settlement: Settlement, at: Timestamp) -> BoxFuture<'_, Result<(), Error>> {
        self.memory.settle(key, settlement, at)
    }

    fn release(&self, key: &Key) -> BoxFuture<'_, Result<(), Error>> {
        self.memory.release(key)
    }

    fn resolve(&self, key: &Key, resolution: Resolution, at: Timestamp) -> BoxFuture<'_, Result<Resolved, Error>> {
        self.memory.resolve(key, resolution, at)
    }

    fn census(&self) -> Census {
        self.memory.census()
    }

    fn check(&self) -> BoxFuture<'_, Result<(), Error>> {
        self.memory.check()
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        self.memory.close()
    }
}

fn reading(ledger: &Arc<Slow>) -> Reading {
    let reading = Reading::new(ledger.clone());
    spawn(reading.clone().run(CancellationToken::new()));
    reading
}

fn doubt(number: usize, updated_at: i64) -> Record {
    Record {
        key: Key::new("c", format!("{number:05}")),
        fingerprint: Fingerprint([0; 32]),
        state: State::InDoubt,
        attempts: 1,
        created_at: Timestamp(0),
        updated_at: Timestamp(updated_at),
        added_at: None,
        last_error: None,
        notification: None,
    }
}

#[tokio::test(start_paused = true)]
async fn many_pages_share_one_read_for_as_long_as_it_is_fresh() {
    let ledger = Slow::new();
    ledger.may_list.add_permits(10);
    let reading = reading(&ledger);
    for _ in 0..5 {
        let holdings = tokio::join!(reading.now(), reading.now(), reading.now()).2;
        assert!(holdings.found.is_some() && holdings.problem.is_none(), "{holdings:?}");
    }
    assert_eq!(ledger.listings(), 1);
    sleep(FRESH).await;
    reading.now().await;
    assert_eq!(ledger.listings(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_ledger_that_hangs_is_asked_once_and_the_page_told() {
    let ledger = Slow::new();
    let reading = reading(&ledger);
    let begun = Instant::now();
    let first = reading.now().await;
    assert_eq!(begun.elapsed(), PATIENCE);
    assert!(first.found.is_none());
    assert_eq!(first.problem.as_deref(), Some("the ledger has not answered for 1 s"));
    sleep(Duration::from_secs(60)).await;
    let begun = Instant::now();
    let later = reading.now().await;
    assert_eq!(begun.elapsed(), Duration::ZERO, "nobody waits for it again");
    assert_eq!(later.problem.as_deref(), Some("the ledger has not answered for 61 s"));
    assert_eq!(ledger.listings(), 1);

    // It answers after all, and later hangs again: what was read stays on show.
    ledger.may_list.add_permits(1);
    sleep(Duration::from_millis(1)).await;
    let now = reading.now().await;
    assert!(now.found.is_some() && now.problem.is_none(), "{now:?}");
    sleep(FRESH).await;
    let stale = reading.now().await;
    assert!(stale.found.is_some() && stale.problem.is_some(), "{stale:?}");
}

#[tokio::test(start_paused = true)]
async fn a_ledger_that_fails_is_told_in_its_own_words() {
    let ledger = Slow::new();
    ledger.may_list.close();
    let holdings = reading(&ledger).now().await;
    assert!(holdings.found.is_none());
    assert_eq!(
        holdings.problem.as_deref(),
        Some("the ledger is unavailable: the disk is full")
    );
}

#[test]
fn of_many_doubts_the_oldest_are_shown_first() {
    let records = (0..30).map(|number| doubt(number, 100 - number as i64)).collect();
    let found = Found::of(records, Vec::new());
    let crks: Vec<&str> = found.doubts.iter().map(|record| record.key.crk()).collect();
    assert_eq!(crks.len(), SHOWN);
    assert_eq!(crks[..2], ["00029", "00028"]);
    assert_eq!((found.doubts_read, found.more_doubts), (30, false));
    let found = Found::of((0..=READ).map(|number| doubt(number, 0)).collect(), Vec::new());
    assert_eq!((found.doubts_read, found.more_doubts), (READ, true));
}
