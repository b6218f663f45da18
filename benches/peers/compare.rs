//! Rounds, and the table that comes of them.

use std::{
    collections::BTreeMap,
    env,
    fmt::Write as _,
    fs::{self, File},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Instant,
};

use crate::support::{
    Failure, bare, files, gateway,
    load::Report,
    process::{Process, counts, free_address},
    statistics::median,
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
    method: &'static str,
    in_flight: &'static str,
    /// Of SurveyLab, in milliseconds.
    latency: &'static str,
    duplicates_of: &'static str,
    /// Calls a second; as many as can be without.
    rate: Option<&'static str>,
}

const fn scenario(name: &'static str, method: &'static str, in_flight: &'static str) -> Scenario {
    Scenario {
        name,
        method,
        in_flight,
        latency: "0",
        duplicates_of: "0",
        rate: None,
    }
}

const SCENARIOS: [Scenario; 7] = [
    scenario("unary", "unary", "64"),
    scenario("stream", "stream", "256"),
    Scenario {
        duplicates_of: "50000",
        ..scenario("unary duplicates", "unary", "64")
    },
    Scenario {
        duplicates_of: "50000",
        ..scenario("stream duplicates", "stream", "256")
    },
    Scenario {
        latency: "100",
        ..scenario("unary, 100 ms", "unary", "1024")
    },
    Scenario {
        latency: "100",
        ..scenario("stream, 100 ms", "stream", "256")
    },
    Scenario {
        latency: "100",
        rate: Some("2000"),
        ..scenario("unary, 100 ms, 2 000/s", "unary", "1024")
    },
];

enum Kind {
    /// A binary, and what it is to use as its ledger; `None` for an SQLite file of its own.
    Gateway {
        binary: PathBuf,
        ledger: Option<&'static str>,
    },
    Bare,
    Python {
        group_commit: bool,
    },
}

struct Peer {
    name: &'static str,
    kind: Kind,
}

/// All else is told as a ratio to this one's figures of the same round.
const YARDSTICK: &str = "bare reqwest";

impl Peer {
    /// Can it be asked this?
    fn takes_part(&self, scenario: &Scenario) -> bool {
        match self.kind {
            // It can't tell a duplicate.
            Kind::Bare => scenario.duplicates_of == "0",
            // It would take hours at its pace, and shows nothing new.
            Kind::Python { .. } => scenario.latency == "0",
            Kind::Gateway { .. } => true,
        }
    }

    fn start(&self, surveylab: SocketAddr, directory: &Path) -> Result<(Process, SocketAddr), Failure> {
        let listen = free_address()?;
        let mut command = match &self.kind {
            Kind::Gateway { binary, ledger } => {
                let setup = gateway::Setup {
                    binary,
                    surveylab,
                    directory,
                    ledger: *ledger,
                    options: &gateway::UNLIMITED,
                };
                let gateway = setup.start()?;
                return Ok((gateway.process, gateway.address));
            }
            Kind::Bare => bare::command(listen, surveylab)?,
            Kind::Python { group_commit } => {
                let mut command = Command::new(python()?);
                command
                    .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/benches/peers/python/peer.py"))
                    .args([listen.to_string(), surveylab.to_string()])
                    .arg(directory.join("ledger.db"));
                if *group_commit {
                    command.arg("--group-commit");
                }
                command
            }
        };
        let log = File::create(directory.join("log"))?;
        let mut process = Process::start(command.stderr(log))?;
        process.listens(listen).map_err(|error| {
            let log = fs::read_to_string(directory.join("log")).unwrap_or_default();
            format!("{} did not start: {error}\n{log}", self.name)
        })?;
        Ok((process, listen))
    }
}

/// The interpreter of the Python peers' environment, which is made if it is missing.
fn python() -> Result<PathBuf, Failure> {
    let environment = files::target().join("bench/python");
    let python = environment.join("bin/python");
    let complete = environment.join("complete");
    if !complete.exists() {
        let mut make = Command::new("python3");
        let mut install = Command::new(&python);
        let requirements = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/peers/python/requirements.txt");
        install.args([
            "-m",
            "pip",
            "install",
            "--quiet",
            "--only-binary",
            ":all:",
            "--requirement",
            requirements,
        ]);
        for command in [make.args(["-m", "venv"]).arg(&environment), &mut install] {
            if !command.status()?.success() {
                return Err(format!("{command:?} failed").into());
            }
        }
        File::create(complete)?;
    }
    Ok(python)
}

fn peers(args: &Args) -> Vec<Peer> {
    let this = gateway::binary();
    let gateway = |binary, ledger| Kind::Gateway { binary, ledger };
    let mut peers = vec![
        Peer {
            name: YARDSTICK,
            kind: Kind::Bare,
        },
        Peer {
            name: "gateway, SQLite",
            kind: gateway(PathBuf::clone(&this), None),
        },
        Peer {
            name: "gateway, memory",
            kind: gateway(this, Some("memory:")),
        },
    ];
    if let Some(other) = &args.other {
        peers.push(Peer {
            name: "other gateway, SQLite",
            kind: gateway(other.clone(), None),
        });
    }
    match python() {
        Err(error) => eprintln!("left out: the Python peers ({error})"),
        Ok(_) => peers.extend([false, true].map(|group_commit| Peer {
            name: if group_commit {
                "Python, group commit"
            } else {
                "Python, commit per call"
            },
            kind: Kind::Python { group_commit },
        })),
    }
    peers
}

/// What one peer showed in one scenario, in one round.
struct Figure {
    report: Report,
    peak_memory: f64,
}

pub fn run(args: &Args) -> Result<(), Failure> {
    let peers = peers(args);
    let named = |names: &[String], name: &str| names.is_empty() || names.iter().any(|part| name.contains(part));
    let mut figures: BTreeMap<(usize, usize), Vec<Figure>> = BTreeMap::new();
    for round in 1..=args.rounds {
        for (row, scenario) in SCENARIOS.iter().enumerate() {
            for (column, peer) in peers.iter().enumerate() {
                let chosen = named(&args.only, scenario.name) && named(&args.peers, peer.name);
                if !chosen || !peer.takes_part(scenario) {
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
    let this = env::current_exe()?;
    let mut stub = Process::start(Command::new(&this).args(["stub", "--latency", scenario.latency]))?;
    let surveylab: SocketAddr = stub.line()?.parse()?;
    let (process, address) = peer.start(surveylab, directory.path())?;
    let mut load = Command::new(&this);
    load.args(["load", "--target", &address.to_string(), "--method", scenario.method])
        .args([
            "--in-flight",
            scenario.in_flight,
            "--duplicates-of",
            scenario.duplicates_of,
        ])
        .args(["--seconds", &args.seconds.to_string(), "--seed", &seed.to_string()])
        .args(["--process", &process.id().to_string()])
        .stderr(Stdio::inherit());
    if let Some(rate) = scenario.rate {
        load.args(["--rate", rate]);
    }
    let output = load.output()?;
    if !output.status.success() {
        let log = fs::read_to_string(directory.path().join("log")).unwrap_or_default();
        return Err(format!("the load failed; the peer's last words: {log}").into());
    }
    let (_, repeated) = counts(surveylab)?;
    if repeated > 0 {
        return Err(format!("SurveyLab got {repeated} keys more than once").into());
    }
    Ok(Figure {
        report: serde_json::from_slice(&output.stdout)?,
        peak_memory: process.peak_memory()?,
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
