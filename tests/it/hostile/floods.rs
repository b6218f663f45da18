//! Frames and calls that only cost work.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::{
    MIB, Watched, goaway_after, impatient,
    peer::{
        self, ADD, CONTINUATION, Caller, DATA, END_HEADERS, ENHANCE_YOUR_CALM, HEADERS, NO_FLAGS, PING, Peer,
        RST_STREAM, SETTINGS, STREAM, frame, head, literal, message, open, stream_ids,
    },
};
use crate::support::{Gateway, gateway::surveylab, request, watch::soon};

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
