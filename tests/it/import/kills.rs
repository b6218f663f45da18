//! A long list through everything that can happen on its way: the import killed, the gateway killed, the connection cut, at
//! random points; the same command again each time.
//!
//! `ROWS` is the list's length (1 500 where it is not set), `EVENTS` how many there are of each kind (3), `SEED` repeats a
//! printed seed's plan.

use std::{collections::HashMap, env, time::Duration};

use rand::{RngExt as _, SeedableRng as _, rngs::StdRng, seq::SliceRandom as _};
use tokio::time::{Instant, sleep};

use super::{
    list,
    run::{Import, Run},
};
use crate::support::{
    Gateway, Options,
    gateway::surveylab_with,
    process::Process,
    relay::Relay,
    watch::{resident_memory, resident_memory_of},
};

const IN_FLIGHT: usize = 32;
const MIB: u64 = 1 << 20;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Event {
    ImportKilled,
    GatewayKilled,
    ConnectionCut,
}

fn number(name: &str, default: u64) -> u64 {
    env::var(name).map_or(default, |text| text.parse().unwrap())
}

/// Resident memory as the list goes through, in MiB.
#[derive(Default)]
struct Memory {
    import: Vec<u64>,
    gateway: Vec<u64>,
}

impl Memory {
    fn sample(&mut self, import: &Process, gateway: &Gateway) {
        // One that has just ended has no memory any more.
        if let Some(bytes) = resident_memory_of(import.id()) {
            self.import.push(bytes / MIB);
        }
        self.gateway.push(resident_memory(gateway) / MIB);
    }
}

#[tokio::test]
async fn a_list_comes_through_whatever_happens() {
    let rows = number("ROWS", 1_500);
    let events = number("EVENTS", 3);
    let seed = number("SEED", rand::random());
    println!("SEED={seed} ROWS={rows} EVENTS={events}");
    let mut random = StdRng::seed_from_u64(seed);

    let sandbox = surveylab_with(|config| config.log_requests = 0).await;
    // A list takes some seconds at least, so that events meet it on its way.
    let rate = (rows / 2).clamp(300, 20_000);
    let options = Options::new()
        .flag("--rate", format!("{rate}/s"))
        .flag("--burst", (rate / 50).max(20))
        .flag("--max-in-flight", IN_FLIGHT);
    let mut gateway = Gateway::with(options, &sandbox).await;
    let relay = Relay::to(gateway.grpc).await;
    let import = Import::of(&list(usize::try_from(rows).unwrap()));

    let mut kinds =
        [Event::ImportKilled, Event::GatewayKilled, Event::ConnectionCut].repeat(usize::try_from(events).unwrap());
    kinds.shuffle(&mut random);
    // In order, and all before the end: the next event waits for so many effects.
    let mut points: Vec<u64> = kinds.iter().map(|_| random.random_range(1..rows * 19 / 20)).collect();
    points.sort_unstable();

    let mut memory = Memory::default();
    let mut running = import.spawn(relay.address, &[]);
    let mut reruns = 0;
    // A hundred rows a second is slow on any machine; the rest is for what happens on the way.
    let deadline = Instant::now() + Duration::from_secs(120 + rows / 100);
    let assert_in_time = || assert!(Instant::now() < deadline, "it came to a stand");
    for (point, event) in points.into_iter().zip(&kinds) {
        while sandbox.report().effects < point {
            memory.sample(&running, &gateway);
            sleep(Duration::from_millis(20)).await;
            assert_in_time();
            assert!(!running.has_ended(), "it ended: {:?}", running.end().await);
        }
        println!("after {point} of {rows} effects: {event:?}");
        match event {
            Event::ImportKilled => {
                running.signal("KILL");
                drop(running);
                running = import.spawn(relay.address, &[]);
                reruns += 1;
            }
            Event::GatewayKilled => {
                gateway = gateway.restart().await;
                relay.turn_to(gateway.grpc);
            }
            Event::ConnectionCut => relay.cut(),
        }
    }
    while !running.has_ended() {
        memory.sample(&running, &gateway);
        sleep(Duration::from_millis(20)).await;
        assert_in_time();
    }
    let run = Run::from(running.end().await);
    let every = |series: &[u64]| {
        series
            .iter()
            .step_by((series.len() / 40).max(1))
            .copied()
            .collect::<Vec<_>>()
    };
    println!("import, MiB: {:?}", every(&memory.import));
    println!("gateway, MiB: {:?}", every(&memory.gateway));
    println!("{reruns} runs more than one; the last one:\n{}", run.stdout);

    let results = import.results();
    let lines: Vec<u64> = results.iter().map(|row| row[0].parse().unwrap()).collect();
    assert!(lines.into_iter().eq(2..rows + 2), "each row has one result");
    let mut counts: HashMap<_, _> = sandbox
        .keys()
        .into_iter()
        .map(|key| (key.crk.to_string(), key.effects))
        .collect();
    let mut in_doubt = 0;
    for row in &results {
        let effects = counts.remove(&row[1]).unwrap_or_default();
        match row[2].as_str() {
            "added" | "duplicate" => assert_eq!(effects, 1, "{row:?}"),
            "in_doubt" => {
                in_doubt += 1;
                assert!(effects <= 1, "{row:?}");
            }
            _ => panic!("{row:?}"),
        }
    }
    assert!(counts.is_empty(), "nobody else was sent: {counts:?}");
    let on_the_wire = usize::try_from(events).unwrap() * IN_FLIGHT;
    println!("{in_doubt} in doubt, {on_the_wire} at most");
    assert!(in_doubt <= on_the_wire);
    run.ended(if in_doubt > 0 { 4 } else { 0 });
    let most = memory.import.iter().chain(&memory.gateway).max();
    assert!(most < Some(&150), "{most:?} MiB");
}
