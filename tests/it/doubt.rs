//! A request went out and its outcome is unknown: the key is held, until a person or the caller decides. And what
//! `validate_only` says of every state.

use surveylab_gateway::{
    proto::{AddRespondentRequest, InvitationState, Outcome, Resolution},
    sandbox::{Fault, Sandbox},
};
use tokio::task::JoinSet;
use tonic::Code;

use crate::support::{
    Error, Gateway, Options, added,
    call::{COLLECTOR, Client, add, get, last_error, resolve, state, stream},
    gateway::surveylab,
    request,
    watch::list,
};

/// Every way in which an answer can get lost, and SurveyLab's HTTP status where one was seen.
fn losses() -> Vec<(&'static str, Fault, Option<&'static str>)> {
    vec![
        ("502", Fault::status(502), Some("502")),
        ("504", Fault::status(504), Some("504")),
        ("closed", Fault::close_before_answer(), None),
        ("empty", Fault::body(""), Some("200")),
        ("garbage", Fault::body("<html>"), Some("200")),
        ("half", Fault::half_body(), Some("200")),
        ("hangs", Fault::hang(), None),
        ("reset-before", Fault::reset_before_answer(), None),
        ("reset-within", Fault::reset_within_answer(), Some("200")),
    ]
}

fn crks() -> Vec<&'static str> {
    losses().iter().map(|(crk, ..)| *crk).collect()
}

fn assert_held(error: &Error, crk: &str) {
    let is = (error.code, &*error.reason, &*error.domain, error.sent());
    let wanted = (
        Code::FailedPrecondition,
        "OUTCOME_IN_DOUBT",
        "surveylab-gateway",
        "unknown",
    );
    assert_eq!(is, wanted, "{crk}");
    assert_eq!(error.retry, None, "{crk}: waiting does not help");
}

fn resent(crk: &str) -> AddRespondentRequest {
    AddRespondentRequest {
        resend_in_doubt: true,
        ..request(crk)
    }
}

fn other_data(crk: &str) -> AddRespondentRequest {
    AddRespondentRequest {
        email: "anna@example.com".into(),
        ..request(crk)
    }
}

fn validated(request: AddRespondentRequest) -> AddRespondentRequest {
    AddRespondentRequest {
        validate_only: true,
        ..request
    }
}

/// Another try finds the key held, and sends nothing.
async fn assert_all_held(client: &Client, sandbox: &Sandbox) {
    let items = crks().into_iter().map(request).collect();
    let results = stream(client, items).await;
    for (crk, result) in crks().into_iter().zip(results) {
        assert_held(&result.unwrap_err(), crk);
        assert_held(&add(client, request(crk)).await.unwrap_err(), crk);
        assert_eq!(state(client, crk).await, Some(InvitationState::InDoubt), "{crk}");
        assert_eq!(sandbox.requests_of(COLLECTOR, crk), 1, "{crk}");
    }
}

#[tokio::test]
async fn a_lost_answer_holds_the_key_across_a_restart_until_it_is_sent_again() {
    let sandbox = surveylab().await;
    for (crk, fault, _) in losses() {
        sandbox.add_fault(fault.for_crk(crk));
    }
    let gateway = Gateway::with(Options::new().flag("--upstream-timeout", "1s"), &sandbox).await;
    let client = gateway.client().await;
    assert_eq!(added(&client, request("added")).await, Outcome::Added);

    let mut calls = JoinSet::new();
    for (crk, _, http_status) in losses() {
        let client = client.clone();
        calls.spawn(async move {
            let error = add(&client, request(crk)).await.unwrap_err();
            assert_held(&error, crk);
            assert_eq!(error.http_status(), http_status, "{crk}");
            let recorded = last_error(&client, crk).await.unwrap();
            assert_held(&recorded, crk);
            assert_eq!(recorded.http_status(), http_status, "{crk}");
        });
    }
    calls.join_all().await;
    sandbox.clear_faults();
    assert_all_held(&client, &sandbox).await;

    let gateway = gateway
        .restart_with(|options| options.flag("--upstream-timeout", "30s"))
        .await;
    let client = gateway.client().await;
    assert_all_held(&client, &sandbox).await;
    assert_eq!(list(&client, InvitationState::InDoubt).await, crks());
    assert_eq!(list(&client, InvitationState::Added).await, ["added"]);

    for crk in crks() {
        assert_eq!(
            sandbox.requests_of(COLLECTOR, crk),
            1,
            "{crk}: nothing is sent by itself"
        );
        let answer = add(&client, resent(crk)).await.unwrap();
        assert_eq!((answer.outcome(), answer.attempts), (Outcome::Added, 2), "{crk}");
        assert_eq!(added(&client, resent(crk)).await, Outcome::Duplicate, "{crk}");
        assert_eq!(sandbox.requests_of(COLLECTOR, crk), 2, "{crk}");
    }
    assert!(list(&client, InvitationState::InDoubt).await.is_empty());
}

/// A gateway with one key in doubt.
async fn doubtful(sandbox: &Sandbox, crk: &str) -> Gateway {
    sandbox.set_faults(vec![Fault::close_before_answer().for_crk(crk).times(1)]);
    let gateway = Gateway::start(sandbox).await;
    let client = gateway.client().await;
    assert_held(&add(&client, request(crk)).await.unwrap_err(), crk);
    gateway
}

#[tokio::test]
async fn a_doubt_resolved_as_added_is_a_duplicate_without_a_request() {
    let sandbox = surveylab().await;
    let gateway = doubtful(&sandbox, "k").await;
    let client = gateway.client().await;
    let resolved = resolve(&client, "k", Resolution::Added).await.unwrap();
    assert_eq!((resolved.state(), resolved.attempts), (InvitationState::Added, 1));
    assert!(resolved.added_at.is_some());
    assert_eq!(resolved.last_error, None);
    assert_eq!(get(&client, "k").await, Some(resolved));

    let gateway = gateway.restart().await;
    let client = gateway.client().await;
    assert_eq!(added(&client, request("k")).await, Outcome::Duplicate);
    assert_eq!(added(&client, resent("k")).await, Outcome::Duplicate);
    assert_eq!(add(&client, other_data("k")).await.unwrap_err().reason, "CRK_REUSED");
    assert_eq!(sandbox.report().requests, 1);
}

#[tokio::test]
async fn a_doubt_resolved_as_not_added_frees_the_key() {
    let sandbox = surveylab().await;
    let gateway = doubtful(&sandbox, "k").await;
    let client = gateway.client().await;
    let resolved = resolve(&client, "k", Resolution::NotAdded).await.unwrap();
    assert_eq!(resolved.state(), InvitationState::Failed);
    assert_eq!(resolved.added_at, None);
    let last_error = resolved.last_error.unwrap();
    assert!(
        last_error.message.ends_with("the doubt has ended since"),
        "{last_error:?}"
    );
    assert_eq!(sandbox.report().requests, 1);

    let gateway = gateway.restart().await;
    let client = gateway.client().await;
    let answer = add(&client, request("k")).await.unwrap();
    assert_eq!((answer.outcome(), answer.attempts), (Outcome::Added, 2));
    assert_eq!(sandbox.report().requests, 2);
}

#[tokio::test]
async fn a_key_that_was_freed_takes_other_data() {
    let sandbox = surveylab().await;
    let gateway = doubtful(&sandbox, "k").await;
    let client = gateway.client().await;
    assert_eq!(add(&client, other_data("k")).await.unwrap_err().reason, "CRK_REUSED");
    resolve(&client, "k", Resolution::NotAdded).await.unwrap();
    assert_eq!(added(&client, other_data("k")).await, Outcome::Added);
    assert_eq!(add(&client, request("k")).await.unwrap_err().reason, "CRK_REUSED");
    let last = sandbox.requests().pop().unwrap();
    assert_eq!(last.parameter("email"), Some("anna@example.com"));
}

#[tokio::test]
async fn other_data_are_not_sent_again_in_place_of_those_in_doubt() {
    let sandbox = surveylab().await;
    let gateway = doubtful(&sandbox, "k").await;
    let client = gateway.client().await;
    let other = AddRespondentRequest {
        resend_in_doubt: true,
        ..other_data("k")
    };
    assert_eq!(add(&client, other).await.unwrap_err().reason, "CRK_REUSED");
    assert_eq!(sandbox.report().requests, 1);
}

#[tokio::test]
async fn a_resend_that_is_refused_leaves_the_doubt() {
    let sandbox = surveylab().await;
    let gateway = doubtful(&sandbox, "k").await;
    let client = gateway.client().await;
    // That the second request was refused does not tell whether the first one had been.
    sandbox.set_faults(vec![Fault::status(404)]);
    let error = add(&client, resent("k")).await.unwrap_err();
    assert_eq!((error.code, &*error.reason), (Code::NotFound, "SURVEYLAB_NOT_FOUND"));
    assert_eq!(
        error.metadata.get("state").map(String::as_str),
        Some("IN_DOUBT"),
        "{error:?}"
    );
    sandbox.clear_faults();
    assert_held(&add(&client, request("k")).await.unwrap_err(), "k");
    assert_eq!(sandbox.report().requests, 2);
    assert_eq!(added(&client, resent("k")).await, Outcome::Added);
}

#[tokio::test]
async fn a_wish_to_resend_changes_nothing_where_there_is_no_doubt() {
    let sandbox = surveylab().await;
    let gateway = Gateway::start(&sandbox).await;
    let client = gateway.client().await;
    assert_eq!(added(&client, resent("k")).await, Outcome::Added);
    assert_eq!(added(&client, resent("k")).await, Outcome::Duplicate);
    assert_eq!(sandbox.report().requests, 1);
}

#[tokio::test]
async fn validation_tells_what_a_call_would_and_does_nothing() {
    let sandbox = surveylab().await;
    let gateway = doubtful(&sandbox, "doubt").await;
    let client = gateway.client().await;
    sandbox.set_faults(vec![Fault::status(404).for_crk("failed")]);
    add(&client, request("failed")).await.unwrap_err();
    let first = add(&client, request("added")).await.unwrap();
    let before = sandbox.report().requests;
    let known = list(&client, InvitationState::Unspecified).await;

    let would_add = Ok(Outcome::WouldAdd);
    let duplicate = Ok(Outcome::Duplicate);
    let reused = Err("CRK_REUSED".to_string());
    let doubt = Err("OUTCOME_IN_DOUBT".to_string());
    let cases = [
        (request("new"), would_add.clone()),
        (resent("new"), would_add.clone()),
        (request("failed"), would_add.clone()),
        (other_data("failed"), would_add.clone()),
        (request("added"), duplicate.clone()),
        (resent("added"), duplicate),
        (other_data("added"), reused.clone()),
        (request("doubt"), doubt),
        (resent("doubt"), would_add),
        (other_data("doubt"), reused),
    ];
    let items = cases.iter().map(|(request, _)| validated(request.clone())).collect();
    let results = stream(&client, items).await;
    for ((request, wanted), in_stream) in cases.into_iter().zip(results) {
        let answer = add(&client, validated(request.clone())).await;
        assert_eq!(answer, in_stream);
        let said = answer.map(|answer| answer.outcome()).map_err(|error| error.reason);
        assert_eq!(said, wanted, "{}", request.crk);
    }
    let again = add(&client, validated(request("added"))).await.unwrap();
    assert_eq!((again.added_at, again.attempts), (first.added_at, 1));
    assert_eq!(again.notification, first.notification);

    assert_eq!(sandbox.report().requests, before);
    assert_eq!(list(&client, InvitationState::Unspecified).await, known);
}
