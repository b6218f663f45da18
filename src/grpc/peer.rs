//! Who is at the other end of a connection, by its certificate.

use std::sync::Arc;

use rustls::pki_types::CertificateDer;
use webpki::EndEntityCert;

/// A caller whose certificate was verified. It is among the extensions of each request of its connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// The DNS names and URIs in the certificate (subject alternative names), as they stand there. May be none: the subject's
    /// common name does not count, as in RFC 9525.
    pub names: Arc<[String]>,
}

impl Peer {
    /// By a certificate that was verified; `None` if it can't be read, which verification rules out.
    pub(super) fn of(certificate: &CertificateDer<'_>) -> Option<Self> {
        let certificate = EndEntityCert::try_from(certificate).ok()?;
        let names = certificate.valid_dns_names().chain(certificate.valid_uri_names());
        Some(Self {
            names: names.map(Into::into).collect(),
        })
    }
}
