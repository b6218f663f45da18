//! Bulk: many streams at once, each of many items, for hours. Turns are fair, memory is flat, and neither leaving nor
//! resting harms anyone.
//!
//! Longer runs: BULK_ITEMS (of each of the sixteen streams), BULK_RATE, BULK_ROUNDS (of twenty cancelled streams).

use std::{env, time::Duration};

use futures_util::{FutureExt as _, StreamExt as _, stream::select_all};
use surveylab_gateway::{
    proto::{AddRespondentRequest, GetStatusRequest, Outcome, StreamAddRespondentResponse},
    sandbox::{Fault, Gate},
};
use tokio::{sync::mpsc, task::JoinSet};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Streaming, transport::Channel};

use crate::{
    hostile::peer::{ADD, Caller},
    support::{
        Gateway, Options, added,
        call::{COLLECTOR, Client, item},
        gateway::{surveylab, surveylab_with},
        request,
        watch::{resident_memory, soon, until, until_waiting},
    },
};

const MIB: u64 = 1024 * 1024;

/// So many, or as many as the environment says.
fn count(variable: &str, usual: usize) -> usize {
    env::var(variable).map_or(usual, |count| count.parse().unwrap())
}

async fn open(
    client: &Client,
    items: impl tokio_stream::Stream<Item = AddRespondentRequest> + Send + 'static,
) -> Streaming<StreamAddRespondentResponse> {
    let mut client = client.clone();
    soon(client.stream_add_respondent(items)).await.unwrap().into_inner()
}

const STREAMS: usize = 16;

/// How far each stream is; nobody is to be further ahead of anybody than so many turns.
struct Turns {
    answered: [usize; STREAMS],
    of: usize,
    worst: usize,
}

impl Turns {
    fn new(of: usize) -> Self {
        Self {
            answered: [0; STREAMS],
            of,
            worst: 0,
        }
    }

    /// Counts one, and how far apart they are while all have work.
    fn count(&mut self, stream: usize) {
        self.answered[stream] += 1;
        let most = self.answered.iter().max().copied().unwrap_or_default();
        let least = self.answered.iter().min().copied().unwrap_or_default();
        if most < self.of {
            self.worst = self.worst.max(most - least);
        }
    }
}

#[tokio::test]
async fn sixteen_streams_take_turns_in_flat_memory() {
    const WINDOW: usize = 256;
    const IN_FLIGHT: usize = 8;
    /// More than that many requests are not kept in their order.
    const LOGGED: usize = 20_000;
    let items = count("BULK_ITEMS", 400);
    let rate = env::var("BULK_RATE").unwrap_or_else(|_| "2000/s".into());
    let sandbox = surveylab_with(|config| {
        config.log_requests = if items * STREAMS <= LOGGED {
            LOGGED + IN_FLIGHT
        } else {
            0
        };
    })
    .await;
    let gate = Gate::new();
    sandbox.add_fault(Fault::hold(&gate).for_crk_prefix("plug"));
    let options = Options::new()
        .flag("--rate", rate)
        .flag("--burst", 20)
        .flag("--stream-window", WINDOW)
        .flag("--max-in-flight", IN_FLIGHT);
    let gateway = Gateway::with(options, &sandbox).await;
    let client = gateway.client().await;
    assert_eq!(added(&client, request("warm")).await, Outcome::Added);
    let idle = resident_memory(&gateway);

    // Nothing goes out until all of them wait: so all have work from the first turn on.
    let mut plugs = JoinSet::new();
    for i in 0..IN_FLIGHT {
        let client = client.clone();
        plugs.spawn(async move { added(&client, request(&format!("plug{i}"))).await });
    }
    soon(sandbox.wait_for_requests(1 + IN_FLIGHT as u64)).await;
    let mut streams = Vec::new();
    for stream in 0..STREAMS {
        let list = (0..items).map(move |i| request(&format!("{stream:x}-{i:06}")));
        let results = open(&client, tokio_stream::iter(list)).await;
        streams.push(results.map(move |result| (stream, result.unwrap())));
    }
    until_waiting(&gateway, "lane=\"stream\"", STREAMS * items.min(WINDOW)).await;
    gate.release();

    let mut read = Turns::new(items);
    let mut is_answered = vec![false; STREAMS * items];
    let mut peak = idle;
    let mut results = select_all(streams);
    while let Some((stream, response)) = soon(results.next()).await {
        let (sequence, result) = item(response);
        assert_eq!(result.unwrap().outcome(), Outcome::Added);
        let place = &mut is_answered[stream * items + usize::try_from(sequence).unwrap()];
        assert!(
            !std::mem::replace(place, true),
            "{stream}: {sequence} was answered twice"
        );
        read.count(stream);
        if read.answered[stream].is_multiple_of(100) {
            peak = peak.max(resident_memory(&gateway));
        }
    }
    assert!(is_answered.into_iter().all(|answered| answered));
    soon(plugs.join_all()).await;

    let mut sent = Turns::new(items);
    for request in sandbox.requests() {
        let crk = request.parameter("crk").unwrap();
        if let Some((stream, _)) = crk.split_once('-') {
            sent.count(usize::from_str_radix(stream, 16).unwrap());
        }
    }
    let grown = peak.saturating_sub(idle);
    println!(
        "{STREAMS} streams of {items}: {} turns ahead at SurveyLab, {} at the reader; {:.1} MiB more at the peak",
        sent.worst,
        read.worst,
        grown as f64 / MIB as f64
    );
    // Turns are exact; those in flight may overtake each other.
    assert!(sent.worst <= 1 + IN_FLIGHT, "{}", sent.worst);
    // On the way back results are bunched. Without turns it would be a whole window.
    assert!(read.worst <= WINDOW / 4, "{}", read.worst);
    // Sixteen windows of requests that wait, 28 MiB, and what the ledger keeps of its pages: two threads, 24 MiB each.
    assert!(grown < 96 * MIB, "{grown} bytes");
    let report = sandbox.report();
    let requests = (1 + IN_FLIGHT + STREAMS * items) as u64;
    assert_eq!((report.requests, report.duplicates.len()), (requests, 0));
}

/// A list whose items fill what a stream may have unread.
fn long_list(name: &str) -> Vec<AddRespondentRequest> {
    let referrer = "x".repeat(100);
    (0..120)
        .map(|i| AddRespondentRequest {
            referrer: referrer.clone(),
            ..request(&format!("{name}-{i}"))
        })
        .collect()
}

#[tokio::test]
async fn streams_cancelled_by_the_hundred_take_nothing_from_another_on_their_connection() {
    const AT_ONCE: usize = 20;
    const EACH: usize = 5;
    let rounds = count("BULK_ROUNDS", 30);
    let sandbox = surveylab_with(|config| config.log_requests = 0).await;
    let options = Options::new().flag("--rate", "1000/s").flag("--stream-window", 16);
    let gateway = Gateway::with(options, &sandbox).await;
    // One connection: tonic's channel would make another only after this one's end, which the stream would not survive.
    let client = gateway.client().await;
    let (items, list) = mpsc::channel(EACH);
    let mut survivor = open(&client, ReceiverStream::new(list)).await;
    let mut sent = 0_u64;
    for round in 0..rounds {
        for _ in 0..EACH {
            items.send(request(&format!("stays-{sent}"))).await.unwrap();
            sent += 1;
        }
        let mut leaving = JoinSet::new();
        for i in 0..AT_ONCE {
            let client = client.clone();
            leaving.spawn(async move {
                let list = long_list(&format!("left-{round}-{i}"));
                match i % 4 {
                    // Before anything of it is out.
                    0 => drop(open(&client, tokio_stream::iter(list)).now_or_never()),
                    // With its list on the way.
                    1 => drop(open(&client, tokio_stream::iter(list)).await),
                    // Within its answers.
                    2 => {
                        let mut results = open(&client, tokio_stream::iter(list)).await;
                        soon(results.message()).await.unwrap().unwrap();
                    }
                    // With a list that would go on. hyper resets a call only once its request has gone as well.
                    _ => {
                        let (_items, more) = mpsc::channel(1);
                        let list = tokio_stream::iter(list).chain(ReceiverStream::new(more));
                        let mut results = open(&client, list).await;
                        for _ in 0..20 {
                            soon(results.message()).await.unwrap().unwrap();
                        }
                    }
                }
            });
        }
        soon(leaving.join_all()).await;
        for _ in 0..EACH {
            let response = soon(survivor.message()).await.unwrap().unwrap();
            assert_eq!(item(response).1.unwrap().outcome(), Outcome::Added);
        }
    }
    drop(items);
    assert!(soon(survivor.message()).await.unwrap().is_none());
    for i in 0..sent {
        assert_eq!(sandbox.requests_of(COLLECTOR, &format!("stays-{i}")), 1, "{i}");
    }
    until("those who left are gone", async || {
        let status = client.clone().get_status(GetStatusRequest {}).await;
        let status = status.unwrap().into_inner();
        status.open_streams + status.waiting_streams + status.in_flight == 0
    })
    .await;
    assert!(sandbox.keys().iter().all(|key| key.requests == 1));
    println!("{} streams were cancelled", rounds * AT_ONCE);
}

#[tokio::test]
async fn a_stream_lives_through_idle_phases_with_keepalive_pings() {
    // As hostile.rs has it for peers who mean well.
    const RECEIVE_TIMEOUT: &str = "4s";
    let sandbox = surveylab().await;
    let gateway = Gateway::with(Options::new().flag("--receive-timeout", RECEIVE_TIMEOUT), &sandbox).await;
    let endpoint = Channel::from_shared(format!("http://{}", gateway.grpc)).unwrap();
    let endpoint = endpoint
        .http2_keep_alive_interval(Duration::from_millis(20))
        .keep_alive_while_idle(true);
    let client = Client::new(soon(endpoint.connect()).await.unwrap());
    let (items, list) = mpsc::channel(1);
    let mut results = open(&client, ReceiverStream::new(list)).await;
    let other = Caller::connect(&gateway).await;
    for round in 0..3 {
        items.send(request(&format!("k{round}"))).await.unwrap();
        let response = soon(results.message()).await.unwrap().unwrap();
        assert_eq!(response.sequence, round);
        assert_eq!(item(response).1.unwrap().outcome(), Outcome::Added);
        // Somebody else's call learns that the time has passed.
        let late = other.open(ADD).await;
        let error = late.end().await.unwrap_err();
        assert_eq!(
            (error.code, &*error.reason),
            (Code::DeadlineExceeded, "RECEIVE_TIMEOUT")
        );
    }
    drop(items);
    assert!(soon(results.message()).await.unwrap().is_none());
    assert_eq!(sandbox.report().requests, 3);
}
