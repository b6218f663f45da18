//! TLS of the gRPC port, with certificates that openssl made.

use std::{fs, io, net::SocketAddr, path::Path, process::Command, sync::Arc};

use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject as _},
};
use surveylab_gateway::proto::{Outcome, invitation_service_client::InvitationServiceClient};
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Identity};

use crate::support::{
    Gateway, Options, added,
    call::Client,
    certificates::{Authority, HERE, Pair},
    gateway::surveylab,
    request,
    watch::soon,
};

mod commands;
mod exposure;
mod hostile;
mod mutual;
mod rotation;

/// What an HTTP/2 client says first, with no settings.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

/// Settings for TLS with this pair.
fn with_tls(pair: &Pair) -> Options {
    Options::new()
        .flag("--tls-cert", pair.cert.display())
        .flag("--tls-key", pair.key.display())
        .flag("--ledger", "memory:")
}

/// How a client of tonic's trusts, and shows who it is.
fn client_tls(ca: &Path, identity: Option<&Pair>) -> ClientTlsConfig {
    let tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(fs::read(ca).unwrap()));
    match identity {
        None => tls,
        Some(pair) => tls.identity(Identity::from_pem(
            fs::read(&pair.cert).unwrap(),
            fs::read(&pair.key).unwrap(),
        )),
    }
}

/// A client on a new connection. Whether a certificate of its own is refused it learns with its first call.
async fn connect(gateway: SocketAddr, tls: ClientTlsConfig) -> Result<Client, tonic::transport::Error> {
    let endpoint = Channel::from_shared(format!("https://{gateway}")).unwrap();
    let channel = endpoint.tls_config(tls).unwrap().connect().await?;
    Ok(InvitationServiceClient::new(channel))
}

/// A new TLS session, and nothing said on it.
async fn session(
    gateway: SocketAddr,
    ca: &Path,
    identity: Option<&Pair>,
    alpn: &[&str],
) -> io::Result<TlsStream<TcpStream>> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(ca).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots);
    let mut config = match identity {
        None => config.with_no_client_auth(),
        Some(pair) => {
            let key = PrivateKeyDer::from_pem_file(&pair.key).unwrap();
            config.with_client_auth_cert(vec![pair.der()], key).unwrap()
        }
    };
    config.alpn_protocols = alpn.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
    let stream = TcpStream::connect(gateway).await?;
    let name = ServerName::try_from("localhost").unwrap();
    TlsConnector::from(Arc::new(config)).connect(name, stream).await
}

/// The certificate that a new connection is shown.
async fn shown(gateway: SocketAddr, ca: &Path) -> CertificateDer<'static> {
    let session = session(gateway, ca, None, &["h2"]).await.unwrap();
    session.get_ref().1.peer_certificates().unwrap()[0].clone().into_owned()
}

/// The lines of a PEM file that hold its contents.
fn pem_lines(path: &Path) -> Vec<String> {
    let text = fs::read_to_string(path).unwrap();
    let lines = text.lines().filter(|line| !line.starts_with('-') && !line.is_empty());
    lines.map(Into::into).collect()
}

#[tokio::test]
async fn a_call_over_tls_is_answered_and_the_key_shows_nowhere() {
    let sandbox = surveylab().await;
    let authority = Authority::new();
    let pair = authority.issue("gateway", HERE);
    let gateway = Gateway::with(with_tls(&pair).env("RUST_LOG", "trace"), &sandbox).await;
    let client = connect(gateway.grpc, client_tls(&authority.ca(), None)).await.unwrap();
    assert_eq!(added(&client, request("k")).await, Outcome::Added);
    assert_eq!(shown(gateway.grpc, &authority.ca()).await, pair.der());
    assert_eq!(gateway.admin("/metrics").await.0, 200);
    let log = gateway.log();
    assert!(log.contains(r#""level":"DEBUG""#), "{log}");
    for line in pem_lines(&pair.key) {
        assert!(!log.contains(&line), "the key is in the log");
    }
}

#[tokio::test]
async fn only_http_2_is_spoken_over_tls() {
    let sandbox = surveylab().await;
    let authority = Authority::new();
    let gateway = Gateway::with(with_tls(&authority.issue("gateway", HERE)), &sandbox).await;
    let ca = authority.ca();
    let session = async |alpn: &[&str]| soon(session(gateway.grpc, &ca, None, alpn)).await;
    let spoken = session(&["http/1.1", "h2"]).await.unwrap();
    assert_eq!(spoken.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    let refused = session(&["http/1.1"]).await.unwrap_err();
    assert!(refused.to_string().contains("NoApplicationProtocol"), "{refused}");
    // Who asks for nothing learns after the handshake that it is not welcome.
    let mut silent = session(&[]).await.unwrap();
    let end = soon(tokio::io::copy(&mut silent, &mut tokio::io::sink())).await;
    assert_eq!(end.unwrap(), 0);
}

/// What `openssl s_client` says of a connection with these options, and whether it got one.
async fn s_client(gateway: SocketAddr, ca: &Path, options: &[&str]) -> (bool, String) {
    let mut command = Command::new("openssl");
    command
        .args(["s_client", "-connect", &gateway.to_string(), "-alpn", "h2", "-CAfile"])
        .arg(ca)
        .args(options)
        .stdin(std::process::Stdio::null());
    let output = soon(tokio::task::spawn_blocking(move || command.output().unwrap())).await;
    let output = output.unwrap();
    let text = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
    (output.status.success(), text.concat())
}

#[tokio::test]
async fn tls_1_3_and_1_2_are_spoken_and_nothing_older() {
    let sandbox = surveylab().await;
    let authority = Authority::new();
    let gateway = Gateway::with(with_tls(&authority.issue("gateway", HERE)), &sandbox).await;
    for (option, version) in [("-tls1_3", "TLSv1.3"), ("-tls1_2", "TLSv1.2")] {
        let (connected, text) = s_client(gateway.grpc, &authority.ca(), &[option, "-verify_return_error"]).await;
        assert!(connected && text.contains(&format!("New, {version}")), "{text}");
        assert!(text.contains("ALPN protocol: h2"), "{text}");
    }
    // openssl itself speaks these at its lowest level of security alone.
    for option in ["-tls1_1", "-tls1"] {
        let options = [option, "-cipher", "ALL:@SECLEVEL=0"];
        let (connected, text) = s_client(gateway.grpc, &authority.ca(), &options).await;
        assert!(!connected && text.contains("alert"), "{text}");
    }
}
