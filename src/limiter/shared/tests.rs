use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use proptest::prelude::*;
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use tokio::{
    sync::mpsc,
    task::{JoinHandle, JoinSet},
    time::{sleep, sleep_until, timeout},
};

use super::*;
use crate::{
    limiter::{Lane, Permit, Refused, StreamId, TooLate},
    rate::Rate,
};
use model::{Client, Database, Network};

mod model;

const fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

const fn s(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn settings(rate: &str, burst: u32) -> Settings {
    Settings {
        rate: rate.parse().unwrap(),
        burst,
        rested: Duration::MAX,
        max_in_flight: 1_000_000,
        max_queue: 1_000_000,
    }
}

fn database(settings: &Settings) -> Database {
    Database::new(Terms::new(settings.rate.period(), settings.burst))
}

/// Starts a replica; it ends with its limiter's closing, or with the runtime.
fn replica(settings: Settings, client: Client) -> Limiter {
    let (limiter, pacer, lease) = Limiter::shared(settings, client);
    tokio::spawn(pacer.run());
    tokio::spawn(lease.run());
    limiter
}

async fn take(limiter: &Limiter) -> Permit {
    let mut permit = limiter.acquire(Lane::Unary, None).await.unwrap();
    permit.token().await.unwrap();
    permit
}

/// The greatest number by which any window of times exceeds burst + rate·W.
fn excess(times: &[Instant], burst: u32, period: Duration) -> f64 {
    let Some(first) = times.first() else { return f64::MIN };
    let mut least = f64::MAX;
    let mut worst = f64::MIN;
    for (index, time) in times.iter().enumerate() {
        let above = index as f64 - (*time - *first).as_secs_f64() / period.as_secs_f64();
        least = least.min(above);
        worst = worst.max(above - least + 1.0 - f64::from(burst));
    }
    worst
}

/// Keeps `many` requests waiting at a replica, whose claims take up to `claim`, and tells when each leaves.
fn saturate(
    limiter: &Limiter,
    name: usize,
    many: usize,
    claim: Duration,
    sent: &mpsc::UnboundedSender<(usize, Instant)>,
) -> Vec<JoinHandle<()>> {
    let work = |index: usize| {
        let (limiter, sent) = (limiter.clone(), sent.clone());
        async move {
            let mut random = StdRng::seed_from_u64(index as u64);
            loop {
                let Ok(mut permit) = limiter.acquire(Lane::Stream(StreamId(index as u64)), None).await else {
                    return;
                };
                if !claim.is_zero() {
                    sleep(claim.mul_f64(random.random_range(0.1..1.0))).await;
                }
                if permit.token().await.is_ok() {
                    sent.send((name, Instant::now())).unwrap();
                }
            }
        }
    };
    (0..many).map(|index| tokio::spawn(work(index))).collect()
}

/// Lets replicas that all have work send for `length`. Times of each, and all in order.
async fn race(
    settings: Settings,
    networks: &[Network],
    claim: Duration,
    length: Duration,
) -> (Vec<usize>, Vec<Instant>) {
    let database = database(&settings);
    let (sent, mut sends) = mpsc::unbounded_channel();
    let limiters: Vec<_> = networks
        .iter()
        .enumerate()
        .map(|(name, network)| replica(settings, database.client(*network, name as u64)))
        .collect();
    let begin = Instant::now();
    let mut work = Vec::new();
    for (name, limiter) in limiters.iter().enumerate() {
        work.extend(saturate(limiter, name, 1_500, claim, &sent));
    }
    sleep(length).await;
    for task in work {
        task.abort();
    }
    for limiter in &limiters {
        limiter.close();
    }
    drop(sent);
    let mut counts = vec![0; networks.len()];
    let mut times = Vec::new();
    while let Some((name, at)) = sends.recv().await {
        if at <= begin + length {
            counts[name] += 1;
            times.push(at);
        }
    }
    times.sort();
    (counts, times)
}

#[tokio::test(start_paused = true)]
async fn replicas_use_the_rate_up_together_and_never_exceed_it() {
    for (rate, burst, length) in [
        ("50/s", 10, 60),
        ("1000/s", 120, 10),
        ("5000/s", 600, 4),
        ("2/s", 5, 600),
        ("120/m", 3, 600),
    ] {
        for claim in [ms(0), ms(15)] {
            let settings = settings(rate, burst);
            let period = settings.rate.period();
            let (counts, times) = race(settings, &[Network::FAST; 3], claim, s(length)).await;
            let over = excess(&times, burst, period);
            assert!(over < 1e-6, "{rate}: {over}");
            let ideal = length as f64 / period.as_secs_f64();
            let used = times.len() as f64 / ideal;
            assert!(used >= 0.98, "{rate}, claims of {claim:?}: {used}");
            let least = *counts.iter().min().unwrap() as f64 / times.len() as f64;
            assert!(least > 0.25, "{rate}: {counts:?}");
        }
    }
}
