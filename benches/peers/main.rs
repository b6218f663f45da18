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

fn main() -> ExitCode {
    support::main(compare::run)
}
