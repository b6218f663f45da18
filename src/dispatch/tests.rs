//! The way of a request on paused time.

use std::sync::atomic::Ordering;

use tokio::{sync::Semaphore, time::sleep};

use super::*;
use crate::{
    clock::Timestamp,
    ledger::{Claim, Settlement},
    limiter::StreamId,
    surveylab,
};
use world::{Plan, UNAVAILABLE, World, doubtful, is_added, is_duplicate, ms, reason, scripted};

mod breaker;
mod interleavings;
mod panics;
mod shares;
mod standing;
mod world;

#[tokio::test(start_paused = true)]
async fn one_of_many_calls_adds_and_the_others_are_duplicates() {
    let world = scripted([]);
    let calls: Vec<_> = (0..50).map(|_| world.spawn(world.call("k", "a@example.com"))).collect();
    let mut added = 0;
    for call in calls {
        let answer = call.await.unwrap();
        assert!(is_added(&answer) || is_duplicate(&answer), "{answer:?}");
        added += usize::from(is_added(&answer));
    }
    assert_eq!((added, world.requests()), (1, 1));
    assert!(is_duplicate(&world.add("k").await));
    assert_eq!(world.requests(), 1);
}

#[tokio::test(start_paused = true)]
async fn other_data_is_refused_under_way_and_afterwards_but_not_after_a_failure() {
    let world = scripted([surveylab::Answer::BadRequest]);
    let first = world.spawn(world.call("k", "a@example.com"));
    sleep(ms(50)).await;
    let other = world.call("k", "b@example.com");
    assert_eq!(
        reason(world.dispatcher.add(&other).await),
        (Reason::CrkReused, Sent::No)
    );
    assert_eq!(reason(first.await.unwrap()), (Reason::SurveylabBadRequest, Sent::Yes));
    assert!(is_added(&world.dispatcher.add(&other).await));
    assert_eq!(reason(world.add("k").await), (Reason::CrkReused, Sent::No));
    assert_eq!(world.requests(), 2);
}

#[tokio::test(start_paused = true)]
async fn what_was_not_processed_is_tried_again_until_the_attempts_are_used_up() {
    let world = scripted(vec![UNAVAILABLE; 4]);
    let answer = world.add("k").await.unwrap();
    assert!(matches!(answer, Outcome::Added(Added { attempts: 5, .. })));

    let world = scripted(vec![UNAVAILABLE; 9]);
    assert_eq!(reason(world.add("k").await), (Reason::SurveylabUnavailable, Sent::Yes));
    assert_eq!((world.requests(), world.state("k").await), (5, Some(State::Failed)));
}

#[tokio::test(start_paused = true)]
async fn retry_after_of_a_503_is_waited_for_unless_it_outlasts_the_deadline() {
    let asks = surveylab::Answer::Unavailable {
        retry_after: Some(ms(7_000)),
    };
    let world = scripted([asks.clone()]);
    let begin = Instant::now();
    assert!(is_added(&world.add("k").await));
    assert!(
        begin.elapsed() >= ms(7_200) && begin.elapsed() < ms(7_300),
        "{:?}",
        begin.elapsed()
    );

    let world = scripted([asks]);
    let begin = Instant::now();
    let failure = world.add_within("k", ms(5_000)).await.unwrap_err();
    assert_eq!(failure.reason, Reason::SurveylabUnavailable);
    assert_eq!(failure.retry_after, Some(ms(7_000)));
    assert!(begin.elapsed() < ms(200), "known at once: {:?}", begin.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_429_pauses_everyone_and_is_tried_again() {
    let limited = surveylab::Answer::RateLimited {
        retry_after: Some(ms(30_000)),
    };
    let world = scripted([limited]);
    let begin = Instant::now();
    let first = world.spawn(world.call("k", "a@example.com"));
    sleep(ms(150)).await;
    // One that can't wait is told so at once; one that can goes after the pause.
    let failure = world.add_within("hasty", ms(5_000)).await.unwrap_err();
    assert_eq!(begin.elapsed(), ms(150));
    assert_eq!((failure.reason, failure.sent), (Reason::WaitTooLong, Sent::No));
    assert!(failure.retry_after.unwrap() > ms(29_000));
    let second = world.spawn(world.call("patient", "a@example.com"));
    assert!(is_added(&first.await.unwrap()));
    assert!(is_added(&second.await.unwrap()));
    let times: Vec<_> = world
        .surveylab
        .requests
        .lock()
        .unwrap()
        .iter()
        .map(|r| r.1 - begin)
        .collect();
    assert_eq!(times.len(), 3);
    assert!(times[1] >= ms(30_000) && times[2] >= ms(30_000), "{times:?}");
    assert_eq!(world.state("hasty").await, None);
}

#[tokio::test(start_paused = true)]
async fn a_permit_from_before_a_pause_is_not_used_within_it() {
    let world = Plan {
        script: vec![surveylab::Answer::RateLimited {
            retry_after: Some(ms(20_000)),
        }],
        latency: ms(10),
        ..Plan::default()
    }
    .start();
    let begin = Instant::now();
    let calls: Vec<_> = (0..40)
        .map(|n| world.spawn(world.call(&n.to_string(), "a@example.com")))
        .collect();
    for call in calls {
        assert!(is_added(&call.await.unwrap()));
    }
    let requests = world.surveylab.requests.lock().unwrap();
    let within = requests
        .iter()
        .filter(|(_, at)| (ms(11)..ms(20_000)).contains(&(*at - begin)));
    assert_eq!(within.count(), 0);
    assert_eq!(requests.len(), 41);
}

#[tokio::test(start_paused = true)]
async fn doubt_is_held_until_a_caller_resends() {
    let world = scripted([doubtful()]);
    assert_eq!(reason(world.add("k").await), (Reason::OutcomeInDoubt, Sent::Unknown));
    assert_eq!(reason(world.add("k").await), (Reason::OutcomeInDoubt, Sent::Unknown));
    assert_eq!(world.requests(), 1);
    let mut call = world.call("k", "a@example.com");
    call.doubt = Doubt::Resend;
    assert!(matches!(world.dispatcher.check(&call).await, Ok(Outcome::WouldAdd)));
    let answer = world.dispatcher.add(&call).await;
    assert!(
        matches!(answer, Ok(Outcome::Added(Added { attempts: 2, .. }))),
        "{answer:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_refused_resend_leaves_the_doubt_of_the_first_request() {
    let refused = surveylab::Answer::ActionFailed {
        http_status: 200,
        notification: "Action failed".into(),
    };
    let world = scripted([doubtful(), refused]);
    assert_eq!(reason(world.add("k").await).0, Reason::OutcomeInDoubt);
    let mut call = world.call("k", "a@example.com");
    call.doubt = Doubt::Resend;
    assert_eq!(
        reason(world.dispatcher.add(&call).await).0,
        Reason::SurveylabActionFailed
    );
    assert_eq!(world.state("k").await, Some(State::InDoubt));
    assert_eq!(reason(world.add("k").await).0, Reason::OutcomeInDoubt);
}

#[tokio::test(start_paused = true)]
async fn a_500_can_be_held() {
    let world = Plan {
        script: vec![surveylab::Answer::InternalError],
        on_server_error: OnServerError::Hold,
        ..Plan::default()
    }
    .start();
    let failure = world.add("k").await.unwrap_err();
    assert_eq!(
        (failure.reason, failure.http_status),
        (Reason::OutcomeInDoubt, Some(500))
    );
    assert_eq!((world.requests(), world.state("k").await), (1, Some(State::InDoubt)));
}

#[tokio::test(start_paused = true)]
async fn a_deadline_that_passes_on_the_wire_is_told_and_the_outcome_recorded() {
    let world = scripted([]);
    let failure = world.add_within("k", ms(50)).await.unwrap_err();
    assert_eq!(
        (failure.reason, failure.sent),
        (Reason::DeadlineAfterSend, Sent::Unknown)
    );
    sleep(ms(100)).await;
    assert!(is_duplicate(&world.add("k").await));
    assert_eq!(world.requests(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_leaves_on_the_wire_does_not_cut_the_request() {
    let world = scripted([UNAVAILABLE]);
    let call = world.spawn(world.call("k", "a@example.com"));
    sleep(ms(50)).await;
    call.abort();
    sleep(ms(60_000)).await;
    // Its outcome is recorded; nobody wants another attempt.
    assert_eq!((world.requests(), world.state("k").await), (1, Some(State::Failed)));
    assert!(is_added(&world.add("k").await));
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_leaves_while_waiting_withdraws_unless_another_has_joined() {
    let slow = || Plan {
        rate: "1/s",
        burst: 1,
        ..Plan::default()
    };
    for joined in [false, true] {
        let world = slow().start();
        assert!(is_added(&world.add("first").await));
        let leader = world.spawn(world.call("k", "a@example.com"));
        sleep(ms(10)).await;
        let follower = joined.then(|| world.spawn(world.call("k", "a@example.com")));
        sleep(ms(10)).await;
        leader.abort();
        sleep(ms(5_000)).await;
        assert_eq!(world.requests(), 1 + usize::from(joined));
        if let Some(follower) = follower {
            assert!(is_added(&follower.await.unwrap()));
        }
        assert_eq!(world.limiter.snapshot().waiting_unary, 0);
        assert!(world.dispatcher.core.trips.is_empty());
    }
}

#[tokio::test(start_paused = true)]
async fn a_leader_that_leaves_during_the_look_up_hands_over() {
    let world = scripted([]);
    let held = world.ledger.look_ups.acquire_many(1_000).await.unwrap();
    let leader = world.spawn(world.call("k", "a@example.com"));
    sleep(ms(10)).await;
    let follower = world.spawn(world.call("k", "a@example.com"));
    sleep(ms(10)).await;
    leader.abort();
    drop(held);
    assert!(is_added(&follower.await.unwrap()));
    assert_eq!(world.requests(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_patient_follower_outlives_its_leader_s_deadline() {
    let world = Plan {
        rate: "1/s",
        burst: 1,
        script: vec![surveylab::Answer::RateLimited {
            retry_after: Some(ms(10_000)),
        }],
        ..Plan::default()
    }
    .start();
    let busy = world.spawn(world.call("busy", "a@example.com"));
    sleep(ms(10)).await;
    let dispatcher = world.dispatcher.clone();
    let mut call = world.call("k", "a@example.com");
    call.deadline = Some(Instant::now() + ms(2_000));
    call.until = call.deadline;
    let leader = tokio::spawn(async move { dispatcher.add(&call).await });
    sleep(ms(10)).await;
    let follower = world.spawn(world.call("k", "a@example.com"));
    // The pause makes the leader's deadline hopeless, the follower's terms are better.
    let failure = leader.await.unwrap().unwrap_err();
    assert_eq!(failure.reason, Reason::WaitTooLong);
    assert!(is_added(&follower.await.unwrap()));
    assert!(is_added(&busy.await.unwrap()));
}

#[tokio::test(start_paused = true)]
async fn a_patient_follower_keeps_the_place_of_a_leader_without_time() {
    let world = Plan {
        rate: "1/s",
        burst: 1,
        script: vec![surveylab::Answer::RateLimited {
            retry_after: Some(ms(10_000)),
        }],
        ..Plan::default()
    }
    .start();
    let busy = world.spawn(world.call("busy", "a@example.com"));
    sleep(ms(10)).await;
    let mut hasty = world.call("k", "a@example.com");
    hasty.until = Some(Instant::now() + ms(2_000));
    let hasty = world.spawn(hasty);
    sleep(ms(10)).await;
    let patient = world.spawn(world.call("k", "a@example.com"));
    let later = world.spawn(world.call("later", "a@example.com"));
    for call in [busy, patient, later] {
        assert!(is_added(&call.await.unwrap()));
    }
    assert_eq!(reason(hasty.await.unwrap()).0, Reason::WaitTooLong);
    let requests = world.surveylab.requests.lock().unwrap();
    let order: Vec<_> = requests.iter().map(|(key, _)| key.crk()).collect();
    assert_eq!(order[..3], ["busy", "k", "later"]);
}

#[tokio::test(start_paused = true)]
async fn who_joins_without_time_for_its_turn_is_told_so_at_once() {
    let world = Plan {
        rate: "1/s",
        burst: 1,
        ..Plan::default()
    }
    .start();
    let _before: Vec<_> = (0..6)
        .map(|n| world.spawn(world.call(&n.to_string(), "a@example.com")))
        .collect();
    sleep(ms(10)).await;
    let patient = world.spawn(world.call("k", "a@example.com"));
    sleep(ms(10)).await;
    let _after = world.spawn(world.call("after", "a@example.com"));
    sleep(ms(10)).await;
    let begin = Instant::now();
    let refused = world.add_within("k", ms(5_900)).await.unwrap_err();
    assert_eq!((refused.reason, refused.sent), (Reason::WaitTooLong, Sent::No));
    assert_eq!(begin.elapsed(), ms(0));
    let retry = refused.retry_after.unwrap();
    assert!(retry > ms(5_900) && retry < ms(6_000), "{retry:?}");
    // Its own place would not be in time, but the one that it shares is.
    let joins = world.add_within("k", ms(6_200)).await;
    assert!(patient.await.unwrap().is_ok() && joins.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_unary_follower_takes_a_stream_item_to_the_fast_lane() {
    let world = Plan {
        rate: "1/s",
        burst: 1,
        ..Plan::default()
    }
    .start();
    let stream = Lane::Stream(StreamId(1));
    let items: Vec<_> = (0..100)
        .map(|n| {
            let mut call = world.call(&format!("{n}"), "a@example.com");
            call.queue = stream.into();
            call.until = None;
            world.spawn(call)
        })
        .collect();
    sleep(ms(10)).await;
    let begin = Instant::now();
    world.add("99").await.unwrap();
    assert!(begin.elapsed() < ms(2_200), "{:?}", begin.elapsed());
    for item in items {
        item.abort();
    }
}

#[tokio::test(start_paused = true)]
async fn without_a_durable_claim_nothing_is_sent() {
    let world = scripted([]);
    world.ledger.failing_claims.store(1, Ordering::SeqCst);
    assert_eq!(reason(world.add("k").await), (Reason::LedgerUnavailable, Sent::No));
    assert_eq!(world.requests(), 0);
    assert!(is_added(&world.add("k").await));
}

#[tokio::test(start_paused = true)]
async fn an_outcome_that_can_t_be_recorded_is_kept_until_it_can() {
    let world = scripted([]);
    world.ledger.failing_settles.store(6, Ordering::SeqCst);
    assert_eq!(reason(world.add("k").await), (Reason::LedgerUnavailable, Sent::Yes));
    // Nobody sends again meanwhile, and nobody waits for ever.
    assert_eq!(reason(world.add("k").await), (Reason::LedgerUnavailable, Sent::Yes));
    let check = world.dispatcher.check(&world.call("k", "a@example.com")).await;
    assert_eq!(reason(check), (Reason::LedgerUnavailable, Sent::Yes));
    sleep(ms(10_000)).await;
    assert!(is_duplicate(&world.add("k").await));
    assert_eq!(world.requests(), 1);
}

#[tokio::test(start_paused = true)]
async fn closing_refuses_what_waits_and_finishes_what_is_on_the_wire() {
    let world = Plan {
        rate: "1/h",
        burst: 1,
        ..Plan::default()
    }
    .start();
    let on_the_wire = world.spawn(world.call("sent", "a@example.com"));
    sleep(ms(50)).await;
    let mut patient = world.call("waits", "a@example.com");
    patient.until = None;
    let waits = world.spawn(patient);
    sleep(ms(10)).await;
    world.dispatcher.close();
    world.dispatcher.drained().await;
    assert!(is_added(&on_the_wire.await.unwrap()));
    assert_eq!(reason(waits.await.unwrap()), (Reason::ShuttingDown, Sent::No));
    assert_eq!(reason(world.add("late").await), (Reason::ShuttingDown, Sent::No));
    assert!(is_duplicate(&world.add("sent").await));
}

#[tokio::test(start_paused = true)]
async fn closing_ends_a_backoff() {
    let world = scripted([surveylab::Answer::Unavailable {
        retry_after: Some(ms(50_000)),
    }]);
    let call = world.spawn(world.call("k", "a@example.com"));
    sleep(ms(200)).await;
    world.dispatcher.close();
    assert_eq!(reason(call.await.unwrap()), (Reason::ShuttingDown, Sent::Yes));
    assert_eq!(world.state("k").await, Some(State::Failed));
}

#[tokio::test(start_paused = true)]
async fn cutting_off_leaves_the_claim() {
    let world = Plan {
        latency: ms(1_000_000),
        ..Plan::default()
    }
    .start();
    let call = world.spawn(world.call("k", "a@example.com"));
    sleep(ms(50)).await;
    world.dispatcher.close();
    world.dispatcher.cut_off().await;
    assert_eq!(world.state("k").await, Some(State::Pending));
    // Its caller begins again, and finds the doubt.
    assert_eq!(reason(call.await.unwrap()), (Reason::OutcomeInDoubt, Sent::Unknown));
}

#[tokio::test(start_paused = true)]
async fn validate_only_waits_for_what_is_under_way_and_sends_nothing() {
    let world = scripted([]);
    let call = world.call("k", "a@example.com");
    assert!(matches!(world.dispatcher.check(&call).await, Ok(Outcome::WouldAdd)));
    assert_eq!(world.requests(), 0);
    let under_way = world.spawn(call.clone());
    sleep(ms(10)).await;
    assert!(is_duplicate(&world.dispatcher.check(&call).await));
    assert!(is_added(&under_way.await.unwrap()));
    let other = world.call("k", "b@example.com");
    assert_eq!(
        reason(world.dispatcher.check(&other).await),
        (Reason::CrkReused, Sent::No)
    );
}

/// A key in doubt, and a bucket that is empty for a while.
async fn doubtful_and_slow() -> World {
    let world = Plan {
        script: vec![doubtful()],
        rate: "12/m",
        burst: 1,
        ..Plan::default()
    }
    .start();
    assert_eq!(reason(world.add("k").await).0, Reason::OutcomeInDoubt);
    world
}

#[tokio::test(start_paused = true)]
async fn a_resend_is_withdrawn_with_the_caller_who_wanted_it() {
    let world = doubtful_and_slow().await;
    let mut resend = world.call("k", "a@example.com");
    resend.doubt = Doubt::Resend;
    let resender = world.spawn(resend);
    sleep(ms(100)).await;
    let other = world.spawn(world.call("k", "a@example.com"));
    sleep(ms(100)).await;
    resender.abort();
    // Who stays has not allowed a second e-mail.
    assert_eq!(reason(other.await.unwrap()), (Reason::OutcomeInDoubt, Sent::Unknown));
    assert_eq!(world.requests(), 1);
    assert_eq!(world.state("k").await, Some(State::InDoubt));
}

#[tokio::test(start_paused = true)]
async fn a_resend_that_was_not_processed_says_that_the_key_is_in_doubt() {
    let world = scripted([
        doubtful(),
        UNAVAILABLE,
        UNAVAILABLE,
        UNAVAILABLE,
        UNAVAILABLE,
        UNAVAILABLE,
    ]);
    assert_eq!(reason(world.add("k").await).0, Reason::OutcomeInDoubt);
    let mut resend = world.call("k", "a@example.com");
    resend.doubt = Doubt::Resend;
    let failure = world.dispatcher.add(&resend).await.unwrap_err();
    assert_eq!(
        (failure.reason, failure.http_status),
        (Reason::OutcomeInDoubt, Some(503))
    );
    assert_eq!((failure.sent, failure.still_in_doubt), (Sent::Unknown, true));
    assert_eq!((world.requests(), world.state("k").await), (6, Some(State::InDoubt)));
}

#[tokio::test(start_paused = true)]
async fn a_resend_that_the_shutdown_ends_says_that_the_key_is_in_doubt() {
    let world = scripted([doubtful(), UNAVAILABLE]);
    assert_eq!(reason(world.add("k").await).0, Reason::OutcomeInDoubt);
    let mut resend = world.call("k", "a@example.com");
    resend.doubt = Doubt::Resend;
    let resend = world.spawn(resend);
    while world.requests() < 2 || world.dispatcher.on_the_wire() > 0 {
        sleep(ms(1)).await;
    }
    world.dispatcher.close();
    let failure = resend.await.unwrap().unwrap_err();
    assert_eq!(
        (failure.reason, failure.sent, failure.still_in_doubt),
        (Reason::OutcomeInDoubt, Sent::Unknown, true)
    );
}

/// Claims the key of a call as another replica does, while a call of this one is between two attempts.
async fn taken_between_two_attempts(world: &World, other: &Call) {
    while world.requests() < 1 || world.dispatcher.on_the_wire() > 0 {
        sleep(ms(1)).await;
    }
    let Invitation { key, fingerprint, .. } = &other.request.invitation;
    let claim = Claim {
        key: key.clone(),
        fingerprint: *fingerprint,
        doubt: Doubt::Hold,
        at: Timestamp(1),
    };
    world.ledger.ledger.claim(claim).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_key_that_is_taken_between_two_attempts_says_that_one_was_sent() {
    let world = scripted([UNAVAILABLE]);
    let call = world.spawn(world.call("k", "a@example.com"));
    taken_between_two_attempts(&world, &world.call("k", "b@example.com")).await;
    assert_eq!(reason(call.await.unwrap()), (Reason::CrkReused, Sent::Yes));
    assert_eq!(world.requests(), 1);
}

#[tokio::test(start_paused = true)]
async fn who_gets_no_further_attempt_is_told_what_the_key_has_come_to_elsewhere() {
    let world = scripted([UNAVAILABLE]);
    let twin = world.call("k", "a@example.com");
    let call = world.spawn(twin.clone());
    taken_between_two_attempts(&world, &twin).await;
    let added = Settlement::Added {
        notification: "ok".into(),
    };
    let key = &twin.request.invitation.key;
    world.ledger.ledger.settle(key, added, Timestamp(2)).await.unwrap();
    world.ledger.failing_claims.store(1, Ordering::SeqCst);
    assert!(is_duplicate(&call.await.unwrap()));
    assert_eq!(world.requests(), 1);
}

#[tokio::test(start_paused = true)]
async fn who_has_no_deadline_waits_no_longer_than_the_longest_wait_whomever_it_joins() {
    let world = Plan {
        rate: "1/h",
        burst: 1,
        ..Plan::default()
    }
    .start();
    assert!(is_added(&world.add("first").await));
    let mut item = world.call("k", "a@example.com");
    (item.queue, item.until) = (Lane::Stream(StreamId(1)).into(), None);
    let item = world.spawn(item);
    sleep(ms(10)).await;
    let begin = Instant::now();
    let failure = world.add("k").await.unwrap_err();
    assert_eq!((failure.reason, failure.sent), (Reason::WaitTooLong, Sent::No));
    assert!(!failure.deadline_passed);
    assert!(begin.elapsed() <= ms(60_001), "{:?}", begin.elapsed());
    // A question about it does not wait at all.
    let begin = Instant::now();
    let check = world.dispatcher.check(&world.call("k", "a@example.com")).await;
    assert!(matches!(check, Ok(Outcome::WouldAdd)), "{check:?}");
    assert_eq!(begin.elapsed(), ms(0));
    item.abort();
}

#[tokio::test(start_paused = true)]
async fn what_is_cut_off_is_told_in_doubt_and_what_waits_that_it_was_not_sent() {
    let world = Plan {
        latency: ms(1_000_000),
        rate: "1/h",
        burst: 1,
        ..Plan::default()
    }
    .start();
    let on_the_wire = world.spawn(world.call("sent", "a@example.com"));
    sleep(ms(50)).await;
    assert_eq!(world.dispatcher.on_the_wire(), 1);
    world.dispatcher.close();
    world.dispatcher.cut_off().await;
    assert_eq!(
        reason(on_the_wire.await.unwrap()),
        (Reason::OutcomeInDoubt, Sent::Unknown)
    );
    // New calls end, too.
    assert_eq!(reason(world.add("late").await), (Reason::ShuttingDown, Sent::No));
}

#[tokio::test(start_paused = true)]
async fn what_was_announced_stays_so_when_it_is_cut_off() {
    let world = scripted([]);
    world.ledger.failing_settles.store(1_000, Ordering::SeqCst);
    let first = world.spawn(world.call("k", "a@example.com"));
    assert_eq!(reason(first.await.unwrap()), (Reason::LedgerUnavailable, Sent::Yes));
    let Entered::Joins(mut late) = world.dispatcher.core.in_flight.enter(&world.call("k", "a@example.com")) else {
        panic!("its outcome is not recorded");
    };
    world.dispatcher.close();
    world.dispatcher.cut_off().await;
    // Never that it was not sent.
    assert_eq!(
        reason(late.answer().await.unwrap()),
        (Reason::LedgerUnavailable, Sent::Yes)
    );
}

#[tokio::test(start_paused = true)]
async fn a_check_during_which_the_key_is_claimed_waits_for_the_outcome() {
    let world = Plan {
        rate: "1/s",
        burst: 1,
        ..Plan::default()
    }
    .start();
    assert!(is_added(&world.add("first").await));
    let waits = world.spawn(world.call("k", "a@example.com"));
    sleep(ms(10)).await;
    let held = world.ledger.look_ups.acquire_many(1_000).await.unwrap();
    let (dispatcher, call) = (world.dispatcher.clone(), world.call("k", "a@example.com"));
    let check = tokio::spawn(async move { dispatcher.check(&call).await });
    while world.requests() < 2 {
        sleep(ms(10)).await;
    }
    // The look-up finds the claim of a flight that was still waiting when the check began.
    drop(held);
    assert!(is_duplicate(&check.await.unwrap()));
    assert!(is_added(&waits.await.unwrap()));
}

#[tokio::test(start_paused = true)]
async fn a_claim_that_nobody_has_under_way_is_told_in_doubt_by_a_check_too() {
    let world = scripted([]);
    let call = world.call("k", "a@example.com");
    let invitation = &call.request.invitation;
    let claim = Claim {
        key: invitation.key.clone(),
        fingerprint: invitation.fingerprint,
        doubt: Doubt::Hold,
        at: Clock::system().timestamp(),
    };
    world.ledger.claim(claim).await.unwrap();
    assert_eq!(
        reason(world.dispatcher.check(&call).await),
        (Reason::OutcomeInDoubt, Sent::Unknown)
    );
}

type Steps = fn(&World) -> &Semaphore;

/// Where there is no token, whose the key is shows a look-up, else the claim.
fn with_and_without_tokens() -> [(World, Steps); 2] {
    let without = Plan {
        rate: "1/h",
        burst: 1,
        ..Plan::default()
    };
    [
        (without.start(), |world| &world.ledger.look_ups),
        (scripted([]), |world| &world.ledger.claims),
    ]
}

#[tokio::test(start_paused = true)]
async fn who_only_asks_for_a_key_does_not_have_it() {
    for (rightful_leaves, (world, steps)) in [false, true]
        .into_iter()
        .flat_map(|leaves| with_and_without_tokens().map(|world| (leaves, world)))
    {
        assert!(is_added(&world.add("k").await));
        let held = steps(&world).acquire_many(1_000).await.unwrap();
        let wrong = world.spawn(world.call("k", "b@example.com"));
        sleep(ms(10)).await;
        let rightful = world.spawn(world.call("k", "a@example.com"));
        let asks = world.call("k", "a@example.com");
        let dispatcher = world.dispatcher.clone();
        let check = tokio::spawn(async move { dispatcher.check(&asks).await });
        sleep(ms(10)).await;
        assert!(!wrong.is_finished());
        if rightful_leaves {
            rightful.abort();
        }
        drop(held);
        assert_eq!(reason(wrong.await.unwrap()), (Reason::CrkReused, Sent::No));
        assert!(is_duplicate(&check.await.unwrap()));
        if !rightful_leaves {
            assert!(is_duplicate(&rightful.await.unwrap()));
        }
        assert_eq!(world.requests(), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn a_list_that_is_sent_again_is_answered_by_look_ups() {
    let world = scripted([]);
    for crk in ["a", "b", "c"] {
        assert!(is_added(&world.add(crk).await));
    }
    // The first one was not expected to be known.
    assert!(is_duplicate(&world.add("a").await));
    let _held = world.ledger.claims.acquire_many(1_000).await.unwrap();
    for crk in ["b", "c"] {
        assert!(is_duplicate(&world.add(crk).await));
    }
}

#[tokio::test(start_paused = true)]
async fn who_waits_for_another_to_learn_of_a_key_has_its_deadline() {
    for (world, steps) in with_and_without_tokens() {
        assert!(is_added(&world.add("k").await));
        let held = steps(&world).acquire_many(1_000).await.unwrap();
        let first = world.spawn(world.call("k", "a@example.com"));
        sleep(ms(10)).await;
        let begin = Instant::now();
        let mut other = world.call("k", "b@example.com");
        other.deadline = Some(begin + ms(500));
        other.until = other.deadline;
        let failure = world.dispatcher.add(&other).await.unwrap_err();
        assert_eq!((failure.reason, failure.sent), (Reason::WaitTooLong, Sent::No));
        assert!(failure.deadline_passed && begin.elapsed() <= ms(501));
        drop(held);
        assert!(is_duplicate(&first.await.unwrap()));
    }
}

#[tokio::test(start_paused = true)]
async fn a_check_waits_for_a_claim_under_way() {
    let world = scripted([]);
    let held = world.ledger.claims.acquire_many(1_000).await.unwrap();
    let adds = world.spawn(world.call("k", "a@example.com"));
    sleep(ms(10)).await;
    let [same, other] = ["a@example.com", "b@example.com"].map(|email| {
        let (dispatcher, call) = (world.dispatcher.clone(), world.call("k", email));
        tokio::spawn(async move { dispatcher.check(&call).await })
    });
    sleep(ms(10)).await;
    drop(held);
    assert!(is_duplicate(&same.await.unwrap()));
    assert_eq!(reason(other.await.unwrap()), (Reason::CrkReused, Sent::No));
    assert!(is_added(&adds.await.unwrap()));
}

#[tokio::test(start_paused = true)]
async fn a_caller_who_wants_a_resend_is_heard_while_another_claims() {
    let world = scripted([doubtful()]);
    assert_eq!(reason(world.add("k").await), (Reason::OutcomeInDoubt, Sent::Unknown));
    let held = world.ledger.claims.acquire_many(1_000).await.unwrap();
    let holds = world.spawn(world.call("k", "a@example.com"));
    sleep(ms(10)).await;
    let mut resend = world.call("k", "a@example.com");
    resend.doubt = Doubt::Resend;
    let resends = world.spawn(resend);
    sleep(ms(10)).await;
    drop(held);
    let answers = [holds.await.unwrap(), resends.await.unwrap()];
    assert!(
        answers.iter().any(is_added) && answers.iter().any(is_duplicate),
        "{answers:?}"
    );
    assert_eq!(world.requests(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_duplicate_is_told_while_the_ledger_can_t_write() {
    let world = scripted([]);
    assert!(is_added(&world.add("k").await));
    world.ledger.failing_claims.store(2, Ordering::SeqCst);
    assert!(is_duplicate(&world.add("k").await));
    assert_eq!(reason(world.add("new").await), (Reason::LedgerUnavailable, Sent::No));
    assert!(is_added(&world.add("new").await));
}

#[tokio::test(start_paused = true)]
async fn who_leaves_during_a_claim_does_not_cut_the_request() {
    let world = scripted([]);
    let held = world.ledger.claims.acquire_many(1_000).await.unwrap();
    let leaves = world.spawn(world.call("k", "a@example.com"));
    sleep(ms(10)).await;
    leaves.abort();
    sleep(ms(10)).await;
    drop(held);
    // It joins, and is the only one to be told.
    assert!(is_added(&world.add("k").await));
    assert_eq!((world.requests(), world.state("k").await), (1, Some(State::Added)));
}

#[tokio::test]
async fn nothing_goes_on_the_wire_for_one_who_has_withdrawn_and_nobody_withdraws_from_there() {
    let world = scripted([]);
    let in_flight = Arc::<InFlight>::default();
    let call = world.call("k", "a@example.com");
    let begin = || match in_flight.enter(&call) {
        Entered::Leads(Lead { seat, landing }) => {
            landing.looked_up();
            (seat, landing)
        }
        _ => panic!("somebody is under way"),
    };
    let join = || match in_flight.enter(&call) {
        Entered::Joins(seat) => seat,
        _ => panic!("nobody is under way"),
    };

    let (mut first, landing) = begin();
    let mut second = join();
    assert!(first.withdraw());
    drop(first);
    assert!(second.withdraw());
    assert_eq!(in_flight.commit(&landing.flight), None);

    let (mut first, landing) = begin();
    let mut second = join();
    assert!(second.withdraw());
    assert_eq!(in_flight.commit(&landing.flight), Some(Doubt::Hold));
    assert!(landing.flight.progress.borrow().is_on_the_wire());
    assert!(!first.withdraw());
    // With the first one gone nobody is left, as the second has not left twice.
    drop((first, second));
    assert!(!in_flight.uncommit(&landing.flight, None));
}

#[tokio::test(start_paused = true)]
async fn a_full_queue_names_a_time_to_come_back() {
    let world = Plan {
        latency: ms(10_000),
        max_in_flight: 1,
        max_queue: 1,
        ..Plan::default()
    }
    .start();
    let on_the_wire = world.spawn(world.call("on the wire", "a@example.com"));
    sleep(ms(10)).await;
    let waits = world.spawn(world.call("waits", "a@example.com"));
    sleep(ms(10)).await;
    // There are tokens, but no place.
    let failure = world.add("k").await.unwrap_err();
    assert_eq!(failure.reason, Reason::QueueFull);
    assert!(failure.retry_after.is_some_and(|after| !after.is_zero()));
    assert!(is_added(&on_the_wire.await.unwrap()));
    assert!(is_added(&waits.await.unwrap()));
}
