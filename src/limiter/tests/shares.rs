//! The rate is shared out: one caller's batch does not eat what others need, and nothing of the rate is lost by it.

use tokio::time::timeout;

use super::*;

/// A batch with a fifth of the rate, and somebody without a share.
fn callers() -> (Payer, Payer) {
    (Payer::new(1, Some(0.2), 0.2), Payer::new(2, None, 0.2))
}

fn item(payer: Payer) -> Queue {
    Queue {
        payer,
        lane: Lane::Stream(StreamId(1)),
    }
}

fn unary(payer: Payer) -> Queue {
    Queue {
        payer,
        lane: Lane::Unary,
    }
}

/// Lets so many requests of a batch wait. Tells when each got its token.
async fn batch(limiter: &Limiter, payer: Payer, lane: Lane, count: usize) -> mpsc::UnboundedReceiver<(usize, Instant)> {
    let (got, gets) = mpsc::unbounded_channel();
    for name in 0..count {
        wait(limiter, Queue { payer, lane }, name, &got);
    }
    settle().await;
    gets
}

/// When the tokens of a batch came until now.
fn came(gets: &mut mpsc::UnboundedReceiver<(usize, Instant)>) -> Vec<Instant> {
    std::iter::from_fn(|| gets.try_recv().ok()).map(|(_, at)| at).collect()
}

#[tokio::test(start_paused = true)]
async fn a_stream_of_ten_thousand_makes_nobody_elses_call_wait_for_more_than_its_turn() {
    nobody_waits_for_a_batch_of_ten_thousand(Lane::Stream(StreamId(1))).await;
}

#[tokio::test(start_paused = true)]
async fn ten_thousand_unary_calls_make_nobody_elses_call_wait_for_more_than_its_turn() {
    nobody_waits_for_a_batch_of_ten_thousand(Lane::Unary).await;
}

async fn nobody_waits_for_a_batch_of_ten_thousand(lane: Lane) {
    let limiter = start(settings("100/s", 1));
    let (payer, other) = callers();
    let mut gets = batch(&limiter, payer, lane, 10_000).await;
    sleep(ms(1_000)).await;
    for _ in 0..40 {
        let begin = Instant::now();
        drop(take(&limiter, unary(other)).await);
        // One permit of the batch at most goes first, and there is the token of the moment to wait for.
        assert!(begin.elapsed() <= ms(21), "{:?}", begin.elapsed());
        sleep(ms(73)).await;
    }
    // What the other did not use, the batch did.
    let tokens = came(&mut gets);
    let took = (tokens[tokens.len() - 1] - tokens[0]).as_secs_f64();
    let used = (tokens.len() + 40) as f64 / (took * 100.0);
    assert!(used > 0.995 && used < 1.005, "{used}");
}

#[tokio::test(start_paused = true)]
async fn a_flood_leaves_everybody_else_their_part_of_the_queue() {
    let limiter = start(Settings {
        max_queue: 10,
        ..settings("1/s", 1)
    });
    drop(take(&limiter, Lane::Unary).await);
    let [flood, team, other] =
        [(1, Some(0.1)), (2, Some(0.25)), (3, None)].map(|(id, share)| Payer::new(id, share, 0.35));
    // A flood takes all that nobody else wants, and then no more.
    for (payer, part) in [(flood, 10), (team, 3), (other, 7)] {
        let _gets = batch(&limiter, payer, Lane::Unary, part).await;
        let refused = timeout(ms(1), limiter.acquire(item(payer), None)).await;
        assert!(matches!(refused, Ok(Err(Refused::QueueFull { .. }))), "{payer:?}");
    }
    assert_eq!(limiter.snapshot().waiting_unary, 20);
}

#[tokio::test(start_paused = true)]
async fn while_both_have_work_each_gets_its_share_and_the_rate_is_used_up() {
    let limiter = start(settings("100/s", 5));
    let (payer, other) = callers();
    let begin = Instant::now();
    let mut batch_gets = batch(&limiter, payer, Lane::Unary, 3_000).await;
    let mut other_gets = batch(&limiter, other, Lane::Stream(StreamId(2)), 3_000).await;
    sleep(ms(20_000)).await;
    let (batch, other) = (came(&mut batch_gets).len(), came(&mut other_gets).len());
    let allowed = begin.elapsed().as_secs_f64() * 100.0 + 5.0;
    let used = (batch + other) as f64 / allowed;
    assert!(used > 0.995 && used <= 1.0, "{used}");
    // The burst went to whoever came first.
    assert!((batch as f64 / other as f64 - 0.25).abs() < 0.01, "{batch} and {other}");
}

#[tokio::test(start_paused = true)]
async fn nobody_is_refused_for_what_another_callers_batch_is_to_wait_for() {
    let limiter = start(settings("10/s", 1));
    let (payer, other) = callers();
    let _gets = batch(&limiter, payer, Lane::Unary, 1_000).await;
    let begin = Instant::now();
    // A hundred seconds of work wait, and of the batch's own they are ahead.
    let refused = limiter.acquire(unary(payer), Some(begin + ms(5_000))).await.err();
    assert_eq!(Instant::now(), begin);
    let Some(Refused::WaitTooLong { after }) = refused else {
        panic!("{refused:?}");
    };
    assert!(after.abs_diff(ms(100_000)) <= ms(200), "{after:?}");
    let permit = timeout(ms(210), limiter.acquire(unary(other), Some(begin + ms(5_000)))).await;
    assert!(permit.expect("in its turn").is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_refusal_counts_what_the_shares_of_others_let_go_first() {
    let limiter = start(settings("10/s", 1));
    let (payer, other) = callers();
    let _first = take(&limiter, unary(other)).await;
    let _batch = batch(&limiter, payer, Lane::Unary, 9).await;
    let _others = batch(&limiter, other, Lane::Unary, 1_000).await;
    let begin = Instant::now();
    // Its own nine, and of the others' four with each of them.
    let least = ms(100 * 9 * 5);
    let refused = limiter.acquire(unary(payer), Some(begin + least - ms(200))).await.err();
    let Some(Refused::WaitTooLong { after }) = refused else {
        panic!("{refused:?}");
    };
    assert_eq!(Instant::now(), begin);
    assert!(after.abs_diff(least) <= ms(200), "{after:?}");
    // And it is true: with so much time it gets its permit.
    let given = limiter.acquire(unary(payer), Some(begin + after + ms(20))).await;
    assert!(given.is_ok());
    assert!(begin.elapsed().abs_diff(after) <= ms(20), "{:?}", begin.elapsed());
}

#[tokio::test(start_paused = true)]
async fn the_waiting_are_counted_by_caller() {
    let limiter = start(settings("1/h", 1));
    drop(take(&limiter, Lane::Unary).await);
    assert_eq!(limiter.waiting_by_caller(), []);
    let (payer, other) = callers();
    let _batch = batch(&limiter, payer, Lane::Unary, 3).await;
    let (got, _gets) = mpsc::unbounded_channel();
    let leaves = wait(&limiter, item(other), 0, &got);
    wait(&limiter, unary(other), 0, &got);
    settle().await;
    leaves.abort();
    settle().await;
    let mut waiting = limiter.waiting_by_caller();
    waiting.sort_unstable();
    assert_eq!(waiting, [(Some(1), 3), (Some(2), 1)]);
    let snapshot = limiter.snapshot();
    assert_eq!((snapshot.waiting_unary, snapshot.waiting_streams), (4, 0));
}
