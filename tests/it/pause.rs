//! After a 429 the whole gateway pauses, for as long as SurveyLab asks, and goes on more slowly.

use std::time::{Duration, SystemTime};

use surveylab_gateway::{
    proto::Outcome,
    sandbox::{Fault, Gate},
};
use tokio::task::JoinSet;
use tonic::Code;

use crate::support::{
    Error, Gateway, Options, adding,
    call::{add, added, item, stream},
    gateway::surveylab,
    request,
    watch::{add_within, metric, soon, until, until_waiting},
};

const fn s(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn date(at: SystemTime) -> String {
    httpdate::fmt_http_date(at)
}

#[tokio::test]
async fn the_pause_is_as_long_as_asked_between_a_second_and_an_hour() {
    let sandbox = surveylab().await;
    let own = (s(1), Duration::from_millis(1500));
    let hour = (s(3000), s(3600));
    let now = SystemTime::now();
    let cases = [
        // Seconds.
        (Some("1".to_string()), (s(1), s(1))),
        (Some("0".into()), (s(1), s(1))),
        (Some("1000".into()), (s(400), s(1000))),
        (Some("86400".into()), hour),
        (Some("99999999999999999999999999".into()), hour),
        // Dates.
        (Some(date(now + s(1000))), (s(400), s(1000))),
        (Some("Fri, 31 Dec 9999 23:59:59 GMT".into()), hour),
        (Some(date(now - s(1000))), own),
        // What says nothing: the gateway's own backoff.
        (None, own),
        (Some("-5".into()), own),
        (Some("1.5".into()), own),
        (Some("soon".into()), own),
        (Some(String::new()), own),
    ];
    for (header, (least, most)) in cases {
        let mut fault = Fault::status(429);
        if let Some(header) = &header {
            fault = fault.retry_after(header);
        }
        sandbox.set_faults(vec![fault]);
        let gateway = Gateway::with(Options::new().flag("--max-attempts", 1), &sandbox).await;
        let client = gateway.client().await;
        let error = add(&client, request("k")).await.unwrap_err();
        assert_eq!(
            (error.code, error.reason.as_str(), error.sent(), error.http_status()),
            (Code::ResourceExhausted, "SURVEYLAB_RATE_LIMITED", "yes", Some("429"))
        );
        let retry = error.retry.unwrap();
        assert!(retry >= least && retry <= most, "{header:?}: {retry:?}");
        let pause = Duration::from_secs_f64(metric(&gateway, "pause_seconds", "").await);
        assert!(pause <= most, "{header:?}: {pause:?}");
        if least > s(1) {
            assert!(pause >= least, "{header:?}: {pause:?}");
        }
    }
}

fn is_refused(error: &Error) {
    assert_eq!(
        (error.code, error.reason.as_str(), error.sent()),
        (Code::ResourceExhausted, "WAIT_TOO_LONG", "no")
    );
    let retry = error.retry.unwrap();
    assert!(retry > s(3000) && retry <= s(3600), "{retry:?}");
}

#[tokio::test]
async fn who_cannot_wait_for_the_end_of_the_pause_is_told_so_at_once() {
    let sandbox = surveylab().await;
    let gate = Gate::new();
    sandbox.add_fault(Fault::status(429).retry_after("3600").held_by(&gate));
    let gateway = Gateway::with(Options::new().flag("--max-in-flight", 1), &sandbox).await;
    let client = gateway.client().await;

    // These come before the pause: one is on the wire, one waits.
    let early = |crk: &'static str| {
        let client = client.clone();
        tokio::spawn(async move { add_within(&client, request(crk), s(1000)).await.unwrap_err() })
    };
    let on_the_wire = early("on-the-wire");
    soon(sandbox.wait_for_requests(1)).await;
    let waiting = early("waiting");
    until_waiting(&gateway, "lane=\"unary\"", 1).await;
    gate.release();
    let error = soon(on_the_wire).await.unwrap();
    assert_eq!((error.reason.as_str(), error.sent()), ("SURVEYLAB_RATE_LIMITED", "yes"));
    assert!(error.retry.unwrap() > s(3000));
    is_refused(&soon(waiting).await.unwrap());

    // And these during the pause: with a deadline, with the gateway's own bound, and in a stream with a deadline.
    is_refused(&add_within(&client, request("deadline"), s(1000)).await.unwrap_err());
    is_refused(&add(&client, request("max-wait")).await.unwrap_err());
    let mut list = tonic::Request::new(tokio_stream::iter(vec![request("item")]));
    list.set_timeout(s(1000));
    let mut responses = client.clone().stream_add_respondent(list).await.unwrap().into_inner();
    let response = soon(responses.message()).await.unwrap().unwrap();
    is_refused(&item(response).1.unwrap_err());

    assert_eq!(sandbox.report().requests, 1);
    assert!(metric(&gateway, "pause_seconds", "").await > 3000.0);
}

#[tokio::test]
async fn everyone_waits_for_the_end_of_the_pause_and_then_goes_on_at_70_percent_of_the_rate() {
    let sandbox = surveylab().await;
    sandbox.add_fault(Fault::status(429).retry_after("1").times(1));
    let gateway = Gateway::with(Options::new().flag("--rate", "1000/s"), &sandbox).await;
    let client = gateway.client().await;
    assert_eq!(metric(&gateway, "rate_per_second", "learned").await, 1000.0);

    // It is alone on the wire when the 429 comes; whatever is sent later must come after the pause.
    let first = adding(&client, "first");
    until("the rate is cut", async || {
        metric(&gateway, "rate_per_second", "learned").await < 1000.0
    })
    .await;
    let mut calls = JoinSet::new();
    for i in 0..10 {
        let client = client.clone();
        calls.spawn(async move { vec![added(&client, request(&format!("unary{i}"))).await] });
    }
    let items = (0..10).map(|i| request(&format!("item{i}"))).collect();
    let list = client.clone();
    calls.spawn(async move {
        let results = stream(&list, items).await;
        results.into_iter().map(|result| result.unwrap().outcome()).collect()
    });
    assert_eq!(soon(first).await.unwrap(), Outcome::Added);
    assert_eq!(soon(calls.join_all()).await.concat(), [Outcome::Added; 20]);

    let arrivals: Vec<Duration> = sandbox.requests().iter().map(|request| request.at).collect();
    assert_eq!(arrivals.len(), 22, "one was answered 429, and tried again");
    for at in &arrivals[1..] {
        assert!(*at >= arrivals[0] + s(1), "{:?}", *at - arrivals[0]);
    }
    assert_eq!(metric(&gateway, "rate_per_second", "configured").await, 1000.0);
    let learned = metric(&gateway, "rate_per_second", "learned").await;
    // On a machine that took ten seconds for this, it has begun to rise again.
    assert!(
        (learned - 700.0).abs() < 0.1 || arrivals.last().unwrap().as_secs() > 8,
        "{learned}"
    );
}
