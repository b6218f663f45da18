//! SurveyLab: one request, one classified answer.

mod answer;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
pub mod http;
mod redact;
mod request;
mod token;

use std::{fmt, time::Duration};

use futures_util::future::BoxFuture;

pub use self::token::Tokens;
use crate::invitation::{Invitation, Violation};

/// What one request came to. Closed: every outcome of HTTP falls into one of these, once, where it enters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// 2xx with `status: true`.
    Added { notification: String },
    /// 2xx with `status: false`.
    ActionFailed { http_status: u16, notification: String },
    /// 400.
    BadRequest,
    /// 401.
    Unauthorized,
    /// 403.
    Forbidden,
    /// 404.
    NotFound,
    /// 429.
    RateLimited { retry_after: Option<Duration> },
    /// 500.
    InternalError,
    /// 503.
    Unavailable { retry_after: Option<Duration> },
    /// 3xx, and every 4xx without a row of its own.
    UnexpectedStatus { http_status: u16 },
    /// Not one byte of the request can have reached SurveyLab.
    Unreachable { cause: String },
    /// Bytes may have gone out, and no answer says what became of them. `http_status` is set when one came but says
    /// nothing.
    InDoubt { http_status: Option<u16>, cause: String },
}

impl Answer {
    /// All that `name` can be.
    pub const NAMES: [&str; 12] = [
        "added",
        "action_failed",
        "bad_request",
        "unauthorized",
        "forbidden",
        "not_found",
        "rate_limited",
        "internal_error",
        "unavailable",
        "unexpected_status",
        "unreachable",
        "in_doubt",
    ];

    /// What it came to, as metrics name it.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Added { .. } => "added",
            Self::ActionFailed { .. } => "action_failed",
            Self::BadRequest => "bad_request",
            Self::Unauthorized => "unauthorized",
            Self::Forbidden => "forbidden",
            Self::NotFound => "not_found",
            Self::RateLimited { .. } => "rate_limited",
            Self::InternalError => "internal_error",
            Self::Unavailable { .. } => "unavailable",
            Self::UnexpectedStatus { .. } => "unexpected_status",
            Self::Unreachable { .. } => "unreachable",
            Self::InDoubt { .. } => "in_doubt",
        }
    }

    /// The HTTP status that it came with.
    pub fn http_status(&self) -> Option<u16> {
        match *self {
            // Any 2xx, of which nobody cares for the others.
            Self::Added { .. } => Some(200),
            Self::BadRequest => Some(400),
            Self::Unauthorized => Some(401),
            Self::Forbidden => Some(403),
            Self::NotFound => Some(404),
            Self::RateLimited { .. } => Some(429),
            Self::InternalError => Some(500),
            Self::Unavailable { .. } => Some(503),
            Self::ActionFailed { http_status, .. } | Self::UnexpectedStatus { http_status } => Some(http_status),
            Self::Unreachable { .. } => None,
            Self::InDoubt { http_status, .. } => http_status,
        }
    }
}

/// An invitation, encoded once for all attempts.
pub struct Request {
    pub invitation: Invitation,
    /// `cId=…&email=…`: every parameter but the token. Personal data; never to be logged.
    pub query: String,
}

impl fmt::Debug for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Request({:?})", self.invitation.key)
    }
}

/// SurveyLab's webhook.
pub trait SurveyLab: Send + Sync + 'static {
    /// The invitation as one request, or which field makes it too long to send.
    fn encode(&self, invitation: Invitation) -> Result<Request, Violation>;

    /// Changes when requests begin to bear another token. One that is sent after this was asked bears that token or a later one.
    fn token_version(&self) -> u64 {
        0
    }

    /// Makes the request, once. Ends within the client's own timeout. Not to be dropped midway: that would cut it.
    fn send<'a>(&'a self, request: &'a Request) -> BoxFuture<'a, Answer>;
}
