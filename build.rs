//! Compiles the contract without protoc, and keeps the descriptor set that server reflection serves.

use std::{env, error::Error, fs, path::PathBuf};

use protox::prost::Message as _;

const CONTRACT: &str = "surveylab/invitation/v1/invitation.proto";
/// Nothing imports it, but reflection must know it: clients decode the `Any` details of an error with it.
const ERROR_DETAILS: &str = "google/rpc/error_details.proto";

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    let out = PathBuf::from(env::var("OUT_DIR")?);

    let descriptors = protox::compile([CONTRACT, ERROR_DETAILS], ["proto"])?;
    fs::write(out.join("descriptors.bin"), descriptors.encode_to_vec())?;

    tonic_prost_build::configure()
        .extern_path(".google.rpc", "::tonic_types::pb")
        .compile_fds(descriptors)?;
    Ok(())
}
