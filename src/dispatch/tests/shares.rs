//! Callers with shares of the rate: whose turn a request waits for.

use super::*;
use crate::limiter::Payer;

/// A batch with a tenth of the rate, and somebody without a share.
fn callers() -> (Payer, Payer) {
    (Payer::new(1, Some(0.1), 0.1), Payer::new(2, None, 0.1))
}

fn slow(script: Vec<surveylab::Answer>) -> World {
    Plan {
        rate: "1/s",
        burst: 1,
        script,
        ..Plan::default()
    }
    .start()
}

fn spawn(world: &World, crk: &str, payer: Payer, lane: Lane) -> tokio::task::JoinHandle<Answer> {
    let mut call = world.call(crk, "a@example.com");
    call.queue = Queue { payer, lane };
    world.spawn(call)
}

fn crowd(world: &World, payer: Payer) -> Vec<tokio::task::JoinHandle<Answer>> {
    (0..40)
        .map(|n| spawn(world, &format!("{n}"), payer, Lane::Unary))
        .collect()
}

/// One who joins another caller's flight gets no later an answer than alone, and so does the other.
async fn the_flight_takes_the_sooner_turn(crowded: Payer, first: (Payer, Lane), joins: (Payer, Lane)) {
    let world = slow(Vec::new());
    let crowd = crowd(&world, crowded);
    sleep(ms(10)).await;
    let first = spawn(&world, "both", first.0, first.1);
    sleep(ms(10)).await;
    let begin = Instant::now();
    let joins = spawn(&world, "both", joins.0, joins.1);
    assert!(first.await.unwrap().is_ok() && joins.await.unwrap().is_ok());
    assert!(begin.elapsed() < ms(2_200), "{:?}", begin.elapsed());
    let snapshot = world.limiter.snapshot();
    let waiting: usize = world.limiter.waiting_by_caller().iter().map(|(_, count)| count).sum();
    // The other turn is given up.
    assert_eq!((waiting, snapshot.waiting_streams), (snapshot.waiting_unary, 0));
    assert!(waiting < crowd.len());
    for call in crowd {
        call.abort();
    }
}

#[tokio::test(start_paused = true)]
async fn who_joins_takes_another_callers_flight_along_to_its_own_turn() {
    let (batch, other) = callers();
    for lane in [Lane::Stream(StreamId(1)), Lane::Unary] {
        the_flight_takes_the_sooner_turn(batch, (batch, lane), (other, Lane::Unary)).await;
        the_flight_takes_the_sooner_turn(other, (other, lane), (batch, Lane::Unary)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn who_joins_makes_nobody_wait_for_its_own_turn() {
    let (batch, other) = callers();
    for lane in [Lane::Stream(StreamId(1)), Lane::Unary] {
        the_flight_takes_the_sooner_turn(batch, (other, lane), (batch, Lane::Unary)).await;
        the_flight_takes_the_sooner_turn(other, (batch, lane), (other, Lane::Unary)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_flight_is_refused_only_where_both_turns_come_too_late() {
    let world = slow(Vec::new());
    let (batch, other) = callers();
    let crowd = crowd(&world, batch);
    sleep(ms(10)).await;
    let [first, joins] = [other, batch].map(|payer| {
        let mut call = world.call("both", "a@example.com");
        call.queue = Queue {
            payer,
            lane: Lane::Unary,
        };
        // In the batch's turn it would be refused at once.
        call.until = Some(Instant::now() + ms(5_000));
        world.spawn(call)
    });
    assert!(first.await.unwrap().is_ok() && joins.await.unwrap().is_ok());
    for call in crowd {
        call.abort();
    }
}

#[tokio::test(start_paused = true)]
async fn a_call_that_is_tried_again_waits_for_its_own_callers_turn() {
    let world = slow(vec![UNAVAILABLE]);
    let (batch, other) = callers();
    let begin = Instant::now();
    let call = spawn(&world, "again", other, Lane::Unary);
    sleep(ms(1)).await;
    let ahead = crowd(&world, batch);
    assert!(is_added(&call.await.unwrap()));
    // After the failure one of the batch goes, and one more if it comes back after its turn.
    assert!(begin.elapsed() < ms(3_200), "{:?}", begin.elapsed());
    for call in ahead {
        call.abort();
    }
}
