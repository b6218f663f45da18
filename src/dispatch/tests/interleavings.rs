//! Interleavings of calls, answers, failures and ends of the process, drawn at random and lived through on paused time.
//! What was seen of each is held against the contract, by rules that know nothing of the code.
//!
//! `PROPTEST_CASES` sets how many, and `PROPTEST_RNG_SEED` repeats a run. What fails shrinks to a plan that can be
//! written down as a test of its own.

use proptest::{prelude::*, test_runner::TestRunner};

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
    let config = ProptestConfig {
        failure_persistence: None,
        ..ProptestConfig::default()
    };
    let begin = std::time::SystemTime::now();
    let (cases, seen) = (std::cell::Cell::new(0), std::cell::Cell::new(0));
    let outcome = TestRunner::new(config).run(&plans(), |plan| {
        let events = live(&plan).map_err(TestCaseError::fail)?;
        cases.set(cases.get() + 1);
        seen.set(seen.get() + events);
        Ok(())
    });
    println!("{} interleavings, {} events, in {:?}", cases.get(), seen.get(), begin.elapsed());
    if let Err(failure) = outcome {
        panic!("{failure}");
    }
}
