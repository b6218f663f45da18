//! One line for every call, and the id by which callers find it.

use serde_json::{Value, json};
use surveylab_gateway::{
    proto::{AddRespondentRequest, Outcome},
    sandbox::Fault,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, metadata::MetadataMap};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

use crate::support::{
    Gateway, Options, added, adding,
    call::{COLLECTOR, get, stream},
    gateway::surveylab,
    holding, request,
    watch::{soon, until},
};

fn logging() -> Options {
    Options::new().flag("--access-log", "on")
}

/// The access lines so far.
fn lines(gateway: &Gateway) -> Vec<Value> {
    let log = gateway.log();
    let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    lines.filter(|line| line["target"] == "access").collect()
}

/// The lines of a method, once there are so many.
async fn lines_of(gateway: &Gateway, method: &str, count: usize) -> Vec<Value> {
    let of_it = || lines(gateway).into_iter().filter(|line| line["method"] == method);
    until(&format!("{count} lines of {method}"), async || of_it().count() >= count).await;
    let lines: Vec<_> = of_it().collect();
    assert_eq!(lines.len(), count, "{lines:?}");
    lines
}

/// What is in a line, without its times, ids and places.
fn facts(line: &Value) -> Value {
    let mut line = line.clone();
    let fields = line.as_object_mut().unwrap();
    for always in ["timestamp", "request_id", "peer", "duration_ms"] {
        assert!(fields.remove(always).is_some(), "{always} in {fields:?}");
    }
    fields.remove("wait_ms");
    line
}

fn with_id<T>(message: T, id: &str) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("x-request-id", id.parse().unwrap());
    request
}

fn id(metadata: &MetadataMap) -> String {
    let id = metadata.get("x-request-id").expect("every answer has it");
    id.to_str().unwrap().into()
}

fn is_made(id: &str) -> bool {
    id.len() == 32 && id.bytes().all(|digit| digit.is_ascii_hexdigit())
}

#[tokio::test]
async fn a_call_is_told_in_one_line() {
    let sandbox = surveylab().await;
    let gateway = Gateway::with(logging(), &sandbox).await;
    let client = gateway.client().await;
    let mut call = with_id(request("k"), "from-the-caller");
    let parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    call.metadata_mut().insert("traceparent", parent.parse().unwrap());
    client.clone().add_respondent(call).await.unwrap();
    assert_eq!(added(&client, request("k")).await, Outcome::Duplicate);

    let lines = lines_of(&gateway, "AddRespondent", 2).await;
    assert_eq!(lines[0]["request_id"], "from-the-caller");
    assert!(lines[0]["peer"].as_str().unwrap().starts_with("127.0.0.1:"));
    assert!(lines[0]["duration_ms"].as_f64().unwrap() > 0.0);
    let trace_id = "0af7651916cd43dd8448eb211c80319c";
    assert_eq!(
        facts(&lines[0]),
        json!({
            "level": "INFO", "target": "access", "method": "AddRespondent", "code": "OK", "trace_id": trace_id,
            "collector_id": COLLECTOR, "attempts": 1, "joined": false, "sent": "yes", "outcome": "ADDED",
        })
    );
    assert_eq!(
        facts(&lines[1]),
        json!({
            "level": "INFO", "target": "access", "method": "AddRespondent", "code": "OK",
            "collector_id": COLLECTOR, "attempts": 0, "joined": false, "sent": "no", "outcome": "DUPLICATE",
        })
    );
}

#[tokio::test]
async fn errors_are_told_by_code_reason_and_whether_anything_was_sent() {
    let sandbox = surveylab().await;
    sandbox.add_fault(Fault::status(404).for_crk("unknown"));
    let gateway = Gateway::with(logging(), &sandbox).await;
    let client = gateway.client().await;
    let invalid = AddRespondentRequest {
        email: "c4nary at nowhere".into(),
        ..request("invalid")
    };
    for message in [request("unknown"), invalid] {
        client.clone().add_respondent(message).await.unwrap_err();
    }
    assert!(get(&client, "never-seen").await.is_none());
    let lines = lines_of(&gateway, "AddRespondent", 2).await;
    assert_eq!(
        facts(&lines[0]),
        json!({
            "level": "INFO", "target": "access", "method": "AddRespondent", "code": "NOT_FOUND",
            "reason": "SURVEYLAB_NOT_FOUND", "collector_id": COLLECTOR, "attempts": 1, "joined": false, "sent": "yes",
        })
    );
    // Nothing of an input that may be anything.
    assert_eq!(
        facts(&lines[1]),
        json!({
            "level": "INFO", "target": "access", "method": "AddRespondent", "code": "INVALID_ARGUMENT",
            "reason": "INVALID_REQUEST", "sent": "no",
        })
    );
    let lines = lines_of(&gateway, "GetInvitation", 1).await;
    assert_eq!(lines[0]["reason"], "INVITATION_NOT_FOUND");
}

#[tokio::test]
async fn the_wait_for_the_rate_is_told() {
    let sandbox = surveylab().await;
    let gateway = Gateway::with(logging().flag("--rate", "10/s").flag("--burst", 1), &sandbox).await;
    let client = gateway.client().await;
    let requests: Vec<_> = (0..5).map(|crk| request(&crk.to_string())).collect();
    let calls = requests.into_iter().map(|request| {
        let client = client.clone();
        tokio::spawn(async move { added(&client, request).await })
    });
    for call in calls.collect::<Vec<_>>() {
        assert_eq!(soon(call).await.unwrap(), Outcome::Added);
    }
    let lines = lines_of(&gateway, "AddRespondent", 5).await;
    let waits: Vec<_> = lines.iter().map(|line| line["wait_ms"].as_f64().unwrap()).collect();
    // Five requests take four tenths of a second, so that the last one waited for most of that.
    assert!(waits.iter().any(|wait| *wait > 200.0), "{waits:?}");
    for line in &lines {
        assert!(line["wait_ms"].as_f64() <= line["duration_ms"].as_f64(), "{line}");
    }
}

#[tokio::test]
async fn a_stream_is_told_in_one_line_with_what_became_of_its_items() {
    let sandbox = surveylab().await;
    sandbox.add_fault(Fault::status(404).for_crk("unknown"));
    let gateway = Gateway::with(logging(), &sandbox).await;
    let client = gateway.client().await;
    assert_eq!(added(&client, request("a")).await, Outcome::Added);
    stream(&client, ["a", "b", "c", "unknown"].map(request).into()).await;
    let ended = lines_of(&gateway, "StreamAddRespondent", 1).await;
    assert_eq!(
        facts(&ended[0]),
        json!({
            "level": "INFO", "target": "access", "method": "StreamAddRespondent", "code": "OK",
            "items": 4, "added": 2, "duplicates": 1, "failed": 1,
        })
    );
    assert!(!gateway.log().contains("StreamAddRespondent/item"));

    let gateway = gateway
        .restart_with(|options| options.env("RUST_LOG", "info,access=debug"))
        .await;
    stream(&gateway.client().await, vec![request("b")]).await;
    let item = lines_of(&gateway, "StreamAddRespondent/item", 1).await;
    assert_eq!(
        (&item[0]["crk"], &item[0]["outcome"]),
        (&json!("b"), &json!("DUPLICATE"))
    );
    assert_eq!(added(&gateway.client().await, request("c")).await, Outcome::Duplicate);
    until("the key of a call", async || {
        lines(&gateway).iter().any(|line| line["crk"] == "c")
    })
    .await;
}

#[tokio::test]
async fn a_call_whose_caller_leaves_is_told_as_cancelled() {
    let (sandbox, gate) = holding().await;
    let gateway = Gateway::with(logging(), &sandbox).await;
    let client = gateway.client().await;
    let call = adding(&client, "k");
    sandbox.wait_for_requests(1).await;
    call.abort();
    let lines = lines_of(&gateway, "AddRespondent", 1).await;
    assert_eq!(
        (&lines[0]["code"], &lines[0]["attempts"]),
        (&"CANCELLED".into(), &1.into())
    );

    let (requests, list) = mpsc::channel(1);
    requests.send(request("s")).await.unwrap();
    let results = client.clone().stream_add_respondent(ReceiverStream::new(list)).await;
    sandbox.wait_for_requests(2).await;
    drop((requests, results));
    let lines = lines_of(&gateway, "StreamAddRespondent", 1).await;
    assert_eq!(
        (&lines[0]["code"], &lines[0]["items"]),
        (&"CANCELLED".into(), &0.into())
    );
    gate.release();
}

#[tokio::test]
async fn without_the_access_log_there_are_no_lines() {
    let sandbox = surveylab().await;
    for options in [
        Options::new(),
        logging().flag("--access-log", "off"),
        logging().env("RUST_LOG", "info,access=off"),
    ] {
        let gateway = Gateway::with(options, &sandbox).await;
        let client = gateway.client().await;
        let answer = client.clone().add_respondent(request("k")).await.unwrap();
        assert!(is_made(&id(answer.metadata())));
        gateway.signal("TERM");
        let (gateway, _) = soon(gateway.once_ended()).await;
        assert!(gateway.log().contains("stopped"));
        assert_eq!(lines(&gateway), Vec::<Value>::new());
    }
}

#[tokio::test]
async fn the_last_line_is_written_before_the_end() {
    let sandbox = surveylab().await;
    let gateway = Gateway::with(logging(), &sandbox).await;
    assert_eq!(added(&gateway.client().await, request("k")).await, Outcome::Added);
    gateway.signal("TERM");
    let (gateway, _) = soon(gateway.once_ended()).await;
    assert_eq!(lines(&gateway).len(), 1, "{}", gateway.log());
}

#[tokio::test]
async fn every_answer_has_a_request_id_which_is_the_callers_if_it_is_fit() {
    let sandbox = surveylab().await;
    let gateway = Gateway::with(logging(), &sandbox).await;
    let mut client = gateway.client().await;
    let long = "x".repeat(128);
    for fit in ["a", "0af7-65/+=~!", &long] {
        let answer = client.add_respondent(with_id(request("k"), fit)).await.unwrap();
        assert_eq!(id(answer.metadata()), fit);
    }
    let too_long = "x".repeat(129);
    for unfit in ["", "two words", &too_long] {
        let answer = client.add_respondent(with_id(request("k"), unfit)).await.unwrap();
        assert!(is_made(&id(answer.metadata())), "{unfit}");
    }
    // Errors of the method, and of what is no method; streams; and what has no line.
    let error = client
        .add_respondent(with_id(AddRespondentRequest::default(), "an-error"))
        .await
        .unwrap_err();
    assert_eq!(id(error.metadata()), "an-error");
    let list = tokio_stream::iter([request("k")]);
    let results = client.stream_add_respondent(with_id(list, "a-stream")).await.unwrap();
    assert_eq!(id(results.metadata()), "a-stream");
    let mut health = HealthClient::new(gateway.channel().await);
    let check = HealthCheckRequest::default();
    let answer = health.check(with_id(check, "a-probe")).await.unwrap();
    assert_eq!(id(answer.metadata()), "a-probe");
    let unknown = HealthCheckRequest {
        service: "unknown".into(),
    };
    let error = health.check(with_id(unknown, "a-wrong-probe")).await.unwrap_err();
    assert_eq!(
        (error.code(), id(error.metadata()).as_str()),
        (Code::NotFound, "a-wrong-probe")
    );
}

#[tokio::test]
async fn the_trace_is_the_request_id_where_the_caller_gives_none() {
    let sandbox = surveylab().await;
    let gateway = Gateway::with(logging(), &sandbox).await;
    let mut client = gateway.client().await;
    for (parent, is_taken) in [
        ("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00", true),
        ("00-00000000000000000000000000000000-b7ad6b7169203331-01", false),
        ("nonsense", false),
    ] {
        let mut call = Request::new(request("k"));
        call.metadata_mut().insert("traceparent", parent.parse().unwrap());
        let answer = client.add_respondent(call).await.unwrap();
        let id = id(answer.metadata());
        assert_eq!(id == "0af7651916cd43dd8448eb211c80319c", is_taken, "{parent}");
        assert!(is_made(&id), "{id}");
    }
}
