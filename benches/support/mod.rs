//! What the benchmarks share: a SurveyLab as cheap as can be, a load that checks every answer, how the gateway is started,
//! and ledgers that have grown.

#![allow(dead_code, reason = "no benchmark uses all of it")]

use std::error::Error;

mod arrival;
pub mod bare;
pub mod files;
pub mod gateway;
pub mod keys;
pub mod ledgers;
pub mod load;
pub mod process;
pub mod statistics;
pub mod stub;

pub type Failure = Box<dyn Error + Send + Sync>;

/// The processes that a benchmark starts for itself.
#[derive(clap::Subcommand)]
pub enum Part {
    #[command(hide = true)]
    Stub(stub::Args),
    #[command(hide = true)]
    Bare(bare::Args),
    #[command(hide = true)]
    Load(load::Args),
}

impl Part {
    pub fn run(self) -> Result<(), Failure> {
        match self {
            Self::Stub(args) => stub::run(&args).map_err(Into::into),
            Self::Bare(args) => bare::run(&args),
            Self::Load(args) => load::run(args),
        }
    }
}
