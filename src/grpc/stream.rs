//! A stream of AddRespondent: one task reads requests and drives those in progress; results go out as they are known.
//!
//! Each request takes one place of the stream's window before it is read, and gives it back when the transport has
//! taken its result. So memory is bounded by the window, whether SurveyLab is slow or the reader of the results is.

use std::{
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
};

use futures_util::{StreamExt as _, stream::FuturesUnordered};
use tokio::{
    select,
    sync::mpsc::{self, OwnedPermit, Sender, error::SendError},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use super::{
    access::StreamAccess,
    access_log::{Item as Watched, Record},
    service::{self, Service},
    status,
};
use crate::{
    clock::{self, Instant},
    dispatch::LATER,
    invitation::{Failure, Reason, Sent},
    limiter::{Lane, Queue, StreamId},
    proto::{AddRespondentRequest, StreamAddRespondentResponse, stream_add_respondent_response::Result as ItemResult},
};

type Item = Result<StreamAddRespondentResponse, Status>;

/// The streams of this process.
#[derive(Default)]
pub struct Streams {
    next: AtomicU64,
    open: AtomicUsize,
}

impl Streams {
    /// How many are under way.
    pub fn open(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }

    /// How many there were.
    pub fn begun(&self) -> u64 {
        self.next.load(Ordering::Relaxed)
    }

    fn begin(self: &Arc<Self>, record: Option<Arc<Record>>) -> Begun {
        self.open.fetch_add(1, Ordering::Relaxed);
        Begun {
            id: StreamId(self.next.fetch_add(1, Ordering::Relaxed)),
            streams: self.clone(),
            record,
        }
    }
}

/// A stream that is under way, until this is dropped.
struct Begun {
    id: StreamId,
    streams: Arc<Streams>,
    record: Option<Arc<Record>>,
}

impl Drop for Begun {
    fn drop(&mut self) {
        self.streams.open.fetch_sub(1, Ordering::Relaxed);
    }
}

/// One call of a stream.
pub struct Call {
    /// What is to be told of it, if anything is.
    pub record: Option<Arc<Record>>,
    pub deadline: Option<Instant>,
    pub access: StreamAccess,
    pub requests: Streaming<AddRespondentRequest>,
}

/// Begins to read requests, and hands out their results.
pub fn start(service: Service, call: Call) -> ReceiverStream<Item> {
    let (results, taken) = mpsc::channel(service.stream_window);
    let tasks = service.tasks.clone();
    let begun = service.streams.begin(call.record.clone());
    tasks.spawn(drive(service, begun, call, results));
    ReceiverStream::new(taken)
}

/// Ends when the caller is gone (dropping what is in progress withdraws what waits), or when all that was read is
/// answered and nothing more is to be read.
async fn drive(service: Service, begun: Begun, call: Call, results: Sender<Item>) {
    let Call {
        deadline,
        mut access,
        mut requests,
        ..
    } = call;
    let mut in_progress = FuturesUnordered::new();
    let mut place: Option<OwnedPermit<Item>> = None;
    let mut next_sequence = 0;
    let mut reading = true;
    let mut end: Option<Status> = None;
    // Waited for all the time, so made once, and not again for every item.
    let mut gone = pin!(results.closed());
    let mut closing = pin!(service.closing.cancelled());
    let mut passed = pin!(clock::until(deadline));

    while reading || !in_progress.is_empty() {
        if place.is_none() && reading {
            place = results.clone().try_reserve_owned().ok();
        }
        select! {
            biased;
            () = &mut gone => return,
            Some(()) = in_progress.next(), if !in_progress.is_empty() => {}
            () = &mut closing, if reading => {
                reading = false;
                end = Some(status::status(&Failure::new(Reason::ShuttingDown, Sent::No).retry_after(LATER)));
            }
            () = &mut passed, if reading => {
                reading = false;
                end = Some(status::stream_deadline());
            }
            free = results.clone().reserve_owned(), if reading && place.is_none() => place = taken(free),
            message = requests.message(), if reading && place.is_some() => match message {
                Ok(Some(request)) => {
                    if let Err(refused) = access.renew() {
                        reading = false;
                        end = Some(refused);
                    } else if let Some(place) = place.take() {
                        match access.collector(&request.collector_id) {
                            Ok(()) => {
                                let queue = Queue { payer: access.payer(), lane: Lane::Stream(begun.id) };
                                let item = begun.record.as_ref().map(|record| record.item(next_sequence));
                                let asked = Asked { request, sequence: next_sequence, item };
                                in_progress.push(answer(&service, queue, deadline, asked, place));
                            }
                            Err(forbidden) => {
                                if let Some(record) = &begun.record {
                                    record.refused_item();
                                }
                                refuse(&service::count_refused(forbidden), request.crk, next_sequence, place);
                            }
                        }
                        next_sequence += 1;
                    }
                }
                Ok(None) => reading = false,
                Err(broken) => {
                    reading = false;
                    end = Some(status::unreadable(&broken));
                }
            },
        }
    }
    drop(place);
    if let Some(record) = &begun.record {
        record.ended(end.as_ref());
    }
    if let Some(status) = end {
        // An error means that the caller has gone: nobody is left to tell.
        let _gone = results.send(Err(status)).await;
    }
}

/// A request of the stream.
struct Asked {
    request: AddRespondentRequest,
    sequence: u64,
    item: Option<Watched>,
}

async fn answer(service: &Service, queue: Queue, deadline: Option<Instant>, asked: Asked, place: OwnedPermit<Item>) {
    let Asked {
        request,
        sequence,
        item,
    } = asked;
    let crk = repeated(request.crk.clone());
    let result = match service.add_stream_item(request, queue, deadline, item).await {
        Ok(added) => ItemResult::Added(added),
        Err(error) => ItemResult::Error(status::rpc_status(&error)),
    };
    place.send(Ok(StreamAddRespondentResponse {
        sequence,
        crk,
        result: Some(result),
    }));
}

/// The crk for a result. Of one that can't be one, as it is longer than 64 characters can be, only the sequence tells which it
/// was: what a peer does not take must not be of any size.
fn repeated(crk: String) -> String {
    if crk.len() <= 4 * 64 { crk } else { String::new() }
}

fn refuse(error: &Status, crk: String, sequence: u64, place: OwnedPermit<Item>) {
    place.send(Ok(StreamAddRespondentResponse {
        sequence,
        crk: repeated(crk),
        result: Some(ItemResult::Error(status::rpc_status(error))),
    }));
}

fn taken(free: Result<OwnedPermit<Item>, SendError<()>>) -> Option<OwnedPermit<Item>> {
    // An error means that the caller has gone, which the next turn of the loop finds.
    free.ok()
}
