//! A caller that says how long it waits, and leaves the counting to the gateway.

use std::time::Duration;

use hyper_util::{
    client::legacy::{Client as Http, connect::HttpConnector},
    rt::TokioExecutor,
};
use surveylab_gateway::proto::{
    AddRespondentRequest, AddRespondentResponse, invitation_service_client::InvitationServiceClient,
};
use tonic::{Request, body::Body};

use super::{Error, Gateway, status_error};

/// tonic's own channel stops waiting by itself when the deadline passes, a moment before the gateway's answer comes.
/// This one waits for that answer.
#[derive(Clone)]
pub struct PatientClient(InvitationServiceClient<Http<HttpConnector, Body>>);

impl PatientClient {
    pub fn new(gateway: &Gateway) -> Self {
        let http = Http::builder(TokioExecutor::new()).http2_only(true).build_http();
        let origin = format!("http://{}", gateway.grpc).parse().unwrap();
        Self(InvitationServiceClient::with_origin(http, origin))
    }

    /// A unary call with a deadline.
    pub async fn add(&self, request: AddRespondentRequest, within: Duration) -> Result<AddRespondentResponse, Error> {
        let answer = self.0.clone().add_respondent(with_deadline(request, within)).await;
        answer
            .map(tonic::Response::into_inner)
            .map_err(|status| status_error(&status))
    }
}

/// A request with a deadline, counted from its arrival at the gateway.
pub fn with_deadline<T>(message: T, within: Duration) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(within);
    request
}
