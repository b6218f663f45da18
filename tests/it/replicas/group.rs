//! Replicas, each with a connection to the database that can be cut, and what lies in front of them.

use std::{
    env,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use surveylab_gateway::{
    proto::{AddRespondentRequest, AddRespondentResponse},
    sandbox::Sandbox,
};
use tokio::time::sleep;
use tonic::Code;

use crate::support::{
    Error, Gateway, Options,
    call::{Client, add},
    gateway::surveylab,
    postgres::{self, Database, Server},
    relay::Relay,
    watch::soon,
};

/// After so long a replica that says nothing counts as dead.
pub const LEASE: Duration = Duration::from_secs(3);

/// Faster than any test needs it, and with a burst that a shared rate can be used up with.
pub fn options() -> Options {
    Options::new().flag("--rate", "2000/s").flag("--burst", 500)
}

/// A number of the environment.
pub fn number(name: &str, default: u64) -> u64 {
    env::var(name).map_or(default, |text| text.parse().unwrap())
}

pub struct Group {
    pub gateways: Vec<Gateway>,
    /// Between each replica and the database.
    pub relays: Vec<Relay>,
    pub sandbox: Sandbox,
    pub server: &'static Server,
    pub database: Database<'static>,
}

impl Group {
    pub async fn of(count: usize, options: Options) -> Self {
        Self::before(surveylab().await, count, options).await
    }

    pub async fn before(sandbox: Sandbox, count: usize, options: Options) -> Self {
        Self::on(postgres::shared(), sandbox, count, options).await
    }

    /// On a server of its own, which the test may kill while others go on. It ends with the process.
    pub async fn alone(sandbox: Sandbox, count: usize, options: Options) -> Self {
        let server = Box::leak(Box::new(Server::start(&[])));
        Self::on(server, sandbox, count, options).await
    }

    async fn on(server: &'static Server, sandbox: Sandbox, count: usize, options: Options) -> Self {
        let database = server.database();
        let (mut gateways, mut relays) = (Vec::new(), Vec::new());
        for _ in 0..count {
            let relay = Relay::to(([127, 0, 0, 1], server.port).into()).await;
            let ledger = database.url_by(&relay.address.to_string());
            gateways.push(
                Gateway::with(
                    options.clone().flag("--ledger", ledger).flag("--replica-lease", "3s"),
                    &sandbox,
                )
                .await,
            );
            relays.push(relay);
        }
        Self {
            gateways,
            relays,
            sandbox,
            server,
            database,
        }
    }

    /// A client of each replica.
    pub async fn clients(&self) -> Vec<Client> {
        let mut clients = Vec::new();
        for gateway in &self.gateways {
            clients.push(gateway.client().await);
        }
        clients
    }

    /// Has a replica drain, and starts it again.
    pub async fn roll(&mut self, index: usize) {
        self.gateways[index].signal("TERM");
        let gateway = self.gateways.remove(index);
        self.gateways.insert(index, soon(gateway.restart_when_ended()).await);
    }

    pub async fn kill_and_restart(&mut self, index: usize) {
        let gateway = self.gateways.remove(index);
        self.gateways.insert(index, soon(gateway.restart()).await);
    }

    pub async fn balancer(&self) -> Balancer {
        Balancer {
            clients: Arc::new(Mutex::new(self.clients().await)),
            turns: Arc::default(),
        }
    }
}

/// What spreads calls over the replicas, as a client's round robin does.
#[derive(Clone)]
pub struct Balancer {
    clients: Arc<Mutex<Vec<Client>>>,
    turns: Arc<AtomicUsize>,
}

impl Balancer {
    /// A replica has come back elsewhere.
    pub fn turn(&self, index: usize, client: Client) {
        self.clients.lock().unwrap()[index] = client;
    }

    fn client(&self, turn: usize) -> Client {
        let clients = self.clients.lock().unwrap();
        clients[turn % clients.len()].clone()
    }

    /// README's policy: UNAVAILABLE is tried again, four times in all, each time at the next replica.
    pub async fn add_with_retries(&self, request: AddRespondentRequest) -> Result<AddRespondentResponse, Error> {
        let mut wait = Duration::from_millis(100);
        let turn = self.turns.fetch_add(1, Ordering::Relaxed);
        let mut tries = 0;
        loop {
            let answer = add(&self.client(turn + tries), request.clone()).await;
            tries += 1;
            match answer {
                Err(error) if is_to_be_tried_again(&error) && tries < 4 => {
                    sleep(wait).await;
                    wait *= 2;
                }
                answer => return answer,
            }
        }
    }
}

/// An error without a reason is the client's own: tonic's says Cancelled or Internal of a call that met the end of its
/// connection, where gRPC's own clients say UNAVAILABLE.
fn is_to_be_tried_again(error: &Error) -> bool {
    error.code == Code::Unavailable
        || (error.reason.is_empty() && matches!(error.code, Code::Cancelled | Code::Internal))
}
