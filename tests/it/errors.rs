//! Every way to fail, as callers see it: code, reason, domain, what may have been sent, when to try again, and how the
//! key stands afterwards. A unary call and a stream's item are told the same.

use std::time::Duration;

use surveylab_gateway::{
    proto::{
        AddRespondentRequest, GetInvitationRequest, InvitationState, ListInvitationsRequest, Outcome, Resolution,
        ResolveInvitationRequest,
    },
    sandbox::{Fault, Sandbox},
};
use tokio::{net::TcpListener, sync::mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status};

use crate::support::{
    Error, Gateway, Options, added, adding,
    call::{COLLECTOR, Client, add, item, last_error, resolve, state, stream},
    deadline::PatientClient,
    gateway::{surveylab, surveylab_with},
    holding, request, status_error,
};

const SURVEYLAB: &str = "surveylab.com";
const GATEWAY: &str = "surveylab-gateway";

/// What a caller is told of a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Told {
    code: Code,
    reason: &'static str,
    domain: &'static str,
    sent: &'static str,
    http_status: Option<&'static str>,
    retry: Retry,
}

/// Does the answer say when to try again?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Retry {
    Later,
    Unsaid,
}

/// What one answer of SurveyLab comes to, with two attempts at most.
struct Row {
    name: &'static str,
    fault: Fault,
    told: Told,
    state: InvitationState,
    requests: u32,
}

fn told(code: Code, reason: &'static str, sent: &'static str) -> Told {
    Told {
        code,
        reason,
        domain: GATEWAY,
        sent,
        http_status: None,
        retry: Retry::Unsaid,
    }
}

fn surveylab_said(code: Code, reason: &'static str, http_status: &'static str) -> Told {
    Told {
        domain: SURVEYLAB,
        http_status: Some(http_status),
        ..told(code, reason, "yes")
    }
}

fn later(told: Told) -> Told {
    Told {
        retry: Retry::Later,
        ..told
    }
}

fn refused(name: &'static str, fault: Fault, code: Code, reason: &'static str, http_status: &'static str) -> Row {
    Row {
        name,
        fault,
        told: surveylab_said(code, reason, http_status),
        state: InvitationState::Failed,
        requests: 1,
    }
}

fn not_processed(name: &'static str, fault: Fault, reason: &'static str, http_status: &'static str) -> Row {
    Row {
        name,
        fault,
        told: later(surveylab_said(Code::Unavailable, reason, http_status)),
        state: InvitationState::Failed,
        requests: 2,
    }
}

fn in_doubt(name: &'static str, fault: Fault, http_status: Option<&'static str>) -> Row {
    Row {
        name,
        fault,
        told: Told {
            http_status,
            ..told(Code::FailedPrecondition, "OUTCOME_IN_DOUBT", "unknown")
        },
        state: InvitationState::InDoubt,
        requests: 1,
    }
}

fn rows() -> Vec<Row> {
    let action_failed = |name, body: &'static str| {
        let reason = "SURVEYLAB_ACTION_FAILED";
        refused(name, Fault::body(body), Code::FailedPrecondition, reason, "200")
    };
    let status = |name, status, code, reason, text| refused(name, Fault::status(status), code, reason, text);
    let unexpected = "SURVEYLAB_UNEXPECTED_STATUS";
    vec![
        action_failed("false", r#"{"status":false,"notification":"Action failed"}"#),
        action_failed("false-bare", r#"{"status":false}"#),
        action_failed("false-typographic", "{„status”:false,„notification”:„Action failed”}"),
        action_failed("false-bom", "\u{feff} \r\n{\"status\": false}\n"),
        action_failed(
            "false-yet-processed",
            r#"{"status":false,"notification":"Action processed correctly"}"#,
        ),
        status("400", 400, Code::InvalidArgument, "SURVEYLAB_BAD_REQUEST", "400"),
        status("401", 401, Code::Unauthenticated, "SURVEYLAB_UNAUTHORIZED", "401"),
        status("403", 403, Code::PermissionDenied, "SURVEYLAB_FORBIDDEN", "403"),
        status("404", 404, Code::NotFound, "SURVEYLAB_NOT_FOUND", "404"),
        status("405", 405, Code::Internal, unexpected, "405"),
        status("418", 418, Code::Internal, unexpected, "418"),
        status("304", 304, Code::Internal, unexpected, "304"),
        not_processed("500", Fault::status(500), "SURVEYLAB_INTERNAL_ERROR", "500"),
        not_processed("503", Fault::status(503), "SURVEYLAB_UNAVAILABLE", "503"),
        in_doubt("502", Fault::status(502), Some("502")),
        in_doubt("504", Fault::status(504), Some("504")),
        in_doubt("520", Fault::status(520), Some("520")),
        in_doubt("garbled", Fault::body("<html>Maintenance</html>"), Some("200")),
        in_doubt("status-as-text", Fault::body(r#"{"status":"true"}"#), Some("200")),
        in_doubt("empty", Fault::body(""), Some("200")),
        in_doubt("201-empty", Fault::status(201), Some("201")),
        in_doubt("half", Fault::half_body(), Some("200")),
        in_doubt("reset-within", Fault::reset_within_answer(), Some("200")),
        in_doubt("reset", Fault::reset_before_answer(), None),
        in_doubt("closed", Fault::close_before_answer(), None),
    ]
}

fn assert_told(error: &Error, told: Told, name: &str) {
    let is = (
        error.code,
        &*error.reason,
        &*error.domain,
        error.sent(),
        error.http_status(),
    );
    let wanted = (told.code, told.reason, told.domain, told.sent, told.http_status);
    assert_eq!(is, wanted, "{name}");
    match told.retry {
        Retry::Later => assert!(error.retry.is_some_and(|after| !after.is_zero()), "{name}: {error:?}"),
        Retry::Unsaid => assert_eq!(error.retry, None, "{name}"),
    }
    assert!(!error.message.is_empty(), "{name}");
}

/// How the key stands after a failure, and what the ledger says of it.
async fn assert_recorded(client: &Client, sandbox: &Sandbox, crk: &str, row: &Row) {
    assert_eq!(sandbox.requests_of(COLLECTOR, crk), row.requests, "{crk}");
    assert_eq!(state(client, crk).await, Some(row.state), "{crk}");
    let last = last_error(client, crk).await.unwrap();
    let told = Told {
        // When to try again is a thing of the moment.
        retry: Retry::Unsaid,
        ..row.told
    };
    assert_told(&last, told, crk);
}

fn two_attempts() -> Options {
    Options::new().flag("--max-attempts", 2)
}

#[tokio::test]
async fn every_answer_of_surveylab_has_its_own_error() {
    let sandbox = surveylab().await;
    for row in rows() {
        sandbox.add_fault(row.fault.clone().for_crk(format!("unary-{}", row.name)));
        sandbox.add_fault(row.fault.clone().for_crk(format!("stream-{}", row.name)));
    }
    let gateway = Gateway::with(two_attempts(), &sandbox).await;
    let client = gateway.client().await;

    let items = rows()
        .iter()
        .map(|row| request(&format!("stream-{}", row.name)))
        .collect();
    let results = stream(&client, items).await;
    for (row, result) in rows().iter().zip(results) {
        let unary = format!("unary-{}", row.name);
        let error = add(&client, request(&unary)).await.unwrap_err();
        assert_told(&error, row.told, row.name);
        assert_recorded(&client, &sandbox, &unary, row).await;
        let in_stream = result.unwrap_err();
        assert_told(&in_stream, row.told, row.name);
        assert_eq!(in_stream.message, error.message, "{}", row.name);
        assert_recorded(&client, &sandbox, &format!("stream-{}", row.name), row).await;
    }

    // Whatever failed is free again, and whatever is in doubt is held.
    sandbox.clear_faults();
    for row in rows() {
        let again = add(&client, request(&format!("unary-{}", row.name))).await;
        let outcome = again.map(|added| added.outcome()).map_err(|error| error.reason);
        match row.state {
            InvitationState::Failed => assert_eq!(outcome, Ok(Outcome::Added), "{}", row.name),
            _ => assert_eq!(outcome, Err("OUTCOME_IN_DOUBT".into()), "{}", row.name),
        }
    }
}

#[tokio::test]
async fn a_refusal_carries_surveylabs_own_words() {
    let sandbox = surveylab().await;
    let body = r#"{"status":false,"notification":"The collector is closed"}"#;
    sandbox.add_fault(Fault::body(body));
    let gateway = Gateway::start(&sandbox).await;
    let error = add(&gateway.client().await, request("k")).await.unwrap_err();
    assert!(error.message.contains("The collector is closed"), "{error:?}");
}

#[tokio::test]
async fn a_success_is_read_from_the_status_whatever_else_the_body_says() {
    let sandbox = surveylab().await;
    let bodies = [
        r#"{"status":true,"notification":"Action failed"}"#,
        "\u{feff}{\"notification\":null,\"status\":true,\"more\":[1]}\r\n",
        "{„status”:true,„notification”:„Action processed correctly”}",
        "{“status”:true}",
    ];
    for (index, body) in bodies.iter().enumerate() {
        sandbox.add_fault(Fault::body(*body).for_crk(format!("k{index}")));
    }
    let gateway = Gateway::start(&sandbox).await;
    let client = gateway.client().await;
    for (index, body) in bodies.iter().enumerate() {
        assert_eq!(
            added(&client, request(&format!("k{index}"))).await,
            Outcome::Added,
            "{body}"
        );
    }
}

#[tokio::test]
async fn a_500_is_in_doubt_where_the_gateway_is_told_to_hold() {
    let sandbox = surveylab().await;
    sandbox.add_fault(Fault::status(500));
    let options = two_attempts().flag("--on-server-error", "hold");
    let gateway = Gateway::with(options, &sandbox).await;
    let client = gateway.client().await;
    let row = in_doubt("500", Fault::status(500), Some("500"));
    let error = add(&client, request("k")).await.unwrap_err();
    assert_told(&error, row.told, row.name);
    assert_recorded(&client, &sandbox, "k", &row).await;
}

#[tokio::test]
async fn a_redirect_is_never_followed() {
    let sandbox = surveylab().await;
    let elsewhere = surveylab().await;
    sandbox.add_fault(Fault::redirect(&elsewhere.url()));
    let gateway = Gateway::with(two_attempts(), &sandbox).await;
    let client = gateway.client().await;
    let error = add(&client, request("k")).await.unwrap_err();
    let told = surveylab_said(Code::Internal, "SURVEYLAB_UNEXPECTED_STATUS", "302");
    assert_told(&error, told, "302");
    assert_eq!((sandbox.report().requests, elsewhere.report().requests), (1, 0));
    assert_eq!(state(&client, "k").await, Some(InvitationState::Failed));
}

#[tokio::test]
async fn a_passing_failure_is_tried_again_until_it_passes() {
    let sandbox = surveylab().await;
    sandbox.add_fault(Fault::status(503).for_crk("503").times(2));
    sandbox.add_fault(Fault::status(500).for_crk("500").times(2));
    let gateway = Gateway::with(Options::new().flag("--max-attempts", 3), &sandbox).await;
    let client = gateway.client().await;
    for crk in ["503", "500"] {
        let answer = add(&client, request(crk)).await.unwrap();
        assert_eq!((answer.outcome(), answer.attempts), (Outcome::Added, 3));
        assert_eq!(sandbox.effects_of(COLLECTOR, crk), 1);
    }
}

#[tokio::test]
async fn a_429_pauses_everyone_and_is_said_at_once_where_the_pause_is_too_long() {
    let sandbox = surveylab().await;
    sandbox.add_fault(Fault::status(429).retry_after("60").times(1));
    let gateway = Gateway::with(two_attempts().flag("--max-wait", "5s"), &sandbox).await;
    let client = gateway.client().await;

    let error = add(&client, request("first")).await.unwrap_err();
    let limited = later(surveylab_said(Code::ResourceExhausted, "SURVEYLAB_RATE_LIMITED", "429"));
    assert_told(&error, limited, "429");
    let pause = error.retry.unwrap();
    assert!(
        pause > Duration::from_secs(5) && pause <= Duration::from_secs(61),
        "{pause:?}"
    );
    assert_eq!(state(&client, "first").await, Some(InvitationState::Failed));

    let error = add(&client, request("second")).await.unwrap_err();
    assert_told(
        &error,
        later(told(Code::ResourceExhausted, "WAIT_TOO_LONG", "no")),
        "paused",
    );
    assert_eq!(state(&client, "second").await, None);
    assert_eq!(sandbox.report().requests, 1);
}

#[tokio::test]
async fn a_429_is_tried_again_when_its_pause_is_over() {
    let sandbox = surveylab().await;
    sandbox.add_fault(Fault::status(429).retry_after("1").for_crk("passes").times(1));
    sandbox.add_fault(Fault::status(429).retry_after("1").for_crk("stays"));
    let gateway = Gateway::with(two_attempts(), &sandbox).await;
    let client = gateway.client().await;
    let answer = add(&client, request("passes")).await.unwrap();
    assert_eq!((answer.outcome(), answer.attempts), (Outcome::Added, 2));

    let result = stream(&client, vec![request("stays")]).await.pop().unwrap();
    let limited = later(surveylab_said(Code::ResourceExhausted, "SURVEYLAB_RATE_LIMITED", "429"));
    assert_told(&result.unwrap_err(), limited, "429");
    assert_eq!(sandbox.requests_of(COLLECTOR, "stays"), 2);
}

#[tokio::test]
async fn a_503_that_asks_for_more_time_than_there_is_fails_at_once() {
    let sandbox = surveylab().await;
    sandbox.add_fault(Fault::status(503).retry_after("3000"));
    let gateway = Gateway::with(two_attempts().flag("--max-wait", "5s"), &sandbox).await;
    let error = add(&gateway.client().await, request("k")).await.unwrap_err();
    assert_told(
        &error,
        later(surveylab_said(Code::Unavailable, "SURVEYLAB_UNAVAILABLE", "503")),
        "503",
    );
    assert_eq!(error.retry, Some(Duration::from_secs(3000)));
    assert_eq!(sandbox.report().requests, 1);
}

/// A port that refuses connections: it was free a moment ago.
async fn closed_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    listener.local_addr().unwrap().port()
}

#[tokio::test]
async fn surveylab_out_of_reach_is_unavailable_and_nothing_was_sent() {
    let sandbox = surveylab().await;
    let tls_to_plain_http = sandbox.url().replace("http://", "https://");
    let urls = [
        format!("http://127.0.0.1:{}/api.php", closed_port().await),
        "http://surveylab.invalid/api.php".into(),
        tls_to_plain_http,
    ];
    let unreachable = later(told(Code::Unavailable, "SURVEYLAB_UNREACHABLE", "no"));
    for url in urls {
        // A resolver that never answers is out of reach, too.
        let options = two_attempts().flag("--upstream-timeout", "4s");
        let gateway = Gateway::in_front_of(&url, options).await;
        let client = gateway.client().await;
        let error = add(&client, request("unary")).await.unwrap_err();
        assert_told(&error, unreachable, &url);
        let result = stream(&client, vec![request("stream")]).await.pop().unwrap();
        assert_told(&result.unwrap_err(), unreachable, &url);
        for crk in ["unary", "stream"] {
            assert_eq!(state(&client, crk).await, Some(InvitationState::Failed), "{url}");
            let recorded = Told {
                retry: Retry::Unsaid,
                ..unreachable
            };
            assert_told(&last_error(&client, crk).await.unwrap(), recorded, &url);
        }
    }
    assert_eq!(sandbox.report().requests, 0);
}

#[tokio::test]
async fn a_key_under_way_is_not_to_be_had_with_other_data() {
    let (sandbox, gate) = holding().await;
    let gateway = Gateway::start(&sandbox).await;
    let client = gateway.client().await;
    let first = adding(&client, "k");
    sandbox.wait_for_requests(1).await;

    let other = AddRespondentRequest {
        first_name: "Anna".into(),
        ..request("k")
    };
    let reused = told(Code::AlreadyExists, "CRK_REUSED", "no");
    let error = add(&client, other.clone()).await.unwrap_err();
    assert_told(&error, reused, "under way");
    gate.release();
    assert_eq!(first.await.unwrap(), Outcome::Added);
    let result = stream(&client, vec![other]).await.pop().unwrap();
    assert_told(&result.unwrap_err(), reused, "recorded");
    assert_eq!(sandbox.report().requests, 1);
}

/// A gateway whose one token of an hour is spent.
async fn exhausted(sandbox: &Sandbox, options: Options) -> Gateway {
    let options = options.flag("--rate", "1/h").flag("--burst", 1);
    let gateway = Gateway::with(options, sandbox).await;
    let client = gateway.client().await;
    assert_eq!(added(&client, request("first")).await, Outcome::Added);
    gateway
}

#[tokio::test]
async fn a_wait_that_would_be_too_long_is_refused_at_once() {
    let sandbox = surveylab().await;
    let gateway = exhausted(&sandbox, Options::new().flag("--max-wait", "10m")).await;
    let client = gateway.client().await;
    let too_long = later(told(Code::ResourceExhausted, "WAIT_TOO_LONG", "no"));
    let within = Duration::from_secs(600);

    // Were they to wait first, this test would take half an hour.
    let error = add(&client, request("max-wait")).await.unwrap_err();
    assert_told(&error, too_long, "max-wait");
    assert!(error.retry > Some(within), "{error:?}");
    let error = PatientClient::new(&gateway)
        .add(request("deadline"), within)
        .await
        .unwrap_err();
    assert_told(&error, too_long, "deadline");
    let mut items = tonic::Request::new(tokio_stream::once(request("stream")));
    items.set_timeout(within);
    let mut results = client.clone().stream_add_respondent(items).await.unwrap().into_inner();
    let (_, result) = item(results.message().await.unwrap().unwrap());
    assert_told(&result.unwrap_err(), too_long, "stream");

    for crk in ["max-wait", "deadline", "stream"] {
        assert_eq!(state(&client, crk).await, None, "{crk}");
    }
    assert_eq!(sandbox.report().requests, 1);
}

#[tokio::test]
async fn a_deadline_that_passes_while_waiting_says_that_nothing_was_sent() {
    let (sandbox, gate) = holding().await;
    let gateway = Gateway::with(Options::new().flag("--max-in-flight", 1), &sandbox).await;
    let client = gateway.client().await;
    let first = adding(&client, "first");
    sandbox.wait_for_requests(1).await;

    let within = Duration::from_millis(100);
    let error = PatientClient::new(&gateway)
        .add(request("second"), within)
        .await
        .unwrap_err();
    assert_told(
        &error,
        later(told(Code::DeadlineExceeded, "WAIT_TOO_LONG", "no")),
        "waiting",
    );
    assert_eq!(state(&client, "second").await, None);
    gate.release();
    assert_eq!(first.await.unwrap(), Outcome::Added);
    assert_eq!(sandbox.report().requests, 1);
}

#[tokio::test]
async fn a_deadline_that_passes_after_the_send_says_so() {
    let (sandbox, gate) = holding().await;
    let gateway = Gateway::start(&sandbox).await;
    let client = gateway.client().await;
    let first = adding(&client, "k");
    sandbox.wait_for_requests(1).await;

    let within = Duration::from_millis(100);
    let error = PatientClient::new(&gateway)
        .add(request("k"), within)
        .await
        .unwrap_err();
    assert_told(
        &error,
        told(Code::DeadlineExceeded, "DEADLINE_AFTER_SEND", "unknown"),
        "on the wire",
    );
    assert_eq!(state(&client, "k").await, Some(InvitationState::Pending));
    gate.release();
    assert_eq!(first.await.unwrap(), Outcome::Added);
    assert_eq!(added(&client, request("k")).await, Outcome::Duplicate);
    assert_eq!(sandbox.report().requests, 1);
}

#[tokio::test]
async fn a_full_queue_refuses_more() {
    let sandbox = surveylab().await;
    let options = Options::new().flag("--max-queue", 1).flag("--max-wait", "2h");
    let gateway = exhausted(&sandbox, options).await;
    let client = gateway.client().await;
    let full = later(told(Code::ResourceExhausted, "QUEUE_FULL", "no"));

    // One of the three waits for an hour to pass. Which one is not promised.
    let (items, list) = mpsc::channel(3);
    for crk in ["a", "b", "c"] {
        items.send(request(crk)).await.unwrap();
    }
    let list = ReceiverStream::new(list);
    let mut results = client.clone().stream_add_respondent(list).await.unwrap().into_inner();
    for _ in 0..2 {
        let (_, result) = item(results.message().await.unwrap().unwrap());
        assert_told(&result.unwrap_err(), full, "stream");
    }
    let error = add(&client, request("unary")).await.unwrap_err();
    assert_told(&error, full, "unary");
    assert_eq!(sandbox.report().requests, 1);
}

#[tokio::test]
async fn a_wrong_token_or_collector_is_told_as_surveylab_tells_it() {
    let sandbox = surveylab_with(|config| {
        config.collectors = vec!["another".into()];
    })
    .await;
    let gateway = Gateway::start(&sandbox).await;
    let error = add(&gateway.client().await, request("k")).await.unwrap_err();
    assert_told(
        &error,
        surveylab_said(Code::NotFound, "SURVEYLAB_NOT_FOUND", "404"),
        "collector",
    );

    let sandbox = surveylab_with(|config| config.api_token = Some("another".to_string().into())).await;
    let gateway = Gateway::start(&sandbox).await;
    let error = add(&gateway.client().await, request("k")).await.unwrap_err();
    assert_told(
        &error,
        surveylab_said(Code::InvalidArgument, "SURVEYLAB_BAD_REQUEST", "400"),
        "token",
    );
}

fn key(crk: &str) -> (String, String) {
    (COLLECTOR.into(), crk.into())
}

#[tokio::test]
async fn a_key_that_was_never_used_is_not_found() {
    let sandbox = surveylab().await;
    let gateway = Gateway::start(&sandbox).await;
    let mut client = gateway.client().await;
    let not_found = told(Code::NotFound, "INVITATION_NOT_FOUND", "no");
    let (collector_id, crk) = key("never");
    let status = client
        .get_invitation(GetInvitationRequest { collector_id, crk })
        .await
        .unwrap_err();
    assert_told(&status_error(&status), not_found, "get");
    let error = resolve(&client, "never", Resolution::Added).await.unwrap_err();
    assert_told(&error, not_found, "resolve");
}

#[tokio::test]
async fn what_is_not_in_doubt_cannot_be_resolved() {
    let sandbox = surveylab().await;
    sandbox.add_fault(Fault::status(404).for_crk("failed"));
    let gateway = Gateway::start(&sandbox).await;
    let client = gateway.client().await;
    assert_eq!(added(&client, request("added")).await, Outcome::Added);
    add(&client, request("failed")).await.unwrap_err();
    for (crk, is) in [("added", InvitationState::Added), ("failed", InvitationState::Failed)] {
        for resolution in [Resolution::Added, Resolution::NotAdded] {
            let error = resolve(&client, crk, resolution).await.unwrap_err();
            assert_told(&error, told(Code::FailedPrecondition, "NOT_IN_DOUBT", "no"), crk);
            assert_eq!(state(&client, crk).await, Some(is));
        }
    }
}

#[tokio::test]
async fn bad_questions_name_every_bad_field() {
    let sandbox = surveylab().await;
    let gateway = Gateway::start(&sandbox).await;
    let mut client = gateway.client().await;
    let invalid = |status: Status| {
        let error = status_error(&status);
        assert_told(
            &error,
            told(Code::InvalidArgument, "INVALID_REQUEST", "no"),
            "bad question",
        );
        error.violations
    };

    let nowhere = GetInvitationRequest::default();
    let status = client.get_invitation(nowhere).await.unwrap_err();
    assert_eq!(invalid(status), ["collector_id", "crk"]);

    for page_token in ["x", "!", "AQ", "AAEAYQ", "AQlhYmM"] {
        let page = ListInvitationsRequest {
            page_token: page_token.into(),
            ..ListInvitationsRequest::default()
        };
        let status = client.list_invitations(page).await.unwrap_err();
        assert_eq!(invalid(status), ["page_token"], "{page_token}");
    }
    let all_wrong = ListInvitationsRequest {
        collector_id: "no id".into(),
        state: 99,
        page_size: -1,
        page_token: "x".into(),
    };
    let status = client.list_invitations(all_wrong).await.unwrap_err();
    assert_eq!(invalid(status), ["collector_id", "state", "page_size", "page_token"]);

    for resolution in [0, 99] {
        let (collector_id, crk) = key("k");
        let unsaid = ResolveInvitationRequest {
            collector_id,
            crk,
            resolution,
        };
        let status = client.resolve_invitation(unsaid).await.unwrap_err();
        assert_eq!(invalid(status), ["resolution"]);
    }
    let status = client
        .resolve_invitation(ResolveInvitationRequest::default())
        .await
        .unwrap_err();
    assert_eq!(invalid(status), ["collector_id", "crk", "resolution"]);
}
