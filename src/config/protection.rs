//! Who may reach the ports, and how what they say is protected.

use std::{net::SocketAddr, path::PathBuf};

use clap::{Args, builder::BoolishValueParser};

use crate::grpc::tls::{ClientCertificate, Clients, Files};

/// TLS of the gRPC port, and what may be bound without it.
#[derive(Args, Clone, Debug)]
pub struct ProtectionArgs {
    /// PEM file of the gateway's certificate, followed by those between it and its CA: turns TLS on for gRPC. Read again when
    /// it changes, as the other two.
    #[arg(long, env = "GATEWAY_TLS_CERT", value_name = "FILE", hide_env_values = true)]
    pub tls_cert: Option<PathBuf>,

    /// PEM file of the certificate's private key, not encrypted.
    #[arg(long, env = "GATEWAY_TLS_KEY", value_name = "FILE", hide_env_values = true)]
    pub tls_key: Option<PathBuf>,

    /// PEM file of the CAs whose certificates callers must show (mutual TLS); with --callers a token does instead.
    #[arg(long, env = "GATEWAY_TLS_CLIENT_CA", value_name = "FILE", hide_env_values = true)]
    pub tls_client_ca: Option<PathBuf>,

    /// Allow any address for both ports, without TLS or credentials: where something else protects them.
    #[arg(long, env = "GATEWAY_INSECURE", value_parser = BoolishValueParser::new())]
    pub insecure: bool,

    /// The same for the admin port alone. It is plain HTTP, and only to be read.
    #[arg(long, env = "GATEWAY_INSECURE_ADMIN", value_parser = BoolishValueParser::new())]
    pub insecure_admin: bool,
}

/// Do callers have to prove who they are?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Callers {
    Authenticated,
    Anyone,
}

/// What is not protected, or only half.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{given} ({given_variable}) needs {missing} ({missing_variable})")]
    Half {
        given: &'static str,
        given_variable: &'static str,
        missing: &'static str,
        missing_variable: &'static str,
    },
    #[error(
        "--listen (GATEWAY_LISTEN) {address}: other machines reach that, so it needs {missing}; --insecure \
         (GATEWAY_INSECURE) goes without, where something else protects it"
    )]
    Listen { address: SocketAddr, missing: &'static str },
    #[error(
        "--admin-listen (GATEWAY_ADMIN_LISTEN) {0}: other machines reach that, and it speaks plain HTTP to anyone; \
         --insecure-admin (GATEWAY_INSECURE_ADMIN) allows it"
    )]
    AdminListen(SocketAddr),
}

impl ProtectionArgs {
    /// The files, if there are all that belong together.
    pub fn tls(&self, certificate: ClientCertificate) -> Result<Option<Files>, Error> {
        let cert = ("--tls-cert", "GATEWAY_TLS_CERT", &self.tls_cert);
        let key = ("--tls-key", "GATEWAY_TLS_KEY", &self.tls_key);
        let client_ca = ("--tls-client-ca", "GATEWAY_TLS_CLIENT_CA", &self.tls_client_ca);
        for (given, missing) in [(cert, key), (key, cert), (client_ca, cert)] {
            if given.2.is_some() && missing.2.is_none() {
                return Err(Error::Half {
                    given: given.0,
                    given_variable: given.1,
                    missing: missing.0,
                    missing_variable: missing.1,
                });
            }
        }
        let pair = self.tls_cert.clone().zip(self.tls_key.clone());
        let clients = self.tls_client_ca.clone().map(|ca| Clients { ca, certificate });
        Ok(pair.map(|(cert, key)| Files { cert, key, clients }))
    }

    /// May the gRPC port be bound there?
    pub fn allow_listen(&self, address: SocketAddr, callers: Callers) -> Result<(), Error> {
        let missing = match (&self.tls_cert, callers) {
            (Some(_), Callers::Authenticated) => return Ok(()),
            (Some(_), Callers::Anyone) => "callers that prove who they are (--callers or --tls-client-ca)",
            (None, Callers::Authenticated) => "TLS (--tls-cert, --tls-key)",
            (None, Callers::Anyone) => {
                "TLS (--tls-cert, --tls-key) and callers that prove who they are (--callers or --tls-client-ca)"
            }
        };
        if self.insecure || is_loopback(address) {
            return Ok(());
        }
        Err(Error::Listen { address, missing })
    }

    /// May the admin port be bound there?
    pub fn allow_admin_listen(&self, address: SocketAddr) -> Result<(), Error> {
        if self.insecure || self.insecure_admin || is_loopback(address) {
            return Ok(());
        }
        Err(Error::AdminListen(address))
    }
}

/// Does nobody but this machine reach it?
fn is_loopback(address: SocketAddr) -> bool {
    address.ip().to_canonical().is_loopback()
}
