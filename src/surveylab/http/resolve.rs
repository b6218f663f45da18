use std::{io, net::ToSocketAddrs, thread};

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use tokio::sync::oneshot;

/// Looks names up as the machine does, each in a thread of its own.
///
/// hyper-util's resolver takes a thread of tokio's pool, which panics where the process can have no more: in the middle
/// of a request, whose claim nobody would settle. That is a name that was not resolved, no more.
pub(super) struct Resolver;

impl Resolve for Resolver {
    fn resolve(&self, name: Name) -> Resolving {
        let (answer, answered) = oneshot::channel();
        let begun = thread::Builder::new().name("resolve".into()).spawn(move || {
            // A request that has given up needs no answer.
            let _ = answer.send((name.as_str(), 0).to_socket_addrs());
        });
        Box::pin(async move {
            begun?;
            let addresses: io::Result<_> = answered.await?;
            Ok(Box::new(addresses?) as Addrs)
        })
    }
}
