use std::{io, net::ToSocketAddrs, sync::Arc, thread};

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use tokio::sync::{Semaphore, oneshot};

/// Looks names up as the machine does, each in a thread of its own.
///
/// hyper-util's resolver takes a thread of tokio's pool, which panics where the process can have no more: in the middle
/// of a request, whose claim nobody would settle. That is a name that was not resolved, no more.
pub(super) struct Resolver {
    threads: Arc<Semaphore>,
}

/// Threads at once. A look-up that hangs outlives the request that has given it up.
const THREADS: usize = 32;

impl Resolver {
    pub fn new() -> Self {
        Self {
            threads: Arc::new(Semaphore::new(THREADS)),
        }
    }
}

impl Resolve for Resolver {
    fn resolve(&self, name: Name) -> Resolving {
        let threads = self.threads.clone();
        Box::pin(async move {
            let permit = threads.acquire_owned().await?;
            let (answer, answered) = oneshot::channel();
            thread::Builder::new().name("resolve".into()).spawn(move || {
                // A request that has given up needs no answer.
                let _ = answer.send((name.as_str(), 0).to_socket_addrs());
                drop(permit);
            })?;
            let addresses: io::Result<_> = answered.await?;
            Ok(Box::new(addresses?) as Addrs)
        })
    }
}
