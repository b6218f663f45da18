//! The six methods: decode, validate, hand to dispatch, encode.

use std::{sync::Arc, time::Duration};

use tokio_stream::wrappers::ReceiverStream;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::{Request, Response, Status, Streaming};

use super::{
    convert, deadline, page_token, status,
    stream::{self, Streams},
};
use crate::{
    activity::{ACTIVITY, Ended},
    clock::{Clock, Instant, Timestamp},
    dispatch::{Answer, Dispatcher, Outcome},
    invitation::Reason,
    ledger::Resolved,
    limiter::{Lane, StreamId},
    metrics::{self, Method},
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
    pub about: About,
}

/// What GetStatus tells that never changes.
#[derive(Clone, Copy, Debug)]
pub struct About {
    pub started_at: Timestamp,
    /// What kind of ledger it is: `sqlite`, `memory`.
    pub ledger: &'static str,
    /// Nothing reaches SurveyLab.
    pub sandbox: bool,
}

impl Service {
    /// One AddRespondent, whichever way it came.
    pub async fn add(
        &self,
        request: proto::AddRespondentRequest,
        lane: Lane,
        deadline: Option<Instant>,
    ) -> Result<proto::AddRespondentResponse, Status> {
        let doubt = convert::doubt(request.resend_in_doubt);
        let validate_only = request.validate_only;
        let crk = request.crk.clone();
        let prepared = self.dispatcher.prepare(convert::invitation(request));
        let call = match prepared {
            Ok(prepared) => self.dispatcher.call(prepared, doubt, lane, deadline),
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
            Ok(outcome) => Ok(convert::response(&crk, outcome)),
            Err(failure) => Err(status::status(&failure)),
        }
    }

    /// As [`add`](Self::add), counted.
    pub async fn add_stream_item(
        &self,
        request: proto::AddRespondentRequest,
        stream: StreamId,
        deadline: Option<Instant>,
    ) -> Result<proto::AddRespondentResponse, Status> {
        let begin = self.clock.now();
        let answer = self.add(request, Lane::Stream(stream), deadline).await;
        count(Method::Stream, begin.elapsed(), &answer);
        answer
    }
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
    let failed = answer.as_ref().err().map(|error| (error.code(), status::reason(error)));
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
        let answer = self.add(request.into_inner(), Lane::Unary, deadline).await;
        counted(Method::Add, begin, answer)
    }

    async fn stream_add_respondent(
        &self,
        request: Request<Streaming<proto::AddRespondentRequest>>,
    ) -> Result<Response<Self::StreamAddRespondentStream>, Status> {
        let deadline = deadline::of(request.metadata(), &self.clock);
        Ok(Response::new(stream::start(
            self.clone(),
            deadline,
            request.into_inner(),
        )))
    }

    async fn get_invitation(
        &self,
        request: Request<proto::GetInvitationRequest>,
    ) -> Result<Response<proto::Invitation>, Status> {
        let begin = self.clock.now();
        let proto::GetInvitationRequest { collector_id, crk } = request.into_inner();
        let answer = async {
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
        let answer = async {
            let query = convert::query(request.into_inner()).map_err(|violations| status::invalid(&violations))?;
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
        let request = request.into_inner();
        let answer = async {
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
        _: Request<proto::GetStatusRequest>,
    ) -> Result<Response<proto::GetStatusResponse>, Status> {
        let begin = self.clock.now();
        let standing = self.dispatcher.standing().await;
        let answer = convert::standing(self.about, self.streams.open(), standing);
        counted(Method::Status, begin, Ok(answer))
    }
}
