//! The command line: one file a command.

use clap::{Parser, Subcommand};

use crate::config::ServeArgs;

pub mod add;
mod bar;
pub mod caller;
mod client;
mod exit;
mod field;
mod figures;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
pub mod generate;
pub mod healthcheck;
pub mod import;
pub mod invitations;
pub mod ledger;
pub mod migrate_ledger;
mod new_file;
pub mod output;
pub mod runtime;
pub mod sandbox;
pub mod status;
pub mod usage;

pub use exit::Exit;

/// Version, commit and the day of the commit: `0.1.0 (0123456789ab, 2026-01-31)`.
pub const VERSION: &str = env!("GATEWAY_VERSION");

/// Adds respondents to SurveyLab surveys over gRPC: at most once per key, never faster than the account allows.
#[derive(Parser, Debug)]
#[command(version = VERSION, propagate_version = true)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Subcommand, Debug)]
pub enum Command {
    Serve(Box<ServeArgs>),
    Sandbox(sandbox::SandboxArgs),
    Add(add::AddArgs),
    Import(Box<import::ImportArgs>),
    #[command(subcommand)]
    Invitations(invitations::InvitationsCommand),
    Ledger(ledger::LedgerArgs),
    #[command(subcommand)]
    Caller(caller::CallerCommand),
    MigrateLedger(migrate_ledger::MigrateLedgerArgs),
    Status(status::StatusArgs),
    Healthcheck(healthcheck::HealthcheckArgs),
    #[command(subcommand)]
    Generate(generate::GenerateCommand),
}
