//! surveylab-gateway.

pub mod cli;
pub mod clock;
pub mod invitation;
pub mod ledger;
pub mod rate;
pub mod sandbox;
pub mod surveylab;

/// The contract, generated from `proto/`.
pub mod proto {
    tonic::include_proto!("surveylab.invitation.v1");

    /// All files of the contract, for server reflection.
    pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
}
