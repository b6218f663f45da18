//! What people on call are told, above all when the ledger does not answer.

use super::*;

fn hung() -> World {
    let world = scripted([]);
    world.ledger.checks.forget_permits(1_000);
    world
}

fn silent(seconds: u64) -> Serving {
    Serving::LedgerUnavailable(format!("the ledger has not answered for {seconds} s"))
}

async fn serving(world: &World) -> Serving {
    world.dispatcher.standing().await.serving
}

#[tokio::test(start_paused = true)]
async fn the_ledger_is_asked_each_time_and_its_error_told() {
    let world = scripted([]);
    assert_eq!(serving(&world).await, Serving::Yes);
    world.ledger.failing_checks.store(1, Ordering::SeqCst);
    let why = "the ledger is unavailable: disk full";
    assert_eq!(serving(&world).await, Serving::LedgerUnavailable(why.into()));
    assert_eq!(serving(&world).await, Serving::Yes);
}

#[tokio::test(start_paused = true)]
async fn a_ledger_that_hangs_is_waited_for_once_and_asked_once() {
    let world = hung();
    let begin = Instant::now();
    assert_eq!(serving(&world).await, silent(1));
    assert_eq!(begin.elapsed(), ms(1_000));
    sleep(ms(41_000)).await;
    for _ in 0..3 {
        assert_eq!(serving(&world).await, silent(42));
    }
    assert_eq!(begin.elapsed(), ms(42_000), "known at once");
    assert_eq!(world.ledger.checked.load(Ordering::SeqCst), 1);

    // The late answer is an old one.
    world.ledger.checks.add_permits(1);
    sleep(ms(1)).await;
    world.ledger.failing_checks.store(1, Ordering::SeqCst);
    assert!(matches!(serving(&world).await, Serving::LedgerUnavailable(why) if why.contains("disk full")));
    assert_eq!(serving(&world).await, Serving::Yes);
}

#[tokio::test(start_paused = true)]
async fn who_leaves_takes_no_check_along() {
    let world = hung();
    let leaves = tokio::time::timeout(ms(10), serving(&world));
    leaves.await.unwrap_err();
    sleep(ms(490)).await;
    let begin = Instant::now();
    assert_eq!(serving(&world).await, silent(1));
    // What is left of the second.
    assert_eq!(begin.elapsed(), ms(500));
}

#[tokio::test(start_paused = true)]
async fn draining_is_told_and_held_up_by_no_check() {
    let world = hung();
    assert_eq!(serving(&world).await, silent(1));
    world.dispatcher.close();
    assert_eq!(serving(&world).await, Serving::Draining);
    let begin = Instant::now();
    world.dispatcher.drained().await;
    assert_eq!(begin.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn who_asks_while_it_begins_to_drain_is_told_so() {
    let world = hung();
    let asks = tokio::spawn({
        let dispatcher = world.dispatcher.clone();
        async move { dispatcher.standing().await.serving }
    });
    sleep(ms(10)).await;
    world.dispatcher.close();
    assert_eq!(asks.await.unwrap(), Serving::Draining);
}
