//! SIGTERM and SIGINT: what is on the wire is finished and told, what waits is refused, nothing holds up the end.

use std::process::ExitStatus;

use surveylab_gateway::{
    proto::{AddRespondentResponse, InvitationState, Outcome},
    sandbox::{Fault, Gate, Sandbox},
};
use tokio::{sync::mpsc, task::JoinHandle};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;
use tonic_health::{
    ServingStatus,
    pb::{HealthCheckRequest, health_client::HealthClient},
};

use crate::support::{
    Error, Gateway, Options, added,
    call::{COLLECTOR, Client, add, item, state},
    calling,
    gateway::{ended_by, surveylab},
    holding, request, status_error,
    watch::list,
    watch::until_waiting,
};

const SERVICE: &str = "surveylab.invitation.v1.InvitationService";

type Call = JoinHandle<Result<AddRespondentResponse, Error>>;

fn assert_shutting_down(error: &Error) {
    let is = (error.code, &*error.reason, &*error.domain, error.sent());
    assert_eq!(is, (Code::Unavailable, "SHUTTING_DOWN", "surveylab-gateway", "no"));
    assert!(error.retry.is_some_and(|after| !after.is_zero()), "{error:?}");
}

fn assert_clean(status: ExitStatus) {
    assert_eq!((status.code(), ended_by(status)), (Some(0), None));
}

/// Returns once the gateway has begun to drain: from then on it is not ready.
async fn draining(gateway: &Gateway) {
    while gateway.admin("/readyz").await.0 == 200 {}
}

/// A gateway with one place for requests, one on the wire, held by the gate, and two waiting: unary and in a stream.
struct Busy {
    sandbox: Sandbox,
    gate: Gate,
    gateway: Gateway,
    client: Client,
    on_the_wire: Call,
}

impl Busy {
    async fn start(options: Options) -> Self {
        let (sandbox, gate) = holding().await;
        let gateway = Gateway::with(options.flag("--max-in-flight", 1), &sandbox).await;
        let client = gateway.client().await;
        let on_the_wire = calling(&client, "on-the-wire");
        sandbox.wait_for_requests(1).await;
        Self {
            sandbox,
            gate,
            gateway,
            client,
            on_the_wire,
        }
    }
}

async fn what_is_sent_is_finished_and_what_waits_is_refused(signal: &str) {
    let Busy {
        sandbox,
        gate,
        gateway,
        client,
        on_the_wire,
    } = Busy::start(Options::new()).await;
    let waiting = calling(&client, "waiting");
    until_waiting(&gateway, "", 1).await;
    let (items, requests) = mpsc::channel(2);
    items.send(request("item-on-the-wire")).await.unwrap();
    items.send(request("on-the-wire")).await.unwrap();
    let requests = ReceiverStream::new(requests);
    let mut results = client
        .clone()
        .stream_add_respondent(requests)
        .await
        .unwrap()
        .into_inner();
    until_waiting(&gateway, "", 2).await;

    gateway.signal(signal);
    let error = waiting.await.unwrap().unwrap_err();
    assert_shutting_down(&error);
    let (sequence, result) = item(results.message().await.unwrap().unwrap());
    assert_eq!(sequence, 0);
    assert_shutting_down(&result.unwrap_err());
    // A connection of before still carries calls; they are refused with the reason.
    assert_shutting_down(&add(&client, request("late")).await.unwrap_err());

    gate.release();
    let leader = on_the_wire.await.unwrap().unwrap().outcome();
    let (sequence, result) = item(results.message().await.unwrap().unwrap());
    assert_eq!(sequence, 1);
    // Two waited for it. Which of them is told that it was the one is not promised.
    let mut told = [leader, result.unwrap().outcome()];
    told.sort();
    assert_eq!(told, [Outcome::Added, Outcome::Duplicate]);
    let end = results.message().await.unwrap_err();
    assert_shutting_down(&status_error(&end));

    let (gateway, status) = gateway.once_ended().await;
    assert_clean(status);
    assert_eq!(sandbox.report().requests, 1);
    let gateway = gateway.restart().await;
    let client = gateway.client().await;
    assert_eq!(list(&client, InvitationState::Unspecified).await, ["on-the-wire"]);
    assert_eq!(added(&client, request("on-the-wire")).await, Outcome::Duplicate);
    assert_eq!(added(&client, request("waiting")).await, Outcome::Added);
    drop(items);
}

#[tokio::test]
async fn sigterm_finishes_what_is_sent_and_refuses_what_waits() {
    what_is_sent_is_finished_and_what_waits_is_refused("TERM").await;
}

#[tokio::test]
async fn sigint_finishes_what_is_sent_and_refuses_what_waits() {
    what_is_sent_is_finished_and_what_waits_is_refused("INT").await;
}

#[tokio::test]
async fn a_retry_that_waits_is_refused_and_says_that_something_was_sent() {
    let sandbox = surveylab().await;
    sandbox.add_fault(Fault::status(503).retry_after("30"));
    let gateway = Gateway::start(&sandbox).await;
    let client = gateway.client().await;
    let call = calling(&client, "k");
    // Recorded as failed: it waits for its next attempt.
    while state(&client, "k").await != Some(InvitationState::Failed) {}
    gateway.signal("TERM");
    let error = call.await.unwrap().unwrap_err();
    assert_eq!(
        (error.code, &*error.reason, error.sent()),
        (Code::Unavailable, "SHUTTING_DOWN", "yes")
    );
    assert_clean(gateway.ended().await);
    assert_eq!(sandbox.report().requests, 1);
}

#[tokio::test]
async fn health_and_readiness_say_that_it_drains() {
    let busy = Busy::start(Options::new()).await;
    let old = busy.gateway.channel().await;
    let status = async |channel: &tonic::transport::Channel, service: &str| {
        let request = HealthCheckRequest {
            service: service.into(),
        };
        let answer = HealthClient::new(channel.clone()).check(request).await.unwrap();
        answer.into_inner().status
    };
    for service in ["", SERVICE] {
        assert_eq!(status(&old, service).await, ServingStatus::Serving as i32);
    }
    assert_eq!(busy.gateway.admin("/readyz").await.0, 200);

    busy.gateway.signal("TERM");
    draining(&busy.gateway).await;
    let new = busy.gateway.channel().await;
    for channel in [&old, &new] {
        for service in ["", SERVICE] {
            assert_eq!(
                status(channel, service).await,
                ServingStatus::NotServing as i32,
                "{service}"
            );
        }
    }
    assert_eq!(busy.gateway.admin("/readyz").await.0, 503);
    assert_eq!(
        busy.gateway.admin("/healthz").await.0,
        200,
        "a process that drains is alive"
    );
    busy.gate.release();
    assert_eq!(busy.on_the_wire.await.unwrap().unwrap().outcome(), Outcome::Added);
    assert_clean(busy.gateway.ended().await);
}

#[tokio::test]
async fn a_health_watch_is_told_and_ends() {
    let busy = Busy::start(Options::new()).await;
    let mut health = HealthClient::new(busy.gateway.channel().await);
    let request = HealthCheckRequest {
        service: SERVICE.into(),
    };
    let mut watch = health.watch(request).await.unwrap().into_inner();
    let mut next = async || {
        watch
            .message()
            .await
            .map(|message| message.map(|message| message.status))
    };
    assert_eq!(next().await.unwrap(), Some(ServingStatus::Serving as i32));
    busy.gateway.signal("TERM");
    assert_eq!(next().await.unwrap(), Some(ServingStatus::NotServing as i32));
    busy.gate.release();
    assert_eq!(next().await.unwrap(), None);
    assert_clean(busy.gateway.ended().await);
}

#[tokio::test]
async fn who_only_stays_connected_does_not_delay_the_end() {
    let sandbox = surveylab().await;
    // Were any of them waited for, the test would wait as long.
    let gateway = Gateway::with(Options::new().flag("--drain-timeout", "10m"), &sandbox).await;
    let idle = gateway.channel().await;
    let silent = tokio::net::TcpStream::connect(gateway.grpc).await.unwrap();
    let silent_admin = tokio::net::TcpStream::connect(gateway.admin).await.unwrap();
    let mut health = HealthClient::new(gateway.channel().await);
    let mut watch = health.watch(HealthCheckRequest::default()).await.unwrap().into_inner();
    watch.message().await.unwrap().unwrap();
    let client = gateway.client().await;
    let (items, requests) = mpsc::channel(1);
    let requests = ReceiverStream::new(requests);
    let mut results = client
        .clone()
        .stream_add_respondent(requests)
        .await
        .unwrap()
        .into_inner();
    items.send(request("k")).await.unwrap();
    let (_, result) = item(results.message().await.unwrap().unwrap());
    assert_eq!(result.unwrap().outcome(), Outcome::Added);
    // A second stream, whose results nobody reads.
    let (unread_items, requests) = mpsc::channel(1);
    let requests = ReceiverStream::new(requests);
    let unread = client.clone().stream_add_respondent(requests).await.unwrap();

    gateway.signal("TERM");
    let end = results.message().await.unwrap_err();
    assert_shutting_down(&status_error(&end));
    assert_clean(gateway.ended().await);
    drop((idle, silent, silent_admin, watch, items, unread_items, unread));
}

#[tokio::test]
async fn the_drain_timeout_bounds_the_end_and_leaves_a_doubt() {
    let busy = Busy::start(Options::new().flag("--drain-timeout", "300ms")).await;
    let mut streaming = busy.client.clone();
    let follower = tokio_stream::once(request("on-the-wire"));
    let _results = streaming.stream_add_respondent(follower).await.unwrap();
    busy.gateway.signal("TERM");
    let (gateway, status) = busy.gateway.once_ended().await;
    assert_clean(status);
    // Whatever the caller sees of the broken connection, it is no success.
    busy.on_the_wire.await.unwrap().unwrap_err();

    busy.gate.release();
    let gateway = gateway.restart().await;
    let client = gateway.client().await;
    assert_eq!(state(&client, "on-the-wire").await, Some(InvitationState::InDoubt));
    let error = add(&client, request("on-the-wire")).await.unwrap_err();
    assert_eq!(
        (error.code, &*error.reason),
        (Code::FailedPrecondition, "OUTCOME_IN_DOUBT")
    );
    assert_eq!(busy.sandbox.requests_of(COLLECTOR, "on-the-wire"), 1);
}

#[tokio::test]
async fn a_second_signal_ends_it_at_once() {
    for [first, second] in [["TERM", "TERM"], ["INT", "INT"], ["TERM", "INT"]] {
        let busy = Busy::start(Options::new().flag("--drain-timeout", "10m")).await;
        busy.gateway.signal(first);
        draining(&busy.gateway).await;
        busy.gateway.signal(second);
        let (gateway, status) = busy.gateway.once_ended().await;
        assert_ne!(status.code(), Some(0), "not all was finished");
        assert_eq!(ended_by(status), None);
        let gateway = gateway.restart().await;
        let client = gateway.client().await;
        assert_eq!(state(&client, "on-the-wire").await, Some(InvitationState::InDoubt));
    }
}
