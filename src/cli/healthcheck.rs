//! `healthcheck`: for container runtimes, which can run a command but speak no gRPC.

use clap::Args;
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};

use super::{
    Exit,
    client::{ClientArgs, Output, report, wrong},
    output::say,
};

/// Ask a running gateway for its health: exit code 0 if it serves, 1 if not.
#[derive(Args, Clone, Debug)]
pub struct HealthcheckArgs {
    #[command(flatten)]
    pub client: ClientArgs,
}

/// Asks, and tells by the exit code.
pub async fn run(args: HealthcheckArgs) -> Exit {
    let client = match args.client.open() {
        Ok(client) => client,
        Err(error) => return wrong(&error),
    };
    let answer = async {
        let mut health = HealthClient::new(client.connect().await?);
        let request = client.request(HealthCheckRequest::default());
        Ok(health.check(request).await?.into_inner().status())
    };
    match answer.await {
        Ok(ServingStatus::Serving) => {
            say(format_args!("serving"));
            Exit::Ok
        }
        Ok(_) => {
            say(format_args!("not serving"));
            Exit::TryAgain
        }
        Err(error) => {
            report(&error, Output::Human);
            Exit::TryAgain
        }
    }
}
