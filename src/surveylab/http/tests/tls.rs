//! TLS with a certificate of the tests' own: `tls/certificate.pem` signs itself for 127.0.0.1, `tls/key.pem` is its key
//! and protects nothing.

use std::{
    io::{Read, Write},
    net::TcpListener,
    process::Command,
    sync::Arc,
    thread::JoinHandle,
};

use rustls::{
    ServerConfig, ServerConnection,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};

use super::*;

const CERTIFICATE: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/src/surveylab/http/tests/tls/certificate.pem"
);

struct Seen {
    /// What ALPN agreed upon.
    protocol: Option<Vec<u8>>,
    arrived: String,
}

/// Serves one connection: its first request is answered, its second not.
fn server() -> (String, JoinHandle<Seen>) {
    let certificate = CertificateDer::from_pem_slice(include_bytes!("tls/certificate.pem")).unwrap();
    let key = PrivateKeyDer::from_pem_slice(include_bytes!("tls/key.pem")).unwrap();
    let mut config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .unwrap();
    config.alpn_protocols = vec!["h2".into(), "http/1.1".into()];
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("https://{}/api.php", listener.local_addr().unwrap());
    let serving = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut tls = ServerConnection::new(Arc::new(config)).unwrap();
        let mut tls_stream = rustls::Stream::new(&mut tls, &mut stream);
        let mut arrived = String::new();
        let mut piece = [0; 8_192];
        while let Ok(read @ 1..) = tls_stream.read(&mut piece) {
            arrived.push_str(str::from_utf8(&piece[..read]).unwrap());
            match arrived.matches("\r\n\r\n").count() {
                0 => {}
                1 => tls_stream.write_all(ADDED).unwrap(),
                _ => break,
            }
        }
        Seen {
            protocol: tls.alpn_protocol().map(Vec::from),
            arrived,
        }
    });
    (url, serving)
}

#[tokio::test]
async fn a_certificate_nobody_vouches_for() {
    let (url, serving) = server();
    assert_unreachable(&send(&surveylab(&url, PATIENT)).await, "no connection: ");
    assert_eq!(serving.join().unwrap().arrived, "");
}

#[test]
fn doubt_begins_after_the_handshake() {
    const CHILD: &str = "SURVEYLAB_GATEWAY_TEST_TLS";
    if std::env::var_os(CHILD).is_none() {
        // The machine's certificates are the whole process's, so another one trusts this one.
        let name = "surveylab::http::tests::tls::doubt_begins_after_the_handshake";
        let mut child = Command::new(std::env::current_exe().unwrap());
        child
            .args(["--exact", name, "--nocapture"])
            .env(CHILD, "1")
            .env("SSL_CERT_FILE", CERTIFICATE);
        let output = child.env_remove("SSL_CERT_DIR").output().unwrap();
        let shown = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && shown.contains("1 passed"), "{shown}");
        return;
    }
    let (url, serving) = server();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let surveylab = surveylab(&url, PATIENT);
        assert_eq!(send(&surveylab).await, added());
        tokio::task::yield_now().await;
        assert_in_doubt(&send(&surveylab).await, None);
    });
    let Seen { protocol, arrived } = serving.join().unwrap();
    assert_eq!(protocol.as_deref(), Some(&b"http/1.1"[..]));
    assert_eq!(arrived.matches("GET /api.php?apiToken=").count(), 2);
}
