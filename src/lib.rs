//! A gRPC service in front of SurveyLab's webhook: it adds respondents to collectors, never twice for one key, never
//! faster than the account allows, and says exactly what happened.
//!
//! The way of one request, and where to find each step:
//!
//! | step | what | where |
//! |---|---|---|
//! | decode, validate | nothing is recorded and no rate spent on bad input | [`grpc`], [`invitation`] |
//! | 1 join | the same key is under way here? wait for its result | [`dispatch`] |
//! | 2 look up | added: a duplicate; other data: refused; in doubt: held | [`ledger`] |
//! | 3 wait | for a token and a place in flight, in order | [`limiter`] |
//! | 4 claim | durable, before a byte goes out | [`ledger`] |
//! | 5 send | one GET, its answer classified once | [`surveylab`] |
//! | 6 settle | durable, before anyone is told | [`ledger`] |
//! | 7 again? | not processed: back to 3, while attempts and deadline last | [`dispatch`] |
//! | encode | one exhaustive match from failure to status | [`grpc`] |
//!
//! Where a permit is there without waiting, the claim looks the key up as well: one step of the ledger instead of two.
//!
//! Unary calls and stream items go the same way. Steps 3 to 7 go on in a task of their own when their caller leaves, so
//! nobody who leaves can cut a request short.
//!
//! Where callers are configured, [`callers`] knows whose credentials a call brings and what it may do; [`grpc`] asks it
//! before a request is read.
//!
//! Imports point one way: `main` → [`app`] → [`grpc`] → [`dispatch`] → [`limiter`], [`surveylab`], [`ledger`] →
//! [`invitation`], [`clock`]. Beside that way:
//!
//! | what | where |
//! |---|---|
//! | settings; files that are read again when they change | [`config`], [`reload`] |
//! | what is seen of it: the admin port with its page, metrics, counts for the page, logs and spans | [`admin`], [`metrics`], [`activity`], [`telemetry`], [`trace`] |
//! | the commands, and the fake SurveyLab for trials and tests | [`cli`], [`sandbox`] |
//! | sessions with PostgreSQL, for the ledger and for the shared rate | [`postgres`] |
//! | sockets, signals, the service manager | [`socket`], [`shutdown`], [`supervisor`] |
//! | a rate as it is written; places where a test has the process die | [`rate`], [`fail_point`] |

pub mod activity;
pub mod admin;
pub mod app;
pub mod callers;
pub mod cli;
pub mod clock;
pub mod config;
pub mod dispatch;
pub mod fail_point;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
pub mod grpc;
mod hex;
pub mod invitation;
pub mod ledger;
pub mod limiter;
pub mod method;
pub mod metrics;
pub mod postgres;
pub mod rate;
pub mod reload;
pub mod sandbox;
pub mod shutdown;
pub mod socket;
pub mod supervisor;
pub mod surveylab;
pub mod telemetry;
pub mod token;
pub mod trace;

/// The contract, generated from `proto/`.
pub mod proto {
    tonic::include_proto!("surveylab.invitation.v1");

    /// All files of the contract, for server reflection.
    pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
}
