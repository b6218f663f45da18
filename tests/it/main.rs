//! The gateway from outside: the real binary, called over gRPC, with the sandbox as SurveyLab. One binary for all
//! behaviours, so that they are linked once.

mod support;

mod access_log;
mod breaker;
mod bulk;
mod caller_command;
mod callers;
mod cancel;
mod cli;
mod clock_jumps;
mod crash;
mod disk;
mod doubt;
mod errors;
mod health;
mod history;
mod hostile;
mod hostile_surveylab;
mod idempotency;
mod import;
mod kills;
mod layout;
mod ledger_tools;
mod metrics;
mod migrate_ledger;
mod packaging;
mod page;
mod parameters;
mod pause;
mod power;
mod rate;
mod replicas;
mod resources;
mod secrets;
mod settings;
mod shutdown;
mod status;
mod stream;
mod tls;
mod token;
mod tracing;
