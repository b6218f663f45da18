//! What calls come to while SurveyLab refuses every request.

use tokio::time::sleep;

use super::{
    world::{Plan, World, is_added, is_duplicate, ms, reason, scripted},
    *,
};

const REFUSED: surveylab::Answer = surveylab::Answer::Unauthorized;

/// Opens it, and returns when the first call is turned away.
async fn open(world: &World) {
    for n in 0..20 {
        assert_eq!(
            reason(world.add(&format!("refused {n}")).await),
            (Reason::SurveylabUnauthorized, Sent::Yes)
        );
    }
}

#[tokio::test(start_paused = true)]
async fn after_twenty_refusals_calls_fail_at_once_and_touch_nothing() {
    let world = scripted(vec![REFUSED; 20]);
    open(&world).await;
    let begin = Instant::now();
    let failure = world.add("k").await.unwrap_err();
    assert_eq!(begin.elapsed(), ms(0));
    assert_eq!(
        (failure.reason, failure.sent),
        (Reason::SurveylabUnauthorized, Sent::No)
    );
    assert_eq!(
        (failure.turned_away_after, failure.retry_after),
        (Some(20), Some(ms(5_000)))
    );
    assert_eq!((world.requests(), world.state("k").await), (20, None));
    assert!(world.dispatcher.core.breaker.standing().is_some());
    sleep(ms(5_000)).await;
    assert!(is_added(&world.add("k").await));
    assert_eq!(world.dispatcher.core.breaker.standing(), None);
    assert!(is_added(&world.add("others").await));
}

#[tokio::test(start_paused = true)]
async fn what_needs_no_request_is_answered_as_ever() {
    let script = [vec![added()], vec![doubtful()], vec![REFUSED; 20]].concat();
    let world = scripted(script);
    assert!(is_added(&world.add("added").await));
    assert_eq!(
        reason(world.add("doubt").await),
        (Reason::OutcomeInDoubt, Sent::Unknown)
    );
    open(&world).await;
    // Where keys were new lately, a claim would have looked it up.
    world.dispatcher.core.new_lately.store(true, Ordering::Relaxed);
    assert!(is_duplicate(&world.add("added").await));
    assert_eq!(
        reason(world.add("doubt").await),
        (Reason::OutcomeInDoubt, Sent::Unknown)
    );
    let other = world.call("added", "b@example.com");
    assert_eq!(
        reason(world.dispatcher.add(&other).await),
        (Reason::CrkReused, Sent::No)
    );
    let check = world.dispatcher.check(&world.call("new", "a@example.com")).await;
    assert!(matches!(check, Ok(Outcome::WouldAdd)), "{check:?}");
    assert_eq!(world.requests(), 22);
}

#[tokio::test(start_paused = true)]
async fn what_waits_when_it_opens_fails_at_its_turn_without_a_token_or_a_claim() {
    let world = Plan {
        script: vec![REFUSED; 20],
        rate: "1/s",
        burst: 1,
        ..Plan::default()
    }
    .start();
    let calls: Vec<_> = (0..50)
        .map(|n| world.spawn(world.call(&n.to_string(), "a@example.com")))
        .collect();
    let begin = Instant::now();
    let mut turned_away = 0;
    for call in calls {
        let failure = call.await.unwrap().unwrap_err();
        assert_eq!(failure.reason, Reason::SurveylabUnauthorized);
        turned_away += usize::from(failure.turned_away_after.is_some());
    }
    assert_eq!((turned_away, world.requests()), (30, 20));
    // 19 tokens for the requests, and one that was there for all others, as they left it.
    assert!(begin.elapsed() < ms(20_500), "{:?}", begin.elapsed());
    assert_eq!(world.state("49").await, None);
    let begin = Instant::now();
    sleep(ms(5_000)).await;
    assert!(is_added(&world.add("probe").await));
    assert!(begin.elapsed() < ms(5_200), "{:?}", begin.elapsed());
}

#[tokio::test(start_paused = true)]
async fn of_many_that_come_for_the_probe_one_goes_out() {
    let world = scripted(vec![REFUSED; 21]);
    open(&world).await;
    sleep(ms(5_000)).await;
    let calls: Vec<_> = (0..30)
        .map(|n| world.spawn(world.call(&n.to_string(), "a@example.com")))
        .collect();
    let mut sent = 0;
    for call in calls {
        let failure = call.await.unwrap().unwrap_err();
        sent += usize::from(failure.sent == Sent::Yes);
    }
    assert_eq!((sent, world.requests()), (1, 21));
}

#[tokio::test(start_paused = true)]
async fn a_probe_whose_caller_leaves_while_it_waits_blocks_nobody() {
    let world = Plan {
        script: vec![REFUSED; 20],
        max_in_flight: 1,
        ..Plan::default()
    }
    .start();
    open(&world).await;
    sleep(ms(5_000)).await;
    let held = world.limiter.try_acquire(Lane::Unary).unwrap();
    let leaves = world.spawn(world.call("leaves", "a@example.com"));
    sleep(ms(10)).await;
    leaves.abort();
    sleep(ms(10)).await;
    drop(held);
    assert!(is_added(&world.add("k").await));
    assert_eq!(world.state("leaves").await, None);
}

#[tokio::test(start_paused = true)]
async fn a_call_that_was_tried_before_is_told_of_its_own_try() {
    let busy = surveylab::Answer::Unavailable {
        retry_after: Some(ms(3_000)),
    };
    let world = scripted([vec![busy], vec![REFUSED; 20]].concat());
    let tried = world.spawn(world.call("tried", "a@example.com"));
    sleep(ms(150)).await;
    open(&world).await;
    let failure = tried.await.unwrap().unwrap_err();
    assert_eq!(
        (failure.reason, failure.sent),
        (Reason::SurveylabUnavailable, Sent::Yes)
    );
    assert!(failure.turned_away_after.is_none() && failure.retry_after.is_some());
    assert_eq!(
        (world.requests(), world.state("tried").await),
        (21, Some(State::Failed))
    );
}

fn added() -> surveylab::Answer {
    surveylab::Answer::Added {
        notification: "ok".into(),
    }
}
