//! Streams: bounded memory, one result for each item, and nothing sent for a caller who has gone.

use std::time::Duration;

use surveylab_gateway::{
    proto::{AddRespondentRequest, InvitationState, Outcome, StreamAddRespondentResponse},
    sandbox::{Fault, Gate},
};
use tokio::{sync::mpsc, task::JoinSet, time::Instant};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Streaming, transport::Channel};

use crate::support::{
    Gateway, Options, adding,
    call::{Client, added, item, state, stream},
    gateway::{surveylab, surveylab_with},
    holding, request, status_error,
    watch::{metric, resident_memory, soon, until, until_quiet, until_waiting},
};

const MIB: u64 = 1024 * 1024;

fn requests(count: usize) -> Vec<AddRespondentRequest> {
    (0..count).map(|i| request(&format!("k{i:05}"))).collect()
}

async fn open(client: &Client, items: Vec<AddRespondentRequest>) -> Streaming<StreamAddRespondentResponse> {
    let mut client = client.clone();
    let opened = client.stream_add_respondent(tokio_stream::iter(items));
    soon(opened).await.unwrap().into_inner()
}

/// A client whose connection takes no more than a few kilobytes of answers that nobody reads.
async fn narrow_client(gateway: &Gateway) -> Client {
    let endpoint = Channel::from_shared(format!("http://{}", gateway.grpc)).unwrap();
    let endpoint = endpoint.initial_stream_window_size(4096);
    Client::new(endpoint.connect().await.unwrap())
}

#[tokio::test]
async fn memory_does_not_grow_with_the_list_and_each_item_is_answered_once() {
    const COUNT: usize = 100_000;
    const PAUSE_EVERY: usize = 10_000;
    let is_bad = |sequence: usize| sequence % 1000 == 500;
    let sandbox = surveylab_with(|config| config.log_requests = 0).await;
    let options = Options::new().flag("--max-in-flight", 256);
    let gateway = Gateway::with(options, &sandbox).await;
    let mut client = narrow_client(&gateway).await;
    assert_eq!(added(&client, request("warm")).await, Outcome::Added);
    let idle = resident_memory(&gateway);

    let begin = Instant::now();
    let items = (0..COUNT).map(move |i| {
        let mut request = request(&format!("k{i:05}"));
        if is_bad(i) {
            request.email = "nobody".into();
        }
        request
    });
    let opened = client.stream_add_respondent(tokio_stream::iter(items));
    let mut responses = soon(opened).await.unwrap().into_inner();
    let mut is_answered = vec![false; COUNT];
    let mut peak = idle;
    let mut read = 0;
    while let Some(response) = soon(responses.message()).await.unwrap() {
        if read % PAUSE_EVERY == 0 {
            // The reader rests until the gateway has done all that it does without a reader.
            until_quiet(&gateway).await;
        }
        if read % 1000 == 0 {
            peak = peak.max(resident_memory(&gateway));
        }
        read += 1;
        let crk = response.crk.clone();
        let (sequence, result) = item(response);
        let sequence = usize::try_from(sequence).unwrap();
        assert_eq!(crk, format!("k{sequence:05}"));
        assert!(
            !std::mem::replace(&mut is_answered[sequence], true),
            "{crk} was answered twice"
        );
        match result {
            Ok(response) => assert_eq!((response.outcome(), is_bad(sequence)), (Outcome::Added, false)),
            Err(error) => assert_eq!((error.reason.as_str(), is_bad(sequence)), ("INVALID_REQUEST", true)),
        }
    }
    assert!(is_answered.into_iter().all(|answered| answered));
    let grown = peak - idle;
    println!(
        "{COUNT} items in {:?}; resident memory {} MiB idle, {:.1} MiB more at its peak",
        begin.elapsed(),
        idle / MIB,
        grown as f64 / MIB as f64
    );
    assert!(grown < 64 * MIB, "{grown} bytes");
    let report = sandbox.report();
    assert_eq!(
        (report.requests, report.duplicates.len()),
        ((COUNT - COUNT / 1000 + 1) as u64, 0)
    );
}

#[tokio::test]
async fn bad_items_get_errors_of_their_own_and_end_nothing() {
    let sandbox = surveylab().await;
    sandbox.add_fault(Fault::status(404).for_crk("k00004"));
    let gateway = Gateway::start(&sandbox).await;
    let client = gateway.client().await;
    let mut items = requests(6);
    items[1].crk.clear();
    items[3].email = "nobody".into();
    items[3].collector_id.clear();
    // Ends without an error once the client has half-closed and all is answered, or `stream` would panic.
    let results = soon(stream(&client, items)).await;
    for good in [0, 2, 5] {
        assert_eq!(results[good].as_ref().unwrap().outcome(), Outcome::Added);
    }
    let violations = |index: usize| {
        let error = results[index].as_ref().unwrap_err();
        assert_eq!(
            (error.code, error.reason.as_str()),
            (Code::InvalidArgument, "INVALID_REQUEST")
        );
        error.violations.clone()
    };
    assert_eq!(violations(1), ["crk"]);
    assert_eq!(violations(3), ["collector_id", "email"]);
    let refused = results[4].as_ref().unwrap_err();
    assert_eq!(
        (refused.code, refused.reason.as_str()),
        (Code::NotFound, "SURVEYLAB_NOT_FOUND")
    );
}

#[tokio::test]
async fn a_result_repeats_no_crk_that_can_not_be_one() {
    let sandbox = surveylab().await;
    let gateway = Gateway::start(&sandbox).await;
    let client = gateway.client().await;
    let items = vec![request(&"x".repeat(64)), request(&"x".repeat(100_000))];
    let mut results = open(&client, items).await;
    for _ in 0..2 {
        let result = results.message().await.unwrap().unwrap();
        let length = if result.sequence == 0 { 64 } else { 0 };
        assert_eq!(result.crk.len(), length);
    }
}

#[tokio::test]
async fn a_request_too_large_to_be_read_ends_the_stream_once_all_before_it_are_answered() {
    let sandbox = surveylab().await;
    let gateway = Gateway::start(&sandbox).await;
    let client = gateway.client().await;
    let giant = AddRespondentRequest {
        referrer: "x".repeat(300_000),
        ..request("giant")
    };
    let mut results = open(&client, vec![request("before"), giant, request("after")]).await;
    let (sequence, result) = item(results.message().await.unwrap().unwrap());
    assert_eq!((sequence, result.unwrap().outcome()), (0, Outcome::Added));
    let end = status_error(&results.message().await.unwrap_err());
    assert_eq!(
        (end.code, &*end.reason, end.sent()),
        (Code::InvalidArgument, "INVALID_REQUEST", "no")
    );
    assert_eq!(sandbox.report().requests, 1);
}

#[tokio::test]
async fn an_empty_stream_ends_well() {
    let sandbox = surveylab().await;
    let gateway = Gateway::start(&sandbox).await;
    assert!(soon(stream(&gateway.client().await, Vec::new())).await.is_empty());
}

#[tokio::test]
async fn response_headers_and_results_do_not_wait_for_the_end_of_the_list() {
    let sandbox = surveylab().await;
    let gateway = Gateway::start(&sandbox).await;
    let mut client = gateway.client().await;
    let (items, list) = mpsc::channel(1);
    let opened = client.stream_add_respondent(ReceiverStream::new(list));
    let mut responses = soon(opened).await.unwrap().into_inner();
    for (sequence, request) in requests(3).into_iter().enumerate() {
        items.send(request).await.unwrap();
        let response = soon(responses.message()).await.unwrap().unwrap();
        assert_eq!(response.sequence, sequence as u64);
    }
    drop(items);
    assert!(soon(responses.message()).await.unwrap().is_none());
}

#[tokio::test]
async fn an_abandoned_stream_sends_nothing_more_and_its_list_can_be_sent_again() {
    let (sandbox, gate) = holding().await;
    let gateway = Gateway::with(Options::new().flag("--max-in-flight", 3), &sandbox).await;
    let client = gateway.client().await;
    let responses = open(&client, requests(100)).await;
    soon(sandbox.wait_for_requests(3)).await;
    until_waiting(&gateway, "", 97).await;
    drop(responses);
    until_waiting(&gateway, "", 0).await;
    gate.release();
    let on_the_wire: Vec<String> = sandbox.keys().into_iter().map(|key| key.crk).collect();
    for crk in &on_the_wire {
        until("what was on the wire is recorded", async || {
            state(&client, crk).await == Some(InvitationState::Added)
        })
        .await;
    }
    until_quiet(&gateway).await;
    assert_eq!(sandbox.report().requests, 3);

    for (i, result) in soon(stream(&client, requests(100))).await.into_iter().enumerate() {
        let is_sent = on_the_wire.contains(&format!("k{i:05}"));
        let expected = if is_sent { Outcome::Duplicate } else { Outcome::Added };
        assert_eq!(result.unwrap().outcome(), expected, "{i}");
    }
    let report = sandbox.report();
    assert_eq!((report.requests, report.effects), (100, 100));
}

#[tokio::test]
async fn an_item_that_another_caller_waits_for_outlives_its_stream() {
    let (sandbox, gate) = holding().await;
    let gateway = Gateway::with(Options::new().flag("--max-in-flight", 1), &sandbox).await;
    let client = gateway.client().await;
    let responses = open(&client, requests(10)).await;
    until_waiting(&gateway, "lane=\"stream\"", 9).await;
    let joined = adding(&client, "k00007");
    // The call takes the item along into its lane.
    until_waiting(&gateway, "lane=\"unary\"", 1).await;
    drop(responses);
    until_waiting(&gateway, "", 1).await;
    gate.release();
    assert_eq!(soon(joined).await.unwrap(), Outcome::Added);
    until_quiet(&gateway).await;
    assert_eq!(sandbox.report().requests, 2);
}

#[tokio::test]
async fn a_reader_that_never_reads_holds_a_window_at_most_and_blocks_nobody() {
    const COUNT: usize = 50_000;
    let sandbox = surveylab_with(|config| config.log_requests = COUNT).await;
    let gateway = Gateway::with(Options::new().flag("--stream-window", 64), &sandbox).await;
    let idler = narrow_client(&gateway).await;
    let unread = open(&idler, requests(COUNT)).await;
    until("the stream has filled its window", async || {
        sandbox.report().requests >= 64
    })
    .await;
    until_quiet(&gateway).await;

    let client = gateway.client().await;
    for i in 0..50 {
        let others = request(&format!("other{i}"));
        assert_eq!(soon(added(&client, others)).await, Outcome::Added);
    }
    // The same keys as those whose results nobody reads: the first one, and the last ones.
    let sent: Vec<String> = sandbox.keys().into_iter().map(|key| key.crk).collect();
    let streamed: Vec<&String> = sent.iter().filter(|crk| crk.starts_with('k')).collect();
    for crk in streamed.iter().rev().take(64).chain(streamed.first()) {
        assert_eq!(soon(added(&client, request(crk))).await, Outcome::Duplicate);
    }
    // The window, and what fits into the transport's buffers: 4 KiB at the client, a piece of 32 KiB at the gateway.
    until_quiet(&gateway).await;
    let streamed = sandbox.report().requests - 50;
    println!("{streamed} of {COUNT} items were sent for a reader that never reads");
    assert!(streamed < 2_000, "{streamed}");
    drop(unread);
}

#[tokio::test]
async fn many_streams_opened_and_cancelled_leave_the_gateway_serving() {
    let sandbox = surveylab().await;
    let gate = Gate::new();
    sandbox.add_fault(Fault::hold(&gate).for_crk_prefix("k"));
    let gateway = Gateway::with(Options::new().flag("--max-in-flight", 2), &sandbox).await;
    let client = gateway.client().await;
    let mut opened = JoinSet::new();
    for round in 0..100 {
        let client = client.clone();
        opened.spawn(async move {
            if round % 2 == 0 {
                drop(open(&client, requests(20)).await);
            } else {
                // Cancelled wherever the opening happens to be by then.
                let opening = tokio::time::timeout(Duration::from_millis(round % 7), open(&client, requests(20)));
                let _cancelled = opening.await;
            }
        });
    }
    soon(opened.join_all()).await;
    gate.release();
    until_quiet(&gateway).await;
    assert_eq!(soon(added(&client, request("other"))).await, Outcome::Added);
    for result in soon(stream(&client, requests(20))).await {
        result.unwrap();
    }
    assert!(sandbox.keys().iter().all(|key| key.requests == 1));
    assert_eq!(gateway.admin("/readyz").await.0, 200);
    assert_eq!(metric(&gateway, "requests_in_flight", "").await, 0.0);
}
