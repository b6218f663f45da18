//! surveylab-gateway.

pub mod admin;
pub mod app;
pub mod cli;
pub mod clock;
pub mod config;
pub mod dispatch;
pub mod grpc;
pub mod invitation;
pub mod ledger;
pub mod limiter;
pub mod metrics;
pub mod rate;
pub mod sandbox;
pub mod shutdown;
pub mod surveylab;
pub mod telemetry;

/// The contract, generated from `proto/`.
pub mod proto {
    tonic::include_proto!("surveylab.invitation.v1");

    /// All files of the contract, for server reflection.
    pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
}
