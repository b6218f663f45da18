//! A load of AddRespondent that checks every single answer: the right key, once, with the outcome that is due.

use std::{
    error::Error,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use clap::ValueEnum;
use rand::{RngExt as _, SeedableRng as _, rngs::SmallRng};
use serde::{Deserialize, Serialize};
use surveylab_gateway::proto::{
    AddRespondentRequest, AddRespondentResponse, Outcome, invitation_service_client::InvitationServiceClient,
    stream_add_respondent_response::Result as ItemResult,
};
use tokio::{sync::mpsc, task::JoinSet, time::sleep_until};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};

use super::process::cpu_seconds;

type Failure = Box<dyn Error + Send + Sync>;

/// Four connections, as a few callers would have; a stream uses the first.
const CONNECTIONS: usize = 4;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Method {
    Unary,
    Stream,
}

#[derive(Clone, clap::Args)]
pub struct Args {
    #[arg(long)]
    target: SocketAddr,
    #[arg(long)]
    method: Method,
    /// Calls in flight; with --rate the most there are.
    #[arg(long)]
    in_flight: usize,
    /// Calls a second, each counted from when it was due; without it as many as can be.
    #[arg(long)]
    rate: Option<f64>,
    /// Adds so many keys first, and then measures duplicates of them.
    #[arg(long, default_value_t = 0)]
    duplicates_of: u64,
    #[arg(long, default_value_t = 1.0)]
    warm_up: f64,
    #[arg(long, default_value_t = 10.0)]
    seconds: f64,
    /// The process whose CPU time is measured.
    #[arg(long)]
    process: u32,
    /// Other keys with another seed.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Takes answers that hold no key, from a peer that can't put it there. One that holds another is still wrong.
    #[arg(long)]
    without_crk: bool,
}

/// What was measured, between warm-up and end.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Report {
    pub per_second: f64,
    /// CPU seconds of the process under test for 10 000 calls.
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
    let endpoint = Endpoint::from_shared(format!("http://{}", args.target))?.tcp_nodelay(true);
    let mut channels = Vec::new();
    for _ in 0..CONNECTIONS {
        channels.push(InvitationServiceClient::new(endpoint.connect().await?));
    }
    if args.duplicates_of > 0 {
        let keys = Arc::new(Keys::fresh(&args, args.duplicates_of));
        // Envoy has no streams, and every ledger is faster with many at once.
        unary(&channels, keys, 256, None, None).await?;
    }
    let begin = Instant::now() + Duration::from_secs_f64(args.warm_up);
    let end = begin + Duration::from_secs_f64(args.seconds);
    let keys = Arc::new(match args.duplicates_of {
        0 => Keys::fresh(&args, u64::MAX),
        count => Keys::duplicates(&args, count),
    });
    let process = args.process;
    let cpu = tokio::spawn(async move {
        sleep_until(begin.into()).await;
        let before = cpu_seconds(process)?;
        sleep_until(end.into()).await;
        Ok::<_, Failure>(cpu_seconds(process)? - before)
    });
    let done = match args.method {
        Method::Unary => unary(&channels, keys, args.in_flight, args.rate, Some(end)).await?,
        Method::Stream => stream(channels[0].clone(), keys, args.in_flight, end).await?,
    };
    let cpu = cpu.await??;
    Ok(report(done, begin, end, cpu))
}

fn report(mut done: Vec<Done>, begin: Instant, end: Instant, cpu: f64) -> Report {
    done.retain(|done| done.at >= begin && done.at < end);
    let mut took: Vec<Duration> = done.iter().map(|done| done.took).collect();
    took.sort_unstable();
    let percentile = |share: f64| {
        let at = ((took.len() as f64 * share).ceil() as usize).clamp(1, took.len().max(1)) - 1;
        took.get(at).map_or(0.0, |took| took.as_secs_f64() * 1e3)
    };
    Report {
        per_second: took.len() as f64 / (end - begin).as_secs_f64(),
        cpu: cpu / took.len() as f64 * 1e4,
        p50: percentile(0.5),
        p90: percentile(0.9),
        p99: percentile(0.99),
        p999: percentile(0.999),
        max: percentile(1.0),
    }
}

struct Done {
    at: Instant,
    took: Duration,
}

/// Draws keys, each fresh one once, and checks their answers.
struct Keys {
    seed: u64,
    next: AtomicU64,
    count: u64,
    again: bool,
    without_crk: bool,
}

impl Keys {
    fn fresh(args: &Args, count: u64) -> Self {
        Self {
            seed: args.seed,
            next: AtomicU64::new(0),
            count,
            again: false,
            without_crk: args.without_crk,
        }
    }

    fn duplicates(args: &Args, count: u64) -> Self {
        Self {
            again: true,
            ..Self::fresh(args, count)
        }
    }

    fn outcome(&self) -> Outcome {
        match self.again {
            true => Outcome::Duplicate,
            false => Outcome::Added,
        }
    }

    fn draw(&self) -> Option<AddRespondentRequest> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        if self.again {
            let any = SmallRng::seed_from_u64(self.seed ^ number).random_range(0..self.count);
            return Some(request(self.seed, any));
        }
        (number < self.count).then(|| request(self.seed, number))
    }

    fn check(&self, response: &AddRespondentResponse, crk: &str) -> Result<(), Failure> {
        let is_crk_right = response.crk == crk || (self.without_crk && response.crk.is_empty());
        // Two calls of a load of duplicates may meet while the first of them is under way, which is a duplicate too.
        if is_crk_right && response.outcome() == self.outcome() {
            return Ok(());
        }
        Err(format!("{crk} should be {:?}, and is: {response:?}", self.outcome()).into())
    }
}

/// The respondent of a number: its key looks random, as a UUID does.
pub fn request(seed: u64, number: u64) -> AddRespondentRequest {
    let crk = crk(seed, number);
    AddRespondentRequest {
        collector_id: "8379821739721".into(),
        email: format!("{crk}@example.com"),
        crk,
        first_name: "Jan".into(),
        last_name: "Kowalski".into(),
        language: "pl".into(),
        ..AddRespondentRequest::default()
    }
}

fn crk(seed: u64, number: u64) -> String {
    let mut random = SmallRng::seed_from_u64(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ number);
    format!("{:032x}", random.random::<u128>())
}

async fn unary(
    channels: &[InvitationServiceClient<Channel>],
    keys: Arc<Keys>,
    in_flight: usize,
    rate: Option<f64>,
    end: Option<Instant>,
) -> Result<Vec<Done>, Failure> {
    let begin = Instant::now();
    let mut tasks = JoinSet::new();
    for task in 0..in_flight {
        let mut client = channels[task % channels.len()].clone();
        let keys = keys.clone();
        tasks.spawn(async move {
            let mut done = Vec::new();
            // Every task has its own share of the rate, and its own moment in each turn.
            let mut turn = 0;
            loop {
                let due = rate.map(|rate| {
                    let number = turn * in_flight + task;
                    begin + Duration::from_secs_f64(number as f64 / rate)
                });
                turn += 1;
                if let Some(due) = due {
                    sleep_until(due.into()).await;
                }
                let sent = Instant::now();
                if end.is_some_and(|end| sent >= end) {
                    break;
                }
                let Some(request) = keys.draw() else { break };
                let crk = request.crk.clone();
                let response = client.add_respondent(request).await?.into_inner();
                keys.check(&response, &crk)?;
                let at = Instant::now();
                let took = at - due.unwrap_or(sent);
                done.push(Done { at, took });
            }
            Ok::<_, Failure>(done)
        });
    }
    let mut all = Vec::new();
    while let Some(done) = tasks.join_next().await {
        all.append(&mut done??);
    }
    Ok(all)
}

async fn stream(
    mut client: InvitationServiceClient<Channel>,
    keys: Arc<Keys>,
    in_flight: usize,
    end: Instant,
) -> Result<Vec<Done>, Failure> {
    let (requests, taken) = mpsc::channel(in_flight);
    let mut sent = Vec::new();
    let send = |sent: &mut Vec<(Option<Instant>, String)>| {
        let Some(request) = keys.draw() else { return };
        sent.push((Some(Instant::now()), request.crk.clone()));
        // As many as are in flight fit the channel; an error means that the results tell more.
        let _ = requests.try_send(request);
    };
    for _ in 0..in_flight {
        send(&mut sent);
    }
    let mut results = client
        .stream_add_respondent(ReceiverStream::new(taken))
        .await?
        .into_inner();
    let mut done = Vec::new();
    while let Some(result) = results.message().await? {
        let number = usize::try_from(result.sequence)?;
        let (begin, crk) = sent
            .get_mut(number)
            .and_then(|(begin, crk)| Some((begin.take()?, crk)))
            .ok_or("an answer that nothing was asked for")?;
        match result.result {
            Some(ItemResult::Added(response)) => keys.check(&response, crk)?,
            other => return Err(format!("not added: {other:?}").into()),
        }
        let at = Instant::now();
        done.push(Done { at, took: at - begin });
        if at < end {
            send(&mut sent);
        } else if done.len() == sent.len() {
            return Ok(done);
        }
    }
    Err("the stream ended early".into())
}
