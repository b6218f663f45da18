//! The account's rate: never exceeded, shared fairly, and spent on requests to SurveyLab alone.

use std::{
    fs::File,
    time::{Duration, SystemTime},
};

use surveylab_gateway::{
    proto::{AddRespondentRequest, Outcome},
    sandbox::Sandbox,
};
use tokio::{task::JoinSet, time::Instant};
use tonic::Code;

use crate::{
    history::rules,
    support::{
        Gateway, Options,
        call::{Client, add, added, stream},
        gateway::surveylab,
        holding,
        lateness::Lateness,
        request,
        watch::{add_within, soon, until_waiting},
    },
};

/// The crks in the order of their arrival at SurveyLab.
fn order(sandbox: &Sandbox) -> Vec<String> {
    let requests = sandbox.requests();
    let crks = requests.iter().map(|request| request.parameter("crk").unwrap());
    crks.map(String::from).collect()
}

fn requests(prefix: &str, count: usize) -> Vec<AddRespondentRequest> {
    (0..count).map(|i| request(&format!("{prefix}{i:05}"))).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_window_of_time_carries_more_than_burst_and_rate_allow() {
    const BURST: f64 = 5.0;
    const RATE: f64 = 100.0;
    let sandbox = surveylab().await;
    let sandbox_started = Instant::now();
    let options = Options::new().flag("--rate", "100/s").flag("--burst", 5);
    let gateway = Gateway::with(options, &sandbox).await;
    let client = gateway.client().await;
    let lateness = Lateness::measure();
    let begin = Instant::now();
    let mut calls = JoinSet::new();
    for request in requests("unary", 100) {
        let client = client.clone();
        calls.spawn(async move { vec![add(&client, request).await] });
    }
    for prefix in ["a", "b"] {
        let (client, items) = (client.clone(), requests(prefix, 100));
        calls.spawn(async move { stream(&client, items).await });
    }
    for result in soon(calls.join_all()).await.into_iter().flatten() {
        assert_eq!(result.unwrap().outcome(), Outcome::Added);
    }
    let took = begin.elapsed();

    let arrivals: Vec<Duration> = sandbox.requests().iter().map(|request| request.at).collect();
    assert_eq!(arrivals.len(), 300);
    let first_call = begin - sandbox_started;
    rules::none_is_early(&arrivals, first_call, BURST, RATE);
    // In every window of time. One request that this machine holds up counts here as a too early next one, so it
    // holds to three times the time by which tasks run late meanwhile: a third of a request on an idle machine.
    let late = lateness.worst();
    let excess = rules::excess(&arrivals, BURST, RATE);
    let ideal = (300.0 - BURST) / RATE;
    println!("300 requests at 100/s took {took:?}, ideal {ideal} s; excess {excess:.3} requests, {late:?} late");
    assert!(
        excess <= 3.0 * RATE * late.as_secs_f64(),
        "{excess} too many, {late:?} late"
    );
}

#[tokio::test]
async fn unary_calls_overtake_ten_thousand_waiting_stream_items() {
    let (sandbox, gate) = holding().await;
    let options = Options::new()
        .flag("--stream-window", 10_000)
        .flag("--max-in-flight", 1);
    let gateway = Gateway::with(options, &sandbox).await;
    let client = gateway.client().await;
    let items = tokio_stream::iter(requests("item", 10_000));
    let responses = client.clone().stream_add_respondent(items).await.unwrap();
    until_waiting(&gateway, "lane=\"stream\"", 9_999).await;

    let mut calls = JoinSet::new();
    for request in requests("unary", 5) {
        let client = client.clone();
        calls.spawn(async move { added(&client, request).await });
    }
    until_waiting(&gateway, "lane=\"unary\"", 5).await;
    gate.release();
    assert_eq!(soon(calls.join_all()).await, [Outcome::Added; 5]);
    let order = order(&sandbox);
    assert!(
        order[1..6].iter().all(|crk| crk.starts_with("unary")),
        "{:?}",
        &order[..8]
    );
    drop(responses);
}

#[tokio::test]
async fn a_stream_is_not_starved_by_unary_calls() {
    let (sandbox, gate) = holding().await;
    let gateway = Gateway::with(Options::new().flag("--max-in-flight", 1), &sandbox).await;
    let client = gateway.client().await;
    let list = tokio::spawn({
        let client = client.clone();
        async move { stream(&client, requests("item", 5)).await }
    });
    until_waiting(&gateway, "lane=\"stream\"", 4).await;
    let mut calls = JoinSet::new();
    for request in requests("unary", 36) {
        let client = client.clone();
        calls.spawn(async move { added(&client, request).await });
    }
    until_waiting(&gateway, "lane=\"unary\"", 36).await;
    gate.release();
    soon(calls.join_all()).await;
    soon(list).await.unwrap();
    let order = order(&sandbox);
    let items: Vec<usize> = (0..order.len()).filter(|at| order[*at].starts_with("item")).collect();
    assert_eq!(items, [0, 10, 20, 30, 40], "every tenth permit is the stream's");
}

#[tokio::test]
async fn two_streams_take_turns() {
    let (sandbox, gate) = holding().await;
    let gateway = Gateway::with(Options::new().flag("--max-in-flight", 1), &sandbox).await;
    let client = gateway.client().await;
    let mut lists = JoinSet::new();
    for (prefix, waiting) in [("a", 99), ("b", 199)] {
        let (client, items) = (client.clone(), requests(prefix, 100));
        lists.spawn(async move { stream(&client, items).await });
        until_waiting(&gateway, "lane=\"stream\"", waiting).await;
    }
    gate.release();
    soon(lists.join_all()).await;
    // An item of `a` was on the wire before `b` came; from then on they alternate.
    let order = order(&sandbox);
    assert!(order[0].starts_with('a'));
    for pair in order[1..199].chunks(2) {
        assert_ne!(pair[0].as_bytes()[0], pair[1].as_bytes()[0], "{pair:?}");
    }
}

#[tokio::test]
async fn duplicates_and_bad_input_spend_no_token() {
    let sandbox = surveylab().await;
    let options = Options::new().flag("--rate", "1/h").flag("--burst", 2);
    let gateway = Gateway::with(options, &sandbox).await;
    let client = gateway.client().await;
    assert_eq!(added(&client, request("first")).await, Outcome::Added);

    // One token is left, and it takes an hour until the next.
    async fn spend_nothing(client: &Client) {
        let bad = AddRespondentRequest {
            email: "nobody".into(),
            ..request("bad")
        };
        let other = AddRespondentRequest {
            phone: "1".into(),
            ..request("first")
        };
        let check = AddRespondentRequest {
            validate_only: true,
            ..request("check")
        };
        for _ in 0..20 {
            assert_eq!(added(client, request("first")).await, Outcome::Duplicate);
            assert_eq!(add(client, bad.clone()).await.unwrap_err().reason, "INVALID_REQUEST");
            assert_eq!(add(client, other.clone()).await.unwrap_err().reason, "CRK_REUSED");
            assert_eq!(added(client, check.clone()).await, Outcome::WouldAdd);
        }
        let items = vec![request("first"), bad, other, check];
        let results = stream(client, items).await;
        assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 2);
    }
    spend_nothing(&client).await;
    assert_eq!(added(&client, request("second")).await, Outcome::Added);
    // Without a token just as well.
    spend_nothing(&client).await;
    let error = add_within(&client, request("third"), Duration::from_secs(600))
        .await
        .unwrap_err();
    assert_eq!(
        (error.code, error.reason.as_str(), error.sent()),
        (Code::ResourceExhausted, "WAIT_TOO_LONG", "no")
    );
    let retry = error.retry.unwrap();
    assert!(
        retry > Duration::from_secs(600) && retry <= Duration::from_secs(3600),
        "{retry:?}"
    );
    assert_eq!(sandbox.report().requests, 2);
}

#[tokio::test]
async fn a_restart_brings_no_second_burst() {
    let sandbox = surveylab().await;
    let options = Options::new().flag("--rate", "1/h").flag("--burst", 3);
    let gateway = Gateway::with(options, &sandbox).await;
    let client = gateway.client().await;
    for crk in ["a", "b", "c"] {
        assert_eq!(added(&client, request(crk)).await, Outcome::Added);
    }
    let gateway = gateway.restart().await;
    let client = gateway.client().await;
    let refused = add(&client, request("d")).await.unwrap_err();
    assert_eq!((refused.reason.as_str(), refused.sent()), ("WAIT_TOO_LONG", "no"));
    // What is known needs no token.
    assert_eq!(added(&client, request("a")).await, Outcome::Duplicate);

    // A long rest fills the bucket again. The files' dates say when the last process wrote.
    let mut gateway = gateway;
    gateway.kill();
    let long_ago = SystemTime::now() - Duration::from_secs(2 * 3600 + 60);
    for (path, _) in gateway.files() {
        File::options()
            .write(true)
            .open(path)
            .unwrap()
            .set_modified(long_ago)
            .unwrap();
    }
    let gateway = gateway.restart().await;
    let client = gateway.client().await;
    for crk in ["d", "e"] {
        assert_eq!(added(&client, request(crk)).await, Outcome::Added);
    }
    let refused = add(&client, request("f")).await.unwrap_err();
    assert_eq!((refused.reason.as_str(), refused.sent()), ("WAIT_TOO_LONG", "no"));
}

#[tokio::test]
async fn a_burst_that_is_too_small_for_its_rate_is_told() {
    let sandbox = surveylab().await;
    for (rate, burst, is_too_small) in [
        ("5000/s", 19, true),
        ("5000/s", 20, false),
        ("20/s", 1, true),
        ("20/s", 2, false),
        ("4/s", 1, false),
    ] {
        let options = Options::new().flag("--rate", rate).flag("--burst", burst);
        let gateway = Gateway::with(options, &sandbox).await;
        assert_eq!(
            gateway.log().contains("--burst is too small for the rate"),
            is_too_small,
            "{rate}, {burst}"
        );
    }
}
