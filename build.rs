//! Compiles the contract without protoc, and keeps the descriptor set that server reflection serves. Checks the files of
//! others that are built in.

use std::{env, error::Error, fs, path::PathBuf};

use protox::prost::Message as _;
use sha2::{Digest as _, Sha256};

const CONTRACT: &str = "surveylab/invitation/v1/invitation.proto";
/// Nothing imports it, but reflection must know it: clients decode the `Any` details of an error with it.
const ERROR_DETAILS: &str = "google/rpc/error_details.proto";

const VENDOR: &str = "src/admin/page/vendor";
/// What the status page takes from others, with its SHA-256. `src/admin/page/vendor.sh` renews both; nobody edits them.
const VENDORED: [(&str, &str); 3] = [
    (
        "uPlot.iife.min.js",
        "19c8d4c6ad88929a79f4ae49d6f7161566dfd0ba3d15cc495e974f787eb78f1f",
    ),
    (
        "uPlot.min.css",
        "df630c6a8d6f8eeaff264b50f73ce5b114f646ffd9a0bb74f049b0a00135fa04",
    ),
    (
        "uPlot.LICENSE",
        "8f989229699b4fe2f1a0432d0e9edc338a8a911e250e2d1b01ecd770a5f5b1bd",
    ),
];

fn main() -> Result<(), Box<dyn Error>> {
    check_vendored()?;

    println!("cargo:rerun-if-changed=proto");
    let out = PathBuf::from(env::var("OUT_DIR")?);

    let descriptors = protox::compile([CONTRACT, ERROR_DETAILS], ["proto"])?;
    fs::write(out.join("descriptors.bin"), descriptors.encode_to_vec())?;

    tonic_prost_build::configure()
        .extern_path(".google.rpc", "::tonic_types::pb")
        .compile_fds(descriptors)?;
    Ok(())
}

fn check_vendored() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed={VENDOR}");
    for (file, expected) in VENDORED {
        let path = PathBuf::from(VENDOR).join(file);
        let contents = fs::read(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        let sum: String = Sha256::digest(contents)
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        if sum != expected {
            let path = path.display();
            return Err(
                format!("{path} is not what was published (SHA-256 {sum}): run src/admin/page/vendor.sh").into(),
            );
        }
    }
    Ok(())
}
