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

#[tokio::test(start_paused = true)]
async fn a_unary_follower_takes_another_callers_item_to_its_own_share() {
    let world = slow(Vec::new());
    let (batch, other) = callers();
    // In the batch's fast lane others go before it.
    let ahead: Vec<_> = (0..40)
        .map(|n| spawn(&world, &format!("{n}"), batch, Lane::Unary))
        .collect();
    sleep(ms(10)).await;
    let item = spawn(&world, "both", batch, Lane::Stream(StreamId(1)));
    sleep(ms(10)).await;
    let begin = Instant::now();
    let follower = spawn(&world, "both", other, Lane::Unary);
    follower.await.unwrap().unwrap();
    assert!(begin.elapsed() < ms(2_200), "{:?}", begin.elapsed());
    for call in ahead.into_iter().chain([item]) {
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
    let ahead: Vec<_> = (0..40)
        .map(|n| spawn(&world, &format!("{n}"), batch, Lane::Unary))
        .collect();
    assert!(is_added(&call.await.unwrap()));
    // After the failure one of the batch goes, and one more if it comes back after its turn.
    assert!(begin.elapsed() < ms(3_200), "{:?}", begin.elapsed());
    for call in ahead {
        call.abort();
    }
}
