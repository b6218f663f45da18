//! Who a connection is from, as far as its TLS handshake says.

use std::sync::Arc;

/// The names of a client certificate that was verified, DNS names and URIs; in the extensions of each request of its
/// connection.
#[derive(Clone, Debug)]
pub struct Peer {
    pub names: Arc<[String]>,
}
