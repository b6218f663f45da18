//! The gateway from outside: the real binary, called over gRPC, with the sandbox as SurveyLab. One binary for all
//! behaviours, so that they are linked once.

mod support;

mod cancel;
mod cli;
mod crash;
mod disk;
mod doubt;
mod errors;
mod health;
mod hostile;
mod idempotency;
mod layout;
mod parameters;
mod pause;
mod rate;
mod secrets;
mod settings;
mod shutdown;
mod stream;
