//! TLS of the gRPC port, as rustls does it by default: 1.2 and 1.3, no early data. Files that change hold for new
//! connections; those that are open live on.

use std::{fs::File, io, path::PathBuf, sync::Arc, time::Duration};

use rustls::{
    RootCertStore, ServerConfig,
    crypto::CryptoProvider,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    server::{NoServerSessionStorage, ServerConnection, WebPkiClientVerifier, danger::ClientCertVerifier},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    time::timeout,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_util::sync::CancellationToken;

use self::expiry::Expiry;
use super::peer::Peer;
use crate::{
    clock::Clock,
    metrics,
    reload::{self, Contents, Reloaded},
    socket::Socket,
};

mod expiry;

const CERT: &str = "--tls-cert (GATEWAY_TLS_CERT)";
const KEY: &str = "--tls-key (GATEWAY_TLS_KEY)";
const CLIENT_CA: &str = "--tls-client-ca (GATEWAY_TLS_CLIENT_CA)";

/// What gRPC is spoken over.
const ALPN: &[u8] = b"h2";

/// For a peer whose handshake failed to read why. To close at once what it still writes to would take that from it.
const LINGER: Duration = Duration::from_secs(1);
/// What it may write meanwhile.
const LINGER_BYTES: u64 = 64 * 1024;

/// The files, all PEM.
#[derive(Clone, Debug)]
pub struct Files {
    /// The gateway's certificate, then those between it and its CA.
    pub cert: PathBuf,
    /// The certificate's private key, not encrypted.
    pub key: PathBuf,
    pub clients: Option<Clients>,
}

/// Which certificates callers show.
#[derive(Clone, Debug)]
pub struct Clients {
    /// Those who may have signed them.
    pub ca: PathBuf,
    pub certificate: ClientCertificate,
}

/// May a caller come without a certificate?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientCertificate {
    Required,
    /// It proves in another way who it is. A certificate that it shows must be right all the same.
    Optional,
}

/// Why the files can't be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Without the path: people paste secrets there.
    #[error("{0}: the file can't be read: {1}")]
    File(&'static str, io::Error),
    #[error("TLS: {0}")]
    Files(#[from] reload::Error),
}

/// Makes TLS sessions from one state of the files.
pub struct Acceptor {
    inner: TlsAcceptor,
    expiry: Expiry,
}

/// Reads the files for the first time.
pub fn open(files: Files, clock: Clock) -> Result<Reloaded<Acceptor>, Error> {
    let Files { cert, key, clients } = files;
    let (ca, certificate) = clients.map(|clients| (clients.ca, clients.certificate)).unzip();
    let mut paths = Vec::new();
    for (flag, path) in [(CERT, Some(cert)), (KEY, Some(key)), (CLIENT_CA, ca)] {
        let Some(path) = path else { continue };
        // Which one it is `Reloaded` does not tell.
        File::open(&path).map_err(|error| Error::File(flag, error))?;
        paths.push(path);
    }
    let parse = move |contents: &Contents| {
        let acceptor = parse(contents, certificate)?;
        acceptor.expiry.warn(&clock);
        Ok(acceptor)
    };
    Ok(Reloaded::open("the files for TLS", paths, parse)?)
}

/// Until `stop`, reads the files again when they change, and warns of a certificate that expires.
pub async fn tend(acceptor: Reloaded<Acceptor>, clock: Clock, stop: CancellationToken) {
    let warnings = expiry::warn_daily(acceptor.clone(), clock, stop.clone());
    tokio::join!(acceptor.watch(stop), warnings);
}

fn parse(contents: &Contents, certificate: Option<ClientCertificate>) -> Result<Acceptor, String> {
    let [cert, key, ca @ ..] = contents.as_slice() else {
        return Err("files are missing".into());
    };
    let chain = certificates(cert, CERT)?;
    let key = PrivateKeyDer::from_pem_slice(key)
        .map_err(|_| format!("{KEY}: it holds no private key in PEM form that is not encrypted"))?;
    let expiry = Expiry::of(chain.first());
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let clients = match (ca, certificate) {
        ([ca], Some(certificate)) => clients(ca, certificate, &provider)?,
        _ => WebPkiClientVerifier::no_client_auth(),
    };
    let shows_certificates = clients.offer_client_auth();
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_client_cert_verifier(clients)
        .with_single_cert(chain, key)
        .map_err(|error| match error {
            rustls::Error::InconsistentKeys(_) => format!("{KEY}: it is not the key of the certificate in {CERT}"),
            rustls::Error::InvalidCertificate(error) => format!("{CERT}: {error}"),
            error => format!("{KEY}: {error}"),
        })?;
    config.alpn_protocols = vec![ALPN.into()];
    if shows_certificates {
        // A session that is resumed is not verified again, though the certificate has expired or its CA has gone.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
    }
    Ok(Acceptor {
        inner: Arc::new(config).into(),
        expiry,
    })
}

/// What a PEM file holds. What is wrong with it is not told by its lines: it may be the wrong file.
fn certificates(pem: &[u8], flag: &str) -> Result<Vec<CertificateDer<'static>>, String> {
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match certificates {
        Ok(certificates) if !certificates.is_empty() => Ok(certificates),
        _ => Err(format!("{flag}: it holds no certificates in PEM form")),
    }
}

fn clients(
    ca: &[u8],
    certificate: ClientCertificate,
    provider: &Arc<CryptoProvider>,
) -> Result<Arc<dyn ClientCertVerifier>, String> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(ca, CLIENT_CA)? {
        roots
            .add(certificate)
            .map_err(|error| format!("{CLIENT_CA}: {error}"))?;
    }
    let builder = WebPkiClientVerifier::builder_with_provider(roots.into(), provider.clone());
    let builder = match certificate {
        ClientCertificate::Required => builder,
        ClientCertificate::Optional => builder.allow_unauthenticated(),
    };
    builder.build().map_err(|error| format!("{CLIENT_CA}: {error}"))
}

impl Acceptor {
    /// Shakes hands within `patience`, with a peer that speaks HTTP/2; and who it is, if it showed a certificate. What fails
    /// is counted, and not worth a line in the log: ports are scanned all day.
    pub(super) async fn accept(
        &self,
        socket: Socket,
        patience: Duration,
    ) -> io::Result<(TlsStream<Socket>, Option<Peer>)> {
        let shaken = timeout(patience, self.inner.accept(socket).into_fallible()).await;
        let failure = match shaken {
            Ok(Ok(mut stream)) => match verified(stream.get_ref().1) {
                Ok(peer) => return Ok((stream, peer)),
                Err(error) => {
                    let _gone = timeout(LINGER, stream.shutdown()).await;
                    error
                }
            },
            Ok(Err((error, socket))) => {
                let _gone = timeout(LINGER, linger(socket)).await;
                error
            }
            Err(late) => late.into(),
        };
        metrics::tls_handshake_failed();
        tracing::debug!(error = %failure, "a TLS handshake failed");
        Err(failure)
    }
}

/// Who the peer is. Who names no protocol speaks another one, or is led here by somebody else (RFC 9113, section 3.3).
fn verified(session: &ServerConnection) -> io::Result<Option<Peer>> {
    if session.alpn_protocol() != Some(ALPN) {
        return Err(io::Error::other("the peer did not ask for HTTP/2 by ALPN"));
    }
    let certificate = session.peer_certificates().and_then(|chain| chain.first());
    Ok(certificate.and_then(Peer::of))
}

async fn linger(mut socket: Socket) -> io::Result<()> {
    socket.shutdown().await?;
    let mut rest = socket.take(LINGER_BYTES);
    tokio::io::copy(&mut rest, &mut tokio::io::sink()).await?;
    Ok(())
}

#[cfg(test)]
mod tests;
