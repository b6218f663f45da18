//! Short ways to call, and to read what comes back.

use std::{collections::HashMap, time::Duration};

use prost::Message as _;
use surveylab_gateway::proto::{
    AddRespondentRequest, AddRespondentResponse, GetInvitationRequest, Invitation, InvitationState, Outcome,
    Resolution, ResolveInvitationRequest, StreamAddRespondentResponse,
    invitation_service_client::InvitationServiceClient, stream_add_respondent_response::Result as ItemResult,
};
use tokio::task::JoinHandle;
use tonic::{Code, Status, transport::Channel};
use tonic_types::StatusExt as _;

pub type Client = InvitationServiceClient<Channel>;

pub const COLLECTOR: &str = "c0llector";

/// A valid request with a crk.
pub fn request(crk: &str) -> AddRespondentRequest {
    AddRespondentRequest {
        collector_id: COLLECTOR.into(),
        crk: crk.into(),
        email: "jan.kowalski@example.com".into(),
        ..AddRespondentRequest::default()
    }
}

/// An error as callers see it, in one comparable piece.
#[derive(Debug, PartialEq, Eq)]
pub struct Error {
    pub code: Code,
    pub reason: String,
    pub domain: String,
    pub metadata: HashMap<String, String>,
    pub retry: Option<Duration>,
    pub violations: Vec<String>,
    pub message: String,
}

impl Error {
    pub fn sent(&self) -> &str {
        self.metadata.get("sent").map_or("", String::as_str)
    }

    pub fn http_status(&self) -> Option<&str> {
        self.metadata.get("http_status").map(String::as_str)
    }
}

pub fn status_error(status: &Status) -> Error {
    let details = status.get_error_details();
    let info = details.error_info().cloned();
    let info = info.unwrap_or_else(|| tonic_types::ErrorInfo::new("", "", HashMap::new()));
    Error {
        code: status.code(),
        reason: info.reason,
        domain: info.domain,
        metadata: info.metadata,
        retry: details.retry_info().and_then(|retry| retry.retry_delay),
        violations: details.bad_request().map_or_else(Vec::new, |bad| {
            bad.field_violations
                .iter()
                .map(|violation| violation.field.clone())
                .collect()
        }),
        message: status.message().into(),
    }
}

/// An error that an answer carries inside: of a stream's item, or the last error of an invitation.
pub fn rpc_error(error: tonic_types::Status) -> Error {
    let details = error.encode_to_vec().into();
    status_error(&Status::with_details(error.code.into(), error.message, details))
}

/// One unary call.
pub async fn add(client: &Client, request: AddRespondentRequest) -> Result<AddRespondentResponse, Error> {
    let answer = client.clone().add_respondent(request).await;
    answer
        .map(tonic::Response::into_inner)
        .map_err(|status| status_error(&status))
}

/// One unary call that must succeed: its outcome.
pub async fn added(client: &Client, request: AddRespondentRequest) -> Outcome {
    match add(client, request).await {
        Ok(response) => response.outcome(),
        Err(error) => panic!("{error:?}"),
    }
}

/// One unary call in a task of its own.
pub fn calling(client: &Client, crk: &str) -> JoinHandle<Result<AddRespondentResponse, Error>> {
    let (client, request) = (client.clone(), request(crk));
    tokio::spawn(async move { add(&client, request).await })
}

/// The same of one that must succeed.
pub fn adding(client: &Client, crk: &str) -> JoinHandle<Outcome> {
    let (client, request) = (client.clone(), request(crk));
    tokio::spawn(async move { added(&client, request).await })
}

/// A stream's item, as if it were a unary call's answer.
pub fn item(response: StreamAddRespondentResponse) -> (u64, Result<AddRespondentResponse, Error>) {
    let result = match response.result {
        Some(ItemResult::Added(added)) => Ok(added),
        Some(ItemResult::Error(error)) => Err(rpc_error(error)),
        None => panic!("an item without a result"),
    };
    (response.sequence, result)
}

/// Streams a list, and collects all results by sequence.
pub async fn stream(client: &Client, requests: Vec<AddRespondentRequest>) -> Vec<Result<AddRespondentResponse, Error>> {
    let count = requests.len();
    let mut responses = client
        .clone()
        .stream_add_respondent(tokio_stream::iter(requests))
        .await
        .unwrap()
        .into_inner();
    let mut results: Vec<_> = (0..count).map(|_| None).collect();
    while let Some(response) = responses.message().await.unwrap() {
        let (sequence, result) = item(response);
        let place = &mut results[usize::try_from(sequence).unwrap()];
        assert!(place.is_none(), "item {sequence} was answered twice");
        *place = Some(result);
    }
    let results: Option<Vec<_>> = results.into_iter().collect();
    results.expect("every item is answered")
}

/// What the ledger says of a key, through the API.
pub async fn get(client: &Client, crk: &str) -> Option<Invitation> {
    let request = GetInvitationRequest {
        collector_id: COLLECTOR.into(),
        crk: crk.into(),
    };
    match client.clone().get_invitation(request).await {
        Ok(invitation) => Some(invitation.into_inner()),
        Err(status) if status.code() == Code::NotFound => None,
        Err(status) => panic!("{status:?}"),
    }
}

/// What a key's last attempt failed with, according to the ledger.
pub async fn last_error(client: &Client, crk: &str) -> Option<Error> {
    get(client, crk).await?.last_error.map(rpc_error)
}

pub async fn resolve(client: &Client, crk: &str, resolution: Resolution) -> Result<Invitation, Error> {
    let request = ResolveInvitationRequest {
        collector_id: COLLECTOR.into(),
        crk: crk.into(),
        resolution: resolution.into(),
    };
    let answer = client.clone().resolve_invitation(request).await;
    answer
        .map(tonic::Response::into_inner)
        .map_err(|status| status_error(&status))
}

pub async fn state(client: &Client, crk: &str) -> Option<InvitationState> {
    get(client, crk).await.map(|invitation| invitation.state())
}
