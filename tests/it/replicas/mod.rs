//! Several gateways as processes of their own on one PostgreSQL: one truth about keys, one rate for the account.

mod events;
mod group;

use std::time::Duration;

use futures_util::{StreamExt as _, stream};
use surveylab_gateway::{
    proto::{InvitationState, Outcome},
    sandbox::{Fault, Gate},
};
use tokio::{
    task::JoinHandle,
    time::{Instant, timeout},
};
use tonic::Code;

use crate::{
    history::rules,
    support::{
        Error,
        call::{Client, add, added, request, state},
        gateway::{surveylab, surveylab_with},
        lateness::Lateness,
        watch::{add_within, soon, until},
    },
};
use group::{Group, LEASE, number, options};

fn calling(client: &Client, crk: &str) -> JoinHandle<Result<Outcome, Error>> {
    let (client, request) = (client.clone(), request(crk));
    tokio::spawn(async move { add(&client, request).await.map(|response| response.outcome()) })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_thrown_at_all_replicas_at_once_is_sent_once() {
    let keys = number("KEYS", 300);
    let group = Group::of(3, options().flag("--max-in-flight", 64)).await;
    let clients = group.clients().await;
    let outcomes: Vec<Vec<Outcome>> = stream::iter(0..keys)
        .map(|key| {
            let calls: Vec<_> = clients
                .iter()
                .map(|client| calling(client, &format!("k{key}")))
                .collect();
            async {
                let mut outcomes = Vec::new();
                for call in calls {
                    outcomes.push(soon(call).await.unwrap().unwrap());
                }
                outcomes
            }
        })
        .buffer_unordered(32)
        .collect()
        .await;
    for outcomes in outcomes {
        let added = outcomes.iter().filter(|outcome| **outcome == Outcome::Added).count();
        let duplicates = outcomes
            .iter()
            .filter(|outcome| **outcome == Outcome::Duplicate)
            .count();
        assert_eq!((added, duplicates), (1, 2));
    }
    let report = group.sandbox.report();
    assert_eq!(
        (report.requests, report.effects, report.duplicates.len()),
        (keys, keys, 0)
    );
}

#[tokio::test]
async fn a_call_whose_twin_is_under_way_elsewhere_hears_its_outcome() {
    let group = Group::of(2, options()).await;
    let gate = Gate::new();
    group.sandbox.add_fault(Fault::hold(&gate));
    let clients = group.clients().await;
    let first = calling(&clients[0], "k");
    group.sandbox.wait_for_requests(1).await;
    // Unary, in a stream's place, and one that only asks; and one whose deadline is over before.
    let second = calling(&clients[1], "k");
    let mut asking = request("k");
    asking.validate_only = true;
    let asked = tokio::spawn({
        let client = clients[1].clone();
        async move { add(&client, asking).await.map(|response| response.outcome()) }
    });
    let late = add_within(&clients[1], request("k"), Duration::from_millis(300)).await;
    // The client keeps the same time, and may be the first to tell.
    assert!(matches!(
        late.unwrap_err().code,
        Code::DeadlineExceeded | Code::Cancelled
    ));
    let mut other = request("k");
    other.email = "somebody.else@example.com".into();
    let reused = soon(add(&clients[1], other)).await.unwrap_err();
    assert_eq!(reused.reason, "CRK_REUSED");
    for waits in [&second, &asked] {
        assert!(!waits.is_finished());
    }

    gate.release();
    assert_eq!(soon(first).await.unwrap().unwrap(), Outcome::Added);
    assert_eq!(soon(second).await.unwrap().unwrap(), Outcome::Duplicate);
    assert_eq!(soon(asked).await.unwrap().unwrap(), Outcome::Duplicate);
    assert_eq!(group.sandbox.report().requests, 1);
}

#[tokio::test]
async fn a_twin_that_fails_elsewhere_leaves_the_key_to_who_waits() {
    let group = Group::of(2, options()).await;
    let gate = Gate::new();
    group.sandbox.add_fault(Fault::status(400).held_by(&gate).times(1));
    let clients = group.clients().await;
    let first = calling(&clients[0], "k");
    group.sandbox.wait_for_requests(1).await;
    let second = calling(&clients[1], "k");
    until("the second call waits", async || {
        group.database.sql("SELECT count(*) FROM pending WHERE watched") == "1"
    })
    .await;
    gate.release();
    assert_eq!(soon(first).await.unwrap().unwrap_err().reason, "SURVEYLAB_BAD_REQUEST");
    assert_eq!(soon(second).await.unwrap().unwrap(), Outcome::Added);
    assert_eq!(group.sandbox.report().requests, 2);
}

#[tokio::test]
async fn an_open_breaker_does_not_hide_what_a_twin_came_to_elsewhere() {
    let group = Group::of(2, options().flag("--breaker-after", 2)).await;
    group.sandbox.add_fault(Fault::status(401).for_crk_prefix("refused"));
    twin_elsewhere(&group, async |client| {
        for crk in ["refused1", "refused2", "refused3"] {
            let error = calling(client, crk).await.unwrap().unwrap_err();
            assert_eq!(error.reason, "SURVEYLAB_UNAUTHORIZED");
        }
        assert_eq!(group.sandbox.report().requests, 3, "the breaker is open");
    })
    .await;
}

#[tokio::test]
async fn a_pause_does_not_hide_what_a_twin_came_to_elsewhere() {
    let group = Group::of(2, options()).await;
    let limited = Fault::status(429).retry_after("3600").for_crk("limited");
    group.sandbox.add_fault(limited);
    twin_elsewhere(&group, async |client| {
        let error = calling(client, "limited").await.unwrap().unwrap_err();
        assert_eq!(error.reason, "SURVEYLAB_RATE_LIMITED");
    })
    .await;
}

/// A call is a duplicate of one at another replica, though its own can't send any more.
async fn twin_elsewhere(group: &Group, stop_sending: impl AsyncFnOnce(&Client)) {
    let gate = Gate::new();
    group.sandbox.add_fault(Fault::hold(&gate).for_crk("k"));
    let clients = group.clients().await;
    let first = calling(&clients[1], "k");
    group.sandbox.wait_for_requests(1).await;
    stop_sending(&clients[0]).await;
    let second = calling(&clients[0], "k");
    until("the second call waits", async || {
        group.database.sql("SELECT count(*) FROM pending WHERE watched") == "1"
    })
    .await;
    gate.release();
    assert_eq!(soon(first).await.unwrap().unwrap(), Outcome::Added);
    assert_eq!(soon(second).await.unwrap().unwrap(), Outcome::Duplicate);
}

#[tokio::test]
async fn what_a_dead_replica_had_on_the_wire_is_in_doubt_once_its_lease_is_over() {
    let mut group = Group::of(2, options()).await;
    group.sandbox.add_fault(Fault::hang());
    let clients = group.clients().await;
    let first = calling(&clients[0], "k");
    group.sandbox.wait_for_requests(1).await;
    group.gateways[0].kill();
    let killed = Instant::now();
    assert!(soon(first).await.unwrap().is_err());
    // Nobody may send meanwhile, and who asks for it waits until it is known that nobody knows.
    let waits = calling(&clients[1], "k");
    let error = soon(waits).await.unwrap().unwrap_err();
    assert_eq!(
        (error.code, error.reason.as_str()),
        (Code::FailedPrecondition, "OUTCOME_IN_DOUBT")
    );
    println!("known {:?} after the kill, with a lease of {LEASE:?}", killed.elapsed());
    assert_eq!(state(&clients[1], "k").await, Some(InvitationState::InDoubt));
    assert_eq!(group.sandbox.report().requests, 1);
}

#[tokio::test]
async fn a_replica_that_slept_through_its_lease_goes_on_with_a_new_one() {
    let group = Group::of(2, options()).await;
    let gate = Gate::new();
    group.sandbox.add_fault(Fault::hold(&gate).for_crk("held"));
    let clients = group.clients().await;
    assert_eq!(added(&clients[0], request("before")).await, Outcome::Added);
    let held = calling(&clients[0], "held");
    group.sandbox.wait_for_requests(2).await;
    group.gateways[0].signal("STOP");
    // Its claim is in doubt to the others.
    until("its lease is over", async || {
        state(&clients[1], "held").await == Some(InvitationState::InDoubt)
    })
    .await;
    let asleep = calling(&clients[0], "asleep");
    group.gateways[0].signal("CONT");
    gate.release();
    // What its caller is told is what the ledger knows.
    let told = soon(held).await.unwrap();
    let known = state(&clients[1], "held").await;
    match told {
        Ok(outcome) => assert_eq!((outcome, known), (Outcome::Added, Some(InvitationState::Added))),
        Err(error) => assert_eq!(
            (error.reason.as_str(), known),
            ("OUTCOME_IN_DOUBT", Some(InvitationState::InDoubt))
        ),
    }
    // At first it may say that it can't send yet.
    if soon(asleep).await.unwrap().is_err() {
        until("it has a lease again", async || {
            calling(&clients[0], "asleep").await.unwrap().is_ok()
        })
        .await;
    }
    assert_eq!(state(&clients[1], "asleep").await, Some(InvitationState::Added));
    let report = group.sandbox.report();
    assert_eq!((report.effects, report.duplicates.len()), (3, 0));
}

#[tokio::test]
async fn without_the_database_nothing_is_sent_and_all_goes_on_when_it_is_back() {
    let group = Group::alone(surveylab().await, 2, options()).await;
    let clients = group.clients().await;
    assert_eq!(added(&clients[0], request("before")).await, Outcome::Added);
    group.server.kill();
    for (gateway, client) in group.gateways.iter().zip(&clients) {
        let error = soon(add_within(client, request("while"), Duration::from_secs(30)))
            .await
            .unwrap_err();
        assert_eq!((error.code, error.sent()), (Code::Unavailable, "no"), "{error:?}");
        until("it is not ready", async || gateway.admin("/readyz").await.0 == 503).await;
    }
    assert_eq!(group.sandbox.report().requests, 1);

    group.server.start_again();
    for (index, (gateway, client)) in group.gateways.iter().zip(&clients).enumerate() {
        until("it is ready", async || gateway.admin("/readyz").await.0 == 200).await;
        let crk = format!("after{index}");
        until("it adds", async || calling(client, &crk).await.unwrap().is_ok()).await;
        let outcome = calling(client, "before").await.unwrap();
        assert_eq!(outcome.unwrap(), Outcome::Duplicate);
    }
    assert_eq!(group.sandbox.report().duplicates.len(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_share_one_rate() {
    const RATE: f64 = 100.0;
    const BURST: f64 = 20.0;
    let sandbox = surveylab_with(|config| config.log_requests = usize::MAX).await;
    let options = options().flag("--rate", "100/s").flag("--burst", 20);
    let group = Group::before(sandbox, 3, options).await;
    let lateness = Lateness::measure();
    let clients = group.clients().await;
    let calls: Vec<_> = (0..600)
        .map(|key| calling(&clients[key % clients.len()], &format!("k{key}")))
        .collect();
    for call in calls {
        assert_eq!(soon(call).await.unwrap().unwrap(), Outcome::Added);
    }
    let mut arrivals: Vec<Duration> = group.sandbox.requests().iter().map(|request| request.at).collect();
    arrivals.sort();
    let excess = rules::excess(&arrivals, BURST, RATE);
    let late = lateness.worst();
    let took = *arrivals.last().unwrap() - arrivals[0];
    println!("600 requests in {took:?}, {excess:.1} over, tasks {late:?} late at most");
    assert!(
        excess <= 3.0 * RATE * late.as_secs_f64(),
        "{excess} too many, {late:?} late"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rolling_restart_fails_no_call_of_a_client_that_tries_again() {
    let mut group = Group::of(3, options()).await;
    let balancer = group.balancer().await;
    let load = tokio::spawn({
        let balancer = balancer.clone();
        async move {
            stream::iter(0..1_500)
                .map(|key| balancer.add_with_retries(request(&format!("k{key}"))))
                .buffer_unordered(16)
                .collect::<Vec<_>>()
                .await
        }
    });
    for index in 0..3 {
        let before = group.sandbox.report().effects;
        group.sandbox.wait_for_effects((before + 100).min(1_400)).await;
        group.roll(index).await;
        balancer.turn(index, group.gateways[index].client().await);
    }
    let outcomes = timeout(LEASE * 12, load).await.expect("it never ended").unwrap();
    for outcome in &outcomes {
        assert!(outcome.is_ok(), "{outcome:?}");
    }
    let report = group.sandbox.report();
    assert_eq!((report.effects, report.duplicates.len()), (1_500, 0));
}
