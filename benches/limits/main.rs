//! The limits that the gateway is to keep, one table each: `cargo bench --bench limits`, and `-- --help` for its options.
//!
//! Unlike a comparison with peers, each figure here has a target that does not depend on what else was measured.

#![allow(
    clippy::disallowed_methods,
    reason = "it measures real time, and polls other processes"
)]

#[path = "../support/mod.rs"]
mod support;

mod disk;
mod grown;
mod latency;
mod memory;
mod rate;
mod start;
mod table;

use std::{fs, process::ExitCode};

use clap::ValueEnum;
use support::{Failure, files, process::raise_file_limit};
use table::Table;

#[derive(clap::Args)]
struct Options {
    /// Only these.
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Limit>,
    /// Keys of the grown ledger. It is made once, and kept in target/bench/ledgers.
    #[arg(long, default_value_t = 1_000_000)]
    keys: u64,
    /// Items of the long stream.
    #[arg(long, default_value_t = 1_000_000)]
    rows: u64,
    /// How long one thing is measured; three times that where it is slow.
    #[arg(long, default_value_t = 10.0)]
    seconds: f64,
    /// What is compared with something else is measured so often, in turn with that.
    #[arg(long, default_value_t = 3)]
    rounds: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Limit {
    Latency,
    Rate,
    Grown,
    Memory,
    Start,
}

impl Limit {
    fn measure(self, options: &Options) -> Result<Table, Failure> {
        match self {
            Self::Latency => latency::measure(options),
            Self::Rate => rate::measure(options),
            Self::Grown => grown::measure(options),
            Self::Memory => memory::measure(options),
            Self::Start => start::measure(),
        }
    }
}

fn main() -> ExitCode {
    support::main(run)
}

fn run(options: &Options) -> Result<(), Failure> {
    raise_file_limit();
    let mut tables = String::new();
    let mut failed = Vec::new();
    for limit in Limit::value_variants() {
        if !options.only.is_empty() && !options.only.contains(limit) {
            continue;
        }
        match limit.measure(options) {
            Ok(table) => {
                println!("{table}");
                tables += &format!("{table}\n");
            }
            // The others are worth having, after minutes.
            Err(error) => failed.push(format!("{limit:?}: {error}")),
        }
    }
    fs::write(files::directory("")?.join("limits.md"), tables)?;
    match failed.is_empty() {
        true => Ok(()),
        false => Err(failed.join("\n").into()),
    }
}
