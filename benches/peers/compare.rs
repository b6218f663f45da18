//! Rounds, and the table that comes of them.

use std::{collections::BTreeMap, fmt::Write as _, fs, path::PathBuf, time::Instant};

use crate::{
    peer::{Peer, Wanted, YARDSTICK, peers},
    support::{
        Failure, files,
        load::{Args as Load, Method, Report},
        process::Process,
        statistics::median,
        stub::Stub,
    },
};

#[derive(clap::Args)]
pub struct Args {
    /// Every scenario runs so often with every peer, in turn.
    #[arg(long, default_value_t = 3)]
    rounds: u32,
    /// How long each is measured.
    #[arg(long, default_value_t = 10.0)]
    seconds: f64,
    /// Only scenarios whose name holds one of these, such as `unary` or `duplicates`.
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Only peers whose name holds one of these.
    #[arg(long, value_delimiter = ',')]
    peers: Vec<String>,
    /// Another build of the gateway, to be compared with this one.
    #[arg(long, value_name = "BINARY")]
    other: Option<PathBuf>,
}

#[derive(Clone, Copy)]
struct Scenario {
    name: &'static str,
    method: Method,
    in_flight: usize,
    /// Of SurveyLab, in milliseconds.
    latency: u32,
    duplicates_of: u64,
    /// Calls a second; as many as can be without.
    rate: Option<f64>,
}

impl Scenario {
    fn wanted(&self) -> Wanted {
        Wanted {
            stream: self.method == Method::Stream,
            duplicates: self.duplicates_of > 0,
            latency: self.latency > 0,
        }
    }
}

const fn scenario(name: &'static str, method: Method, in_flight: usize) -> Scenario {
    Scenario {
        name,
        method,
        in_flight,
        latency: 0,
        duplicates_of: 0,
        rate: None,
    }
}

const SCENARIOS: [Scenario; 7] = [
    scenario("unary", Method::Unary, 64),
    scenario("stream", Method::Stream, 256),
    Scenario {
        duplicates_of: 50_000,
        ..scenario("unary duplicates", Method::Unary, 64)
    },
    Scenario {
        duplicates_of: 50_000,
        ..scenario("stream duplicates", Method::Stream, 256)
    },
    Scenario {
        latency: 100,
        ..scenario("unary, 100 ms", Method::Unary, 1_024)
    },
    Scenario {
        latency: 100,
        ..scenario("stream, 100 ms", Method::Stream, 256)
    },
    Scenario {
        latency: 100,
        rate: Some(2_000.0),
        ..scenario("unary, 100 ms, 2 000/s", Method::Unary, 1_024)
    },
];

/// What one peer showed in one scenario, in one round.
struct Figure {
    report: Report,
    peak_memory: f64,
}

pub fn run(args: &Args) -> Result<(), Failure> {
    let peers = peers(args.other.as_deref());
    let named = |names: &[String], name: &str| names.is_empty() || names.iter().any(|part| name.contains(part));
    let mut figures: BTreeMap<(usize, usize), Vec<Figure>> = BTreeMap::new();
    for round in 1..=args.rounds {
        for (row, scenario) in SCENARIOS.iter().enumerate() {
            for (column, peer) in peers.iter().enumerate() {
                let chosen = named(&args.only, scenario.name) && named(&args.peers, peer.name);
                if !chosen || !peer.takes_part(&scenario.wanted()) {
                    continue;
                }
                let begin = Instant::now();
                let figure = measure(args, scenario, peer, u64::from(round))
                    .map_err(|error| format!("{}, {}: {error}", scenario.name, peer.name))?;
                eprintln!(
                    "round {round}: {}, {}: {:.0}/s, {:.3} CPU s / 10 000 ({:.0} s)",
                    scenario.name,
                    peer.name,
                    figure.report.per_second,
                    figure.report.cpu,
                    begin.elapsed().as_secs_f64()
                );
                figures.entry((row, column)).or_default().push(figure);
            }
        }
    }
    let table = table(&peers, &figures);
    print!("{table}");
    fs::write(files::directory("")?.join("peers.md"), table)?;
    Ok(())
}

fn measure(args: &Args, scenario: &Scenario, peer: &Peer, seed: u64) -> Result<Figure, Failure> {
    let directory = files::scratch("peers-")?;
    let stub = Stub::start(&["--latency", &scenario.latency.to_string()])?;
    let running = peer.start(stub.address, directory.path())?;
    let load = Load {
        in_flight: scenario.in_flight,
        rate: scenario.rate,
        duplicates_of: scenario.duplicates_of,
        seconds: args.seconds,
        seed,
        without_crk: peer.answers_without_crk(),
        targets: running.addresses.clone(),
        processes: running.processes.iter().map(Process::id).collect(),
        ..Load::new(running.addresses[0], scenario.method, &running.processes[0])
    };
    let report = load.run().map_err(|error| {
        let logs = ["log", "replica-1/log", "replica-2/log", "replica-3/log"].map(|log| directory.path().join(log));
        let words: String = logs
            .into_iter()
            .filter_map(|log| fs::read_to_string(log).ok())
            .collect();
        format!("the load: {error}; the peer's last words: {words}")
    })?;
    stub.requests()?;
    Ok(Figure {
        report,
        peak_memory: running.peak_memory()?,
    })
}

fn table(peers: &[Peer], figures: &BTreeMap<(usize, usize), Vec<Figure>>) -> String {
    let yardstick = peers.iter().position(|peer| peer.name == YARDSTICK);
    let mut table = String::new();
    for (row, scenario) in SCENARIOS.iter().enumerate() {
        if !figures.keys().any(|(other, _)| *other == row) {
            continue;
        }
        // Against the pass-through's fresh keys of the same kind: it knows no duplicates.
        let against = SCENARIOS.iter().position(|other| {
            (other.method, other.latency, other.rate) == (scenario.method, scenario.latency, scenario.rate)
        });
        let against = yardstick.and_then(|column| figures.get(&(against?, column)));
        let _infallible = writeln!(
            table,
            "\n### {}\n\n| peer | calls/s | of bare | CPU s / 10 000 | of bare | p50 ms | p99 ms | p99.9 ms | peak MiB |\n\
             |---|---|---|---|---|---|---|---|---|",
            scenario.name
        );
        for (column, peer) in peers.iter().enumerate() {
            let Some(rounds) = figures.get(&(row, column)) else {
                continue;
            };
            let middle = |value: fn(&Figure) -> f64| median(rounds.iter().map(value).collect());
            let ratio = |value: fn(&Figure) -> f64| {
                against.map_or_else(
                    || "–".to_owned(),
                    |against| {
                        let ratios = rounds.iter().zip(against).map(|(one, other)| value(one) / value(other));
                        format!("{:.2}", median(ratios.collect()))
                    },
                )
            };
            let _infallible = writeln!(
                table,
                "| {} | {:.0} | {} | {:.3} | {} | {:.2} | {:.2} | {:.2} | {:.0} |",
                peer.name,
                middle(|figure| figure.report.per_second),
                ratio(|figure| figure.report.per_second),
                middle(|figure| figure.report.cpu),
                ratio(|figure| figure.report.cpu),
                middle(|figure| figure.report.p50),
                middle(|figure| figure.report.p99),
                middle(|figure| figure.report.p999),
                middle(|figure| figure.peak_memory),
            );
        }
    }
    table
}
