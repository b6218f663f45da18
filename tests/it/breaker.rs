//! When SurveyLab refuses every request, calls fail without one until that is mended.

use std::time::Duration;

use surveylab_gateway::{
    proto::{AddRespondentRequest, Outcome},
    sandbox::{Fault, Sandbox},
};
use tonic::Code;

use crate::{
    status::status,
    support::{
        Error, Gateway, Options, added,
        call::{COLLECTOR, Client, add, state, stream},
        gateway::{TOKEN, surveylab},
        request,
        watch::{metric, until},
    },
    token::{NEXT_TOKEN, TokenFile, accept, until_read_again},
};

/// One after the other until one is turned away: how many were sent, and what the last one was told.
async fn until_turned_away(client: &Client, prefix: &str) -> (u32, Error) {
    for sent in 0..100 {
        let error = add(client, request(&format!("{prefix}-{sent}"))).await.unwrap_err();
        if error.sent() == "no" {
            return (sent, error);
        }
    }
    panic!("all were sent");
}

fn assert_is_turned_away(error: &Error, code: Code, reason: &str) {
    assert_eq!((error.code, &*error.reason), (code, reason), "{error:?}");
    assert_eq!((error.sent(), &*error.domain), ("no", "surveylab.com"));
    assert_eq!(error.metadata.get("breaker").map(String::as_str), Some("open"));
    assert_eq!(error.http_status(), None);
    assert!(
        error.retry.is_some_and(|after| after <= Duration::from_secs(60)),
        "{error:?}"
    );
    assert!(
        error.message.contains("Nothing was sent for this call: the last "),
        "{error:?}"
    );
}

/// A key that was tried before, so that a look at the ledger does not count for new keys.
async fn until_added(client: &Client, crk: &str) {
    until("SurveyLab accepts requests again", async || {
        add(client, request(crk)).await.is_ok()
    })
    .await;
}

#[tokio::test]
async fn after_twenty_refusals_calls_fail_without_a_request_until_one_is_taken() {
    let sandbox = surveylab().await;
    let gateway = Gateway::start(&sandbox).await;
    let client = gateway.client().await;
    assert_eq!(added(&client, request("before")).await, Outcome::Added);
    assert_eq!(metric(&gateway, "breaker_open", "").await, 0.0);

    sandbox.set_faults(vec![Fault::status(401)]);
    let (sent, error) = until_turned_away(&client, "k").await;
    assert_eq!(sent, 20);
    assert_is_turned_away(&error, Code::Unauthenticated, "SURVEYLAB_UNAUTHORIZED");
    assert!(
        error.message.contains("the last 20 answers were like that"),
        "{error:?}"
    );
    assert_eq!(state(&client, "k-20").await, None);
    assert_eq!(metric(&gateway, "breaker_open", "").await, 1.0);
    let breaker = status(&client).await.breaker.unwrap();
    assert_eq!((&*breaker.reason, breaker.refusals), ("SURVEYLAB_UNAUTHORIZED", 20));
    assert_eq!(breaker.collector_id, "");
    assert!(breaker.since.is_some());
    assert!(Duration::try_from(breaker.next_probe.unwrap()).unwrap() <= Duration::from_secs(60));

    // What SurveyLab need not be asked for is answered as ever.
    assert_eq!(added(&client, request("before")).await, Outcome::Duplicate);
    let asks = AddRespondentRequest {
        validate_only: true,
        ..request("k-20")
    };
    assert_eq!(added(&client, asks).await, Outcome::WouldAdd);

    // Probes go out, and how many depends on how long this takes.
    let items = (0..500).map(|n| request(&format!("item-{n}"))).collect();
    let items = stream(&client, items).await;
    let turned_away = items.iter().map(|item| item.as_ref().unwrap_err());
    let turned_away: Vec<_> = turned_away.filter(|error| error.sent() == "no").collect();
    assert!(turned_away.len() > 400, "{}", turned_away.len());
    for error in &turned_away {
        assert_is_turned_away(error, Code::Unauthenticated, "SURVEYLAB_UNAUTHORIZED");
    }
    let rejections = metric(
        &gateway,
        "breaker_rejections_total",
        "reason=\"SURVEYLAB_UNAUTHORIZED\"",
    )
    .await;
    assert_eq!(rejections, 1.0 + turned_away.len() as f64);

    sandbox.clear_faults();
    until_added(&client, "k-20").await;
    assert_eq!(metric(&gateway, "breaker_open", "").await, 0.0);
    assert_eq!(status(&client).await.breaker, None);
    assert_eq!(added(&client, request("after")).await, Outcome::Added);
    for line in [
        "SurveyLab refuses every request: calls fail",
        "SurveyLab accepts requests again",
    ] {
        assert_eq!(gateway.log().matches(line).count(), 1, "{line}");
    }
}

/// A gateway whose token SurveyLab does not take any more: the sandbox answers 400 then.
async fn with_an_old_token(file: &TokenFile) -> (Sandbox, Gateway) {
    let sandbox = surveylab().await;
    accept(&sandbox, &[NEXT_TOKEN]);
    let gateway = Gateway::with(file.options(Options::new()), &sandbox).await;
    (sandbox, gateway)
}

#[tokio::test]
async fn bad_requests_for_one_collector_turn_away_that_one_and_with_a_second_all() {
    let file = TokenFile::new();
    let (sandbox, gateway) = with_an_old_token(&file).await;
    let client = gateway.client().await;
    let other = |crk: &str| AddRespondentRequest {
        collector_id: "another".into(),
        ..request(crk)
    };
    let (sent, error) = until_turned_away(&client, "k").await;
    assert_eq!(sent, 20);
    assert_is_turned_away(&error, Code::InvalidArgument, "SURVEYLAB_BAD_REQUEST");
    assert_eq!(status(&client).await.breaker.unwrap().collector_id, COLLECTOR);
    let error = add(&client, other("k")).await.unwrap_err();
    assert_eq!((error.sent(), &*error.reason), ("yes", "SURVEYLAB_BAD_REQUEST"));
    let error = add(&client, other("k")).await.unwrap_err();
    assert_is_turned_away(&error, Code::InvalidArgument, "SURVEYLAB_BAD_REQUEST");

    // The usual repair.
    file.replace(NEXT_TOKEN);
    until_read_again(&gateway, 1).await;
    let requests = sandbox.report().requests;
    assert_eq!(added(&client, other("k")).await, Outcome::Added);
    assert_eq!(added(&client, request("k-20")).await, Outcome::Added);
    assert_eq!(sandbox.report().requests, requests + 2);
    assert!(!gateway.log().contains(TOKEN) && !gateway.log().contains(NEXT_TOKEN));
}

#[tokio::test]
async fn one_list_with_bad_data_stops_nobody_else() {
    let sandbox = surveylab().await;
    sandbox.add_fault(Fault::status(400).for_crk_prefix("bad-".to_string()));
    let gateway = Gateway::start(&sandbox).await;
    let client = gateway.client().await;
    until_turned_away(&client, "bad").await;
    let other = AddRespondentRequest {
        collector_id: "another".into(),
        ..request("k")
    };
    assert_eq!(added(&client, other).await, Outcome::Added);
    // And by that the token is known to be good.
    assert_eq!(added(&client, request("k")).await, Outcome::Added);
}

#[tokio::test]
async fn it_can_be_switched_off_and_set() {
    let sandbox = surveylab().await;
    sandbox.add_fault(Fault::status(401));
    let off = Gateway::with(Options::new().flag("--breaker-after", 0), &sandbox).await;
    let client = off.client().await;
    for n in 0..50 {
        let error = add(&client, request(&n.to_string())).await.unwrap_err();
        assert_eq!(error.sent(), "yes");
    }
    let three = Gateway::with(Options::new().env("GATEWAY_BREAKER_AFTER", 3), &sandbox).await;
    assert_eq!(until_turned_away(&three.client().await, "k").await.0, 3);
}
