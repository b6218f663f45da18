//! Calls in flight, and the check of their answers.

use std::{
    io,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use surveylab_gateway::proto::{
    AddRespondentRequest, AddRespondentResponse, Outcome, invitation_service_client::InvitationServiceClient,
    stream_add_respondent_response::Result as ItemResult,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    sync::mpsc,
    task::JoinSet,
    time::sleep_until,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;

use crate::support::{
    Failure,
    keys::{Keys, request},
    stub::ANSWER,
};

/// What every answer has to be.
#[derive(Clone, Copy)]
pub struct Expected {
    pub outcome: Outcome,
    pub without_crk: bool,
}

impl Expected {
    fn check(self, response: &AddRespondentResponse, crk: &str) -> Result<(), Failure> {
        let is_crk_right = response.crk == crk || (self.without_crk && response.crk.is_empty());
        // Two calls of a load of duplicates may meet while the first of them is under way, which is a duplicate too.
        if is_crk_right && response.outcome() == self.outcome {
            return Ok(());
        }
        Err(format!("{crk} should be {:?}, and is: {response:?}", self.outcome).into())
    }
}

/// One who has one call in flight at a time.
pub enum Caller {
    Grpc(InvitationServiceClient<Channel>),
    Http(TcpStream),
}

impl Caller {
    pub async fn http(target: SocketAddr) -> io::Result<Self> {
        let socket = TcpStream::connect(target).await?;
        socket.set_nodelay(true)?;
        Ok(Self::Http(socket))
    }

    /// Another one on the same connection, if that can carry several calls.
    pub fn again(&self) -> Option<Self> {
        match self {
            Self::Grpc(client) => Some(Self::Grpc(client.clone())),
            Self::Http(_) => None,
        }
    }

    async fn add(&mut self, crk: String, expected: Expected) -> Result<(), Failure> {
        match self {
            Self::Grpc(client) => {
                let response = client.add_respondent(request(crk.clone())).await?.into_inner();
                expected.check(&response, &crk)
            }
            Self::Http(socket) => {
                let AddRespondentRequest {
                    collector_id,
                    email,
                    crk,
                    first_name,
                    last_name,
                    language,
                    ..
                } = request(crk);
                let line = format!(
                    "GET /webhook?apiToken=token&cId={collector_id}&email={email}&crk={crk}&language={language}\
                     &firstName={first_name}&lastName={last_name} HTTP/1.1\r\nhost: surveylab\r\n\r\n"
                );
                socket.write_all(line.as_bytes()).await?;
                let mut answer = [0; ANSWER.len()];
                socket.read_exact(&mut answer).await?;
                match answer == ANSWER {
                    true => Ok(()),
                    false => Err(format!("the stub answered {:?}", String::from_utf8_lossy(&answer)).into()),
                }
            }
        }
    }
}

pub struct Done {
    pub at: Instant,
    pub took: Duration,
}

pub async fn unary(
    callers: Vec<Caller>,
    keys: Keys,
    expected: Expected,
    rate: Option<f64>,
    end: Option<Instant>,
) -> Result<Vec<Done>, Failure> {
    let begin = Instant::now();
    let keys = Arc::new(keys);
    let in_flight = callers.len();
    let mut tasks = JoinSet::new();
    for (task, mut caller) in callers.into_iter().enumerate() {
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
                let Some(crk) = keys.draw() else { break };
                caller.add(crk, expected).await?;
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

/// A stream for each of these, with their share of what is in flight.
pub async fn streams(
    callers: Vec<Caller>,
    keys: Keys,
    expected: Expected,
    in_flight: usize,
    end: Option<Instant>,
) -> Result<Vec<Done>, Failure> {
    let keys = Arc::new(keys);
    let share = (in_flight / callers.len().max(1)).max(1);
    let mut tasks = JoinSet::new();
    for caller in callers {
        let Caller::Grpc(client) = caller else {
            return Err("a stream is gRPC's".into());
        };
        tasks.spawn(stream(client, keys.clone(), expected, share, end));
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
    expected: Expected,
    in_flight: usize,
    end: Option<Instant>,
) -> Result<Vec<Done>, Failure> {
    let (requests, taken) = mpsc::channel(in_flight);
    let mut sent = Vec::new();
    let send = |sent: &mut Vec<(Option<Instant>, String)>| {
        let Some(crk) = keys.draw() else { return };
        sent.push((Some(Instant::now()), crk.clone()));
        // As many as are in flight fit the channel; an error means that the results tell more.
        let _ = requests.try_send(request(crk));
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
            Some(ItemResult::Added(response)) => expected.check(&response, crk)?,
            other => return Err(format!("not added: {other:?}").into()),
        }
        let at = Instant::now();
        done.push(Done { at, took: at - begin });
        if end.is_none_or(|end| at < end) {
            send(&mut sent);
        }
        if done.len() == sent.len() {
            return Ok(done);
        }
    }
    Err("the stream ended early".into())
}
