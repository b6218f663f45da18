//! The stream of the gateway that rows go through.

use std::future::pending;

use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming, transport::Channel};

use crate::{
    cli::client::Client,
    proto::{AddRespondentRequest, StreamAddRespondentResponse, invitation_service_client::InvitationServiceClient},
};

/// A stream with the gateway, on a connection of its own unless one is given: what it answers to what comes from the channel.
pub(super) async fn open(
    client: &Client,
    connection: Option<Channel>,
    requests: mpsc::Receiver<AddRespondentRequest>,
) -> Result<(Channel, Streaming<StreamAddRespondentResponse>), Status> {
    let connection = match connection {
        Some(connection) => connection,
        None => client.connect_for_hours().await?,
    };
    let answers = InvitationServiceClient::new(connection.clone())
        .stream_add_respondent(client.lasting_request(ReceiverStream::new(requests)))
        .await?;
    Ok((connection, answers.into_inner()))
}

/// A place for a request; never comes without a stream.
pub(super) async fn reserve(
    requests: Option<&mpsc::Sender<AddRespondentRequest>>,
) -> Option<mpsc::Permit<'_, AddRespondentRequest>> {
    match requests {
        // The stream has ended: its answers tell why, and this must not be asked again and again meanwhile.
        Some(requests) => match requests.reserve().await {
            Ok(place) => Some(place),
            Err(_) => pending().await,
        },
        None => pending().await,
    }
}
