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

mod compare;
mod peer;

use std::process::ExitCode;

use clap::Parser;
use support::Part;

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

fn main() -> ExitCode {
    let Cli { part, compare, .. } = Cli::parse();
    let done = match part {
        Some(part) => part.run(),
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
