//! How a command trusts the gateway that it calls, and shows who it is.

use std::{
    env, fs, io,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::Arc,
};

use clap::{Args, builder::BoolishValueParser};
use rustls::{
    RootCertStore,
    client::{WebPkiServerVerifier, danger::ServerCertVerifier},
    pki_types::{CertificateDer, pem::PemObject as _},
};
use rustls_platform_verifier::Verifier;
use secrecy::{ExposeSecret as _, SecretString, zeroize::Zeroizing};
use tonic::{
    metadata::{Ascii, MetadataValue},
    transport::{ClientTlsConfig, Endpoint, Identity},
};

use super::cause::cause;
use crate::token::{self, NOT_A_TOKEN};

const CA_FILE: &str = "--ca-file (GATEWAY_CA_FILE)";
const CLIENT_CERT: &str = "--client-cert (GATEWAY_CLIENT_CERT)";
const CLIENT_KEY: &str = "--client-key (GATEWAY_CLIENT_KEY)";
const TOKEN_FILE: &str = "--token-file (GATEWAY_TOKEN_FILE)";
/// The token itself. Never a flag: flags show in process lists.
const TOKEN: &str = "GATEWAY_TOKEN";

#[derive(Args, Clone, Debug)]
pub struct SecurityArgs {
    /// PEM file of the CAs that may have signed the gateway's certificate. Without it, those that the system trusts.
    #[arg(
        long,
        env = "GATEWAY_CA_FILE",
        value_name = "FILE",
        hide_env_values = true,
        global = true
    )]
    pub ca_file: Option<PathBuf>,

    /// PEM file of the certificate to show to a gateway that asks for one.
    #[arg(
        long,
        env = "GATEWAY_CLIENT_CERT",
        value_name = "FILE",
        hide_env_values = true,
        global = true
    )]
    pub client_cert: Option<PathBuf>,

    /// PEM file of that certificate's private key, not encrypted.
    #[arg(
        long,
        env = "GATEWAY_CLIENT_KEY",
        value_name = "FILE",
        hide_env_values = true,
        global = true
    )]
    pub client_key: Option<PathBuf>,

    /// File that holds the caller's token, which is sent with each call. The token itself may be given in the environment as
    /// GATEWAY_TOKEN, never as a flag.
    #[arg(
        long,
        env = "GATEWAY_TOKEN_FILE",
        value_name = "FILE",
        hide_env_values = true,
        global = true
    )]
    pub token_file: Option<PathBuf>,

    /// Send the token to another machine without TLS, where something else protects it.
    #[arg(long, env = "GATEWAY_TOKEN_IN_PLAIN_TEXT", value_parser = BoolishValueParser::new(), global = true)]
    pub token_in_plain_text: bool,
}

/// A wrong setting, named. Without paths: people paste secrets there.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{0}: the file can't be read: {1}")]
    File(&'static str, io::Error),
    #[error("{CA_FILE}: it holds no certificates in PEM form")]
    NoCa,
    #[error("{CA_FILE}: {0}")]
    Ca(String),
    #[error("the certificates that the system trusts can't be used: {0}; name some with {CA_FILE}")]
    SystemsCa(rustls::Error),
    #[error("{0} needs {1}")]
    Half(&'static str, &'static str),
    #[error("{CLIENT_CERT}, {CLIENT_KEY}: {0}")]
    Identity(String),
    #[error("{0} is for TLS, so the target has to begin with https:// (--target, GATEWAY_TARGET)")]
    NotForHttp(&'static str),
    #[error("both {TOKEN_FILE} and {TOKEN} are set: keep one")]
    TwoTokens,
    #[error("{0}: {NOT_A_TOKEN}")]
    BadToken(&'static str),
    #[error(
        "the target is another machine, and http:// would show it the token to whoever listens: use https:// (--target, \
         GATEWAY_TARGET), or --token-in-plain-text (GATEWAY_TOKEN_IN_PLAIN_TEXT)"
    )]
    PlainText,
}

impl SecurityArgs {
    /// The endpoint, with TLS if its scheme says so.
    pub(super) fn protect(&self, endpoint: Endpoint) -> Result<Endpoint, Error> {
        let pair = match (&self.client_cert, &self.client_key) {
            (Some(cert), Some(key)) => Some((cert, key)),
            (None, None) => None,
            (Some(_), None) => return Err(Error::Half(CLIENT_CERT, CLIENT_KEY)),
            (None, Some(_)) => return Err(Error::Half(CLIENT_KEY, CLIENT_CERT)),
        };
        if endpoint.uri().scheme_str() != Some("https") {
            return match (&self.ca_file, pair) {
                (Some(_), _) => Err(Error::NotForHttp(CA_FILE)),
                (None, Some(_)) => Err(Error::NotForHttp(CLIENT_CERT)),
                (None, None) => Ok(endpoint),
            };
        }
        let mut tls = ClientTlsConfig::new();
        if let Some((cert, key)) = pair {
            tls = tls.identity(Identity::from_pem(
                read(CLIENT_CERT, cert)?,
                read(CLIENT_KEY, key)?.as_slice(),
            ));
        }
        let verifier = verifier(self.ca_file.as_deref())?;
        let protected = endpoint.tls_config_with_verifier(tls, verifier);
        // The host is one, as it is a URI's: what is left to be wrong is the identity.
        protected.map_err(|error| Error::Identity(cause(&error)))
    }

    /// The caller's token as it is sent to `target`, if there is one.
    pub(super) fn token(&self, target: &Endpoint) -> Result<Option<MetadataValue<Ascii>>, Error> {
        let Some((token, source)) = self.read_token()? else {
            return Ok(None);
        };
        if !self.token_in_plain_text && target.uri().scheme_str() != Some("https") && !is_this_machine(target) {
            return Err(Error::PlainText);
        }
        let header = Zeroizing::new(format!("Bearer {}", token.expose_secret()));
        let mut header: MetadataValue<Ascii> = header.parse().map_err(|_| Error::BadToken(source))?;
        header.set_sensitive(true);
        Ok(Some(header))
    }

    fn read_token(&self) -> Result<Option<(SecretString, &'static str)>, Error> {
        let in_environment = env::var_os(TOKEN).filter(|token| !token.is_empty());
        let (text, source) = match (&self.token_file, in_environment) {
            (Some(_), Some(_)) => return Err(Error::TwoTokens),
            (None, None) => return Ok(None),
            (None, Some(token)) => (token.into_string().unwrap_or_default().into_bytes().into(), TOKEN),
            (Some(path), None) => (read(TOKEN_FILE, path)?, TOKEN_FILE),
        };
        let token = str::from_utf8(&text).ok().and_then(token::of);
        let token = token.ok_or(Error::BadToken(source))?;
        Ok(Some((token, source)))
    }
}

fn read(flag: &'static str, path: &Path) -> Result<Zeroizing<Vec<u8>>, Error> {
    let contents = fs::read(path).map_err(|error| Error::File(flag, error))?;
    Ok(contents.into())
}

/// Trusts the CAs of a file, or else the system's, as reqwest does.
fn verifier(ca: Option<&Path>) -> Result<Arc<dyn ServerCertVerifier>, Error> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let Some(path) = ca else {
        return Ok(Arc::new(Verifier::new(provider).map_err(Error::SystemsCa)?));
    };
    let pem = read(CA_FILE, path)?;
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&pem) {
        let certificate = certificate.map_err(|_| Error::NoCa)?;
        roots.add(certificate).map_err(|error| Error::Ca(error.to_string()))?;
    }
    if roots.is_empty() {
        return Err(Error::NoCa);
    }
    let verifier = WebPkiServerVerifier::builder_with_provider(roots.into(), provider).build();
    Ok(verifier.map_err(|error| Error::Ca(error.to_string()))?)
}

/// Does what is sent there stay on this machine?
fn is_this_machine(target: &Endpoint) -> bool {
    let host = target.uri().host().unwrap_or_default();
    let address: Result<IpAddr, _> = host.trim_matches(['[', ']']).parse();
    address.map_or(host.eq_ignore_ascii_case("localhost"), |address| {
        address.to_canonical().is_loopback()
    })
}
