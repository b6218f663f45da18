//! The peers, and how each is started.

use std::{
    fs::{self, File},
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
};

use crate::support::{
    Failure, bare, files,
    gateway::{self, Setup},
    postgres::{self, Database},
    process::{Process, free_address},
};

const DIRECTORY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/peers");

/// All else is told as a ratio to this one's figures of the same round.
pub const YARDSTICK: &str = "bare reqwest";

/// The same of a rate that is shared. Leased tokens live for what the burst allows, at most 200 ms: a busy machine's database must
/// answer within that.
const SHARED_UNLIMITED: [&str; 6] = ["--rate", "1000000/s", "--burst", "1000000", "--max-in-flight", "4096"];

enum Kind {
    /// A binary, and what it is to use as its ledger; `None` for an SQLite file of its own.
    Gateway {
        binary: PathBuf,
        ledger: Option<&'static str>,
    },
    /// So many gateways on one PostgreSQL.
    Replicas {
        binary: PathBuf,
        count: usize,
    },
    Bare,
    Python {
        group_commit: bool,
    },
    Envoy,
}

pub struct Peer {
    pub name: &'static str,
    kind: Kind,
}

/// What a scenario asks of a peer.
pub struct Wanted {
    pub stream: bool,
    pub duplicates: bool,
    /// SurveyLab takes its time.
    pub latency: bool,
}

impl Peer {
    /// Can it be asked this?
    pub fn takes_part(&self, wanted: &Wanted) -> bool {
        match self.kind {
            // It can't tell a duplicate.
            Kind::Bare => !wanted.duplicates,
            // Nor can this one, and it transcodes no streams.
            Kind::Envoy => !wanted.duplicates && !wanted.stream,
            // It would take hours at its pace, and shows nothing new.
            Kind::Python { .. } => !wanted.latency,
            Kind::Gateway { .. } | Kind::Replicas { .. } => true,
        }
    }

    /// An answer of Envoy's is made of SurveyLab's alone, which does not hold the key.
    pub fn answers_without_crk(&self) -> bool {
        matches!(self.kind, Kind::Envoy)
    }

    pub fn start(&self, surveylab: SocketAddr, directory: &Path) -> Result<Running, Failure> {
        Ok(match &self.kind {
            Kind::Gateway { binary, ledger } => {
                let setup = Setup {
                    binary: binary.clone(),
                    ledger: *ledger,
                    options: &gateway::UNLIMITED,
                    ..Setup::new(surveylab, directory)
                };
                let gateway = setup.start()?;
                Running::one((gateway.process, gateway.address))
            }
            Kind::Replicas { binary, count } => {
                let database = postgres::shared().database();
                let ledger = database.url();
                let mut running = Running {
                    processes: Vec::new(),
                    addresses: Vec::new(),
                    _database: Some(database),
                };
                for number in 1..=*count {
                    let directory = directory.join(format!("replica-{number}"));
                    fs::create_dir(&directory)?;
                    let setup = Setup {
                        binary: binary.clone(),
                        ledger: Some(&ledger),
                        options: &SHARED_UNLIMITED,
                        ..Setup::new(surveylab, &directory)
                    };
                    let gateway = setup.start()?;
                    running.processes.push(gateway.process);
                    running.addresses.push(gateway.address);
                }
                running
            }
            Kind::Bare => Running::one(bare::start(surveylab)?),
            Kind::Python { group_commit } => {
                let ledger = directory.join("ledger.db");
                let group_commit = group_commit.then_some("--group-commit");
                Running::one(script("python/peer.py", surveylab, directory, |command| {
                    command.arg(ledger).args(group_commit)
                })?)
            }
            Kind::Envoy => Running::one(script("envoy/peer.py", surveylab, directory, |command| {
                command.arg(directory)
            })?),
        })
    }
}

/// A peer's processes, and where to call each. Killed when dropped.
pub struct Running {
    pub processes: Vec<Process>,
    pub addresses: Vec<SocketAddr>,
    /// Dropped after those that use it.
    _database: Option<Database<'static>>,
}

impl Running {
    fn one((process, address): (Process, SocketAddr)) -> Self {
        Self {
            processes: vec![process],
            addresses: vec![address],
            _database: None,
        }
    }

    /// Of all of them, in MiB.
    pub fn peak_memory(&self) -> io::Result<f64> {
        self.processes.iter().map(Process::peak_memory).sum()
    }
}

/// Starts one that a script is, or starts, and waits until it accepts connections.
fn script(
    path: &str,
    surveylab: SocketAddr,
    directory: &Path,
    arguments: impl FnOnce(&mut Command) -> &mut Command,
) -> Result<(Process, SocketAddr), Failure> {
    let listen = free_address()?;
    let log = directory.join("log");
    let mut command = Command::new(environment()?.join("bin/python"));
    command
        .arg(Path::new(DIRECTORY).join(path))
        .args([listen.to_string(), surveylab.to_string()])
        .stderr(File::create(&log)?);
    let mut process = Process::start(arguments(&mut command))?;
    process.listens(listen).map_err(|error| {
        let log = fs::read_to_string(log).unwrap_or_default();
        format!("{path} did not start: {error}\n{log}")
    })?;
    Ok((process, listen))
}

/// All peers that can be had here.
pub fn peers(other: Option<&Path>) -> Vec<Peer> {
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
            kind: gateway(PathBuf::clone(&this), Some("memory:")),
        },
    ];
    if postgres::is_installed() {
        let names = [
            "gateway, PostgreSQL",
            "2 replicas, PostgreSQL",
            "3 replicas, PostgreSQL",
        ];
        peers.extend((1..).zip(names).map(|(count, name)| Peer {
            name,
            kind: Kind::Replicas {
                binary: PathBuf::clone(&this),
                count,
            },
        }));
    } else {
        eprintln!("left out: the gateway on PostgreSQL (no server is installed: apt-get install postgresql)");
    }
    if let Some(other) = other {
        peers.push(Peer {
            name: "other gateway, SQLite",
            kind: gateway(other.into(), None),
        });
    }
    match install("python") {
        Err(error) => eprintln!("left out: the Python peers and Envoy ({error})"),
        Ok(()) => {
            peers.extend([false, true].map(|group_commit| Peer {
                name: if group_commit {
                    "Python, group commit"
                } else {
                    "Python, commit per call"
                },
                kind: Kind::Python { group_commit },
            }));
            // It needs the others' packages too, to compile its mapping.
            match install("envoy") {
                Err(error) => eprintln!("left out: Envoy ({error})"),
                Ok(()) => peers.push(Peer {
                    name: "Envoy",
                    kind: Kind::Envoy,
                }),
            }
        }
    }
    peers
}

/// The Python environment of the peers that come from there.
fn environment() -> io::Result<PathBuf> {
    files::directory("python")
}

/// Puts a peer's packages into the environment, which is made if it is missing, unless they are there.
fn install(peer: &str) -> Result<(), Failure> {
    let environment = environment()?;
    let python = environment.join("bin/python");
    let requirements = Path::new(DIRECTORY).join(peer).join("requirements.txt");
    let wanted = fs::read(&requirements)?;
    let installed = environment.join(format!("{peer}.txt"));
    if fs::read(&installed).is_ok_and(|installed| installed == wanted) {
        return Ok(());
    }
    let mut make = Command::new("python3");
    make.args(["-m", "venv"]).arg(&environment);
    let mut fill = Command::new(&python);
    fill.args(["-m", "pip", "install", "--quiet", "--only-binary", ":all:"])
        .arg("--requirement")
        .arg(requirements);
    for mut command in [make, fill] {
        if !command.status()?.success() {
            return Err(format!("{command:?} failed").into());
        }
    }
    Ok(fs::write(installed, wanted)?)
}
