//! Loss of power: every claim is durable before its request goes out, every outcome before anyone is told, and what a
//! disk has kept, whatever that is, opens as a ledger that says nothing wrong. A kill cannot show this: all that a dead
//! process wrote is there.
//!
//! SEED repeats a test's choices. POWER_IMAGES, POWER_RETURNS and POWER_KILLS make more of them. How the gateway's
//! threads take turns is no such choice, so a trace with breaches is kept: POWER_REPLAY and SEED give its images again.

use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};

use crate::support::{Gateway, watch::soon};
use check::Known;
use disk::{Disk, Files};
use scenario::Scenario;

mod check;
mod disk;
mod kills;
mod load;
mod scenario;
mod trace;

const SIGKILL: i32 = 9;

/// The seed of a random test, to be had again by SEED.
fn seeded() -> StdRng {
    let seed = std::env::var("SEED").map_or_else(|_| rand::random(), |seed| seed.parse().unwrap());
    println!("SEED={seed}");
    StdRng::seed_from_u64(seed)
}

/// How many rounds or images a test makes.
fn count(variable: &str, usual: usize) -> usize {
    std::env::var(variable).map_or(usual, |count| count.parse().unwrap())
}

async fn shut_down(gateway: Gateway) {
    gateway.signal("TERM");
    let (gateway, status) = soon(gateway.once_ended()).await;
    assert!(status.success(), "{status}\n{}", gateway.log());
}

/// A disk after a loss of power right before an event.
struct Image {
    at: usize,
    seed: u64,
    files: Files,
}

/// Images of random moments, as many from each phase.
fn images(scenario: &Scenario, random: &mut StdRng, count: usize) -> impl Iterator<Item = Image> {
    let phases = scenario.phases();
    let mut moments: Vec<(usize, u64)> = (0..count)
        .map(|i| (random.random_range(phases[i % phases.len()].clone()), random.random()))
        .collect();
    moments.sort_unstable();
    let mut disk = Disk::default();
    let mut done = 0;
    moments.into_iter().map(move |(at, seed)| {
        scenario.events[done..at].iter().for_each(|event| disk.apply(event));
        done = at;
        let files = disk.after_loss_of_power(&mut StdRng::seed_from_u64(seed));
        Image { at, seed, files }
    })
}

/// What is wrong with images of random moments: a line for each breach.
async fn breaches(scenario: &Scenario, random: &mut StdRng, count: usize) -> Vec<String> {
    let story = scenario.story();
    let mut all = Vec::new();
    for image in images(scenario, random, count) {
        let known = Known::at(&story, image.at, &scenario.answers, &scenario.asked);
        let directory = tempfile::tempdir().unwrap();
        disk::write(&image.files, directory.path());
        let breaches = known.breaches(&directory.path().join("ledger.db")).await;
        let named = breaches.into_iter();
        all.extend(named.map(|breach| format!("before event {}, image {}: {breach}", image.at, image.seed)));
    }
    all
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn claims_are_durable_before_requests_and_outcomes_before_answers() {
    let scenario = Scenario::run(&mut seeded(), |options| options).await;
    let (breaches, requests, answers) = check::order(&scenario.story());
    println!(
        "{} events, {requests} requests and {answers} answers",
        scenario.events.len()
    );
    assert!(breaches.is_empty(), "{}", breaches.join("\n"));
    // The second and the third process finish 120 plain keys and 8 that need two requests, whenever the first dies.
    assert!(requests >= 168 && answers >= 128);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_a_loss_of_power_leaves_opens_as_a_ledger_that_is_right() {
    let mut random = seeded();
    // Of its own, so that a trace that was kept gets the same images again.
    let mut of_images = StdRng::seed_from_u64(random.random());
    let scenario = match std::env::var("POWER_REPLAY") {
        Ok(path) => Scenario::kept(path.as_ref()),
        Err(_) => Scenario::run(&mut random, |options| options).await,
    };
    let count = count("POWER_IMAGES", 200);
    let breaches = breaches(&scenario, &mut of_images, count).await;
    println!("{count} images of {} events", scenario.events.len());
    if !breaches.is_empty() {
        let kept = scenario.keep();
        panic!("POWER_REPLAY={}\n{}", kept.display(), breaches.join("\n"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_gateway_comes_back_after_a_loss_of_power_and_after_another_one() {
    let mut random = seeded();
    let scenario = Scenario::run(&mut random, |options| options).await;
    let count = count("POWER_RETURNS", 3);
    let returns: Vec<Image> = images(&scenario, &mut random, count).collect();
    for Image { at, seed, files } in returns {
        println!("back from a loss before event {at}, image {seed}");
        let mut scenario = scenario.clone();
        scenario.resumed(at, files).await;
        let breaches = breaches(&scenario, &mut random, 9).await;
        assert!(breaches.is_empty(), "{}", breaches.join("\n"));
    }
}

/// Runs with this planted bug, and expects both checks to find it.
async fn is_found_out(lie: &str) {
    let mut random = seeded();
    let scenario = Scenario::run(&mut random, |options| options.env("POWER_LIE", lie)).await;
    let (order, requests, _) = check::order(&scenario.story());
    assert!(order.len() >= requests, "{}", order.join("\n"));
    let breaches = breaches(&scenario, &mut random, 40).await;
    println!("{} breaches of order, {} in 40 images", order.len(), breaches.len());
    assert!(breaches.iter().any(|breach| breach.contains("answered: true")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_that_never_syncs_is_found_out() {
    is_found_out("").await;
}

/// What SQLite does where `synchronous` is NORMAL.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_that_does_not_sync_the_wal_is_found_out() {
    is_found_out("-wal").await;
}
