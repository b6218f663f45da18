//! What the benchmarks share: a SurveyLab as cheap as can be, a load that checks every answer, how the gateway is started,
//! ledgers that have grown, and the tests' PostgreSQL.

#![allow(dead_code, reason = "no benchmark uses all of it")]

use std::{error::Error, process::ExitCode};

use clap::Parser as _;

mod arrival;
pub mod bare;
pub mod files;
pub mod gateway;
pub mod keys;
pub mod ledgers;
pub mod load;
#[path = "../../tests/it/support/postgres.rs"]
pub mod postgres;
pub mod process;
pub mod statistics;
pub mod stub;

pub type Failure = Box<dyn Error + Send + Sync>;

/// The processes that a benchmark starts for itself.
#[derive(clap::Subcommand)]
enum Part {
    #[command(hide = true)]
    Stub(stub::Args),
    #[command(hide = true)]
    Bare(bare::Args),
    #[command(hide = true)]
    Load(load::Args),
}

impl Part {
    fn run(self) -> Result<(), Failure> {
        match self {
            Self::Stub(args) => stub::run(&args).map_err(Into::into),
            Self::Bare(args) => bare::run(&args),
            Self::Load(args) => load::run(args),
        }
    }
}

#[derive(clap::Parser)]
struct Cli<Options: clap::Args> {
    #[command(subcommand)]
    part: Option<Part>,
    #[command(flatten)]
    options: Options,
    /// What cargo calls every benchmark with.
    #[arg(long, hide = true)]
    bench: bool,
}

/// A benchmark's own main function, or that of a process it has started.
pub fn main<Options: clap::Args>(run: impl FnOnce(&Options) -> Result<(), Failure>) -> ExitCode {
    let Cli { part, options, .. } = Cli::parse();
    let done = match part {
        Some(part) => part.run(),
        None => run(&options),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
