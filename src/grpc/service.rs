//! The six methods: decode, validate, hand to dispatch, encode.

use std::{sync::Arc, time::Duration};

use tokio_stream::wrappers::ReceiverStream;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::{Request, Response, Status, Streaming};

use super::{
    access::{Access, StreamAccess},
    access_log::{Item, Record},
    authenticate::Guard,
    code::code_name,
    convert, deadline, page_token, status,
    stream::{self, Streams},
};
use crate::{
    activity::{ACTIVITY, Ended},
    clock::{Clock, Instant, Timestamp},
    dispatch::{Answer, Dispatcher, Outcome, Trail},
    invitation::Reason,
    ledger::Resolved,
    limiter::{Lane, Queue},
    method::Method,
    metrics,
    proto::{self, invitation_service_server::InvitationService},
};

/// Cheap to clone: every stream has one.
#[derive(Clone)]
pub struct Service {
    pub dispatcher: Dispatcher,
    pub clock: Clock,
    /// Requests in progress at once in one stream.
    pub stream_window: usize,
    /// Streams read no further.
    pub closing: CancellationToken,
    pub tasks: TaskTracker,
    pub streams: Arc<Streams>,
    /// Knows who may call; `None`: everyone.
    pub guard: Option<Arc<Guard>>,
    pub about: About,
}

/// What never changes of a gateway that runs.
#[derive(Clone, Copy, Debug)]
pub struct About {
    pub started_at: Timestamp,
    /// What kind of ledger it is: `sqlite`, `postgres`, `memory`.
    pub ledger: &'static str,
    /// Nothing reaches SurveyLab.
    pub sandbox: bool,
}

impl Service {
    /// One AddRespondent, whichever way it came.
    pub async fn add(
        &self,
        request: proto::AddRespondentRequest,
        queue: Queue,
        deadline: Option<Instant>,
        trail: Option<Arc<Trail>>,
    ) -> Result<proto::AddRespondentResponse, Status> {
        let doubt = convert::doubt(request.resend_in_doubt);
        let validate_only = request.validate_only;
        let crk = request.crk.clone();
        let prepared = self.dispatcher.prepare(convert::invitation(request));
        let call = match prepared {
            Ok(prepared) => self.dispatcher.call(prepared, doubt, queue, deadline).watched(trail),
            Err(violations) => {
                if !validate_only {
                    ACTIVITY.ended(Ended::Other);
                }
                return Err(status::invalid(&violations));
            }
        };
        let answer = if validate_only {
            self.dispatcher.check(&call).await
        } else {
            let answer = self.dispatcher.add(&call).await;
            ACTIVITY.ended(ended(&answer));
            answer
        };
        match answer {
            Ok(outcome) => {
                let response = convert::response(&crk, outcome);
                metrics::outcome(response.outcome());
                Ok(response)
            }
            Err(failure) => Err(status::status(&failure)),
        }
    }

    /// As [`add`](Self::add), counted and, by `item`, told.
    pub async fn add_stream_item(
        &self,
        request: proto::AddRespondentRequest,
        queue: Queue,
        deadline: Option<Instant>,
        item: Option<Item>,
    ) -> Result<proto::AddRespondentResponse, Status> {
        let begin = self.clock.now();
        let trail = item.as_ref().and_then(|item| item.trail.clone());
        let answer = self.add(request, queue, deadline, trail).await;
        count(Method::StreamAdd, begin.elapsed(), &answer);
        if let Some(item) = item {
            item.answered(&answer);
        }
        answer
    }

    fn access<T>(&self, request: &Request<T>) -> Result<Access, Status> {
        Access::of(self.guard.as_ref(), request.extensions())
    }
}

/// Counts a stream's item that was refused before it was looked at.
pub fn count_refused(error: Status) -> Status {
    ACTIVITY.ended(Ended::Other);
    let answer: Result<(), Status> = Err(error.clone());
    count(Method::StreamAdd, Duration::ZERO, &answer);
    error
}

/// What is to be told of a call, if anything is.
fn record<T>(request: &Request<T>) -> Option<Arc<Record>> {
    request.extensions().get().cloned()
}

/// What an answer counts as on the status page.
fn ended(answer: &Answer) -> Ended {
    let failure = match answer {
        Ok(Outcome::Added(_)) => return Ended::Added,
        Ok(Outcome::Duplicate(_)) => return Ended::Duplicate,
        Ok(Outcome::WouldAdd) => return Ended::Other,
        Err(failure) => failure,
    };
    match failure.reason {
        Reason::SurveylabActionFailed
        | Reason::SurveylabBadRequest
        | Reason::SurveylabUnauthorized
        | Reason::SurveylabForbidden
        | Reason::SurveylabNotFound
        | Reason::SurveylabRateLimited
        | Reason::SurveylabInternalError
        | Reason::SurveylabUnavailable
        | Reason::SurveylabUnexpectedStatus
        | Reason::SurveylabUnreachable => Ended::Failed,
        Reason::OutcomeInDoubt => Ended::InDoubt,
        Reason::CrkReused
        | Reason::WaitTooLong
        | Reason::QueueFull
        | Reason::DeadlineAfterSend
        | Reason::ShuttingDown
        | Reason::LedgerUnavailable => Ended::Other,
    }
}

fn count<T>(method: Method, took: Duration, answer: &Result<T, Status>) {
    let failed = answer.as_ref().err();
    let failed = failed.map(|error| (code_name(error.code()), status::reason(error)));
    metrics::call(method, failed, took);
}

fn counted<T>(method: Method, begin: Instant, answer: Result<T, Status>) -> Result<Response<T>, Status> {
    count(method, begin.elapsed(), &answer);
    answer.map(Response::new)
}

#[tonic::async_trait]
impl InvitationService for Service {
    type StreamAddRespondentStream = ReceiverStream<Result<proto::StreamAddRespondentResponse, Status>>;

    async fn add_respondent(
        &self,
        request: Request<proto::AddRespondentRequest>,
    ) -> Result<Response<proto::AddRespondentResponse>, Status> {
        let begin = self.clock.now();
        let deadline = deadline::of(request.metadata(), &self.clock);
        let record = record(&request);
        let trail = record.as_ref().map(|record| record.trail());
        let access = self.access(&request)?;
        let request = request.into_inner();
        let queue = Queue {
            payer: access.payer(),
            lane: Lane::Unary,
        };
        let answer = match access.collector(Method::Add, &request.collector_id) {
            Ok(()) => self.add(request, queue, deadline, trail).await,
            Err(forbidden) => {
                ACTIVITY.ended(Ended::Other);
                Err(forbidden)
            }
        };
        if let Some(record) = record {
            record.answered(&answer);
        }
        counted(Method::Add, begin, answer)
    }

    async fn stream_add_respondent(
        &self,
        request: Request<Streaming<proto::AddRespondentRequest>>,
    ) -> Result<Response<Self::StreamAddRespondentStream>, Status> {
        let deadline = deadline::of(request.metadata(), &self.clock);
        let access = StreamAccess::of(self.guard.as_ref(), request.extensions())?;
        let call = stream::Call {
            record: record(&request),
            deadline,
            access,
            requests: request.into_inner(),
        };
        Ok(Response::new(stream::start(self.clone(), call)))
    }

    async fn get_invitation(
        &self,
        request: Request<proto::GetInvitationRequest>,
    ) -> Result<Response<proto::Invitation>, Status> {
        let begin = self.clock.now();
        let access = self.access(&request)?;
        let proto::GetInvitationRequest { collector_id, crk } = request.into_inner();
        let answer = async {
            access.collector(Method::Get, &collector_id)?;
            let key = convert::key(collector_id, crk).map_err(|violations| status::invalid(&violations))?;
            let record = self
                .dispatcher
                .get(&key)
                .await
                .map_err(|failure| status::status(&failure))?;
            record.map(convert::record).ok_or_else(status::not_found)
        };
        counted(Method::Get, begin, answer.await)
    }

    async fn list_invitations(
        &self,
        request: Request<proto::ListInvitationsRequest>,
    ) -> Result<Response<proto::ListInvitationsResponse>, Status> {
        let begin = self.clock.now();
        let access = self.access(&request)?;
        let request = request.into_inner();
        let answer = async {
            access.collector(Method::List, &request.collector_id)?;
            let query = convert::query(request).map_err(|violations| status::invalid(&violations))?;
            let size = query.limit;
            // One more than asked for tells whether there is another page.
            let wider = crate::ledger::Query {
                limit: size + 1,
                ..query
            };
            let mut records = self
                .dispatcher
                .list(wider)
                .await
                .map_err(|failure| status::status(&failure))?;
            let more = records.len() > size;
            records.truncate(size);
            let next_page_token = match records.last() {
                Some(last) if more => page_token::encode(&last.key),
                _ => String::new(),
            };
            Ok(proto::ListInvitationsResponse {
                invitations: records.into_iter().map(convert::record).collect(),
                next_page_token,
            })
        };
        counted(Method::List, begin, answer.await)
    }

    async fn resolve_invitation(
        &self,
        request: Request<proto::ResolveInvitationRequest>,
    ) -> Result<Response<proto::Invitation>, Status> {
        let begin = self.clock.now();
        let access = self.access(&request)?;
        let request = request.into_inner();
        let answer = async {
            access.collector(Method::Resolve, &request.collector_id)?;
            let resolution = convert::resolution(request.resolution);
            let key = convert::key(request.collector_id, request.crk);
            let (key, resolution) = match (key, resolution) {
                (Ok(key), Ok(resolution)) => (key, resolution),
                (key, resolution) => {
                    let mut violations = key.err().unwrap_or_default();
                    violations.extend(resolution.err());
                    return Err(status::invalid(&violations));
                }
            };
            let resolved = self.dispatcher.resolve(&key, resolution).await;
            match resolved.map_err(|failure| status::status(&failure))? {
                Resolved::Done(record) => {
                    tracing::info!(?key, ?resolution, "a doubt was resolved");
                    Ok(convert::record(record))
                }
                Resolved::NotInDoubt(_) => Err(status::not_in_doubt()),
                Resolved::NotFound => Err(status::not_found()),
            }
        };
        counted(Method::Resolve, begin, answer.await)
    }

    async fn get_status(
        &self,
        request: Request<proto::GetStatusRequest>,
    ) -> Result<Response<proto::GetStatusResponse>, Status> {
        let begin = self.clock.now();
        let access = self.access(&request)?;
        let mut standing = self.dispatcher.standing().await;
        standing.breaker.take_if(|breaker| {
            let collector = breaker.collector_id.as_deref();
            collector.is_some_and(|id| !access.may_use(id))
        });
        let answer = convert::standing(self.about, self.streams.open(), standing);
        counted(Method::Status, begin, Ok(answer))
    }
}
