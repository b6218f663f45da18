//! Calls, lists and messages that are too many, too large, or make no sense.

use hyper::HeaderMap;
use surveylab_gateway::{
    proto::{AddRespondentRequest, Outcome},
    sandbox::{Fault, Gate},
};
use tokio::task::JoinSet;
use tonic::Code;

use super::{
    MIB, Watched, assert_error,
    peer::{
        self, ADD, Caller, DATA, ENHANCE_YOUR_CALM, GOAWAY, NO_FLAGS, PING, Peer, REFUSED_STREAM, RST_STREAM, STREAM,
        frame, message, open, prefix, prefixed, stream_ids,
    },
};
use crate::support::{
    Gateway, Options,
    call::{add, added},
    gateway::surveylab,
    holding, request,
    watch::{soon, until, until_quiet, until_waiting},
};

#[tokio::test]
async fn calls_beyond_the_limit_are_refused_and_those_within_it_are_served() {
    const LIMIT: usize = 50;
    let sandbox = surveylab().await;
    let gateway = Gateway::with(Options::new().flag("--max-streams", LIMIT), &sandbox).await;
    let mut watched = Watched::new(&gateway).await;
    let mut peer = Peer::connect(&gateway, &[]).await;
    let streams: Vec<u32> = stream_ids().take(10 * LIMIT).collect();
    peer.send(&streams.iter().flat_map(|id| open(*id, STREAM)).collect::<Vec<u8>>())
        .await;
    for expected in &streams[LIMIT..] {
        let reset = peer.next_of(RST_STREAM).await.expect("the connection goes on");
        assert_eq!((reset.stream, reset.error()), (*expected, REFUSED_STREAM));
    }
    watched.serves(&gateway).await;
    for id in &streams[..LIMIT] {
        let item = message(&request(&format!("k{id}")));
        peer.send(&frame(DATA, NO_FLAGS, *id, &item)).await;
    }
    until("the items of all others are sent", async || {
        sandbox.keys().iter().filter(|key| key.crk.starts_with('k')).count() == LIMIT
    })
    .await;

    // Who goes on like that is told to calm down.
    let mut peer = Peer::connect(&gateway, &[]).await;
    let opened: Vec<u8> = stream_ids().take(5_000).flat_map(|id| open(id, STREAM)).collect();
    let _ended = peer.try_send(&opened).await;
    // Where bytes of the peer are left unread, the end of the connection may overtake these words.
    let said = peer.last_words().await;
    let goaways: Vec<_> = said.keys().filter(|(kind, _)| *kind == GOAWAY).collect();
    assert!(goaways.iter().all(|(_, code)| *code == ENHANCE_YOUR_CALM), "{said:?}");
    watched.memory(&gateway, "5 000 calls opened, 50 allowed", 16 * MIB);
    watched.serves(&gateway).await;
}

#[tokio::test]
async fn a_thousand_callers_wait_on_one_connection_and_are_all_served() {
    const COUNT: usize = 1000;
    let (sandbox, gate) = holding().await;
    let gateway = Gateway::with(Options::new().flag("--max-in-flight", 1), &sandbox).await;
    let client = gateway.client().await;
    let mut calls = JoinSet::new();
    for i in 0..COUNT {
        let client = client.clone();
        calls.spawn(async move { added(&client, request(&format!("k{i}"))).await });
    }
    until_waiting(&gateway, "", COUNT - 1).await;
    gate.release();
    let outcomes = soon(calls.join_all()).await;
    assert!(outcomes.iter().all(|outcome| *outcome == Outcome::Added));
    assert_eq!(sandbox.report().requests, COUNT as u64);
}

#[tokio::test]
async fn a_connection_full_of_lists_that_wait_holds_a_window_for_each() {
    const STREAMS: usize = 1024;
    /// As the gateway has it, and the most that is sent of a list without being read.
    const WINDOW: usize = 16 * 1024;
    let sandbox = surveylab().await;
    let gate = Gate::new();
    sandbox.add_fault(Fault::hold(&gate).for_crk_prefix("k"));
    let options = Options::new().flag("--stream-window", 1).flag("--max-in-flight", 1);
    let gateway = Gateway::with(options, &sandbox).await;
    let mut watched = Watched::new(&gateway).await;
    let mut peer = Peer::connect(&gateway, &[]).await;
    let padding = "x".repeat(50);
    let item = |crk: String| {
        let referrer = padding.clone();
        message(&AddRespondentRequest {
            referrer,
            ..request(&crk)
        })
    };
    for id in stream_ids().take(STREAMS) {
        let items = (0..).map(|i| item(format!("k{id:04}-{i:03}")));
        let mut room = WINDOW;
        let mut list = open(id, STREAM);
        for payload in items {
            let Some(rest) = room.checked_sub(payload.len()) else {
                break;
            };
            room = rest;
            list.extend(frame(DATA, NO_FLAGS, id, &payload));
        }
        peer.send(&list).await;
    }
    peer.send(&frame(PING, NO_FLAGS, 0, &[0; 8])).await;
    assert!(peer.next_of(PING).await.is_some(), "all has come in");
    until_waiting(&gateway, "", STREAMS - 1).await;
    // 16 MiB of windows, and what holds it.
    watched.memory(&gateway, "1 024 lists of 16 KiB", 96 * MIB);
    for client in [watched.client.clone(), gateway.client().await] {
        assert_eq!(soon(added(&client, request("warm"))).await, Outcome::Duplicate);
    }
    drop(peer);
    gate.release();
    until_quiet(&gateway).await;
    watched.serves(&gateway).await;
}

#[tokio::test]
async fn giant_messages_are_refused_before_they_are_read() {
    let sandbox = surveylab().await;
    let gateway = Gateway::start(&sandbox).await;
    let mut watched = Watched::new(&gateway).await;
    let caller = Caller::connect(&gateway).await;
    for path in [ADD, STREAM] {
        let mut call = caller.open(path).await;
        call.send(prefix(0, 0x7fff_ffff));
        let error = call.end().await.unwrap_err();
        assert_error(&error, Code::InvalidArgument, "INVALID_REQUEST");
    }
    for _ in 0..20 {
        let giant = AddRespondentRequest {
            referrer: "x".repeat(10 << 20),
            ..request("giant")
        };
        let error = soon(add(&watched.client, giant)).await.unwrap_err();
        assert_error(&error, Code::InvalidArgument, "INVALID_REQUEST");
    }
    watched.memory(&gateway, "giant messages", 16 * MIB);
    watched.serves(&gateway).await;
    assert!(!caller.has_ended());
}

#[tokio::test]
async fn the_largest_message_that_can_be_read_is_told_all_that_is_wrong_with_it() {
    let sandbox = surveylab().await;
    let gateway = Gateway::start(&sandbox).await;
    // One character more than a field may have, each of four bytes.
    let text = "\u{1f4e8}".repeat(2049);
    let custom = || text.clone();
    let request = AddRespondentRequest {
        collector_id: custom(),
        crk: custom(),
        email: custom(),
        referrer: custom(),
        language: custom(),
        phone: custom(),
        first_name: custom(),
        last_name: custom(),
        custom1: custom(),
        custom2: custom(),
        custom3: custom(),
        custom4: custom(),
        custom5: custom(),
        custom6: custom(),
        custom7: custom(),
        custom8: custom(),
        ..AddRespondentRequest::default()
    };
    let error = soon(add(&gateway.client().await, request)).await.unwrap_err();
    assert_error(&error, Code::InvalidArgument, "INVALID_REQUEST");
    assert_eq!(error.violations.len(), 16, "{:?}", error.violations);
}

#[tokio::test]
async fn what_is_no_request_is_told_so_with_a_reason() {
    let sandbox = surveylab().await;
    let gateway = Gateway::start(&sandbox).await;
    let caller = Caller::connect(&gateway).await;
    let good = message(&request("k"));
    let cases = [
        ("nothing", Vec::new()),
        ("no message of this type", prefixed(&[0xff; 40])),
        ("text that is no UTF-8", prefixed(&[0x0a, 2, 0xc3, 0x28])),
        ("an unfinished message", good[..good.len() - 1].to_vec()),
        ("an unfinished prefix", good[..3].to_vec()),
        (
            "a compression that was not announced",
            [prefix(1, 3), vec![1, 2, 3]].concat(),
        ),
        ("a flag that is none", prefix(0xff, 0)),
    ];
    for (what, body) in cases {
        let error = caller.call(ADD, body).await.expect_err(what);
        assert_error(&error, Code::InvalidArgument, "INVALID_REQUEST");
    }
    assert_eq!(caller.call(ADD, good).await, Ok(()));
    assert!(!caller.has_ended());
    assert_eq!(sandbox.report().requests, 1);
}

#[tokio::test]
async fn messages_that_are_half_there_share_a_memory_of_their_connection() {
    /// As the gateway has it.
    const LARGEST: usize = 144 * 1024;
    const ROOM: usize = 4 * 1024 * 1024 / LARGEST;
    const TOO_MANY: usize = 10;
    let sandbox = surveylab().await;
    let gateway = Gateway::with(Options::new().flag("--receive-timeout", "10m"), &sandbox).await;
    let mut watched = Watched::new(&gateway).await;
    let caller = Caller::connect(&gateway).await;
    let begun = [prefix(0, LARGEST), vec![0; 1000]].concat();
    let mut unfinished = Vec::new();
    let mut ends = JoinSet::new();
    for i in 0..ROOM + TOO_MANY {
        let mut call = caller.open(if i % 2 == 0 { ADD } else { STREAM }).await;
        call.send(begun.clone());
        unfinished.push(call.request);
        ends.spawn(peer::end(call.answer));
    }
    for _ in 0..TOO_MANY {
        let error = soon(ends.join_next()).await.unwrap().unwrap().unwrap_err();
        assert_error(&error, Code::ResourceExhausted, "TOO_MANY_UNFINISHED");
        assert!(error.retry.is_some());
    }
    // What comes as one piece needs no room, nor does anything on another connection.
    assert_eq!(caller.call(ADD, message(&request("small"))).await, Ok(()));
    watched.serves(&gateway).await;
    let mut elsewhere = Caller::connect(&gateway).await.open(ADD).await;
    elsewhere.send(begun.clone());
    elsewhere.half_close();
    assert_error(
        &elsewhere.end().await.unwrap_err(),
        Code::InvalidArgument,
        "INVALID_REQUEST",
    );
    assert!(ends.try_join_next().is_none(), "the others still have their room");
    // Room comes back with the calls that had it.
    ends.shutdown().await;
    for mut request in unfinished {
        request.send_reset(h2::Reason::CANCEL);
    }
    until("there is room again", async || {
        let mut call = caller.open(ADD).await;
        call.send(begun.clone());
        call.half_close();
        call.end().await.unwrap_err().reason == "INVALID_REQUEST"
    })
    .await;
    watched.memory(&gateway, "half-received messages", 16 * MIB);
}

#[tokio::test]
async fn a_list_whose_results_are_never_taken_holds_no_place_in_flight() {
    const WINDOW: usize = 16;
    let sandbox = surveylab().await;
    let options = Options::new()
        .flag("--stream-window", WINDOW)
        .flag("--max-in-flight", 1);
    let gateway = Gateway::with(options, &sandbox).await;
    let mut watched = Watched::new(&gateway).await;
    // SETTINGS_INITIAL_WINDOW_SIZE: no byte of an answer may be sent.
    let mut peer = Peer::connect(&gateway, &[(4, 0)]).await;
    let sent_before = sandbox.report().requests;
    let streams: Vec<u32> = stream_ids().take(10).collect();
    for id in &streams {
        // As much as flow control allows.
        let items: Vec<u8> = (0..200)
            .flat_map(|i| frame(DATA, NO_FLAGS, *id, &message(&request(&format!("k{id}-{i}")))))
            .collect();
        peer.send(&[open(*id, STREAM), items].concat()).await;
    }
    until("every stream has filled its window", async || {
        sandbox.report().requests - sent_before >= (WINDOW * streams.len()) as u64
    })
    .await;
    until_quiet(&gateway).await;
    watched.memory(&gateway, "results that nobody takes", 16 * MIB);
    watched.serves(&gateway).await;
    // A result leaves its window for a buffer of the transport, which holds 32 KiB: some 300.
    let sent = sandbox.report().requests - sent_before;
    assert!(sent <= 200 * streams.len() as u64, "{sent}");
    peer.send(&frame(PING, NO_FLAGS, 0, &[0; 8])).await;
    assert!(
        peer.next_of(PING).await.is_some(),
        "the connection itself is as good as any"
    );
}

#[tokio::test]
async fn a_head_that_is_too_large_is_refused_alone() {
    let sandbox = surveylab().await;
    let gateway = Gateway::start(&sandbox).await;
    let caller = Caller::connect(&gateway).await;
    let mut headers = HeaderMap::new();
    headers.insert("x", "y".repeat(17 * 1024).parse().unwrap());
    let refused = caller.open_with(ADD, &headers).await;
    assert_eq!(refused.http_status().await, 431);
    assert_eq!(caller.call(ADD, message(&request("k"))).await, Ok(()));
}

#[tokio::test]
async fn metadata_that_makes_no_sense_harms_no_call() {
    let sandbox = surveylab().await;
    let gateway = Gateway::start(&sandbox).await;
    let caller = Caller::connect(&gateway).await;
    let long = "9".repeat(10_000);
    let garbage: Vec<(&str, &[u8])> = vec![
        ("grpc-timeout", b"99999999H"),
        ("grpc-timeout", b"999999999H"),
        ("grpc-timeout", b"-1S"),
        ("grpc-timeout", b"1e3S"),
        ("grpc-timeout", b""),
        ("grpc-timeout", b"\xff\xfe"),
        ("grpc-timeout", long.as_bytes()),
        ("grpc-encoding", b"identity"),
        ("grpc-accept-encoding", b",,,\xff"),
        ("some-bin", b"!not base64!"),
        ("user-agent", b"\x80\x81"),
        ("grpc-status", b"13"),
    ];
    for (i, (name, value)) in garbage.iter().enumerate() {
        for times in [1, 3] {
            let mut headers = HeaderMap::new();
            for _ in 0..if value.len() > 1000 { 1 } else { times } {
                headers.append(*name, hyper::header::HeaderValue::from_bytes(value).unwrap());
            }
            let mut call = caller.open_with(ADD, &headers).await;
            call.send(message(&request(&format!("k{i}-{times}"))));
            call.half_close();
            assert_eq!(call.end().await, Ok(()), "{name}: {value:?}");
        }
    }
    assert!(!caller.has_ended());
    assert_eq!(gateway.admin("/readyz").await.0, 200);
}
