//! The gateway from outside: the real binary, called over gRPC, with the sandbox as SurveyLab. One binary for all
//! behaviours, so that they are linked once.

mod support;

mod cancel;
mod doubt;
mod errors;
mod health;
mod idempotency;
mod parameters;
mod secrets;
mod shutdown;
