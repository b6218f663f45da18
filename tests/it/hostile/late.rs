//! What does not arrive in time, and what may take its time.

use surveylab_gateway::sandbox::{Fault, Gate};
use tokio::time::interval;
use tonic::Code;

use super::{
    RECEIVE_TIMEOUT, Watched, assert_error, impatient,
    peer::{self, ADD, Caller, HEADERS, MAGIC, NO_FLAGS, Peer, SETTINGS, STREAM, frame, head, message, open, prefix},
};
use crate::support::{
    Gateway,
    gateway::surveylab,
    request,
    watch::{soon, until},
};

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
