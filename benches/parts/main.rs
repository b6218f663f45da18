//! The gateway's parts, each by itself: `cargo bench --bench parts`, and `-- NAME` for some of them.
//!
//! Times are of one machine; what travels is how they compare within one run.

#![allow(
    clippy::disallowed_methods,
    reason = "it measures real time, and polls other processes"
)]

#[path = "../support/mod.rs"]
mod support;

mod authenticate;
mod callers;
mod ledger;
mod limiter;
mod messages;
mod stream;

use std::time::Duration;

use criterion::{Criterion, criterion_group, criterion_main};

criterion_group! {
    name = parts;
    // Three minutes for all of them.
    config = Criterion::default().warm_up_time(Duration::from_secs(1)).measurement_time(Duration::from_secs(3));
    targets =
        authenticate::tokens,
        messages::requests,
        messages::answers,
        stream::messages,
        stream::codec,
        limiter::permits,
        ledger::empty,
        ledger::grown
}
criterion_main!(parts);
