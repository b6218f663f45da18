//! Peers that are hostile, or merely broken: the gateway's memory stays bounded, others are served meanwhile, and each
//! of them comes to a clear end.

use std::time::Duration;

use hyper::HeaderMap;
use surveylab_gateway::{
    proto::{AddRespondentRequest, Outcome},
    sandbox::{Fault, Gate},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    sync::mpsc,
    task::JoinSet,
    time::interval,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;

use self::peer::{
    ADD, CONTINUATION, Caller, DATA, END_HEADERS, ENHANCE_YOUR_CALM, GOAWAY, HEADERS, MAGIC, NO_FLAGS, PING, Peer,
    REFUSED_STREAM, RST_STREAM, SETTINGS, STREAM, frame, head, literal, message, open, prefix, prefixed, stream_ids,
};
use crate::support::{
    Error, Gateway, Options,
    call::{Client, add, added, item},
    gateway::{run, surveylab},
    holding, request,
    watch::{resident_memory, soon, until, until_quiet, until_waiting},
};

pub mod peer;

const MIB: u64 = 1024 * 1024;

/// Long enough that a peer who means well keeps to it on a busy machine, and short enough to wait for.
const RECEIVE_TIMEOUT: Duration = Duration::from_secs(4);

fn impatient() -> Options {
    Options::new().flag("--receive-timeout", format!("{}s", RECEIVE_TIMEOUT.as_secs()))
}

/// What a test watches while its peers do their worst.
struct Watched {
    client: Client,
    idle: u64,
    served: u32,
}

impl Watched {
    async fn new(gateway: &Gateway) -> Self {
        let client = gateway.client().await;
        assert_eq!(added(&client, request("warm")).await, Outcome::Added);
        Self {
            client,
            idle: resident_memory(gateway),
            served: 0,
        }
    }

    /// A caller who means well is served, on a connection that was there before, and on a new one.
    async fn serves(&mut self, gateway: &Gateway) {
        for client in [self.client.clone(), gateway.client().await] {
            self.served += 1;
            let crk = format!("good{}", self.served);
            assert_eq!(soon(added(&client, request(&crk))).await, Outcome::Added);
        }
    }

    /// The memory that the gateway has taken since, in bytes. Must be under the bound.
    fn memory(&self, gateway: &Gateway, what: &str, bound: u64) {
        let grown = resident_memory(gateway).saturating_sub(self.idle);
        println!("{what}: {:.1} MiB more", grown as f64 / MIB as f64);
        assert!(grown < bound, "{what}: {grown} bytes");
    }
}

fn assert_error(error: &Error, code: Code, reason: &str) {
    assert_eq!(
        (error.code, &*error.reason, error.sent()),
        (code, reason, "no"),
        "{error:?}"
    );
    assert_eq!(error.domain, "surveylab-gateway");
}

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
async fn a_preface_must_be_complete_in_time() {
    let sandbox = surveylab().await;
    let gateway = Gateway::with(impatient(), &sandbox).await;
    let mut watched = Watched::new(&gateway).await;
    let settings = frame(SETTINGS, NO_FLAGS, 0, &[0, 3, 0, 0, 0, 100]);
    let preface = [MAGIC, &settings].concat();
    let mut peers = Vec::new();
    for stops_at in [0, 1, 20, MAGIC.len(), MAGIC.len() + 8, preface.len() - 1] {
        let mut peer = Peer::silent(gateway.grpc).await;
        peer.send(&preface[..stops_at]).await;
        peers.push(peer);
    }
    watched.serves(&gateway).await;
    for peer in peers {
        peer.ended().await;
    }
    // One byte after the other does not make it longer.
    let mut peer = Peer::silent(gateway.grpc).await;
    let mut slow = interval(RECEIVE_TIMEOUT / 20);
    let mut sent = 0;
    for byte in &preface {
        slow.tick().await;
        if !peer.try_send(&[*byte]).await {
            break;
        }
        sent += 1;
    }
    peer.ended().await;
    println!("{sent} of {} bytes were taken", preface.len());
    watched.serves(&gateway).await;
}

#[tokio::test]
async fn a_head_that_stops_halfway_ends_its_connection() {
    let sandbox = surveylab().await;
    let gateway = Gateway::with(impatient(), &sandbox).await;
    let mut watched = Watched::new(&gateway).await;
    let whole = open(1, ADD);
    let without_end = frame(HEADERS, NO_FLAGS, 1, &head(ADD));
    let mut peers = Vec::new();
    for stopped in [&whole[..5], &whole[..40], &without_end] {
        let mut peer = Peer::connect(&gateway, &[]).await;
        peer.send(stopped).await;
        peers.push(peer);
    }
    watched.serves(&gateway).await;
    for peer in peers {
        peer.ended().await;
    }
}

#[tokio::test]
async fn a_request_that_does_not_arrive_in_time_is_told_so() {
    let sandbox = surveylab().await;
    let gateway = Gateway::with(impatient(), &sandbox).await;
    let mut watched = Watched::new(&gateway).await;
    let caller = Caller::connect(&gateway).await;
    let whole = message(&request("late"));
    let mut calls = Vec::new();
    for (path, sent) in [
        (ADD, 0),
        (ADD, 3),
        (ADD, 20),
        // Complete, but for the end of the request, which may still bring another message.
        (ADD, whole.len()),
        (STREAM, 3),
        (STREAM, 20),
    ] {
        let mut call = caller.open(path).await;
        call.send(whole[..sent].to_vec());
        calls.push(call);
    }
    watched.serves(&gateway).await;
    for call in calls {
        let error = call.end().await.unwrap_err();
        assert_error(&error, Code::DeadlineExceeded, "RECEIVE_TIMEOUT");
    }
    assert!(!caller.has_ended());
    assert!(sandbox.keys().iter().all(|key| key.crk != "late"));
}

#[tokio::test]
async fn a_message_that_trickles_is_told_so() {
    let sandbox = surveylab().await;
    let gateway = Gateway::with(impatient(), &sandbox).await;
    let caller = Caller::connect(&gateway).await;
    for path in [ADD, STREAM] {
        let call = caller.open(path).await;
        let mut request = call.request;
        let trickling = tokio::spawn(async move {
            let mut slow = interval(RECEIVE_TIMEOUT / 100);
            let bytes = [prefix(0, 100_000), vec![0; 100_000]].concat();
            for byte in bytes {
                slow.tick().await;
                if request.send_data(vec![byte].into(), false).is_err() {
                    return;
                }
            }
        });
        let error = peer::end(call.answer).await.unwrap_err();
        assert_error(&error, Code::DeadlineExceeded, "RECEIVE_TIMEOUT");
        trickling.abort();
    }
    assert!(!caller.has_ended());
}

#[tokio::test]
async fn a_stream_may_rest_between_two_messages() {
    let sandbox = surveylab().await;
    let gateway = Gateway::with(impatient(), &sandbox).await;
    let caller = Caller::connect(&gateway).await;
    let mut stream = caller.open(STREAM).await;
    for crk in ["k0", "k1"] {
        let item = message(&request(crk));
        // In two pieces, the second one once the gateway waits for it, and works for others meanwhile.
        stream.send(item[..10].to_vec());
        let other = message(&request(&format!("while {crk}")));
        assert_eq!(caller.call(ADD, other).await, Ok(()));
        stream.send(item[10..].to_vec());
        until("the item is sent", async || {
            sandbox.keys().iter().any(|key| key.crk == crk)
        })
        .await;
        // Another call learns that the time has passed.
        let late = caller.open(ADD).await;
        assert_error(
            &late.end().await.unwrap_err(),
            Code::DeadlineExceeded,
            "RECEIVE_TIMEOUT",
        );
    }
    stream.half_close();
    assert_eq!(stream.end().await, Ok(()));
}

#[tokio::test]
async fn a_list_that_waits_for_the_rate_limit_is_not_late() {
    let sandbox = surveylab().await;
    let gate = Gate::new();
    sandbox.add_fault(Fault::hold(&gate).for_crk_prefix("k"));
    // The second item is on its way in when the window is full.
    let gateway = Gateway::with(impatient().flag("--stream-window", 1), &sandbox).await;
    let caller = Caller::connect(&gateway).await;
    let mut call = caller.open(STREAM).await;
    let second = message(&request("k1"));
    call.send([&message(&request("k0")), &second[..10]].concat());
    soon(sandbox.wait_for_requests(1)).await;
    for _ in 0..2 {
        let late = caller.open(ADD).await;
        assert_error(
            &late.end().await.unwrap_err(),
            Code::DeadlineExceeded,
            "RECEIVE_TIMEOUT",
        );
    }
    call.send(second[10..].to_vec());
    call.half_close();
    gate.release();
    assert_eq!(call.end().await, Ok(()));
    assert_eq!(sandbox.report().requests, 2);
}

#[tokio::test]
async fn calls_that_are_opened_only_to_be_reset_end_their_connection() {
    let sandbox = surveylab().await;
    let gateway = Gateway::start(&sandbox).await;
    let mut watched = Watched::new(&gateway).await;
    for path in [ADD, STREAM] {
        let mut peer = Peer::connect(&gateway, &[]).await;
        let mut streams = stream_ids();
        let mut pairs = 0;
        // CANCEL
        let reset = |id| [open(id, path), frame(RST_STREAM, NO_FLAGS, id, &8_u32.to_be_bytes())].concat();
        loop {
            let burst: Vec<u8> = streams.by_ref().take(5_000).flat_map(reset).collect();
            if !peer.try_send(&burst).await {
                break;
            }
            pairs += 5_000;
            assert!(pairs < 500_000, "it takes resets without end");
        }
        println!("about {pairs} calls were opened and reset");
        peer.ended().await;
        watched.memory(&gateway, "resets", 64 * MIB);
        watched.serves(&gateway).await;
    }
}

#[tokio::test]
async fn hundreds_of_cancelled_calls_are_nothing_special() {
    let sandbox = surveylab().await;
    let gateway = Gateway::start(&sandbox).await;
    let caller = Caller::connect(&gateway).await;
    for round in 0..5 {
        let mut calls = Vec::new();
        for _ in 0..500 {
            calls.push(caller.open(ADD).await);
        }
        calls.into_iter().for_each(peer::Call::cancel);
        let good = message(&request(&format!("k{round}")));
        assert_eq!(caller.call(ADD, good).await, Ok(()));
    }
    assert!(!caller.has_ended());
}

/// Sends the same bytes over and over, reading nothing, until the gateway ends the connection.
async fn flood_unread(gateway: &Gateway, what: &str, bytes: &[u8]) {
    let mut peer = Peer::connect(gateway, &[]).await;
    let piece = bytes.repeat(64 * 1024 / bytes.len());
    let mut sent = 0;
    while peer.try_send(&piece).await {
        sent += piece.len();
    }
    println!("{what}: {sent} bytes were taken");
}

#[tokio::test]
async fn floods_that_ask_for_answers_nobody_reads_end_their_connection() {
    let sandbox = surveylab().await;
    let gateway = Gateway::with(impatient(), &sandbox).await;
    let mut watched = Watched::new(&gateway).await;
    let ping = frame(PING, NO_FLAGS, 0, &[7; 8]);
    let settings = frame(SETTINGS, NO_FLAGS, 0, &[0, 4, 0, 0, 255, 255]);
    for (what, bytes) in [("pings", ping), ("settings", settings)] {
        flood_unread(&gateway, what, &bytes).await;
        watched.memory(&gateway, what, 16 * MIB);
        watched.serves(&gateway).await;
    }
}

#[tokio::test]
async fn a_flood_whose_answers_are_read_costs_no_memory() {
    const COUNT: usize = 50_000;
    let sandbox = surveylab().await;
    let gateway = Gateway::start(&sandbox).await;
    let mut watched = Watched::new(&gateway).await;
    for kind in [PING, SETTINGS] {
        let peer = Peer::connect(&gateway, &[]).await;
        let (reader, mut writer) = peer.0.into_split();
        let payload: &[u8] = if kind == PING { &[7; 8] } else { &[] };
        let flood = frame(kind, NO_FLAGS, 0, payload).repeat(COUNT);
        let writing = tokio::spawn(async move {
            writer.write_all(&flood).await.unwrap();
            writer
        });
        // Each acknowledgement is as long as what it is for; the gateway's first one is for the peer's settings.
        let mut answers = reader.take((COUNT * (9 + payload.len())) as u64);
        let mut read = vec![0; 64 * 1024];
        while soon(answers.read(&mut read)).await.unwrap() > 0 {}
        assert_eq!(answers.limit(), 0, "it ended before all was acknowledged");
        watched.serves(&gateway).await;
        watched.memory(&gateway, "an acknowledged flood", 16 * MIB);
        drop(soon(writing).await.unwrap());
    }
}

/// What a connection ends with, once these bytes were sent: the codes of its GOAWAYs.
async fn goaway_after(gateway: &Gateway, bytes: &[u8]) -> Vec<u32> {
    let mut peer = Peer::connect(gateway, &[]).await;
    // May fail midway, when the gateway has had enough.
    let _ended = peer.try_send(bytes).await;
    let said = peer.last_words().await;
    said.into_keys()
        .filter_map(|(kind, code)| (kind == GOAWAY).then_some(code))
        .collect()
}

#[tokio::test]
async fn frames_that_only_cost_work_end_their_connection() {
    let sandbox = surveylab().await;
    let gateway = Gateway::start(&sandbox).await;
    let mut watched = Watched::new(&gateway).await;
    let empty_data = frame(DATA, NO_FLAGS, 1, &[]).repeat(200);
    let no_end = frame(HEADERS, NO_FLAGS, 1, &head(ADD));
    let continued = frame(CONTINUATION, NO_FLAGS, 1, &literal("x", "y")).repeat(50);
    // One entry of the table is named again and again: 2 bytes for 4 KB each (RFC 7541, sections 6.2.1 and 6.1).
    let mut entry = vec![
        0x40,
        1,
        b'x',
        127,
        0x80 + (3900 - 127) as u8 % 128,
        ((3900 - 127) / 128) as u8,
    ];
    entry.extend([b'y'; 3900]);
    let bomb = [head(ADD), entry, vec![0x80 | 62; 8000]].concat();
    for (what, bytes) in [
        ("empty DATA", [open(1, STREAM), empty_data].concat()),
        ("CONTINUATION without end", [no_end, continued].concat()),
        ("a bomb of headers", frame(HEADERS, END_HEADERS, 1, &bomb)),
    ] {
        assert_eq!(goaway_after(&gateway, &bytes).await, [ENHANCE_YOUR_CALM], "{what}");
        watched.memory(&gateway, what, 16 * MIB);
        watched.serves(&gateway).await;
    }
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
async fn a_newcomer_takes_the_place_of_who_only_sits_there() {
    const PLACES: usize = 20;
    let sandbox = surveylab().await;
    let gateway = Gateway::with(Options::new().flag("--max-connections", PLACES), &sandbox).await;
    let mut watched = Watched::new(&gateway).await;
    let (items, list) = mpsc::channel(1);
    let mut busy = gateway.client().await;
    let opened = busy.stream_add_respondent(ReceiverStream::new(list));
    let mut results = soon(opened).await.unwrap().into_inner();

    // Half of them silent, half of them connections without a call.
    let mut sitting = Vec::new();
    for i in 0..10 * PLACES {
        sitting.push(if i % 2 == 0 {
            Peer::silent(gateway.grpc).await
        } else {
            Peer::connect(&gateway, &[]).await
        });
    }
    watched.memory(&gateway, "connections", 16 * MIB);
    watched.serves(&gateway).await;
    // Those who came first have gone.
    for (i, peer) in sitting.into_iter().take(9 * PLACES).enumerate() {
        let said = peer.last_words().await;
        let is_connection = i % 2 == 1;
        assert!(said.is_empty() || is_connection, "{said:?}");
    }
    // The one with a call under way has kept its place all the time.
    items.send(request("k")).await.unwrap();
    let result = soon(results.message()).await.unwrap().unwrap();
    assert_eq!(item(result).1.unwrap().outcome(), Outcome::Added);
}

#[tokio::test]
async fn with_calls_on_all_connections_a_newcomer_still_gets_through() {
    const PLACES: usize = 3;
    let sandbox = surveylab().await;
    let gate = Gate::new();
    sandbox.add_fault(Fault::hold(&gate).for_crk_prefix("k"));
    let options = Options::new()
        .flag("--max-connections", PLACES)
        .flag("--max-in-flight", 100);
    let gateway = Gateway::with(options, &sandbox).await;
    let mut calls = JoinSet::new();
    let mut clients = Vec::new();
    for i in 0..PLACES {
        let client = gateway.client().await;
        clients.push(client.clone());
        calls.spawn(async move { added(&client, request(&format!("k{i}"))).await });
        soon(sandbox.wait_for_requests(i as u64 + 1)).await;
    }
    // A crowd that would hold all others up as well.
    let mut crowd = Vec::new();
    for i in 0..40 {
        let client = gateway.client().await;
        crowd.push(client.clone());
        calls.spawn(async move {
            // Its place may be taken from it.
            let _ended = add(&client, request(&format!("k crowd {i}"))).await;
            Outcome::Unspecified
        });
    }
    let (code, _, error) = run(&["healthcheck", "--target", &format!("http://{}", gateway.grpc)], &[]).await;
    assert_eq!(code, Some(0), "{error}");
    assert_eq!(added(&gateway.client().await, request("new")).await, Outcome::Added);
    assert!(gateway.log().contains("--max-connections are open"));
    // Those who were there first go on.
    assert_eq!(soon(added(&clients[0], request("other"))).await, Outcome::Added);
    gate.release();
    let outcomes = soon(calls.join_all()).await;
    let of_the_first = outcomes.iter().filter(|outcome| **outcome == Outcome::Added);
    assert_eq!(of_the_first.count(), PLACES);
}

#[tokio::test]
async fn what_speaks_no_http2_is_closed_at_its_first_words() {
    let sandbox = surveylab().await;
    let gateway = Gateway::start(&sandbox).await;
    let mut watched = Watched::new(&gateway).await;
    let first_words: [&[u8]; 5] = [
        b"GET / HTTP/1.1\r\nhost: gateway\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"\n",
        &[0xff; 64 * 1024],
        &[MAGIC, &frame(PING, NO_FLAGS, 0, &[0; 8])].concat(),
    ];
    for words in first_words {
        let mut peer = Peer::silent(gateway.grpc).await;
        let _ended = peer.try_send(words).await;
        assert!(peer.next().await.is_none(), "nothing is said to it");
    }
    // What follows a good preface is told what it is.
    for garbage in [&[0xff; 100][..], &frame(DATA, NO_FLAGS, 1, b"x")] {
        assert_eq!(goaway_after(&gateway, garbage).await.len(), 1);
    }
    watched.memory(&gateway, "other protocols", 16 * MIB);
    watched.serves(&gateway).await;
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

#[tokio::test]
async fn the_admin_port_drops_who_does_not_ask_and_answers_who_does() {
    let sandbox = surveylab().await;
    let gateway = Gateway::with(impatient(), &sandbox).await;
    let watched = Watched::new(&gateway).await;
    let mut slow = Vec::new();
    // More than it takes at once, and fewer than the system keeps waiting besides.
    for i in 0..150 {
        let mut peer = Peer::silent(gateway.admin).await;
        let head = b"GET /metrics HTTP/1.1\r\nhost: gateway\r\nx: ";
        peer.send(&head[..i % head.len()]).await;
        slow.push(peer);
    }
    // It waits for its turn, which comes.
    assert_eq!(soon(gateway.admin("/healthz")).await.0, 200);
    let mut endless = Peer::silent(gateway.admin).await;
    let _ended = endless.try_send(b"GET /metrics HTTP/1.1\r\n").await;
    while endless
        .try_send(b"x: yyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyy\r\n")
        .await
    {}
    for mut peer in slow {
        let mut answer = Vec::new();
        // Whatever it says to them, it ends.
        let _ended = soon(peer.0.read_to_end(&mut answer)).await;
    }
    watched.memory(&gateway, "slow heads", 16 * MIB);
    assert_eq!(soon(gateway.admin("/metrics")).await.0, 200);
}
