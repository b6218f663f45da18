//! A load of AddRespondent that checks every single answer: the right key, once, with the outcome that is due.

mod calls;

use std::{
    env, io,
    net::SocketAddr,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use calls::{Caller, Done, Expected, streams, unary};
use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use surveylab_gateway::proto::{Outcome, invitation_service_client::InvitationServiceClient};
use tokio::time::sleep_until;
use tonic::transport::Endpoint;

use super::{
    Failure,
    keys::Keys,
    process::{Process, cpu_seconds},
    statistics::percentile,
};

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Method {
    Unary,
    Stream,
    /// Plain requests to the stub itself, each in flight on a connection of its own: what is the stub's and the load's own.
    Http,
}

#[derive(Clone, clap::Args)]
pub struct Args {
    /// The replicas of a gateway are several: calls go to them in turn.
    #[arg(long = "target", required = true)]
    pub targets: Vec<SocketAddr>,
    #[arg(long)]
    pub method: Method,
    /// Calls in flight; with --rate the most there are.
    #[arg(long)]
    pub in_flight: usize,
    /// A few to each target, as callers would have; a stream uses the first.
    #[arg(long, default_value_t = 4)]
    pub connections: usize,
    /// Calls a second, each counted from when it was due; without it as many as can be.
    #[arg(long)]
    pub rate: Option<f64>,
    /// Ends after so many instead of a time.
    #[arg(long)]
    pub calls: Option<u64>,
    /// Adds so many keys first, and then measures duplicates of them.
    #[arg(long, default_value_t = 0)]
    pub duplicates_of: u64,
    #[arg(long, default_value_t = 1.0)]
    pub warm_up: f64,
    #[arg(long, default_value_t = 10.0)]
    pub seconds: f64,
    /// The processes whose CPU time is measured.
    #[arg(long = "process", required = true)]
    pub processes: Vec<u32>,
    /// Other keys with another seed.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Takes answers that hold no key, from a peer that can't put it there. One that holds another is still wrong.
    #[arg(long)]
    pub without_crk: bool,
}

impl Args {
    /// As many at once as can be, to be changed as needed.
    pub fn new(target: SocketAddr, method: Method, process: &Process) -> Self {
        Self {
            targets: vec![target],
            method,
            in_flight: 64,
            connections: 4,
            rate: None,
            calls: None,
            duplicates_of: 0,
            warm_up: 1.0,
            seconds: 10.0,
            processes: vec![process.id()],
            seed: 1,
            without_crk: false,
        }
    }

    /// The load in a process of its own.
    pub fn start(&self) -> io::Result<Process> {
        let method = self.method.to_possible_value();
        let method = method.as_ref().map_or("", |method| method.get_name());
        let mut command = Command::new(env::current_exe()?);
        command
            .args(["load", "--method", method])
            .args(["--in-flight", &self.in_flight.to_string()])
            .args(["--connections", &self.connections.to_string()])
            .args(["--duplicates-of", &self.duplicates_of.to_string()])
            .args(["--warm-up", &self.warm_up.to_string()])
            .args(["--seconds", &self.seconds.to_string()])
            .args(["--seed", &self.seed.to_string()]);
        for target in &self.targets {
            command.args(["--target", &target.to_string()]);
        }
        for process in &self.processes {
            command.args(["--process", &process.to_string()]);
        }
        if let Some(rate) = self.rate {
            command.args(["--rate", &rate.to_string()]);
        }
        if let Some(calls) = self.calls {
            command.args(["--calls", &calls.to_string()]);
        }
        if self.without_crk {
            command.arg("--without-crk");
        }
        Process::start(&mut command)
    }

    /// Runs it to its end, and looks at something every so often meanwhile.
    pub fn run_beside(
        &self,
        interval: Duration,
        mut look: impl FnMut() -> Result<(), Failure>,
    ) -> Result<Report, Failure> {
        let mut load = self.start()?;
        while !load.has_ended()? {
            look()?;
            thread::sleep(interval);
        }
        Ok(serde_json::from_str(&load.output()?)?)
    }

    pub fn run(&self) -> Result<Report, Failure> {
        Ok(serde_json::from_str(&self.start()?.output()?)?)
    }
}

/// What was measured, between warm-up and end.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Report {
    pub per_second: f64,
    /// CPU seconds of the processes under test for 10 000 calls.
    pub cpu: f64,
    /// In milliseconds.
    pub p50: f64,
    pub p90: f64,
    pub p99: f64,
    pub p999: f64,
    pub max: f64,
}

pub fn run(args: Args) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let report = runtime.block_on(measure(args))?;
    println!("{}", serde_json::to_string(&report)?);
    Ok(())
}

async fn measure(args: Args) -> Result<Report, Failure> {
    let mut callers = Vec::new();
    match args.method {
        Method::Http => {
            for target in args.targets.iter().cycle().take(args.in_flight) {
                callers.push(Caller::http(*target).await?);
            }
        }
        Method::Unary | Method::Stream => {
            let mut clients = Vec::new();
            for _ in 0..args.connections {
                for target in &args.targets {
                    let endpoint = Endpoint::from_shared(format!("http://{target}"))?.tcp_nodelay(true);
                    clients.push(InvitationServiceClient::new(endpoint.connect().await?));
                }
            }
            let clients = clients.iter().cycle().cloned();
            callers.extend(clients.map(Caller::Grpc).take(args.in_flight.max(256)));
        }
    }
    let expected = |outcome| Expected {
        outcome,
        without_crk: args.without_crk,
    };
    if args.duplicates_of > 0 {
        let keys = Keys::fresh(args.seed, args.duplicates_of);
        // Envoy has no streams, and every ledger is faster with many at once.
        let callers = callers.iter().filter_map(Caller::again).take(256).collect();
        unary(callers, keys, expected(Outcome::Added), None, None).await?;
    }
    let begin = Instant::now() + Duration::from_secs_f64(args.warm_up);
    let end = match args.calls {
        Some(_) => None,
        None => Some(begin + Duration::from_secs_f64(args.seconds)),
    };
    let (keys, outcome) = match args.duplicates_of {
        0 => (Keys::fresh(args.seed, args.calls.unwrap_or(u64::MAX)), Outcome::Added),
        count => (Keys::duplicates(args.seed, count), Outcome::Duplicate),
    };
    let expected = expected(outcome);
    let cpu = |processes: &[u32]| {
        processes
            .iter()
            .map(|process| cpu_seconds(*process))
            .sum::<io::Result<f64>>()
    };
    let cpu_at = |moment: Instant| {
        let processes = args.processes.clone();
        tokio::spawn(async move {
            sleep_until(moment.into()).await;
            cpu(&processes)
        })
    };
    let (before, after) = (cpu_at(begin), end.map(cpu_at));
    callers.truncate(args.in_flight);
    let done = match args.method {
        // One to each target.
        Method::Stream => {
            callers.truncate(args.targets.len());
            streams(callers, keys, expected, args.in_flight, end).await?
        }
        Method::Unary | Method::Http => unary(callers, keys, expected, args.rate, end).await?,
    };
    let after = match after {
        Some(after) => after.await??,
        None => cpu(&args.processes)?,
    };
    Ok(report(
        &done,
        begin,
        end.unwrap_or_else(Instant::now),
        after - before.await??,
    ))
}

fn report(done: &[Done], begin: Instant, end: Instant, cpu: f64) -> Report {
    let measured = done.iter().filter(|done| done.at >= begin && done.at < end);
    let mut took: Vec<f64> = measured.map(|done| done.took.as_secs_f64() * 1e3).collect();
    took.sort_by(f64::total_cmp);
    Report {
        per_second: took.len() as f64 / (end - begin).as_secs_f64(),
        cpu: cpu / took.len() as f64 * 1e4,
        p50: percentile(&took, 0.5),
        p90: percentile(&took, 0.9),
        p99: percentile(&took, 0.99),
        p999: percentile(&took, 0.999),
        max: percentile(&took, 1.0),
    }
}
