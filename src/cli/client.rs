//! What the commands that call a running gateway share.

use std::{borrow::Cow, error::Error as _, str::FromStr, time::Duration};

use clap::Args;
use serde_json::{Value, json};
use tonic::{
    Code, Status, TimeoutExpired,
    metadata::{Ascii, MetadataValue},
    transport::{Channel, Endpoint},
};
use tonic_types::StatusExt as _;

use self::cause::{cause, cause_in_handshake};
use super::{
    Exit,
    output::{complain, fail, say},
};
use crate::{
    config::duration,
    grpc::code_name,
    proto::{Invitation, InvitationState, invitation_service_client::InvitationServiceClient},
};

mod cause;
mod security;

pub use security::{Error, SecurityArgs};

#[derive(Args, Clone, Debug)]
pub struct ClientArgs {
    /// The gateway to call: http://HOST:PORT, or https://HOST:PORT for TLS.
    #[arg(
        long,
        env = "GATEWAY_TARGET",
        value_name = "URL",
        default_value = "http://127.0.0.1:50051",
        global = true
    )]
    pub target: Target,

    /// How long to wait for an answer.
    #[arg(long, value_name = "TIME", default_value = "90s", value_parser = duration, global = true)]
    pub timeout: Duration,

    #[command(flatten)]
    pub security: SecurityArgs,
}

/// `http://host:port`, `https://host:port`, or `host:port` for the first of these.
#[derive(Clone, Debug)]
pub struct Target {
    endpoint: Endpoint,
    text: String,
}

impl FromStr for Target {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let text = if text.contains("://") {
            text.to_string()
        } else {
            format!("http://{text}")
        };
        let wrong = "expected http://HOST:PORT or https://HOST:PORT";
        let endpoint = Endpoint::from_shared(text.clone()).map_err(|_| wrong)?;
        let scheme = endpoint.uri().scheme_str();
        if !matches!(scheme, Some("http" | "https")) || endpoint.uri().host().is_none() {
            return Err(wrong);
        }
        Ok(Self { endpoint, text })
    }
}

impl ClientArgs {
    /// Reads the files that are named.
    pub fn open(&self) -> Result<Client, Error> {
        let endpoint = self.target.endpoint.clone();
        let token = self.security.token(&endpoint)?;
        Ok(Client {
            endpoint: self.security.protect(endpoint)?,
            target: self.target.text.clone(),
            token,
            timeout: self.timeout,
        })
    }
}

/// Calls a gateway, as the settings say.
#[derive(Clone)]
pub struct Client {
    endpoint: Endpoint,
    target: String,
    token: Option<MetadataValue<Ascii>>,
    /// Of one call.
    pub timeout: Duration,
}

impl Client {
    pub async fn connect(&self) -> Result<Channel, Status> {
        let endpoint = self.endpoint.clone().connect_timeout(self.timeout);
        endpoint.connect().await.map_err(|error| {
            let cause = match self.endpoint.uri().scheme_str() {
                Some("https") => cause_in_handshake(&error),
                _ => cause(&error),
            };
            Status::unavailable(format!("no gateway at {}: {cause}", self.target))
        })
    }

    /// A connection that stays for hours, also where nothing is said on it, and notices when the other side has gone.
    pub async fn connect_for_hours(&self) -> Result<Channel, Status> {
        let lasting = Self {
            endpoint: lasting(self.endpoint.clone()),
            ..self.clone()
        };
        lasting.connect().await
    }

    /// A connection that is made when it is needed, and again after it broke.
    pub fn connect_lazily(&self) -> Channel {
        lasting(self.endpoint.clone()).connect_lazy()
    }

    pub async fn invitations(&self) -> Result<InvitationServiceClient<Channel>, Status> {
        Ok(InvitationServiceClient::new(self.connect().await?))
    }

    pub fn request<T>(&self, message: T) -> tonic::Request<T> {
        let mut request = self.lasting_request(message);
        request.set_timeout(self.timeout);
        request
    }

    /// The same without a deadline.
    pub fn lasting_request<T>(&self, message: T) -> tonic::Request<T> {
        let mut request = tonic::Request::new(message);
        if let Some(token) = &self.token {
            request.metadata_mut().insert("authorization", token.clone());
        }
        request
    }
}

fn lasting(endpoint: Endpoint) -> Endpoint {
    endpoint
        .http2_keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE)
        .keep_alive_while_idle(true)
}

/// Between two pings, and for their answers.
const KEEP_ALIVE: Duration = Duration::from_secs(20);

/// Does the output go to a person or to a program?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Output {
    Human,
    Json,
}

impl Output {
    pub fn from_flag(json: bool) -> Self {
        if json { Self::Json } else { Self::Human }
    }
}

/// Tells of an error: a program on stdout, a person on stderr.
pub fn report(error: &Status, output: Output) -> Exit {
    let error = &named(error);
    match output {
        Output::Json => say(format_args!("{}", json!({ "error": error_json(error) }))),
        Output::Human => complain(format_args!("{}", error_text(error))),
    }
    Exit::of(error)
}

/// tonic's client calls its own deadline, which passes beside the gateway's, a cancellation.
fn named(error: &Status) -> Cow<'_, Status> {
    if error.code() == Code::Cancelled && error.message() == TimeoutExpired(()).to_string() {
        let message =
            "no answer within the --timeout. What was sent is recorded: the same command again tells the outcome";
        return Cow::Owned(Status::deadline_exceeded(message));
    }
    Cow::Borrowed(error)
}

/// Tells of settings that are wrong.
pub fn wrong(error: &Error) -> Exit {
    fail(Exit::Usage, &error.to_string())
}

/// What an error says; where a connection broke, also why.
fn message(error: &Status) -> String {
    let message = error.message();
    match error.source().map(cause) {
        Some(cause) if cause != message => format!("{message}: {cause}"),
        _ => message.into(),
    }
}

pub fn error_text(error: &Status) -> String {
    let details = error.get_error_details();
    let mut text = code_name(error.code()).to_string();
    if let Some(info) = details.error_info() {
        text = format!("{text} {}", info.reason);
    }
    text = format!("{text}: {}", message(error));
    if let Some(sent) = details.error_info().and_then(|info| info.metadata.get("sent")) {
        text = format!("{text} (sent to SurveyLab: {sent})");
    }
    if let Some(delay) = details.retry_info().and_then(|retry| retry.retry_delay) {
        text = format!("{text}; try again in {}", humantime::format_duration(rounded(delay)));
    }
    text
}

/// To the millisecond, which is as much as a person reads.
fn rounded(delay: Duration) -> Duration {
    Duration::from_millis(u64::try_from(delay.as_millis()).unwrap_or(u64::MAX))
}

pub fn error_json(error: &Status) -> Value {
    let details = error.get_error_details();
    let mut value = json!({ "code": code_name(error.code()), "message": message(error) });
    if let Some(info) = details.error_info() {
        value["reason"] = info.reason.clone().into();
        value["domain"] = info.domain.clone().into();
        value["metadata"] = json!(info.metadata);
    }
    if let Some(delay) = details.retry_info().and_then(|retry| retry.retry_delay) {
        value["retryDelaySeconds"] = delay.as_secs_f64().into();
    }
    if let Some(bad) = details.bad_request() {
        value["fieldViolations"] = bad
            .field_violations
            .iter()
            .map(|violation| json!({ "field": violation.field, "description": violation.description }))
            .collect();
    }
    value
}

pub fn time_text(time: Option<prost_types::Timestamp>) -> Option<String> {
    let time: std::time::SystemTime = time?.try_into().ok()?;
    Some(humantime::format_rfc3339_millis(time).to_string())
}

/// As protobuf's JSON mapping has it.
pub fn invitation_json(invitation: &Invitation) -> Value {
    let mut value = json!({
        "collectorId": invitation.collector_id,
        "crk": invitation.crk,
        "state": invitation.state().as_str_name(),
        "attempts": invitation.attempts,
        "createdAt": time_text(invitation.created_at),
        "updatedAt": time_text(invitation.updated_at),
    });
    if invitation.added_at.is_some() {
        value["addedAt"] = json!(time_text(invitation.added_at));
    }
    if let Some(error) = last_error(invitation) {
        value["lastError"] = error_json(&error);
    }
    value
}

/// The last error as the status it was, to be shown like any other.
pub fn last_error(invitation: &Invitation) -> Option<Status> {
    invitation.last_error.as_ref().map(rpc_error)
}

/// An error within a message as the status it would have been by itself.
pub fn rpc_error(error: &tonic_types::Status) -> Status {
    use prost::Message as _;
    let details = error.encode_to_vec().into();
    Status::with_details(error.code.into(), error.message.clone(), details)
}

pub fn state_name(invitation: &Invitation) -> &'static str {
    match invitation.state() {
        InvitationState::Unspecified => "unknown",
        InvitationState::Pending => "pending",
        InvitationState::Added => "added",
        InvitationState::Failed => "failed",
        InvitationState::InDoubt => "in doubt",
    }
}
