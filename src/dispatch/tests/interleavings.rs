//! Interleavings of calls, answers, failures and ends of the process, drawn at random and lived through on paused time.
//! What was seen of each is held against the contract, by rules that know nothing of the code.
//!
//! `PROPTEST_CASES` sets how many, and `SEED` repeats a run. What fails shrinks to a plan that can be
//! written down as a test of its own. The gateway's own jitter is drawn anew each time.

use std::{cell::Cell, time::SystemTime};

use proptest::{
    prelude::*,
    test_runner::{RngAlgorithm, RngSeed, TestRunner},
};

use plan::{Plan, plans};

mod contract;
mod history;
mod plan;
mod run;
mod simulation;

/// How much of a history is told when it breaks the contract.
const MOMENTS_SHOWN: usize = 200;

/// Lives through a plan, and tells what of the contract did not hold, with all that was seen.
fn live(plan: &Plan) -> Result<usize, String> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap();
    let history = runtime.block_on(run::run(plan));
    contract::check(&history).map_err(|broken| {
        // What comes last are the probes, and what is asked of every key.
        let shown = history.entries.iter().enumerate().take(MOMENTS_SHOWN);
        let seen = shown.map(|(at, entry)| {
            let (time, process, event) = (entry.at, entry.process, &entry.event);
            format!("{at:4} {time:>12?} {process} {event:?}\n")
        });
        format!("{broken}\n{}", seen.collect::<String>())
    })?;
    Ok(history.entries.len())
}

#[test]
fn every_interleaving_keeps_the_contract() {
    let given = std::env::var("SEED").ok().map(|seed| seed.parse().unwrap());
    let seed = given.unwrap_or_else(rand::random);
    let config = ProptestConfig {
        failure_persistence: None,
        rng_algorithm: RngAlgorithm::XorShift,
        rng_seed: RngSeed::Fixed(seed),
        ..ProptestConfig::default()
    };
    let (lived, events, broken) = (Cell::new(0), Cell::new(0), Cell::new(None));
    let begin = SystemTime::now();
    let took = || begin.elapsed().unwrap_or_default();
    let outcome = TestRunner::new(config).run(&plans(), |plan| {
        lived.set(lived.get() + 1);
        let seen = live(&plan).map_err(|why| {
            // What is lived through after this is the search for a smaller one.
            broken.set(broken.get().or(Some((lived.get(), took()))));
            TestCaseError::fail(why)
        })?;
        events.set(events.get() + seen);
        Ok(())
    });
    let (lived, events, took) = (lived.get(), events.get(), took());
    println!("SEED={seed}: {lived} interleavings, {events} events, {took:?}");
    if let Some((number, took)) = broken.get() {
        println!("the {number}th broke the contract, after {took:?}");
    }
    if let Err(failure) = outcome {
        panic!("{failure}");
    }
}
