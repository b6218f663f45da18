//! Callers that leave: what is on the wire goes its way and is recorded, what waits is withdrawn, and nobody pays for
//! another's leaving.

use std::time::Duration;

use surveylab_gateway::{
    proto::{AddRespondentRequest, InvitationState, Outcome, StreamAddRespondentResponse},
    sandbox::Sandbox,
};
use tokio::{sync::mpsc, task::JoinHandle};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Streaming};

use crate::support::{
    Gateway, Options, added, adding,
    call::{COLLECTOR, Client, item, state},
    deadline::{PatientClient, with_deadline},
    gateway::surveylab,
    holding, request,
    watch::list,
    watch::until_waiting,
};

async fn leave(call: JoinHandle<Outcome>) {
    call.abort();
    assert!(call.await.unwrap_err().is_cancelled());
}

/// What is under way comes to its end, and the next call is told so. (One that joined before the end would be told that
/// it added the respondent itself, as nobody else was.)
async fn assert_recorded(client: &Client, crk: &str) {
    let validated = AddRespondentRequest {
        validate_only: true,
        ..request(crk)
    };
    // Answers from the ledger alone, once nothing is under way any more.
    assert_eq!(added(client, validated).await, Outcome::Duplicate, "{crk}");
    assert_eq!(added(client, request(crk)).await, Outcome::Duplicate, "{crk}");
    assert_eq!(state(client, crk).await, Some(InvitationState::Added), "{crk}");
}

/// A stream that stays open, its requests sent. Dropping it is a caller's leaving.
struct Open {
    _requests: mpsc::Sender<AddRespondentRequest>,
    results: Streaming<StreamAddRespondentResponse>,
}

impl Open {
    async fn with(client: &Client, crks: &[&str]) -> Self {
        let (requests, list) = mpsc::channel(crks.len());
        for crk in crks {
            requests.send(request(crk)).await.unwrap();
        }
        let results = client.clone().stream_add_respondent(ReceiverStream::new(list)).await;
        Self {
            _requests: requests,
            results: results.unwrap().into_inner(),
        }
    }

    async fn next(&mut self) -> Outcome {
        let (_, result) = item(self.results.message().await.unwrap().unwrap());
        result.unwrap().outcome()
    }
}

#[tokio::test]
async fn a_caller_that_leaves_does_not_cut_its_request() {
    let (sandbox, gate) = holding().await;
    let gateway = Gateway::start(&sandbox).await;
    let client = gateway.client().await;
    let call = adding(&client, "k");
    sandbox.wait_for_requests(1).await;
    leave(call).await;
    gate.release();
    assert_recorded(&client, "k").await;
    assert_eq!(sandbox.report().requests, 1);
}

#[tokio::test]
async fn a_call_that_takes_the_place_of_one_that_left_has_added_the_respondent() {
    let (sandbox, gate) = holding().await;
    let gateway = Gateway::start(&sandbox).await;
    let client = gateway.client().await;
    let first = adding(&client, "k");
    sandbox.wait_for_requests(1).await;
    leave(first).await;
    let mut next = Open::with(&client, &["k", "marker"]).await;
    sandbox.wait_for_requests(2).await;
    gate.release();
    assert_eq!((next.next().await, next.next().await), (Outcome::Added, Outcome::Added));
    assert_recorded(&client, "k").await;
    assert_eq!(sandbox.requests_of(COLLECTOR, "k"), 1);
}

#[tokio::test]
async fn a_connection_that_breaks_does_not_cut_its_requests() {
    let (sandbox, gate) = holding().await;
    let gateway = Gateway::start(&sandbox).await;
    let calls = {
        // The only client of its connection: dropped with its calls, the connection goes, too.
        let client = gateway.client().await;
        [adding(&client, "a"), adding(&client, "b")]
    };
    sandbox.wait_for_requests(2).await;
    for call in calls {
        leave(call).await;
    }
    gate.release();
    let client = gateway.client().await;
    for crk in ["a", "b"] {
        assert_recorded(&client, crk).await;
    }
    assert_eq!(sandbox.report().requests, 2);
}

#[tokio::test]
async fn a_caller_that_leaves_is_recorded_without_another_call() {
    let (sandbox, gate) = holding().await;
    let gateway = Gateway::start(&sandbox).await;
    let client = gateway.client().await;
    let call = adding(&client, "k");
    sandbox.wait_for_requests(1).await;
    leave(call).await;
    gate.release();
    // A shutdown waits for what is under way; the ledger shows it after a restart, and nothing else has asked for it.
    gateway.signal("TERM");
    let gateway = gateway.restart_when_ended().await;
    let client = gateway.client().await;
    assert_eq!(state(&client, "k").await, Some(InvitationState::Added));
    assert_eq!(sandbox.report().requests, 1);
}

#[tokio::test]
async fn a_deadline_that_passes_on_the_wire_is_recorded() {
    let (sandbox, gate) = holding().await;
    let gateway = Gateway::start(&sandbox).await;
    let client = gateway.client().await;
    let leader = PatientClient::new(&gateway);
    // Long enough to get onto the wire on a slow machine; then the gate keeps it there.
    let error = leader.add(request("k"), Duration::from_secs(2)).await.unwrap_err();
    assert_eq!(
        (error.code, &*error.reason),
        (Code::DeadlineExceeded, "DEADLINE_AFTER_SEND")
    );
    assert_eq!(state(&client, "k").await, Some(InvitationState::Pending));
    gate.release();
    assert_recorded(&client, "k").await;
    assert_eq!(sandbox.report().requests, 1);
}

#[tokio::test]
async fn a_client_that_gives_up_by_itself_does_not_cut_its_request() {
    let (sandbox, gate) = holding().await;
    let gateway = Gateway::start(&sandbox).await;
    let client = gateway.client().await;
    // A stock client: it counts for itself, and resets the call when its time is over.
    let impatient = with_deadline(request("k"), Duration::from_secs(2));
    client.clone().add_respondent(impatient).await.unwrap_err();
    gate.release();
    assert_recorded(&client, "k").await;
    assert_eq!(sandbox.report().requests, 1);
}

/// A gateway whose tokens of an hour are spent, so that everything waits.
async fn exhausted(sandbox: &Sandbox) -> Gateway {
    let options = Options::new()
        .flag("--rate", "1/h")
        .flag("--burst", 1)
        .flag("--max-wait", "10h");
    let gateway = Gateway::with(options, sandbox).await;
    assert_eq!(added(&gateway.client().await, request("first")).await, Outcome::Added);
    gateway
}

#[tokio::test]
async fn a_caller_that_leaves_while_it_waits_is_withdrawn() {
    let sandbox = surveylab().await;
    let gateway = exhausted(&sandbox).await;
    let client = gateway.client().await;
    let calls = [adding(&client, "a"), adding(&client, "b")];
    let open = Open::with(&client, &["c", "d", "e"]).await;
    until_waiting(&gateway, "", 5).await;
    for call in calls {
        leave(call).await;
    }
    until_waiting(&gateway, "", 3).await;
    drop(open);
    until_waiting(&gateway, "", 0).await;
    assert_eq!(list(&client, InvitationState::Unspecified).await, ["first"]);
    assert_eq!(sandbox.report().requests, 1);
}

/// A gateway with one place for requests, and what occupies it.
async fn one_at_a_time(sandbox: &Sandbox) -> (Gateway, JoinHandle<Outcome>) {
    let gateway = Gateway::with(Options::new().flag("--max-in-flight", 1), sandbox).await;
    let first = adding(&gateway.client().await, "first");
    sandbox.wait_for_requests(1).await;
    (gateway, first)
}

#[tokio::test]
async fn who_left_the_queue_is_not_sent_when_its_turn_comes() {
    let (sandbox, gate) = holding().await;
    let (gateway, first) = one_at_a_time(&sandbox).await;
    let client = gateway.client().await;
    let left = adding(&client, "left");
    until_waiting(&gateway, "", 1).await;
    let stays = adding(&client, "stays");
    until_waiting(&gateway, "", 2).await;
    leave(left).await;
    until_waiting(&gateway, "", 1).await;
    gate.release();
    assert_eq!(first.await.unwrap(), Outcome::Added);
    assert_eq!(stays.await.unwrap(), Outcome::Added);
    assert_eq!(state(&client, "left").await, None);
    assert_eq!(sandbox.requests_of(COLLECTOR, "left"), 0);
}

#[tokio::test]
async fn a_follower_is_served_when_its_leader_leaves_the_queue() {
    let (sandbox, gate) = holding().await;
    let (gateway, first) = one_at_a_time(&sandbox).await;
    let client = gateway.client().await;
    let leader = adding(&client, "k");
    until_waiting(&gateway, "", 1).await;
    let mut follower = Open::with(&client, &["k", "marker"]).await;
    // The stream reads in order: once the marker waits, the follower has joined.
    until_waiting(&gateway, "", 2).await;
    leave(leader).await;
    gate.release();
    assert_eq!(first.await.unwrap(), Outcome::Added);
    assert_eq!(
        (follower.next().await, follower.next().await),
        (Outcome::Added, Outcome::Added)
    );
    assert_eq!(sandbox.requests_of(COLLECTOR, "k"), 1);
}

#[tokio::test]
async fn a_follower_is_served_when_its_leader_leaves_the_wire() {
    let (sandbox, gate) = holding().await;
    let gateway = Gateway::start(&sandbox).await;
    let client = gateway.client().await;
    let leader = adding(&client, "k");
    sandbox.wait_for_requests(1).await;
    let mut follower = Open::with(&client, &["k", "marker"]).await;
    sandbox.wait_for_requests(2).await;
    leave(leader).await;
    gate.release();
    assert_eq!(
        (follower.next().await, follower.next().await),
        (Outcome::Added, Outcome::Added)
    );
    assert_eq!(sandbox.requests_of(COLLECTOR, "k"), 1);
}

#[tokio::test]
async fn a_follower_is_served_when_a_stream_that_leads_is_dropped() {
    let (sandbox, gate) = holding().await;
    let (gateway, first) = one_at_a_time(&sandbox).await;
    let client = gateway.client().await;
    let leader = Open::with(&client, &["k", "other"]).await;
    until_waiting(&gateway, "", 2).await;
    let mut follower = Open::with(&client, &["k", "marker"]).await;
    until_waiting(&gateway, "", 3).await;
    drop(leader);
    // `other` is gone, `k` goes on.
    until_waiting(&gateway, "", 2).await;
    gate.release();
    assert_eq!(first.await.unwrap(), Outcome::Added);
    assert_eq!(
        (follower.next().await, follower.next().await),
        (Outcome::Added, Outcome::Added)
    );
    assert_eq!(state(&client, "other").await, None);
    assert_eq!(sandbox.report().requests, 3);
}

#[tokio::test]
async fn a_stream_that_is_dropped_does_not_cut_what_is_on_the_wire() {
    let (sandbox, gate) = holding().await;
    let options = Options::new().flag("--max-in-flight", 2);
    let gateway = Gateway::with(options, &sandbox).await;
    let client = gateway.client().await;
    let open = Open::with(&client, &["a", "b", "c", "d"]).await;
    sandbox.wait_for_requests(2).await;
    until_waiting(&gateway, "", 2).await;
    drop(open);
    until_waiting(&gateway, "", 0).await;
    let on_the_wire: Vec<String> = sandbox.keys().into_iter().map(|key| key.crk).collect();
    gate.release();
    for crk in &on_the_wire {
        assert_recorded(&client, crk).await;
    }
    assert_eq!(list(&client, InvitationState::Unspecified).await, on_the_wire);
    assert_eq!(sandbox.report().requests, 2);
}
