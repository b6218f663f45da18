//! The gRPC face: the services, and the server that carries them.

use tonic::service::Routes;
use tonic_health::server::{HealthReporter, HealthService};

use crate::proto::{
    self,
    invitation_service_server::{InvitationServiceServer, SERVICE_NAME},
};

mod access;
mod access_log;
mod authenticate;
mod code;
pub(crate) mod convert;
mod deadline;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
mod page_token;
pub mod peer;
mod receive;
mod request_id;
pub mod server;
mod service;
mod status;
mod stream;
pub mod tls;

pub use authenticate::Guard;
pub use code::code_name;
pub use service::{About, Service};
pub use stream::Streams;

/// Bytes of one request. Every acceptable one is below 9 000, as SurveyLab's request line is; but one with all sixteen
/// fields just over 2 048 characters of four bytes, which take 131 KB, can still be told all that is wrong with it.
const MAX_MESSAGE: usize = 144 * 1024;

/// The health of the process and of its one service, which clients and load balancers watch.
#[derive(Clone)]
pub struct Health {
    reporter: HealthReporter,
}

const SERVICES: [&str; 2] = ["", SERVICE_NAME];

impl Health {
    /// Serving, from the first moment on.
    pub async fn new() -> Self {
        let reporter = HealthReporter::new();
        for service in SERVICES {
            reporter
                .set_service_status(service, tonic_health::ServingStatus::Serving)
                .await;
        }
        Self { reporter }
    }

    pub async fn draining(&self) {
        for service in SERVICES {
            self.reporter
                .set_service_status(service, tonic_health::ServingStatus::NotServing)
                .await;
        }
    }

    /// Ends all watches, which would hold their connections open.
    pub async fn gone(&mut self) {
        for service in SERVICES {
            self.reporter.clear_service_status(service).await;
        }
    }
}

/// Whether the contract can be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Reflection {
    On,
    Off,
}

/// All services of the gRPC port.
pub fn routes(
    service: Service,
    health: &Health,
    reflected: Reflection,
) -> Result<Routes, tonic_reflection::server::Error> {
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(proto::DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let invitations = InvitationServiceServer::new(service).max_decoding_message_size(MAX_MESSAGE);
    let health = HealthService::from_health_reporter(health.reporter.clone());
    let mut routes = Routes::new(invitations).add_service(tonic_health::pb::health_server::HealthServer::new(health));
    if reflected == Reflection::On {
        routes = routes
            .add_service(reflection().build_v1()?)
            .add_service(reflection().build_v1alpha()?);
    }
    Ok(routes.prepare())
}
