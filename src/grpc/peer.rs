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

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair, SanType, string::Ia5String};

    use super::*;

    #[test]
    fn a_peer_has_the_dns_names_and_uris_of_its_certificate_and_no_others() {
        let text = |text: &str| Ia5String::try_from(text).unwrap();
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![
            SanType::Rfc822Name(text("jan.kowalski@example.com")),
            SanType::URI(text("spiffe://example.com/crm")),
            SanType::DnsName(text("crm.example.com")),
            SanType::IpAddress([127, 0, 0, 1].into()),
        ];
        let certificate = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
        let peer = Peer::of(certificate.der()).unwrap();
        assert_eq!(*peer.names, ["crm.example.com", "spiffe://example.com/crm"]);

        let nameless = CertificateParams::default().self_signed(&KeyPair::generate().unwrap());
        assert!(Peer::of(nameless.unwrap().der()).unwrap().names.is_empty());
        assert_eq!(Peer::of(&CertificateDer::from_slice(b"no certificate")), None);
    }
}
