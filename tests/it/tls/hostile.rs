//! Peers that don't get through the handshake.

use std::net::SocketAddr;

use futures_util::future::join_all;
use rustls::{ClientConfig, ClientConnection, RootCertStore, pki_types::ServerName};
use surveylab_gateway::proto::Outcome;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tokio_rustls::client::TlsStream;

use super::{PREFACE, client_tls, connect, session, with_tls};
use crate::support::{
    Gateway, Options, added,
    certificates::{Authority, HERE},
    gateway::surveylab,
    request,
    watch::{metric, soon, until},
};

/// Says something, and waits for the gateway to end the connection: what came back.
async fn say(gateway: SocketAddr, bytes: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(gateway).await.unwrap();
    let mut back = Vec::new();
    // Cut off, it may be told so by an error.
    let _cut = stream.write_all(bytes).await;
    let _cut = soon(stream.read_to_end(&mut back)).await;
    back
}

/// A ClientHello as rustls says it.
fn client_hello() -> Vec<u8> {
    let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let name = ServerName::try_from("localhost").unwrap();
    let mut connection = ClientConnection::new(config.into(), name).unwrap();
    let mut hello = Vec::new();
    connection.write_tls(&mut hello).unwrap();
    hello
}

#[tokio::test]
async fn plain_text_on_the_tls_port_is_ended_at_once() {
    let sandbox = surveylab().await;
    let authority = Authority::new();
    let options = with_tls(&authority.issue("gateway", HERE)).flag("--receive-timeout", "1h");
    let gateway = Gateway::with(options, &sandbox).await;
    for words in [
        PREFACE,
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"\0",
        &[0x16; 70_000],
    ] {
        let back = say(gateway.grpc, words).await;
        // At most an alert.
        assert!(
            back.len() <= 7 && back.first().is_none_or(|first| *first == 0x15),
            "{back:?}"
        );
    }
    let client = connect(gateway.grpc, client_tls(&authority.ca(), None)).await.unwrap();
    assert_eq!(added(&client, request("k")).await, Outcome::Added);
}

#[tokio::test]
async fn tls_on_the_plain_port_is_ended_at_once() {
    let sandbox = surveylab().await;
    let gateway = Gateway::with(Options::new().flag("--receive-timeout", "1h"), &sandbox).await;
    let authority = Authority::new();
    soon(session(gateway.grpc, &authority.ca(), None, &["h2"]))
        .await
        .unwrap_err();
    assert_eq!(added(&gateway.client().await, request("k")).await, Outcome::Added);
}

#[tokio::test]
async fn who_stops_in_the_handshake_leaves_after_the_receive_timeout() {
    let sandbox = surveylab().await;
    let authority = Authority::new();
    let options = with_tls(&authority.issue("gateway", HERE))
        // Long enough for a busy machine's handshake.
        .flag("--receive-timeout", "3s")
        .flag("--max-connections", "4");
    let gateway = Gateway::with(options, &sandbox).await;
    let hello = client_hello();
    let unfinished = [&[][..], &hello[..1], &hello[..hello.len() - 1], &hello];
    join_all(unfinished.map(|words| say(gateway.grpc, words))).await;
    until("each of them is counted", async || {
        (metric(&gateway, "tls_handshakes_failed_total", "").await - 4.0).abs() < 1e-6
    })
    .await;

    // After the handshake the preface has its time, too.
    let mut session = session(gateway.grpc, &authority.ca(), None, &["h2"]).await.unwrap();
    session.write_all(&PREFACE[..20]).await.unwrap();
    let end = soon(tokio::io::copy(&mut session, &mut tokio::io::sink())).await;
    assert_eq!(end.unwrap_or(0), 0);
    let client = connect(gateway.grpc, client_tls(&authority.ca(), None)).await.unwrap();
    assert_eq!(added(&client, request("k")).await, Outcome::Added);
}

#[tokio::test]
async fn those_who_only_sit_in_the_handshake_lock_nobody_out() {
    let sandbox = surveylab().await;
    let authority = Authority::new();
    let options = with_tls(&authority.issue("gateway", HERE))
        .flag("--receive-timeout", "1h")
        .flag("--max-connections", "4");
    let gateway = Gateway::with(options, &sandbox).await;
    let mut sitting = Vec::new();
    for _ in 0..20 {
        sitting.push(TcpStream::connect(gateway.grpc).await.unwrap());
    }
    let client = soon(connect(gateway.grpc, client_tls(&authority.ca(), None)))
        .await
        .unwrap();
    assert_eq!(added(&client, request("k")).await, Outcome::Added);
    // And a shutdown waits for none of them.
    gateway.signal("TERM");
    let (gateway, status) = soon(gateway.once_ended()).await;
    assert!(status.success(), "{}", gateway.log());
    assert!(!gateway.log().contains("drain timeout"), "{}", gateway.log());
}

/// The next frame's type, flags and payload; `None` at the end of the session, which close_notify must have told.
async fn frame(session: &mut TlsStream<TcpStream>) -> Option<(u8, u8, Vec<u8>)> {
    let mut header = [0; 9];
    // Without close_notify rustls tells of an end that it did not expect.
    if soon(session.read(&mut header[..1])).await.unwrap() == 0 {
        return None;
    }
    soon(session.read_exact(&mut header[1..])).await.unwrap();
    let length = u32::from_be_bytes([0, header[0], header[1], header[2]]);
    let mut payload = vec![0; length.try_into().unwrap()];
    soon(session.read_exact(&mut payload)).await.unwrap();
    Some((header[3], header[4], payload))
}

#[tokio::test]
async fn a_shutdown_ends_a_session_by_close_notify() {
    const SETTINGS: u8 = 4;
    const PING: u8 = 6;
    const ACK: u8 = 1;
    let sandbox = surveylab().await;
    let authority = Authority::new();
    let gateway = Gateway::with(with_tls(&authority.issue("gateway", HERE)), &sandbox).await;
    let mut session = session(gateway.grpc, &authority.ca(), None, &["h2"]).await.unwrap();
    session.write_all(PREFACE).await.unwrap();
    while !matches!(frame(&mut session).await.unwrap(), (SETTINGS, ACK, _)) {}
    gateway.signal("TERM");
    while let Some((kind, _, payload)) = frame(&mut session).await {
        if kind == PING {
            session.write_all(&[0, 0, 8, PING, ACK, 0, 0, 0, 0]).await.unwrap();
            session.write_all(&payload).await.unwrap();
        }
    }
    assert!(soon(gateway.ended()).await.success());
}
