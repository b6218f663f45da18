//! Connections that are too many, or speak something else.

use surveylab_gateway::{
    proto::Outcome,
    sandbox::{Fault, Gate},
};
use tokio::{io::AsyncReadExt as _, sync::mpsc, task::JoinSet};
use tokio_stream::wrappers::ReceiverStream;

use super::{
    MIB, Watched, goaway_after, impatient,
    peer::{DATA, MAGIC, NO_FLAGS, PING, Peer, frame},
};
use crate::support::{
    Gateway, Options,
    call::{add, added, item},
    gateway::{run, surveylab},
    request,
    watch::soon,
};

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
