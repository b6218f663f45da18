//! Files that change while the gateway runs.

use std::{
    fs,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use surveylab_gateway::proto::Outcome;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    task::JoinSet,
};
use tonic::transport::ClientTlsConfig;

use super::{PREFACE, client_tls, connect, pem_lines, session, shown, with_tls};
use crate::support::{
    Gateway, added,
    call::add,
    certificates::{Authority, HERE, Pair, put, replace},
    gateway::surveylab,
    request,
    watch::{soon, until},
};

const USED: &str = "reloaded after a change";
const KEPT: &str = "the previous contents stay in effect";

/// Waits until the log has one more line with `text` than it had.
async fn one_more(gateway: &Gateway, text: &str, before: usize) {
    until(text, async || count(gateway, text) > before).await;
}

fn count(gateway: &Gateway, text: &str) -> usize {
    gateway.log().matches(text).count()
}

/// Calls until it is told to stop: on one connection, or with a few calls on each of many.
struct Caller {
    gateway: std::net::SocketAddr,
    tls: ClientTlsConfig,
    number: usize,
    calls_each: u64,
    stop: Arc<AtomicBool>,
    calls: Arc<AtomicU64>,
}

impl Caller {
    async fn run(self) {
        for connection in 0.. {
            let client = connect(self.gateway, self.tls.clone()).await.unwrap();
            for call in 0..self.calls_each {
                if self.stop.load(Ordering::Relaxed) {
                    return;
                }
                let crk = format!("{}-{connection}-{call}", self.number);
                add(&client, request(&crk)).await.unwrap();
                self.calls.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

#[tokio::test]
async fn ten_rotations_under_load_fail_no_call() {
    let sandbox = surveylab().await;
    let authority = Authority::new();
    let pair = authority.issue("gateway", HERE);
    let gateway = Gateway::with(with_tls(&pair), &sandbox).await;

    let stop = Arc::new(AtomicBool::new(false));
    let calls = Arc::new(AtomicU64::new(0));
    let mut callers = JoinSet::new();
    for (number, calls_each) in [u64::MAX, u64::MAX, 1, 5].into_iter().enumerate() {
        let caller = Caller {
            gateway: gateway.grpc,
            tls: client_tls(&authority.ca(), None),
            number,
            calls_each,
            stop: stop.clone(),
            calls: calls.clone(),
        };
        callers.spawn(caller.run());
    }
    for round in 0..10 {
        let next = authority.issue(&format!("round-{round}"), HERE);
        let before = (count(&gateway, USED), count(&gateway, KEPT));
        replace(&pair.cert, &next.cert);
        if round % 3 == 0 {
            // Half of it is there for a while.
            one_more(&gateway, KEPT, before.1).await;
            assert_ne!(shown(gateway.grpc, &authority.ca()).await, next.der());
        }
        replace(&pair.key, &next.key);
        one_more(&gateway, USED, before.0).await;
        assert_eq!(shown(gateway.grpc, &authority.ca()).await, next.der());
    }
    stop.store(true, Ordering::Relaxed);
    while let Some(caller) = soon(callers.join_next()).await {
        caller.expect("a call failed");
    }
    let calls = calls.load(Ordering::Relaxed);
    assert!(calls > 100, "{calls}");
    assert_eq!(u64::try_from(sandbox.keys().len()).unwrap(), calls);
}

#[tokio::test]
async fn a_broken_file_leaves_what_was_there_and_is_told() {
    let sandbox = surveylab().await;
    let authority = Authority::new();
    let pair = authority.issue("gateway", HERE);
    let first = pair.der();
    let gateway = Gateway::with(with_tls(&pair), &sandbox).await;
    let other = authority.issue("other", HERE);

    let key = pem_lines(&pair.key);
    let half = fs::read_to_string(&pair.key).unwrap();
    let broken: [(&Path, &str, &str); 3] = [
        (&pair.key, &half[..half.len() / 2], "--tls-key"),
        (&pair.cert, "", "--tls-cert"),
        (&pair.cert, &fs::read_to_string(&other.cert).unwrap(), "--tls-key"),
    ];
    for (path, contents, flag) in broken {
        let whole = fs::read(path).unwrap();
        let before = count(&gateway, KEPT);
        put(path, contents.as_bytes());
        one_more(&gateway, KEPT, before).await;
        let log = gateway.log();
        let line = log.lines().rfind(|line| line.contains(KEPT)).unwrap();
        assert!(line.contains(flag) && line.contains("ERROR"), "{line}");
        assert!(key.iter().all(|secret| !log.contains(secret)), "the key is in the log");
        assert_eq!(shown(gateway.grpc, &authority.ca()).await, first);
        let before = count(&gateway, USED);
        put(path, &whole);
        one_more(&gateway, USED, before).await;
    }
    let client = connect(gateway.grpc, client_tls(&authority.ca(), None)).await.unwrap();
    assert_eq!(added(&client, request("k")).await, Outcome::Added);
}

#[tokio::test]
async fn another_client_ca_holds_for_new_connections() {
    let sandbox = surveylab().await;
    let [authority, clients, others] = [(); 3].map(|()| Authority::new());
    let options = with_tls(&authority.issue("gateway", HERE)).flag("--tls-client-ca", clients.ca().display());
    let gateway = Gateway::with(options, &sandbox).await;
    let [old, new] = [&clients, &others].map(|ca| ca.issue("caller", "DNS:caller.example"));
    let call = async |pair: &Pair, crk: &str| {
        let client = connect(gateway.grpc, client_tls(&authority.ca(), Some(pair))).await;
        match client {
            Ok(client) => add(&client, request(crk)).await.is_ok(),
            Err(_refused) => false,
        }
    };
    let open = connect(gateway.grpc, client_tls(&authority.ca(), Some(&old)))
        .await
        .unwrap();
    assert_eq!(added(&open, request("before")).await, Outcome::Added);
    assert!(!call(&new, "too early").await);
    // A session that could be resumed would go on without its certificate being looked at.
    let mut session = session(gateway.grpc, &authority.ca(), Some(&old), &["h2"])
        .await
        .unwrap();
    session.write_all(PREFACE).await.unwrap();
    soon(session.read_exact(&mut [0; 9])).await.unwrap();
    assert_eq!(session.get_ref().1.tls13_tickets_received(), 0);

    let before = count(&gateway, USED);
    replace(&clients.ca(), &others.ca());
    one_more(&gateway, USED, before).await;
    assert!(call(&new, "new").await);
    assert!(!call(&old, "old").await);
    assert_eq!(added(&open, request("after")).await, Outcome::Added);
}

#[tokio::test]
async fn a_certificate_that_expires_is_told_and_served() {
    let sandbox = surveylab().await;
    let authority = Authority::new();
    // Those of the tests are valid for a day.
    let pair = authority.issue("gateway", HERE);
    let gateway = Gateway::with(with_tls(&pair), &sandbox).await;
    assert!(gateway.log().contains("expires soon"), "{}", gateway.log());
    let client = connect(gateway.grpc, client_tls(&authority.ca(), None)).await.unwrap();

    let expired = authority.issue_expired("expired", HERE);
    replace(&pair.cert, &expired.cert);
    replace(&pair.key, &expired.key);
    one_more(&gateway, "has expired", 0).await;
    assert!(gateway.log().contains("2020-12-31T23:59:59Z"), "{}", gateway.log());
    let refused = session(gateway.grpc, &authority.ca(), None, &["h2"]).await.unwrap_err();
    assert!(refused.to_string().contains("expired"), "{refused}");
    assert_eq!(added(&client, request("k")).await, Outcome::Added);
}
