//! Why a connection failed, told for whoever can do something about it.

use std::{error::Error, io, iter};

use rustls::{AlertDescription, CertificateError};

/// The innermost cause; of TLS in words that say what to look at.
pub fn cause(error: &(dyn Error + 'static)) -> String {
    let tls = chain(error).find_map(|error| {
        let inner = || error.downcast_ref::<io::Error>()?.get_ref()?.downcast_ref();
        error.downcast_ref::<rustls::Error>().or_else(inner)
    });
    if let Some(error) = tls {
        return explain(error);
    }
    // By TLS 1.3 a certificate is refused when the connection is there already, and hyper does not say why it ended.
    let unsent = |error: &hyper::Error| error.is_canceled();
    if chain(error).any(|error| error.downcast_ref().is_some_and(unsent)) {
        return "the connection was closed before the call went out: it may want TLS there (https://), or another \
                certificate (--client-cert)"
            .into();
    }
    chain(error).last().map(ToString::to_string).unwrap_or_default()
}

/// The same of a connection that was to be made with TLS.
pub fn cause_in_handshake(error: &(dyn Error + 'static)) -> String {
    let ended = chain(error).any(|error| {
        // TCP's own connecting brings none of these.
        let error = error.downcast_ref::<io::Error>();
        error.is_some_and(|error| {
            use io::ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
            matches!(error.kind(), UnexpectedEof | ConnectionReset | BrokenPipe)
        })
    });
    if ended {
        return "the connection ended within the TLS handshake: is TLS spoken there, or is it http://?".into();
    }
    cause(error)
}

fn chain<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    iter::successors(Some(error), |error: &&'a (dyn Error + 'static)| (*error).source())
}

fn explain(error: &rustls::Error) -> String {
    match error {
        rustls::Error::InvalidCertificate(error) => match error {
            // Where another CA has the same name, it is the signature that does not fit.
            CertificateError::UnknownIssuer | CertificateError::BadSignature => {
                "its certificate was not signed by a CA that is trusted here (see --ca-file)".into()
            }
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => "its certificate has expired".into(),
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                "its certificate is not valid yet".into()
            }
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                format!("its certificate is for another name: {error}")
            }
            error => format!("its certificate is not accepted: {error}"),
        },
        rustls::Error::InvalidMessage(_) => "TLS is not spoken there: is it http://?".into(),
        rustls::Error::AlertReceived(alert) => match alert {
            AlertDescription::CertificateRequired => "it asks for a certificate (--client-cert, --client-key)".into(),
            AlertDescription::NoApplicationProtocol => "it speaks TLS, but not HTTP/2".into(),
            alert => format!("it refuses the TLS session: {alert:?}"),
        },
        error => error.to_string(),
    }
}
