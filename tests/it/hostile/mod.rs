//! Peers that are hostile, or merely broken: the gateway's memory stays bounded, others are served meanwhile, and each
//! of them comes to a clear end.

use std::time::Duration;

use surveylab_gateway::proto::Outcome;
use tonic::Code;

use self::peer::{GOAWAY, Peer};
use crate::support::{
    Error, Gateway, Options,
    call::{Client, added},
    request,
    watch::{resident_memory, soon},
};

mod calls;
mod connections;
mod floods;
mod late;
pub mod peer;

const MIB: u64 = 1024 * 1024;

/// Long enough that a peer who means well keeps to it on a busy machine, and short enough to wait for.
const RECEIVE_TIMEOUT: Duration = Duration::from_secs(4);

fn impatient() -> Options {
    Options::new().flag("--receive-timeout", format!("{}s", RECEIVE_TIMEOUT.as_secs()))
}

/// What a test watches while its peers do their worst.
struct Watched {
    client: Client,
    idle: u64,
    served: u32,
}

impl Watched {
    async fn new(gateway: &Gateway) -> Self {
        let client = gateway.client().await;
        assert_eq!(added(&client, request("warm")).await, Outcome::Added);
        Self {
            client,
            idle: resident_memory(gateway),
            served: 0,
        }
    }

    /// A caller who means well is served, on a connection that was there before, and on a new one.
    async fn serves(&mut self, gateway: &Gateway) {
        for client in [self.client.clone(), gateway.client().await] {
            self.served += 1;
            let crk = format!("good{}", self.served);
            assert_eq!(soon(added(&client, request(&crk))).await, Outcome::Added);
        }
    }

    /// The memory that the gateway has taken since, in bytes. Must be under the bound.
    fn memory(&self, gateway: &Gateway, what: &str, bound: u64) {
        let grown = resident_memory(gateway).saturating_sub(self.idle);
        println!("{what}: {:.1} MiB more", grown as f64 / MIB as f64);
        assert!(grown < bound, "{what}: {grown} bytes");
    }
}

fn assert_error(error: &Error, code: Code, reason: &str) {
    assert_eq!(
        (error.code, &*error.reason, error.sent()),
        (code, reason, "no"),
        "{error:?}"
    );
    assert_eq!(error.domain, "surveylab-gateway");
}

/// What a connection ends with, once these bytes were sent: the codes of its GOAWAYs.
async fn goaway_after(gateway: &Gateway, bytes: &[u8]) -> Vec<u32> {
    let mut peer = Peer::connect(gateway, &[]).await;
    // May fail midway, when the gateway has had enough.
    let _ended = peer.try_send(bytes).await;
    let said = peer.last_words().await;
    said.into_keys()
        .filter_map(|(kind, code)| (kind == GOAWAY).then_some(code))
        .collect()
}
