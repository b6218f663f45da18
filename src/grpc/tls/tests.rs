//! What a service behind the port learns of its callers.

use std::{fs, num::NonZeroU32};

use axum::{Router, extract::Request};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rcgen::{CertificateParams, CertifiedIssuer, KeyPair};
use rustls::{ClientConfig, pki_types::ServerName};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_util::task::TaskTracker;
use tonic::service::Routes;

use super::*;
use crate::grpc::server::{Face, Limits, Port, serve};

/// A certificate of a CA of its own, for one name.
struct Identity {
    ca: CertificateDer<'static>,
    certificate: CertificateDer<'static>,
    key: KeyPair,
}

fn identity(name: &str) -> Identity {
    let mut params = CertificateParams::default();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new([name.to_string()]).unwrap();
    let certificate = params.signed_by(&key, &ca).unwrap();
    Identity {
        ca: ca.der().clone(),
        certificate: certificate.der().clone(),
        key,
    }
}

fn pem(certificate: &CertificateDer<'_>) -> String {
    use base64::{Engine as _, prelude::BASE64_STANDARD};
    let text = BASE64_STANDARD.encode(certificate);
    format!("-----BEGIN CERTIFICATE-----\n{text}\n-----END CERTIFICATE-----\n")
}

/// The names that a request has among its extensions, one a line.
async fn names(request: Request) -> String {
    match request.extensions().get::<Peer>() {
        Some(peer) => peer.names.join("\n"),
        None => "nobody".into(),
    }
}

/// What the port tells a caller of itself, with and without a certificate; `None` if it refuses.
async fn told(certificate: ClientCertificate) -> [Option<String>; 2] {
    let [server, client] = ["localhost", "caller.example"].map(identity);
    let directory = tempfile::tempdir().unwrap();
    let write = |name: &str, text: String| {
        let path = directory.path().join(name);
        fs::write(&path, text).unwrap();
        path
    };
    let files = Files {
        cert: write("cert.pem", pem(&server.certificate)),
        key: write("key.pem", server.key.serialize_pem()),
        clients: Some(Clients {
            ca: write("ca.pem", pem(&client.ca)),
            certificate,
        }),
    };
    let port = Port {
        listener: TcpListener::bind("127.0.0.1:0").await.unwrap(),
        tls: Some(open(files, Clock::system()).unwrap()),
    };
    let address = port.listener.local_addr().unwrap();
    let limits = Limits {
        max_connections: 10,
        max_streams: NonZeroU32::MIN.get(),
        receive_timeout: Duration::from_secs(60),
    };
    let routes = Routes::from(Router::new().fallback(names));
    let face = Face { routes, guard: None };
    let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
    let serving = tokio::spawn(serve(port, face, limits, stop.clone(), tasks));

    let mut answers = [None, None];
    for (answer, shows) in answers.iter_mut().zip([true, false]) {
        let mut roots = RootCertStore::empty();
        roots.add(server.ca.clone()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots);
        let mut config = if shows {
            let key = PrivateKeyDer::try_from(client.key.serialize_der()).unwrap();
            config
                .with_client_auth_cert(vec![client.certificate.clone()], key)
                .unwrap()
        } else {
            config.with_no_client_auth()
        };
        config.alpn_protocols = vec![ALPN.into()];
        let stream = TcpStream::connect(address).await.unwrap();
        let name = ServerName::try_from("localhost").unwrap();
        let stream = TlsConnector::from(Arc::new(config))
            .connect(name, stream)
            .await
            .unwrap();
        let (mut sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .unwrap();
        let connection = tokio::spawn(connection);
        let request = hyper::Request::get(format!("https://{address}/")).body(Empty::<Bytes>::new());
        if let Ok(response) = sender.send_request(request.unwrap()).await {
            let body = response.into_body().collect().await.unwrap().to_bytes();
            *answer = Some(String::from_utf8(body.into()).unwrap());
        }
        drop(sender);
        let _ended = connection.await;
    }
    stop.cancel();
    serving.await.unwrap();
    answers
}

#[tokio::test]
async fn each_request_tells_whose_certificate_its_connection_showed() {
    let [shown, none] = told(ClientCertificate::Required).await;
    assert_eq!((shown.as_deref(), none), (Some("caller.example"), None));
    let [shown, none] = told(ClientCertificate::Optional).await;
    assert_eq!(
        (shown.as_deref(), none.as_deref()),
        (Some("caller.example"), Some("nobody"))
    );
}
