//! The speed of light for this stack: tonic in, reqwest out, and nothing of what the gateway is for. No ledger, no limiter,
//! no validation; a second call is a second e-mail.

use std::{env, io, net::SocketAddr, process::Command};

use clap::Args as ClapArgs;
use futures_util::StreamExt as _;
use serde::Deserialize;
use surveylab_gateway::proto::{
    AddRespondentRequest, AddRespondentResponse, GetInvitationRequest, GetStatusRequest, GetStatusResponse, Invitation,
    ListInvitationsRequest, ListInvitationsResponse, Outcome, ResolveInvitationRequest, StreamAddRespondentResponse,
    invitation_service_server::{InvitationService, InvitationServiceServer},
    stream_add_respondent_response::Result as ItemResult,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Request, Response, Status, Streaming, async_trait,
    transport::{Server, server::TcpIncoming},
};

use super::{
    Failure,
    process::{Process, free_address},
};

/// Items of a stream in flight.
const WINDOW: usize = 256;

#[derive(ClapArgs)]
pub struct Args {
    #[arg(long)]
    listen: SocketAddr,
    #[arg(long)]
    surveylab: SocketAddr,
}

/// Starts the pass-through as a process of its own, and waits until it accepts connections.
pub fn start(surveylab: SocketAddr) -> io::Result<(Process, SocketAddr)> {
    let listen = free_address()?;
    let mut process = Process::start(
        Command::new(env::current_exe()?)
            .arg("bare")
            .args(["--listen", &listen.to_string()])
            .args(["--surveylab", &surveylab.to_string()]),
    )?;
    process.listens(listen)?;
    Ok((process, listen))
}

pub fn run(args: &Args) -> Result<(), Failure> {
    // reqwest wants a provider even where nothing is encrypted; an error says that there is one.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = tokio::runtime::Runtime::new()?;
    runtime.block_on(async {
        let client = reqwest::Client::builder()
            .pool_max_idle_per_host(4_096)
            .no_proxy()
            .tls_certs_only([])
            .build()?;
        let bare = Bare {
            client,
            url: format!("http://{}/webhook", args.surveylab).parse()?,
        };
        // Else answers wait for the caller's delayed acknowledgements: cheap in CPU time, and 40 ms late.
        let incoming = TcpIncoming::bind(args.listen)?.with_nodelay(Some(true));
        Server::builder()
            .add_service(InvitationServiceServer::new(bare))
            .serve_with_incoming(incoming)
            .await?;
        Ok(())
    })
}

#[derive(Clone)]
struct Bare {
    client: reqwest::Client,
    url: reqwest::Url,
}

#[derive(Deserialize)]
struct Answer {
    status: bool,
    notification: String,
}

impl Bare {
    async fn add(&self, request: AddRespondentRequest) -> Result<AddRespondentResponse, Status> {
        let mut url = self.url.clone();
        url.query_pairs_mut()
            .append_pair("apiToken", "token")
            .append_pair("cId", &request.collector_id)
            .append_pair("email", &request.email)
            .append_pair("crk", &request.crk)
            .append_pair("language", &request.language)
            .append_pair("firstName", &request.first_name)
            .append_pair("lastName", &request.last_name);
        let unavailable = |error: reqwest::Error| Status::unavailable(error.to_string());
        let body = self.client.get(url).send().await.map_err(unavailable)?;
        let body = body.bytes().await.map_err(unavailable)?;
        let answer: Answer = serde_json::from_slice(&body).map_err(|error| Status::unknown(error.to_string()))?;
        if !answer.status {
            return Err(Status::failed_precondition(answer.notification));
        }
        Ok(AddRespondentResponse {
            crk: request.crk,
            outcome: Outcome::Added.into(),
            added_at: None,
            notification: answer.notification,
            attempts: 1,
        })
    }
}

#[async_trait]
impl InvitationService for Bare {
    type StreamAddRespondentStream = ReceiverStream<Result<StreamAddRespondentResponse, Status>>;

    async fn add_respondent(
        &self,
        request: Request<AddRespondentRequest>,
    ) -> Result<Response<AddRespondentResponse>, Status> {
        self.add(request.into_inner()).await.map(Response::new)
    }

    async fn stream_add_respondent(
        &self,
        request: Request<Streaming<AddRespondentRequest>>,
    ) -> Result<Response<Self::StreamAddRespondentStream>, Status> {
        let (results, taken) = mpsc::channel(WINDOW);
        let bare = self.clone();
        tokio::spawn(async move {
            let answers = request.into_inner().enumerate().map(|(sequence, request)| {
                let bare = &bare;
                async move {
                    let request = request?;
                    let crk = request.crk.clone();
                    let added = bare.add(request).await?;
                    Ok(StreamAddRespondentResponse {
                        sequence: sequence as u64,
                        crk,
                        result: Some(ItemResult::Added(added)),
                    })
                }
            });
            let mut answers = std::pin::pin!(answers.buffer_unordered(WINDOW));
            while let Some(answer) = answers.next().await {
                if results.send(answer).await.is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(taken)))
    }

    async fn get_invitation(&self, _: Request<GetInvitationRequest>) -> Result<Response<Invitation>, Status> {
        Err(Status::unimplemented("it keeps nothing"))
    }

    async fn list_invitations(
        &self,
        _: Request<ListInvitationsRequest>,
    ) -> Result<Response<ListInvitationsResponse>, Status> {
        Err(Status::unimplemented("it keeps nothing"))
    }

    async fn resolve_invitation(&self, _: Request<ResolveInvitationRequest>) -> Result<Response<Invitation>, Status> {
        Err(Status::unimplemented("it keeps nothing"))
    }

    async fn get_status(&self, _: Request<GetStatusRequest>) -> Result<Response<GetStatusResponse>, Status> {
        Err(Status::unimplemented("it keeps nothing"))
    }
}
