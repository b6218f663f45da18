//! The gateway beside its peers, in one run: `cargo bench --bench peers`, and `-- --help` for its options.
//!
//! Starts a SurveyLab that adds everybody, then each peer in turn, round after round; a load of its own process checks
//! every answer. Figures of one run are to be compared with each other, not with those of another day or machine.

#![allow(
    clippy::disallowed_methods,
    reason = "it measures real time, and polls other processes"
)]

#[path = "../support/mod.rs"]
mod support;

mod bare;
mod compare;
mod peer;

use std::{error::Error, process::ExitCode};

use clap::{Parser, Subcommand};
use support::{load, stub};

#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    part: Option<Part>,
    #[command(flatten)]
    compare: compare::Args,
    /// What cargo calls every benchmark with.
    #[arg(long, hide = true)]
    bench: bool,
}

/// The processes that the comparison starts for itself.
#[derive(Subcommand)]
enum Part {
    #[command(hide = true)]
    Stub(stub::Args),
    #[command(hide = true)]
    Bare(bare::Args),
    #[command(hide = true)]
    Load(load::Args),
}

fn main() -> ExitCode {
    let Cli { part, compare, .. } = Cli::parse();
    let done: Result<(), Box<dyn Error + Send + Sync>> = match part {
        Some(Part::Stub(args)) => stub::run(&args).map_err(Into::into),
        Some(Part::Bare(args)) => bare::run(&args),
        Some(Part::Load(args)) => load::run(args),
        None => compare::run(&compare),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
